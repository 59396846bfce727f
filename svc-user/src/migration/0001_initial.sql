-- Accounts, organisers with their members, sessions with their refresh tokens, and signing keys.

CREATE TABLE account (
    id uuid PRIMARY KEY,
    -- Trimmed and in lower case, so that one address has one account.
    email text NOT NULL UNIQUE,
    -- argon2id, in the PHC string format.
    password_hash text NOT NULL,
    display_name text NOT NULL,
    -- Rows of organizer_member. Counted here so that two requests at once can't both be the last allowed one.
    organizer_count smallint NOT NULL CHECK (organizer_count BETWEEN 0 AND 20),
    create_time timestamptz NOT NULL
);

CREATE TABLE organizer (
    id uuid PRIMARY KEY,
    display_name text NOT NULL,
    create_time timestamptz NOT NULL
);

CREATE TABLE organizer_member (
    account uuid NOT NULL REFERENCES account (id),
    organizer uuid NOT NULL REFERENCES organizer (id),
    create_time timestamptz NOT NULL,
    PRIMARY KEY (account, organizer)
);

-- A session is a family of refresh tokens, each traded for the next.
CREATE TABLE session (
    id uuid PRIMARY KEY,
    account uuid NOT NULL REFERENCES account (id),
    create_time timestamptz NOT NULL,
    -- When its newest refresh token expires.
    expire_time timestamptz NOT NULL,
    -- When it was ended: by logging out, or because a used refresh token came again.
    revoke_time timestamptz
);

CREATE INDEX session_by_expiry ON session (expire_time);
CREATE INDEX session_by_revocation ON session (revoke_time) WHERE revoke_time IS NOT NULL;

CREATE TABLE refresh_token (
    -- SHA-256. The token itself is kept nowhere.
    token_hash bytea PRIMARY KEY,
    session uuid NOT NULL REFERENCES session (id) ON DELETE CASCADE,
    expire_time timestamptz NOT NULL,
    -- When it was traded for the next one, and by the request with which idempotency key. A used token is kept until it
    -- would have expired, so that its coming again is noticed.
    rotate_time timestamptz,
    rotate_key text,
    CHECK ((rotate_time IS NULL) = (rotate_key IS NULL))
);

-- A session has one token that can still be used, whatever races.
CREATE UNIQUE INDEX refresh_token_unused ON refresh_token (session) WHERE rotate_time IS NULL;
CREATE INDEX refresh_token_by_session ON refresh_token (session);
CREATE INDEX refresh_token_by_expiry ON refresh_token (expire_time);

CREATE TABLE signing_key (
    -- 1, 2, 3, … Of several processes that make the next key at once, one succeeds.
    generation bigint PRIMARY KEY,
    kid text NOT NULL UNIQUE,
    -- The 32 bytes of an Ed25519 public key.
    public_key bytea NOT NULL,
    -- A nonce of 12 bytes, then the PKCS#8 document, encrypted by AES-256-GCM with the kid as associated data.
    private_key bytea NOT NULL,
    create_time timestamptz NOT NULL,
    -- When it begins to sign. Until then it is only published, so that everyone knows it in time.
    sign_time timestamptz NOT NULL
);

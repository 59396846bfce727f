-- What a fan can spend. No row: nothing yet. Only fans have a balance kept: one of ours would be changed by every
-- payment, one after the other; ours are sums of entries.
CREATE TABLE wallet (
    fan uuid PRIMARY KEY,
    balance bigint NOT NULL CHECK (balance >= 0)
)
--postgres: WITH (fillfactor = 70)
;

-- One a booking. Voided before it was charged: fan and concert are null, the amount is 0.
CREATE TABLE payment (
    booking uuid PRIMARY KEY,
    -- 1 captured, 2 voided.
    state smallint NOT NULL CHECK (state BETWEEN 1 AND 2),
    fan uuid,
    concert uuid,
    amount bigint NOT NULL,
    refunded bigint NOT NULL,
    create_time timestamptz NOT NULL,
    CHECK (refunded BETWEEN 0 AND amount),
    CHECK ((fan IS NULL) = (concert IS NULL)),
    CHECK (fan IS NOT NULL OR (state = 2 AND amount = 0)),
    CHECK (state = 1 OR refunded = amount)
);

CREATE TABLE refund (
    id uuid PRIMARY KEY,
    booking uuid NOT NULL REFERENCES payment (booking),
    amount bigint NOT NULL CHECK (amount > 0),
    create_time timestamptz NOT NULL
);

CREATE TABLE top_up (
    id uuid PRIMARY KEY,
    fan uuid NOT NULL,
    -- 1 sandbox.
    provider smallint NOT NULL,
    amount bigint NOT NULL CHECK (amount > 0),
    create_time timestamptz NOT NULL
);

-- The ledger. The entries of one transaction sum to 0; rows are only ever added.
CREATE TABLE entry (
    id uuid PRIMARY KEY,
    transaction_id uuid NOT NULL,
    -- 1 top-up, 2 payment, 3 refund.
    movement smallint NOT NULL CHECK (movement BETWEEN 1 AND 3),
    -- 1 the wallet of the fan `owner`, 2 clearing with the payment providers, 3 payable for the concert `owner`.
    account smallint NOT NULL CHECK (account BETWEEN 1 AND 3),
    owner uuid,
    booking uuid,
    -- Positive into the account, negative out of it.
    amount bigint NOT NULL CHECK (amount <> 0),
    create_time timestamptz NOT NULL,
    CHECK ((owner IS NULL) = (account = 2)),
    CHECK ((booking IS NULL) = (movement = 1))
);

CREATE INDEX entry_by_wallet ON entry (owner, id) WHERE account = 1;

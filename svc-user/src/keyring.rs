//! The Ed25519 keys that access tokens are signed with: made, kept encrypted, rotated by age, and published together with
//! the sessions that ended lately.
//!
//! A key's life: it is made and published, signs from [`PUBLICATION_LEAD`] later until its successor does, and stays
//! published for [`RETIREMENT`] more, when its last token has expired. So nobody is logged out by a rotation.

use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use jsonwebtoken::EncodingKey;
use mesh::{
    auth::{Keys, User, keys::PublicKey, token},
    clock::Clock,
    config::Secret,
    database::Database,
    id::SessionId,
};
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;

use crate::{
    derived_key::{Purpose, derive},
    error::Error,
    store::{
        session,
        signing_key::{self, StoredKey},
    },
};

/// How long an access token is valid.
pub(crate) const ACCESS_TOKEN_LIFETIME: TimeDelta = TimeDelta::minutes(15);
/// How long a new key is only published: everyone asks for the keys every few seconds, and clocks may differ by a minute.
const PUBLICATION_LEAD: TimeDelta = TimeDelta::minutes(2);
/// How long a key stays published when its successor signs: as long as a token is valid, a minute by which clocks may
/// differ at each end, and some minutes for a process that was asleep.
const RETIREMENT: TimeDelta = TimeDelta::minutes(20);
/// How long an ended session is published: as long as a token of it is accepted, its lifetime and a minute by which
/// clocks may differ, and a minute for one that was signed while it ended.
pub(crate) const REVOCATION_MEMORY: TimeDelta = TimeDelta::minutes(17);

/// A signed access token.
pub(crate) struct AccessToken {
    /// The JWT.
    pub(crate) text: String,
    pub(crate) expire_time: DateTime<Utc>,
}

/// The keys in use, as this process last read them.
pub(crate) struct Keyring {
    database: Database,
    clock: Clock,
    rotation_period: TimeDelta,
    encryption: RandomizedNonceKey,
    current: ArcSwap<Contents>,
    /// What this service itself verifies tokens with.
    verification: Keys,
    /// Held while reading, so that an older reading never replaces a newer one.
    reading: Mutex<()>,
}

#[derive(Default)]
struct Contents {
    /// The newest first.
    keys: Vec<SigningKey>,
    revoked: Vec<SessionId>,
}

#[derive(Clone)]
struct SigningKey {
    generation: i64,
    public: PublicKey,
    private: EncodingKey,
    sign_time: DateTime<Utc>,
}

impl Keyring {
    /// Reads the keys; makes the first if there is none.
    ///
    /// # Errors
    /// [`Error::KeyEncryptionKeyWrong`] if the keys were encrypted with another secret; a failing database.
    pub(crate) async fn open(
        database: Database,
        clock: Clock,
        secret: &Secret,
        rotation_period: TimeDelta,
    ) -> Result<Self, Error> {
        let encryption = RandomizedNonceKey::new(&AES_256_GCM, &derive(secret, Purpose::SigningKeys))
            .map_err(Error::cryptography("reading the encryption key"))?;
        let keyring = Self {
            database,
            clock,
            rotation_period,
            encryption,
            current: ArcSwap::default(),
            verification: Keys::new(),
            reading: Mutex::default(),
        };
        keyring.refresh().await?;
        if keyring.current.load().keys.is_empty() {
            // Nobody can have a token yet that others must know the key of, so it signs at once.
            keyring.add_key(1, keyring.clock.now()).await?;
        }
        Ok(keyring)
    }

    /// Reads the keys and the sessions that ended lately.
    pub(crate) async fn refresh(&self) -> Result<(), Error> {
        let _reading = self.reading.lock().await;
        let now = self.clock.now();
        let reader = self.database.reader();
        let keys = signing_key::list(reader).await?;
        let keys = keys.into_iter().map(|key| self.decrypt(key)).collect::<Result<Vec<_>, _>>()?;
        let revoked = session::list_revoked_since(reader, now - REVOCATION_MEMORY).await?;
        let contents = Contents { keys, revoked };
        self.verification.replace(contents.published(now), contents.revoked.iter().copied().collect());
        self.current.store(Arc::new(contents));
        Ok(())
    }

    /// What this service itself verifies tokens with.
    pub(crate) fn verification(&self) -> Keys {
        self.verification.clone()
    }

    /// The keys whose tokens are accepted, the newest first, and the sessions that ended lately.
    pub(crate) fn published(&self) -> (Vec<PublicKey>, Vec<SessionId>) {
        let current = self.current.load();
        (current.published(self.clock.now()), current.revoked.clone())
    }

    /// Signs a token as of a time. For the same time and user it is the same token, byte by byte: Ed25519 is
    /// deterministic (RFC 8032).
    pub(crate) fn sign(&self, user: &User, time: DateTime<Utc>) -> Result<AccessToken, Error> {
        let current = self.current.load();
        let key = current
            .signing_key(time)
            .ok_or(Error::Cryptography { what: "finding a signing key", source: "there is none".into() })?;
        // A token's times are whole seconds.
        let expire_time = (time + ACCESS_TOKEN_LIFETIME).trunc_subsecs(0);
        let text = token::sign(user, &key.public.kid, &key.private, time, expire_time)
            .map_err(Error::cryptography("signing a token"))?;
        Ok(AccessToken { text, expire_time })
    }

    /// Makes the next key if the newest one has signed for long enough.
    pub(crate) async fn rotate_if_due(&self) -> Result<(), Error> {
        let now = self.clock.now();
        let newest = self.current.load().keys.first().map(|key| (key.generation, key.sign_time));
        let Some((generation, sign_time)) = newest else { return Ok(()) };
        if now < sign_time + self.rotation_period {
            return Ok(());
        }
        self.add_key(generation + 1, now + PUBLICATION_LEAD).await
    }

    /// Deletes the keys that are not published any more.
    pub(crate) async fn delete_retired(&self) -> Result<(), Error> {
        let (current, now) = (self.current.load_full(), self.clock.now());
        for (index, key) in current.keys.iter().enumerate() {
            if !is_published(&current.keys, index, now) {
                signing_key::delete(self.database.writer(), key.generation).await?;
            }
        }
        Ok(())
    }

    /// Makes a key, unless another process has made one of this generation; either way it is known afterwards.
    async fn add_key(&self, generation: i64, sign_time: DateTime<Utc>) -> Result<(), Error> {
        let key = self.make_key(generation, sign_time)?;
        let kid = key.kid.clone();
        if signing_key::add(self.database.writer(), key).await? {
            tracing::info!(key.id = kid, key.generation = generation, %sign_time, "a signing key was made");
        }
        self.refresh().await
    }

    fn make_key(&self, generation: i64, sign_time: DateTime<Utc>) -> Result<StoredKey, Error> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
            .map_err(Error::cryptography("making a key pair"))?;
        let pair = Ed25519KeyPair::from_pkcs8(document.as_ref())
            .map_err(Error::cryptography("reading a new key pair"))?;
        let public_key = pair.public_key().as_ref().to_vec();
        let kid = thumbprint(&BASE64_URL_SAFE_NO_PAD.encode(&public_key));
        let mut encrypted = document.as_ref().to_vec();
        let nonce = self
            .encryption
            .seal_in_place_append_tag(Aad::from(kid.as_bytes()), &mut encrypted)
            .map_err(Error::cryptography("encrypting a key"))?;
        let private_key = [nonce.as_ref().as_slice(), &encrypted].concat();
        Ok(StoredKey { generation, kid, public_key, private_key, create_time: self.clock.now(), sign_time })
    }

    fn decrypt(&self, stored: StoredKey) -> Result<SigningKey, Error> {
        let open = || {
            let (nonce, encrypted) = stored.private_key.split_at_checked(NONCE_LEN)?;
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let mut document = encrypted.to_vec();
            let document =
                self.encryption.open_in_place(nonce, Aad::from(stored.kid.as_bytes()), &mut document).ok()?;
            Some(EncodingKey::from_ed_der(document))
        };
        let private = open().ok_or(Error::KeyEncryptionKeyWrong)?;
        let x = BASE64_URL_SAFE_NO_PAD.encode(&stored.public_key);
        let public = PublicKey { kid: stored.kid.clone(), x };
        Ok(SigningKey { generation: stored.generation, public, private, sign_time: stored.sign_time })
    }
}

impl Contents {
    fn published(&self, now: DateTime<Utc>) -> Vec<PublicKey> {
        let is_published = |index: &usize| is_published(&self.keys, *index, now);
        (0..self.keys.len()).filter(is_published).map(|index| self.keys[index].public.clone()).collect()
    }

    /// The key that signs at a time. When this process' clock is behind that of the one that made the first key, no key
    /// signs yet; then the oldest does.
    fn signing_key(&self, time: DateTime<Utc>) -> Option<&SigningKey> {
        self.keys.iter().find(|key| key.sign_time <= time).or(self.keys.last())
    }
}

/// Whether the key at an index, of keys that begin with the newest, may have signed a token that is still valid.
fn is_published(keys: &[SigningKey], index: usize, now: DateTime<Utc>) -> bool {
    let successor = index.checked_sub(1).map(|newer| &keys[newer]);
    successor.is_none_or(|successor| now < successor.sign_time + RETIREMENT)
}

/// The id of the key with this public part: its JWK thumbprint (RFC 7638, RFC 8037 appendix A.3).
fn thumbprint(x: &str) -> String {
    let jwk = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#);
    BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(jwk))
}

#[cfg(test)]
mod tests {
    use mesh::id::UserId;

    use super::*;
    use crate::{
        email::EmailAddress,
        store::account::{self, NewAccount},
        test_database::{TestDatabase, on_both_databases},
    };

    const PERIOD: TimeDelta = TimeDelta::days(30);

    fn clock() -> Clock {
        Clock::manual(DateTime::from_timestamp(1_800_000_000, 123_456_000).unwrap())
    }

    fn user() -> User {
        User { id: UserId::new(), session: SessionId::new(), organizers: Vec::new(), is_admin: false }
    }

    async fn open(database: &TestDatabase, clock: &Clock, secret: &Secret) -> Result<Keyring, Error> {
        Keyring::open(database.database.clone(), clock.clone(), secret, PERIOD).await
    }

    fn kids(keyring: &Keyring) -> Vec<String> {
        keyring.published().0.into_iter().map(|key| key.kid).collect()
    }

    /// What the worker does every few seconds.
    async fn work(keyring: &Keyring) {
        keyring.refresh().await.unwrap();
        keyring.rotate_if_due().await.unwrap();
        keyring.delete_retired().await.unwrap();
        keyring.refresh().await.unwrap();
    }

    on_both_databases! {
        processes_that_start_at_once_agree_on_a_key,
        a_rotation_logs_nobody_out,
        processes_that_rotate_at_once_make_one_key,
        a_token_for_the_same_time_is_the_same,
        keys_of_another_secret_are_refused,
        an_ended_session_is_published_as_long_as_a_token_of_it_is_accepted,
    }

    async fn processes_that_start_at_once_agree_on_a_key(database: TestDatabase) {
        let (clock, secret) = (clock(), Secret::random());
        let opened = futures_util::future::join_all((0..4).map(|_| open(&database, &clock, &secret))).await;
        let kids: Vec<_> = opened.into_iter().map(|keyring| kids(&keyring.unwrap())).collect();
        assert_eq!(kids[0].len(), 1);
        assert!(kids.iter().all(|each| *each == kids[0]), "{kids:?}");
    }

    async fn a_rotation_logs_nobody_out(database: TestDatabase) {
        let (clock, user) = (clock(), user());
        let keyring = open(&database, &clock, &Secret::random()).await.unwrap();
        let first = kids(&keyring);
        clock.advance(PERIOD - TimeDelta::seconds(1));
        work(&keyring).await;
        assert_eq!(kids(&keyring), first, "too early");

        clock.advance(TimeDelta::seconds(1));
        work(&keyring).await;
        let both = kids(&keyring);
        assert_eq!((both.len(), &both[1]), (2, &first[0]), "the new one is published before it signs");
        clock.advance(PUBLICATION_LEAD - TimeDelta::seconds(1));
        work(&keyring).await;
        let last_of_old = keyring.sign(&user, clock.now()).unwrap();
        assert!(is_signed_by(&last_of_old, &first[0]));

        clock.advance(TimeDelta::seconds(1));
        assert!(is_signed_by(&keyring.sign(&user, clock.now()).unwrap(), &both[0]));
        clock.advance(ACCESS_TOKEN_LIFETIME - TimeDelta::seconds(2));
        work(&keyring).await;
        let verified = keyring.verification().verify(&last_of_old.text, clock.now()).await;
        assert_eq!(*verified.expect("valid until it expires"), user);

        clock.advance(RETIREMENT);
        work(&keyring).await;
        assert_eq!(kids(&keyring), both[..1]);
        assert_eq!(signing_key::list(database.database.reader()).await.unwrap().len(), 1, "deleted");
    }

    async fn processes_that_rotate_at_once_make_one_key(database: TestDatabase) {
        let (clock, secret) = (clock(), Secret::random());
        let one = open(&database, &clock, &secret).await.unwrap();
        let other = open(&database, &clock, &secret).await.unwrap();
        clock.advance(PERIOD);
        let (first, second) = tokio::join!(one.rotate_if_due(), other.rotate_if_due());
        assert!(first.is_ok() && second.is_ok());
        assert_eq!(kids(&one).len(), 2);
        assert_eq!(kids(&one), kids(&other));
    }

    async fn a_token_for_the_same_time_is_the_same(database: TestDatabase) {
        let (clock, user) = (clock(), user());
        let keyring = open(&database, &clock, &Secret::random()).await.unwrap();
        let token = keyring.sign(&user, clock.now()).unwrap();
        assert_eq!(keyring.sign(&user, clock.now()).unwrap().text, token.text);
        let later = keyring.sign(&user, clock.now() + TimeDelta::seconds(1)).unwrap();
        assert_ne!(later.text, token.text);
        assert_eq!(token.expire_time.timestamp(), 1_800_000_000 + 900);
        assert_eq!(token.expire_time.timestamp_subsec_nanos(), 0);
    }

    async fn keys_of_another_secret_are_refused(database: TestDatabase) {
        let clock = clock();
        open(&database, &clock, &Secret::random()).await.unwrap();
        let refused = open(&database, &clock, &Secret::random()).await;
        assert!(matches!(refused.err(), Some(Error::KeyEncryptionKeyWrong)));
    }

    async fn an_ended_session_is_published_as_long_as_a_token_of_it_is_accepted(test: TestDatabase) {
        let (clock, database) = (clock(), &test.database);
        let keyring = open(&test, &clock, &Secret::random()).await.unwrap();
        let (user, session) = (UserId::new(), SessionId::new());
        let new = NewAccount {
            id: user,
            email: EmailAddress::parse("fan@example.com").unwrap(),
            password_hash: "hash".to_owned(),
            display_name: "Fan".to_owned(),
            create_time: clock.now(),
        };
        account::create(database.writer(), new).await.unwrap();
        session::start(database, session, user, &[1; 32], clock.now()).await.unwrap();
        session::revoke(database.writer(), session, user, clock.now()).await.unwrap();
        assert_eq!(keyring.published().1, [], "not read yet");
        keyring.refresh().await.unwrap();
        assert_eq!(keyring.published().1, [session]);
        clock.advance(ACCESS_TOKEN_LIFETIME + TimeDelta::seconds(token::LEEWAY_SECONDS as i64));
        keyring.refresh().await.unwrap();
        assert_eq!(keyring.published().1, [session]);
        clock.advance(TimeDelta::seconds(60));
        keyring.refresh().await.unwrap();
        assert_eq!(keyring.published().1, []);
    }

    #[tokio::test]
    async fn a_clock_that_is_behind_can_sign() {
        let database = TestDatabase::sqlite().await;
        let clock = clock();
        let keyring = open(&database, &clock, &Secret::random()).await.unwrap();
        assert!(keyring.sign(&user(), clock.now() - TimeDelta::minutes(1)).is_ok());
    }

    #[test]
    fn the_kid_is_the_thumbprint_of_rfc_8037() {
        let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
        assert_eq!(thumbprint(x), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }

    fn is_signed_by(token: &AccessToken, kid: &str) -> bool {
        jsonwebtoken::decode_header(&token.text).unwrap().kid.as_deref() == Some(kid)
    }
}

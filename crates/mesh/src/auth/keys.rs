//! The public keys that access tokens are verified with, and the tokens verified lately.
//!
//! svc-user puts its own keys in; everyone else asks it every few seconds. An Ed25519 check costs some 30 µs, so a
//! verified token is remembered by its SHA-256; its times, its key and its session are checked anew each time.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use boxoffice_proto::{
    common::v1::ErrorReason,
    user::v1::{ListSigningKeysRequest, ListSigningKeysResponse, key_service_client::KeyServiceClient},
};
use chrono::{DateTime, Utc};
use jsonwebtoken::DecodingKey;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, Semaphore};

use super::{
    User, invalid,
    token::{self, LEEWAY_SECONDS, Verified},
};
use crate::{
    client::Channel,
    failure::{Failure, chain},
    id::SessionId,
    server::MAX_IN_FLIGHT,
    shutdown::Shutdown,
};

/// How often the keys are asked for.
const REFRESH_PERIOD: Duration = Duration::from_secs(3);
/// How soon they are asked for again when it failed, or when an unknown key came.
const RETRY_PERIOD: Duration = Duration::from_millis(250);
/// How long a call waits for keys that were never had, or that may be new.
const WAIT_LIMIT: Duration = Duration::from_millis(500);
/// Calls that may wait so at once; more are refused. A quarter of what a server works on: whoever makes up ids of keys
/// leaves room for the others.
const MAX_WAITING: usize = MAX_IN_FLIGHT / 4;
const SHARDS: usize = 16;
/// Tokens remembered in a shard; when it is full, it starts anew.
const SHARD_LIMIT: usize = 16_384;

/// The keys, shared by whoever verifies.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    published: ArcSwapOption<Published>,
    was_replaced: Notify,
    is_wanted: Notify,
    waiting_room: Semaphore,
    verified: [Mutex<HashMap<[u8; 32], Remembered>>; SHARDS],
}

/// A public key, as `ListSigningKeys` tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// Its id.
    pub kid: String,
    /// The 32 bytes of an Ed25519 key, in base64url without padding.
    pub x: String,
}

#[derive(Debug)]
struct Published {
    keys: Vec<PublicKey>,
    decoding: HashMap<String, Arc<DecodingKey>>,
    revoked: HashSet<SessionId>,
}

#[derive(Debug, Clone)]
struct Remembered {
    kid: Arc<str>,
    user: Arc<User>,
    not_before: i64,
    expire: i64,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            published: ArcSwapOption::default(),
            was_replaced: Notify::default(),
            is_wanted: Notify::default(),
            waiting_room: Semaphore::new(MAX_WAITING),
            verified: Default::default(),
        }
    }
}

impl Keys {
    /// No keys yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the keys whose tokens are accepted, and the sessions that ended.
    pub fn replace(&self, keys: Vec<PublicKey>, revoked: HashSet<SessionId>) {
        let decoding = keys
            .iter()
            .filter_map(|key| {
                Some((key.kid.clone(), Arc::new(DecodingKey::from_ed_components(&key.x).ok()?)))
            })
            .collect();
        self.inner.published.store(Some(Arc::new(Published { keys, decoding, revoked })));
        self.inner.was_replaced.notify_waiters();
    }

    /// The keys, for `/.well-known/jwks.json`. None: never had any.
    pub fn public_keys(&self) -> Option<Vec<PublicKey>> {
        self.inner.published.load().as_ref().map(|published| published.keys.clone())
    }

    /// Asks svc-user for the keys, again and again, until shutdown.
    pub fn follow(&self, channel: Channel, shutdown: Shutdown) {
        let keys = self.clone();
        tokio::spawn(async move {
            let mut client = KeyServiceClient::new(channel);
            loop {
                let pause = match client.list_signing_keys(ListSigningKeysRequest {}).await {
                    Ok(response) => {
                        keys.take_over(response.into_inner());
                        REFRESH_PERIOD
                    }
                    Err(status) => {
                        tracing::debug!(error = chain(&status), "the signing keys can't be had");
                        RETRY_PERIOD
                    }
                };
                tokio::select! {
                    () = shutdown.begun() => return,
                    () = tokio::time::sleep(pause) => {}
                    () = keys.inner.is_wanted.notified() => tokio::time::sleep(RETRY_PERIOD).await,
                }
            }
        });
    }

    fn take_over(&self, response: ListSigningKeysResponse) {
        let keys = response.keys.into_iter().map(|key| PublicKey { kid: key.kid, x: key.x }).collect();
        let revoked = response.revoked_session_ids.iter().filter_map(|id| id.parse().ok()).collect();
        self.replace(keys, revoked);
    }

    /// The user that a token was signed for.
    ///
    /// # Errors
    /// `TOKEN_INVALID`, `TOKEN_EXPIRED`; `KEYS_UNAVAILABLE` if no keys were ever had, or if the token's key is unknown and
    /// too many calls wait for new ones.
    pub async fn verify(&self, token: &str, now: DateTime<Utc>) -> Result<Arc<User>, Failure> {
        let hash: [u8; 32] = Sha256::digest(token).into();
        let remembered = self.shard(&hash).get(&hash).cloned();
        let remembered = match remembered {
            Some(remembered) => remembered,
            None => self.verify_signature(token, hash).await?,
        };
        let published = self.inner.published.load();
        let published = published.as_ref().ok_or_else(unavailable)?;
        if !published.decoding.contains_key(&*remembered.kid)
            || published.revoked.contains(&remembered.user.session)
        {
            return Err(invalid());
        }
        let (now, leeway) = (now.timestamp(), LEEWAY_SECONDS as i64);
        if remembered.not_before > now + leeway {
            return Err(invalid());
        }
        if remembered.expire < now - leeway {
            return Err(Failure::new(ErrorReason::TokenExpired, "the access token has expired"));
        }
        Ok(remembered.user)
    }

    async fn verify_signature(&self, token: &str, hash: [u8; 32]) -> Result<Remembered, Failure> {
        let kid = token::key_id(token).ok_or_else(invalid)?;
        let key = self.find(&kid).await?;
        let Verified { user, not_before, expire } = token::verify(token, &key).ok_or_else(invalid)?;
        let remembered = Remembered { kid: kid.into(), user: Arc::new(user), not_before, expire };
        let mut shard = self.shard(&hash);
        if shard.len() >= SHARD_LIMIT {
            shard.clear();
        }
        shard.insert(hash, remembered.clone());
        Ok(remembered)
    }

    /// The key with this id. An unknown one may be new: waits a moment for the next answer.
    async fn find(&self, kid: &str) -> Result<Arc<DecodingKey>, Failure> {
        let look = || {
            self.inner.published.load().as_ref().and_then(|published| published.decoding.get(kid).cloned())
        };
        let replaced = self.inner.was_replaced.notified();
        if let Some(key) = look() {
            return Ok(key);
        }
        let _place = self.inner.waiting_room.try_acquire().map_err(|_| unavailable())?;
        self.inner.is_wanted.notify_one();
        let _ = tokio::time::timeout(WAIT_LIMIT, replaced).await;
        match look() {
            Some(key) => Ok(key),
            None if self.inner.published.load().is_none() => Err(unavailable()),
            None => Err(invalid()),
        }
    }

    fn shard(&self, hash: &[u8; 32]) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], Remembered>> {
        self.inner.verified[usize::from(hash[0]) % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unavailable() -> Failure {
    Failure::new(ErrorReason::KeysUnavailable, "access tokens can't be verified right now")
        .retry_after(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
    use chrono::TimeDelta;
    use futures_util::future::poll_immediate;
    use jsonwebtoken::EncodingKey;

    use crate::id::UserId;

    struct Signer {
        kid: &'static str,
        key: EncodingKey,
        x: String,
    }

    fn signer(kid: &'static str) -> Signer {
        let document = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
        let x = BASE64_URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
        Signer { kid, key: EncodingKey::from_ed_der(document.as_ref()), x }
    }

    fn publish(keys: &Keys, signers: &[&Signer], revoked: &[SessionId]) {
        let published =
            signers.iter().map(|signer| PublicKey { kid: signer.kid.into(), x: signer.x.clone() });
        keys.replace(published.collect(), revoked.iter().copied().collect());
    }

    fn user() -> User {
        User { id: UserId::new(), session: SessionId::new(), organizers: Vec::new(), is_admin: false }
    }

    fn sign(signer: &Signer, user: &User, now: DateTime<Utc>) -> String {
        token::sign(user, signer.kid, &signer.key, now, now + TimeDelta::minutes(15)).unwrap()
    }

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).unwrap()
    }

    /// A token with another header and the same claims, signed as the header says.
    fn forge(claims_of: &str, header: &str, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
        let claims = claims_of.split('.').nth(1).unwrap();
        let signed = format!("{}.{claims}", BASE64_URL_SAFE_NO_PAD.encode(header));
        let signature = BASE64_URL_SAFE_NO_PAD.encode(sign(signed.as_bytes()));
        format!("{signed}.{signature}")
    }

    #[tokio::test]
    async fn a_signed_token_names_its_user() {
        let (keys, signer, user) = (Keys::new(), signer("k1"), user());
        publish(&keys, &[&signer], &[]);
        let token = sign(&signer, &user, now());
        for _ in 0..2 {
            assert_eq!(*keys.verify(&token, now()).await.unwrap(), user);
        }
    }

    #[tokio::test]
    async fn clocks_may_differ_by_a_minute() {
        let (keys, signer) = (Keys::new(), signer("k1"));
        publish(&keys, &[&signer], &[]);
        let token = sign(&signer, &user(), now());
        let [begin, end] = [now(), now() + TimeDelta::minutes(15)];
        for within in [begin - TimeDelta::seconds(60), end + TimeDelta::seconds(60)] {
            keys.verify(&token, within).await.expect("not more than a minute off");
        }
        let early = keys.verify(&token, begin - TimeDelta::seconds(61)).await.unwrap_err();
        assert!(early.is(ErrorReason::TokenInvalid));
        let late = keys.verify(&token, end + TimeDelta::seconds(61)).await.unwrap_err();
        assert!(late.is(ErrorReason::TokenExpired));
    }

    #[tokio::test]
    async fn a_withdrawn_key_or_session_ends_remembered_tokens() {
        let (keys, old, new, user) = (Keys::new(), signer("k1"), signer("k2"), user());
        publish(&keys, &[&old], &[]);
        let token = sign(&old, &user, now());
        keys.verify(&token, now()).await.unwrap();
        publish(&keys, &[&new, &old], &[]);
        keys.verify(&token, now()).await.expect("rotation logs nobody out");
        publish(&keys, &[&new, &old], &[user.session]);
        assert!(keys.verify(&token, now()).await.unwrap_err().is(ErrorReason::TokenInvalid));
        publish(&keys, &[&new], &[]);
        assert!(keys.verify(&token, now()).await.unwrap_err().is(ErrorReason::TokenInvalid));
    }

    #[tokio::test(start_paused = true)]
    async fn forged_tokens_are_refused() {
        let (keys, signer, stranger) = (Keys::new(), signer("k1"), signer("k1"));
        publish(&keys, &[&signer], &[]);
        let token = sign(&signer, &user(), now());
        let mut flipped = token.clone();
        let last = flipped.pop().unwrap();
        flipped.push(if last == 'A' { 'B' } else { 'A' });
        let hmac_key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, signer.x.as_bytes());
        let hmac = |text: &[u8]| aws_lc_rs::hmac::sign(&hmac_key, text).as_ref().to_vec();
        let forgeries = [
            forge(&token, r#"{"alg":"none","typ":"JWT","kid":"k1"}"#, |_| Vec::new()),
            forge(&token, r#"{"alg":"HS256","typ":"JWT","kid":"k1"}"#, hmac),
            forge(&token, r#"{"alg":"EdDSA","kid":"../../etc/passwd"}"#, hmac),
            forge(&token, r#"{"alg":"EdDSA","kid":"k1","jku":"http://127.0.0.1/keys"}"#, hmac),
            forge(&token, r#"{"alg":"EdDSA","jwk":{"kty":"OKP","crv":"Ed25519","x":"AA"}}"#, hmac),
            sign(&stranger, &user(), now()),
            flipped,
            "a refresh token".to_owned(),
            String::new(),
        ];
        for forgery in forgeries {
            let failure = keys.verify(&forgery, now()).await.unwrap_err();
            assert!(failure.is(ErrorReason::TokenInvalid), "{forgery}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_with_unknown_keys_does_not_wait() {
        let (keys, known, unknown) = (Keys::new(), signer("k1"), signer("k2"));
        publish(&keys, &[&known], &[]);
        let strange = sign(&unknown, &user(), now());
        let mut waiting: Vec<_> = (0..MAX_WAITING).map(|_| Box::pin(keys.verify(&strange, now()))).collect();
        for call in &mut waiting {
            assert!(poll_immediate(call).await.is_none(), "its key may come");
        }
        let refused = poll_immediate(keys.verify(&strange, now())).await.expect("an answer at once");
        assert!(refused.unwrap_err().is(ErrorReason::KeysUnavailable));
        let known = sign(&known, &user(), now());
        poll_immediate(keys.verify(&known, now())).await.expect("an answer at once").expect("a known key");
        for call in waiting {
            assert!(call.await.unwrap_err().is(ErrorReason::TokenInvalid));
        }
        assert!(
            keys.verify(&strange, now()).await.unwrap_err().is(ErrorReason::TokenInvalid),
            "there is room"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn without_keys_nobody_is_let_in() {
        let token = sign(&signer("k1"), &user(), now());
        assert!(Keys::new().verify(&token, now()).await.unwrap_err().is(ErrorReason::KeysUnavailable));
    }
}

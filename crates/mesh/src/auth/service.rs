//! Service tokens: how one service shows another that it belongs to the mesh. HS256 with a key that all of them share,
//! for one callee, signed once a minute.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use chrono::{DateTime, TimeDelta, Utc};
use http::HeaderValue;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::token::LEEWAY_SECONDS;
use crate::config::Secret;

/// The header that carries a service token.
pub const SERVICE_HEADER: &str = "x-service-authorization";
/// How long a token is accepted.
const LIFETIME: TimeDelta = TimeDelta::minutes(5);
/// How long a token is sent before a new one is signed.
const RENEWAL: TimeDelta = TimeDelta::minutes(1);
/// Verified tokens remembered; when there are more, it starts anew.
const REMEMBERED_LIMIT: usize = 1024;

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    exp: i64,
}

/// Signs and verifies the tokens of one service.
#[derive(Clone)]
pub struct ServiceTokens {
    inner: Arc<Inner>,
}

struct Inner {
    /// The service that this is.
    name: &'static str,
    signing: EncodingKey,
    kid: String,
    /// Keys that are accepted, by id: the current one and, during a rotation, the one before.
    accepted: HashMap<String, DecodingKey>,
    signed: Mutex<HashMap<&'static str, (HeaderValue, DateTime<Utc>)>>,
    verified: Mutex<HashMap<Vec<u8>, Verified>>,
}

/// Who signed a token, and until when it is accepted, in Unix seconds.
type Verified = (Arc<str>, i64);

impl ServiceTokens {
    /// The tokens of the service `name`. During a rotation, `previous` is accepted as well.
    pub fn new(name: &'static str, key: &Secret, previous: Option<&Secret>) -> Self {
        let accepted = [Some(key), previous]
            .into_iter()
            .flatten()
            .map(|secret| (key_id(secret), DecodingKey::from_secret(secret.expose())))
            .collect();
        let signing = EncodingKey::from_secret(key.expose());
        let (signed, verified) = (Mutex::default(), Mutex::default());
        Self { inner: Arc::new(Inner { name, signing, kid: key_id(key), accepted, signed, verified }) }
    }

    /// The service that this is.
    pub fn name(&self) -> &'static str {
        self.inner.name
    }

    /// A token for calling the service `callee`.
    pub fn header(&self, callee: &'static str, now: DateTime<Utc>) -> HeaderValue {
        let mut signed = self.inner.signed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((header, sign_time)) = signed.get(callee)
            && now - *sign_time < RENEWAL
            && *sign_time <= now
        {
            return header.clone();
        }
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some(self.inner.kid.clone());
        let exp = (now + LIFETIME).timestamp();
        let claims = Claims { iss: self.inner.name.to_owned(), aud: callee.to_owned(), exp };
        let token = jsonwebtoken::encode(&header, &claims, &self.inner.signing).expect("HMAC takes any key");
        let mut value = HeaderValue::try_from(token).expect("a JWT is visible ASCII");
        value.set_sensitive(true);
        signed.insert(callee, (value.clone(), now));
        value
    }

    /// The service that signed a token for this one. None: nobody did.
    pub fn verify(&self, token: &[u8], now: DateTime<Utc>) -> Option<Arc<str>> {
        let remembered =
            self.inner.verified.lock().unwrap_or_else(PoisonError::into_inner).get(token).cloned();
        let (name, expire) = match remembered {
            Some(remembered) => remembered,
            None => self.verify_signature(token)?,
        };
        (expire >= now.timestamp() - LEEWAY_SECONDS as i64).then_some(name)
    }

    fn verify_signature(&self, token: &[u8]) -> Option<Verified> {
        let text = std::str::from_utf8(token).ok()?;
        let header =
            jsonwebtoken::decode_header(text).ok().filter(|header| header.alg == Algorithm::HS256)?;
        let key = self.inner.accepted.get(&header.kid?)?;
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_audience(&[self.inner.name]);
        validation.validate_exp = false;
        let claims = jsonwebtoken::decode::<Claims>(text, key, &validation).ok()?.claims;
        let remembered = (Arc::from(claims.iss), claims.exp);
        let mut verified = self.inner.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.len() >= REMEMBERED_LIMIT {
            verified.clear();
        }
        verified.insert(token.to_vec(), remembered.clone());
        Some(remembered)
    }
}

fn key_id(secret: &Secret) -> String {
    Sha256::digest(secret.expose())[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Debug for ServiceTokens {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ServiceTokens").field("name", &self.inner.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).unwrap()
    }

    #[test]
    fn a_token_is_for_one_callee_and_a_few_minutes() {
        let key = Secret::random();
        let tokens = |name| ServiceTokens::new(name, &key, None);
        let token = tokens("booking").header("payment", now());
        assert_eq!(tokens("payment").verify(token.as_bytes(), now()).as_deref(), Some("booking"));
        assert_eq!(tokens("concert").verify(token.as_bytes(), now()), None);
        // A minute more, as clocks differ.
        let verified_after = |time| tokens("payment").verify(token.as_bytes(), now() + LIFETIME + time);
        assert!(verified_after(TimeDelta::seconds(60)).is_some());
        assert_eq!(verified_after(TimeDelta::seconds(61)), None);
        assert_eq!(tokens("payment").verify(b"nonsense", now()), None);
    }

    #[test]
    fn a_token_is_signed_once_a_minute() {
        let tokens = ServiceTokens::new("booking", &Secret::random(), None);
        let first = tokens.header("payment", now());
        assert_eq!(tokens.header("payment", now() + TimeDelta::seconds(59)), first);
        assert_ne!(tokens.header("payment", now() + TimeDelta::seconds(61)), first);
    }

    #[test]
    fn a_key_is_rotated_without_a_gap() {
        let (old, new) = (Secret::random(), Secret::random());
        let before = ServiceTokens::new("booking", &old, None).header("payment", now());
        let rotated = ServiceTokens::new("payment", &new, Some(&old));
        assert!(rotated.verify(before.as_bytes(), now()).is_some());
        assert!(ServiceTokens::new("payment", &new, None).verify(before.as_bytes(), now()).is_none());
    }
}

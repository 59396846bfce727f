//! Access tokens: EdDSA JWTs (RFC 8037) that svc-user signs and everyone verifies.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

use crate::id::{OrganizerId, SessionId, UserId};

/// Who makes tokens.
pub const ISSUER: &str = "boxoffice";
/// How far two clocks may differ, in seconds.
pub const LEEWAY_SECONDS: u64 = 60;

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// Calling the API.
    Api,
}

impl Audience {
    /// As it stands in the claim `aud`.
    pub fn claim(self) -> &'static str {
        match self {
            Self::Api => "boxoffice-api",
        }
    }
}

/// A verified user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Who it is.
    pub id: UserId,
    /// The session that the token belongs to.
    pub session: SessionId,
    /// The organisers that the user acts for.
    pub organizers: Vec<OrganizerId>,
    /// Whether the user is an administrator.
    pub is_admin: bool,
}

/// What stands in an access token.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    sub: String,
    sid: String,
    iat: i64,
    nbf: i64,
    exp: i64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    org: Vec<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    adm: bool,
}

/// Signs an access token.
///
/// # Errors
/// If the key is no Ed25519 key.
pub fn sign(
    user: &User,
    kid: &str,
    key: &EncodingKey,
    now: DateTime<Utc>,
    expire_time: DateTime<Utc>,
) -> Result<String, jsonwebtoken::errors::Error> {
    let mut header = Header::new(Algorithm::EdDSA);
    header.kid = Some(kid.to_owned());
    let claims = Claims {
        iss: ISSUER.to_owned(),
        aud: Audience::Api.claim().to_owned(),
        sub: user.id.to_string(),
        sid: user.session.to_string(),
        iat: now.timestamp(),
        nbf: now.timestamp(),
        exp: expire_time.timestamp(),
        org: user.organizers.iter().map(ToString::to_string).collect(),
        adm: user.is_admin,
    };
    jsonwebtoken::encode(&header, &claims, key)
}

/// A token that was verified but for its times.
#[derive(Debug, Clone)]
pub(super) struct Verified {
    pub(super) user: User,
    pub(super) not_before: i64,
    pub(super) expire: i64,
}

/// The key id in a token's header. Nothing else of the header is believed: no `jwk`, `jku` or `x5u` is read, and the
/// algorithm is pinned.
pub(super) fn key_id(token: &str) -> Option<String> {
    let header = jsonwebtoken::decode_header(token).ok()?;
    (header.alg == Algorithm::EdDSA).then_some(header.kid).flatten()
}

/// Verifies everything but the times, which a cached token needs checked each time.
pub(super) fn verify(token: &str, key: &DecodingKey) -> Option<Verified> {
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.set_issuer(&[ISSUER]);
    validation.set_audience(&[Audience::Api.claim()]);
    validation.required_spec_claims = HashSet::from(["exp", "nbf", "iss", "aud", "sub"].map(str::to_owned));
    let claims = jsonwebtoken::decode::<Claims>(token, key, &validation).ok()?.claims;
    let user = User {
        id: claims.sub.parse().ok()?,
        session: claims.sid.parse().ok()?,
        organizers: claims.org.iter().map(|organizer| organizer.parse()).collect::<Result<_, _>>().ok()?,
        is_admin: claims.adm,
    };
    Some(Verified { user, not_before: claims.nbf, expire: claims.exp })
}

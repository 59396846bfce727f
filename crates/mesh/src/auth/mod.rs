//! Who calls. The gateway forwards a fan's token, and every service verifies it again; services name themselves by a
//! service token. Identity never travels in a plain header.

pub mod keys;
pub mod service;
pub mod token;

use std::sync::Arc;

use boxoffice_proto::{common::v1::ErrorReason, policy::Access};
use http::HeaderMap;
use tonic::Request;

pub use self::{
    keys::Keys,
    service::{SERVICE_HEADER, ServiceTokens},
    token::{Audience, User},
};
use crate::{clock::Clock, failure::Failure};

/// Who calls.
#[derive(Debug, Clone)]
pub enum Caller {
    /// Nobody we know.
    Anonymous,
    /// A user, by an access token.
    User(Arc<User>),
    /// Another service of the mesh.
    Service(Arc<str>),
}

/// Finds out who calls, and whether they may.
#[derive(Debug, Clone)]
pub struct Authenticator {
    keys: Keys,
    service_tokens: ServiceTokens,
    clock: Clock,
}

impl Authenticator {
    /// Verifies fans' tokens by `keys` and services' by `service_tokens`.
    pub fn new(keys: Keys, service_tokens: ServiceTokens, clock: Clock) -> Self {
        Self { keys, service_tokens, clock }
    }

    /// Who sent these headers, if they may call a method of this access level.
    ///
    /// # Errors
    /// `TOKEN_MISSING`, `TOKEN_INVALID`, `TOKEN_EXPIRED` or `ACCESS_DENIED`; `KEYS_UNAVAILABLE` if no key was ever had.
    pub async fn authenticate(&self, headers: &HeaderMap, access: Access) -> Result<Caller, Failure> {
        if access == Access::Internal
            && let Some(token) = headers.get(SERVICE_HEADER)
        {
            let name = self.service_tokens.verify(token.as_bytes(), self.clock.now()).ok_or_else(invalid)?;
            return Ok(Caller::Service(name));
        }
        let user = match headers.get(http::header::AUTHORIZATION) {
            None if access == Access::Public => return Ok(Caller::Anonymous),
            None => return Err(missing()),
            Some(value) => {
                let bearer = value.to_str().ok().and_then(bearer).ok_or_else(invalid)?;
                match self.keys.verify(bearer, self.clock.now()).await {
                    // A client that sends its token with every call must be able to log in and refresh when it expired.
                    Err(failure) if access == Access::Public && failure.is(ErrorReason::TokenExpired) => {
                        return Ok(Caller::Anonymous);
                    }
                    verified => verified?,
                }
            }
        };
        let may_call = match access {
            Access::Public | Access::User => true,
            Access::Organizer => !user.organizers.is_empty(),
            Access::Admin => user.is_admin,
            Access::Internal => false,
        };
        if !may_call {
            return Err(Failure::new(ErrorReason::AccessDenied, "your account may not do this"));
        }
        Ok(Caller::User(user))
    }
}

/// The token of an `authorization` header (RFC 6750; the scheme's case is ignored, RFC 9110).
pub fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Who sent a request, as the server layer found.
pub fn caller<T>(request: &Request<T>) -> Caller {
    request.extensions().get::<Caller>().cloned().unwrap_or(Caller::Anonymous)
}

/// The user who sent a request.
///
/// # Errors
/// `TOKEN_MISSING` if it is no user.
pub fn user<T>(request: &Request<T>) -> Result<Arc<User>, Failure> {
    match caller(request) {
        Caller::User(user) => Ok(user),
        _ => Err(missing()),
    }
}

fn missing() -> Failure {
    Failure::new(ErrorReason::TokenMissing, "this call needs an access token")
}

fn invalid() -> Failure {
    Failure::new(ErrorReason::TokenInvalid, "the access token is not valid")
}

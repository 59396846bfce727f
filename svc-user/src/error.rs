//! Why the user service refuses, and how that is answered.

use std::time::Duration;

use boxoffice_proto::{common::v1::ErrorReason as CommonReason, user::v1::ErrorReason};
use mesh::{Failure, id::SessionId};
use sea_orm::DbErr;
use thiserror::Error;
use tonic::Status;

/// How long to wait when too many passwords are being checked: in a second, at least a dozen of them are done.
const PASSWORD_QUEUE_PAUSE: Duration = Duration::from_secs(1);

/// Why the user service refuses.
#[derive(Debug, Error)]
pub(crate) enum Error {
    #[error("e-mail and password don't match an account")]
    CredentialsInvalid,
    #[error("too many failed logins with this e-mail")]
    LoginThrottled { retry_after: Duration },
    #[error("too many passwords are being checked at once")]
    PasswordQueueFull,
    #[error("the refresh token is not valid; log in again")]
    RefreshTokenInvalid,
    /// The text is that of an invalid one: whoever stole a token learns nothing from it.
    #[error("the refresh token is not valid; log in again")]
    RefreshTokenReused { session: SessionId },
    #[error("another request rotated the refresh token a moment ago")]
    RefreshRaced,
    #[error("the session has ended; log in again")]
    SessionEnded,
    #[error("the account does not exist any more")]
    UserNotFound,
    #[error("you act for as many organisers as one may")]
    OrganizerLimitExceeded { limit: i64 },
    #[error(
        "the signing keys in the database can't be decrypted: KEY_ENCRYPTION_KEY is not the one they were made with"
    )]
    KeyEncryptionKeyWrong,
    #[error("{what} failed")]
    Cryptography { what: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    #[error(transparent)]
    Database(#[from] DbErr),
}

impl Error {
    /// Makes an error of a cryptographic operation that should not fail.
    pub(crate) fn cryptography<E>(what: &'static str) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        move |source| Self::Cryptography { what, source: source.into() }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::CredentialsInvalid => Failure::new(ErrorReason::CredentialsInvalid, message),
            Error::LoginThrottled { retry_after } => {
                Failure::new(ErrorReason::LoginThrottled, message).retry_after(retry_after)
            }
            Error::PasswordQueueFull => {
                Failure::new(ErrorReason::PasswordQueueFull, message).retry_after(PASSWORD_QUEUE_PAUSE)
            }
            Error::RefreshTokenInvalid | Error::RefreshTokenReused { .. } => {
                Failure::new(ErrorReason::RefreshTokenInvalid, message)
            }
            Error::RefreshRaced => Failure::new(ErrorReason::RefreshRaced, message),
            Error::SessionEnded => Failure::new(CommonReason::TokenInvalid, message),
            Error::UserNotFound => Failure::new(ErrorReason::UserNotFound, message),
            Error::OrganizerLimitExceeded { limit } => {
                Failure::new(ErrorReason::OrganizerLimitExceeded, message).with("limit", limit)
            }
            Error::KeyEncryptionKeyWrong | Error::Cryptography { .. } => Failure::internal(error),
            Error::Database(error) => error.into(),
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Failure::from(error).into()
    }
}

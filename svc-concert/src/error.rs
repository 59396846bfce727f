//! Why the concert service refuses, and how that is answered.

use std::time::Duration;

use boxoffice_proto::{common::v1::ErrorReason as CommonReason, concert::v1::ErrorReason};
use mesh::Failure;
use sea_orm::DbErr;
use thiserror::Error;
use tonic::Status;

use crate::domain::concert::Refusal;

/// When to come back if someone else was faster.
const COME_BACK: Duration = Duration::from_secs(1);

/// Why the concert service refuses.
#[derive(Debug, Error)]
pub(crate) enum Error {
    #[error("there is no such concert")]
    ConcertNotFound,
    #[error("there is no such venue")]
    VenueNotFound,
    #[error("there is no such organiser that you act for")]
    OrganizerNotFound,
    #[error("the concert is not published")]
    NotPublished,
    #[error("the concert has, or had, bookings")]
    HasBookings,
    #[error("someone else changed the concert at the same time")]
    ChangedMeanwhile,
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("a stored {what} can't be read")]
    Corrupt { what: &'static str, source: serde_json::Error },
    #[error(transparent)]
    Database(#[from] DbErr),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let reason = match error {
            Error::ConcertNotFound => ErrorReason::ConcertNotFound,
            Error::VenueNotFound => ErrorReason::VenueNotFound,
            Error::OrganizerNotFound => ErrorReason::OrganizerNotFound,
            Error::NotPublished => ErrorReason::ConcertNotPublished,
            Error::HasBookings => ErrorReason::ConcertHasBookings,
            Error::Refused(Refusal::Cancelled) => ErrorReason::ConcertCancelled,
            Error::Refused(Refusal::Ended) => ErrorReason::ConcertEnded,
            Error::ChangedMeanwhile => {
                return Failure::new(CommonReason::RequestInProgress, error.to_string())
                    .retry_after(COME_BACK);
            }
            Error::Corrupt { .. } => return Failure::internal(error),
            Error::Database(error) => return error.into(),
        };
        Failure::new(reason, error.to_string())
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Failure::from(error).into()
    }
}

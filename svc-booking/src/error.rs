//! Why the booking service refuses, and how that is answered.

use std::time::Duration;

use boxoffice_proto::{booking::v1::ErrorReason, common::v1::ErrorReason as CommonReason};
use mesh::{Failure, id::BookingId, idempotency, redis::RedisError};
use sea_orm::DbErr;
use thiserror::Error;
use tonic::Status;

use crate::domain::{
    booking::{PaymentFailure, State},
    sale::NotOnSale,
};

/// When to come back if something is down for a moment.
const COME_BACK: Duration = Duration::from_secs(2);

/// Why the booking service refuses.
#[derive(Debug, Error)]
pub(crate) enum Error {
    #[error("there is no such concert on sale")]
    ConcertNotFound,
    #[error("the concert's data can't be had right now")]
    ConcertUnavailable(#[source] Status),
    #[error(transparent)]
    NotOnSale(#[from] NotOnSale),
    #[error("{field} {value:?} is no {what} of this concert")]
    Unknown { field: String, what: &'static str, value: String },
    #[error("these seats are held or sold: {}", .0.join(", "))]
    SeatTaken(Vec<String>),
    #[error("the section has {available} free places of this kind")]
    NotEnoughSeats { available: usize },
    #[error("at most {limit} seats a fan; {remaining} are left to you")]
    SeatLimitExceeded { limit: u32, remaining: u32 },
    #[error("there is no such hold")]
    HoldNotFound,
    #[error("the hold has expired")]
    HoldExpired,
    #[error("the hold has become booking {0}")]
    HoldBooked(BookingId),
    #[error("there is no such booking")]
    BookingNotFound,
    #[error("a booking that {} can't be cancelled", words(*.0))]
    NotCancellable(State),
    #[error("{}", payment_text(*.failure))]
    PaymentFailed { failure: PaymentFailure, booking: Option<BookingId> },
    #[error("the same request is being worked on")]
    InProgress,
    #[error("a booking of the hold has begun")]
    BeingBooked,
    #[error("the idempotency key was used with another request")]
    KeyReused,
    #[error("holds can't be had right now")]
    HoldsUnavailable(#[from] RedisError),
    #[error(transparent)]
    Database(#[from] DbErr),
    #[error(transparent)]
    Failed(#[from] Failure),
}

fn words(state: State) -> &'static str {
    match state {
        State::Paying => "is being paid",
        State::Confirmed => "is confirmed",
        State::Failed => "has failed",
        State::Cancelled => "was cancelled before",
    }
}

fn payment_text(failure: PaymentFailure) -> &'static str {
    match failure {
        PaymentFailure::InsufficientBalance => "the wallet has less than the seats cost",
        PaymentFailure::Declined => "the payment was declined",
        PaymentFailure::Unavailable => {
            "payments are down for a moment; nothing was charged and the hold is kept"
        }
        PaymentFailure::TimedOut => "the payment was not finished in time and was undone",
    }
}

/// The reason that stands for a failed payment.
pub(crate) fn payment_reason(failure: PaymentFailure) -> ErrorReason {
    match failure {
        PaymentFailure::InsufficientBalance => ErrorReason::InsufficientBalance,
        PaymentFailure::Declined => ErrorReason::PaymentDeclined,
        PaymentFailure::Unavailable => ErrorReason::PaymentUnavailable,
        PaymentFailure::TimedOut => ErrorReason::PaymentTimedOut,
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::ConcertNotFound => Failure::new(ErrorReason::ConcertNotFound, text),
            Error::ConcertUnavailable(status) => {
                Failure::new(ErrorReason::ConcertUnavailable, text).retry_after(COME_BACK).caused_by(status)
            }
            Error::NotOnSale(NotOnSale::Cancelled) => Failure::new(ErrorReason::ConcertCancelled, text),
            Error::NotOnSale(NotOnSale::NotOpen(time)) => {
                Failure::new(ErrorReason::SaleNotOpen, text).with("sale_open_time", time.to_rfc3339())
            }
            Error::NotOnSale(NotOnSale::Closed(time)) => {
                Failure::new(ErrorReason::SaleClosed, text).with("sale_close_time", time.to_rfc3339())
            }
            Error::Unknown { field, what, value } => {
                let mut fields = mesh::field::Fields::new();
                fields.wrong(field, "UNKNOWN", format!("{value:?} is no {what} of this concert"));
                fields.finish().expect_err("a field was noted as wrong")
            }
            Error::SeatTaken(seats) => {
                Failure::new(ErrorReason::SeatTaken, text).with("seat_ids", seats.join(","))
            }
            Error::NotEnoughSeats { available } => {
                Failure::new(ErrorReason::NotEnoughSeats, text).with("available", available)
            }
            Error::SeatLimitExceeded { limit, remaining } => {
                Failure::new(ErrorReason::SeatLimitExceeded, text)
                    .with("limit", limit)
                    .with("remaining", remaining)
            }
            Error::HoldNotFound => Failure::new(ErrorReason::HoldNotFound, text),
            Error::HoldExpired => Failure::new(ErrorReason::HoldExpired, text),
            Error::HoldBooked(booking) => {
                Failure::new(ErrorReason::HoldBooked, text).with("booking_id", booking)
            }
            Error::BookingNotFound => Failure::new(ErrorReason::BookingNotFound, text),
            Error::NotCancellable(state) => {
                let state = format!("{state:?}").to_uppercase();
                Failure::new(ErrorReason::BookingNotCancellable, text).with("state", state)
            }
            Error::PaymentFailed { failure, booking } => {
                let mut answer = Failure::new(payment_reason(failure), text);
                if let Some(booking) = booking {
                    answer = answer.with("booking_id", booking);
                }
                if failure == PaymentFailure::Unavailable { answer.retry_after(COME_BACK) } else { answer }
            }
            Error::InProgress | Error::BeingBooked => {
                Failure::new(CommonReason::RequestInProgress, text).retry_after(Duration::from_secs(1))
            }
            Error::KeyReused => idempotency::reused(),
            Error::HoldsUnavailable(error) => {
                Failure::new(ErrorReason::HoldsUnavailable, text).retry_after(COME_BACK).caused_by(error)
            }
            Error::Database(error) => error.into(),
            Error::Failed(failure) => failure,
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Failure::from(error).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_told_in_words() {
        let words = [
            (State::Paying, "a booking that is being paid can't be cancelled"),
            (State::Confirmed, "a booking that is confirmed can't be cancelled"),
            (State::Failed, "a booking that has failed can't be cancelled"),
            (State::Cancelled, "a booking that was cancelled before can't be cancelled"),
        ];
        for (state, expected) in words {
            assert_eq!(Error::NotCancellable(state).to_string(), expected);
        }
    }
}

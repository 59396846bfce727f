//! A booking and its saga: claim → pay → confirm. `next` says what is to be done; who does it is `checkout`.

use chrono::{DateTime, Utc};
use mesh::id::{BookingId, ConcertId, HoldId, UserId};

use super::layout::{Ordinal, Seat};

/// A fan's purchase of seats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Booking {
    pub(crate) id: BookingId,
    pub(crate) fan: UserId,
    pub(crate) concert: ConcertId,
    /// What its seats were kept by. None once it failed: the hold may be booked again.
    pub(crate) hold: Option<HoldId>,
    pub(crate) state: State,
    pub(crate) seats: Vec<Seat>,
    /// In minor units, as are all amounts.
    pub(crate) total: i64,
    pub(crate) refunded: i64,
    pub(crate) failure: Option<PaymentFailure>,
    pub(crate) create_time: DateTime<Utc>,
    pub(crate) lease: Lease,
}

/// Who works on a booking. Every write of its saga carries the epoch, so that whoever lost the lease writes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) epoch: i32,
    pub(crate) until: DateTime<Utc>,
}

/// Where a booking stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Paying,
    Confirmed,
    Failed,
    Cancelled,
}

/// Why a booking failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PaymentFailure {
    InsufficientBalance,
    Declined,
    /// It was surely not sent.
    Unavailable,
    /// It was undone, as it was not finished in time.
    TimedOut,
}

/// What came of asking for the payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Charge {
    Captured,
    Refused(PaymentFailure),
    /// It may have been taken, or may be yet: ask again by the same key.
    Unknown,
    /// Payment refuses what the contract says it takes. The installation is wrong, not the fan: nothing is guessed, and
    /// an operator has to look.
    Contradicted,
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Ask for the payment, by the booking's id.
    Charge,
    /// Make sure that it is never taken, for then the booking fails for this reason.
    Void(PaymentFailure),
    /// Write that it is paid.
    Confirm,
    /// Write that it failed, and give the seats back.
    Fail(PaymentFailure),
    /// Leave it to whoever comes next.
    Wait,
}

/// How long after its making a booking may still be charged, in seconds: as long as a hold.
pub(crate) const CHARGE_WINDOW_SECONDS: i64 = 600;

impl Booking {
    /// The places that it is for.
    pub(crate) fn ordinals(&self) -> Vec<Ordinal> {
        self.seats.iter().map(|seat| seat.ordinal).collect()
    }

    /// What to do first with a booking that is PAYING. One that has been unknown for too long is not charged any more:
    /// the fan no longer expects it.
    pub(crate) fn first_step(&self, now: DateTime<Utc>) -> Step {
        let is_expected = (now - self.create_time).num_seconds() < CHARGE_WINDOW_SECONDS;
        if is_expected { Step::Charge } else { Step::Void(PaymentFailure::TimedOut) }
    }
}

impl Charge {
    /// What follows from the answer to a charge. If it was asked for before, that earlier charge may have been taken, or
    /// may still be on its way: a refusal of this one says nothing about it.
    pub(crate) fn next(self, was_asked_before: bool) -> Step {
        match self {
            Self::Captured => Step::Confirm,
            Self::Unknown | Self::Contradicted => Step::Wait,
            Self::Refused(PaymentFailure::Unavailable) if was_asked_before => Step::Wait,
            Self::Refused(why) if was_asked_before => Step::Void(why),
            Self::Refused(why) => Step::Fail(why),
        }
    }
}

impl State {
    /// As kept in the database.
    pub(crate) fn number(self) -> i16 {
        match self {
            Self::Paying => 1,
            // 2 is kept for AWAITING_APPROVAL.
            Self::Confirmed => 3,
            Self::Failed => 4,
            Self::Cancelled => 5,
        }
    }

    /// The state with this number, if it is one.
    pub(crate) fn from_number(number: i16) -> Option<Self> {
        [Self::Paying, Self::Confirmed, Self::Failed, Self::Cancelled]
            .into_iter()
            .find(|state| state.number() == number)
    }
}

impl PaymentFailure {
    /// As kept in the database.
    pub(crate) fn number(self) -> i16 {
        match self {
            Self::InsufficientBalance => 1,
            Self::Declined => 2,
            Self::Unavailable => 3,
            Self::TimedOut => 4,
        }
    }

    /// The failure with this number, if it is one.
    pub(crate) fn from_number(number: i16) -> Option<Self> {
        [Self::InsufficientBalance, Self::Declined, Self::Unavailable, Self::TimedOut]
            .into_iter()
            .find(|failure| failure.number() == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_unknown_is_undone_and_not_charged_late() {
        let create_time = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let booking = Booking {
            id: BookingId::new(),
            fan: UserId::new(),
            concert: ConcertId::new(),
            hold: Some(HoldId::new()),
            state: State::Paying,
            seats: Vec::new(),
            total: 100,
            refunded: 0,
            failure: None,
            create_time,
            lease: Lease { epoch: 1, until: create_time },
        };
        assert_eq!(booking.first_step(create_time), Step::Charge);
        assert_eq!(
            booking.first_step(create_time + chrono::TimeDelta::seconds(CHARGE_WINDOW_SECONDS)),
            Step::Void(PaymentFailure::TimedOut)
        );
    }

    #[test]
    fn only_a_capture_confirms_and_only_a_refusal_fails() {
        for was_asked_before in [false, true] {
            assert_eq!(Charge::Captured.next(was_asked_before), Step::Confirm);
            assert_eq!(Charge::Unknown.next(was_asked_before), Step::Wait);
            assert_eq!(Charge::Contradicted.next(was_asked_before), Step::Wait);
        }
        let declined = Charge::Refused(PaymentFailure::Declined);
        assert_eq!(declined.next(false), Step::Fail(PaymentFailure::Declined));
    }

    #[test]
    fn a_refusal_does_not_speak_for_an_earlier_charge() {
        let refused = |why| Charge::Refused(why).next(true);
        assert_eq!(refused(PaymentFailure::Unavailable), Step::Wait);
        for why in [PaymentFailure::InsufficientBalance, PaymentFailure::Declined] {
            assert_eq!(refused(why), Step::Void(why));
        }
    }

    #[test]
    fn numbers_survive_the_database() {
        for number in 0..10 {
            assert!(State::from_number(number).is_none_or(|state| state.number() == number));
            assert!(PaymentFailure::from_number(number).is_none_or(|failure| failure.number() == number));
        }
        assert_eq!(State::from_number(State::Cancelled.number()), Some(State::Cancelled));
    }
}

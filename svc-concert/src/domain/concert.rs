//! A concert's life: draft → published → cancelled, or over when its end has passed.

use chrono::{DateTime, TimeDelta, Utc};
use mesh::id::{ConcertId, OrganizerId, VenueId};
use thiserror::Error;

/// How far ahead a concert may be announced. What is further off is a slip of the pen.
pub(crate) const FURTHEST_START: TimeDelta = TimeDelta::days(36_500);
/// How long a concert lasts if nobody says.
pub(crate) const DEFAULT_LENGTH: TimeDelta = TimeDelta::hours(4);
/// Seats that a fan may have if nobody says.
pub(crate) const DEFAULT_SEATS_PER_FAN: i32 = 4;
/// Seats that an organiser may let a fan have.
pub(crate) const MAX_SEATS_PER_FAN: i64 = 10;

/// A concert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Concert {
    pub(crate) id: ConcertId,
    pub(crate) organizer: OrganizerId,
    pub(crate) venue: VenueId,
    pub(crate) title: String,
    pub(crate) description: String,
    pub(crate) genre: String,
    pub(crate) start_time: DateTime<Utc>,
    pub(crate) end_time: DateTime<Utc>,
    pub(crate) sale_open_time: DateTime<Utc>,
    pub(crate) sale_close_time: DateTime<Utc>,
    pub(crate) prices: Vec<SectionPrice>,
    pub(crate) max_seats_per_fan: i16,
    pub(crate) stage: Stage,
    /// What booking said was left. None: it has not said.
    pub(crate) unbooked_places: Option<i64>,
    pub(crate) version: i64,
    pub(crate) create_time: DateTime<Utc>,
}

/// What a place in a section costs, in minor units.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct SectionPrice {
    pub(crate) section_id: String,
    pub(crate) minor_units: i64,
}

/// What was decided about a concert. Whether it is over, the clock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Draft,
    Published,
    Cancelled,
}

/// Where a concert stands at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Draft,
    Published,
    Cancelled,
    Ended,
}

/// Whether seats can be bought at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SaleState {
    NotOpen,
    Open,
    SoldOut,
    Closed,
}

/// Why a concert's state can't change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum Refusal {
    #[error("the concert is cancelled")]
    Cancelled,
    #[error("the concert is over")]
    Ended,
}

impl Concert {
    pub(crate) fn state(&self, now: DateTime<Utc>) -> State {
        match self.stage {
            Stage::Draft => State::Draft,
            Stage::Cancelled => State::Cancelled,
            Stage::Published if now >= self.end_time => State::Ended,
            Stage::Published => State::Published,
        }
    }

    pub(crate) fn sale_state(&self, now: DateTime<Utc>) -> SaleState {
        match self.state(now) {
            State::Draft => SaleState::NotOpen,
            State::Cancelled | State::Ended => SaleState::Closed,
            State::Published if now < self.sale_open_time => SaleState::NotOpen,
            State::Published if now >= self.sale_close_time => SaleState::Closed,
            State::Published if self.unbooked_places == Some(0) => SaleState::SoldOut,
            State::Published => SaleState::Open,
        }
    }

    /// Publishes a draft. A published concert stays as it is.
    pub(crate) fn publish(&mut self, now: DateTime<Utc>) -> Result<(), Refusal> {
        match self.state(now) {
            State::Cancelled => Err(Refusal::Cancelled),
            State::Ended => Err(Refusal::Ended),
            State::Draft if now >= self.end_time => Err(Refusal::Ended),
            State::Draft | State::Published => {
                self.stage = Stage::Published;
                Ok(())
            }
        }
    }

    /// Cancels a concert. A cancelled concert stays as it is. Whether it has bookings, the store checks as it writes.
    pub(crate) fn cancel(&mut self, now: DateTime<Utc>) -> Result<(), Refusal> {
        if self.state(now) == State::Ended {
            return Err(Refusal::Ended);
        }
        self.stage = Stage::Cancelled;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hour: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + hour * 3600, 0).unwrap()
    }

    fn draft() -> Concert {
        Concert {
            id: ConcertId::new(),
            organizer: OrganizerId::new(),
            venue: VenueId::new(),
            title: "Live".into(),
            description: String::new(),
            genre: String::new(),
            start_time: at(10),
            end_time: at(14),
            sale_open_time: at(2),
            sale_close_time: at(9),
            prices: Vec::new(),
            max_seats_per_fan: 4,
            stage: Stage::Draft,
            unbooked_places: None,
            version: 1,
            create_time: at(0),
        }
    }

    #[test]
    fn the_sale_follows_the_clock() {
        let mut concert = draft();
        assert_eq!(concert.sale_state(at(3)), SaleState::NotOpen, "a draft");
        concert.publish(at(0)).unwrap();
        let states =
            [(1, SaleState::NotOpen), (2, SaleState::Open), (8, SaleState::Open), (9, SaleState::Closed)];
        for (hour, expected) in states {
            assert_eq!(concert.sale_state(at(hour)), expected, "at {hour}");
        }
        concert.unbooked_places = Some(0);
        assert_eq!(concert.sale_state(at(3)), SaleState::SoldOut);
        concert.unbooked_places = Some(1);
        assert_eq!(concert.sale_state(at(3)), SaleState::Open, "a booking was cancelled");
    }

    #[test]
    fn final_states_are_final() {
        let mut concert = draft();
        concert.cancel(at(0)).unwrap();
        concert.cancel(at(0)).expect("again changes nothing");
        assert_eq!(concert.publish(at(0)), Err(Refusal::Cancelled));
        assert_eq!(concert.sale_state(at(3)), SaleState::Closed);

        let mut concert = draft();
        concert.publish(at(0)).unwrap();
        concert.publish(at(0)).expect("again changes nothing");
        assert_eq!(concert.state(at(14)), State::Ended);
        assert_eq!(concert.cancel(at(14)), Err(Refusal::Ended));
        assert_eq!(draft().publish(at(14)), Err(Refusal::Ended));
    }
}

//! What may be sold, and when.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use mesh::id::ConcertId;
use thiserror::Error;

use super::layout::Layout;

/// What booking needs to sell a concert.
#[derive(Debug, Clone)]
pub(crate) struct Sale {
    pub(crate) concert: ConcertId,
    pub(crate) is_cancelled: bool,
    pub(crate) open_time: DateTime<Utc>,
    pub(crate) close_time: DateTime<Utc>,
    /// Seats that one fan may have, holds and bookings together.
    pub(crate) max_seats_per_fan: u32,
    pub(crate) layout: Arc<Layout>,
}

/// Why nothing of a concert can be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum NotOnSale {
    #[error("the concert is cancelled")]
    Cancelled,
    #[error("the sale opens at {0}")]
    NotOpen(DateTime<Utc>),
    #[error("the sale ended at {0}")]
    Closed(DateTime<Utc>),
}

impl Sale {
    /// Whether seats can be held now.
    pub(crate) fn check_open(&self, now: DateTime<Utc>) -> Result<(), NotOnSale> {
        if self.is_cancelled {
            Err(NotOnSale::Cancelled)
        } else if now < self.open_time {
            Err(NotOnSale::NotOpen(self.open_time))
        } else if now >= self.close_time {
            Err(NotOnSale::Closed(self.close_time))
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::layout::tests::example;

    #[test]
    fn the_window_is_open_from_its_first_to_before_its_last_moment() {
        let at = |seconds| DateTime::from_timestamp(seconds, 0).unwrap();
        let mut sale = Sale {
            concert: ConcertId::new(),
            is_cancelled: false,
            open_time: at(10),
            close_time: at(20),
            max_seats_per_fan: 4,
            layout: Arc::new(example()),
        };
        assert_eq!(sale.check_open(at(9)), Err(NotOnSale::NotOpen(at(10))));
        assert_eq!(sale.check_open(at(10)), Ok(()));
        assert_eq!(sale.check_open(at(19)), Ok(()));
        assert_eq!(sale.check_open(at(20)), Err(NotOnSale::Closed(at(20))));
        sale.is_cancelled = true;
        assert_eq!(sale.check_open(at(15)), Err(NotOnSale::Cancelled));
    }
}

//! Places for calls at once: those that a service works on, and those that wait for a neighbour. Who finds none is refused at
//! once, as waiting would only make everybody slow.
//!
//! Methods that begin something (`yields` in the contract) get a place only while few are taken: what was begun before goes
//! first. Otherwise, with twice as many callers as can be served, those who have begun would be refused the rest as often as
//! newcomers are let in, and come back for it again and again.

use std::sync::atomic::{AtomicUsize, Ordering};

use boxoffice_proto::policy::Method;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Of how many places one is for methods that yield.
const YIELDING_SHARE: usize = 4;

/// Places for calls.
#[derive(Debug)]
pub(crate) struct Room {
    free: Semaphore,
    places: AtomicUsize,
}

impl Room {
    /// So many places.
    pub(crate) fn new(places: usize) -> Self {
        Self { free: Semaphore::new(places), places: places.into() }
    }

    /// Adds places.
    pub(crate) fn widen(&self, by: usize) {
        self.places.fetch_add(by, Ordering::Relaxed);
        self.free.add_permits(by);
    }

    /// Whether there is a place for a call of this method.
    pub(crate) fn is_open_to(&self, method: &Method) -> bool {
        let places = self.places.load(Ordering::Relaxed);
        let kept = if method.yields { places - places.div_ceil(YIELDING_SHARE) } else { 0 };
        self.free.available_permits() > kept
    }

    /// A place for a call of this method, as long as it is kept. None: there is none.
    pub(crate) fn enter(&self, method: &Method) -> Option<SemaphorePermit<'_>> {
        if self.is_open_to(method) { self.free.try_acquire().ok() } else { None }
    }

    /// How many places are taken.
    pub(crate) fn taken(&self) -> usize {
        self.places.load(Ordering::Relaxed).saturating_sub(self.free.available_permits())
    }
}

#[cfg(test)]
mod tests {
    use boxoffice_proto::policy;

    use super::*;

    #[test]
    fn what_was_begun_finds_a_place_when_newcomers_no_longer_do() {
        let begins = policy::method("/boxoffice.booking.v1.HoldService/CreateHold").unwrap();
        let goes_on = policy::method("/boxoffice.booking.v1.BookingService/CreateBooking").unwrap();
        let room = Room::new(8);
        let mut inside = vec![room.enter(begins).unwrap(), room.enter(begins).unwrap()];
        assert!(!room.is_open_to(begins) && room.enter(begins).is_none());
        inside.extend((0..6).map(|_| room.enter(goes_on).unwrap()));
        assert!(room.enter(goes_on).is_none());
        assert_eq!(room.taken(), 8);
        inside.truncate(2);
        assert!(room.enter(begins).is_none(), "whoever has the places");
        room.widen(4);
        inside.push(room.enter(begins).unwrap());
        assert!(room.enter(begins).is_none());
        drop(inside);
        assert_eq!(room.taken(), 0);
        assert!(Room::new(1).enter(begins).is_some());
    }
}

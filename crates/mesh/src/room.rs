//! Places for calls at once: those that a service works on, and those that wait for a neighbour. Who finds none is refused at
//! once, as waiting would only make everybody slow.
//!
//! Methods that begin something (`yields` in the contract) get a place only while few are taken: what was begun before goes
//! first. Otherwise, with twice as many callers as can be served, those who have begun would be refused the rest as often as
//! newcomers are let in, and come back for it again and again.

use std::sync::atomic::{AtomicUsize, Ordering};

use boxoffice_proto::policy::Method;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Calls that yield are let in while less than this part of the places is taken, by whatever calls.
const YIELDING_PART: usize = 2;
/// This part of the places yielding calls may have in any case, so that calls that are slow for a reason of their own don't keep
/// everybody from beginning anything.
const YIELDING_FLOOR: usize = 64;

/// Places for calls.
#[derive(Debug)]
pub(crate) struct Room {
    free: Semaphore,
    places: AtomicUsize,
    /// Calls inside that yield.
    yielding: AtomicUsize,
}

/// A place that a call has as long as this is kept.
#[derive(Debug)]
pub(crate) struct Place<'r> {
    _permit: SemaphorePermit<'r>,
    yielding: Option<&'r AtomicUsize>,
}

impl Room {
    /// So many places.
    pub(crate) fn new(places: usize) -> Self {
        Self { free: Semaphore::new(places), places: places.into(), yielding: 0.into() }
    }

    /// Adds places.
    pub(crate) fn widen(&self, by: usize) {
        self.places.fetch_add(by, Ordering::Relaxed);
        self.free.add_permits(by);
    }

    /// Whether there is a place for a call of this method.
    pub(crate) fn is_open_to(&self, method: &Method) -> bool {
        let places = self.places.load(Ordering::Relaxed);
        let may_begin = || {
            self.taken() < places.div_ceil(YIELDING_PART)
                || self.yielding.load(Ordering::Relaxed) < places / YIELDING_FLOOR
        };
        self.free.available_permits() > 0 && (!method.yields || may_begin())
    }

    /// A place for a call of this method. None: there is none.
    pub(crate) fn enter(&self, method: &Method) -> Option<Place<'_>> {
        if !self.is_open_to(method) {
            return None;
        }
        let permit = self.free.try_acquire().ok()?;
        let yielding = method.yields.then(|| {
            self.yielding.fetch_add(1, Ordering::Relaxed);
            &self.yielding
        });
        Some(Place { _permit: permit, yielding })
    }

    /// How many places are taken.
    pub(crate) fn taken(&self) -> usize {
        self.places.load(Ordering::Relaxed).saturating_sub(self.free.available_permits())
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(yielding) = self.yielding {
            yielding.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use boxoffice_proto::policy;

    use super::*;

    fn begins() -> &'static Method {
        policy::method("/boxoffice.booking.v1.HoldService/CreateHold").unwrap()
    }

    fn goes_on() -> &'static Method {
        policy::method("/boxoffice.booking.v1.BookingService/CreateBooking").unwrap()
    }

    #[test]
    fn what_was_begun_finds_a_place_when_newcomers_no_longer_do() {
        let room = Room::new(8);
        let mut inside: Vec<_> = (0..4).map(|_| room.enter(begins()).unwrap()).collect();
        assert!(!room.is_open_to(begins()) && room.enter(begins()).is_none());
        inside.extend((0..4).map(|_| room.enter(goes_on()).unwrap()));
        assert!(room.enter(goes_on()).is_none());
        assert_eq!(room.taken(), 8);
        inside.truncate(4);
        assert!(room.enter(begins()).is_none(), "whoever has the places");
        room.widen(2);
        inside.push(room.enter(begins()).unwrap());
        assert!(room.enter(begins()).is_none());
        drop(inside);
        assert_eq!(room.taken(), 0);
        assert!(Room::new(1).enter(begins()).is_some());
    }

    #[test]
    fn a_few_may_begin_however_many_go_on() {
        let room = Room::new(2 * YIELDING_FLOOR);
        let mut inside: Vec<_> = (0..YIELDING_FLOOR).map(|_| room.enter(goes_on()).unwrap()).collect();
        let few: Vec<_> = (0..2).map(|_| room.enter(begins()).unwrap()).collect();
        assert!(room.enter(begins()).is_none());
        drop(few);
        inside.push(room.enter(begins()).unwrap());
        inside.extend((0..YIELDING_FLOOR - 1).map(|_| room.enter(goes_on()).unwrap()));
        assert!(room.enter(begins()).is_none() && room.enter(goes_on()).is_none(), "there are no places");
    }
}

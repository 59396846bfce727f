//! A hold: seats kept for a fan for a while.

use std::sync::{
    LazyLock,
    atomic::{AtomicU32, Ordering},
};

use chrono::{DateTime, TimeDelta, Utc};
use mesh::id::{ConcertId, HoldId, Id, UserId};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::layout::Ordinal;

/// How long a hold may live in all, however often it is extended.
pub(crate) const MAX_LIFE: TimeDelta = TimeDelta::minutes(30);
/// Seats in a hold at the most.
pub(crate) const MAX_SEATS: usize = 10;

/// Seats kept for a fan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hold {
    pub(crate) id: HoldId,
    pub(crate) concert: ConcertId,
    pub(crate) fan: UserId,
    /// In the order in which they were given.
    pub(crate) seats: Vec<Ordinal>,
    pub(crate) is_adjacent: bool,
    pub(crate) create_time: DateTime<Utc>,
    pub(crate) expire_time: DateTime<Utc>,
}

impl Hold {
    /// Moves the end later, within the longest life; never earlier.
    pub(crate) fn extend(&mut self, until: DateTime<Utc>) {
        self.expire_time = self.expire_time.max(until.min(self.create_time + MAX_LIFE));
    }
}

/// Two bytes of a concert's id that its holds' ids have too.
pub(crate) type ConcertMark = [u8; 2];

/// Numbers the holds of this process, from a random beginning: those of one millisecond must differ, and those of two processes
/// should.
static NEXT_NUMBER: LazyLock<AtomicU32> = LazyLock::new(|| AtomicU32::new(rand::random()));

/// A new hold's id, a UUIDv7. Its last four bytes are a mark of the fan: when a hold is gone (holds may be lost), the id
/// still tells whether it was this fan's, and so whether the answer is "expired" or "not found". The two bytes before
/// them tell which concerts it may be of. Between the time and the marks stands the end of the hold's number, 26 bits.
pub(crate) fn new_id(fan: UserId, concert: ConcertId) -> HoldId {
    let mut bytes = *HoldId::new().uuid().as_bytes();
    let number = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed);
    // Around them the version and the variant of RFC 9562.
    bytes[6..8].copy_from_slice(&(0x7000 | (number >> 14) as u16 & 0x0fff).to_be_bytes());
    bytes[8..10].copy_from_slice(&(0x8000 | number as u16 & 0x3fff).to_be_bytes());
    bytes[10..12].copy_from_slice(&mark_of(concert));
    let fan = mark(&bytes, fan);
    bytes[12..].copy_from_slice(&fan);
    HoldId::from_uuid(Uuid::from_bytes(bytes))
}

/// Whether a hold is, or was, this fan's.
pub(crate) fn belongs_to(hold: HoldId, fan: UserId) -> bool {
    let uuid = hold.uuid();
    uuid.as_bytes()[12..] == mark(uuid.as_bytes(), fan)
}

fn mark(bytes: &[u8; 16], fan: UserId) -> [u8; 4] {
    let hash = Sha256::new().chain_update(&bytes[..12]).chain_update(fan.uuid()).finalize();
    [hash[0], hash[1], hash[2], hash[3]]
}

/// The mark of a concert: the end of its id, which is random.
pub(crate) fn mark_of(concert: ConcertId) -> ConcertMark {
    let bytes = concert.uuid();
    let bytes = bytes.as_bytes();
    [bytes[14], bytes[15]]
}

/// The mark of the concert that a hold is of.
pub(crate) fn concert_mark(hold: HoldId) -> ConcertMark {
    let bytes = hold.uuid();
    let bytes = bytes.as_bytes();
    [bytes[10], bytes[11]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_tells_whose_it_was_and_of_which_concert() {
        let (fan, other) = (UserId::new(), UserId::new());
        let concert = ConcertId::new();
        let id = new_id(fan, concert);
        assert!(belongs_to(id, fan));
        assert_eq!(concert_mark(id), mark_of(concert));
        assert_ne!(id, new_id(fan, concert));
        assert!(!belongs_to(id, other));
        assert!(!belongs_to(HoldId::new(), fan));
        assert_eq!(id.uuid().get_version_num(), 7);
    }

    #[test]
    fn no_two_of_a_fan_s_holds_have_one_id_however_many_are_made_in_a_millisecond() {
        let (fan, concert) = (UserId::new(), ConcertId::new());
        let mut ids = std::collections::HashSet::new();
        for _ in 0..100_000 {
            assert!(ids.insert(new_id(fan, concert)));
        }
    }

    #[test]
    fn the_end_only_moves_later_and_not_without_limit() {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let mut hold = Hold {
            id: HoldId::new(),
            concert: ConcertId::new(),
            fan: UserId::new(),
            seats: vec![1],
            is_adjacent: true,
            create_time: now,
            expire_time: now + TimeDelta::minutes(10),
        };
        hold.extend(now + TimeDelta::minutes(5));
        assert_eq!(hold.expire_time, now + TimeDelta::minutes(10));
        hold.extend(now + TimeDelta::hours(2));
        assert_eq!(hold.expire_time, now + MAX_LIFE);
    }
}

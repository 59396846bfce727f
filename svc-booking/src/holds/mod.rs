//! The port for holds: who keeps which seats for how long, and what everyone sees of the seats. Only what may be lost is
//! here: who owns a seat, the database says. One set of tests (`contract`) is run against every adapter.

#[cfg(test)]
mod contract;
mod memory;

use chrono::{DateTime, Utc};
use mesh::id::{ConcertId, HoldId, UserId};
use tokio::sync::watch;

use self::memory::MemoryHolds;
use crate::domain::{hold::Hold, layout::Ordinal};

/// The holds of all concerts.
#[derive(Debug)]
pub(crate) enum Holds {
    /// In this process.
    Memory(MemoryHolds),
}

/// A wish for seats.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) hold: Hold,
    /// Seats that the fan may have of this concert, holds and bookings together.
    pub(crate) limit: u32,
    /// The idempotency key, and a hash of what was asked.
    pub(crate) request_key: String,
    pub(crate) fingerprint: [u8; 32],
}

/// What came of a wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Granted {
    /// The seats are kept.
    Held(Hold),
    /// They were kept before, by the same key. The hold may be gone since.
    Replayed(HoldId),
    /// The key came before with another wish.
    KeyReused,
    /// These seats are not free; nothing was kept.
    Taken(Vec<Ordinal>),
    /// The fan would have too many; this many are left to take.
    LimitExceeded { remaining: u32 },
    /// The concert's sold seats are not known here: load them and ask again.
    NotLoaded,
}

/// What came of giving a hold back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Released {
    /// The hold as it was.
    GivenBack(Hold),
    /// It is being booked.
    BeingBooked,
    /// There is none, or it had expired.
    Gone,
}

/// What is known of a concert's sold seats, from the database.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sold {
    pub(crate) places: u32,
    pub(crate) seats: Vec<Ordinal>,
    /// How many seats each fan has.
    pub(crate) fans: Vec<(UserId, u32)>,
}

/// What a seat looks like from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum SeatState {
    Available = b'A',
    Held = b'H',
    Sold = b'S',
}

/// A point in a concert's changes. A new epoch begins when the seats are loaded anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Revision {
    pub(crate) epoch: u64,
    pub(crate) number: u64,
}

impl std::fmt::Display for Revision {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:016x}-{}", self.epoch, self.number)
    }
}

impl std::str::FromStr for Revision {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (epoch, number) = text.split_once('-').ok_or(())?;
        let epoch = u64::from_str_radix(epoch, 16).map_err(|_| ())?;
        Ok(Self { epoch, number: number.parse().map_err(|_| ())? })
    }
}

/// All seats of a concert at a point.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) revision: Revision,
    pub(crate) states: Vec<SeatState>,
}

/// What changed since a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) revision: Revision,
    /// Each seat once, with its state now. None: the point is too old or of another epoch.
    pub(crate) seats: Option<Vec<(Ordinal, SeatState)>>,
}

impl Holds {
    /// Holds in this process.
    pub(crate) fn memory() -> Self {
        Self::Memory(MemoryHolds::default())
    }

    /// Makes a concert's sold seats known, unless they are already.
    pub(crate) async fn load(&self, concert: ConcertId, sold: Sold) {
        match self {
            Self::Memory(memory) => memory.load(concert, sold),
        }
    }

    /// Keeps all the seats of a wish, or none.
    pub(crate) async fn hold(&self, wish: Wish, now: DateTime<Utc>) -> Granted {
        match self {
            Self::Memory(memory) => memory.hold(wish, now),
        }
    }

    /// What a key was granted before. None: it is new, or the concert is not loaded.
    pub(crate) async fn find_granted(
        &self,
        concert: ConcertId,
        fan: UserId,
        request_key: &str,
        fingerprint: &[u8; 32],
    ) -> Option<Granted> {
        match self {
            Self::Memory(memory) => memory.find_granted(concert, fan, request_key, fingerprint),
        }
    }

    /// A hold that has not expired.
    pub(crate) async fn find(&self, hold: HoldId, now: DateTime<Utc>) -> Option<Hold> {
        match self {
            Self::Memory(memory) => memory.find(hold, now),
        }
    }

    /// Moves a hold's end later. The hold as it is then, if it has not expired.
    pub(crate) async fn extend(
        &self,
        hold: HoldId,
        until: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Option<Hold> {
        match self {
            Self::Memory(memory) => memory.extend(hold, until, now),
        }
    }

    /// Moves a hold's end later and keeps it from being given back until then, as it is being booked. The hold as it is
    /// then, if it has not expired.
    pub(crate) async fn begin_booking(
        &self,
        hold: HoldId,
        until: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Option<Hold> {
        match self {
            Self::Memory(memory) => memory.begin_booking(hold, until, now),
        }
    }

    /// The hold became no booking: it can be given back again.
    pub(crate) async fn end_booking(&self, hold: HoldId) {
        match self {
            Self::Memory(memory) => memory.end_booking(hold),
        }
    }

    /// Gives a hold's seats back, unless it is being booked.
    pub(crate) async fn release(&self, hold: HoldId, now: DateTime<Utc>) -> Released {
        match self {
            Self::Memory(memory) => memory.release(hold, now),
        }
    }

    /// Notes that a fan owns seats. Ends the hold they were kept by, if it still is there.
    pub(crate) async fn settle(
        &self,
        concert: ConcertId,
        fan: UserId,
        seats: &[Ordinal],
        hold: Option<HoldId>,
    ) {
        match self {
            Self::Memory(memory) => memory.settle(concert, fan, seats, hold),
        }
    }

    /// Notes that a fan gave seats back.
    pub(crate) async fn free(&self, concert: ConcertId, fan: UserId, seats: &[Ordinal]) {
        match self {
            Self::Memory(memory) => memory.free(concert, fan, seats),
        }
    }

    /// All seats of a concert. None: not loaded.
    pub(crate) async fn snapshot(&self, concert: ConcertId) -> Option<Snapshot> {
        match self {
            Self::Memory(memory) => memory.snapshot(concert),
        }
    }

    /// What changed since a point. None: not loaded.
    pub(crate) async fn changes_since(&self, concert: ConcertId, since: Revision) -> Option<Changes> {
        match self {
            Self::Memory(memory) => memory.changes_since(concert, since),
        }
    }

    /// Tells when a concert's seats change, by the number of its revision. None: not loaded.
    pub(crate) async fn watch(&self, concert: ConcertId) -> Option<watch::Receiver<u64>> {
        match self {
            Self::Memory(memory) => memory.watch(concert),
        }
    }

    /// Gives back the seats of every hold that has expired. How many holds there were.
    pub(crate) async fn release_expired(&self, now: DateTime<Utc>) -> usize {
        match self {
            Self::Memory(memory) => memory.release_expired(now),
        }
    }

    /// How many holds there are; for a moment also those that have just expired.
    pub(crate) async fn count(&self) -> usize {
        match self {
            Self::Memory(memory) => memory.count(),
        }
    }

    /// Forgets concerts without holds that nobody asked for since the last time: who asks again has them loaded anew.
    /// How many there were.
    pub(crate) async fn forget_unused(&self) -> usize {
        match self {
            Self::Memory(memory) => memory.forget_unused(),
        }
    }

    /// How many places of each loaded concert are not sold.
    pub(crate) async fn unsold(&self) -> Vec<(ConcertId, u32)> {
        match self {
            Self::Memory(memory) => memory.unsold(),
        }
    }
}

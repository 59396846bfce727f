//! The port for holds: who keeps which seats for how long, and what everyone sees of the seats. Only what may be lost is
//! here: who owns a seat, the database says. One set of tests (`contract`) is run against every adapter.

#[cfg(test)]
mod contract;
mod memory;
mod redis;

use chrono::TimeDelta;
use mesh::{
    clock::Clock,
    id::{ConcertId, HoldId, UserId},
    redis::{Redis, RedisError},
};
use tokio::sync::watch;

use self::{memory::MemoryHolds, redis::RedisHolds};
use crate::domain::{hold::Hold, layout::Ordinal};

/// How long a key is remembered after its hold's longest life.
const KEY_LIFETIME: TimeDelta = TimeDelta::hours(1);

/// The holds of all concerts. Each adapter has a clock of its own, by which holds expire.
#[derive(Debug)]
pub(crate) enum Holds {
    /// In this process.
    Memory(MemoryHolds),
    /// In Redis, for all replicas.
    Redis(RedisHolds),
}

/// A wish for seats.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    /// What is wanted, and how long: it begins when it is granted.
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

/// What they do; each fails only if Redis does, and then nobody knows whether it was done.
impl Holds {
    /// Holds in this process, which expire by this clock.
    pub(crate) fn memory(clock: Clock) -> Self {
        Self::Memory(MemoryHolds::new(clock))
    }

    /// Holds in Redis, which expire by its clock.
    pub(crate) fn redis(redis: Redis) -> Self {
        Self::Redis(RedisHolds::new(redis))
    }

    /// To be asked before a concert's sold seats are read from the database: they can be loaded as long as nobody changed them
    /// meanwhile.
    pub(crate) async fn begin_load(&self, concert: ConcertId) -> Result<u64, RedisError> {
        match self {
            Self::Memory(memory) => Ok(memory.begin_load(concert)),
            Self::Redis(redis) => redis.begin_load(concert).await,
        }
    }

    /// Makes a concert's sold seats known, unless they are already. False: they were changed since the loading began, and
    /// must be read again; without `begun_at` they are taken all the same. Holds stay as they are.
    pub(crate) async fn load(
        &self,
        concert: ConcertId,
        sold: Sold,
        begun_at: Option<u64>,
    ) -> Result<bool, RedisError> {
        match self {
            Self::Memory(memory) => Ok(memory.load(concert, sold, begun_at)),
            Self::Redis(redis) => redis.load(concert, sold, begun_at).await,
        }
    }

    /// Forgets a concert's sold seats, as they are in doubt: whoever asks next has them loaded anew. Holds stay as they are.
    pub(crate) async fn unload(&self, concert: ConcertId) -> Result<(), RedisError> {
        match self {
            Self::Memory(memory) => {
                memory.unload(concert);
                Ok(())
            }
            Self::Redis(redis) => redis.unload(concert).await,
        }
    }

    /// Keeps all the seats of a wish, or none.
    pub(crate) async fn hold(&self, wish: Wish) -> Result<Granted, RedisError> {
        match self {
            Self::Memory(memory) => Ok(memory.hold(wish)),
            Self::Redis(redis) => redis.hold(wish).await,
        }
    }

    /// What a key was granted before. None: it is new, or the concert is not loaded.
    pub(crate) async fn find_granted(
        &self,
        concert: ConcertId,
        fan: UserId,
        request_key: &str,
        fingerprint: &[u8; 32],
    ) -> Result<Option<Granted>, RedisError> {
        match self {
            Self::Memory(memory) => Ok(memory.find_granted(concert, fan, request_key, fingerprint)),
            Self::Redis(redis) => redis.find_granted(concert, fan, request_key, fingerprint).await,
        }
    }

    /// A hold that has not expired.
    pub(crate) async fn find(&self, hold: HoldId) -> Result<Option<Hold>, RedisError> {
        match self {
            Self::Memory(memory) => Ok(memory.find(hold)),
            Self::Redis(redis) => redis.find(hold).await,
        }
    }

    /// Makes a hold last so long from its making on, if it does not already. The hold as it is then, if it has not expired.
    pub(crate) async fn extend(&self, hold: &Hold, life: TimeDelta) -> Result<Option<Hold>, RedisError> {
        match self {
            Self::Memory(memory) => Ok(memory.extend(hold, life)),
            Self::Redis(redis) => redis.extend(hold, life).await,
        }
    }

    /// Makes a hold last so long from now on, if it does not already, and keeps it from being given back until then, as it is
    /// being booked. The hold as it is then, if it has not expired.
    pub(crate) async fn begin_booking(
        &self,
        hold: HoldId,
        patience: TimeDelta,
    ) -> Result<Option<Hold>, RedisError> {
        match self {
            Self::Memory(memory) => Ok(memory.begin_booking(hold, patience)),
            Self::Redis(redis) => redis.begin_booking(hold, patience).await,
        }
    }

    /// The hold became no booking: it can be given back again.
    pub(crate) async fn end_booking(&self, hold: &Hold) -> Result<(), RedisError> {
        match self {
            Self::Memory(memory) => {
                memory.end_booking(hold);
                Ok(())
            }
            Self::Redis(redis) => redis.end_booking(hold).await,
        }
    }

    /// Gives a hold's seats back, unless it is being booked.
    pub(crate) async fn release(&self, hold: HoldId) -> Result<Released, RedisError> {
        match self {
            Self::Memory(memory) => Ok(memory.release(hold)),
            Self::Redis(redis) => redis.release(hold).await,
        }
    }

    /// Notes that a fan owns seats. Ends the hold they were kept by, if it still is there.
    pub(crate) async fn settle(
        &self,
        concert: ConcertId,
        fan: UserId,
        seats: &[Ordinal],
        hold: Option<HoldId>,
    ) -> Result<(), RedisError> {
        match self {
            Self::Memory(memory) => {
                memory.settle(concert, fan, seats, hold);
                Ok(())
            }
            Self::Redis(redis) => redis.settle(concert, fan, seats, hold).await,
        }
    }

    /// Notes that a fan gave seats back.
    pub(crate) async fn free(
        &self,
        concert: ConcertId,
        fan: UserId,
        seats: &[Ordinal],
    ) -> Result<(), RedisError> {
        match self {
            Self::Memory(memory) => {
                memory.free(concert, fan, seats);
                Ok(())
            }
            Self::Redis(redis) => redis.free(concert, fan, seats).await,
        }
    }

    /// All seats of a concert. None: not loaded.
    pub(crate) async fn snapshot(&self, concert: ConcertId) -> Result<Option<Snapshot>, RedisError> {
        match self {
            Self::Memory(memory) => Ok(memory.snapshot(concert)),
            Self::Redis(redis) => redis.snapshot(concert).await,
        }
    }

    /// What changed since a point. None: not loaded.
    pub(crate) async fn changes_since(
        &self,
        concert: ConcertId,
        since: Revision,
    ) -> Result<Option<Changes>, RedisError> {
        match self {
            Self::Memory(memory) => Ok(memory.changes_since(concert, since)),
            Self::Redis(redis) => redis.changes_since(concert, since).await,
        }
    }

    /// Whether a concert's sold seats are known.
    pub(crate) async fn is_loaded(&self, concert: ConcertId) -> Result<bool, RedisError> {
        match self {
            Self::Memory(memory) => Ok(memory.is_loaded(concert)),
            Self::Redis(redis) => redis.is_loaded(concert).await,
        }
    }

    /// Tells when a concert's seats change, or are no longer loaded. None: not loaded.
    pub(crate) async fn watch(&self, concert: ConcertId) -> Result<Option<watch::Receiver<()>>, RedisError> {
        match self {
            Self::Memory(memory) => Ok(memory.watch(concert)),
            Self::Redis(redis) => redis.watch(concert).await,
        }
    }

    /// Gives back the seats of holds that have expired, of all concerts that were asked for here. How many holds there were.
    pub(crate) async fn release_expired(&self) -> Result<usize, RedisError> {
        match self {
            Self::Memory(memory) => Ok(memory.release_expired()),
            Self::Redis(redis) => redis.release_expired().await,
        }
    }

    /// How many holds there are of the concerts that were asked for here; for a moment also those that have just expired.
    pub(crate) async fn count(&self) -> Result<usize, RedisError> {
        match self {
            Self::Memory(memory) => Ok(memory.count()),
            Self::Redis(redis) => redis.count().await,
        }
    }

    /// Forgets concerts without holds that nobody asked for here since the last time. How many there were.
    pub(crate) async fn forget_unused(&self) -> Result<usize, RedisError> {
        match self {
            Self::Memory(memory) => Ok(memory.forget_unused()),
            Self::Redis(redis) => redis.forget_unused().await,
        }
    }

    /// How many places are not sold of each concert that is loaded and was asked for here.
    pub(crate) async fn unsold(&self) -> Result<Vec<(ConcertId, u32)>, RedisError> {
        match self {
            Self::Memory(memory) => Ok(memory.unsold()),
            Self::Redis(redis) => redis.unsold().await,
        }
    }
}

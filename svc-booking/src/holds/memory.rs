//! Holds in this process, for embedded mode. Each concert has a lock of its own; nothing waits while it is held.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use chrono::{DateTime, TimeDelta, Utc};
use mesh::id::{ConcertId, HoldId, UserId};
use tokio::sync::watch;

use super::{Changes, Granted, Released, Revision, SeatState, Snapshot, Sold, Wish};
use crate::domain::{hold::Hold, layout::Ordinal};

/// Changes that are remembered for whoever comes back.
const CHANGES_KEPT: usize = 4096;
/// How long a key is remembered after its hold's longest life.
const KEY_LIFETIME: TimeDelta = TimeDelta::hours(1);

/// The holds of all concerts.
#[derive(Debug, Default)]
pub(crate) struct MemoryHolds {
    concerts: Mutex<HashMap<ConcertId, Loaded>>,
    /// Which concert a hold is of.
    holds: Mutex<HashMap<HoldId, ConcertId>>,
}

#[derive(Debug)]
struct Loaded {
    concert: Arc<Mutex<Concert>>,
    /// Whether it was asked for since the last sweep of those that nobody asks for.
    is_used: bool,
}

#[derive(Debug)]
struct Concert {
    epoch: u64,
    states: Vec<SeatState>,
    holds: HashMap<HoldId, Hold>,
    /// Until when a hold can't be given back, as it is being booked.
    being_booked: HashMap<HoldId, DateTime<Utc>>,
    expiries: BTreeSet<(DateTime<Utc>, HoldId)>,
    fans: HashMap<UserId, Count>,
    keys: HashMap<(UserId, String), Key>,
    /// When keys are forgotten, the oldest first.
    key_ends: VecDeque<(DateTime<Utc>, (UserId, String))>,
    changes: VecDeque<(u64, Vec<Ordinal>)>,
    revision: watch::Sender<u64>,
    unsold: u32,
}

/// Seats of a fan.
#[derive(Debug, Default, Clone, Copy)]
struct Count {
    held: u32,
    sold: u32,
}

#[derive(Debug)]
struct Key {
    hold: HoldId,
    fingerprint: [u8; 32],
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryHolds {
    fn concert(&self, id: ConcertId) -> Option<Arc<Mutex<Concert>>> {
        let mut concerts = lock(&self.concerts);
        let loaded = concerts.get_mut(&id)?;
        loaded.is_used = true;
        Some(Arc::clone(&loaded.concert))
    }

    fn concerts(&self) -> Vec<(ConcertId, Arc<Mutex<Concert>>)> {
        lock(&self.concerts).iter().map(|(id, loaded)| (*id, Arc::clone(&loaded.concert))).collect()
    }

    /// Does something to the concert of a hold.
    fn with_hold<T>(&self, hold: HoldId, act: impl FnOnce(&mut Concert) -> Option<T>) -> Option<T> {
        let concert = lock(&self.holds).get(&hold).copied()?;
        act(&mut lock(&*self.concert(concert)?))
    }

    pub(super) fn load(&self, id: ConcertId, sold: Sold) {
        let load = || Loaded { concert: Arc::new(Mutex::new(Concert::new(sold))), is_used: true };
        lock(&self.concerts).entry(id).or_insert_with(load);
    }

    pub(super) fn hold(&self, wish: Wish, now: DateTime<Utc>) -> Granted {
        let (hold, concert_id) = (wish.hold.id, wish.hold.concert);
        let Some(concert) = self.concert(concert_id) else { return Granted::NotLoaded };
        // Known before it is there: whoever finds it too early finds nothing.
        lock(&self.holds).insert(hold, concert_id);
        let granted = lock(&concert).hold(wish, now);
        if !matches!(granted, Granted::Held(_)) {
            lock(&self.holds).remove(&hold);
        }
        granted
    }

    pub(super) fn find_granted(
        &self,
        concert: ConcertId,
        fan: UserId,
        request_key: &str,
        fingerprint: &[u8; 32],
    ) -> Option<Granted> {
        lock(&*self.concert(concert)?).find_granted(&(fan, request_key.to_owned()), fingerprint)
    }

    pub(super) fn find(&self, hold: HoldId, now: DateTime<Utc>) -> Option<Hold> {
        self.with_hold(hold, |concert| concert.live(hold, now).cloned())
    }

    pub(super) fn extend(&self, hold: HoldId, until: DateTime<Utc>, now: DateTime<Utc>) -> Option<Hold> {
        self.with_hold(hold, |concert| concert.extend(hold, until, now))
    }

    pub(super) fn begin_booking(
        &self,
        hold: HoldId,
        until: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Option<Hold> {
        self.with_hold(hold, |concert| {
            let extended = concert.extend(hold, until, now)?;
            concert.being_booked.insert(hold, until);
            Some(extended)
        })
    }

    pub(super) fn end_booking(&self, hold: HoldId) {
        self.with_hold(hold, |concert| concert.being_booked.remove(&hold));
    }

    pub(super) fn release(&self, hold: HoldId, now: DateTime<Utc>) -> Released {
        let released = self.with_hold(hold, |concert| {
            concert.live(hold, now)?;
            if concert.being_booked.get(&hold).is_some_and(|until| now < *until) {
                return Some(Released::BeingBooked);
            }
            concert.release(hold).map(Released::GivenBack)
        });
        if matches!(released, Some(Released::GivenBack(_))) {
            lock(&self.holds).remove(&hold);
        }
        released.unwrap_or(Released::Gone)
    }

    pub(super) fn settle(&self, id: ConcertId, fan: UserId, seats: &[Ordinal], hold: Option<HoldId>) {
        let Some(concert) = self.concert(id) else { return };
        lock(&concert).settle(fan, seats, hold);
        if let Some(hold) = hold {
            lock(&self.holds).remove(&hold);
        }
    }

    pub(super) fn free(&self, id: ConcertId, fan: UserId, seats: &[Ordinal]) {
        let Some(concert) = self.concert(id) else { return };
        lock(&concert).free(fan, seats);
    }

    pub(super) fn snapshot(&self, id: ConcertId) -> Option<Snapshot> {
        let concert = self.concert(id)?;
        let concert = lock(&concert);
        Some(Snapshot { revision: concert.revision(), states: concert.states.clone() })
    }

    pub(super) fn changes_since(&self, id: ConcertId, since: Revision) -> Option<Changes> {
        Some(lock(&*self.concert(id)?).changes_since(since))
    }

    pub(super) fn watch(&self, id: ConcertId) -> Option<watch::Receiver<u64>> {
        Some(lock(&*self.concert(id)?).revision.subscribe())
    }

    pub(super) fn release_expired(&self, now: DateTime<Utc>) -> usize {
        let concerts = self.concerts();
        let released: Vec<HoldId> =
            concerts.iter().flat_map(|(_, concert)| lock(concert).release_expired(now)).collect();
        let mut holds = lock(&self.holds);
        for hold in &released {
            holds.remove(hold);
        }
        released.len()
    }

    pub(super) fn count(&self) -> usize {
        lock(&self.holds).len()
    }

    pub(super) fn unsold(&self) -> Vec<(ConcertId, u32)> {
        self.concerts().into_iter().map(|(id, concert)| (id, lock(&concert).unsold)).collect()
    }

    pub(super) fn forget_unused(&self) -> usize {
        let mut concerts = lock(&self.concerts);
        let before = concerts.len();
        concerts.retain(|_, loaded| {
            // Whoever has it in hand may be about to hold a seat of it.
            let is_in_hand = Arc::strong_count(&loaded.concert) > 1;
            std::mem::take(&mut loaded.is_used) || is_in_hand || lock(&loaded.concert).is_needed()
        });
        before - concerts.len()
    }
}

impl Concert {
    fn new(sold: Sold) -> Self {
        let mut states = vec![SeatState::Available; sold.places as usize];
        for seat in &sold.seats {
            states[*seat as usize] = SeatState::Sold;
        }
        let fans = sold.fans.into_iter().map(|(fan, sold)| (fan, Count { held: 0, sold })).collect();
        Self {
            epoch: rand::random(),
            unsold: states.iter().filter(|state| **state != SeatState::Sold).count() as u32,
            states,
            holds: HashMap::new(),
            being_booked: HashMap::new(),
            expiries: BTreeSet::new(),
            fans,
            keys: HashMap::new(),
            key_ends: VecDeque::new(),
            changes: VecDeque::new(),
            revision: watch::Sender::new(0),
        }
    }

    fn revision(&self) -> Revision {
        Revision { epoch: self.epoch, number: *self.revision.borrow() }
    }

    /// Whether something would be lost with it: holds, keys that were used, someone who watches.
    fn is_needed(&self) -> bool {
        !self.holds.is_empty() || !self.keys.is_empty() || self.revision.receiver_count() > 0
    }

    fn live(&self, hold: HoldId, now: DateTime<Utc>) -> Option<&Hold> {
        self.holds.get(&hold).filter(|hold| hold.expire_time > now)
    }

    fn find_granted(&self, key: &(UserId, String), fingerprint: &[u8; 32]) -> Option<Granted> {
        let known = self.keys.get(key)?;
        let is_same = known.fingerprint == *fingerprint;
        Some(if is_same { Granted::Replayed(known.hold) } else { Granted::KeyReused })
    }

    fn hold(&mut self, wish: Wish, now: DateTime<Utc>) -> Granted {
        let Wish { hold, limit, request_key, fingerprint } = wish;
        let key = (hold.fan, request_key);
        if let Some(granted) = self.find_granted(&key, &fingerprint) {
            return granted;
        }
        let count = self.fans.get(&hold.fan).copied().unwrap_or_default();
        let remaining = limit.saturating_sub(count.held + count.sold);
        if hold.seats.len() as u32 > remaining {
            return Granted::LimitExceeded { remaining };
        }
        let is_taken = |seat: &Ordinal| self.states.get(*seat as usize) != Some(&SeatState::Available);
        let taken: Vec<Ordinal> = hold.seats.iter().copied().filter(|seat| is_taken(seat)).collect();
        if !taken.is_empty() {
            return Granted::Taken(taken);
        }
        self.change(&hold.seats, SeatState::Held);
        self.fans.entry(hold.fan).or_default().held += hold.seats.len() as u32;
        self.expiries.insert((hold.expire_time, hold.id));
        self.key_ends.push_back((now + crate::domain::hold::MAX_LIFE + KEY_LIFETIME, key.clone()));
        self.keys.insert(key, Key { hold: hold.id, fingerprint });
        self.holds.insert(hold.id, hold.clone());
        Granted::Held(hold)
    }

    fn extend(&mut self, id: HoldId, until: DateTime<Utc>, now: DateTime<Utc>) -> Option<Hold> {
        let mut extended = self.live(id, now)?.clone();
        self.expiries.remove(&(extended.expire_time, id));
        extended.extend(until);
        self.expiries.insert((extended.expire_time, id));
        self.holds.insert(id, extended.clone());
        Some(extended)
    }

    fn release(&mut self, id: HoldId) -> Option<Hold> {
        let hold = self.remove(id)?;
        // A seat that was sold meanwhile stays sold: the database decided so.
        let held = self.in_state(&hold.seats, |state| state == SeatState::Held);
        self.change(&held, SeatState::Available);
        Some(hold)
    }

    /// Takes a hold out; its seats stay as they are.
    fn remove(&mut self, id: HoldId) -> Option<Hold> {
        let hold = self.holds.remove(&id)?;
        self.being_booked.remove(&id);
        self.expiries.remove(&(hold.expire_time, id));
        let count = self.fans.entry(hold.fan).or_default();
        count.held = count.held.saturating_sub(hold.seats.len() as u32);
        Some(hold)
    }

    fn settle(&mut self, fan: UserId, seats: &[Ordinal], hold: Option<HoldId>) {
        if let Some(hold) = hold {
            self.remove(hold);
        }
        // Doing it again must count nothing twice.
        let new: Vec<Ordinal> = self.in_state(seats, |state| state != SeatState::Sold);
        self.change(&new, SeatState::Sold);
        self.unsold -= new.len() as u32;
        self.fans.entry(fan).or_default().sold += new.len() as u32;
    }

    fn free(&mut self, fan: UserId, seats: &[Ordinal]) {
        let sold: Vec<Ordinal> = self.in_state(seats, |state| state == SeatState::Sold);
        self.change(&sold, SeatState::Available);
        self.unsold += sold.len() as u32;
        let count = self.fans.entry(fan).or_default();
        count.sold = count.sold.saturating_sub(sold.len() as u32);
    }

    fn in_state(&self, seats: &[Ordinal], is_wanted: impl Fn(SeatState) -> bool) -> Vec<Ordinal> {
        let state = |seat: &Ordinal| self.states.get(*seat as usize).copied();
        seats.iter().copied().filter(|seat| state(seat).is_some_and(&is_wanted)).collect()
    }

    fn change(&mut self, seats: &[Ordinal], state: SeatState) {
        if seats.is_empty() {
            return;
        }
        for seat in seats {
            self.states[*seat as usize] = state;
        }
        let number = *self.revision.borrow() + 1;
        if self.changes.len() == CHANGES_KEPT {
            self.changes.pop_front();
        }
        self.changes.push_back((number, seats.to_vec()));
        self.revision.send_replace(number);
    }

    fn changes_since(&self, since: Revision) -> Changes {
        let revision = self.revision();
        let oldest = self.changes.front().map_or(revision.number + 1, |(number, _)| *number);
        if since.epoch != self.epoch || since.number > revision.number || since.number + 1 < oldest {
            return Changes { revision, seats: None };
        }
        let skipped = self.changes.partition_point(|(number, _)| *number <= since.number);
        let mut seen = HashSet::new();
        let seats = self.changes.range(skipped..).flat_map(|(_, seats)| seats).copied();
        let seats =
            seats.filter(|seat| seen.insert(*seat)).map(|seat| (seat, self.states[seat as usize])).collect();
        Changes { revision, seats: Some(seats) }
    }

    fn release_expired(&mut self, now: DateTime<Utc>) -> Vec<HoldId> {
        let mut released = Vec::new();
        while let Some((expire_time, hold)) = self.expiries.first().copied()
            && expire_time <= now
        {
            self.expiries.pop_first();
            self.release(hold);
            released.push(hold);
        }
        while let Some((end, _)) = self.key_ends.front()
            && *end <= now
            && let Some((_, key)) = self.key_ends.pop_front()
        {
            self.keys.remove(&key);
        }
        released
    }
}

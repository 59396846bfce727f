//! Holds in this process, for embedded mode. Each concert has a lock of its own; nothing waits while it is held.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use chrono::{DateTime, TimeDelta, Utc};
use mesh::{
    clock::Clock,
    id::{ConcertId, HoldId, UserId},
};
use tokio::sync::watch;

use super::{Changes, Granted, KEY_LIFETIME, Released, Revision, SeatState, Snapshot, Sold, Wish};
use crate::domain::{
    hold::{Hold, MAX_LIFE},
    layout::Ordinal,
};

/// Changes that are remembered for whoever comes back.
const CHANGES_KEPT: usize = 4096;

/// The holds of all concerts.
#[derive(Debug)]
pub(crate) struct MemoryHolds {
    clock: Clock,
    concerts: Mutex<HashMap<ConcertId, Known>>,
    /// How often seats changed of a concert that was not loaded.
    loads_disturbed: AtomicU64,
    /// Which concert a hold is of.
    holds: Mutex<HashMap<HoldId, ConcertId>>,
}

#[derive(Debug)]
struct Known {
    concert: Arc<Mutex<Concert>>,
    /// Whether it was asked for since the last sweep of those that nobody asks for.
    is_used: bool,
}

#[derive(Debug, Default)]
struct Concert {
    /// Whether its sold seats are known.
    is_loaded: bool,
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
    /// The number of the revision.
    number: u64,
    changes: VecDeque<(u64, Vec<Ordinal>)>,
    changed: watch::Sender<()>,
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
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            clock,
            concerts: Mutex::default(),
            loads_disturbed: AtomicU64::new(0),
            holds: Mutex::default(),
        }
    }

    /// A concert that was asked for before.
    fn known(&self, id: ConcertId) -> Option<Arc<Mutex<Concert>>> {
        let mut concerts = lock(&self.concerts);
        let known = concerts.get_mut(&id)?;
        known.is_used = true;
        Some(Arc::clone(&known.concert))
    }

    fn concerts(&self) -> Vec<(ConcertId, Arc<Mutex<Concert>>)> {
        lock(&self.concerts).iter().map(|(id, known)| (*id, Arc::clone(&known.concert))).collect()
    }

    /// Does something to a concert, if it is loaded.
    fn with_loaded<T>(&self, id: ConcertId, act: impl FnOnce(&mut Concert) -> T) -> Option<T> {
        let concert = self.known(id)?;
        let mut concert = lock(&concert);
        concert.is_loaded.then(|| act(&mut concert))
    }

    /// Does something to the concert of a hold.
    fn with_hold<T>(&self, hold: HoldId, act: impl FnOnce(&mut Concert) -> Option<T>) -> Option<T> {
        let concert = lock(&self.holds).get(&hold).copied()?;
        act(&mut lock(&*self.known(concert)?))
    }

    pub(super) fn begin_load(&self, _: ConcertId) -> u64 {
        self.loads_disturbed.load(Ordering::Acquire)
    }

    pub(super) fn load(&self, id: ConcertId, sold: Sold, begun_at: Option<u64>) -> bool {
        let concert = {
            let mut concerts = lock(&self.concerts);
            let known =
                concerts.entry(id).or_insert_with(|| Known { concert: Arc::default(), is_used: true });
            Arc::clone(&known.concert)
        };
        let mut concert = lock(&concert);
        let is_undisturbed = begun_at.is_none_or(|begun_at| begun_at == self.begin_load(id));
        if !concert.is_loaded && is_undisturbed {
            concert.load(sold);
        }
        concert.is_loaded
    }

    pub(super) fn unload(&self, id: ConcertId) {
        if let Some(concert) = self.known(id) {
            let mut concert = lock(&concert);
            concert.is_loaded = false;
            concert.changed.send_replace(());
        }
        self.loads_disturbed.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn hold(&self, wish: Wish) -> Granted {
        let (hold, concert) = (wish.hold.id, wish.hold.concert);
        // Known before it is there: whoever finds it too early finds nothing.
        lock(&self.holds).insert(hold, concert);
        let granted = self.with_loaded(concert, |concert| concert.hold(wish, self.clock.now()));
        if !matches!(granted, Some(Granted::Held(_))) {
            lock(&self.holds).remove(&hold);
        }
        granted.unwrap_or(Granted::NotLoaded)
    }

    pub(super) fn find_granted(
        &self,
        concert: ConcertId,
        fan: UserId,
        request_key: &str,
        fingerprint: &[u8; 32],
    ) -> Option<Granted> {
        lock(&*self.known(concert)?).find_granted(&(fan, request_key.to_owned()), fingerprint)
    }

    pub(super) fn find(&self, hold: HoldId) -> Option<Hold> {
        self.with_hold(hold, |concert| concert.live(hold, self.clock.now()).cloned())
    }

    pub(super) fn extend(&self, hold: &Hold, life: TimeDelta) -> Option<Hold> {
        self.with_hold(hold.id, |concert| concert.extend(hold.id, hold.create_time + life, self.clock.now()))
    }

    pub(super) fn begin_booking(&self, hold: HoldId, patience: TimeDelta) -> Option<Hold> {
        let now = self.clock.now();
        self.with_hold(hold, |concert| {
            let extended = concert.extend(hold, now + patience, now)?;
            concert.being_booked.insert(hold, now + patience);
            Some(extended)
        })
    }

    pub(super) fn end_booking(&self, hold: &Hold) {
        self.with_hold(hold.id, |concert| concert.being_booked.remove(&hold.id));
    }

    pub(super) fn release(&self, hold: HoldId) -> Released {
        let now = self.clock.now();
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
        self.disturb_loading(id);
        if let Some(concert) = self.known(id) {
            lock(&concert).settle(fan, seats, hold);
        }
        if let Some(hold) = hold {
            lock(&self.holds).remove(&hold);
        }
    }

    pub(super) fn free(&self, id: ConcertId, fan: UserId, seats: &[Ordinal]) {
        self.disturb_loading(id);
        if let Some(concert) = self.known(id) {
            lock(&concert).free(fan, seats);
        }
    }

    /// Whoever is loading the concert has read the database before its seats changed: it must read it again. To be called
    /// before the change: who has loaded it meanwhile is told of that.
    fn disturb_loading(&self, id: ConcertId) {
        if !self.is_loaded(id) {
            self.loads_disturbed.fetch_add(1, Ordering::AcqRel);
        }
    }

    pub(super) fn snapshot(&self, id: ConcertId) -> Option<Snapshot> {
        self.with_loaded(id, |concert| Snapshot {
            revision: concert.revision(),
            states: concert.states.clone(),
        })
    }

    pub(super) fn is_loaded(&self, id: ConcertId) -> bool {
        self.with_loaded(id, |_| ()).is_some()
    }

    pub(super) fn changes_since(&self, id: ConcertId, since: Revision) -> Option<Changes> {
        self.with_loaded(id, |concert| concert.changes_since(since))
    }

    pub(super) fn watch(&self, id: ConcertId) -> Option<watch::Receiver<()>> {
        self.with_loaded(id, |concert| concert.changed.subscribe())
    }

    pub(super) fn release_expired(&self) -> usize {
        let now = self.clock.now();
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
        let concerts = self.concerts();
        let unsold = concerts.iter().map(|(id, concert)| (*id, lock(concert)));
        unsold.filter(|(_, concert)| concert.is_loaded).map(|(id, concert)| (id, concert.unsold)).collect()
    }

    pub(super) fn forget_unused(&self) -> usize {
        let mut concerts = lock(&self.concerts);
        let before = concerts.len();
        concerts.retain(|_, known| {
            // Whoever has it in hand may be about to hold a seat of it.
            let is_in_hand = Arc::strong_count(&known.concert) > 1;
            std::mem::take(&mut known.is_used) || is_in_hand || lock(&known.concert).is_needed()
        });
        before - concerts.len()
    }
}

impl Concert {
    /// Takes the sold seats as they are in the database. What is held stays held.
    fn load(&mut self, sold: Sold) {
        self.states = vec![SeatState::Available; sold.places as usize];
        let held = self.holds.values().flat_map(|hold| &hold.seats).map(|seat| (*seat, SeatState::Held));
        for (seat, state) in held.chain(sold.seats.iter().map(|seat| (*seat, SeatState::Sold))) {
            self.states[seat as usize] = state;
        }
        for count in self.fans.values_mut() {
            count.sold = 0;
        }
        for (fan, seats) in sold.fans {
            self.fans.entry(fan).or_default().sold = seats;
        }
        self.unsold = self.states.iter().filter(|state| **state != SeatState::Sold).count() as u32;
        (self.is_loaded, self.epoch, self.number) = (true, rand::random(), 0);
        self.changes.clear();
    }

    fn revision(&self) -> Revision {
        Revision { epoch: self.epoch, number: self.number }
    }

    /// Whether something would be lost with it: holds, keys that were used, someone who watches.
    fn is_needed(&self) -> bool {
        !self.holds.is_empty() || !self.keys.is_empty() || self.changed.receiver_count() > 0
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
        let Wish { mut hold, limit, request_key, fingerprint } = wish;
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
        (hold.create_time, hold.expire_time) = (now, now + (hold.expire_time - hold.create_time));
        self.change(&hold.seats, SeatState::Held);
        self.fans.entry(hold.fan).or_default().held += hold.seats.len() as u32;
        self.expiries.insert((hold.expire_time, hold.id));
        self.key_ends.push_back((now + MAX_LIFE + KEY_LIFETIME, key.clone()));
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
        let hold = hold.and_then(|hold| self.remove(hold));
        if !self.is_loaded {
            return;
        }
        // Doing it again must count nothing twice.
        let new: Vec<Ordinal> = self.in_state(seats, |state| state != SeatState::Sold);
        self.change(&new, SeatState::Sold);
        self.unsold -= new.len() as u32;
        self.fans.entry(fan).or_default().sold += new.len() as u32;
        // What the hold had beside them is nobody's now.
        let left =
            self.in_state(&hold.map_or(Vec::new(), |hold| hold.seats), |state| state == SeatState::Held);
        self.change(&left, SeatState::Available);
    }

    fn free(&mut self, fan: UserId, seats: &[Ordinal]) {
        if !self.is_loaded {
            return;
        }
        let sold: Vec<Ordinal> = self.in_state(seats, |state| state == SeatState::Sold);
        // A hold may have waited behind the sale.
        let is_held = |seat: &Ordinal| self.holds.values().any(|hold| hold.seats.contains(seat));
        let (held, available): (Vec<_>, Vec<_>) = sold.iter().copied().partition(is_held);
        self.change(&available, SeatState::Available);
        self.change(&held, SeatState::Held);
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
        self.number += 1;
        if self.changes.len() == CHANGES_KEPT {
            self.changes.pop_front();
        }
        self.changes.push_back((self.number, seats.to_vec()));
        self.changed.send_replace(());
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

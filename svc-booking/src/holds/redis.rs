//! Holds in Redis, for all replicas. What changes is changed by scripts on the keys of a concert, which are in one slot of a
//! cluster; all of it may be lost at any time (docs/decisions/0012).
//!
//! Expiry is judged by Redis' clock: what the wish says of times only tells how long.

mod operations;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use fred::{
    bytes::Bytes,
    interfaces::{HashesInterface, KeysInterface, SetsInterface},
    types::{FromValue, Value, scripts::Script},
};
use futures_util::future::{join_all, try_join_all};
use mesh::{
    id::{ConcertId, HoldId, Id, UserId},
    redis::{Question, Redis, RedisError},
};
use tokio::sync::watch;
use uuid::Uuid;

use self::operations::{Operation, Queue};
use super::{Changes, Granted, KEY_LIFETIME, Released, Revision, SeatState, Snapshot, Sold, Wish};
use crate::domain::{
    hold::{ConcertMark, Hold, MAX_LIFE, concert_mark, mark_of},
    layout::Ordinal,
};

/// How often concerts that somebody watches are looked at.
const WATCH_PERIOD: Duration = Duration::from_millis(100);
/// Expired holds that one script gives back: it keeps everybody else waiting for two or three milliseconds.
const RELEASED_AT_ONCE: usize = 100;
/// Changes of a watched concert that are remembered here, for who is a little late.
const CHANGES_FED: usize = 4096;
/// A seat's two bits, as `shared.lua` has them.
const HELD: u8 = 0b10;
const SOLD: u8 = 0b01;
/// How long a concert's keys are kept after they were used last.
const LIFETIME: TimeDelta = TimeDelta::hours(24);

/// A script, behind what all of them begin with.
macro_rules! script {
    ($file:literal) => {
        std::sync::LazyLock::new(|| {
            fred::types::scripts::Script::from_lua(concat!(
                include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/holds/redis/shared.lua")),
                include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/holds/redis/", $file))
            ))
        })
    };
}
use script;

static RELEASE_EXPIRED: LazyLock<Script> = script!("release_expired.lua");
static SNAPSHOT: LazyLock<Script> = script!("snapshot.lua");
static CHANGES: LazyLock<Script> = script!("changes.lua");
static LOAD: LazyLock<Script> = script!("load.lua");
static UNLOAD: LazyLock<Script> = script!("unload.lua");
static KEEP: LazyLock<Script> = script!("keep.lua");

/// The holds of all concerts.
#[derive(Debug)]
pub(crate) struct RedisHolds {
    redis: Redis,
    /// The concerts that this process was asked for: it gives back their expired holds.
    concerts: Arc<Mutex<Concerts>>,
    /// How far a test has moved the clock, in milliseconds.
    #[cfg(test)]
    clock_shift: std::sync::atomic::AtomicI64,
}

/// What a process knows of concerts, in the order of the marks that their holds' ids have.
type Concerts = BTreeMap<(ConcertMark, ConcertId), Known>;

/// What this process knows of a concert.
#[derive(Debug, Default)]
struct Known {
    /// Whether it was asked for since the last sweep of those that nobody asks for.
    is_used: bool,
    /// For who watches it here.
    changed: watch::Sender<()>,
    /// What those are told. None: it was not loaded.
    feed: Option<Feed>,
    queue: Queue,
}

/// The changes of a concert that somebody watches here: asked for once, however many watch.
#[derive(Debug)]
struct Feed {
    /// As of when.
    revision: Revision,
    /// The last ones, the newest first.
    changes: VecDeque<Change>,
}

/// Seats that changed together, each with its state then.
type Change = Vec<(Ordinal, SeatState)>;

impl RedisHolds {
    /// Holds in this Redis. Those who watch are told of changes as long as this lives.
    pub(super) fn new(redis: Redis) -> Self {
        let concerts = Arc::default();
        tokio::spawn(follow(redis.clone(), Arc::downgrade(&concerts)));
        Self {
            redis,
            concerts,
            #[cfg(test)]
            clock_shift: 0.into(),
        }
    }

    #[cfg(test)]
    pub(super) fn move_clock(&self, by: TimeDelta) {
        self.clock_shift.fetch_add(by.num_milliseconds(), std::sync::atomic::Ordering::Relaxed);
    }

    fn clock_shift(&self) -> i64 {
        #[cfg(test)]
        return self.clock_shift.load(std::sync::atomic::Ordering::Relaxed);
        #[cfg(not(test))]
        0
    }

    fn concerts(&self) -> MutexGuard<'_, Concerts> {
        self.concerts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn concerts_here(&self) -> Vec<ConcertId> {
        self.concerts().keys().map(|(_, concert)| *concert).collect()
    }

    /// Runs a script on a concert as a whole.
    async fn run<Answer: FromValue>(
        &self,
        script: &Script,
        concert: ConcertId,
        arguments: Vec<Value>,
    ) -> Result<Answer, RedisError> {
        self.note_use(concert).await?;
        let mut all = Vec::with_capacity(arguments.len() + 1);
        all.push(self.clock_shift().into());
        all.extend(arguments);
        self.redis.run(script, keys(concert), all).await
    }

    /// Has something done to one hold, or for one fan.
    async fn operate<Answer: FromValue>(
        &self,
        concert: ConcertId,
        operation: Operation,
    ) -> Result<Answer, RedisError> {
        self.note_use(concert).await?;
        let shift = self.clock_shift();
        let answer = operations::operate(&self.redis, &self.concerts, concert, shift, operation).await?;
        Ok(answer.convert()?)
    }

    /// Notes that a concert is used here.
    async fn note_use(&self, concert: ConcertId) -> Result<(), RedisError> {
        let was_used =
            std::mem::replace(&mut self.concerts().entry(place_of(concert)).or_default().is_used, true);
        if !was_used {
            // Its keys must not expire one by one under its users. Boxed, as it is rare, and all that operate would be as large.
            Box::pin(self.keep(concert)).await?;
        }
        Ok(())
    }

    /// Asks about a hold at the concerts that it may be of by its id, until one knows it. Hardly ever there are two of them.
    async fn ask<Answer: FromValue>(
        &self,
        name: &'static str,
        hold: HoldId,
        durations: &[TimeDelta],
    ) -> Result<Option<(ConcertId, Answer)>, RedisError> {
        let mut arguments: Vec<Value> = vec![text_of(hold).into()];
        arguments.extend(durations.iter().map(|duration| Value::from(duration.num_milliseconds())));
        let operation = || Operation { name, request_key: None, arguments: arguments.clone() };
        let mark = concert_mark(hold);
        let known: Vec<ConcertId> = {
            let concerts = self.concerts();
            let marked = concerts.range((mark, ConcertId::from_uuid(Uuid::nil()))..);
            marked.map(|(place, _)| *place).take_while(|place| place.0 == mark).map(|place| place.1).collect()
        };
        for concert in &known {
            if let Some(answer) = self.operate(*concert, operation()).await? {
                return Ok(Some((*concert, answer)));
            }
        }
        // Another process may have made it, of a concert that nobody asked for here.
        for concert in Box::pin(self.list_marked(mark)).await? {
            if known.contains(&concert) {
                continue;
            }
            if let Some(answer) = self.operate(concert, operation()).await? {
                return Ok(Some((concert, answer)));
            }
        }
        Ok(None)
    }

    /// The concerts of a mark that some process knows.
    async fn list_marked(&self, mark: ConcertMark) -> Result<Vec<ConcertId>, RedisError> {
        let client = self.redis.connected()?;
        let marked: Vec<String> = Question::begin("SMEMBERS").end(client.smembers(marked_key(mark)).await)?;
        marked.iter().map(|concert| read_uuid(concert).map(ConcertId::from_uuid)).collect()
    }

    /// A hold as it is after an operation, if it is.
    async fn hold_after(
        &self,
        name: &'static str,
        hold: HoldId,
        durations: &[TimeDelta],
    ) -> Result<Option<Hold>, RedisError> {
        let found: Option<(_, String)> = self.ask(name, hold, durations).await?;
        found.map(|(concert, record)| read_hold(hold, concert, &record)).transpose()
    }

    pub(super) async fn begin_load(&self, concert: ConcertId) -> Result<u64, RedisError> {
        let client = self.redis.connected()?;
        let loads: Option<u64> = Question::begin("GET").end(client.get(key(concert, "loads")).await)?;
        Ok(loads.unwrap_or(0))
    }

    pub(super) async fn load(
        &self,
        concert: ConcertId,
        sold: Sold,
        begun_at: Option<u64>,
    ) -> Result<bool, RedisError> {
        let mut states = vec![0_u8; (sold.places as usize).div_ceil(4)];
        for seat in &sold.seats {
            states[*seat as usize / 4] |= SOLD << shift_of(*seat);
        }
        let unsold = sold.places - states.iter().map(|byte| byte.count_ones()).sum::<u32>();
        let mut arguments: Vec<Value> = vec![
            begun_at.map(|begun_at| begun_at.to_string()).unwrap_or_default().into(),
            format!("{:016x}", rand::random::<u64>()).into(),
            sold.places.into(),
            unsold.into(),
            Bytes::from(states).into(),
            LIFETIME.num_milliseconds().into(),
        ];
        for (fan, count) in sold.fans {
            arguments.extend([fan.uuid().simple().to_string().into(), count.into()]);
        }
        self.note_mark(concert).await?;
        let is_loaded: Option<bool> = self.run(&LOAD, concert, arguments).await?;
        Ok(is_loaded == Some(true))
    }

    pub(super) async fn unload(&self, concert: ConcertId) -> Result<(), RedisError> {
        self.run(&UNLOAD, concert, Vec::new()).await
    }

    pub(super) async fn hold(&self, wish: Wish) -> Result<Granted, RedisError> {
        let Wish { hold, limit, request_key, fingerprint } = wish;
        let concert = hold.concert;
        let mut arguments: Vec<Value> = vec![
            text_of(hold.id).into(),
            hold.fan.uuid().simple().to_string().into(),
            limit.into(),
            (hold.expire_time - hold.create_time).num_milliseconds().into(),
            (MAX_LIFE + KEY_LIFETIME).num_milliseconds().into(),
            hex(&fingerprint).into(),
            i64::from(hold.is_adjacent).into(),
        ];
        arguments.extend(hold.seats.iter().map(|seat| Value::from(*seat)));
        let request_key = Some(request_key_of(concert, hold.fan, &request_key));
        let operation = Operation { name: "hold", request_key, arguments };
        let granted: Vec<String> = self.operate(concert, operation).await?;
        let detail = granted.get(1).map_or("", String::as_str);
        Ok(match granted.first().map(String::as_str) {
            Some("not loaded") => Granted::NotLoaded,
            Some("key reused") => Granted::KeyReused,
            Some("replayed") => Granted::Replayed(read_id(detail)?),
            Some("limit exceeded") => Granted::LimitExceeded { remaining: number(detail)? },
            Some("taken") => Granted::Taken(read_seats(detail)?),
            Some("held") => Granted::Held(read_hold(hold.id, concert, detail)?),
            _ => return Err(unreadable(detail)),
        })
    }

    /// Makes the concert known to those who are asked for a hold of it.
    async fn note_mark(&self, concert: ConcertId) -> Result<(), RedisError> {
        let client = self.redis.connected()?;
        let key = marked_key(mark_of(concert));
        let _: () =
            Question::begin("SADD").end(client.sadd(&key, concert.uuid().simple().to_string()).await)?;
        // Longer than what is kept of the concert itself.
        let lifetime = (LIFETIME * 2).num_milliseconds();
        Question::begin("PEXPIRE").end(client.pexpire(key, lifetime, None).await)
    }

    pub(super) async fn find_granted(
        &self,
        concert: ConcertId,
        fan: UserId,
        request_key: &str,
        fingerprint: &[u8; 32],
    ) -> Result<Option<Granted>, RedisError> {
        let key = request_key_of(concert, fan, request_key);
        let client = self.redis.connected()?;
        let known: Option<String> = Question::begin("GET").end(client.get(key).await)?;
        let Some(known) = known else { return Ok(None) };
        let (id, first_fingerprint) = known.split_once(' ').ok_or_else(|| unreadable(&known))?;
        if first_fingerprint != hex(fingerprint) {
            return Ok(Some(Granted::KeyReused));
        }
        Ok(Some(Granted::Replayed(read_id(id)?)))
    }

    pub(super) async fn find(&self, hold: HoldId) -> Result<Option<Hold>, RedisError> {
        self.hold_after("find", hold, &[]).await
    }

    pub(super) async fn extend(&self, hold: &Hold, life: TimeDelta) -> Result<Option<Hold>, RedisError> {
        self.hold_after("extend", hold.id, &[life.min(MAX_LIFE)]).await
    }

    pub(super) async fn begin_booking(
        &self,
        hold: HoldId,
        patience: TimeDelta,
    ) -> Result<Option<Hold>, RedisError> {
        self.hold_after("begin_booking", hold, &[patience, MAX_LIFE]).await
    }

    pub(super) async fn end_booking(&self, hold: &Hold) -> Result<(), RedisError> {
        let arguments = vec![text_of(hold.id).into()];
        self.operate(hold.concert, Operation { name: "end_booking", request_key: None, arguments }).await
    }

    pub(super) async fn release(&self, hold: HoldId) -> Result<Released, RedisError> {
        let found: Option<(_, Vec<String>)> = self.ask("release", hold, &[]).await?;
        let Some((concert, released)) = found else { return Ok(Released::Gone) };
        match released.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["being booked"] => Ok(Released::BeingBooked),
            ["given back", record] => Ok(Released::GivenBack(read_hold(hold, concert, record)?)),
            _ => Err(unreadable(&released.join(" "))),
        }
    }

    pub(super) async fn settle(
        &self,
        concert: ConcertId,
        fan: UserId,
        seats: &[Ordinal],
        hold: Option<HoldId>,
    ) -> Result<(), RedisError> {
        let mut arguments: Vec<Value> =
            vec![fan.uuid().simple().to_string().into(), hold.map(text_of).unwrap_or_default().into()];
        arguments.extend(seats.iter().map(|seat| Value::from(*seat)));
        self.operate(concert, Operation { name: "settle", request_key: None, arguments }).await
    }

    pub(super) async fn free(
        &self,
        concert: ConcertId,
        fan: UserId,
        seats: &[Ordinal],
    ) -> Result<(), RedisError> {
        let mut arguments: Vec<Value> = vec![fan.uuid().simple().to_string().into()];
        arguments.extend(seats.iter().map(|seat| Value::from(*seat)));
        self.operate(concert, Operation { name: "free", request_key: None, arguments }).await
    }

    pub(super) async fn snapshot(&self, concert: ConcertId) -> Result<Option<Snapshot>, RedisError> {
        let found: Option<(String, u64, u32, Bytes)> = self.run(&SNAPSHOT, concert, Vec::new()).await?;
        let Some((epoch, number, places, states)) = found else { return Ok(None) };
        let state = |seat| {
            let byte = states.get(seat as usize / 4).copied().unwrap_or_default();
            match (byte >> shift_of(seat)) & (HELD | SOLD) {
                0 => SeatState::Available,
                HELD => SeatState::Held,
                _ => SeatState::Sold,
            }
        };
        Ok(Some(Snapshot {
            revision: read_revision(&epoch, number)?,
            states: (0..places).map(state).collect(),
        }))
    }

    pub(super) async fn changes_since(
        &self,
        concert: ConcertId,
        since: Revision,
    ) -> Result<Option<Changes>, RedisError> {
        if let Some(changes) = self.fed_since(concert, since) {
            return Ok(Some(changes));
        }
        self.concerts().entry(place_of(concert)).or_default().is_used = true;
        let found = ask_changes(&self.redis, concert, since, self.clock_shift()).await?;
        Ok(found.map(|(revision, changes)| Changes {
            revision,
            seats: changes.map(|changes| merge(changes.iter())),
        }))
    }

    /// What changed since a point, if the feed knows: it does for who follows it.
    fn fed_since(&self, concert: ConcertId, since: Revision) -> Option<Changes> {
        let concerts = self.concerts();
        let known = concerts.get(&place_of(concert)).filter(|known| known.changed.receiver_count() > 0)?;
        let feed = known.feed.as_ref().filter(|feed| feed.revision.epoch == since.epoch)?;
        let missed = feed.revision.number.checked_sub(since.number)? as usize;
        let is_known = missed <= feed.changes.len();
        is_known.then(|| Changes {
            revision: feed.revision,
            seats: Some(merge(feed.changes.iter().take(missed))),
        })
    }

    pub(super) async fn is_loaded(&self, concert: ConcertId) -> Result<bool, RedisError> {
        Ok(revision_of(&self.redis, concert).await?.is_some())
    }

    pub(super) async fn watch(&self, concert: ConcertId) -> Result<Option<watch::Receiver<()>>, RedisError> {
        // First: what changes after it was looked at is a change.
        let receiver = self.concerts().entry(place_of(concert)).or_default().changed.subscribe();
        let revision = revision_of(&self.redis, concert).await?;
        if let Some(known) = self.concerts().get_mut(&place_of(concert))
            && known.changed.receiver_count() == 1
        {
            known.feed = revision.map(|revision| Feed { revision, changes: VecDeque::new() });
        }
        Ok(revision.map(|_| receiver))
    }

    pub(super) async fn release_expired(&self) -> Result<usize, RedisError> {
        let concerts = self.concerts_here();
        let shift = self.clock_shift();
        let sweeps = concerts.into_iter().map(async |concert| {
            let mut released = 0;
            loop {
                let arguments: Vec<Value> = vec![shift.into(), RELEASED_AT_ONCE.to_string().into()];
                let count: usize = self.redis.run(&RELEASE_EXPIRED, keys(concert), arguments).await?;
                released += count;
                if count < RELEASED_AT_ONCE {
                    return Ok::<_, RedisError>(released);
                }
            }
        });
        Ok(try_join_all(sweeps).await?.into_iter().sum())
    }

    /// The holds of a concert.
    async fn count_of(&self, concert: ConcertId) -> Result<usize, RedisError> {
        let client = self.redis.connected()?;
        Question::begin("HLEN").end(client.hlen(key(concert, "holds")).await)
    }

    pub(super) async fn count(&self) -> Result<usize, RedisError> {
        let concerts = self.concerts_here();
        let counts = concerts.into_iter().map(async |concert| self.count_of(concert).await);
        Ok(try_join_all(counts).await?.into_iter().sum())
    }

    pub(super) async fn forget_unused(&self) -> Result<usize, RedisError> {
        let concerts: Vec<(ConcertId, bool)> = (self.concerts().iter_mut())
            .map(|((_, concert), known)| {
                let is_watched = known.changed.receiver_count() > 0;
                (*concert, std::mem::take(&mut known.is_used) || is_watched)
            })
            .collect();
        let mut forgotten = 0;
        for (concert, is_used) in concerts {
            if is_used {
                self.keep(concert).await?;
                continue;
            }
            let holds = self.count_of(concert).await?;
            let mut concerts = self.concerts();
            // Somebody may have asked for it meanwhile.
            let is_unused = concerts.get(&place_of(concert)).is_some_and(|known| {
                !known.is_used && known.changed.receiver_count() == 0 && known.queue.is_idle()
            });
            if holds == 0 && is_unused {
                concerts.remove(&place_of(concert));
                forgotten += 1;
            }
        }
        Ok(forgotten)
    }

    /// Keeps everything of a concert for a day from now on.
    async fn keep(&self, concert: ConcertId) -> Result<(), RedisError> {
        self.note_mark(concert).await?;
        let arguments = vec![self.clock_shift().into(), LIFETIME.num_milliseconds().into()];
        self.redis.run(&KEEP, keys(concert), arguments).await
    }

    pub(super) async fn unsold(&self) -> Result<Vec<(ConcertId, u32)>, RedisError> {
        let concerts = self.concerts_here();
        let counts = concerts.into_iter().map(async |concert| {
            let client = self.redis.connected()?;
            let unsold: Option<u32> =
                Question::begin("HGET").end(client.hget(key(concert, "meta"), "unsold").await)?;
            Ok::<_, RedisError>(unsold.map(|unsold| (concert, unsold)))
        });
        Ok(try_join_all(counts).await?.into_iter().flatten().collect())
    }
}

/// Tells those who watch a concert here of changes, whoever made them. Asking is cheaper than being told: a sale changes
/// seats thousands of times a second, and loses nothing when the connection breaks.
async fn follow(redis: Redis, concerts: Weak<Mutex<Concerts>>) {
    loop {
        tokio::time::sleep(WATCH_PERIOD).await;
        let Some(concerts) = concerts.upgrade() else { return };
        let lock = || concerts.lock().unwrap_or_else(PoisonError::into_inner);
        let is_watched = |known: &Known| known.changed.receiver_count() > 0;
        let watched = lock()
            .iter()
            .filter(|(_, known)| is_watched(known))
            .map(|(place, _)| place.1)
            .collect::<Vec<_>>();
        let looks = watched.into_iter().map(async |concert| {
            let seen = lock().get(&place_of(concert)).and_then(|known| Some(known.feed.as_ref()?.revision));
            (concert, seen, look(&redis, concert, seen).await)
        });
        for (concert, seen, looked) in join_all(looks).await {
            // Who can't be told now is told when Redis is back.
            let Ok(looked) = looked else { continue };
            let mut concerts = lock();
            let Some(known) = concerts.get_mut(&place_of(concert)) else { continue };
            // Whoever came first to watch it meanwhile began anew.
            if known.feed.as_ref().map(|feed| feed.revision) != seen {
                continue;
            }
            let is_news = match looked {
                Look::Same => false,
                Look::Unloaded => known.feed.take().is_some(),
                Look::Changed(revision, changes) => {
                    known.feed = Some(continued(known.feed.take(), revision, changes));
                    true
                }
            };
            if is_news {
                known.changed.send_replace(());
            }
        }
    }
}

/// What came of looking at a concert.
enum Look {
    Same,
    Unloaded,
    /// The changes since it was seen, the newest first; none if that was too long ago.
    Changed(Revision, Option<Vec<Change>>),
}

async fn look(redis: &Redis, concert: ConcertId, seen: Option<Revision>) -> Result<Look, RedisError> {
    let revision = revision_of(redis, concert).await?;
    match (revision, seen) {
        (None, _) => Ok(Look::Unloaded),
        (Some(revision), None) => Ok(Look::Changed(revision, None)),
        (Some(revision), Some(seen)) if revision == seen => Ok(Look::Same),
        (Some(_), Some(seen)) => Ok(match ask_changes(redis, concert, seen, 0).await? {
            Some((revision, changes)) => Look::Changed(revision, changes),
            None => Look::Unloaded,
        }),
    }
}

/// A feed with what came since.
fn continued(feed: Option<Feed>, revision: Revision, changes: Option<Vec<Change>>) -> Feed {
    let (Some(mut feed), Some(changes)) = (feed, changes) else {
        return Feed { revision, changes: VecDeque::new() };
    };
    changes.into_iter().rev().for_each(|change| feed.changes.push_front(change));
    feed.changes.truncate(CHANGES_FED);
    Feed { revision, ..feed }
}

/// The changes since a revision, the newest first; without them if it is too old or of another epoch. None: not loaded.
async fn ask_changes(
    redis: &Redis,
    concert: ConcertId,
    since: Revision,
    clock_shift: i64,
) -> Result<Option<(Revision, Option<Vec<Change>>)>, RedisError> {
    let arguments: Vec<Value> =
        vec![clock_shift.into(), format!("{:016x}", since.epoch).into(), since.number.to_string().into()];
    let found: Option<Vec<Value>> = redis.run(&CHANGES, keys(concert), arguments).await?;
    let Some(found) = found else { return Ok(None) };
    let mut found = found.into_iter();
    let (Some(epoch), Some(number)) = (found.next(), found.next()) else {
        return Err(unreadable("a revision"));
    };
    let revision = read_revision(&epoch.convert::<String>()?, number.convert()?)?;
    let changes = found
        .next()
        .map(|changes| changes.convert::<Vec<String>>()?.iter().map(|change| read_change(change)).collect());
    Ok(Some((revision, changes.transpose()?)))
}

/// A change as `announce` of `shared.lua` writes it.
fn read_change(text: &str) -> Result<Change, RedisError> {
    let (letter, seats) = text.split_once(' ').ok_or_else(|| unreadable(text))?;
    let state = match letter {
        "A" => SeatState::Available,
        "H" => SeatState::Held,
        "S" => SeatState::Sold,
        _ => return Err(unreadable(text)),
    };
    Ok(read_seats(seats)?.into_iter().map(|seat| (seat, state)).collect())
}

/// Each seat once, as its newest change says. The newest change comes first.
fn merge<'c>(changes: impl Iterator<Item = &'c Change>) -> Change {
    let mut states: BTreeMap<Ordinal, SeatState> = BTreeMap::new();
    for (seat, state) in changes.flatten() {
        states.entry(*seat).or_insert(*state);
    }
    states.into_iter().collect()
}

/// A concert's revision. None: not loaded.
async fn revision_of(redis: &Redis, concert: ConcertId) -> Result<Option<Revision>, RedisError> {
    let fields = vec!["epoch", "revision"];
    let client = redis.connected()?;
    let found: Vec<Option<String>> =
        Question::begin("HMGET").end(client.hmget(key(concert, "meta"), fields).await)?;
    let mut found = found.into_iter().flatten();
    let Some((epoch, revision)) = found.next().zip(found.next()) else { return Ok(None) };
    read_revision(&epoch, number(&revision)?).map(Some)
}

/// A key of a concert. What is in braces decides the slot. The number is that of the layout: what is there in another one is
/// as if it were not.
fn key(concert: ConcertId, part: &str) -> String {
    format!("booking:2:{{{}}}:{part}", concert.uuid().simple())
}

/// The keys of a concert, in the order in which scripts take them.
fn keys(concert: ConcertId) -> Vec<String> {
    let parts = ["holds", "expiries", "fans", "states", "changes", "meta", "loads"];
    parts.iter().map(|part| key(concert, part)).collect()
}

fn request_key_of(concert: ConcertId, fan: UserId, request_key: &str) -> String {
    key(concert, &format!("request:{}:{request_key}", fan.uuid().simple()))
}

/// Where the concerts stand that have a mark.
fn marked_key(mark: ConcertMark) -> String {
    format!("booking:2:marked:{}", hex(&mark))
}

/// Where a concert stands among those known here.
fn place_of(concert: ConcertId) -> (ConcertMark, ConcertId) {
    (mark_of(concert), concert)
}

/// Where a seat's two bits are in its byte.
fn shift_of(seat: Ordinal) -> u32 {
    6 - seat % 4 * 2
}

fn text_of(hold: HoldId) -> String {
    hold.uuid().simple().to_string()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unreadable(text: &str) -> RedisError {
    let error = fred::error::Error::new(fred::error::ErrorKind::Parse, format!("can't be read: {text:?}"));
    RedisError::Failed(error)
}

fn number<Number: std::str::FromStr>(text: &str) -> Result<Number, RedisError> {
    text.parse().map_err(|_| unreadable(text))
}

fn read_uuid(text: &str) -> Result<Uuid, RedisError> {
    Uuid::try_parse(text).map_err(|_| unreadable(text))
}

fn read_id(text: &str) -> Result<HoldId, RedisError> {
    read_uuid(text).map(HoldId::from_uuid)
}

fn read_seats(text: &str) -> Result<Vec<Ordinal>, RedisError> {
    text.split_whitespace().map(number).collect()
}

fn read_revision(epoch: &str, number: u64) -> Result<Revision, RedisError> {
    let epoch = u64::from_str_radix(epoch, 16).map_err(|_| unreadable(epoch))?;
    Ok(Revision { epoch, number })
}

/// A hold as `shared.lua` writes it.
fn read_hold(id: HoldId, concert: ConcertId, record: &str) -> Result<Hold, RedisError> {
    let mut words = record.splitn(6, ' ');
    let mut word = || words.next().ok_or_else(|| unreadable(record));
    let fan = read_uuid(word()?)?;
    let mut time = || -> Result<DateTime<Utc>, RedisError> {
        DateTime::from_timestamp_millis(number(word()?)?).ok_or_else(|| unreadable(record))
    };
    let (create_time, expire_time, _booked_until) = (time()?, time()?, time()?);
    let is_adjacent = word()? == "1";
    let seats = read_seats(word()?)?;
    Ok(Hold { id, concert, fan: UserId::from_uuid(fan), seats, is_adjacent, create_time, expire_time })
}

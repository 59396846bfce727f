//! What the service does by itself: gives expired holds back, goes on with bookings that nobody works on, makes refunds,
//! tells concert what is sold out, audits what is shown of seats.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    future::Future,
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::stream::{self, StreamExt};
use mesh::{
    Failure,
    context::Context,
    failure::chain,
    id::{BookingId, ConcertId, Id},
    metrics::Level,
    shutdown::Shutdown,
};
use uuid::Uuid;

use crate::{
    Shared,
    audit::Audit,
    checkout::Attempt,
    domain::booking::{Booking, State},
    error::Error,
};

const PERIOD: Duration = Duration::from_secs(1);
/// How long a round of work may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often concerts that nobody asks for are forgotten.
const FORGET_PERIOD: Duration = Duration::from_secs(600);
/// How often what is shown of seats is compared with the database.
const AUDIT_PERIOD: Duration = Duration::from_secs(30);
/// Concerts whose sold seats are counted at once.
const CHECKED_AT_ONCE: usize = 32;
/// Abandoned bookings that are gone on with at once: one that payment is slow about must not hold up the others.
const RESUMED_AT_ONCE: usize = 16;
/// Bookings younger than this are looked at every second: a lease runs out after five.
const YOUNG: TimeDelta = TimeDelta::seconds(20);
/// How often, in periods, older ones are looked at.
const FULL_SWEEP_EVERY: u32 = 30;
/// How far two clocks may differ: a booking may be inserted with an id this old.
const CLOCK_SKEW: TimeDelta = TimeDelta::minutes(10);

/// Starts the work; it ends at shutdown.
pub(crate) fn start(shared: &Shared, shutdown: &Shutdown) {
    let description = "Holds that keep seats";
    let live = Arc::new(Level::new("booking.holds.live", "", description, "booking"));
    tokio::spawn(repeat(shutdown.clone(), PERIOD, {
        let shared = shared.clone();
        move || release_expired(shared.clone(), Arc::clone(&live))
    }));
    tokio::spawn(repeat(shutdown.clone(), PERIOD, {
        let shared = shared.clone();
        move || make_refunds(shared.clone())
    }));
    tokio::spawn(repeat(shutdown.clone(), FORGET_PERIOD, {
        let shared = shared.clone();
        move || forget_unused(shared.clone())
    }));
    let (recovery, reports) = (shared.clone(), shared.clone());
    tokio::spawn(recover(recovery, shutdown.clone()));
    tokio::spawn(report(reports, shutdown.clone()));
    tokio::spawn(audit(shared.clone(), shutdown.clone()));
}

/// Does something every so often until shutdown, each time in a trace of its own.
async fn repeat<F: Future<Output = Result<(), Error>>>(
    shutdown: Shutdown,
    period: Duration,
    act: impl Fn() -> F,
) {
    while !shutdown.has_begun() {
        if let Err(error) = within_patience(Context::root().scope(act())).await {
            tracing::warn!(error = chain(&error), "a worker has to wait");
        }
        pause(&shutdown, period).await;
    }
}

/// Does something that a database or a neighbour that went silent must not stop for ever.
async fn within_patience(act: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    let silence = |_| Err(Failure::internal("nothing moved for too long").into());
    tokio::time::timeout(PATIENCE, act).await.unwrap_or_else(silence)
}

async fn pause(shutdown: &Shutdown, period: Duration) {
    tokio::select! { () = tokio::time::sleep(period) => {}, () = shutdown.begun() => {} }
}

async fn release_expired(shared: Shared, live: Arc<Level>) -> Result<(), Error> {
    let released = shared.holds.release_expired().await?;
    if released > 0 {
        tracing::debug!(holds = released, "expired holds were released");
    }
    live.set(shared.holds.count().await? as f64);
    Ok(())
}

async fn forget_unused(shared: Shared) -> Result<(), Error> {
    let forgotten = shared.holds.forget_unused().await?;
    if forgotten > 0 {
        tracing::debug!(concerts = forgotten, "concerts that nobody asks for were forgotten");
    }
    Ok(())
}

/// Compares what is shown of seats with the database.
async fn audit(shared: Shared, shutdown: Shutdown) {
    let mut audit = Audit::default();
    while !shutdown.has_begun() {
        if let Err(error) = within_patience(Context::root().scope(audit.sweep(&shared))).await {
            tracing::warn!(error = chain(&error), "seats can't be compared with the database");
        }
        pause(&shutdown, AUDIT_PERIOD).await;
    }
}

async fn make_refunds(shared: Shared) -> Result<(), Error> {
    shared.make_refunds(None).await.map(|_| ())
}

/// Goes on with bookings whose lease has run out.
async fn recover(shared: Shared, shutdown: Shutdown) {
    let description = "Age of the oldest booking that is neither paid nor failed; 0: there is none";
    let age = Level::new("booking.unsettled.age", "s", description, "booking");
    let description = "Bookings and refunds that an operator must look at, counted every 30 s";
    let attention = Level::new("booking.attention", "", description, "booking");
    let mut recovery = Recovery::default();
    while !shutdown.has_begun() {
        if let Err(error) = within_patience(Context::root().scope(recovery.sweep(&shared))).await {
            tracing::warn!(error = chain(&error), "bookings that nobody works on can't be looked for");
        }
        let oldest = recovery.oldest_unsettled.map(|since| shared.clock.now() - since);
        age.set(oldest.map_or(0.0, TimeDelta::as_seconds_f64));
        attention.set(recovery.attention as f64);
        pause(&shutdown, PERIOD).await;
    }
}

/// Which bookings to look at. The state is in no index (see the migration), so ids are: they sort by time.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    sweeps: u32,
    /// No booking before this is PAYING.
    all_settled_before: Uuid,
    /// When the oldest booking was made that the last sweep saw PAYING.
    oldest_unsettled: Option<DateTime<Utc>>,
    /// Bookings and refunds that an operator must look at.
    attention: i64,
    /// Bookings that were left to wait.
    waiting: BTreeMap<BookingId, Booking>,
}

impl Recovery {
    /// Goes on with each booking that nobody works on.
    pub(crate) async fn sweep(&mut self, shared: &Shared) -> Result<(), Error> {
        let now = shared.clock.now();
        let is_full = self.sweeps.is_multiple_of(FULL_SWEEP_EVERY);
        let from = if is_full { self.all_settled_before } else { first_id_at(now - YOUNG) };
        let mut paying: Vec<Booking> = Vec::new();
        let mut next = from;
        loop {
            let found = shared.store.list_paying(next).await?;
            let Some(last) = found.last() else { break };
            next = Uuid::from_u128(last.id.uuid().as_u128() + 1);
            paying.extend(found);
        }
        // Those that someone else works on count too: they may be left to us yet.
        let oldest_paying = paying.first().map_or(Uuid::max(), |booking| booking.id.uuid());
        let unsettled = paying.iter().chain(self.waiting.values());
        self.oldest_unsettled = unsettled.map(|booking| booking.create_time).min();
        let mut abandoned = std::mem::take(&mut self.waiting);
        let lost = paying.into_iter().filter(|booking| booking.lease.until < now);
        abandoned.extend(lost.map(|booking| (booking.id, booking)));
        // Its breaker lets no call through: every try would only raise epochs.
        if shared.neighbours.is_payment_refusing() {
            self.waiting.append(&mut abandoned);
        }
        let resumed = stream::iter(abandoned.into_values()).map(|booking| resume(shared, booking));
        let mut resumed = resumed.buffer_unordered(RESUMED_AT_ONCE);
        while let Some(left) = resumed.next().await {
            self.waiting.extend(left.map(|booking| (booking.id, booking)));
        }
        if is_full {
            self.attention = shared.store.count_attention(from).await?;
            self.all_settled_before = first_id_at(now - CLOCK_SKEW).min(oldest_paying);
        }
        self.sweeps += 1;
        Ok(())
    }
}

/// Goes on with a booking. If it has to wait: the booking as it is then.
async fn resume(shared: &Shared, booking: Booking) -> Option<Booking> {
    let id = booking.id;
    // One that waited here may have been settled by its own task or another replica: then there is no lease to take.
    let booking = match shared.store.take_over(booking.clone(), shared.clock.now()).await {
        Ok(taken_over) => taken_over?,
        Err(error) => {
            tracing::warn!(booking.id = %id, error = chain(&error), "a booking has to wait");
            return Some(booking);
        }
    };
    tracing::info!(booking.id = %id, lease.epoch = booking.lease.epoch, "going on with a booking");
    match shared.run(booking.clone(), Attempt::Again).await {
        Ok(booking) if booking.state == State::Paying => Some(booking),
        Ok(booking) => {
            tracing::info!(booking.id = %id, booking.state = ?booking.state, "a booking was settled");
            None
        }
        Err(error) => {
            // It must not keep the others from being gone on with.
            tracing::warn!(booking.id = %id, error = chain(&error), "a booking has to wait");
            Some(booking)
        }
    }
}

/// The smallest UUIDv7 of a moment.
fn first_id_at(time: DateTime<Utc>) -> Uuid {
    // RFC 9562: the first 48 bits are milliseconds of Unix time.
    Uuid::from_u128((time.timestamp_millis().max(0) as u128) << 80)
}

/// Tells concert when a concert is sold out, and when it no longer is.
async fn report(shared: Shared, shutdown: Shutdown) {
    let mut reports = Reports::default();
    while !shutdown.has_begun() {
        let sweep = Context::root().scope(reports.sweep(&shared));
        if let Err(error) = within_patience(sweep).await {
            tracing::warn!(error = chain(&error), "concert can't be told what is left");
        }
        pause(&shutdown, PERIOD).await;
    }
}

/// How many places of a concert were sold at a time.
#[derive(Debug, Clone, Copy)]
struct Count {
    concert: ConcertId,
    sold: u32,
    time: DateTime<Utc>,
}

/// What concert was told.
#[derive(Debug)]
pub(crate) struct Reports {
    /// Whether a concert is sold out.
    told: HashMap<ConcertId, bool>,
    /// Concerts that are to be told of once: what a process before this one told last may be wrong, and nobody may ask for
    /// their seats for long. Few at a time, the newest first, as of the others most are over.
    unchecked: VecDeque<Count>,
    /// The concerts before this one are not counted yet. None: all are.
    uncounted: Option<ConcertId>,
}

impl Default for Reports {
    fn default() -> Self {
        Self {
            told: HashMap::new(),
            unchecked: VecDeque::new(),
            uncounted: Some(ConcertId::from_uuid(Uuid::max())),
        }
    }
}

impl Reports {
    /// Tells what has changed since it was told last.
    pub(crate) async fn sweep(&mut self, shared: &Shared) -> Result<(), Error> {
        let loaded = shared.holds.unsold().await?;
        self.told.retain(|concert, _| loaded.iter().any(|(known, _)| known == concert));
        for (concert, unsold) in &loaded {
            let is_sold_out = *unsold == 0;
            if self.told.get(concert) == Some(&is_sold_out) {
                continue;
            }
            if tell(shared, *concert, *unsold, shared.clock.now()).await {
                self.told.insert(*concert, is_sold_out);
            }
        }
        // Concerts that can't be told of must not keep the others waiting.
        if self.unchecked.len() < CHECKED_AT_ONCE
            && let Some(before) = self.uncounted
        {
            let time = shared.clock.now();
            let counted = shared.store.count_sold(before, CHECKED_AT_ONCE).await?;
            self.uncounted = counted.last().map(|(concert, _)| *concert);
            self.unchecked.extend(counted.into_iter().map(|(concert, sold)| Count { concert, sold, time }));
        }
        for _ in 0..self.unchecked.len() {
            // It stays until it is told of: a round may be cut off.
            let Some(count) = self.unchecked.front().copied() else { break };
            let is_loaded = loaded.iter().any(|(known, _)| *known == count.concert);
            let is_done = is_loaded || self.check(shared, count).await;
            self.unchecked.pop_front();
            if !is_done {
                self.unchecked.push_back(count);
            }
        }
        Ok(())
    }

    /// Tells what is left of a concert that nobody has asked for. Whether nothing is left to tell.
    async fn check(&self, shared: &Shared, count: Count) -> bool {
        let Count { concert, sold, time } = count;
        match shared.catalog.find(concert).await {
            Ok(sale) if sale.close_time <= time => true,
            Ok(sale) => tell(shared, concert, sale.layout.places().saturating_sub(sold), time).await,
            Err(error) => !matches!(error, Error::ConcertUnavailable(_)),
        }
    }
}

/// Tells concert how many places are not sold. Whether it heard it.
async fn tell(shared: &Shared, concert: ConcertId, unsold: u32, count_time: DateTime<Utc>) -> bool {
    let told = shared.neighbours.report_availability(concert, unsold, count_time).await;
    if let Err(error) = &told {
        tracing::debug!(concert.id = %concert, error = chain(error), "concert was not told what is left");
    }
    told.is_ok()
}

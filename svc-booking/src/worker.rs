//! What the service does by itself: gives expired holds back, goes on with bookings that nobody works on, makes refunds,
//! tells concert what is sold out.

use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use mesh::{
    context::Context,
    id::{BookingId, ConcertId, Id},
    shutdown::Shutdown,
};
use uuid::Uuid;

use crate::{
    Shared,
    checkout::Attempt,
    domain::booking::{Booking, State},
    error::Error,
};

const PERIOD: Duration = Duration::from_secs(1);
/// Bookings younger than this are looked at every second: a lease runs out after five.
const YOUNG: TimeDelta = TimeDelta::seconds(20);
/// How often, in periods, older ones are looked at.
const FULL_SWEEP_EVERY: u32 = 30;
/// How far two clocks may differ: a booking may be inserted with an id this old.
const CLOCK_SKEW: TimeDelta = TimeDelta::minutes(10);

/// Starts the work; it ends at shutdown.
pub(crate) fn start(shared: &Shared, shutdown: &Shutdown) {
    tokio::spawn(repeat(shutdown.clone(), {
        let shared = shared.clone();
        move || release_expired(shared.clone())
    }));
    tokio::spawn(repeat(shutdown.clone(), {
        let shared = shared.clone();
        move || make_refunds(shared.clone())
    }));
    let (recovery, reports) = (shared.clone(), shared.clone());
    tokio::spawn(recover(recovery, shutdown.clone()));
    tokio::spawn(report(reports, shutdown.clone()));
}

/// Does something every second until shutdown, each time in a trace of its own.
async fn repeat<F: Future<Output = Result<(), Error>>>(shutdown: Shutdown, act: impl Fn() -> F) {
    while !shutdown.has_begun() {
        if let Err(error) = Context::root().scope(act()).await {
            tracing::warn!(%error, "a worker has to wait");
        }
        pause(&shutdown).await;
    }
}

async fn pause(shutdown: &Shutdown) {
    tokio::select! { () = tokio::time::sleep(PERIOD) => {}, () = shutdown.begun() => {} }
}

async fn release_expired(shared: Shared) -> Result<(), Error> {
    let released = shared.holds.release_expired(shared.clock.now()).await;
    if released > 0 {
        tracing::debug!(holds = released, "expired holds were released");
    }
    Ok(())
}

async fn make_refunds(shared: Shared) -> Result<(), Error> {
    shared.make_refunds(None).await.map(|_| ())
}

/// Goes on with bookings whose lease has run out.
async fn recover(shared: Shared, shutdown: Shutdown) {
    let mut recovery = Recovery::default();
    while !shutdown.has_begun() {
        if let Err(error) = Context::root().scope(recovery.sweep(&shared)).await {
            tracing::warn!(%error, "bookings that nobody works on can't be looked for");
        }
        pause(&shutdown).await;
    }
}

/// Which bookings to look at. The state is in no index (see the migration), so ids are: they sort by time.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    sweeps: u32,
    /// No booking before this is PAYING.
    all_settled_before: Uuid,
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
        let mut abandoned = std::mem::take(&mut self.waiting);
        let lost = paying.into_iter().filter(|booking| booking.lease.until < now);
        abandoned.extend(lost.map(|booking| (booking.id, booking)));
        for (id, booking) in abandoned {
            // One that can't be gone on with must not keep the others from it.
            if let Err(error) = self.resume(shared, booking.clone()).await {
                tracing::warn!(booking.id = %id, %error, "a booking has to wait");
                self.waiting.entry(id).or_insert(booking);
            }
        }
        if is_full {
            self.all_settled_before = first_id_at(now - CLOCK_SKEW).min(oldest_paying);
        }
        self.sweeps += 1;
        Ok(())
    }

    async fn resume(&mut self, shared: &Shared, booking: Booking) -> Result<(), Error> {
        // One that waited here may have been settled by its own task or another replica: then there is no lease to take.
        let Some(booking) = shared.store.take_over(booking, shared.clock.now()).await? else { return Ok(()) };
        tracing::info!(booking.id = %booking.id, lease.epoch = booking.lease.epoch, "going on with a booking");
        let booking = shared.run(booking, Attempt::Again).await?;
        if booking.state == State::Paying {
            self.waiting.insert(booking.id, booking);
        } else {
            tracing::info!(booking.id = %booking.id, booking.state = ?booking.state, "a booking was settled");
        }
        Ok(())
    }
}

/// The smallest UUIDv7 of a moment.
fn first_id_at(time: DateTime<Utc>) -> Uuid {
    // RFC 9562: the first 48 bits are milliseconds of Unix time.
    Uuid::from_u128((time.timestamp_millis().max(0) as u128) << 80)
}

/// Tells concert when a concert is sold out, and when it no longer is.
async fn report(shared: Shared, shutdown: Shutdown) {
    let mut told: HashMap<ConcertId, bool> = HashMap::new();
    while !shutdown.has_begun() {
        for (concert, unsold) in shared.holds.unsold().await {
            let is_sold_out = unsold == 0;
            if told.get(&concert) == Some(&is_sold_out) {
                continue;
            }
            let count_time = shared.clock.now();
            match shared.neighbours.report_availability(concert, unsold, count_time).await {
                Ok(()) => {
                    told.insert(concert, is_sold_out);
                }
                Err(error) => {
                    tracing::debug!(concert.id = %concert, %error, "concert was not told what is left")
                }
            }
        }
        pause(&shutdown).await;
    }
}

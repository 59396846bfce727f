//! What the service knows of seats: loaded from the database when first asked for, and shown as of a moment ago.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mesh::{
    context::Context,
    failure::chain,
    id::{ConcertId, UserId},
};
use moka::future::Cache;
use tokio::{sync::OwnedMutexGuard, time::Instant};

use crate::{
    Shared,
    domain::{booking::Booking, layout::Ordinal, sale::Sale},
    error::Error,
    holds::{Changes, Granted, Revision, SeatState, Snapshot, Wish},
};

/// How old a view of the seats may be: it is made at most five times a second.
const VIEW_AGE: Duration = Duration::from_millis(200);
/// How long the lock of a concert is kept that nobody takes: longer than anybody holds it.
const LOCK_AGE: Duration = Duration::from_secs(600);
/// How often seats are read again because they changed meanwhile. In a busy sale they always do: then what was missed is
/// found by the audit, and nothing is sold twice.
const LOADS_UNDISTURBED: usize = 3;
/// Views kept; when there are more, it starts anew.
const VIEWS: usize = 1024;

/// All seats of a concert, as of a moment ago.
#[derive(Debug)]
pub(crate) struct View {
    /// As of which revision.
    pub(crate) revision: String,
    /// The sections in layout order: available places, and a letter a seat (none for a standing area).
    pub(crate) sections: Vec<(u32, String)>,
}

/// The views made lately.
#[derive(Debug, Default)]
pub(crate) struct Views {
    made: Mutex<HashMap<ConcertId, (Instant, Arc<View>)>>,
    making: Locks,
    /// Many who ask for a concert's seats at once are one load.
    loading: Locks,
}

/// A lock for each concert.
#[derive(Debug)]
struct Locks(Cache<ConcertId, Arc<tokio::sync::Mutex<()>>>);

impl Default for Locks {
    fn default() -> Self {
        Self(Cache::builder().time_to_idle(LOCK_AGE).build())
    }
}

impl Locks {
    async fn lock(&self, concert: ConcertId) -> OwnedMutexGuard<()> {
        self.0.get_with(concert, async { Arc::default() }).await.lock_owned().await
    }
}

impl Shared {
    /// A concert's seats, loaded if they were not.
    pub(crate) async fn snapshot(&self, sale: &Sale) -> Result<Snapshot, Error> {
        loop {
            if let Some(snapshot) = self.holds.snapshot(sale.concert).await? {
                return Ok(snapshot);
            }
            Box::pin(self.load(sale)).await?;
        }
    }

    /// What changed of a concert's seats since a point, after loading them if they were not.
    pub(crate) async fn changes_since(&self, sale: &Sale, since: Revision) -> Result<Changes, Error> {
        loop {
            if let Some(changes) = self.holds.changes_since(sale.concert, since).await? {
                return Ok(changes);
            }
            Box::pin(self.load(sale)).await?;
        }
    }

    /// Keeps the seats of a wish, after loading the concert's if they were not.
    pub(crate) async fn grant(&self, sale: &Sale, wish: Wish) -> Result<Granted, Error> {
        loop {
            match self.holds.hold(wish.clone()).await? {
                // Boxed, as it is rare, and each hold would be as large.
                Granted::NotLoaded => Box::pin(self.load(sale)).await?,
                granted => return Ok(granted),
            }
        }
    }

    /// Makes a concert's sold seats known to `holds`.
    pub(crate) async fn load(&self, sale: &Sale) -> Result<(), Error> {
        let _one_at_a_time = self.views.loading.lock(sale.concert).await;
        let mut turns = 0..LOADS_UNDISTURBED;
        while !self.holds.is_loaded(sale.concert).await? {
            let begun_at = self.holds.begin_load(sale.concert).await?;
            let begun_at = turns.next().map(|_| begun_at);
            let sold = self.store.find_sold(sale.concert, sale.layout.places()).await?;
            let count = sold.seats.len();
            if self.holds.load(sale.concert, sold, begun_at).await? {
                tracing::info!(concert.id = %sale.concert, seats.sold = count, "seats loaded");
            }
        }
        Ok(())
    }

    /// Notes that a booking's seats were given back.
    pub(crate) async fn give_back(&self, booking: &Booking) {
        let mut free = booking.ordinals();
        // Whoever is late with this may find them sold again.
        match self.store.find_sold_of(booking.concert, &free).await {
            Ok(sold) => free.retain(|seat| !sold.contains(seat)),
            Err(error) => {
                tracing::warn!(concert.id = %booking.concert, error = chain(&error), "seats are shown as free unchecked")
            }
        }
        if let Err(error) = self.holds.free(booking.concert, booking.fan, &free).await {
            tracing::warn!(booking.id = %booking.id, error = chain(&error), "free seats are shown as sold until they are audited");
        }
        // Only of a loaded concert is it told whether it is sold out. Nobody waits for that.
        let (shared, concert) = (self.clone(), booking.concert);
        tokio::spawn(Context::current().without_deadline().scope(async move {
            if let Ok(sale) = shared.catalog.find(concert).await
                && let Err(error) = shared.load(&sale).await
            {
                tracing::warn!(concert.id = %concert, error = chain(&error), "seats can't be loaded");
            }
        }));
    }

    /// Marks seats as sold that were thought to be free. Whose they are is counted when the concert is loaded anew.
    pub(crate) async fn forget_stale_seats(
        &self,
        concert: ConcertId,
        seats: &[Ordinal],
    ) -> Result<(), Error> {
        // Whoever had them may have given them back meanwhile.
        let sold = self.store.find_sold_of(concert, seats).await?;
        Ok(self.holds.settle(concert, UserId::new(), &sold, None).await?)
    }

    /// A concert's seats as of a moment ago.
    pub(crate) async fn view(&self, sale: &Sale) -> Result<Arc<View>, Error> {
        if let Some((made, view)) = self.views.lock().get(&sale.concert)
            && made.elapsed() < VIEW_AGE
        {
            return Ok(Arc::clone(view));
        }
        // Many who find it too old at once make one new view.
        let _one_at_a_time = self.views.making.lock(sale.concert).await;
        if let Some((made, view)) = self.views.lock().get(&sale.concert)
            && made.elapsed() < VIEW_AGE
        {
            return Ok(Arc::clone(view));
        }
        let snapshot = self.snapshot(sale).await?;
        let view = Arc::new(View::of(sale, &snapshot));
        let mut made = self.views.lock();
        if made.len() >= VIEWS {
            made.clear();
        }
        made.insert(sale.concert, (Instant::now(), Arc::clone(&view)));
        Ok(view)
    }
}

impl Views {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ConcertId, (Instant, Arc<View>)>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl View {
    fn of(sale: &Sale, snapshot: &Snapshot) -> Self {
        let sections = sale.layout.sections.iter().map(|section| {
            let range = section.range();
            let states = &snapshot.states[range.start as usize..range.end as usize];
            let available = states.iter().filter(|state| **state == SeatState::Available).count() as u32;
            let letters = match section.arrangement {
                crate::domain::layout::Arrangement::Seated { .. } => {
                    states.iter().map(|state| *state as u8 as char).collect()
                }
                crate::domain::layout::Arrangement::Standing { .. } => String::new(),
            };
            (available, letters)
        });
        Self { revision: snapshot.revision.to_string(), sections: sections.collect() }
    }
}

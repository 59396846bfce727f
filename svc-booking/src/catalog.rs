//! What may be sold, kept for a moment. If concert is down, the last known copy serves on: a sale that has begun goes
//! on without it.

use std::{sync::Arc, time::Duration};

use mesh::id::ConcertId;
use moka::future::Cache;

use crate::{
    clients::{ConcertRefusal, Neighbours},
    domain::sale::Sale,
    error::Error,
};

/// How long a copy is fresh.
const FRESH: Duration = Duration::from_secs(2);
/// How long a copy may serve while concert is down.
const STALE: Duration = Duration::from_secs(24 * 3600);
const CONCERTS: u64 = 10_000;

/// The sales.
pub(crate) struct Catalog {
    neighbours: Neighbours,
    fresh: Cache<ConcertId, Arc<Sale>>,
    last_known: Cache<ConcertId, Arc<Sale>>,
    /// Concerts that were told that they are being booked.
    begun: Cache<ConcertId, ()>,
}

impl Catalog {
    pub(crate) fn new(neighbours: Neighbours) -> Self {
        Self {
            neighbours,
            fresh: Cache::builder().max_capacity(CONCERTS).time_to_live(FRESH).build(),
            last_known: Cache::builder().max_capacity(CONCERTS).time_to_live(STALE).build(),
            begun: Cache::new(CONCERTS),
        }
    }

    /// What may be sold of a concert. Many who ask at once are one question.
    pub(crate) async fn find(&self, concert: ConcertId) -> Result<Arc<Sale>, Error> {
        if let Some(sale) = self.fresh.get(&concert).await {
            return Ok(sale);
        }
        let refusal = match self.fresh.try_get_with(concert, self.ask(concert)).await {
            Ok(sale) => return Ok(sale),
            Err(refusal) => ConcertRefusal::clone(&refusal),
        };
        if matches!(refusal, ConcertRefusal::Unavailable(_))
            && let Some(sale) = self.last_known.get(&concert).await
        {
            return Ok(sale);
        }
        Err(refusal.into())
    }

    async fn ask(&self, concert: ConcertId) -> Result<Arc<Sale>, ConcertRefusal> {
        let mut sale = self.neighbours.find_sale(concert).await?;
        // A layout never changes: one copy of it is enough.
        if let Some(known) = self.last_known.get(&concert).await
            && known.layout == sale.layout
        {
            sale.layout = Arc::clone(&known.layout);
        }
        let sale = Arc::new(sale);
        self.last_known.insert(concert, Arc::clone(&sale)).await;
        Ok(sale)
    }

    /// Makes sure that concert knows that a concert is being booked.
    pub(crate) async fn begin_sale(&self, concert: ConcertId) -> Result<(), Error> {
        if self.begun.contains_key(&concert) {
            return Ok(());
        }
        self.neighbours.begin_sale(concert).await?;
        self.begun.insert(concert, ()).await;
        Ok(())
    }
}

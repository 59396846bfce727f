//! Compares what is shown of seats with what the database says. They part when a process dies between its commit and
//! telling `holds`, or when Redis can't be told: nothing is sold twice then, but a free seat could stay shown as sold.

use std::collections::{HashMap, HashSet};

use mesh::id::ConcertId;
use rand::seq::SliceRandom;

use crate::{Shared, domain::layout::Ordinal, error::Error, holds::SeatState};

/// Seats that differed in the last round, by concert.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    suspects: HashMap<ConcertId, HashSet<Ordinal>>,
}

impl Audit {
    /// Has the seats of each concert loaded anew of which one has differed for two rounds. Once means nothing: what is
    /// under way is in one of both first.
    pub(crate) async fn sweep(&mut self, shared: &Shared) -> Result<(), Error> {
        let mut concerts: Vec<ConcertId> =
            shared.holds.unsold().await?.into_iter().map(|(concert, _)| concert).collect();
        self.suspects.retain(|concert, _| concerts.contains(concert));
        // A round that takes too long is broken off: the next one begins with others.
        concerts.shuffle(&mut rand::rng());
        for concert in concerts {
            let differing = find_differing(shared, concert).await?;
            let before = self.suspects.remove(&concert);
            if before.is_some_and(|before| !before.is_disjoint(&differing)) {
                let seats = differing.len();
                tracing::warn!(concert.id = %concert, seats, "seats are not as the database says: loading them anew");
                shared.holds.unload(concert).await?;
            } else if !differing.is_empty() {
                self.suspects.insert(concert, differing);
            }
        }
        Ok(())
    }
}

/// Seats that are sold and shown as free, or free and shown as sold.
async fn find_differing(shared: &Shared, concert: ConcertId) -> Result<HashSet<Ordinal>, Error> {
    let Some(snapshot) = shared.holds.snapshot(concert).await? else { return Ok(HashSet::new()) };
    let sold = shared.store.find_sold(concert, snapshot.states.len() as u32).await?;
    let sold: HashSet<Ordinal> = sold.seats.into_iter().collect();
    let differs = |(seat, state): &(u32, SeatState)| match state {
        SeatState::Available => sold.contains(seat),
        SeatState::Sold => !sold.contains(seat),
        // Those of a booking under way are sold already.
        SeatState::Held => false,
    };
    Ok((0..).zip(snapshot.states).filter(differs).map(|(seat, _)| seat).collect())
}

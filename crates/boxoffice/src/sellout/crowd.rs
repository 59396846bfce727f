//! The crowd: signed up, logged in and with money before the clock starts; then all at once.

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::ProgressBar;
use mesh::clock::Clock;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;
use tokio::{sync::mpsc, time::Instant};
use uuid::Uuid;

use super::{
    Options, bar,
    fan::{Fan, Sale, Whims},
    tally::{Event, Tally},
};
use crate::{
    api::{Api, Login},
    demo::{self, Organizer, Plan},
};

const PRICE: i64 = 50_000;
/// What a fan with money has: enough for all seats one may take.
const ALLOWANCE: i64 = 10 * PRICE;
const SEATS_PER_ROW: u32 = 20;
/// As many as a section may have: five sections take 100,000 seats, which is all that a venue may have.
const ROWS_PER_SECTION: u32 = 1_000;
const SEATS_PER_FAN: u32 = 4;
/// Fans made ready at once: a password takes a core some 70 ms.
const GREETERS: usize = 8;

/// The fans, and what they want.
pub(super) struct Crowd {
    pub(super) concert_id: String,
    pub(super) organizer: Organizer,
    /// A fan who wants nothing of the concert, and is free to be watched elsewhere.
    pub(super) bystander: Login,
    fans: Vec<Fan>,
}

impl Crowd {
    /// Makes a concert and its fans.
    pub(super) async fn gather(api: &Api, options: &Options, clock: &Clock) -> anyhow::Result<Self> {
        let run = Uuid::now_v7().simple().to_string();
        let password = format!("sell-out-{run}");
        let organizer_email = format!("organizer-{run}@sellout.example");
        demo::wait_until_ready(api).await?;
        api.sign_up(&organizer_email, &password, "Organizer").await?;
        let login = api.log_in(&organizer_email, &password).await?;
        let organizer = Organizer::make(api, &login, "Sell-out").await?;
        let concert_id = organizer.publish(api, plan(options.seats), clock.now()).await?;
        let bystander = format!("bystander-{run}@sellout.example");
        api.sign_up(&bystander, &password, "Bystander").await?;
        let bystander = api.log_in(&bystander, &password).await?;

        let progress = bar("signing up", u64::from(options.fans));
        let mut fans: Vec<(u32, Fan)> = stream::iter(0..options.fans)
            .map(|number| {
                let (run, password, progress) = (&run, &password, &progress);
                async move {
                    let email = format!("fan-{number}-{run}@sellout.example");
                    api.sign_up(&email, password, &format!("Fan {number}")).await?;
                    let login = api.log_in(&email, password).await?;
                    let whims = whims(options.seed, number);
                    if !whims.has_empty_wallet {
                        api.top_up(&login.access_token, ALLOWANCE).await?;
                    }
                    progress.inc(1);
                    anyhow::Ok((number, Fan { token: login.access_token, allowance: ALLOWANCE, whims }))
                }
            })
            .buffer_unordered(GREETERS)
            .try_collect()
            .await?;
        progress.finish_and_clear();
        fans.sort_by_key(|(number, _)| *number);
        Ok(Self { concert_id, organizer, bystander, fans: fans.into_iter().map(|(_, fan)| fan).collect() })
    }

    /// Lets everyone in at once, until all is sold or time is up.
    pub(super) async fn rush(
        &self,
        api: &Api,
        options: &Options,
        progress: &ProgressBar,
        start: Instant,
        limit: Instant,
    ) -> anyhow::Result<Tally> {
        let (events, mut happened) = mpsc::unbounded_channel();
        let sale = Arc::new(Sale::new(api.clone(), &self.concert_id, options.seats, start, limit, events));
        let fans: Vec<_> =
            self.fans.iter().cloned().map(|fan| tokio::spawn(fan.buy(Arc::clone(&sale)))).collect();
        drop(sale);
        let mut tally = Tally::new(start);
        while let Some(event) = happened.recv().await {
            if let Event::Booked { seats, .. } = &event {
                progress.inc(*seats as u64);
            }
            tally.note(event);
        }
        for fan in fans {
            fan.await?;
        }
        Ok(tally)
    }
}

/// What a fan feels like: follows from the seed and the fan's number.
fn whims(seed: u64, number: u32) -> Whims {
    let mut dice = StdRng::seed_from_u64(seed ^ u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    Whims {
        quantity: dice.random_range(1..=SEATS_PER_FAN),
        double_clicks: dice.random_bool(0.10),
        abandons: dice.random_bool(0.20),
        has_empty_wallet: dice.random_bool(0.05),
        picks_seats: dice.random_bool(0.30),
        dice: dice.random(),
    }
}

/// A concert of so many places: full rows of seats, and what is left over standing.
fn plan(seats: u32) -> Plan<'static> {
    let mut rows = seats / SEATS_PER_ROW;
    let mut sections = Vec::new();
    for section_id in ["A", "B", "C", "D", "E"] {
        let in_section = rows.min(ROWS_PER_SECTION);
        rows -= in_section;
        if in_section > 0 {
            let seated = json!({"rows": in_section, "seatsPerRow": SEATS_PER_ROW});
            sections.push((json!({"sectionId": section_id, "seated": seated}), PRICE));
        }
    }
    let rest = seats % SEATS_PER_ROW;
    if rest > 0 {
        sections.push((json!({"sectionId": "FLOOR", "standing": {"capacity": rest}}), PRICE));
    }
    Plan { title: "Sold Out", genre: "", sections, max_seats_per_fan: SEATS_PER_FAN }
}

//! The sell-out: fans by the hundred want the seats of one concert, all at once. It drives REST as a frontend would,
//! prints what came of it, and sweeps the invariants.

mod crowd;
mod fan;
mod tally;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use mesh::clock::Clock;
use tokio::time::Instant;

use self::{crowd::Crowd, tally::Tally};
use crate::{
    api::Api,
    embedded::{self, Embedded},
    sweep,
};

/// How long holds last in a throwaway instance: abandoned seats come back within the sale.
const SHORT_HOLD: Duration = Duration::from_secs(3);
/// How long a hold may outlive its end (I7).
const HOLD_GRACE: Duration = Duration::from_secs(5);
/// How long a sweep may wait for holds to end; those of a real installation last longer.
const HOLD_PATIENCE: Duration = Duration::from_secs(30);

/// What is sold out, where, and by whom.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How many fans want seats.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub fans: u32,
    /// How many seats there are.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub seats: u32,
    /// Sell a new concert out on this running Boxoffice (its REST address, such as http://127.0.0.1:8080); default: on a
    /// throwaway one of its own.
    #[arg(long)]
    pub url: Option<String>,
    /// With --url: where the databases of the running one are, for the sweep.
    #[command(flatten)]
    pub databases: sweep::Databases,
    /// What the fans' whims follow from: the same number, the same whims.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How long the sale may take, in seconds.
    #[arg(long, default_value_t = 120)]
    pub time_limit: u64,
}

/// Sells a concert out and sweeps. Whether all invariants hold and the sale sold out.
///
/// # Errors
/// If the crowd can't be made ready, or the databases can't be swept.
pub async fn run(options: Options, clock: &Clock) -> anyhow::Result<bool> {
    let throwaway = match options.url {
        Some(_) => None,
        None => Some(Throwaway::start().await?),
    };
    let (url, databases) = match (&options.url, &throwaway) {
        (Some(url), _) => (url.clone(), options.databases.clone()),
        (None, Some(throwaway)) => (throwaway.embedded.url(), throwaway.databases()),
        (None, None) => bail!("neither a URL nor a throwaway instance"),
    };
    println!("Selling {} seats to {} fans at {url}", options.seats, options.fans);
    let api = Api::new(url)?;
    let outcome = sell_out(&api, &options, &databases, clock).await;
    if let Some(throwaway) = throwaway {
        throwaway.embedded.stop().await?;
    }
    outcome
}

async fn sell_out(
    api: &Api,
    options: &Options,
    databases: &sweep::Databases,
    clock: &Clock,
) -> anyhow::Result<bool> {
    let crowd = Crowd::gather(api, options, clock).await?;

    let progress = bar("selling", u64::from(options.seats));
    let start = Instant::now();
    let limit = start + Duration::from_secs(options.time_limit);
    let tally = crowd.rush(api, options, &progress, start, limit).await?;
    progress.finish_and_clear();
    print!("{tally}");

    let held_too_long = watch_holds_end(api, &crowd.concert_id, &tally).await?;
    let report = sweep::sweep(databases, &tally.witness(held_too_long)).await.context(
        "the sale went through, but the sweep needs the databases: give --data-dir, or both database URLs",
    )?;
    println!("Invariants:");
    print!("{report}");
    let is_sold_out = tally.seats_sold() == options.seats as usize;
    if !is_sold_out {
        println!("Not sold out: {} of {} seats within the time limit.", tally.seats_sold(), options.seats);
    }
    Ok(report.is_clean() && is_sold_out && tally.errors() == 0)
}

/// Waits until the last hold must have ended; the seats that are still held then. None: that takes too long to watch.
async fn watch_holds_end(api: &Api, concert_id: &str, tally: &Tally) -> anyhow::Result<Option<usize>> {
    let Some(last_end) = tally.last_hold_end() else { return Ok(Some(0)) };
    let deadline = last_end + HOLD_GRACE;
    if deadline.saturating_duration_since(Instant::now()) > HOLD_PATIENCE {
        return Ok(None);
    }
    let progress = spinner("waiting for the last holds to end");
    loop {
        let seats = api
            .get(&format!("/v1/concerts/{concert_id}/seats"), None)
            .await?
            .expect_success("reading seats")?;
        let sections = seats["sections"].as_array().context("no sections")?;
        let letters = sections.iter().filter_map(|section| section["seatStates"].as_str());
        let held: usize = letters.map(|letters| letters.matches('H').count()).sum();
        if held == 0 || Instant::now() > deadline {
            progress.finish_and_clear();
            return Ok(Some(held));
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

fn bar(what: &'static str, length: u64) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{msg:>12} [{bar:40}] {pos}/{len} {elapsed}").expect("a valid template");
    ProgressBar::new(length).with_style(style).with_message(what)
}

fn spinner(what: &'static str) -> ProgressBar {
    let progress = ProgressBar::new_spinner().with_message(what);
    progress.enable_steady_tick(Duration::from_millis(100));
    progress
}

/// An instance for one sale.
struct Throwaway {
    embedded: Embedded,
    directory: tempfile::TempDir,
}

impl Throwaway {
    async fn start() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let options =
            embedded::Options { hold_ttl: SHORT_HOLD, ..embedded::Options::throwaway(directory.path()) };
        Ok(Self { embedded: Embedded::start(options).await?, directory })
    }

    fn databases(&self) -> sweep::Databases {
        let data_dir: PathBuf = self.directory.path().into();
        sweep::Databases { data_dir, booking_database_url: None, payment_database_url: None }
    }
}

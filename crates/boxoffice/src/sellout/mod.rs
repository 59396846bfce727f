//! The sell-out: fans by the hundred want the seats of one concert, all at once. It drives REST as a frontend would,
//! prints what came of it, and sweeps the invariants.

mod crowd;
mod fan;
mod instance;
mod left_hold;
mod tally;

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use chrono::TimeDelta;
use indicatif::{ProgressBar, ProgressStyle};
use mesh::{clock::Clock, database::DatabaseUrl};
use tokio::time::Instant;

use self::{
    crowd::Crowd,
    instance::Throwaway,
    left_hold::{LeftHold, places_held},
    tally::Tally,
};
use crate::{
    api::Api,
    sweep::{self, HoldsSeen, Report},
};

/// How long a hold may outlive its end (I7).
const HOLD_GRACE: Duration = Duration::from_secs(5);
/// How long holds are waited for if nobody says to wait longer.
const HOLD_PATIENCE: Duration = Duration::from_secs(60);
/// Holds that are made to be watched, beside those of the rush: one is given back, one is left behind.
const WATCHED_APART: usize = 2;

/// What is sold out, where, and by whom.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How many fans want seats.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub fans: u32,
    /// How many seats there are.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub seats: u32,
    /// Sell a new concert out on this running Boxoffice (its REST address, such as http://127.0.0.1:8080; separated by
    /// commas, if it has several gateways: then a connection that breaks is no failure, as the next one is asked by the
    /// same key); default: on a throwaway one of its own.
    #[arg(long, value_delimiter = ',')]
    pub url: Vec<String>,
    /// With --url: the data directory of the Boxoffice that runs there, to sweep its databases after the sale.
    #[arg(long, default_value = "data", requires = "url")]
    pub data_dir: PathBuf,
    /// With --url: the database of the booking service there, if it is not in a data directory.
    #[arg(long, env, hide_env_values = true, requires = "payment_database_url")]
    pub booking_database_url: Option<DatabaseUrl>,
    /// With --url: the database of the payment service there, if it is not in a data directory.
    #[arg(long, env, hide_env_values = true, requires = "booking_database_url")]
    pub payment_database_url: Option<DatabaseUrl>,
    /// With --url: wait until the last hold has ended, however long holds last there; default: wait a minute at the most,
    /// and say that I7 was not watched if that is too short.
    #[arg(long)]
    pub wait_for_holds: bool,
    /// What the fans' whims follow from: the same number, the same whims.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How long the sale may take, in seconds.
    #[arg(long, default_value_t = 120)]
    pub time_limit: u64,
}

/// Sells a concert out and sweeps. Whether the sale sold out and nothing was found that should not be; what could not be
/// watched is said in the verdict, and does not count against it.
///
/// # Errors
/// If there is no Boxoffice, the crowd can't be made ready, or the databases can't be swept.
pub async fn run(options: Options, clock: &Clock) -> anyhow::Result<bool> {
    match options.url.as_slice() {
        urls @ [_, ..] => {
            let databases = sweep::Databases {
                data_dir: options.data_dir.clone(),
                booking_database_url: options.booking_database_url.clone(),
                payment_database_url: options.payment_database_url.clone(),
            };
            databases.check().await?;
            let api = instance::reach(urls).await?;
            instance::check_databases(&api, &databases).await?;
            sell_out(&api, &options, &databases, clock).await
        }
        [] => {
            let throwaway = Throwaway::start().await?;
            let api = Api::new(throwaway.embedded.url())?;
            let outcome = sell_out(&api, &options, &throwaway.databases(), clock).await;
            throwaway.embedded.stop().await?;
            outcome
        }
    }
}

async fn sell_out(
    api: &Api,
    options: &Options,
    databases: &sweep::Databases,
    clock: &Clock,
) -> anyhow::Result<bool> {
    println!("Selling {} seats to {} fans at {}", options.seats, options.fans, api.bases().join(", "));
    let crowd = Crowd::gather(api, options, clock).await?;
    let left_hold = LeftHold::leave(api, &crowd.organizer, &crowd.bystander, clock).await?;

    let progress = bar("selling", u64::from(options.seats));
    let start = Instant::now();
    let limit = start + Duration::from_secs(options.time_limit);
    let tally = crowd.rush(api, options, &progress, start, limit).await?;
    let is_out_of_time = Instant::now() >= limit;
    progress.finish_and_clear();
    print!("{tally}");

    let holds = watch_holds_end(api, options, &crowd, &tally, &left_hold, clock).await?;
    let report = sweep::sweep(databases, &tally.witness(holds))
        .await
        .context("the sale went through, and can't be swept")?;
    println!("Invariants:");
    print!("{report}");
    if let Err(error) = left_hold.clear_away(api, &crowd.organizer).await {
        println!("The concert \"{}\" stays on sale: {error:#}", left_hold::TITLE);
    }
    let verdict = Verdict::of(&report, &tally, options.seats as usize, is_out_of_time);
    println!("{}", verdict.text());
    Ok(!matches!(verdict, Verdict::Failed(_)))
}

/// Waits until no place is held any more, or until every hold must have ended.
async fn watch_holds_end(
    api: &Api,
    options: &Options,
    crowd: &Crowd,
    tally: &Tally,
    left_hold: &LeftHold,
    clock: &Clock,
) -> anyhow::Result<HoldsSeen> {
    let mut breaches = left_hold.breaches.clone();
    let begin = Instant::now();
    let last_end = tally.last_hold_end().max(left_hold.end).unwrap_or(begin).max(begin);
    if last_end - begin > HOLD_PATIENCE && !options.wait_for_holds {
        let end = clock.now() + TimeDelta::from_std(last_end - begin)?;
        println!(
            "I7 is not watched: holds live until {}; pass --wait-for-holds to wait",
            end.format("%H:%M:%S UTC")
        );
        return Ok(HoldsSeen { watched: None, breaches });
    }
    let deadline = last_end + HOLD_GRACE;
    let progress = bar("waiting for the last holds to end, seconds", (deadline - begin).as_secs());
    loop {
        let held =
            places_held(api, &crowd.concert_id, tally.taken()).await? + left_hold.places_held(api).await?;
        if held == 0 {
            break;
        }
        if Instant::now() > deadline {
            breaches.push(format!("{held} places were still held 5 s after the last hold's end"));
            break;
        }
        progress.set_position(begin.elapsed().as_secs());
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    progress.finish_and_clear();
    Ok(HoldsSeen { watched: Some(tally.holds() + WATCHED_APART), breaches })
}

/// What the sale has shown.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    /// Nothing is wrong, but this was not shown.
    Incomplete(Vec<String>),
    /// Why.
    Failed(Vec<String>),
}

impl Verdict {
    fn of(report: &Report, tally: &Tally, seats: usize, is_out_of_time: bool) -> Self {
        let mut wrong: Vec<String> =
            report.broken().into_iter().map(|number| format!("{number} is broken")).collect();
        let mut missing = Vec::new();
        if tally.seats_sold() != seats {
            let sold = format!("{} of {seats} seats were sold", tally.seats_sold());
            if is_out_of_time {
                wrong.push(format!("{sold} within the time limit"));
            } else {
                missing.push(format!("{sold}: the fans wanted no more, more --fans would"));
            }
        }
        if tally.errors() > 0 {
            wrong.push(format!("{} errors", tally.errors()));
        }
        missing.extend(report.not_watched().into_iter().map(|number| format!("{number} was not watched")));
        match (wrong.is_empty(), missing.is_empty()) {
            (true, true) => Self::Passed,
            (true, false) => Self::Incomplete(missing),
            (false, _) => Self::Failed(wrong),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Passed => "PASSED: sold out, and every invariant holds".to_owned(),
            Self::Incomplete(missing) => format!("INCOMPLETE: nothing is broken; {}", missing.join("; ")),
            Self::Failed(wrong) => format!("FAILED: {}", wrong.join("; ")),
        }
    }
}

fn bar(what: &'static str, length: u64) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{msg:>12} [{bar:40}] {pos}/{len} {elapsed}").expect("a valid template");
    ProgressBar::new(length).with_style(style).with_message(what)
}

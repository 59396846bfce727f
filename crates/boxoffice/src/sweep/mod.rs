//! The invariant sweep: what must hold whatever happened, checked against the databases. It only reads.
//!
//! The numbers are those of the quality bar: I1 one live claim a seat; I3 money adds up; I4 what was acknowledged is
//! there; I6 numbers are unique; I7 holds are given back in time. What was acknowledged, and what became of holds, the
//! sell-out sees; the sweep alone reports I4 and I7 as not watched.

mod books;
#[cfg(test)]
mod tests;

use std::{fmt, path::PathBuf, time::Duration};

use anyhow::{Context, ensure};
use mesh::{
    database::{Database, DatabaseUrl, sql},
    id::{BookingId, Id, UserId},
};
use sea_orm::ConnectionTrait;

use self::books::Books;
use crate::embedded::database_url;

/// Where the databases are.
#[derive(Debug, Clone, clap::Args)]
pub struct Databases {
    /// What to sweep: the directory in which a Boxoffice in one process keeps its data, running or stopped.
    #[arg(long, default_value = "data")]
    pub data_dir: PathBuf,
    /// The database of the booking service, instead of the data directory's.
    #[arg(long, env, hide_env_values = true, requires = "payment_database_url")]
    pub booking_database_url: Option<DatabaseUrl>,
    /// The database of the payment service, instead of the data directory's.
    #[arg(long, env, hide_env_values = true, requires = "booking_database_url")]
    pub payment_database_url: Option<DatabaseUrl>,
}

/// What somebody saw from outside, to be held against the databases.
#[derive(Debug, Clone, Default)]
pub struct Witness {
    /// Bookings that were answered CONFIRMED.
    pub confirmed: Vec<BookingId>,
    /// Bookings that were answered as made, in whatever state.
    pub made: Vec<BookingId>,
    /// What became of holds.
    pub holds: HoldsSeen,
}

/// What somebody saw of holds that ended, or should have.
#[derive(Debug, Clone, Default)]
pub struct HoldsSeen {
    /// How many were watched, to the end of the last. None: nobody watched so long.
    pub watched: Option<usize>,
    /// What was not freed in time.
    pub breaches: Vec<String>,
}

/// What the sweep found.
#[derive(Debug, Clone)]
pub struct Report {
    checks: Vec<Check>,
}

/// An invariant, and where it does not hold.
#[derive(Debug, Clone)]
struct Check {
    number: &'static str,
    promise: &'static str,
    looked_at: Option<usize>,
    breaches: Vec<String>,
}

/// When to look again at what may be under way: a running Boxoffice confirms what it was paid for within this time.
const SECOND_LOOK: Duration = Duration::from_secs(2);
/// Breaches of one invariant that are printed; more are counted.
const SHOWN: usize = 10;

impl Report {
    /// Whether everything holds.
    pub fn is_clean(&self) -> bool {
        self.checks.iter().all(|check| check.breaches.is_empty())
    }

    /// The numbers of the invariants that nobody watched.
    pub fn not_watched(&self) -> Vec<&'static str> {
        self.checks.iter().filter(|check| check.looked_at.is_none()).map(|check| check.number).collect()
    }

    /// The numbers of the invariants that do not hold.
    pub fn broken(&self) -> Vec<&'static str> {
        self.checks.iter().filter(|check| !check.breaches.is_empty()).map(|check| check.number).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Check { number, promise, looked_at, breaches } in &self.checks {
            match looked_at {
                _ if !breaches.is_empty() => {
                    writeln!(formatter, "  {number}  BROKEN {promise}: {} breaches", breaches.len())?
                }
                None => writeln!(formatter, "  {number}  not watched  {promise}")?,
                Some(count) => writeln!(formatter, "  {number}  holds  {promise} ({count})")?,
            }
            for breach in breaches.iter().take(SHOWN) {
                writeln!(formatter, "        {breach}")?;
            }
        }
        Ok(())
    }
}

/// Sweeps and prints what was found. Whether everything holds.
///
/// # Errors
/// If a database can't be read.
pub async fn run(databases: Databases) -> anyhow::Result<bool> {
    let report = sweep(&databases, &Witness::default()).await?;
    print!("{report}");
    Ok(report.is_clean())
}

impl Databases {
    /// Opens those of booking and of payment.
    async fn open(&self) -> anyhow::Result<(Database, Database)> {
        let booking = self.open_one(&self.booking_database_url, "booking").await?;
        Ok((booking, self.open_one(&self.payment_database_url, "payment").await?))
    }

    async fn open_one(&self, given: &Option<DatabaseUrl>, service: &str) -> anyhow::Result<Database> {
        let url = match given {
            Some(url) => url.clone(),
            None => {
                let directory = self.data_dir.display();
                let is_there = self.data_dir.join(format!("{service}.db")).is_file();
                ensure!(
                    is_there,
                    "there is no {service}.db in {directory}: --data-dir must be the data directory of a Boxoffice"
                );
                database_url(&self.data_dir, service)?
            }
        };
        Database::open_to_read(&url).await.with_context(|| format!("the {service} database can't be swept"))
    }

    /// Whether they are those of a Boxoffice where this fan has a wallet.
    ///
    /// # Errors
    /// If the database can't be read.
    pub async fn have_wallet_of(&self, fan: UserId) -> anyhow::Result<bool> {
        let payment = self.open_one(&self.payment_database_url, "payment").await?;
        let find = sql(payment.reader(), "SELECT fan FROM wallet WHERE fan = $1", [fan.uuid().into()]);
        let found = payment.reader().query_one_raw(find).await?;
        payment.close().await;
        Ok(found.is_some())
    }

    /// Whether they can be swept, to be asked before there is much to sweep.
    ///
    /// # Errors
    /// If a database can't be opened.
    pub async fn check(&self) -> anyhow::Result<()> {
        let (booking, payment) = self.open().await?;
        booking.close().await;
        payment.close().await;
        Ok(())
    }
}

/// Sweeps the databases.
///
/// # Errors
/// If a database can't be read.
pub async fn sweep(databases: &Databases, witness: &Witness) -> anyhow::Result<Report> {
    let (booking, payment) = databases.open().await?;
    let books = Books::read(&booking, &payment).await?;
    let mut unmatched = books.unmatched_payments();
    if !unmatched.is_empty() {
        tokio::time::sleep(SECOND_LOOK).await;
        let still = Books::read(&booking, &payment).await?.unmatched_payments();
        unmatched.retain(|breach| still.contains(breach));
    }
    booking.close().await;
    payment.close().await;
    Ok(Report {
        checks: vec![
            books.one_claim_a_seat(),
            books.money_adds_up(unmatched),
            books.acknowledged_is_there(witness),
            books.numbers_are_unique(),
            holds_end_in_time(witness),
        ],
    })
}

fn holds_end_in_time(witness: &Witness) -> Check {
    Check {
        number: "I7",
        promise: "holds are given back at most 5 s after their end",
        looked_at: witness.holds.watched,
        breaches: witness.holds.breaches.clone(),
    }
}

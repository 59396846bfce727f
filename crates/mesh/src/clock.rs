//! The only place that reads the wall clock, so that tests can set it.
//!
//! Leases, ends of sales and of tokens are compared by all replicas of a service, on machines whose clocks may differ by
//! minutes: each takes the time of the database that they share.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, DatabaseBackend, DbErr, Statement};

use crate::{database::Database, failure::chain, shutdown::Shutdown};

/// How often the database is asked for the time.
const PERIOD: Duration = Duration::from_secs(30);
/// The same until it has told it once.
const FIRST_PERIOD: Duration = Duration::from_secs(1);
/// Until an answer comes, time passes: one that took longer says too little.
const ANSWER_LIMIT: TimeDelta = TimeDelta::milliseconds(500);
/// A difference that an operator should know of.
const REMARKABLE: TimeDelta = TimeDelta::seconds(1);

/// Tells the time: the system's, a database's, or one that a test sets.
#[derive(Debug, Clone)]
pub struct Clock(Kind);

#[derive(Debug, Clone)]
enum Kind {
    /// The system's time, and what is to be added to it, in microseconds.
    System(Arc<AtomicI64>),
    Manual(Arc<Mutex<DateTime<Utc>>>),
}

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self::skewed(TimeDelta::zero())
    }

    /// The clock of a system that is ahead by so much, for tests.
    pub fn skewed(by: TimeDelta) -> Self {
        Self(Kind::System(Arc::new(by.num_microseconds().unwrap_or(0).into())))
    }

    /// A clock that stands still until it is moved.
    pub fn manual(start: DateTime<Utc>) -> Self {
        Self(Kind::Manual(Arc::new(Mutex::new(start))))
    }

    /// Now, to the microsecond, as databases keep it.
    #[allow(clippy::disallowed_methods, reason = "this is the one place")]
    pub fn now(&self) -> DateTime<Utc> {
        let now = match &self.0 {
            Kind::System(offset) => Utc::now() + TimeDelta::microseconds(offset.load(Ordering::Relaxed)),
            Kind::Manual(time) => *time.lock().unwrap_or_else(PoisonError::into_inner),
        };
        now.trunc_subsecs(6)
    }

    /// Moves a manual clock.
    ///
    /// # Panics
    /// On the system's clock.
    pub fn advance(&self, by: TimeDelta) {
        let Kind::Manual(time) = &self.0 else { panic!("only a manual clock can be moved") };
        *time.lock().unwrap_or_else(PoisonError::into_inner) += by;
    }

    /// Takes the time of a Postgres server from now on, until shutdown. A SQLite file has none of its own.
    pub async fn follow(&self, database: &Database, shutdown: &Shutdown) {
        let Kind::System(offset) = &self.0 else { return };
        if database.backend() != DatabaseBackend::Postgres {
            return;
        }
        let mut is_set = self.set_by(offset, database).await;
        let (clock, offset) = (self.clone(), Arc::clone(offset));
        let (database, shutdown) = (database.clone(), shutdown.clone());
        tokio::spawn(async move {
            while !shutdown.has_begun() {
                let pause = if is_set { PERIOD } else { FIRST_PERIOD };
                tokio::select! { () = tokio::time::sleep(pause) => {}, () = shutdown.begun() => return }
                is_set |= clock.set_by(&offset, &database).await;
            }
        });
    }

    /// Takes the time of a database. Whether it told it soon enough.
    async fn set_by(&self, offset: &AtomicI64, database: &Database) -> bool {
        let asked = self.now();
        let answer = ask(database).await;
        let took = self.now() - asked;
        match answer {
            Ok(time) if took <= ANSWER_LIMIT => {
                let behind = time - (asked + took / 2);
                // Within what is not known anyway, the clock had better go on steadily.
                if behind.abs() <= took {
                    return true;
                }
                if behind.abs() >= REMARKABLE {
                    let seconds = behind.as_seconds_f64();
                    tracing::warn!(
                        clock.behind = seconds,
                        "this machine's clock differs: taking the database's"
                    );
                }
                offset.fetch_add(behind.num_microseconds().unwrap_or(0), Ordering::Relaxed);
                return true;
            }
            // The next answer may be better; until then the clock goes on as it is.
            Ok(_) => tracing::debug!("the database tells the time too slowly"),
            Err(error) => tracing::debug!(error = chain(&error), "the database doesn't tell the time"),
        }
        false
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

async fn ask(database: &Database) -> Result<DateTime<Utc>, DbErr> {
    let question = Statement::from_string(DatabaseBackend::Postgres, "SELECT clock_timestamp() AS now");
    let none = || DbErr::RecordNotFound("the time".to_owned());
    database.reader().query_one_raw(question).await?.ok_or_else(none)?.try_get("", "now")
}

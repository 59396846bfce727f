//! A connection that a lane keeps from batch to batch.
//!
//! The pool asks a connection twice whether it still works each time it is given back, and hands them out in turn, so each of
//! them has to prepare the statements. A lane has one batch at a time, so one connection is enough, beside the pool: cold
//! work that waits for connections doesn't hold it up. A SQLite file has one writer, which the lane shares with the others.

use std::{
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sea_orm::{
    ConnAcquireErr, ConnectionTrait, DatabaseBackend, DatabaseTransaction, DbErr, ExecResult, QueryResult,
    RuntimeErr, Statement,
};
use sea_query_sqlx::SqlxValues;
use sqlx::{
    AssertSqlSafe, Connection, Executor, PgConnection, Postgres, postgres::PgPool, query::Query, query_with,
};
use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    time::{Instant, timeout},
};

use super::{ACQUIRE_TIMEOUT, Database, IDLE_LIMIT, Pool, is_unavailable, statements};
use crate::{failure::chain, telemetry::span::Span};

/// How long a transaction may take to begin or to be rolled back.
const TURN_LIMIT: Duration = Duration::from_secs(1);
/// How long each of its statements may take: as long as others may keep waiting who come after it.
const STEP_LIMIT: Duration = Duration::from_secs(2);
/// How long a statement may wait for what another transaction has locked. Then Postgres refuses it, and the batch is done job by
/// job: only who wants what is locked has to come again, and a Postgres that works is not taken for one that is silent.
///
/// Longer than Postgres waits before it looks for deadlocks, which it resolves by itself.
const LOCK_LIMIT: Duration = Duration::from_millis(1500);
/// After how long Postgres gives a statement up by itself: before it is taken for silent, so that what it gave up is not
/// committed when nobody waits for it any more.
const STATEMENT_LIMIT: Duration = Duration::from_millis(2500);
/// How long its commit may take, or a statement that commits. Callers who are told that nobody knows are worse off than those
/// who wait a little.
const COMMIT_LIMIT: Duration = Duration::from_secs(3);

/// Where a connection is between transactions, on Postgres and if there is one.
pub(super) type Home = Arc<Mutex<Option<Idle>>>;

/// A connection between two transactions.
#[derive(Debug)]
pub(super) struct Idle {
    pub(super) connection: PgConnection,
    since: Instant,
}

impl Idle {
    fn new(connection: PgConnection) -> Self {
        Self { connection, since: Instant::now() }
    }
}

/// A connection that is kept between transactions.
#[derive(Debug)]
pub struct KeptConnection {
    database: Database,
    home: Home,
}

/// A transaction on a [`KeptConnection`]. Dropped before it [ended](Self::end), it leaves nothing, and costs the connection.
#[derive(Debug)]
pub struct KeptTransaction(Inner);

#[derive(Debug)]
enum Inner {
    Postgres(OnPostgres),
    Sqlite(DatabaseTransaction),
}

#[derive(Debug)]
struct OnPostgres {
    connection: Mutex<PgConnection>,
    /// Whether it took longer than it may: nothing more is asked of it.
    is_silent: AtomicBool,
    /// Where the connection goes when the transaction has ended well. Whoever closes the database waits for it.
    home: OwnedMutexGuard<Option<Idle>>,
}

impl KeptConnection {
    /// Connects when first used.
    pub fn new(database: Database) -> Self {
        let home = Home::default();
        database.kept.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&home));
        Self { database, home }
    }

    /// Which database it is of.
    pub fn backend(&self) -> DatabaseBackend {
        self.database.backend()
    }

    /// Begins a transaction that may write, after the one before has ended. A connection that broke meanwhile is replaced.
    ///
    /// # Errors
    /// If the database can't be reached, or was closed.
    pub async fn begin(&self) -> Result<KeptTransaction, DbErr> {
        let Pool::Postgres(pool) = &self.database.pool else {
            return Ok(KeptTransaction(Inner::Sqlite(self.database.begin().await?)));
        };
        let mut home = self.wait_for_turn(pool).await?;
        let mut idle = home.take().map(|idle| idle.connection);
        if let Some(connection) = &mut idle
            && !is_there(connection, "BEGIN").await
        {
            idle = None;
        }
        let connection = match idle {
            Some(connection) => connection,
            None => {
                let mut connection = connect(pool).await?;
                execute_soon(&mut connection, "BEGIN").await.map_err(exec_error)?;
                connection
            }
        };
        let connection = Mutex::new(connection);
        Ok(KeptTransaction(Inner::Postgres(OnPostgres {
            connection,
            is_silent: AtomicBool::new(false),
            home,
        })))
    }

    /// Runs a statement that is a transaction of its own, and gives its rows: on Postgres in one round trip, where a
    /// transaction has three at least.
    ///
    /// # Errors
    /// Whatever the database answers, with nothing written; or the connection broke or went silent, and all of it may have
    /// been.
    pub async fn commit_alone(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let Pool::Postgres(pool) = &self.database.pool else {
            let transaction = self.begin().await?;
            let rows = transaction.query_all_raw(statement).await;
            return transaction.end(rows).await;
        };
        let mut home = self.wait_for_turn(pool).await?;
        let mut idle = home.take();
        if let Some(Idle { connection, since }) = &mut idle
            && since.elapsed() >= IDLE_LIMIT
            && !is_there(connection, "SELECT 1").await
        {
            idle = None;
        }
        let mut connection = match idle {
            Some(idle) => idle.connection,
            None => connect(pool).await?,
        };
        let mut span = statements::begin(&statement);
        let work = timeout(COMMIT_LIMIT, query(statement).fetch_all(&mut connection));
        let rows = work.await.unwrap_or_else(|_| Err(silence())).map_err(query_error);
        if rows.is_err() {
            span.set_failed();
        }
        drop(span);
        // A statement that Postgres refuses leaves the connection as it was.
        if rows.as_ref().map_or_else(|error| !is_unavailable(error), |_| true) {
            *home = Some(Idle::new(connection));
        }
        Ok(rows?.into_iter().map(Into::into).collect())
    }

    /// Where the connection is, when nobody else has it.
    async fn wait_for_turn(&self, pool: &PgPool) -> Result<OwnedMutexGuard<Option<Idle>>, DbErr> {
        let home = Arc::clone(&self.home).lock_owned().await;
        if pool.is_closed() {
            return Err(DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed));
        }
        Ok(home)
    }
}

/// Whether a connection does what takes no time.
async fn is_there(connection: &mut PgConnection, text: &'static str) -> bool {
    let done = execute_soon(connection, text).await;
    if let Err(error) = &done {
        tracing::info!(error = chain(error), "a lane's connection broke");
    }
    done.is_ok()
}

async fn connect(pool: &PgPool) -> Result<PgConnection, DbErr> {
    let options = pool.connect_options().as_ref().clone();
    let limits = [("lock_timeout", LOCK_LIMIT), ("statement_timeout", STATEMENT_LIMIT)];
    let options = options.options(limits.map(|(name, limit)| (name, limit.as_millis().to_string())));
    let connected = timeout(ACQUIRE_TIMEOUT, PgConnection::connect_with(&options)).await;
    let connected = connected.map_err(|_| DbErr::ConnectionAcquire(ConnAcquireErr::Timeout))?;
    connected.map_err(|error| DbErr::Conn(RuntimeErr::SqlxError(error.into())))
}

/// Executes what takes no time, unless the connection is broken or behind a partition.
async fn execute_soon(connection: &mut PgConnection, text: &'static str) -> Result<(), sqlx::Error> {
    timeout(TURN_LIMIT, connection.execute(text)).await.unwrap_or_else(|_| Err(silence())).map(drop)
}

fn silence() -> sqlx::Error {
    sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())
}

impl OnPostgres {
    /// Waits for a statement, as long as one may take.
    async fn in_time<T>(
        &self,
        mut span: Span,
        step: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        let outcome = self.within(STEP_LIMIT, step).await;
        if outcome.is_err() {
            span.set_failed();
        }
        outcome
    }

    async fn within<T>(
        &self,
        limit: Duration,
        step: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        if self.is_silent.load(Ordering::Relaxed) {
            return Err(silence());
        }
        timeout(limit, step).await.unwrap_or_else(|_| {
            self.is_silent.store(true, Ordering::Relaxed);
            Err(silence())
        })
    }

    async fn commit(mut self) -> Result<(), sqlx::Error> {
        let commit = async { self.connection.lock().await.execute("COMMIT").await };
        self.within(COMMIT_LIMIT, commit).await?;
        *self.home = Some(Idle::new(self.connection.into_inner()));
        Ok(())
    }

    /// If this fails, the connection is dropped, and Postgres rolls back by itself.
    async fn roll_back(mut self) {
        let mut connection = self.connection.into_inner();
        if !self.is_silent.into_inner() && execute_soon(&mut connection, "ROLLBACK").await.is_ok() {
            *self.home = Some(Idle::new(connection));
        }
    }
}

impl KeptTransaction {
    /// Ends it: commits if all went well so far, or else rolls back. What was answered so far, or why it can't be committed.
    ///
    /// # Errors
    /// That of `outcome`, with nothing written; or the connection broke or went silent during the commit, and all of it may
    /// have been.
    pub async fn end<T>(self, outcome: Result<T, DbErr>) -> Result<T, DbErr> {
        match (self.0, outcome) {
            (Inner::Sqlite(transaction), outcome) => {
                let answer = outcome?;
                transaction.commit().await?;
                Ok(answer)
            }
            (Inner::Postgres(on), Ok(answer)) => {
                on.commit().await.map_err(exec_error)?;
                Ok(answer)
            }
            (Inner::Postgres(on), Err(error)) => {
                on.roll_back().await;
                Err(error)
            }
        }
    }
}

#[async_trait::async_trait]
impl ConnectionTrait for KeptTransaction {
    fn get_database_backend(&self) -> DatabaseBackend {
        match &self.0 {
            Inner::Postgres(_) => DatabaseBackend::Postgres,
            Inner::Sqlite(_) => DatabaseBackend::Sqlite,
        }
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        match &self.0 {
            Inner::Postgres(on) => {
                let mut connection = on.connection.lock().await;
                let span = statements::begin(&statement);
                let executed = on.in_time(span, query(statement).execute(&mut *connection)).await;
                executed.map(Into::into).map_err(exec_error)
            }
            Inner::Sqlite(transaction) => transaction.execute_raw(statement).await,
        }
    }

    async fn execute_unprepared(&self, text: &str) -> Result<ExecResult, DbErr> {
        match &self.0 {
            Inner::Postgres(on) => {
                let text = AssertSqlSafe(text.to_owned());
                let executed = on.within(STEP_LIMIT, on.connection.lock().await.execute(text)).await;
                executed.map(Into::into).map_err(exec_error)
            }
            Inner::Sqlite(transaction) => transaction.execute_unprepared(text).await,
        }
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        match &self.0 {
            Inner::Postgres(on) => {
                let mut connection = on.connection.lock().await;
                let span = statements::begin(&statement);
                let row = on.in_time(span, query(statement).fetch_optional(&mut *connection)).await;
                row.map(|row| row.map(Into::into)).map_err(query_error)
            }
            Inner::Sqlite(transaction) => transaction.query_one_raw(statement).await,
        }
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        match &self.0 {
            Inner::Postgres(on) => {
                let mut connection = on.connection.lock().await;
                let span = statements::begin(&statement);
                let rows = on.in_time(span, query(statement).fetch_all(&mut *connection)).await;
                rows.map(|rows| rows.into_iter().map(Into::into).collect()).map_err(query_error)
            }
            Inner::Sqlite(transaction) => transaction.query_all_raw(statement).await,
        }
    }
}

fn query(statement: Statement) -> Query<'static, Postgres, SqlxValues> {
    let values = statement.values.unwrap_or_else(|| sea_orm::Values(Vec::new()));
    query_with(AssertSqlSafe(statement.sql), SqlxValues(values))
}

fn exec_error(error: sqlx::Error) -> DbErr {
    DbErr::Exec(RuntimeErr::SqlxError(error.into()))
}

fn query_error(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(error.into()))
}

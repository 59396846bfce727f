//! A connection that a lane keeps from batch to batch.
//!
//! The pool asks a connection twice whether it still works each time it is given back, and hands them out in turn, so each of
//! them has to prepare the statements. A lane has one batch at a time, so one connection is enough, beside the pool: cold
//! work that waits for connections doesn't hold it up. A SQLite file has one writer, which the lane shares with the others.

use std::{sync::Arc, time::Duration};

use sea_orm::{
    ConnAcquireErr, ConnectionTrait, DatabaseBackend, DatabaseTransaction, DbErr, ExecResult, QueryResult,
    RuntimeErr, Statement,
};
use sea_query_sqlx::SqlxValues;
use sqlx::{
    AssertSqlSafe, Connection, Executor, PgConnection, Postgres, postgres::PgPool, query::Query, query_with,
};
use tokio::{
    sync::{Mutex, OwnedRwLockReadGuard},
    time::timeout,
};

use super::{ACQUIRE_TIMEOUT, Database, Pool};

/// How long a transaction may take to begin or to be rolled back.
const TURN_LIMIT: Duration = Duration::from_secs(1);

/// A connection that is kept between transactions.
#[derive(Debug)]
pub struct KeptConnection {
    database: Database,
    /// On Postgres, and if there is one: it is outside of transactions.
    idle: Option<PgConnection>,
}

/// A transaction on a [`KeptConnection`]. Dropped before it [ended](Self::end), it leaves nothing, and costs the connection.
#[derive(Debug)]
pub struct KeptTransaction<'c>(Inner<'c>);

#[derive(Debug)]
enum Inner<'c> {
    Postgres(OnPostgres<'c>),
    Sqlite(DatabaseTransaction),
}

#[derive(Debug)]
struct OnPostgres<'c> {
    connection: Mutex<PgConnection>,
    /// Where the connection goes when the transaction has ended well.
    home: &'c mut Option<PgConnection>,
    /// Whoever closes the database waits for it.
    _in_flight: OwnedRwLockReadGuard<()>,
}

impl KeptConnection {
    /// Connects when first used.
    pub fn new(database: Database) -> Self {
        Self { database, idle: None }
    }

    /// Begins a transaction that may write. A connection that broke meanwhile is replaced.
    ///
    /// # Errors
    /// If the database can't be reached, or was closed.
    pub async fn begin(&mut self) -> Result<KeptTransaction<'_>, DbErr> {
        let Pool::Postgres(pool) = &self.database.pool else {
            return Ok(KeptTransaction(Inner::Sqlite(self.database.begin().await?)));
        };
        let in_flight = Arc::clone(&self.database.in_flight).read_owned().await;
        if pool.is_closed() {
            return Err(DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed));
        }
        let mut idle = self.idle.take();
        if let Some(connection) = &mut idle
            && let Err(error) = execute_soon(connection, "BEGIN").await
        {
            tracing::info!(%error, "a lane's connection broke");
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
            home: &mut self.idle,
            _in_flight: in_flight,
        })))
    }
}

async fn connect(pool: &PgPool) -> Result<PgConnection, DbErr> {
    let options = pool.connect_options();
    let connected = timeout(ACQUIRE_TIMEOUT, PgConnection::connect_with(&options)).await;
    let connected = connected.map_err(|_| DbErr::ConnectionAcquire(ConnAcquireErr::Timeout))?;
    connected.map_err(|error| DbErr::Conn(RuntimeErr::SqlxError(error.into())))
}

/// Executes what takes no time, unless the connection is broken or behind a partition.
async fn execute_soon(connection: &mut PgConnection, text: &'static str) -> Result<(), sqlx::Error> {
    let silence = |_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
    timeout(TURN_LIMIT, connection.execute(text)).await.map_err(silence)?.map(drop)
}

impl KeptTransaction<'_> {
    /// Ends it: commits if all went well so far, or else rolls back. What was answered so far, or why it can't be committed.
    ///
    /// # Errors
    /// That of `outcome`, with nothing written; or the connection broke during the commit, and all of it may have been.
    pub async fn end<T>(self, outcome: Result<T, DbErr>) -> Result<T, DbErr> {
        match (self.0, outcome) {
            (Inner::Sqlite(transaction), outcome) => {
                let answer = outcome?;
                transaction.commit().await?;
                Ok(answer)
            }
            (Inner::Postgres(OnPostgres { connection, home, _in_flight }), Ok(answer)) => {
                let mut connection = connection.into_inner();
                connection.execute("COMMIT").await.map_err(exec_error)?;
                *home = Some(connection);
                Ok(answer)
            }
            (Inner::Postgres(OnPostgres { connection, home, _in_flight }), Err(error)) => {
                let mut connection = connection.into_inner();
                // If this fails, the connection is dropped, and Postgres rolls back by itself.
                if execute_soon(&mut connection, "ROLLBACK").await.is_ok() {
                    *home = Some(connection);
                }
                Err(error)
            }
        }
    }
}

#[async_trait::async_trait]
impl ConnectionTrait for KeptTransaction<'_> {
    fn get_database_backend(&self) -> DatabaseBackend {
        match &self.0 {
            Inner::Postgres(_) => DatabaseBackend::Postgres,
            Inner::Sqlite(_) => DatabaseBackend::Sqlite,
        }
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        match &self.0 {
            Inner::Postgres(on) => {
                let executed = query(statement).execute(&mut *on.connection.lock().await).await;
                executed.map(Into::into).map_err(exec_error)
            }
            Inner::Sqlite(transaction) => transaction.execute_raw(statement).await,
        }
    }

    async fn execute_unprepared(&self, text: &str) -> Result<ExecResult, DbErr> {
        match &self.0 {
            Inner::Postgres(on) => {
                let text = AssertSqlSafe(text.to_owned());
                let executed = on.connection.lock().await.execute(text).await;
                executed.map(Into::into).map_err(exec_error)
            }
            Inner::Sqlite(transaction) => transaction.execute_unprepared(text).await,
        }
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        match &self.0 {
            Inner::Postgres(on) => {
                let row = query(statement).fetch_optional(&mut *on.connection.lock().await).await;
                row.map(|row| row.map(Into::into)).map_err(query_error)
            }
            Inner::Sqlite(transaction) => transaction.query_one_raw(statement).await,
        }
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        match &self.0 {
            Inner::Postgres(on) => {
                let rows = query(statement).fetch_all(&mut *on.connection.lock().await).await;
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

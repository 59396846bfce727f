//! Databases: Postgres, or a SQLite file in embedded mode. One type for both; SQL is written so that both take it.

mod kept;
mod rows;
mod statements;

use std::{
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use boxoffice_proto::common::v1::ErrorReason;
use opentelemetry::KeyValue;
use sea_orm::{
    ConnectionTrait, DatabaseBackend, DatabaseConnection, DatabaseTransaction, DbErr, RuntimeErr,
    SqliteTransactionMode, SqlxPostgresConnector, SqlxSqliteConnector, Statement, TransactionOptions,
    TransactionTrait, Value,
};
use sqlx::{
    AssertSqlSafe, Connection, Executor, PgConnection, Row, SqlSafeStr, SqliteConnection,
    error::ErrorKind,
    migrate::{Migrate, MigrateError, MigrationType, Migrator},
    postgres::{PgConnectOptions, PgDatabaseError, PgPool, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous},
};

use self::statements::watched;
pub use self::{
    kept::{KeptConnection, KeptTransaction},
    rows::{Insert, Rows, insert_rows, postgres_rows, rows_of},
};
use crate::{failure::Failure, metrics};

/// How long a statement may run on Postgres before it is ended.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a transaction may do nothing on Postgres before it is ended: whoever began it stands still or is cut off, and others
/// wait for what it has locked. Shorter than a statement may take, so that they get it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// How Postgres plans. A plan is kept with its statement: one made while a table was small would go on reading all of it when
/// it is large, so what can go by an index does. What can't seems dear then, which is no reason to compile it.
const PLANS: [(&str, &str); 2] = [("enable_seqscan", "off"), ("jit", "off")];
/// How long to wait for a connection of the pool. Shorter than any method may take: whoever waits in vain is told that the
/// database is away, and not that time is up.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long to wait for others who write to the same SQLite file.
const SQLITE_PATIENCE: Duration = Duration::from_secs(2);
/// How long a connection may take to show that it still works when it is given back.
const RELEASE_LIMIT: Duration = Duration::from_secs(1);
/// After so long without use a connection is asked whether it is still there, before it is given what can't be sent again.
const IDLE_LIMIT: Duration = Duration::from_secs(1);
/// How long it may take to answer that. The pool asks one after the other: within [`ACQUIRE_TIMEOUT`] a few may be silent, and whoever
/// waits in vain leaves fewer of them to the next.
const PRESENCE_LIMIT: Duration = Duration::from_millis(200);
/// Readers of a SQLite file. One more writes.
const SQLITE_READERS: u32 = 4;

/// Where a database is: `postgres://…`, or `sqlite://path`. Its password is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl(String);

impl FromStr for DatabaseUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "must be such as postgres://user:password@host:5432/database or sqlite://path";
        let is_fine = match text.split_once("://") {
            Some(("postgres" | "postgresql", _)) => PgConnectOptions::from_str(text).is_ok(),
            Some(("sqlite", _)) => SqliteConnectOptions::from_str(text).is_ok(),
            _ => false,
        };
        if is_fine { Ok(Self(text.to_owned())) } else { Err(WRONG) }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A password may be among the parameters, too.
        let url = self.0.split('?').next().unwrap_or_default();
        match (url.split_once("://"), url.rsplit_once('@')) {
            (Some((scheme, _)), Some((_, place))) => write!(formatter, "{scheme}://[redacted]@{place}"),
            _ => formatter.write_str(url),
        }
    }
}

/// A service's database.
#[derive(Debug, Clone)]
pub struct Database {
    reader: DatabaseConnection,
    writer: DatabaseConnection,
    pool: Pool,
    /// Those that lanes keep, which the pool knows nothing of.
    kept: Arc<Mutex<Vec<kept::Home>>>,
}

#[derive(Debug, Clone)]
enum Pool {
    Postgres(PgPool),
    Sqlite(SqlitePool),
}

/// A step in a schema's history. A step that was released is never changed; schemas only expand until a release passed.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// Its place in history, from 1 without gaps.
    pub version: i64,
    /// What it does, in a few words.
    pub description: &'static str,
    /// The SQL, for both databases. A line that begins with `--postgres:` is taken by Postgres only.
    pub sql: &'static str,
}

/// What a migration did to a schema. Version 0 is an empty one; the same twice means that there was nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchemaChange {
    /// The version before.
    pub from: i64,
    /// The version after.
    pub to: i64,
}

/// Why a database can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// It can't be reached or opened.
    #[error("the database {url:?} can't be opened")]
    Open {
        /// Where it should be.
        url: DatabaseUrl,
        /// What happened.
        source: sqlx::Error,
    },
    /// Its schema is newer than this program.
    #[error(
        "the database has migration {version}, and this program knows none after {known}: a newer program has migrated it; start that one"
    )]
    TooNew {
        /// A version found that this program does not know.
        version: i64,
        /// The newest that it knows.
        known: i64,
    },
    /// Its schema was made by something else.
    #[error(
        "migration {version} of this database is not the one this program knows: restore the database, or start the program that made it"
    )]
    Foreign {
        /// The version that differs.
        version: i64,
    },
    /// A migration failed; nothing of it stays.
    #[error("the database's schema can't be migrated")]
    Migrate(#[source] MigrateError),
}

impl DatabaseError {
    /// Whether waiting may help: the database is not there yet, or still starting.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Open { source: sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut, .. } => true,
            // 57P03: the database system is starting up, or shutting down. 53300: too many connections.
            Self::Open { source: sqlx::Error::Database(error), .. } => {
                matches!(error.code().as_deref(), Some("57P03" | "53300"))
            }
            _ => false,
        }
    }
}

impl Database {
    /// Opens a database with at most `connections` connections (Postgres; a SQLite file has one writer).
    /// A SQLite file is made if it does not exist.
    ///
    /// # Errors
    /// If the database can't be reached or opened.
    pub async fn open(url: &DatabaseUrl, connections: u32) -> Result<Self, DatabaseError> {
        let open_error = |source| DatabaseError::Open { url: url.clone(), source };
        if url.0.starts_with("sqlite://") {
            Self::open_sqlite(&url.0).await.map_err(open_error)
        } else {
            Self::open_postgres(&url.0, connections).await.map_err(open_error)
        }
    }

    /// Opens a database that is only read, and must be there.
    ///
    /// # Errors
    /// If the database can't be reached or opened.
    pub async fn open_to_read(url: &DatabaseUrl) -> Result<Self, DatabaseError> {
        if !url.0.starts_with("sqlite://") {
            return Self::open(url, 2).await;
        }
        let open = async {
            let options =
                SqliteConnectOptions::from_str(&url.0)?.read_only(true).busy_timeout(SQLITE_PATIENCE);
            let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
            let connection = watched(SqlxSqliteConnector::from_sqlx_sqlite_pool(pool.clone()));
            Ok(Self {
                reader: connection.clone(),
                writer: connection,
                pool: Pool::Sqlite(pool),
                kept: Arc::default(),
            })
        };
        open.await.map_err(|source| DatabaseError::Open { url: url.clone(), source })
    }

    async fn open_sqlite(url: &str) -> Result<Self, sqlx::Error> {
        let options = SqliteConnectOptions::from_str(url)?
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(SQLITE_PATIENCE)
            .foreign_keys(true)
            // A checkpoint every 16 MB instead of 4: it flushes the file while writers wait.
            .pragma("wal_autocheckpoint", "4000")
            .statement_cache_capacity(300);
        let pool_options =
            || SqlitePoolOptions::new().acquire_timeout(SQLITE_PATIENCE).test_before_acquire(false);
        // A file has one writer at a time: the second would only wait for the first, in slices of sleep.
        let writer = pool_options()
            .min_connections(1)
            .max_connections(1)
            .after_release(|connection, _| Box::pin(is_outside_transactions(connection)))
            .connect_with(options.clone())
            .await?;
        let reader = pool_options()
            .max_connections(SQLITE_READERS)
            .connect_lazy_with(options.create_if_missing(false).pragma("query_only", "on"));
        Ok(Self {
            reader: watched(SqlxSqliteConnector::from_sqlx_sqlite_pool(reader)),
            writer: watched(SqlxSqliteConnector::from_sqlx_sqlite_pool(writer.clone())),
            pool: Pool::Sqlite(writer),
            kept: Arc::default(),
        })
    }

    async fn open_postgres(url: &str, connections: u32) -> Result<Self, sqlx::Error> {
        let options = PgConnectOptions::from_str(url)?
            .statement_cache_capacity(300)
            .options([("statement_timeout", STATEMENT_TIMEOUT.as_millis().to_string())])
            .options([("idle_in_transaction_session_timeout", IDLE_TIMEOUT.as_millis().to_string())])
            .options(PLANS);
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // By a question of our own, which has a limit and is asked of those only that were long unused.
            .test_before_acquire(false)
            .before_acquire(|connection, usage| Box::pin(is_there(connection, usage.idle_for)))
            .after_release(|connection, _| Box::pin(is_idle(connection)))
            .connect_with(options.clone());
        let pool = match pool.await {
            Err(sqlx::Error::PoolTimedOut) => return Err(obstacle(&options).await),
            outcome => outcome?,
        };
        let connection = watched(SqlxPostgresConnector::from_sqlx_postgres_pool(pool.clone()));
        Ok(Self {
            reader: connection.clone(),
            writer: connection,
            pool: Pool::Postgres(pool),
            kept: Arc::default(),
        })
    }

    /// Brings the schema up to date. Safe to call from several processes at once: they take turns. Each step is a
    /// transaction.
    ///
    /// # Errors
    /// If the schema is newer than this program, was made by another one, or a step fails.
    pub async fn migrate(&self, migrations: &[Migration]) -> Result<SchemaChange, DatabaseError> {
        let backend = self.backend();
        let migrator =
            Migrator::with_migrations(migrations.iter().map(|step| step.for_backend(backend)).collect());
        let outcome = match &self.pool {
            Pool::Postgres(pool) => migrate_postgres(pool, &migrator).await,
            Pool::Sqlite(pool) => migrate_sqlite(pool, &migrator).await,
        };
        outcome.map_err(|error| match error {
            MigrateError::VersionMissing(version) => {
                DatabaseError::TooNew { version, known: migrations.last().map_or(0, |newest| newest.version) }
            }
            MigrateError::VersionMismatch(version) => DatabaseError::Foreign { version },
            other => DatabaseError::Migrate(other),
        })
    }

    /// Where to read outside of a transaction.
    pub fn reader(&self) -> &DatabaseConnection {
        &self.reader
    }

    /// Where to write with one statement, which is a transaction of its own.
    pub fn writer(&self) -> &DatabaseConnection {
        &self.writer
    }

    /// Begins a transaction that may write. Dropped without a commit, it leaves nothing.
    ///
    /// # Errors
    /// If no connection can be had in time.
    pub async fn begin(&self) -> Result<DatabaseTransaction, DbErr> {
        // A SQLite transaction that reads first and then writes could find another writer in between, and fail.
        let sqlite_transaction_mode =
            (self.backend() == DatabaseBackend::Sqlite).then_some(SqliteTransactionMode::Immediate);
        self.writer
            .begin_with_options(TransactionOptions { sqlite_transaction_mode, ..Default::default() })
            .await
    }

    /// Which kind of database it is.
    pub fn backend(&self) -> DatabaseBackend {
        self.writer.get_database_backend()
    }

    /// Whether it answers.
    pub async fn answers(&self) -> bool {
        self.reader.execute_unprepared("SELECT 1").await.is_ok()
    }

    /// Has metrics tell how many connections are in use, as those of this service.
    pub fn watch_connections(&self, service: &'static str) {
        let sqlite_reader = match &self.pool {
            Pool::Postgres(_) => None,
            Pool::Sqlite(_) => Some(self.reader.get_sqlite_connection_pool().clone()),
        };
        let writer = self.pool.clone();
        metrics::meter()
            .u64_observable_gauge("database.pool.connections")
            .with_description("Connections of a pool: in use, idle, and how many there may be")
            .with_callback(move |observer| {
                let observe = |pool, size: u32, idle: usize, limit: u32| {
                    let size = u64::from(size);
                    let used = size.saturating_sub(idle as u64);
                    for (state, count) in [("used", used), ("idle", size - used), ("limit", limit.into())] {
                        let labels = [("service", service), ("pool", pool), ("state", state)];
                        observer.observe(count, &labels.map(|(label, value)| KeyValue::new(label, value)));
                    }
                };
                match &writer {
                    Pool::Postgres(pool) => {
                        observe("all", pool.size(), pool.num_idle(), pool.options().get_max_connections());
                    }
                    Pool::Sqlite(pool) => {
                        observe("write", pool.size(), pool.num_idle(), pool.options().get_max_connections());
                    }
                }
                if let Some(pool) = &sqlite_reader {
                    observe("read", pool.size(), pool.num_idle(), pool.options().get_max_connections());
                }
            })
            .build();
    }

    /// Closes every connection, after the work in flight.
    pub async fn close(self) {
        let _ = self.reader.close().await;
        let _ = self.writer.close().await;
        let kept = std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        for home in kept {
            if let Some(idle) = home.lock().await.take() {
                let _ = tokio::time::timeout(RELEASE_LIMIT, idle.connection.close()).await;
            }
        }
    }
}

/// Why no connection can be made. The pool, which tried in vain, says only that time is up.
async fn obstacle(options: &PgConnectOptions) -> sqlx::Error {
    let connected = tokio::time::timeout(ACQUIRE_TIMEOUT, PgConnection::connect_with(options)).await;
    let silence = || sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
    connected.ok().and_then(Result::err).unwrap_or_else(silence)
}

/// Whether a connection that was not used for a while is still there: after a restart of Postgres none is, and whoever got it
/// would have to come again.
async fn is_there(connection: &mut PgConnection, unused: Duration) -> Result<bool, sqlx::Error> {
    if unused < IDLE_LIMIT {
        return Ok(true);
    }
    let silence = |_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
    tokio::time::timeout(PRESENCE_LIMIT, connection.ping()).await.map_err(silence)?.map(|()| true)
}

/// Whether a connection may be used again: it answers, and no transaction is left open on it. A caller that leaves while
/// its transaction begins leaves one that the driver knows nothing of; whoever wrote on that connection next would be told
/// that it is done, and it would be gone with the connection.
///
/// The pool asks whether it answers, too, but without a limit: behind a partition that drops packets it would wait for as
/// long as TCP does, a quarter of an hour, and the pool would be one short.
async fn is_idle(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    // As a simple query: a statement that is a transaction of its own began when that did.
    let question = connection.fetch_one("SELECT now() = statement_timestamp()");
    let silence = |_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
    tokio::time::timeout(RELEASE_LIMIT, question).await.map_err(silence)??.try_get(0)
}

/// Whether a connection may be used again. A full disk makes SQLite roll back by itself; the driver's own rollback then
/// fails, it believes itself within a transaction for ever, and takes each later commit for that of a savepoint: nothing
/// would be written any more, and everything acknowledged.
async fn is_outside_transactions(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    // Waits for a rollback that is under way.
    connection.ping().await?;
    Ok(!connection.is_in_transaction())
}

// `run_direct`, as the future of `run` on a connection is not `Send` for every lifetime.

/// On a connection that is closed afterwards: a migration may take longer than other statements, and one that failed
/// leaves its connection with the advisory lock.
async fn migrate_postgres(pool: &PgPool, migrator: &Migrator) -> Result<SchemaChange, MigrateError> {
    let mut connection = pool.acquire().await?;
    connection.close_on_drop();
    sqlx::query("SET statement_timeout = 0").execute(&mut *connection).await?;
    // Twice: here, so that the version is that of our turn, and in there. Both end with the connection.
    connection.lock().await?;
    change_schema(&mut *connection, migrator).await
}

/// Within a transaction that keeps others out: here sqlx takes no lock. What steps were done before one failed stays.
async fn migrate_sqlite(pool: &SqlitePool, migrator: &Migrator) -> Result<SchemaChange, MigrateError> {
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
    let outcome = change_schema(&mut *transaction, migrator).await;
    transaction.commit().await?;
    outcome
}

async fn change_schema(
    connection: &mut impl Migrate,
    migrator: &Migrator,
) -> Result<SchemaChange, MigrateError> {
    let from = schema_version(connection, migrator).await?;
    migrator.run_direct(None, connection, false).await?;
    Ok(SchemaChange { from, to: schema_version(connection, migrator).await? })
}

async fn schema_version(connection: &mut impl Migrate, migrator: &Migrator) -> Result<i64, MigrateError> {
    connection.ensure_migrations_table(&migrator.table_name).await?;
    let applied = connection.list_applied_migrations(&migrator.table_name).await?;
    Ok(applied.iter().map(|step| step.version).max().unwrap_or_default())
}

impl Migration {
    fn for_backend(&self, backend: DatabaseBackend) -> sqlx::migrate::Migration {
        let marker = "--postgres:";
        let sql: String = self
            .sql
            .lines()
            .map(|line| match line.strip_prefix(marker) {
                Some(rest) if backend == DatabaseBackend::Postgres => format!("{rest}\n"),
                Some(_) => "\n".to_owned(),
                None => format!("{line}\n"),
            })
            .collect();
        let sql = AssertSqlSafe(sql).into_sql_str();
        sqlx::migrate::Migration::new(
            self.version,
            self.description.into(),
            MigrationType::Simple,
            sql,
            false,
        )
    }
}

/// A statement with values for `$1`, `$2`, …
pub fn sql(
    connection: &impl ConnectionTrait,
    text: impl Into<String>,
    values: impl IntoIterator<Item = Value>,
) -> Statement {
    Statement::from_sql_and_values(connection.get_database_backend(), text, values)
}

/// A database error is a 503 if the database can't be reached or takes no more, a 409 if others wrote the same rows and
/// doing it again may succeed, otherwise a bug.
impl From<DbErr> for Failure {
    fn from(error: DbErr) -> Self {
        if is_unavailable(&error) {
            Failure::new(ErrorReason::DatabaseUnavailable, "the database can't be reached right now")
                .retry_after(Duration::from_secs(1))
                .caused_by(error)
        } else if is_race_lost(&error) || is_locked(&error) {
            race_lost(error)
        } else {
            Failure::internal(error)
        }
    }
}

/// Others wrote the same rows at the same moment: nothing was written, and doing it again may succeed.
pub fn race_lost(cause: DbErr) -> Failure {
    Failure::new(
        ErrorReason::RaceLost,
        "others changed the same data at the same moment; send the request again",
    )
    .retry_after(Duration::from_secs(1))
    .caused_by(cause)
}

/// Whether Postgres ended the statement for the sake of others: a serialization failure, or a deadlock.
fn is_race_lost(error: &DbErr) -> bool {
    refusal_of(error).and_then(|error| error.code()).is_some_and(|code| code == "40001" || code == "40P01")
}

/// Whether Postgres would not wait any longer for what another transaction has locked.
pub fn is_locked(error: &DbErr) -> bool {
    refusal_of(error).and_then(|error| error.code()).is_some_and(|code| code == "55P03")
}

/// Whether the database refused what was to be written, though it works: another writer was there first, or a rule of
/// the schema does not hold.
pub fn is_conflict(error: &DbErr) -> bool {
    let breaks_rule = refusal_of(error).is_some_and(|error| error.kind() != ErrorKind::Other);
    breaks_rule || is_race_lost(error)
}

/// What the database itself said against a statement.
fn refusal_of(error: &DbErr) -> Option<&dyn sqlx::error::DatabaseError> {
    match error {
        DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error)) => {
            error.as_database_error()
        }
        _ => None,
    }
}

/// What an error says, without the line of Postgres' own source in which it arose.
pub(crate) fn told(error: &(dyn std::error::Error + 'static)) -> String {
    let text = error.to_string();
    match postgres_error(error).and_then(PgDatabaseError::line) {
        Some(line) => text.trim_end_matches(&format!(" at line {line}")).to_owned(),
        None => text,
    }
}

fn postgres_error<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e PgDatabaseError> {
    let of_sqlx = |error: &'e sqlx::Error| error.as_database_error();
    let of_runtime = |error: &'e RuntimeErr| match error {
        RuntimeErr::SqlxError(error) => of_sqlx(error),
        _ => None,
    };
    let refusal = match error.downcast_ref() {
        Some(DbErr::Conn(error) | DbErr::Exec(error) | DbErr::Query(error)) => of_runtime(error),
        _ => None,
    };
    let refusal = refusal.or_else(|| error.downcast_ref().and_then(of_runtime));
    let refusal = refusal.or_else(|| error.downcast_ref().and_then(of_sqlx));
    let refusal = refusal.or_else(|| error.downcast_ref().map(Box::<dyn sqlx::error::DatabaseError>::as_ref));
    refusal?.try_downcast_ref()
}

/// Whether the database can't be reached or takes no more, as against: it refused this statement.
pub fn is_unavailable(error: &DbErr) -> bool {
    let runtime = match error {
        DbErr::ConnectionAcquire(_) => return true,
        DbErr::Conn(runtime) | DbErr::Exec(runtime) | DbErr::Query(runtime) => runtime,
        _ => return false,
    };
    let RuntimeErr::SqlxError(error) = runtime else { return false };
    match error.as_ref() {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(error) => {
            let code = error.code().unwrap_or_default();
            // Postgres: connection exception, insufficient resources, operator intervention; read-only after a failover,
            // and a transaction that did nothing for too long, as this process stood still.
            let is_postgres = ["08", "53", "57"].iter().any(|class| code.starts_with(class))
                || ["25006", "25P03"].contains(&code.as_ref());
            // SQLite: busy, I/O error, full, can't open. Extended codes carry the primary one in their low byte.
            let primary = code.parse::<u32>().map(|code| code & 0xff).unwrap_or_default();
            is_postgres && code.len() == 5 || code.len() < 5 && [5, 10, 13, 14].contains(&primary)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIGRATIONS: &[Migration] = &[Migration {
        version: 1,
        description: "things",
        sql: "CREATE TABLE thing (id uuid PRIMARY KEY)\n--postgres: WITH (fillfactor = 80)\n;",
    }];

    async fn open() -> (tempfile::TempDir, Database) {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/test.db", directory.path().display()).parse().unwrap();
        (directory, Database::open(&url, 1).await.unwrap())
    }

    #[tokio::test]
    async fn migrating_twice_is_once() {
        let (_directory, database) = open().await;
        database.migrate(MIGRATIONS).await.unwrap();
        database.migrate(MIGRATIONS).await.unwrap();
        let rows = database
            .reader()
            .query_all_raw(sql(database.reader(), "SELECT id FROM thing", []))
            .await
            .unwrap();
        assert!(rows.is_empty());
    }

    #[tokio::test]
    async fn a_schema_of_a_newer_program_is_refused() {
        let (_directory, database) = open().await;
        database.migrate(MIGRATIONS).await.unwrap();
        assert!(matches!(database.migrate(&[]).await, Err(DatabaseError::TooNew { version: 1, known: 0 })));
        let changed = [Migration { sql: "CREATE TABLE other (id uuid)", ..MIGRATIONS[0] }];
        assert!(matches!(database.migrate(&changed).await, Err(DatabaseError::Foreign { version: 1 })));
    }

    #[tokio::test]
    async fn readers_can_not_write() {
        let (_directory, database) = open().await;
        database.migrate(MIGRATIONS).await.unwrap();
        assert!(database.reader().execute_unprepared("DELETE FROM thing").await.is_err());
    }

    #[tokio::test]
    async fn any_number_of_rows_is_inserted() {
        let (_directory, database) = open().await;
        database.migrate(MIGRATIONS).await.unwrap();
        let rows = (0..37).map(|_| vec![uuid::Uuid::now_v7().into()]).collect();
        insert_rows(database.writer(), "thing", &["id"], "", rows).await.unwrap();
        insert_rows(database.writer(), "thing", &["id"], "", Vec::new()).await.unwrap();
        let rows = database
            .reader()
            .query_all_raw(sql(database.reader(), "SELECT id FROM thing", []))
            .await
            .unwrap();
        assert_eq!(rows.len(), 37);
    }

    #[tokio::test]
    async fn after_a_full_disk_nothing_is_acknowledged_that_is_not_written() {
        let (_directory, database) = open().await;
        database.migrate(MIGRATIONS).await.unwrap();
        database.writer().execute_unprepared("CREATE TABLE filling (bytes blob)").await.unwrap();
        let limit = async |pages: u32| {
            database.writer().execute_unprepared(&format!("PRAGMA max_page_count = {pages}")).await
        };
        limit(16).await.unwrap();
        let insert = async |text: &str| {
            let transaction = database.begin().await?;
            transaction.execute_unprepared(text).await?;
            transaction.commit().await
        };
        let mut failures = 0;
        for _ in 0..3 {
            let outcome = insert("INSERT INTO filling VALUES (zeroblob(1000000))").await;
            failures += usize::from(outcome.is_err_and(|error| is_unavailable(&error)));
            limit(16).await.unwrap();
        }
        assert_eq!(failures, 3, "the disk is full each time");
        limit(1_000_000).await.unwrap();
        insert("INSERT INTO filling VALUES (zeroblob(1))").await.unwrap();
        let count = sql(database.reader(), "SELECT bytes FROM filling", []);
        assert_eq!(
            database.reader().query_all_raw(count).await.unwrap().len(),
            1,
            "what was acknowledged is there"
        );
    }

    #[test]
    fn a_password_is_never_shown() {
        let url: DatabaseUrl = "postgres://boxoffice:secret@db/booking".parse().unwrap();
        assert_eq!(format!("{url:?}"), "postgres://[redacted]@db/booking");
        let url: DatabaseUrl = "postgres://db/booking?user=u&password=secret".parse().unwrap();
        assert_eq!(format!("{url:?}"), "postgres://db/booking");
        for wrong in ["", "mysql://db", "postgres://u:hunter2@db:port/booking", "postgres://db?sslmode=no"] {
            assert!(wrong.parse::<DatabaseUrl>().is_err(), "{wrong}");
        }
    }
}

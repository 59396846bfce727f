//! A database that can't be used answers soon with DATABASE_UNAVAILABLE, and is used again as soon as it is back.

use std::{
    error::Error,
    str::FromStr,
    time::{Duration, Instant},
};

use boxoffice_proto::common::v1::ErrorReason;
use futures_util::future::join_all;
use mesh::{
    Failure,
    database::{Database, sql},
    failure::chain,
};
use mesh_test::{FaultProxy, Mode, wait_until};
use sea_orm::{ConnectionTrait, DbErr};
use sqlx::{ConnectOptions, postgres::PgConnectOptions};

use crate::{CONNECTIONS, on_both_databases, open};

/// How long a call waits for a database that does not answer: for a connection, 1 s.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(4);
/// Within which a pool heals.
const HEALING_TIME: Duration = Duration::from_secs(5);

/// A Postgres database behind a proxy.
pub(crate) struct Proxied {
    pub(crate) proxy: FaultProxy,
    pub(crate) url: String,
    pub(crate) database: mesh_test::postgres::TestDatabase,
}

impl Proxied {
    pub(crate) async fn start() -> Self {
        let database = mesh_test::postgres::create_database().await;
        let options = PgConnectOptions::from_str(database.url()).unwrap();
        let address = (options.get_host().to_owned(), options.get_port());
        let address = tokio::net::lookup_host(address).await.unwrap().next().unwrap();
        let proxy = FaultProxy::start(address).await;
        let options = options.host("127.0.0.1").port(proxy.address().port());
        let url = options.to_url_lossy().to_string();
        Self { proxy, url, database }
    }
}

async fn ask(database: &Database) -> Result<(), DbErr> {
    database.reader().query_one_raw(sql(database.reader(), "SELECT 1 AS one", [])).await.map(drop)
}

/// Asks with every connection of the pool at once.
async fn ask_with_all(database: &Database) -> Vec<Result<(), DbErr>> {
    join_all((0..CONNECTIONS).map(|_| ask(database))).await
}

async fn assert_all_answer(database: &Database) {
    for outcome in ask_with_all(database).await {
        outcome.unwrap();
    }
}

#[track_caller]
pub(crate) fn assert_unavailable(outcome: Result<(), DbErr>) {
    let failure = Failure::from(outcome.unwrap_err());
    assert!(failure.is(ErrorReason::DatabaseUnavailable), "{failure}: {:?}", failure.source());
}

async fn wait_until_healed(database: &Database) {
    wait_until("the pool to heal", HEALING_TIME, async || {
        let outcomes: Result<Vec<()>, DbErr> = ask_with_all(database).await.into_iter().collect();
        outcomes.map(drop).map_err(|error| error.to_string())
    })
    .await;
}

#[tokio::test]
#[ignore = "needs Postgres: scripts/test runs it"]
async fn a_database_that_is_away_for_a_while_is_used_again_without_help() {
    let server = Proxied::start().await;
    let database = open(&server.url).await;
    assert_all_answer(&database).await;

    server.proxy.set_mode(Mode::Refuse);
    for _ in 0..2 {
        let begin = Instant::now();
        for outcome in ask_with_all(&database).await {
            assert_unavailable(outcome);
        }
        assert_unavailable(database.begin().await.map(drop));
        assert!(begin.elapsed() < 2 * LONGEST_WAIT, "{:?}", begin.elapsed());
    }

    server.proxy.set_mode(Mode::Pass);
    wait_until_healed(&database).await;
}

/// Nobody pays for the connections that a restart of Postgres has ended while they had nothing to do.
#[tokio::test]
#[ignore = "needs Postgres: scripts/test runs it"]
async fn connections_that_broke_while_nobody_used_them_cost_no_call() {
    let server = Proxied::start().await;
    let database = open(&server.url).await;
    assert_all_answer(&database).await;
    server.proxy.reset_connections();
    // Until they count as idle.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_all_answer(&database).await;
    for _ in 0..CONNECTIONS {
        ask(&database).await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs Postgres: scripts/test runs it"]
async fn a_partition_that_drops_packets_heals_without_help() {
    let server = Proxied::start().await;
    let database = open(&server.url).await;
    assert_all_answer(&database).await;

    server.proxy.set_mode(Mode::Blackhole);
    // Callers stop waiting at their deadline; what they leave behind is a connection that never answers.
    for _ in 0..2 {
        let asked = tokio::time::timeout(Duration::from_millis(100), ask_with_all(&database)).await;
        assert!(asked.is_err(), "nothing answers: {asked:?}");
    }
    let transaction = tokio::time::timeout(LONGEST_WAIT, database.begin()).await;
    assert!(!matches!(transaction, Ok(Ok(_))), "nothing answers");

    server.proxy.set_mode(Mode::Pass);
    wait_until_healed(&database).await;
}

#[tokio::test]
#[ignore = "needs Postgres: scripts/test runs it"]
async fn a_transaction_that_a_restart_cuts_off_leaves_nothing() {
    let server = Proxied::start().await;
    let database = open(&server.url).await;
    database.writer().execute_unprepared("CREATE TABLE seat (ordinal int)").await.unwrap();
    let transaction = database.begin().await.unwrap();
    transaction.execute_unprepared("INSERT INTO seat VALUES (1)").await.unwrap();
    server.proxy.reset_connections();
    assert_unavailable(transaction.commit().await);

    wait_until_healed(&database).await;
    let count = sql(database.reader(), "SELECT count(*) AS seats FROM seat", []);
    let row = database.reader().query_one_raw(count).await.unwrap().unwrap();
    assert_eq!(row.try_get::<i64>("", "seats").unwrap(), 0);
}

#[tokio::test]
#[ignore = "needs Postgres: scripts/test runs it"]
async fn a_statement_that_takes_too_long_is_ended() {
    let database = mesh_test::postgres::create_database().await;
    let database = open(database.url()).await;
    let transaction = database.begin().await.unwrap();
    transaction.execute_unprepared("SET LOCAL statement_timeout = 10").await.unwrap();
    assert_unavailable(transaction.execute_unprepared("SELECT pg_sleep(60)").await.map(drop));
}

/// A caller that leaves while its transaction begins leaves one that nobody ends.
#[tokio::test]
#[ignore = "needs Postgres: scripts/test runs it"]
async fn what_is_acknowledged_is_written_after_a_transaction_that_nobody_ended() {
    let database = mesh_test::postgres::create_database().await;
    let other = open(database.url()).await;
    let one = Database::open(&database.url().parse().unwrap(), 1).await.unwrap();
    one.writer().execute_unprepared("CREATE TABLE thing (id int)").await.unwrap();
    one.writer().execute_unprepared("BEGIN").await.unwrap();
    one.writer().execute_unprepared("INSERT INTO thing VALUES (1)").await.unwrap();
    let things = sql(other.reader(), "SELECT id FROM thing", []);
    assert_eq!(other.reader().query_all_raw(things).await.unwrap().len(), 1);
}

#[tokio::test]
#[ignore = "needs Postgres: scripts/test runs it"]
async fn a_program_waits_for_a_database_that_starts_and_not_for_one_that_is_missing() {
    let server = Proxied::start().await;
    let open = async |url: &str| Database::open(&url.parse().unwrap(), 2).await.map(drop);
    server.proxy.set_mode(Mode::Refuse);
    assert!(open(&server.url).await.unwrap_err().may_pass());
    server.proxy.set_mode(Mode::Pass);
    open(&server.url).await.unwrap();
    let missing = format!("{}_missing", server.url.split('?').next().unwrap());
    let missing = open(&missing).await.unwrap_err();
    assert!(!missing.may_pass());
    let told = chain(&missing);
    assert!(told.ends_with("_missing\" does not exist") && told.matches("not exist").count() == 1, "{told}");
}

#[tokio::test]
async fn a_program_says_that_no_database_listens() {
    let url = format!("postgres://127.0.0.1:{}/booking", mesh_test::free_port());
    let error = Database::open(&url.parse().unwrap(), 2).await.unwrap_err();
    let told = chain(&error);
    assert!(error.may_pass() && told.contains("Connection refused"), "{told}");
}

on_both_databases!(a_crowd_does_not_wait_for_connections_for_long, a_wrong_statement_is_a_bug);

async fn a_crowd_does_not_wait_for_connections_for_long(url: &str) {
    let database = open(url).await;
    let mut held = vec![database.begin().await.unwrap()];
    let begin = Instant::now();
    let refusal = loop {
        match database.begin().await {
            Ok(transaction) => held.push(transaction),
            Err(error) => break error,
        }
    };
    assert_unavailable(Err(refusal));
    assert!(begin.elapsed() < LONGEST_WAIT, "{:?}", begin.elapsed());
    held.pop();
    database.begin().await.expect("there is one again");
}

async fn a_wrong_statement_is_a_bug(url: &str) {
    let database = open(url).await;
    let error = database.reader().execute_unprepared("SELECT secret FROM nowhere").await.unwrap_err();
    let told = chain(&error);
    assert!(told.matches("nowhere").count() == 1 && !told.contains("at line"), "{told}");
    let failure = Failure::from(error);
    assert!(failure.is(ErrorReason::Internal), "{failure}");
    assert!(!failure.to_string().contains("secret"), "{failure}");
}

#[tokio::test]
async fn a_file_that_another_program_writes_to_is_not_waited_for_for_long() {
    let file = mesh_test::sqlite::create_database();
    let (one, other) = (open(file.url()).await, open(file.url()).await);
    let transaction = one.begin().await.unwrap();
    let begin = Instant::now();
    assert_unavailable(other.begin().await.map(drop));
    assert!(begin.elapsed() < LONGEST_WAIT, "{:?}", begin.elapsed());
    transaction.rollback().await.unwrap();
    other.begin().await.expect("the file is free again");
}

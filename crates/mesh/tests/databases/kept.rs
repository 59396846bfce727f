//! A connection that a lane keeps: it is the same from transaction to transaction, and nobody notices that it was replaced.

use std::time::{Duration, Instant};

use mesh::database::{Database, KeptConnection, KeptTransaction, sql};
use mesh_test::{Mode, wait_until};
use sea_orm::{ConnectionTrait, DbErr, Statement};

use crate::{
    on_both_databases, open,
    outage::{LONGEST_WAIT, Proxied, assert_unavailable},
};

async fn create_seats(database: &Database) {
    database.writer().execute_unprepared("CREATE TABLE seat (ordinal int PRIMARY KEY)").await.unwrap();
}

async fn add_seat(transaction: &KeptTransaction, ordinal: i32) -> Result<u64, DbErr> {
    let statement = sql(transaction, "INSERT INTO seat VALUES ($1)", [ordinal.into()]);
    transaction.execute_raw(statement).await.map(|result| result.rows_affected())
}

/// A transaction that adds a seat.
async fn add(connection: &KeptConnection, ordinal: i32) -> Result<u64, DbErr> {
    let transaction = connection.begin().await?;
    let added = add_seat(&transaction, ordinal).await;
    transaction.end(added).await
}

/// The seats, as the database has them.
async fn seats(database: &Database) -> Vec<i32> {
    let statement = sql(database.reader(), "SELECT ordinal FROM seat ORDER BY ordinal", []);
    let rows = database.reader().query_all_raw(statement).await.unwrap();
    rows.iter().map(|row| row.try_get("", "ordinal").unwrap()).collect()
}

/// Which of the server's processes a transaction runs in.
async fn server_process(connection: &KeptConnection) -> Result<i32, DbErr> {
    let transaction = connection.begin().await?;
    let row = transaction.query_one_raw(sql(&transaction, "SELECT pg_backend_pid() AS pid", [])).await;
    transaction.end(row).await?.expect("a row").try_get("", "pid")
}

on_both_databases!(
    what_went_well_is_written_and_all_else_leaves_nothing,
    a_statement_alone_is_written_or_leaves_nothing,
    after_it_is_closed_nothing_is_begun_and_what_was_begun_is_finished,
);

async fn what_went_well_is_written_and_all_else_leaves_nothing(url: &str) {
    let database = open(url).await;
    create_seats(&database).await;
    let connection = KeptConnection::new(database.clone());
    assert_eq!(add(&connection, 1).await.unwrap(), 1);
    add(&connection, 1).await.expect_err("it is there");

    let transaction = connection.begin().await.unwrap();
    add_seat(&transaction, 2).await.unwrap();
    let refused: Result<(), _> = transaction.end(Err(DbErr::Custom("refused".into()))).await;
    assert_eq!(refused.unwrap_err(), DbErr::Custom("refused".into()));

    let transaction = connection.begin().await.unwrap();
    add_seat(&transaction, 3).await.unwrap();
    drop(transaction);

    assert_eq!(add(&connection, 4).await.unwrap(), 1);
    assert_eq!(seats(&database).await, [1, 4]);
}

/// Adds seats by one statement, without a transaction around it; those that were added.
async fn add_alone(connection: &KeptConnection, ordinals: [i32; 2]) -> Result<Vec<i32>, DbErr> {
    let text = "INSERT INTO seat VALUES ($1), ($2) RETURNING ordinal";
    let statement = Statement::from_sql_and_values(connection.backend(), text, ordinals.map(Into::into));
    connection.commit_alone(statement).await?.iter().map(|row| row.try_get("", "ordinal")).collect()
}

async fn a_statement_alone_is_written_or_leaves_nothing(url: &str) {
    let database = open(url).await;
    create_seats(&database).await;
    let connection = KeptConnection::new(database.clone());
    assert_eq!(add_alone(&connection, [1, 2]).await.unwrap(), [1, 2]);
    add_alone(&connection, [3, 2]).await.expect_err("one of them is there");
    assert_eq!(seats(&database).await, [1, 2]);
    assert_eq!(add_alone(&connection, [4, 5]).await.unwrap(), [4, 5]);
    assert_eq!(add(&connection, 6).await.unwrap(), 1);
    assert_eq!(seats(&database).await, [1, 2, 4, 5, 6]);
    database.close().await;
    assert_unavailable(add_alone(&connection, [7, 8]).await.map(drop));
}

async fn after_it_is_closed_nothing_is_begun_and_what_was_begun_is_finished(url: &str) {
    let database = open(url).await;
    create_seats(&database).await;
    let connection = KeptConnection::new(database.clone());
    let transaction = connection.begin().await.unwrap();
    add_seat(&transaction, 1).await.unwrap();
    let mut closing = Box::pin(database.close());
    let is_closed = tokio::time::timeout(Duration::from_millis(50), &mut closing).await.is_ok();
    assert!(!is_closed, "a transaction is in flight");
    transaction.end(Ok(())).await.unwrap();
    closing.await;
    assert_unavailable(connection.begin().await.map(drop));
    assert_eq!(seats(&open(url).await).await, [1]);
}

#[tokio::test]
#[ignore = "needs Postgres: scripts/test runs it"]
async fn it_is_the_same_connection_each_time() {
    let server = mesh_test::postgres::create_database().await;
    let database = open(server.url()).await;
    create_seats(&database).await;
    let connection = KeptConnection::new(database);
    let process = server_process(&connection).await.unwrap();
    add(&connection, 1).await.unwrap();
    add(&connection, 1).await.expect_err("it is there");
    assert_eq!(server_process(&connection).await.unwrap(), process);
}

#[tokio::test]
#[ignore = "needs Postgres: scripts/test runs it"]
async fn one_that_broke_between_transactions_is_replaced_before_the_next() {
    let server = Proxied::start().await;
    let connection = KeptConnection::new(open(&server.url).await);
    let process = server_process(&connection).await.unwrap();
    server.proxy.reset_connections();
    assert_ne!(server_process(&connection).await.expect("another connection"), process);
}

#[tokio::test]
#[ignore = "needs Postgres: scripts/test runs it"]
async fn one_that_broke_while_it_had_nothing_to_do_is_replaced_before_a_statement_alone() {
    let server = Proxied::start().await;
    let database = open(&server.url).await;
    create_seats(&database).await;
    let connection = KeptConnection::new(database);
    add_alone(&connection, [1, 2]).await.unwrap();
    server.proxy.reset_connections();
    let broken = Instant::now();
    wait_until("a second to pass", LONGEST_WAIT, async || {
        if broken.elapsed() > Duration::from_secs(1) { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    assert_eq!(add_alone(&connection, [3, 4]).await.expect("another connection"), [3, 4]);
}

#[tokio::test]
#[ignore = "needs Postgres: scripts/test runs it"]
async fn one_that_breaks_or_goes_silent_during_a_statement_alone_is_given_up_and_replaced() {
    let server = Proxied::start().await;
    let database = open(&server.url).await;
    create_seats(&database).await;
    let connection = KeptConnection::new(database.clone());
    add_alone(&connection, [1, 2]).await.unwrap();
    server.proxy.reset_connections();
    assert_unavailable(add_alone(&connection, [3, 4]).await.map(drop));
    assert_eq!(add_alone(&connection, [5, 6]).await.expect("a new connection"), [5, 6]);
    server.proxy.set_mode(Mode::DropReplies);
    let begin = Instant::now();
    assert_unavailable(add_alone(&connection, [7, 8]).await.map(drop));
    assert!(begin.elapsed() < LONGEST_WAIT, "{:?}", begin.elapsed());
    server.proxy.set_mode(Mode::Pass);
    assert_eq!(add_alone(&connection, [9, 10]).await.expect("a new connection"), [9, 10]);
    // Those whose answer was dropped were committed, though nobody heard of it.
    assert_eq!(seats(&open(&server.url).await).await, [1, 2, 5, 6, 7, 8, 9, 10]);
}

#[tokio::test]
#[ignore = "needs Postgres: scripts/test runs it"]
async fn one_that_breaks_within_a_transaction_is_replaced_and_nothing_is_written() {
    let server = Proxied::start().await;
    let database = open(&server.url).await;
    create_seats(&database).await;
    let connection = KeptConnection::new(database.clone());
    for step in ["a statement", "the commit"] {
        let transaction = connection.begin().await.unwrap();
        add_seat(&transaction, 1).await.unwrap();
        server.proxy.reset_connections();
        let written = if step == "a statement" { add_seat(&transaction, 2).await } else { Ok(0) };
        assert_unavailable(transaction.end(written).await.map(drop));
    }
    assert_eq!(add(&connection, 3).await.unwrap(), 1);
    let database = open(&server.url).await;
    assert_eq!(seats(&database).await, [3]);
}

#[tokio::test]
#[ignore = "needs Postgres: scripts/test runs it"]
async fn a_database_that_is_cut_off_answers_soon_and_is_used_again_at_once() {
    let server = Proxied::start().await;
    let connection = KeptConnection::new(open(&server.url).await);
    server_process(&connection).await.unwrap();
    for mode in [Mode::Refuse, Mode::Blackhole] {
        server.proxy.set_mode(mode);
        let begin = Instant::now();
        assert_unavailable(connection.begin().await.map(drop));
        assert!(begin.elapsed() < LONGEST_WAIT, "{mode:?}: {:?}", begin.elapsed());
        server.proxy.set_mode(Mode::Pass);
        server_process(&connection).await.expect("a new connection");
    }
}

#[tokio::test]
#[ignore = "needs Postgres: scripts/test runs it"]
async fn one_that_goes_silent_within_a_transaction_is_given_up_soon_and_replaced() {
    let server = Proxied::start().await;
    let database = open(&server.url).await;
    create_seats(&database).await;
    let connection = KeptConnection::new(database.clone());
    let cases =
        [("a statement", Mode::Stall), ("the commit", Mode::Blackhole), ("the commit", Mode::DropReplies)];
    for (ordinal, (step, mode)) in (1..).zip(cases) {
        let transaction = connection.begin().await.unwrap();
        add_seat(&transaction, ordinal).await.unwrap();
        server.proxy.set_mode(mode);
        let begin = Instant::now();
        let written = if step == "a statement" { add_seat(&transaction, 100).await } else { Ok(0) };
        assert_unavailable(transaction.end(written).await.map(drop));
        assert!(begin.elapsed() < LONGEST_WAIT, "{step}, {mode:?}: {:?}", begin.elapsed());
        server.proxy.set_mode(Mode::Pass);
        assert_eq!(add(&connection, 10 * ordinal).await.expect("a new connection"), 1);
    }
    // The last one was committed, though nobody heard of it.
    assert_eq!(seats(&open(&server.url).await).await, [3, 10, 20, 30]);
}

#[tokio::test]
#[ignore = "needs Postgres: scripts/test runs it"]
async fn what_one_that_is_cut_off_has_locked_is_not_locked_for_long() {
    let server = Proxied::start().await;
    let direct = open(server.database.url()).await;
    create_seats(&direct).await;
    let connection = KeptConnection::new(open(&server.url).await);
    let transaction = connection.begin().await.unwrap();
    add_seat(&transaction, 1).await.unwrap();
    server.proxy.set_mode(Mode::Blackhole);
    direct.writer().execute_unprepared("INSERT INTO seat VALUES (1)").await.expect("the seat is to be had");
    assert_unavailable(transaction.end(Ok(())).await);
    assert_eq!(seats(&direct).await, [1]);
}

#[tokio::test]
#[ignore = "needs Postgres: scripts/test runs it"]
async fn one_that_the_server_ended_as_nothing_was_done_on_it_is_unavailable() {
    let server = mesh_test::postgres::create_database().await;
    let database = open(server.url()).await;
    create_seats(&database).await;
    let connection = KeptConnection::new(database.clone());
    let transaction = connection.begin().await.unwrap();
    let at_once = "SET LOCAL idle_in_transaction_session_timeout = 1";
    transaction.execute_unprepared(at_once).await.unwrap();
    wait_until("the server to end it", LONGEST_WAIT, async || {
        let statement = sql(
            database.reader(),
            "SELECT 1 FROM pg_stat_activity
             WHERE datname = current_database() AND state LIKE 'idle in%'",
            [],
        );
        match database.reader().query_all_raw(statement).await.unwrap().len() {
            0 => Ok(()),
            _ => Err("it is there".to_owned()),
        }
    })
    .await;
    let added = add_seat(&transaction, 1).await;
    assert_unavailable(transaction.end(added).await.map(drop));
    assert_eq!(add(&connection, 2).await.unwrap(), 1);
}

#[tokio::test]
#[ignore = "needs Postgres: scripts/test runs it"]
async fn it_is_closed_with_its_database() {
    let server = mesh_test::postgres::create_database().await;
    let database = open(server.url()).await;
    let connection = KeptConnection::new(database.clone());
    server_process(&connection).await.unwrap();
    database.close().await;
    let onlooker = open(server.url()).await;
    let others =
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    wait_until("its connections to end", LONGEST_WAIT, async || {
        let statement = sql(onlooker.reader(), others, []);
        match onlooker.reader().query_all_raw(statement).await.unwrap().len() {
            0 => Ok(()),
            left => Err(format!("{left} are left")),
        }
    })
    .await;
}

#[tokio::test]
#[ignore = "needs Postgres: scripts/test runs it"]
async fn it_does_not_wait_for_connections_of_the_pool() {
    let server = mesh_test::postgres::create_database().await;
    let database = open(server.url()).await;
    let connection = KeptConnection::new(database.clone());
    let mut held = Vec::new();
    while let Ok(transaction) = database.begin().await {
        held.push(transaction);
    }
    server_process(&connection).await.expect("a connection of its own");
}

/// How the database finds a seat by its key.
async fn plan(connection: &impl ConnectionTrait) -> String {
    let statement = sql(connection, "EXPLAIN SELECT * FROM seat WHERE ordinal IN (1, 2)", []);
    let rows = connection.query_all_raw(statement).await.unwrap();
    rows.iter().map(|row| row.try_get_by_index::<String>(0).unwrap()).collect()
}

#[tokio::test]
#[ignore = "needs Postgres: scripts/test runs it"]
async fn a_plan_goes_by_the_key_however_small_the_table_is() {
    let server = mesh_test::postgres::create_database().await;
    let database = open(server.url()).await;
    create_seats(&database).await;
    add(&KeptConnection::new(database.clone()), 1).await.unwrap();
    // One that knows that the table is small would read all of it.
    database.writer().execute_unprepared("ANALYZE seat").await.unwrap();
    let connection = KeptConnection::new(database.clone());
    let transaction = connection.begin().await.unwrap();
    for plan in [plan(&transaction).await, plan(database.reader()).await] {
        assert!(plan.contains("Index"), "{plan}");
    }
}

//! A schema is brought up to date once, however many programs start at once.

use futures_util::future::join_all;
use mesh::database::{Database, DatabaseError, Migration, SchemaChange, sql};
use sea_orm::ConnectionTrait;

use crate::{on_both_databases, open};

const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, description: "seats", sql: "CREATE TABLE seat (ordinal int PRIMARY KEY)" },
    Migration { version: 2, description: "one seat", sql: "INSERT INTO seat VALUES (1)" },
];
const BROKEN: Migration = Migration {
    version: 3,
    description: "half of it",
    sql: "INSERT INTO seat VALUES (2); INSERT INTO nowhere VALUES (1)",
};

on_both_databases!(programs_that_start_at_once_migrate_once, nothing_of_a_failed_migration_stays);

async fn seats(database: &Database) -> i64 {
    let statement = sql(database.reader(), "SELECT count(*) AS seats FROM seat", []);
    database.reader().query_one_raw(statement).await.unwrap().unwrap().try_get("", "seats").unwrap()
}

async fn programs_that_start_at_once_migrate_once(url: &str) {
    let mut databases = Vec::new();
    for _ in 0..4 {
        databases.push(open(url).await);
    }
    let changes = join_all(databases.iter().map(|database| database.migrate(MIGRATIONS))).await;
    let mut changes: Vec<_> = changes.into_iter().map(|change| change.unwrap()).collect();
    changes.sort_by_key(|change| change.from);
    assert_eq!(changes[0], SchemaChange { from: 0, to: 2 });
    assert_eq!(changes[1..], [SchemaChange { from: 2, to: 2 }; 3]);
    assert_eq!(seats(&databases[0]).await, 1);
}

async fn nothing_of_a_failed_migration_stays(url: &str) {
    let database = open(url).await;
    let broken = [MIGRATIONS, &[BROKEN]].concat();
    assert!(matches!(database.migrate(&broken).await, Err(DatabaseError::Migrate(_))));
    assert_eq!(seats(&database).await, 1);
    // Another program, or this one after a new start, is not held up by what the failed one left.
    open(url).await.migrate(MIGRATIONS).await.unwrap();
    let mended = Migration { sql: "INSERT INTO seat VALUES (2)", ..BROKEN };
    open(url).await.migrate(&[MIGRATIONS, &[mended]].concat()).await.unwrap();
    assert_eq!(seats(&database).await, 2);
}

/// Postgres ends statements that take too long; to migrate a large table takes long.
#[tokio::test]
#[ignore = "needs Postgres: scripts/test runs it"]
async fn a_migration_may_take_longer_than_a_statement() {
    let database = mesh_test::postgres::create_database().await;
    let database = open(database.url()).await;
    let note = Migration {
        version: 1,
        description: "notes the timeout",
        sql: "CREATE TABLE note AS SELECT current_setting('statement_timeout') AS timeout",
    };
    database.migrate(&[note]).await.unwrap();
    let ask = async |text: &str| {
        let row = database.reader().query_one_raw(sql(database.reader(), text, [])).await.unwrap().unwrap();
        row.try_get::<String>("", "timeout").unwrap()
    };
    assert_eq!(ask("SELECT timeout FROM note").await, "0");
    assert_eq!(ask("SELECT current_setting('statement_timeout') AS timeout").await, "5s");
}

//! Throwaway Postgres databases on the server that `scripts/test` starts.
//!
//! A test that needs one carries `#[ignore = "needs Postgres: scripts/test runs it"]`. So plain `cargo test` reports it
//! as ignored; it never passes by skipping.

use std::time::Duration;

use sea_orm::{ConnectOptions, ConnectionTrait, Database};
use uuid::Uuid;

/// A Postgres database of one test. It is left behind: the whole server is thrown away.
#[derive(Debug)]
pub struct TestDatabase {
    url: String,
}

impl TestDatabase {
    /// Where to connect: `postgres://…/test_…`.
    pub fn url(&self) -> &str {
        &self.url
    }
}

/// Creates an empty database with a name of its own on the server that `TEST_POSTGRES_URL` names.
///
/// # Panics
///
/// When `TEST_POSTGRES_URL` is not set, or the server refuses.
pub async fn create_database() -> TestDatabase {
    let server = std::env::var("TEST_POSTGRES_URL").unwrap_or_else(|_| {
        panic!(
            "this test needs Postgres and TEST_POSTGRES_URL is not set: run scripts/test, which starts one"
        )
    });
    let name = format!("test_{}", Uuid::now_v7().simple());
    let mut options = ConnectOptions::new(&server);
    // The server is on this machine: what takes longer is not there, and a test that hangs says less.
    let patience = Duration::from_secs(10);
    options.max_connections(1).connect_timeout(patience).acquire_timeout(patience).sqlx_logging(false);
    let connection = Database::connect(options)
        .await
        .unwrap_or_else(|why| panic!("no Postgres answers at TEST_POSTGRES_URL: {why}"));
    connection
        .execute_unprepared(&format!("CREATE DATABASE {name}"))
        .await
        .unwrap_or_else(|why| panic!("Postgres refused to create a database: {why}"));
    connection.close().await.expect("closing the connection that created a database");
    TestDatabase { url: with_database(&server, &name) }
}

/// The URL of another database on the same server.
fn with_database(server: &str, name: &str) -> String {
    let (location, parameters) = match server.split_once('?') {
        Some((location, parameters)) => (location, format!("?{parameters}")),
        None => (server, String::new()),
    };
    let authority_start = location.find("://").map_or(0, |at| at + "://".len());
    let authority_end =
        location[authority_start..].find('/').map_or(location.len(), |at| authority_start + at);
    format!("{}/{name}{parameters}", &location[..authority_end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_database_of_the_url_is_replaced() {
        for (server, expected) in [
            ("postgres://postgres@127.0.0.1:5432/postgres", "postgres://postgres@127.0.0.1:5432/test_1"),
            ("postgres://postgres@127.0.0.1:5432", "postgres://postgres@127.0.0.1:5432/test_1"),
            ("postgres://u:p@h/db?sslmode=disable", "postgres://u:p@h/test_1?sslmode=disable"),
            ("postgres://h/?host=/run/pg", "postgres://h/test_1?host=/run/pg"),
        ] {
            assert_eq!(with_database(server, "test_1"), expected);
        }
    }

    #[tokio::test]
    #[ignore = "needs Postgres: scripts/test runs it"]
    async fn databases_made_at_once_are_apart() {
        let (one, other) = tokio::join!(create_database(), create_database());
        assert_ne!(one.url(), other.url());
        for database in [&one, &other] {
            let connection = Database::connect(database.url()).await.expect("it answers");
            // The second would fail if both were the same database.
            connection
                .execute_unprepared("CREATE TABLE seat (ordinal int)")
                .await
                .expect("an empty database");
            connection.close().await.expect("closing");
        }
    }
}

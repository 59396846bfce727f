//! What services keep in databases, and what becomes of them when the database does not answer.

mod clock;
mod idempotency;
mod kept;
mod migration;
mod outage;

/// Makes two tests of each body: on a fresh database of either kind, whose URL it is given.
macro_rules! on_both_databases {
    ($($body:ident),* $(,)?) => {
        mod sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $body() {
                    let database = mesh_test::sqlite::create_database();
                    super::$body(database.url()).await;
                }
            )*
        }

        mod postgres {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                #[ignore = "needs Postgres: scripts/test runs it"]
                async fn $body() {
                    let database = mesh_test::postgres::create_database().await;
                    super::$body(database.url()).await;
                }
            )*
        }
    };
}

use on_both_databases;

/// Connections to Postgres: fewer than the tests have tasks, as in production.
const CONNECTIONS: u32 = 4;

async fn open(url: &str) -> mesh::database::Database {
    mesh::database::Database::open(&url.parse().unwrap(), CONNECTIONS).await.unwrap()
}

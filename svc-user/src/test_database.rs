//! A migrated database for each test: on SQLite always, on Postgres where there is one.

use mesh::database::Database;

use crate::MIGRATIONS;

/// Connections to Postgres: fewer than the tests have tasks, as in production.
const CONNECTIONS: u32 = 10;

/// A test's own database.
pub(crate) struct TestDatabase {
    pub(crate) database: Database,
    /// The file goes when this goes.
    _file: Option<mesh_test::sqlite::TestDatabase>,
}

impl TestDatabase {
    pub(crate) async fn sqlite() -> Self {
        let file = mesh_test::sqlite::create_database();
        Self { database: open(file.url()).await, _file: Some(file) }
    }

    pub(crate) async fn postgres() -> Self {
        Self { database: open(mesh_test::postgres::create_database().await.url()).await, _file: None }
    }
}

async fn open(url: &str) -> Database {
    let database = Database::open(&url.parse().unwrap(), CONNECTIONS).await.unwrap();
    database.migrate(MIGRATIONS).await.unwrap();
    database
}

/// Makes two tests of each function that takes a [`TestDatabase`].
macro_rules! on_both_databases {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name($crate::test_database::TestDatabase::sqlite().await).await;
                }
            )*
        }

        mod postgres {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                #[ignore = "needs Postgres: scripts/test runs it"]
                async fn $name() {
                    super::$name($crate::test_database::TestDatabase::postgres().await).await;
                }
            )*
        }
    };
}

pub(crate) use on_both_databases;

//! Throwaway SQLite databases: a file each, in a directory that goes when the value goes.

use tempfile::TempDir;

/// A SQLite database of one test.
#[derive(Debug)]
pub struct TestDatabase {
    url: String,
    _directory: TempDir,
}

impl TestDatabase {
    /// Where to connect: `sqlite:///…/test.db`. Works as long as this value lives.
    pub fn url(&self) -> &str {
        &self.url
    }
}

/// Creates an empty database.
///
/// # Panics
///
/// When the directory for temporary files can't be written to.
pub fn create_database() -> TestDatabase {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("test.db");
    // To SQLite an empty file is an empty database, so connecting works with and without `?mode=rwc`.
    std::fs::write(&file, []).expect("an empty database file");
    TestDatabase { url: format!("sqlite://{}", file.display()), _directory: directory }
}

#[cfg(test)]
mod tests {
    use sea_orm::{ConnectionTrait, Database};

    use super::*;

    #[tokio::test]
    async fn each_database_is_empty_and_writable() {
        let databases = [create_database(), create_database()];
        for database in &databases {
            let connection = Database::connect(database.url()).await.expect("it answers");
            // The second would fail if both were the same file.
            connection
                .execute_unprepared("CREATE TABLE seat (ordinal INTEGER)")
                .await
                .expect("an empty database");
            connection.close().await.expect("closing");
        }
    }

    #[test]
    fn the_file_goes_with_the_value() {
        let database = create_database();
        let file = database.url().trim_start_matches("sqlite://").to_owned();
        assert!(std::fs::exists(&file).expect("readable"));
        drop(database);
        assert!(!std::fs::exists(&file).expect("readable"));
    }
}

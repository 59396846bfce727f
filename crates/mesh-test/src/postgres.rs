//! Throwaway Postgres databases on the server that `scripts/test` starts, and servers for tests that stop one.
//!
//! A test that needs either carries `#[ignore = "needs Postgres: scripts/test runs it"]`. So plain `cargo test` reports it
//! as ignored; it never passes by skipping.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use sea_orm::{ConnectOptions, ConnectionTrait, Database};
use tempfile::TempDir;
use uuid::Uuid;

use crate::free_port;

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
    create_database_on(&server).await
}

async fn create_database_on(server: &str) -> TestDatabase {
    let name = format!("test_{}", Uuid::now_v7().simple());
    let mut options = ConnectOptions::new(server);
    // The server is on this machine: what takes longer is not there, and a test that hangs says less.
    let patience = Duration::from_secs(10);
    options.max_connections(1).connect_timeout(patience).acquire_timeout(patience).sqlx_logging(false);
    let connection = Database::connect(options)
        .await
        .unwrap_or_else(|why| panic!("no Postgres answers at {server}: {why}"));
    connection
        .execute_unprepared(&format!("CREATE DATABASE {name}"))
        .await
        .unwrap_or_else(|why| panic!("Postgres refused to create a database: {why}"));
    connection.close().await.expect("closing the connection that created a database");
    TestDatabase { url: with_database(server, &name) }
}

/// A Postgres server of one test, which may stop it and start it again. It is stopped and removed when it is dropped.
///
/// Commits are in the write-ahead log when they are acknowledged, unlike those of the server that `scripts/test` starts:
/// what was acknowledged outlives the server's processes.
#[derive(Debug)]
pub struct Server {
    directory: TempDir,
    port: u16,
}

impl Server {
    /// Makes a server and starts it.
    ///
    /// # Panics
    ///
    /// When there are no programs of Postgres, or it does not start.
    pub fn start() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        // Postgres refuses to run as root, and its own user must find the directory.
        let permissions = fs::Permissions::from_mode(0o777);
        fs::set_permissions(directory.path(), permissions).expect("our own directory");
        let server = Self { directory, port: free_port() };
        server.run("initdb", &["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]);
        server.start_again();
        server
    }

    /// Starts it after [`stop`](Self::stop), and returns when it accepts connections.
    pub fn start_again(&self) {
        let settings = format!(
            "-c listen_addresses=127.0.0.1 -c unix_socket_directories={} -c fsync=off -p {}",
            self.directory.path().display(),
            self.port
        );
        self.run("pg_ctl", &["-w", "-o", &settings, "-l", &self.path("log"), "start"]);
    }

    /// Ends its processes at once, without a farewell to anybody.
    pub fn stop(&self) {
        self.run("pg_ctl", &["-m", "immediate", "stop"]);
    }

    /// Creates an empty database.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn create_database(&self) -> TestDatabase {
        create_database_on(&format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)).await
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// Runs a program of Postgres on the server's data.
    fn run(&self, program: &str, arguments: &[&str]) {
        let program = programs().join(program);
        let is_root = fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
        let mut command = if is_root {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(&program);
            command
        } else {
            Command::new(&program)
        };
        command.args(["-D", &self.path("data")]).args(arguments).current_dir(&self.directory);
        // The server outlives the command, and would keep a pipe open.
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        let is_done = status.as_ref().is_ok_and(|status| status.success());
        assert!(is_done, "{} {arguments:?}: {status:?}", program.display());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if Path::new(&self.path("data/postmaster.pid")).exists() {
            self.stop();
        }
    }
}

/// Where the programs of the newest Postgres are. Debian keeps them off the PATH; elsewhere they are on it.
fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let programs = versions.map(|version| version.path().join("bin"));
    let version = |path: &PathBuf| -> Option<u32> { path.parent()?.file_name()?.to_str()?.parse().ok() };
    programs.filter(|path| path.join("initdb").exists()).max_by_key(version).unwrap_or_default()
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
    async fn a_server_that_was_stopped_has_what_it_acknowledged() {
        let server = Server::start();
        let database = server.create_database().await;
        let mut options = ConnectOptions::new(database.url());
        options.acquire_timeout(Duration::from_secs(2));
        let connection = Database::connect(options).await.expect("it answers");
        connection.execute_unprepared("CREATE TABLE seat (ordinal int)").await.expect("an empty database");
        server.stop();
        connection.execute_unprepared("SELECT 1").await.expect_err("it is stopped");
        server.start_again();
        connection.execute_unprepared("INSERT INTO seat VALUES (1)").await.expect("it answers again");
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

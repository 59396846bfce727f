//! The program and the schema: who brings it up to date, and what a program says to a schema that is not its own.

use std::{
    fs,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use mesh::database::{Database, sql};
use mesh_test::{
    postgres::{TestDatabase, create_database},
    wait_until,
};
use sea_orm::ConnectionTrait;
use svc_booking::MIGRATIONS;
use tempfile::NamedTempFile;

/// How long a process may take to do its work, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process of the service; killed when the test ends.
struct Program {
    process: Child,
    output: NamedTempFile,
    errors: NamedTempFile,
}

impl Program {
    /// Starts `svc-booking serve` or `svc-booking migrate`. It serves nobody: its Redis is nowhere.
    fn start(command: &str, database: &TestDatabase) -> Self {
        let [output, errors] = [(); 2].map(|()| NamedTempFile::new().unwrap());
        let mut program = Command::new(env!("CARGO_BIN_EXE_svc-booking"));
        program.arg(command).env_clear().envs([
            ("DATABASE_URL", database.url()),
            ("REDIS_URL", "redis://127.0.0.1:1"),
            ("SERVICE_TOKEN_KEY", "0123456789abcdef0123456789abcdef"),
            ("GRPC_LISTEN_ADDR", "127.0.0.1:0"),
            ("ADMIN_LISTEN_ADDR", "127.0.0.1:0"),
        ]);
        program.stdin(Stdio::null()).stdout(output.reopen().unwrap()).stderr(errors.reopen().unwrap());
        Self { process: program.spawn().unwrap(), output, errors }
    }

    /// Waits for its end: how it ended, and what it said on standard output.
    async fn end(&mut self) -> (ExitStatus, String) {
        let status = wait_until("the process to end", PATIENCE, async || {
            self.process.try_wait().unwrap().ok_or_else(|| format!("it runs: {}", read(&self.errors)))
        })
        .await;
        (status, read(&self.output))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn read(file: &NamedTempFile) -> String {
    fs::read_to_string(file.path()).unwrap()
}

async fn open(database: &TestDatabase) -> Database {
    Database::open(&database.url().parse().unwrap(), 2).await.unwrap()
}

/// The version that this program brings a schema to.
fn newest() -> i64 {
    MIGRATIONS.last().unwrap().version
}

#[tokio::test]
#[ignore = "needs Postgres: scripts/test runs it"]
async fn of_two_that_migrate_at_once_one_does_it() {
    let database = create_database().await;
    let ours = open(&database).await;
    // Both come to a halt in the middle, and go on together.
    let obstacle = ours.begin().await.unwrap();
    obstacle.execute_unprepared("SET LOCAL idle_in_transaction_session_timeout = 0").await.unwrap();
    obstacle.execute_unprepared("CREATE TABLE _sqlx_migrations (version bigint)").await.unwrap();
    let mut programs = [(); 2].map(|()| Program::start("migrate", &database));
    wait_until("both to wait", PATIENCE, async || {
        let text = "SELECT COUNT(*) AS waiting FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let row = ours.reader().query_one_raw(sql(ours.reader(), text, [])).await.unwrap().unwrap();
        match row.try_get::<i64>("", "waiting").unwrap() {
            2 => Ok(()),
            waiting => Err(format!("{waiting} wait")),
        }
    })
    .await;
    obstacle.rollback().await.unwrap();

    let mut said = Vec::new();
    for program in &mut programs {
        let (status, output) = program.end().await;
        assert_eq!(status.code(), Some(0), "{}", read(&program.errors));
        said.push(output);
    }
    said.sort_by_key(|output| output.contains("already"));
    let newest = newest();
    assert!(said[0].ends_with(&format!(" went from version 0 to {newest}\n")), "{said:?}");
    assert!(said[1].ends_with(&format!(" is at version {newest} already: nothing to do\n")), "{said:?}");
}

#[tokio::test]
#[ignore = "needs Postgres: scripts/test runs it"]
async fn a_program_that_is_older_than_the_schema_says_so_and_ends() {
    let database = create_database().await;
    let ours = open(&database).await;
    ours.migrate(MIGRATIONS).await.unwrap();
    let step = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
        VALUES (99, 'of a newer program', TRUE, '', 0)";
    ours.writer().execute_unprepared(step).await.unwrap();
    for command in ["serve", "migrate"] {
        let mut program = Program::start(command, &database);
        let (status, output) = program.end().await;
        assert_eq!((status.code(), output.as_str()), (Some(1), ""), "{command}");
        let expected = format!(
            "svc-booking: the database has migration 99, and this program knows none after {}: \
             a newer program has migrated it; start that one",
            newest()
        );
        let errors = read(&program.errors);
        assert_eq!(errors.lines().last(), Some(expected.as_str()), "{command}: {errors}");
    }
}

#[tokio::test]
#[ignore = "needs Postgres: scripts/test runs it"]
async fn a_program_that_is_newer_than_the_schema_migrates_it_and_says_so() {
    let database = create_database().await;
    open(&database).await.migrate(&MIGRATIONS[..1]).await.unwrap();
    let program = Program::start("serve", &database);
    let newest = newest();
    wait_until("it to say what it did", PATIENCE, async || {
        let errors = read(&program.errors);
        let is_it = |line: &str| {
            ["\"the database was migrated\"", "\"schema.from\":1", &format!("\"schema.to\":{newest}")]
                .iter()
                .all(|part| line.contains(part))
        };
        if errors.lines().any(is_it) { Ok(()) } else { Err(errors) }
    })
    .await;
    let (status, output) = Program::start("migrate", &database).end().await;
    assert!(status.success());
    assert!(output.contains("nothing to do"), "{output}");
}

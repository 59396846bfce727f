//! Boxoffice as it is deployed, for measuring: the release binaries beside this one, each a process of its own, with a
//! Redis of their own and databases on the Postgres that TEST_POSTGRES_URL names (`scripts/with-postgres --durable`).

use std::{
    collections::BTreeMap,
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use boxoffice::api::Api;
use mesh_test::postgres::create_database;
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::machine;

/// How long a process may take to serve.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is asked whether it does.
const LOOK: Duration = Duration::from_millis(1);

/// The processes that serve, and what they stand on.
pub(crate) struct Deployment {
    pub(crate) processes: Vec<Process>,
    pub(crate) redis: mesh_test::Redis,
    postgres: DatabaseConnection,
    postmaster: u32,
    directory: tempfile::TempDir,
    variables: Vec<(&'static str, String)>,
}

/// A service or the gateway; killed when dropped.
pub(crate) struct Process {
    pub(crate) name: &'static str,
    /// Where it serves.
    pub(crate) address: SocketAddr,
    /// From before the process was made until it served.
    pub(crate) until_serving: Duration,
    admin: SocketAddr,
    child: Child,
}

/// What was used up so far.
#[derive(Debug, Clone)]
pub(crate) struct Usage {
    /// The CPU time of each program.
    cpu: BTreeMap<String, Duration>,
    /// The CPU time of everything on this machine, as `bench/reference` counts it.
    cpu_of_machine: Duration,
    statements: i64,
    commits: i64,
    wal_bytes: i64,
    lanes: BTreeMap<String, Lane>,
}

/// Commits of a lane, and the jobs that they carried.
#[derive(Debug, Clone, Copy, Default)]
struct Lane {
    batches: f64,
    jobs: f64,
}

impl Deployment {
    /// A Postgres to have databases on and a Redis; no process yet. What all processes are told.
    pub(crate) async fn prepare(variables: Vec<(&'static str, String)>) -> anyhow::Result<Self> {
        let server = std::env::var("TEST_POSTGRES_URL").context(
            "TEST_POSTGRES_URL is not set: run this by scripts/with-postgres --durable, as scripts/bench does",
        )?;
        let mut options = ConnectOptions::new(server);
        options.max_connections(1).sqlx_logging(false);
        let postgres = Database::connect(options).await?;
        let is_durable = number(
            &postgres,
            "SELECT (current_setting('fsync')::bool AND current_setting('synchronous_commit')::bool)::int::bigint",
        );
        ensure!(
            is_durable.await? == 1,
            "this Postgres does not wait for the disk: scripts/with-postgres --durable"
        );
        postgres.execute_unprepared("CREATE EXTENSION IF NOT EXISTS pg_stat_statements").await?;
        let backend = number(&postgres, "SELECT pg_backend_pid()::bigint").await?;
        let redis = mesh_test::Redis::start().await;
        let mut variables = variables;
        variables.extend([
            ("REDIS_URL", redis.url()),
            ("ADMIN_LISTEN_ADDR", "127.0.0.1:0".to_owned()),
            ("DRAIN_WAIT", "0s".to_owned()),
            // There are more processes than cores: more threads would only wake each other (but see the gateway).
            ("TOKIO_WORKER_THREADS", "1".to_owned()),
        ]);
        Ok(Self {
            processes: Vec::new(),
            redis,
            postgres,
            postmaster: machine::parent_of(backend.try_into()?)?,
            directory: tempfile::tempdir()?,
            variables,
        })
    }

    /// Starts a service, and waits until it serves. Where it does.
    pub(crate) async fn start_service(
        &mut self,
        name: &'static str,
        database_url: &str,
    ) -> anyhow::Result<SocketAddr> {
        let variables = [("GRPC_LISTEN_ADDR", "127.0.0.1:0"), ("DATABASE_URL", database_url)];
        self.start(name, &variables, async |address| {
            let channel = Channel::from_shared(format!("http://{address}"))?.connect().await?;
            let health = HealthClient::new(channel).check(HealthCheckRequest::default()).await?.into_inner();
            ensure!(health.status() == ServingStatus::Serving, "{health:?}");
            Ok(())
        })
        .await
    }

    /// Starts the gateway, and waits until it is ready. Where it is.
    pub(crate) async fn start_gateway(&mut self) -> anyhow::Result<SocketAddr> {
        // Every REST call passes it: one thread would always have something to do, get half a core, and be waited for.
        let threads = std::thread::available_parallelism()?.to_string();
        let variables = [("HTTP_LISTEN_ADDR", "127.0.0.1:0"), ("TOKIO_WORKER_THREADS", threads.as_str())];
        self.start("gateway-rest", &variables, async |address| {
            Api::new(format!("http://{address}"))?
                .get("/readyz", None)
                .await?
                .expect_success("being ready")?;
            Ok(())
        })
        .await
    }

    /// What the processes that are started from now on are told.
    pub(crate) fn tell(&mut self, name: &'static str, value: String) {
        self.variables.push((name, value));
    }

    async fn start(
        &mut self,
        name: &'static str,
        variables: &[(&str, &str)],
        serves: impl AsyncFn(SocketAddr) -> anyhow::Result<()>,
    ) -> anyhow::Result<SocketAddr> {
        let log = self.directory.path().join(format!("{name}.log"));
        let begin = Instant::now();
        let mut command = Command::new(program(name)?);
        command
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .envs(variables.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        let child = command.spawn().with_context(|| format!("{name} can't be started"))?;
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut process =
            Process { name, address: nowhere, until_serving: Duration::ZERO, admin: nowhere, child };
        loop {
            if process.address != nowhere {
                if serves(process.address).await.is_ok() {
                    break;
                }
            } else if let Some((address, admin)) = addresses(&log)? {
                (process.address, process.admin) = (address, admin);
                continue;
            }
            if begin.elapsed() > PATIENCE || process.child.try_wait()?.is_some() {
                bail!("{name} does not serve: {}", std::fs::read_to_string(&log)?);
            }
            tokio::time::sleep(LOOK).await;
        }
        process.until_serving = begin.elapsed();
        let address = process.address;
        self.processes.push(process);
        Ok(address)
    }

    /// What was used up so far, by everybody.
    pub(crate) async fn usage(&self) -> anyhow::Result<Usage> {
        let mut lanes: BTreeMap<String, Lane> = BTreeMap::new();
        for process in &self.processes {
            let metrics = Api::new(format!("http://{}", process.admin))?.get_raw("/metrics", None).await?;
            for line in String::from_utf8(metrics)?.lines() {
                let Some((series, value)) = line.rsplit_once(' ') else { continue };
                let Some(lane) = series.split("lane=\"").nth(1).and_then(|rest| rest.split('"').next())
                else {
                    continue;
                };
                let lane = lanes.entry(format!("{}.{lane}", process.name)).or_default();
                match series.split('{').next() {
                    Some("lane_batch_jobs_count") => lane.batches += value.parse::<f64>()?,
                    Some("lane_batch_jobs_sum") => lane.jobs += value.parse::<f64>()?,
                    _ => {}
                }
            }
        }
        let of_postgres = async |what: &str| number(&self.postgres, what).await;
        Ok(Usage {
            cpu: machine::cpu_by_program(self.postmaster)?,
            cpu_of_machine: machine::cpu_of_all()?,
            statements: of_postgres("SELECT sum(calls)::bigint FROM pg_stat_statements").await?,
            commits: of_postgres("SELECT sum(xact_commit)::bigint FROM pg_stat_database").await?,
            wal_bytes: of_postgres("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint").await?,
            lanes,
        })
    }
}

impl Process {
    /// The memory that it has now, in bytes.
    pub(crate) fn memory(&self) -> anyhow::Result<u64> {
        machine::memory_of(self.child.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Usage {
    /// What was used since `before` for so many bookings, as lines for people.
    pub(crate) fn report(&self, before: &Self, bookings: usize) -> String {
        let each = |amount: f64| amount / bookings as f64;
        let cpu: BTreeMap<&str, f64> = (self.cpu.iter())
            .map(|(program, now)| {
                let then = before.cpu.get(program).copied().unwrap_or_default();
                (program.as_str(), each(now.saturating_sub(then).as_micros() as f64))
            })
            .collect();
        let generator = cpu.get(machine::GENERATOR).copied().unwrap_or_default();
        let product: f64 = cpu.values().sum::<f64>() - generator;
        let programs: Vec<_> = cpu.iter().map(|(program, cpu)| format!("{program} {cpu:.0}")).collect();
        let lanes: Vec<_> = (self.lanes.iter())
            .map(|(name, now)| {
                let then = before.lanes.get(name).copied().unwrap_or_default();
                format!("{name} {:.1}", (now.jobs - then.jobs) / (now.batches - then.batches))
            })
            .collect();
        let of_machine = (self.cpu_of_machine - before.cpu_of_machine).as_micros() as f64;
        format!(
            "  CPU us a booking: {product:.0} without the generator, {:.0} with it, {:.0} all that the machine did\n  \
             of these: {}\n  jobs in a lane's batch: {}\n  a booking: {:.2} statements, {:.2} commits, {:.2} KB of WAL",
            product + generator,
            each(of_machine),
            programs.join(", "),
            lanes.join(", "),
            each((self.statements - before.statements) as f64),
            each((self.commits - before.commits) as f64),
            each((self.wal_bytes - before.wal_bytes) as f64) / 1000.0,
        )
    }
}

/// An empty database for a service; where it is.
pub(crate) async fn new_database() -> String {
    create_database().await.url().to_owned()
}

/// The program of this name that was built together with this one.
fn program(name: &str) -> anyhow::Result<PathBuf> {
    let examples = std::env::current_exe()?;
    let path =
        examples.parent().and_then(Path::parent).context("no directory above the examples")?.join(name);
    ensure!(path.exists(), "{} is not built: scripts/bench builds it", path.display());
    Ok(path)
}

/// Where a process says in its log that it is to be found, by its callers and by operators.
fn addresses(log: &Path) -> anyhow::Result<Option<(SocketAddr, SocketAddr)>> {
    let text = std::fs::read_to_string(log)?;
    let mut lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let Some(line) = lines.find(|line| line["admin.address"].is_string()) else { return Ok(None) };
    let address = |field: &str| -> anyhow::Result<SocketAddr> {
        Ok(line[field].as_str().context("no address in the log")?.parse()?)
    };
    Ok(Some((address("address")?, address("admin.address")?)))
}

/// The one number that a query gives.
async fn number(postgres: &DatabaseConnection, query: &str) -> anyhow::Result<i64> {
    let row = postgres.query_one_raw(Statement::from_string(DbBackend::Postgres, query)).await?;
    Ok(row.context("no row")?.try_get_by_index(0)?)
}

//! The processes of a mesh, the lines between them, and whether they are sound.

use std::{
    collections::BTreeMap,
    io::Write,
    net::{Ipv4Addr, SocketAddr},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

use boxoffice::{
    api::Api,
    demo,
    sweep::{self, Report, Witness},
};
use chrono::{DateTime, Utc};
use mesh::database::{Database, sql};
use mesh_test::{
    FaultProxy, Mode, Redis, free_port,
    postgres::{self, TestDatabase},
    wait_until,
};
use reqwest::Url;
use sea_orm::{ConnectionTrait, Value};
use tonic::transport::Endpoint;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use uuid::Uuid;

use crate::{
    crowd::{Crowd, SWEEP},
    stage::{self, Process, process::PATIENCE},
};

/// How long after it is back a killed service may take to settle what it was doing.
pub(crate) const RECOVERY: Duration = Duration::from_secs(10);
/// How long holds last.
pub(crate) const HOLD_TTL: Duration = Duration::from_secs(10);
/// How long holds are kept while they are being booked: longer than others.
const HELD_WHILE_BOOKED: Duration = Duration::from_secs(15);
/// How often holds are counted, and as much again.
const COUNTED: Duration = Duration::from_secs(2);
/// How long places may be shown as sold that are not: what a process did not tell Redis before it died is found by two
/// rounds of the audit.
const AUDITED: Duration = Duration::from_secs(90);
/// The services, each with a database of its own.
const SERVICES: [&str; 4] = ["user", "concert", "booking", "payment"];
/// Lines of a log that are shown when a test fails.
const SHOWN: usize = 40;

/// Where the programs are. Cargo builds those of other packages for nobody's tests.
static PROGRAMS: LazyLock<PathBuf> = LazyLock::new(|| {
    let directory = Path::new(env!("CARGO_BIN_EXE_boxoffice")).parent().unwrap();
    let profile = if directory.ends_with("debug") { "dev" } else { "release" };
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--locked", "--workspace", "--bins", "--profile", profile]);
    build.arg("--target-dir").arg(directory.parent().unwrap());
    let status = build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap();
    assert!(status.success(), "the programs of the services can't be built: {status}");
    directory.to_owned()
});

/// What is to be deployed.
#[derive(Default)]
pub(crate) struct Plan {
    replicas: BTreeMap<&'static str, usize>,
    lines: Vec<(&'static str, &'static str)>,
    pairs: Vec<(&'static str, &'static str)>,
    settings: Vec<(&'static str, &'static str, String)>,
    server: Option<postgres::Server>,
}

impl Plan {
    /// Several replicas of a service instead of one.
    pub(crate) fn with_replicas(mut self, service: &'static str, count: usize) -> Self {
        self.replicas.insert(service, count);
        self
    }

    /// A line that can be disturbed from one service to another.
    pub(crate) fn with_line(mut self, from: &'static str, to: &'static str) -> Self {
        self.lines.push((from, to));
        self
    }

    /// Has each replica of a service know no other replica of a neighbour than that of its own number.
    pub(crate) fn with_pairs(mut self, from: &'static str, to: &'static str) -> Self {
        self.pairs.push((from, to));
        self
    }

    /// Something that every process is told.
    pub(crate) fn with_common_setting(self, name: &'static str, value: impl ToString) -> Self {
        let tell = |plan: Self, service| plan.with_setting(service, name, value.to_string());
        SERVICES.into_iter().chain(["gateway"]).fold(self, tell)
    }

    /// Something that a service is told beside what all are.
    pub(crate) fn with_setting(
        mut self,
        service: &'static str,
        name: &'static str,
        value: impl ToString,
    ) -> Self {
        self.settings.push((service, name, value.to_string()));
        self
    }

    /// A Postgres of its own, which can be stopped.
    pub(crate) fn with_own_postgres(mut self) -> Self {
        self.server = Some(postgres::Server::start());
        self
    }

    pub(crate) async fn start(self) -> Deployment {
        Deployment::start(self).await
    }
}

/// A mesh as it is deployed; gone when the test ends.
pub(crate) struct Deployment {
    /// REST, at any of the gateways.
    pub(crate) api: Api,
    pub(crate) server: Option<postgres::Server>,
    pub(crate) redis: Redis,
    replicas: BTreeMap<&'static str, Vec<Replica>>,
    lines: BTreeMap<(&'static str, usize, &'static str), Line>,
    databases: BTreeMap<&'static str, TestDatabase>,
    /// The booking database, to look into.
    pub(crate) bookings: Database,
}

/// One of a service's processes, which comes back at the same address.
pub(crate) struct Replica {
    name: String,
    program: PathBuf,
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    environment: Vec<(String, String)>,
    process: Option<Process>,
}

/// The connections of one process to all replicas of a neighbour.
pub(crate) struct Line(Vec<FaultProxy>);

impl Deployment {
    async fn start(mut plan: Plan) -> Self {
        let addresses: BTreeMap<&'static str, Vec<SocketAddr>> = SERVICES
            .into_iter()
            .chain(["gateway"])
            .map(|service| {
                let count = plan.replicas.get(service).copied().unwrap_or(1);
                (service, (0..count).map(|_| free_address()).collect())
            })
            .collect();
        let server = plan.server.take();
        let mut databases = BTreeMap::new();
        for service in SERVICES {
            let database = match &server {
                Some(server) => server.create_database().await,
                None => postgres::create_database().await,
            };
            databases.insert(service, database);
        }
        let gateways = addresses["gateway"].iter().map(|address| format!("http://{address}"));
        let mut deployment = Self {
            api: Api::of_gateways(gateways).unwrap(),
            replicas: BTreeMap::new(),
            lines: BTreeMap::new(),
            bookings: Database::open_to_read(&databases["booking"].url().parse().unwrap()).await.unwrap(),
            databases,
            server,
            redis: Redis::start().await,
        };
        for secret in ["SERVICE_TOKEN_KEY", "KEY_ENCRYPTION_KEY"] {
            let value = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
            plan.settings.extend(addresses.keys().map(|service| (*service, secret, value.clone())));
        }
        for (service, index) in
            addresses.iter().flat_map(|(name, all)| (0..all.len()).map(|index| (*name, index)))
        {
            let replica = deployment.deploy(&plan, &addresses, service, index).await;
            deployment.replicas.entry(service).or_default().push(replica);
        }
        for replica in deployment.replicas.values().flatten() {
            replica.ready().await;
        }
        demo::wait_until_ready(&deployment.api).await.unwrap();
        deployment
    }

    /// Starts one replica of a service.
    async fn deploy(
        &mut self,
        plan: &Plan,
        addresses: &BTreeMap<&'static str, Vec<SocketAddr>>,
        service: &'static str,
        index: usize,
    ) -> Replica {
        let (address, admin) = (addresses[service][index], free_address());
        let mut environment = common_environment(admin);
        for neighbour in SERVICES {
            let at = self.way(plan, (service, index, neighbour), &addresses[neighbour]).await;
            let urls: Vec<String> = at.iter().map(|address| format!("http://{address}")).collect();
            environment.push((format!("{}_URL", neighbour.to_uppercase()), urls.join(",")));
        }
        let redis = [self.redis.address().parse().unwrap()];
        let redis = self.way(plan, (service, index, "redis"), &redis).await[0];
        environment.push(("REDIS_URL".to_owned(), format!("redis://{redis}")));
        let (program, listen) = match service {
            "gateway" => ("gateway-rest".to_owned(), "HTTP_LISTEN_ADDR"),
            service => (format!("svc-{service}"), "GRPC_LISTEN_ADDR"),
        };
        environment.push((listen.to_owned(), address.to_string()));
        if let Some(database) = self.databases.get(service) {
            let mut url: Url = database.url().parse().unwrap();
            let server = url.socket_addrs(|| Some(5432)).unwrap();
            let at = self.way(plan, (service, index, "postgres"), &server[..1]).await[0];
            url.set_ip_host(at.ip()).unwrap();
            url.set_port(Some(at.port())).unwrap();
            environment.push(("DATABASE_URL".to_owned(), url.into()));
        }
        let told = plan.settings.iter().filter(|(told, ..)| *told == service);
        environment.extend(told.map(|(_, name, value)| ((*name).to_owned(), value.clone())));
        let name = format!("{program} {index}");
        let program = PROGRAMS.join(program);
        let mut replica = Replica { name, program, address, admin, environment, process: None };
        replica.start();
        replica
    }

    /// Where a replica of a service finds a neighbour: at the ends of a line, if one is planned.
    async fn way(
        &mut self,
        plan: &Plan,
        (from, index, to): (&'static str, usize, &'static str),
        targets: &[SocketAddr],
    ) -> Vec<SocketAddr> {
        let targets = if plan.pairs.contains(&(from, to)) { &targets[index..=index] } else { targets };
        if !plan.lines.contains(&(from, to)) {
            return targets.to_vec();
        }
        let mut proxies = Vec::new();
        for target in targets {
            proxies.push(FaultProxy::start(*target).await);
        }
        let addresses = proxies.iter().map(FaultProxy::address).collect();
        self.lines.insert((from, index, to), Line(proxies));
        addresses
    }

    pub(crate) fn replica(&mut self, service: &str, index: usize) -> &mut Replica {
        &mut self.replicas.get_mut(service).unwrap()[index]
    }

    /// How to sell out on it.
    pub(crate) fn sellout_arguments(&self) -> Vec<String> {
        let databases = ["booking", "payment"].map(|service| self.databases[service].url());
        let [booking, payment] = databases;
        let urls = self.api.bases().join(",");
        ["sellout", "--fans", "60", "--seats", "80", "--url", &urls]
            .into_iter()
            .chain(["--booking-database-url", booking, "--payment-database-url", payment])
            .map(str::to_owned)
            .collect()
    }

    /// The line from one replica of a service to a neighbour.
    pub(crate) fn line(&self, from: &'static str, index: usize, to: &'static str) -> &Line {
        &self.lines[&(from, index, to)]
    }

    /// Asserts that every process runs that was started.
    pub(crate) fn assert_all_run(&mut self) {
        for replica in self.replicas.values_mut().flatten() {
            let ended = replica.process.as_mut().and_then(Process::ended);
            assert!(ended.is_none(), "{} ended: {ended:?}", replica.name);
        }
    }

    /// A number that the booking database answers.
    pub(crate) async fn count_bookings(
        &self,
        condition: &str,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<i64, String> {
        let text = format!("SELECT COUNT(*) AS count FROM booking WHERE {condition}");
        self.ask(&text, values).await
    }

    async fn ask(&self, text: &str, values: impl IntoIterator<Item = Value>) -> Result<i64, String> {
        let reader = self.bookings.reader();
        let row = reader.query_one_raw(sql(reader, text, values)).await.map_err(|error| error.to_string())?;
        row.unwrap().try_get("", "count").map_err(|error| error.to_string())
    }

    /// What is not settled of what was begun before a moment: bookings that are PAYING, and refunds.
    async fn count_open(&self, before: DateTime<Utc>) -> Result<i64, String> {
        let text = "SELECT (SELECT COUNT(*) FROM booking WHERE state = 1 AND create_time < $1)
            + (SELECT COUNT(*) FROM refund WHERE NOT is_done AND create_time < $1) AS count";
        self.ask(text, [before.into()]).await
    }

    /// Waits until everything that was begun before is settled and the crowd goes on buying, from now on; prints how long
    /// it took.
    pub(crate) async fn converges(&self, fault: &str, limit: Duration, crowd: &Crowd) {
        self.converges_since(Instant::now(), fault, limit, crowd).await;
    }

    /// The same within a limit that began before, as when whoever was killed was started again.
    pub(crate) async fn converges_since(&self, begin: Instant, fault: &str, limit: Duration, crowd: &Crowd) {
        let (now, rounds) = (stage::now(), crowd.rounds());
        let left = limit.saturating_sub(begin.elapsed());
        wait_until(&format!("the mesh to converge after: {fault}"), left, async || {
            let open = self.count_open(now).await?;
            let went_on = crowd.rounds() - rounds;
            if open == 0 && went_on > 0 {
                return Ok(());
            }
            Err(format!("{open} bookings and refunds are open, {went_on} rounds were made since"))
        })
        .await;
        report(fault, begin);
    }

    /// What a replica's metrics say of a series. None: it is not there.
    pub(crate) async fn metric(&self, service: &str, index: usize, series: &str) -> Option<f64> {
        stage::scrape(self.replicas[service][index].admin).await.get(series).copied()
    }

    /// Waits until a replica's metrics have counted something.
    pub(crate) async fn counts(&self, service: &str, index: usize, series: &str) {
        wait_until(series, RECOVERY, async || match self.metric(service, index, series).await {
            Some(count) if count > 0.0 => Ok(()),
            other => Err(format!("{service} says {other:?}")),
        })
        .await;
    }

    /// Sends the crowd home, and asserts that everybody has what was acknowledged, and that every invariant holds and was
    /// watched.
    pub(crate) async fn assert_sound(&self, crowd: Crowd) {
        let (places, concert) = (crowd.places(), crowd.concert.clone());
        let (fans, holds) = crowd.leave().await;
        wait_until("everything to be settled", RECOVERY, async || {
            match self.count_open(stage::now()).await? {
                0 => Ok(()),
                open => Err(format!("{open} bookings and refunds are open")),
            }
        })
        .await;
        self.assert_holds_end().await;
        let mut witness = Witness { holds, ..Witness::default() };
        let mut sold = 0;
        for fan in &fans {
            sold += fan.assert_has_what_was_acknowledged().await;
            witness.confirmed.extend(fan.confirmed());
            witness.made.extend(fan.made());
        }
        assert!(!witness.confirmed.is_empty(), "nobody bought anything");
        wait_until("every place that is not sold to be free", AUDITED, async || {
            let seats = self.api.get(&format!("/v1/concerts/{concert}/seats"), None).await.unwrap().body;
            let available = |section: &serde_json::Value| section["available"].as_u64().unwrap_or_default();
            let free: u64 = seats["sections"].as_array().into_iter().flatten().map(available).sum();
            let expected = places - sold as u64;
            if free == expected { Ok(()) } else { Err(format!("{free} of {expected}")) }
        })
        .await;
        let report = self.assert_swept_clean(&witness).await;
        assert_eq!(report.not_watched(), Vec::<&str>::new(), "{report}");
    }

    /// Asserts that no hold is left in time, now that nobody makes any (I7).
    async fn assert_holds_end(&self) {
        let longest = HELD_WHILE_BOOKED.max(HOLD_TTL);
        let mut none_since = None;
        wait_until("the last holds to end", longest + SWEEP + COUNTED, async || {
            for index in 0..self.replicas["booking"].len() {
                let live = self.metric("booking", index, r#"booking_holds_live{service="booking"}"#).await;
                if live != Some(0.0) {
                    none_since = None;
                    return Err(format!("booking {index} counts {live:?}"));
                }
            }
            // The first count may be of before.
            match none_since.get_or_insert_with(Instant::now).elapsed() {
                long if long > COUNTED => Ok(()),
                short => Err(format!("none for {short:?}")),
            }
        })
        .await;
    }

    /// Asserts that the sweep finds no invariant broken; what it found.
    pub(crate) async fn assert_swept_clean(&self, witness: &Witness) -> Report {
        let url = |service: &str| Some(self.databases[service].url().parse().unwrap());
        let databases = sweep::Databases {
            data_dir: PathBuf::new(),
            booking_database_url: url("booking"),
            payment_database_url: url("payment"),
        };
        let report = sweep::sweep(&databases, witness).await.unwrap();
        assert!(report.is_clean(), "{report}");
        report
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        if thread::panicking() {
            for replica in self.replicas.values().flatten() {
                let Some(process) = &replica.process else { continue };
                let lines = process.errors.get();
                let last = lines[lines.len().saturating_sub(SHOWN)..].join("\n  ");
                eprintln!("{}:\n  {last}", replica.name);
            }
        }
    }
}

/// Prints how long it took to converge.
pub(crate) fn report(fault: &str, begin: Instant) {
    say(&format!("converged: {fault}: {:.1}", begin.elapsed().as_secs_f64()));
}

/// Prints a line of what was measured.
pub(crate) fn say(line: &str) {
    // Not by `println!`, which the tests of tests would swallow.
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// The series of one service's calls to a neighbour that ended so.
pub(crate) fn calls(service: &str, neighbour: &str, outcome: &str) -> String {
    format!(
        r#"rpc_client_duration_seconds_count{{neighbour="{neighbour}",outcome="{outcome}",service="{service}"}}"#
    )
}

impl Replica {
    /// Starts it, as it was started before.
    pub(crate) fn start(&mut self) {
        self.start_with(&[]);
    }

    /// Starts it so that it dies where its code has this name.
    pub(crate) fn start_to_crash(&mut self, at: &str) {
        self.start_with(&[("BOXOFFICE_CRASH_AT", at)]);
    }

    fn start_with(&mut self, environment: &[(&str, &str)]) {
        let mut command = Command::new(&self.program);
        command.env_clear().envs(self.environment.iter().cloned()).envs(environment.iter().copied());
        self.process = Some(Process::start(&mut command));
    }

    /// Waits until it says that it serves.
    pub(crate) async fn ready(&self) {
        wait_until(&format!("{} to be ready", self.name), PATIENCE, async || self.is_ready().await).await;
    }

    /// Whether it says that it serves; why not.
    pub(crate) async fn is_ready(&self) -> Result<(), String> {
        if self.name.starts_with("gateway") {
            let answer = reqwest::get(format!("http://{}/readyz", self.address)).await;
            let status = answer.map_err(|error| error.to_string())?.status();
            return if status.is_success() { Ok(()) } else { Err(status.to_string()) };
        }
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        let channel = endpoint.connect().await.map_err(|error| error.to_string())?;
        let health = HealthClient::new(channel).check(HealthCheckRequest::default()).await;
        match health.map_err(|status| status.to_string())?.into_inner().status() {
            ServingStatus::Serving => Ok(()),
            other => Err(format!("{other:?}")),
        }
    }

    /// Waits until it has logged this.
    pub(crate) async fn says(&mut self, words: &str) {
        let lines = self.process().errors.clone();
        wait_until(words, PATIENCE, async || {
            let lines = lines.get();
            if lines.iter().any(|line| line.contains(words)) { Ok(()) } else { Err(lines.join("\n")) }
        })
        .await;
    }

    fn process(&mut self) -> &mut Process {
        self.process.as_mut().unwrap()
    }

    /// `kill -9`.
    pub(crate) async fn kill(&mut self) {
        self.process().signal("-KILL");
        assert_eq!(self.process().end().await.signal(), Some(9), "{}", self.name);
    }

    /// Waits until it has died where it was to.
    pub(crate) async fn crashed(&mut self) {
        let status = self.process().end().await;
        assert_eq!(status.signal(), Some(6), "{}", self.name);
    }

    /// Stops it as an operator would: it has a moment to finish.
    pub(crate) async fn stop(&mut self) {
        self.process().signal("-TERM");
        let status = self.process().end().await;
        assert_eq!(status.code(), Some(0), "{}", self.name);
    }

    /// It stands still until it is thawed, and does not know.
    pub(crate) fn freeze(&mut self) {
        self.process().signal("-STOP");
    }

    pub(crate) fn thaw(&mut self) {
        self.process().signal("-CONT");
    }
}

impl Line {
    pub(crate) fn set_mode(&self, mode: Mode) {
        self.0.iter().for_each(|proxy| proxy.set_mode(mode));
    }

    /// Resets its connections.
    pub(crate) fn reset(&self) {
        self.0.iter().for_each(FaultProxy::reset_connections);
    }

    /// The part of it that leads to one of the neighbour's replicas.
    pub(crate) fn to(&self, index: usize) -> &FaultProxy {
        &self.0[index]
    }

    /// Bytes that it swallowed or kept back so far.
    pub(crate) fn swallowed_bytes(&self) -> u64 {
        self.0.iter().map(FaultProxy::swallowed_bytes).sum()
    }
}

/// An address that nobody listens on.
fn free_address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, free_port()).into()
}

/// What every process is told.
fn common_environment(admin: SocketAddr) -> Vec<(String, String)> {
    let (admin, hold_ttl) = (admin.to_string(), format!("{}s", HOLD_TTL.as_secs()));
    let told = [
        ("ADMIN_LISTEN_ADDR", admin.as_str()),
        ("LOG_FORMAT", "human"),
        // Several meshes share a Postgres.
        ("DATABASE_CONNECTIONS", "4"),
        ("DRAIN_WAIT", "0s"),
        ("PSP", "sandbox"),
        ("HOLD_TTL", &hold_ttl),
        ("RATE_LIMIT_PER_USER", "100000"),
        ("RATE_LIMIT_PER_ADDRESS", "100000"),
    ];
    told.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

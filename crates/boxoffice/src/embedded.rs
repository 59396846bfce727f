//! The whole mesh in one process: every service on a loopback listener of its own, speaking gRPC to the others as it
//! would across a network, on SQLite files in one data directory.

use std::{
    convert::Infallible,
    fs::{self, File, OpenOptions, TryLockError},
    io::Write,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use mesh::{
    client::Address,
    clock::Clock,
    config::{Common, Secret},
    database::DatabaseUrl,
    money::Currency,
    server::Port,
    shutdown::Shutdown,
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::task::AbortOnDropHandle;

/// Where an embedded Boxoffice keeps its data and listens.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Where the data is kept; made if it does not exist.
    #[arg(long, env, default_value = "data")]
    pub data_dir: PathBuf,
    /// Where REST is served. Port 0 takes a free one, here and below.
    #[arg(long, env, default_value = "127.0.0.1:8080")]
    pub http_addr: SocketAddr,
    /// Where the user service is served.
    #[arg(long, env, default_value = "127.0.0.1:50051")]
    pub user_addr: SocketAddr,
    /// Where the concert service is served.
    #[arg(long, env, default_value = "127.0.0.1:50052")]
    pub concert_addr: SocketAddr,
    /// Where the booking service is served.
    #[arg(long, env, default_value = "127.0.0.1:50053")]
    pub booking_addr: SocketAddr,
    /// Where the payment service is served.
    #[arg(long, env, default_value = "127.0.0.1:50054")]
    pub payment_addr: SocketAddr,
    /// Where /metrics and /healthz are, of the whole process.
    #[arg(long, env, default_value = "127.0.0.1:9090")]
    pub admin_addr: SocketAddr,
    /// How long seats are held; at most 30m.
    #[arg(long, env, default_value = "10m", value_parser = svc_booking::hold_ttl)]
    pub hold_ttl: Duration,
    /// Calls a second that one user may make through REST.
    #[arg(long, env, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate_limit_per_user: u32,
    /// Calls a second that callers without a token may make through REST from one address.
    #[arg(long, env, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate_limit_per_address: u32,
}

impl Options {
    /// Free ports, for a throwaway instance or a test.
    pub fn throwaway(data_dir: impl Into<PathBuf>) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            data_dir: data_dir.into(),
            http_addr: any,
            user_addr: any,
            concert_addr: any,
            booking_addr: any,
            payment_addr: any,
            admin_addr: any,
            hold_ttl: Duration::from_secs(600),
            rate_limit_per_user: 1_000_000,
            rate_limit_per_address: 1_000_000,
        }
    }
}

/// A running embedded Boxoffice.
pub struct Embedded {
    /// Where REST is served.
    pub http: SocketAddr,
    /// Where each service is served.
    pub services: [(&'static str, SocketAddr); 4],
    /// Where /metrics and /healthz are.
    pub admin: SocketAddr,
    _admin: AbortOnDropHandle<Infallible>,
    gateway: Part,
    booking: Part,
    others: Vec<Part>,
    _lock: File,
}

/// A service, with the word that stops it.
struct Part {
    name: &'static str,
    shutdown: Shutdown,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Part {
    fn start<F>(name: &'static str, serve: impl FnOnce(Clock, Shutdown) -> F) -> Self
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let shutdown = Shutdown::new();
        let task = tokio::spawn(serve(Clock::system(), shutdown.clone()));
        Self { name, shutdown, task }
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.shutdown.begin();
        self.task.await.with_context(|| format!("{} broke", self.name))?
    }
}

impl Embedded {
    /// Starts everything. What the services need of each other, they wait for by themselves.
    ///
    /// # Errors
    /// One clear sentence: an address in use, a data directory that can't be written or is in use.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let lock = lock_data_directory(&options.data_dir)?;
        let key_encryption_key = read_or_make_secret(&options.data_dir.join("key-encryption-key"))?;
        // Every process its own: nobody else has to know it.
        let service_token_key = Secret::random();
        let listeners = Listeners::bind(&options)?;
        let [user_url, concert_url, booking_url, payment_url] = listeners.urls();
        let http = listeners.http.local_addr()?;
        let services = listeners.services();
        let admin = listeners.admin.local_addr()?;

        let common = |name: &str| -> anyhow::Result<Common> {
            Ok(Common {
                database_url: database_url(&options.data_dir, name)?,
                database_connections: 4,
                service_token_key: service_token_key.clone(),
                service_token_key_previous: None,
                user_url: user_url.clone(),
                reflection: true,
                drain_wait: Duration::ZERO,
                max_connection_age: Duration::from_secs(300),
            })
        };
        let user = svc_user::Config {
            common: common("user")?,
            key_encryption_key,
            key_rotation_period: Duration::from_secs(30 * 24 * 3600),
            password_queue_limit: 64,
        };
        let concert = svc_concert::Config { common: common("concert")?, currency: Currency::KRW };
        let payment = svc_payment::Config {
            common: common("payment")?,
            currency: Currency::KRW,
            psp: Some(svc_payment::Psp::Sandbox),
        };
        let booking = svc_booking::Config {
            common: common("booking")?,
            currency: Currency::KRW,
            concert_url: concert_url.clone(),
            payment_url: payment_url.clone(),
            redis_url: None,
            hold_ttl: options.hold_ttl,
        };
        let gateway = gateway_rest::Config {
            user_url,
            concert_url,
            booking_url,
            payment_url,
            service_token_key: service_token_key.clone(),
            cors_allowed_origins: "http://localhost:*,http://127.0.0.1:*"
                .parse()
                .map_err(anyhow::Error::msg)?,
            rate_limit_per_user: options.rate_limit_per_user,
            rate_limit_per_address: options.rate_limit_per_address,
            redis_url: None,
            docs: true,
            drain_wait: Duration::ZERO,
        };
        let Listeners {
            http: http_listener,
            user: on_user,
            concert: on_concert,
            booking: on_booking,
            payment: on_payment,
            admin: on_admin,
        } = listeners;
        Ok(Self {
            http,
            services,
            admin,
            _admin: AbortOnDropHandle::new(tokio::spawn(mesh::admin::serve(on_admin))),
            others: vec![
                Part::start("user", |clock, stop| svc_user::serve(user, on_user.into(), clock, stop)),
                Part::start("concert", |clock, stop| {
                    svc_concert::serve(concert, on_concert.into(), clock, stop)
                }),
                Part::start("payment", |clock, stop| {
                    svc_payment::serve(payment, on_payment.into(), clock, stop)
                }),
            ],
            booking: Part::start("booking", |clock, stop| {
                svc_booking::serve(booking, on_booking.into(), clock, stop)
            }),
            gateway: Part::start("gateway", |clock, stop| {
                gateway_rest::serve(gateway, http_listener, clock, stop)
            }),
            _lock: lock,
        })
    }

    /// The base URL of REST.
    pub fn url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// Waits until a part ends by itself, which none should.
    ///
    /// # Errors
    /// Why it ended.
    pub async fn broken(&mut self) -> anyhow::Error {
        let parts = [&mut self.gateway, &mut self.booking].into_iter().chain(&mut self.others);
        let ends = parts.map(|part| Box::pin(async { (part.name, (&mut part.task).await) }));
        let ((name, end), _, _) = futures_util::future::select_all(ends).await;
        match end {
            Ok(Err(error)) => error.context(format!("the {name} service can't go on")),
            Ok(Ok(())) => anyhow::anyhow!("the {name} service ended by itself"),
            Err(panic) => anyhow::anyhow!("the {name} service broke: {panic}"),
        }
    }

    /// Drains everything, callers before those they call.
    ///
    /// # Errors
    /// If a part could not end cleanly.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.gateway.stop().await?;
        self.booking.stop().await?;
        for part in self.others {
            part.stop().await?;
        }
        Ok(())
    }
}

struct Listeners {
    http: TcpListener,
    user: TcpListener,
    concert: TcpListener,
    booking: TcpListener,
    payment: TcpListener,
    admin: TcpListener,
}

impl Listeners {
    fn bind(options: &Options) -> anyhow::Result<Self> {
        Ok(Self {
            http: bind("--http-addr", options.http_addr)?,
            user: bind("--user-addr", options.user_addr)?,
            concert: bind("--concert-addr", options.concert_addr)?,
            booking: bind("--booking-addr", options.booking_addr)?,
            payment: bind("--payment-addr", options.payment_addr)?,
            admin: bind("--admin-addr", options.admin_addr)?,
        })
    }

    fn services(&self) -> [(&'static str, SocketAddr); 4] {
        let address = |listener: &TcpListener| listener.local_addr().expect("it is bound");
        [
            ("user", address(&self.user)),
            ("concert", address(&self.concert)),
            ("booking", address(&self.booking)),
            ("payment", address(&self.payment)),
        ]
    }

    fn urls(&self) -> [Address; 4] {
        self.services()
            .map(|(_, address)| format!("http://{address}").parse().expect("an address makes a URL"))
    }
}

fn bind(option: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    Port::reserve(address).and_then(Port::listen).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            anyhow::anyhow!("{address} is in use by another program; choose another with {option}")
        }
        _ => anyhow::anyhow!("can't listen on {address} ({option}): {error}"),
    })
}

/// The URL of a service's database in a data directory.
///
/// # Errors
/// If the directory's name is not UTF-8.
pub fn database_url(data_dir: &Path, service: &str) -> anyhow::Result<DatabaseUrl> {
    let path = data_dir.join(format!("{service}.db"));
    let path = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
    format!("sqlite://{path}").parse().map_err(anyhow::Error::msg)
}

/// Makes the data directory if need be, and makes sure that no other process uses it.
fn lock_data_directory(data_dir: &Path) -> anyhow::Result<File> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data_dir)
        .with_context(|| format!("the data directory {} can't be made", data_dir.display()))?;
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(data_dir.join("lock"))
        .with_context(|| format!("the data directory {} can't be written", data_dir.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            bail!("the data directory {} is in use by another process", data_dir.display())
        }
        Err(TryLockError::Error(error)) => Err(error).context("the data directory can't be locked"),
    }
}

/// The secret in a file; a new one, if there is no file.
fn read_or_make_secret(path: &Path) -> anyhow::Result<Secret> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let secret = Secret::random();
            let mut file = OpenOptions::new()
                .create_new(true)
                .write(true)
                .mode(0o600)
                .open(path)
                .with_context(|| format!("{} can't be written", path.display()))?;
            file.write_all(secret.expose())?;
            file.sync_all()?;
            return Ok(secret);
        }
        Err(error) => return Err(error).with_context(|| format!("{} can't be read", path.display())),
    };
    Secret::parse(text.trim()).map_err(|why| anyhow::anyhow!("the secret in {} {why}", path.display()))
}

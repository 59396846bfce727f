//! The user service: accounts, sessions, organisers, and the keys that access tokens are verified with. `serve` is where
//! it is put together.

mod derived_key;
mod email;
mod error;
mod keyring;
mod login_throttle;
mod password;
mod refresh_token;
mod service;
mod session;
mod store;
#[cfg(test)]
mod test_database;
mod worker;

use std::{sync::Arc, time::Duration};

use boxoffice_proto::user::v1::{
    key_service_server::KeyServiceServer, organizer_service_server::OrganizerServiceServer,
    session_service_server::SessionServiceServer, user_service_server::UserServiceServer,
};
use chrono::TimeDelta;
use mesh::{
    auth::Authenticator,
    clock::Clock,
    config::{self, Common, Secret},
    database::{Database, Migration},
    idempotency,
    server::{self, Port},
    shutdown::Shutdown,
};
use tonic::service::Routes;

use crate::{keyring::Keyring, password::PasswordHasher, session::Sessions};

/// What the service is told.
#[derive(Debug, Clone, clap::Args)]
#[command(about)]
pub struct Config {
    /// What every service is told.
    #[command(flatten)]
    pub common: Common,
    /// The secret that signing keys are encrypted with in the database; at least 32 bytes, the same for every process,
    /// and kept: without it, the keys can't be read.
    #[arg(long, env, hide_env_values = true, value_parser = Secret::parse)]
    pub key_encryption_key: Secret,
    /// How long a signing key signs before the next one takes over; at least 1h.
    #[arg(long, env, default_value = "30d", value_parser = rotation_period)]
    pub key_rotation_period: Duration,
    /// How many passwords may wait to be checked; each takes 20 to 70 ms of a core. More are refused.
    #[arg(long, env, default_value_t = 64, value_parser = queue_limit)]
    pub password_queue_limit: usize,
}

/// The history of the schema.
pub const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        description: "accounts, organisers, sessions and signing keys",
        sql: include_str!("migration/0001_initial.sql"),
    },
    Migration { version: 2, description: "idempotency keys", sql: idempotency::TABLE },
];

/// What every part of the service works with.
#[derive(Clone)]
struct Shared {
    database: Database,
    clock: Clock,
    keyring: Arc<Keyring>,
    sessions: Arc<Sessions>,
    passwords: PasswordHasher,
}

impl Shared {
    async fn new(config: &Config, database: Database, clock: Clock) -> anyhow::Result<Self> {
        let secret = &config.key_encryption_key;
        let rotation_period = TimeDelta::from_std(config.key_rotation_period)?;
        let keyring = Keyring::open(database.clone(), clock.clone(), secret, rotation_period).await?;
        let keyring = Arc::new(keyring);
        let passwords = PasswordHasher::new(PasswordHasher::default_threads(), config.password_queue_limit);
        let sessions =
            Sessions::new(database.clone(), clock.clone(), Arc::clone(&keyring), passwords.clone(), secret);
        Ok(Self { database, clock, keyring, sessions: Arc::new(sessions), passwords })
    }

    fn routes(&self) -> Routes {
        Routes::new(UserServiceServer::new(self.clone()))
            .add_service(SessionServiceServer::new(self.clone()))
            .add_service(OrganizerServiceServer::new(self.clone()))
            .add_service(KeyServiceServer::new(self.clone()))
    }
}

/// Migrates the database and serves until shutdown. The port is opened when calls can be answered.
///
/// # Errors
/// If the database can't be used, if its signing keys were encrypted with another secret, or if the listener breaks.
pub async fn serve(config: Config, port: Port, clock: Clock, shutdown: Shutdown) -> anyhow::Result<()> {
    let database = config.common.open_database(MIGRATIONS, &clock, &shutdown).await?;
    database.watch_connections("user");
    let shared = Shared::new(&config, database, clock.clone()).await?;
    worker::start(&shared, &shutdown);

    // Not `config.common.authenticator`, as elsewhere: this service would ask itself for its own keys.
    let authenticator =
        Authenticator::new(shared.keyring.verification(), config.common.service_tokens("user"), clock);
    let options = config.common.server_options("user", &shared.database);
    server::serve(options, shared.routes(), authenticator, port.open()?, shutdown).await?;
    shared.database.close().await;
    Ok(())
}

/// Reads the period of key rotation. A shorter one would publish ever more keys at once.
fn rotation_period(text: &str) -> Result<Duration, String> {
    const SHORTEST: Duration = Duration::from_secs(3600);
    const LONGEST: Duration = Duration::from_secs(10 * 366 * 24 * 3600);
    let period = config::duration(text).map_err(|error| error.to_string())?;
    if (SHORTEST..=LONGEST).contains(&period) { Ok(period) } else { Err("must be 1h to 10years".to_owned()) }
}

/// Reads how many passwords may wait. More than some thousands could not be checked within any deadline.
fn queue_limit(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(limit @ 1..=10_000) => Ok(limit),
        _ => Err("must be 1 to 10000".to_owned()),
    }
}

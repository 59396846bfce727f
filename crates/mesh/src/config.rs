//! Configuration that several services share. Environment only; `--help` is its documentation.

use std::{fmt, time::Duration};

use secrecy::{ExposeSecret, SecretString};

use crate::{
    auth::{Authenticator, Keys, ServiceTokens},
    client::{Address, Channel},
    clock::Clock,
    database::{Database, DatabaseError, DatabaseUrl, Migration},
    failure::chain,
    server::{Dependency, Options},
    shutdown::Shutdown,
};

/// How long to wait before asking again for a database that is not there.
const DATABASE_PAUSE: Duration = Duration::from_secs(1);

/// The shortest secret, in bytes.
pub const SECRET_MINIMUM: usize = 32;

/// A secret from the environment. Too short or too plain a one is refused; it is never shown.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// Reads a secret.
    ///
    /// # Errors
    /// If it is shorter than [`SECRET_MINIMUM`] bytes, or one letter over and over.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.len() < SECRET_MINIMUM {
            return Err("must have at least 32 bytes; make one with: openssl rand -base64 32");
        }
        let first = text.as_bytes()[0];
        if text.bytes().all(|byte| byte == first) || text.to_lowercase().contains("changeme") {
            return Err("is a default, not a secret; make one with: openssl rand -base64 32");
        }
        Ok(Self(text.into()))
    }

    /// A new random secret.
    pub fn random() -> Self {
        let bytes: [u8; 32] = rand::random();
        Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into())
    }

    /// The secret itself.
    pub fn expose(&self) -> &[u8] {
        self.0.expose_secret().as_bytes()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[redacted]")
    }
}

/// What every service is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Common {
    /// Where the service's database is: postgres://… or sqlite://path.
    #[arg(long, env, hide_env_values = true)]
    pub database_url: DatabaseUrl,
    /// Connections to the database at the most (Postgres). Booking and payment have one more each, for their hot writes.
    #[arg(long, env, default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub database_connections: u32,
    /// The secret that services show each other that they belong to the mesh; at least 32 bytes, the same for all.
    #[arg(long, env, hide_env_values = true, value_parser = Secret::parse)]
    pub service_token_key: Secret,
    /// While the secret is being rotated: the one before, still accepted.
    #[arg(long, env, hide_env_values = true, value_parser = Secret::parse)]
    pub service_token_key_previous: Option<Secret>,
    /// Where svc-user is, which publishes the keys that access tokens are verified with.
    #[arg(long, env, default_value = "http://svc-user:50051")]
    pub user_url: Address,
    /// Let testers ask what RPCs there are (gRPC reflection).
    #[arg(long, env, default_value_t = false, action = clap::ArgAction::Set)]
    pub reflection: bool,
    /// How long to go on accepting calls after health says NOT_SERVING, so that balancers notice.
    #[arg(long, env, default_value = "5s", value_parser = duration)]
    pub drain_wait: Duration,
    /// How long a connection lives before its client is asked for a new one, so that calls spread over new replicas.
    #[arg(long, env, default_value = "5m", value_parser = duration)]
    pub max_connection_age: Duration,
}

impl Common {
    /// Opens the service's database, waiting for it if it is not there yet, migrates it, and has the clock follow it.
    ///
    /// # Errors
    /// If the database answers but can't be used; if shutdown begins while waiting.
    pub async fn open_database(
        &self,
        migrations: &[Migration],
        clock: &Clock,
        shutdown: &Shutdown,
    ) -> Result<Database, DatabaseError> {
        let database = wait_for_database(&self.database_url, self.database_connections, shutdown).await?;
        let change = database.migrate(migrations).await?;
        if change.from != change.to {
            tracing::info!(schema.from = change.from, schema.to = change.to, "the database was migrated");
        }
        clock.follow(&database, shutdown).await;
        Ok(database)
    }

    /// The tokens by which the service `name` names itself, and verifies others.
    pub fn service_tokens(&self, name: &'static str) -> ServiceTokens {
        ServiceTokens::new(name, &self.service_token_key, self.service_token_key_previous.as_ref())
    }

    /// How the service `name` is served, which has this database.
    pub fn server_options(&self, name: &'static str, database: &Database) -> Options {
        let database = database.clone();
        let answers = move || {
            let database = database.clone();
            async move { database.answers().await }
        };
        Options {
            dependencies: vec![Dependency::new("database", answers)],
            has_reflection: self.reflection,
            drain_wait: self.drain_wait,
            max_connection_age: Some(self.max_connection_age),
            ..Options::new(name)
        }
    }

    /// Who may call the service `name`: keys are asked from svc-user until shutdown.
    pub fn authenticator(&self, name: &'static str, clock: &Clock, shutdown: &Shutdown) -> Authenticator {
        let tokens = self.service_tokens(name);
        let keys = Keys::new();
        keys.follow(
            Channel::new("user", self.user_url.clone(), Some(tokens.clone()), clock.clone()),
            shutdown.clone(),
        );
        Authenticator::new(keys, tokens, clock.clone())
    }
}

/// Opens a database, waiting for it if it is not there yet.
///
/// # Errors
/// If the database answers but can't be used; if shutdown begins while waiting.
pub async fn wait_for_database(
    url: &DatabaseUrl,
    connections: u32,
    shutdown: &Shutdown,
) -> Result<Database, DatabaseError> {
    loop {
        match Database::open(url, connections).await {
            Ok(database) => return Ok(database),
            Err(error) if error.may_pass() && !shutdown.has_begun() => {
                tracing::warn!(error = chain(&error), "waiting for the database");
            }
            Err(error) => return Err(error),
        }
        tokio::select! { () = tokio::time::sleep(DATABASE_PAUSE) => {}, () = shutdown.begun() => {} }
    }
}

/// A duration such as `10m` or `1h 30m`, for clap.
///
/// # Errors
/// If the text is no duration.
pub fn duration(text: &str) -> Result<Duration, humantime::DurationError> {
    humantime::parse_duration(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weak_secret_is_refused() {
        for weak in ["", "short", &"a".repeat(64), "changeme-changeme-changeme-changeme"] {
            assert!(Secret::parse(weak).is_err(), "{weak}");
        }
        assert!(Secret::parse("0123456789abcdef0123456789abcdef").is_ok());
        assert_eq!(format!("{:?}", Secret::random()), "[redacted]");
    }
}

//! Redis: what may be lost, shared by the replicas of a service. A command is sent once and answered soon, or fails;
//! while there is no connection it fails at once, so that a call that could do without Redis hardly notices.

use std::{
    fmt,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fred::{
    clients::Client,
    error::{Error as FredError, ErrorKind},
    interfaces::{ClientLike, EventInterface},
    types::{
        Builder, FromValue, MultipleKeys, MultipleValues, config::Config, config::ReconnectPolicy,
        config::TcpConfig, scripts::Script,
    },
};

use crate::{failure::chain, server::Dependency, shutdown::Shutdown};

/// How long a command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a connection that was written to may stay silent before it is given up.
const SILENCE: Duration = Duration::from_secs(2);
/// How often that is looked at.
const SILENCE_CHECK: Duration = Duration::from_millis(500);
/// How long to wait before asking again for a Redis that is not there, at first and at the most, in milliseconds.
const RECONNECT_MILLIS: (u32, u32) = (50, 1000);
/// How long to wait between two tries of the first connection.
const PAUSE: Duration = Duration::from_secs(1);

/// Where Redis is: `redis://host:port`, or `redis-cluster://host:port?node=host:port`. Its password is never shown.
#[derive(Clone)]
pub struct RedisUrl(Config);

impl FromStr for RedisUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !["redis://", "redis-cluster://"].iter().any(|scheme| text.starts_with(scheme)) {
            return Err("must begin with redis:// or redis-cluster://".to_owned());
        }
        Config::from_url(text).map(Self).map_err(|error| error.details().to_owned())
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts = self.0.server.hosts();
        let hosts: Vec<_> = hosts.iter().map(|server| format!("{}:{}", server.host, server.port)).collect();
        formatter.write_str(&hosts.join(","))
    }
}

/// Why Redis did not do something. Whether it did is not known if it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RedisError {
    /// There is no connection: nothing was sent.
    #[error("there is no connection to Redis")]
    NotConnected,
    /// It did not answer, or refused.
    #[error("Redis failed")]
    Failed(#[from] FredError),
}

/// A connection to Redis, shared by all who have a clone of it.
#[derive(Clone)]
pub struct Redis {
    client: Client,
}

impl fmt::Debug for Redis {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Redis({})", self.client.id())
    }
}

impl Redis {
    /// Connects, waiting for Redis if it is not there yet. A connection that is lost later is made again by itself.
    ///
    /// # Errors
    /// If Redis answers but can't be used; if shutdown begins while waiting.
    pub async fn open(url: &RedisUrl, shutdown: &Shutdown) -> Result<Self, RedisError> {
        let client = loop {
            let client = build(url)?;
            match client.init().await {
                Ok(_) => break client,
                Err(error) if may_pass(&error) && !shutdown.has_begun() => {
                    tracing::warn!(redis.address = ?url, error = chain(&error), "waiting for Redis");
                }
                Err(error) => return Err(error.into()),
            }
            tokio::select! { () = tokio::time::sleep(PAUSE) => {}, () = shutdown.begun() => {} }
        };
        log_connection(&client);
        Ok(Self { client })
    }

    /// As what a service needs.
    pub fn dependency(self) -> Dependency {
        Dependency::new("redis", move || {
            let redis = self.clone();
            async move {
                let Ok(client) = redis.connected() else { return false };
                client.ping::<()>(None).await.is_ok()
            }
        })
    }

    /// Runs a script; what it answers.
    ///
    /// # Errors
    /// If it was not run, or nobody knows whether it was, or its answer is of another kind.
    pub async fn run<Answer: FromValue>(
        &self,
        script: &Script,
        keys: impl Into<MultipleKeys> + Send,
        arguments: impl TryInto<MultipleValues, Error: Into<FredError> + Send> + Send,
    ) -> Result<Answer, RedisError> {
        Ok(script.evalsha_with_reload(self.connected()?, keys, arguments).await?)
    }

    /// The client, for commands.
    ///
    /// # Errors
    /// If there is no connection: what is sent now would wait for one.
    pub fn connected(&self) -> Result<&Client, RedisError> {
        if self.client.is_connected() { Ok(&self.client) } else { Err(RedisError::NotConnected) }
    }
}

fn build(url: &RedisUrl) -> Result<Client, FredError> {
    let (least, most) = RECONNECT_MILLIS;
    Builder::from_config(url.0.clone())
        .with_performance_config(|config| config.default_command_timeout = COMMAND_TIMEOUT)
        .with_connection_config(|config| {
            config.connection_timeout = COMMAND_TIMEOUT;
            config.internal_command_timeout = COMMAND_TIMEOUT;
            // Who asks decides whether to ask again.
            config.max_command_attempts = 1;
            config.unresponsive.max_timeout = Some(SILENCE);
            config.unresponsive.interval = SILENCE_CHECK;
            config.tcp = TcpConfig { nodelay: Some(true), ..TcpConfig::default() };
        })
        .set_policy(ReconnectPolicy::new_exponential(0, least, most, 2))
        .build()
}

/// Whether waiting may help: Redis is not there yet, or still loading.
fn may_pass(error: &FredError) -> bool {
    matches!(error.kind(), ErrorKind::IO | ErrorKind::Timeout | ErrorKind::Canceled | ErrorKind::Cluster)
        || error.details().starts_with("LOADING")
}

/// Says in the log when the connection is lost, and when there is one again.
fn log_connection(client: &Client) {
    let is_lost = Arc::new(AtomicBool::new(false));
    let was_lost = Arc::clone(&is_lost);
    client.on_error(move |(error, _)| {
        // Each try to connect again fails, too.
        if !is_lost.swap(true, Ordering::Relaxed) {
            tracing::warn!(error = chain(&error), "the connection to Redis is lost");
        }
        std::future::ready(Ok(()))
    });
    client.on_reconnect(move |server| {
        was_lost.store(false, Ordering::Relaxed);
        tracing::info!(redis.address = %server, "connected to Redis again");
        std::future::ready(Ok(()))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_checked_and_its_password_hidden() {
        let url: RedisUrl = "redis://:hunter2@cache:6380/3".parse().unwrap();
        assert_eq!(format!("{url:?}"), "cache:6380");
        let url: RedisUrl = "redis-cluster://u:hunter2@a:1?node=b:2".parse().unwrap();
        assert_eq!(format!("{url:?}"), "b:2,a:1");
        for bad in ["", "cache:6379", "http://cache", "redis://:hunter2@host:port"] {
            let error = bad.parse::<RedisUrl>().unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}

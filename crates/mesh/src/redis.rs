//! Redis: what may be lost, shared by the replicas of a service. A command is sent once and answered soon, or fails;
//! while there is no connection it fails at once, so that a call that could do without Redis hardly notices.

use std::{
    fmt,
    str::FromStr,
    sync::{Arc, Weak},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use fred::{
    clients::{Client, WithOptions},
    error::Error as FredError,
    interfaces::ClientLike,
    types::{
        Builder, ClusterHash, ConnectHandle, CustomCommand, FromValue, Value,
        config::{Config, Options, ReconnectPolicy, TcpConfig},
        scripts::Script,
    },
};
use opentelemetry::KeyValue;
use tokio::time::Instant;

use crate::{failure::chain, server::Dependency, shutdown::Shutdown, telemetry::span::Span};

/// How long a command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(1);
/// How often Redis is asked whether it is there.
const CHECK_PERIOD: Duration = Duration::from_millis(500);
/// How often who waits for the first connection looks for it.
const LOOK_PERIOD: Duration = Duration::from_millis(5);
/// How long it may say nothing to that before its connections are given up: what is sent into a partition would be sent
/// again for a quarter of an hour, and a server that hangs keeps its connections for ever.
const SILENCE: Duration = Duration::from_secs(2);
/// How long to wait before connecting again, at first in fred's own tries, in milliseconds, and then in new ones.
const RECONNECT_MILLIS: u32 = 50;
const RECONNECT_PERIOD: Duration = Duration::from_millis(250);
/// How long to wait between two tries of the first connection.
const PAUSE: Duration = Duration::from_secs(1);
/// How often a command is sent at the most, as another server of a cluster may have to do it. What was sent when a
/// connection breaks is not sent again.
const REDIRECTED: u32 = 3;

/// Where Redis is: `redis://host:port`, or `redis-cluster://host:port?node=host:port`. Its password is never shown.
#[derive(Clone)]
pub struct RedisUrl(Config);

impl FromStr for RedisUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str =
            "must be such as redis://:password@host:6379 or redis-cluster://host:6379?node=host:6379";
        let is_known = ["redis://", "redis-cluster://"].iter().any(|scheme| text.starts_with(scheme));
        // What it says of the URL is for programmers, and may show a part of it.
        Config::from_url(text).ok().filter(|_| is_known).map(Self).ok_or(WRONG)
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

/// A connection to Redis, shared by all who have a clone of it. One that is lost, or silent, is made again by itself.
#[derive(Clone)]
pub struct Redis(Arc<Inner>);

struct Inner {
    url: RedisUrl,
    client: ArcSwapOption<Client>,
}

impl fmt::Debug for Redis {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Redis({:?})", self.0.url)
    }
}

impl Redis {
    /// Begins to connect, and waits for nothing.
    pub fn start(url: &RedisUrl) -> Self {
        let inner = Arc::new(Inner { url: url.clone(), client: ArcSwapOption::empty() });
        tokio::spawn(keep_connected(Arc::downgrade(&inner)));
        Self(inner)
    }

    /// Waits until there is a connection, or shutdown begins.
    pub async fn wait(&self, shutdown: &Shutdown) {
        while self.connected().is_err() && !shutdown.has_begun() {
            tokio::select! { () = tokio::time::sleep(LOOK_PERIOD) => {}, () = shutdown.begun() => {} }
        }
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

    /// Runs a script on keys, of which there must be one; what it answers.
    ///
    /// # Errors
    /// If it was not run, or nobody knows whether it was, or its answer is of another kind.
    pub async fn run<Answer: FromValue>(
        &self,
        script: &Script,
        keys: Vec<String>,
        arguments: Vec<Value>,
    ) -> Result<Answer, RedisError> {
        let client = self.connected()?;
        let mut command: Vec<Value> = Vec::with_capacity(keys.len() + arguments.len() + 2);
        command.extend([script.sha1().clone().into(), (keys.len() as i64).into()]);
        command.extend(keys.into_iter().map(Value::from));
        command.extend(arguments);
        let question = Question::begin("EVALSHA");
        match client.custom(evalsha(), command.clone()).await {
            Err(error) if error.details().starts_with("NOSCRIPT") => {
                // Into all servers of a cluster: one of them that hangs must not keep the others waiting.
                let loaded = tokio::time::timeout(COMMAND_TIMEOUT, script.load(&client)).await;
                loaded.map_err(|_| RedisError::NotConnected)??;
                question.end(client.custom(evalsha(), command).await)
            }
            answer => question.end(answer),
        }
    }

    /// The client, for commands. Each is a [`Question`].
    ///
    /// # Errors
    /// If there is no connection: what is sent now would wait for one.
    pub fn connected(&self) -> Result<WithOptions<Client>, RedisError> {
        let client = self.0.client.load();
        let client = client.as_ref().filter(|client| client.is_connected());
        Ok(patient(client.ok_or(RedisError::NotConnected)?))
    }
}

/// A command under way: a span where the level of this module is debug, which tells neither keys nor values.
#[derive(Debug)]
pub struct Question {
    span: Span,
    is_answered: bool,
}

impl Question {
    /// Begins a command of this name.
    pub fn begin(name: &'static str) -> Self {
        let span = if tracing::enabled!(tracing::Level::DEBUG) {
            Span::of_question("redis", "redis", name, KeyValue::new("db.operation.name", name))
        } else {
            Span::none()
        };
        Self { span, is_answered: false }
    }

    /// It is over; what Redis answered.
    ///
    /// # Errors
    /// As the command.
    pub fn end<Answer>(mut self, answer: Result<Answer, FredError>) -> Result<Answer, RedisError> {
        self.is_answered = answer.is_ok();
        Ok(answer?)
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        if !self.is_answered {
            self.span.set_failed();
        }
    }
}

/// What the client has no call for that fails fast. Its third argument is the first key, which decides the server.
fn evalsha() -> CustomCommand {
    CustomCommand::new_static("EVALSHA", ClusterHash::Offset(2), false)
}

/// The client for commands that are answered soon or fail.
fn patient(client: &Client) -> WithOptions<Client> {
    client.with_options(&Options { timeout: Some(COMMAND_TIMEOUT), fail_fast: true, ..Options::default() })
}

async fn connect(url: &RedisUrl) -> Result<(Client, ConnectHandle), FredError> {
    let client = Builder::from_config(url.0.clone())
        .with_performance_config(|config| config.default_command_timeout = COMMAND_TIMEOUT)
        .with_connection_config(|config| {
            config.connection_timeout = COMMAND_TIMEOUT;
            config.internal_command_timeout = COMMAND_TIMEOUT;
            config.max_command_attempts = REDIRECTED;
            config.tcp = TcpConfig { nodelay: Some(true), ..TcpConfig::default() };
        })
        .set_policy(ReconnectPolicy::new_constant(0, RECONNECT_MILLIS))
        .build()?;
    let routing = client.init().await?;
    Ok((client, routing))
}

/// Sees to it that there is a connection as long as somebody needs one.
async fn keep_connected(redis: Weak<Inner>) {
    let mut was_there = false;
    let mut is_told = false;
    while let Some(url) = redis.upgrade().map(|inner| inner.url.clone()) {
        match connect(&url).await {
            Ok((client, routing)) => {
                if was_there {
                    tracing::info!(redis.address = ?url, "connected to Redis again");
                }
                (was_there, is_told) = (true, false);
                let Some(inner) = redis.upgrade() else { return routing.abort() };
                inner.client.store(Some(Arc::new(client.clone())));
                drop(inner);
                silence(&client, &routing, &redis).await;
                routing.abort();
            }
            // After it was there, each try would only say the same.
            Err(error) if !was_there => {
                tracing::warn!(redis.address = ?url, error = chain(&error), "waiting for Redis");
            }
            Err(_) => {}
        }
        if was_there && !is_told {
            let Some(inner) = redis.upgrade() else { return };
            inner.client.store(None);
            tracing::warn!(redis.address = ?url, "the connection to Redis is lost");
            is_told = true;
        }
        tokio::time::sleep(if was_there { RECONNECT_PERIOD } else { PAUSE }).await;
    }
}

/// Waits until Redis has said nothing for too long, or nobody needs it any more.
async fn silence(client: &Client, routing: &ConnectHandle, redis: &Weak<Inner>) {
    let mut answered = Instant::now();
    while answered.elapsed() < SILENCE && !routing.is_finished() && redis.strong_count() > 0 {
        tokio::time::sleep(CHECK_PERIOD).await;
        if patient(client).ping::<()>(None).await.is_ok() {
            answered = Instant::now();
        }
    }
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

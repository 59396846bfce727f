//! Throwaway Redis servers: one alone, or a cluster of three.
//!
//! A test that needs one carries `#[ignore = "needs Redis: scripts/test runs it"]`, as those that need Postgres do.

use std::{
    io::Write,
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;

use crate::wait_until;

/// How long a server may take to start, or a cluster to find itself.
const PATIENCE: Duration = Duration::from_secs(30);
/// The hash slots of a cluster (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>).
const SLOTS: u32 = 16384;

/// A Redis server of one test, empty at first; gone when dropped.
#[derive(Debug)]
pub struct Redis {
    port: u16,
    options: &'static [&'static str],
    directory: TempDir,
    server: Option<Child>,
}

impl Redis {
    /// Starts a server on a free port of 127.0.0.1.
    ///
    /// # Panics
    /// If there is no `redis-server`, or it does not start.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    async fn start_with(options: &'static [&'static str]) -> Self {
        let directory = tempfile::tempdir().expect("a directory for Redis");
        let mut redis = Self { port: 0, options, directory, server: None };
        // A free port can be taken before the server has it, so just try some, below those that systems give out.
        for _ in 0..20 {
            redis.port = 20_000 + (uuid::Uuid::new_v4().as_u128() % 10_000) as u16;
            if redis.try_run().await {
                return redis;
            }
        }
        panic!("no Redis starts on any of twenty ports");
    }

    /// Where it is: `redis://127.0.0.1:…`.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    /// Where it is: `127.0.0.1:…`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Kills it. What it knew is lost: nothing is on disk.
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().expect("killing Redis");
            server.wait().expect("waiting for Redis to end");
        }
    }

    /// Starts it again at the same address after [`stop`](Self::stop).
    ///
    /// # Panics
    /// If it does not start.
    pub async fn run(&mut self) {
        assert!(self.try_run().await, "Redis does not start again on port {}", self.port);
    }

    /// Sends a command such as `FLUSHALL`, and gives the first line of the answer.
    ///
    /// # Panics
    /// If it does not answer.
    pub fn command(&self, command: &str) -> String {
        let mut answer = self.ask(command);
        assert!(!answer.is_empty(), "Redis does not answer {command}");
        answer.swap_remove(0)
    }

    /// Starts the server. False: it ended at once, as its port is taken.
    async fn try_run(&mut self) -> bool {
        let server = Command::new("redis-server")
            .args([
                "--bind",
                "127.0.0.1",
                "--port",
                &self.port.to_string(),
                "--save",
                "",
                "--appendonly",
                "no",
            ])
            .arg("--dir")
            .arg(self.directory.path())
            .args(self.options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        let server = server.unwrap_or_else(|why| {
            panic!("this test needs redis-server ({why}): run scripts/test, which installs it")
        });
        let process = server.id();
        self.server = Some(server);
        let mut is_running = true;
        wait_until("Redis to start or to end", PATIENCE, async || {
            is_running = self.server.as_mut().is_some_and(|server| matches!(server.try_wait(), Ok(None)));
            // Another one may answer there.
            if !is_running || self.ask("INFO server").contains(&format!("process_id:{process}")) {
                return Ok(());
            }
            Err("it does not answer".to_owned())
        })
        .await;
        is_running
    }

    /// All lines of the answer to a command; none if it does not answer.
    pub fn ask(&self, command: &str) -> Vec<String> {
        let read = || {
            let mut stream = TcpStream::connect(self.address())?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(format!("{command}\r\nQUIT\r\n").as_bytes())?;
            std::io::read_to_string(stream)
        };
        read().map_or_else(|_| Vec::new(), |text| text.lines().map(str::to_owned).collect())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A Redis Cluster of three servers of one test.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: [Redis; 3],
}

impl RedisCluster {
    /// Starts three servers, each with a third of the slots.
    ///
    /// # Panics
    /// If one does not start, or they don't find each other.
    pub async fn start() -> Self {
        let start = || Redis::start_with(&["--cluster-enabled", "yes"]);
        let nodes = [start().await, start().await, start().await];
        let [first, ..] = &nodes;
        for (index, node) in (0..).zip(&nodes) {
            let (from, until) = (SLOTS * index / 3, SLOTS * (index + 1) / 3);
            assert_eq!(node.command(&format!("CLUSTER ADDSLOTSRANGE {from} {}", until - 1)), "+OK");
            // Each with a number of its own: without one they would have to agree on who is right.
            assert_eq!(node.command(&format!("CLUSTER SET-CONFIG-EPOCH {}", index + 1)), "+OK");
            assert_eq!(node.command(&format!("CLUSTER MEET 127.0.0.1 {}", first.port)), "+OK");
        }
        for node in &nodes {
            wait_until("the cluster to be whole", PATIENCE, async || {
                let state = node.ask("CLUSTER INFO");
                let says = |line: &str| state.iter().any(|found| found == line);
                if says("cluster_state:ok") && says("cluster_known_nodes:3") {
                    Ok(())
                } else {
                    Err(state.join(" "))
                }
            })
            .await;
        }
        Self { nodes }
    }

    /// Where it is: `redis-cluster://…`.
    pub fn url(&self) -> String {
        let [first, second, third] = &self.nodes;
        format!("redis-cluster://{}?node={}&node={}", first.address(), second.address(), third.address())
    }

    /// Its servers.
    pub fn nodes(&mut self) -> &mut [Redis; 3] {
        &mut self.nodes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    #[ignore = "needs Redis: scripts/test runs it"]
    async fn servers_are_apart_and_forget_when_they_stop() {
        let (mut one, other) = (Redis::start().await, Redis::start().await);
        assert_eq!(one.command("SET seat taken"), "+OK");
        assert_eq!(other.command("EXISTS seat"), ":0");
        assert_eq!(one.command("EXISTS seat"), ":1");
        one.stop();
        assert_eq!(one.ask("PING"), Vec::<String>::new());
        one.run().await;
        assert_eq!(one.command("EXISTS seat"), ":0");
    }

    #[tokio::test]
    #[ignore = "needs Redis: scripts/test runs it"]
    async fn a_cluster_spreads_its_keys() {
        let mut cluster = RedisCluster::start().await;
        let answers: Vec<_> = cluster.nodes().iter().map(|node| node.command("SET seat taken")).collect();
        assert_eq!(answers.iter().filter(|answer| *answer == "+OK").count(), 1, "{answers:?}");
        assert_eq!(answers.iter().filter(|answer| answer.starts_with("-MOVED")).count(), 2, "{answers:?}");
    }
}

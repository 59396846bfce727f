//! Holds of four seats a second, beside redis-benchmark with the same script on the same Redis.

use std::{
    io::Write,
    iter,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, ensure};
use boxoffice_proto::booking::v1::CreateHoldRequest;
use tokio::time::Instant;

use crate::house::{House, authorized};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How long to measure each, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Callers at the same time.
    #[arg(long, default_value_t = 64)]
    callers: usize,
}

/// What `svc-booking` runs for a hold. Before it, the zeros are dropped that redis-benchmark puts before a number at random:
/// a bitmap does not take them.
const SCRIPT: &str = concat!(
    "for i = 12, 15 do ARGV[i] = string.match(ARGV[i], '[1-9]%d*') end\n",
    include_str!("../../../../svc-booking/src/holds/redis/shared.lua"),
    include_str!("../../../../svc-booking/src/holds/redis/operations.lua")
);
/// The keys that the script takes, as they look.
const PARTS: [&str; 7] = ["holds", "expiries", "fans", "states", "changes", "meta", "loads"];
/// Connections of redis-benchmark.
const CLIENTS: usize = 50;
/// Places of its concert, and fans: so many that what it draws at random was hardly drawn before.
const PLACES: usize = 100_000_000;
/// What it writes in place of a number at random, with twelve digits.
const ANY: &str = "__rand_int__";

const SEATS: usize = 4;
const SEATS_PER_ROW: usize = 1000;
const SEATS_PER_CONCERT: usize = 100 * SEATS_PER_ROW;
/// A fan may have ten seats of a concert.
const HOLDS_PER_FAN: usize = 2;
/// More holds a second than anyone expects.
const AT_MOST: usize = 20_000;
const WARM_UP: Duration = Duration::from_secs(2);

struct Stage {
    house: House,
    concerts: Vec<String>,
    tokens: Vec<Arc<str>>,
    next: AtomicUsize,
}

pub(crate) async fn run(options: Options, collector: &str) -> anyhow::Result<()> {
    let house = House::deployed(collector).await?;
    let most = AT_MOST * (options.seconds + WARM_UP.as_secs()) as usize;
    let mut concerts = Vec::new();
    for _ in 0..(most * SEATS).div_ceil(SEATS_PER_CONCERT) {
        concerts.push(house.concert(100).await?);
    }
    let tokens = house.tokens(most.div_ceil(HOLDS_PER_FAN))?;
    let stage = Arc::new(Stage { house, concerts, tokens, next: AtomicUsize::new(0) });

    let before = redis_benchmark(&stage, options.seconds)?;
    let holds = measure(&stage, &options).await?;
    let after = redis_benchmark(&stage, options.seconds)?;
    let ratio = 2.0 * holds / (before + after);
    println!(
        "hold of {SEATS} seats: {holds:.0}/s, the script alone {before:.0} and {after:.0}/s, ratio {ratio:.2}"
    );
    Arc::into_inner(stage).context("a caller is still there")?.house.close().await
}

/// Scripts a second that redis-benchmark runs, for about so many seconds.
fn redis_benchmark(stage: &Stage, seconds: u64) -> anyhow::Result<f64> {
    let deployment = stage.house.deployment.as_ref().context("it is deployed")?;
    let address = deployment.redis.address();
    let port = address.rsplit_once(':').context("no port")?.1;
    let digest = redis_cli(port, &["-x", "SCRIPT", "LOAD"])?;
    let key = |part: &str| format!("booking:2:{{bench}}:{part}");
    let keys: Vec<String> = PARTS.iter().map(|part| key(part)).collect();
    let delete_all = || {
        let command: Vec<&str> = iter::once("DEL").chain(keys.iter().map(String::as_str)).collect();
        redis_cli(port, &command)
    };
    delete_all()?;
    let places = PLACES.to_string();
    redis_cli(
        port,
        &["HSET", &key("meta"), "epoch", "0", "revision", "0", "places", &places, "unsold", &places],
    )?;
    // Its whole length at once: it does not grow meanwhile.
    redis_cli(port, &["SETBIT", &key("states"), &(2 * PLACES - 1).to_string(), "0"])?;

    let id = format!("{}{ANY}", "0".repeat(20));
    let request_key = key(&format!("request:{id}:hold-{ANY}"));
    let fingerprint = "a".repeat(64);
    // One operation, with the eighth key, of eleven arguments.
    let operation = ["0", "hold", "8", "11"];
    let wish = [&id, &id, "10", "600000", "88200000", &fingerprint, "1", ANY, ANY, ANY, ANY];
    let arguments = operation.into_iter().chain(wish);
    let count = (keys.len() + 1).to_string();
    let script = ["EVALSHA", &digest, &count].map(str::to_owned).into_iter();
    let keys_of_hold = keys.iter().cloned().chain([request_key]);
    let command: Vec<_> = script.chain(keys_of_hold).chain(arguments.map(str::to_owned)).collect();
    let run = |requests: u64| -> anyhow::Result<f64> {
        let output = Command::new("redis-benchmark")
            .args(["-h", "127.0.0.1", "-p", port, "-c", &CLIENTS.to_string(), "-n", &requests.to_string()])
            .args(["-r", &places, "--csv"])
            .args(&command)
            .output()?;
        ensure!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout)?;
        // The name of the test holds commas, too.
        let rate =
            text.lines().last().and_then(|line| line.rsplit("\",\"").nth(6)).with_context(|| text.clone())?;
        Ok(rate.parse()?)
    };
    // First a little, to know how many take so long.
    let requests = run(20_000)? * seconds as f64;
    let rate = run(requests as u64)?;
    let held: u64 = redis_cli(port, &["HLEN", &key("holds")])?.parse()?;
    ensure!(held as f64 > requests * 0.9, "only {held} of {requests:.0} scripts held seats");
    delete_all()?;
    Ok(rate)
}

/// What Redis answers to a command; one with `-x` is given the script as its last argument.
fn redis_cli(port: &str, command: &[&str]) -> anyhow::Result<String> {
    let mut child = Command::new("redis-cli")
        .args(["-h", "127.0.0.1", "-p", port])
        .args(command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("no input")?.write_all(SCRIPT.as_bytes())?;
    let output = child.wait_with_output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Holds a second by gRPC.
async fn measure(stage: &Arc<Stage>, options: &Options) -> anyhow::Result<f64> {
    let start = Instant::now() + WARM_UP;
    let stop = start + Duration::from_secs(options.seconds);
    let callers: Vec<_> = (0..options.callers)
        .map(|caller| {
            let stage = Arc::clone(stage);
            tokio::spawn(async move {
                let mut holds = 0_usize;
                while Instant::now() < stop {
                    stage.hold(caller).await?;
                    holds += usize::from(Instant::now() >= start);
                }
                anyhow::Ok(holds)
            })
        })
        .collect();
    let mut holds = 0;
    for caller in callers {
        holds += caller.await??;
    }
    Ok(holds as f64 / options.seconds as f64)
}

impl Stage {
    /// Holds four seats that nobody else wants.
    async fn hold(&self, caller: usize) -> anyhow::Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let token = self.tokens.get(number / HOLDS_PER_FAN).context("too few fans were made")?;
        let seat = number * SEATS % SEATS_PER_CONCERT;
        let concert =
            self.concerts.get(number * SEATS / SEATS_PER_CONCERT).context("too few seats were made")?;
        let seat_id = |seat| format!("A-{}-{}", seat / SEATS_PER_ROW + 1, seat % SEATS_PER_ROW + 1);
        let wish = CreateHoldRequest {
            concert_id: concert.clone(),
            seat_ids: (seat..seat + SEATS).map(seat_id).collect(),
            best_available: None,
            request_id: format!("hold-{number}"),
        };
        let mut holds = self.house.hold_client(caller);
        holds.create_hold(authorized(wish, token)?).await?.into_inner().hold.context("no hold")?;
        Ok(())
    }
}

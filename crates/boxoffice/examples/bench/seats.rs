//! The seats of a concert of 100,000 places: how large the answer is, and how many a second.

use std::time::Duration;

use anyhow::Context;
use boxoffice::api::Api;
use tokio::time::Instant;

use crate::{house::House, machine::cpu_time};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How long to measure, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Callers at the same time.
    #[arg(long, default_value_t = 16)]
    callers: usize,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let house = House::embedded().await?;
    let concert = house.concert(100).await?;
    // Every third seat is held: letters that repeat less are harder to pack.
    for (number, token) in house.fans(300).await?.iter().enumerate() {
        let seats: Vec<String> =
            (0..10).map(|seat| format!("A-{}-{}", number / 4 + 1, number % 4 * 250 + seat * 3 + 1)).collect();
        let path = format!("/v1/concerts/{concert}/holds");
        house
            .api
            .post(&path, Some(token), &serde_json::json!({"seatIds": seats}))
            .await?
            .expect_success("holding")?;
    }
    let path = format!("/v1/concerts/{concert}/seats");
    let plain = size(&house.api, &path, None).await?;
    let packed = size(&house.api, &path, Some("gzip")).await?;
    let stop = Instant::now() + Duration::from_secs(options.seconds);
    let (start, cpu) = (Instant::now(), cpu_time()?);
    let callers: Vec<_> = (0..options.callers)
        .map(|_| {
            let (api, path) = (house.api.clone(), path.clone());
            tokio::spawn(async move {
                let mut calls = 0_usize;
                while Instant::now() < stop {
                    size(&api, &path, None).await?;
                    calls += 1;
                }
                anyhow::Ok(calls)
            })
        })
        .collect();
    let mut calls = 0;
    for caller in callers {
        calls += caller.await??;
    }
    let cpu = cpu_time()? - cpu;
    println!(
        "GET /seats at 100,000 places: {plain} bytes, {packed} gzipped; {:.0} calls/s, {:.0} CPU us a call",
        calls as f64 / start.elapsed().as_secs_f64(),
        cpu.as_micros() as f64 / calls as f64
    );
    house.close().await
}

/// How many bytes the answer has on the wire.
async fn size(api: &Api, path: &str, encoding: Option<&str>) -> anyhow::Result<usize> {
    let bytes = api.get_raw(path, encoding).await.context("the seats")?;
    Ok(bytes.len())
}

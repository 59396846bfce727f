//! Bookings a second: closed-loop fans hold two seats each and book them by wallet, by gRPC or by REST.

use std::{sync::Arc, time::Duration};

use anyhow::Context;

use crate::{
    house::House,
    shop::{Order, Shop},
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How long to measure, in seconds.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Fans who book at the same time, one booking after the other each.
    #[arg(long, default_value_t = 64)]
    fans: usize,
    /// By REST; default: by gRPC.
    #[arg(long)]
    rest: bool,
    /// A process of each service, on Postgres and Redis; default: all in this process, on SQLite.
    #[arg(long)]
    distributed: bool,
}

/// More bookings a second than anyone expects, to make enough fans and seats before the clock starts.
const AT_MOST: usize = 8_000;
const AT_MOST_DISTRIBUTED: usize = 4_000;

pub(crate) async fn run(options: Options, collector: &str) -> anyhow::Result<()> {
    let (house, at_most) = match options.distributed {
        true => (House::deployed(collector).await?, AT_MOST_DISTRIBUTED),
        false => (House::embedded().await?, AT_MOST),
    };
    let house = Arc::new(house);
    let most = at_most * (options.seconds as usize + 2);
    let shop = Arc::new(Shop::open(&house, Order::Hot, most, options.rest).await?);
    let measured = shop.measure(options.fans, Duration::from_secs(options.seconds)).await?;
    println!("{} {measured}", if options.rest { "REST:" } else { "gRPC:" });
    drop(shop);
    Arc::into_inner(house).context("a fan is still there")?.close().await
}

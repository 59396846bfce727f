//! Bookings a second of one concert that everybody wants, beside as many fans spread over a thousand concerts.

use std::{sync::Arc, time::Duration};

use anyhow::Context;

use crate::{
    house::House,
    shop::{Order, Shop},
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How long to measure each, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Fans who book at the same time, one booking after the other each.
    #[arg(long, default_value_t = 64)]
    fans: usize,
    /// Concerts that are on sale at the same time.
    #[arg(long, default_value_t = 1000)]
    concerts: usize,
}

/// More bookings a second than anyone expects.
const AT_MOST: usize = 4_000;

pub(crate) async fn run(options: Options, collector: &str) -> anyhow::Result<()> {
    let house = Arc::new(House::deployed(collector).await?);
    let window = Duration::from_secs(options.seconds);
    let most = AT_MOST * (options.seconds as usize + 2);
    let hot = Arc::new(Shop::open(&house, Order::Hot, 2 * most, false).await?);
    let spread = Arc::new(Shop::open(&house, Order::Spread(options.concerts), most, false).await?);
    let before = hot.measure(options.fans, window).await?;
    let of_many = spread.measure(options.fans, window).await?;
    let after = hot.measure(options.fans, window).await?;
    let ratio = (before.rate() + after.rate()) / 2.0 / of_many.rate();
    println!(
        "one concert:    {before}\n{} concerts: {of_many}\none concert:    {after}\nratio {ratio:.2}",
        options.concerts
    );
    drop((hot, spread));
    Arc::into_inner(house).context("a fan is still there")?.close().await
}

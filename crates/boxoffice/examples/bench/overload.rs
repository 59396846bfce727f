//! What is left of bookings a second when twice as many fans come as can be served, whatever becomes of those before
//! them; and how soon the others are told to come back.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context;
use hdrhistogram::Histogram;
use tokio::{sync::mpsc, time::Instant};

use crate::{
    deployment::Usage,
    house::House,
    shop::{Order, Refused, Shop},
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How long to measure each, in seconds.
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Fans who book at the same time to find out how many can be served, one booking after the other each.
    #[arg(long, default_value_t = 64)]
    fans: usize,
    /// How many times as many come as can be served.
    #[arg(long, default_value_t = 2.0)]
    times: f64,
    /// By REST; default: by gRPC.
    #[arg(long)]
    rest: bool,
    /// Connections of the generator by gRPC, each with 200 calls at once at the most.
    #[arg(long, default_value_t = 32)]
    connections: usize,
}

/// More bookings a second than anyone expects.
const AT_MOST: usize = 4_000;
/// How long they come before the clock starts, for the queues to fill.
const WARM_UP: Duration = Duration::from_secs(3);
/// How long a fan who has a hold waits before coming back (RetryInfo says so).
const COME_BACK: Duration = Duration::from_secs(1);

const ACCEPTED: &str = "accepted";

/// How a call of a fan ended, and after how long. Of the first call, since it was to begin.
struct End {
    at: Instant,
    step: &'static str,
    took: Duration,
    /// [`ACCEPTED`], or why not.
    outcome: String,
}

pub(crate) async fn run(options: Options, collector: &str) -> anyhow::Result<()> {
    let house = Arc::new(House::deployed(collector).await?.with_connections(options.connections));
    let window = Duration::from_secs(options.seconds);
    let (closed, open) = (window + Duration::from_secs(2), window + WARM_UP);
    let most = AT_MOST as f64 * (2.0 * closed.as_secs_f64() + options.times * open.as_secs_f64());
    let shop = Arc::new(Shop::open(&house, Order::Hot, most as usize, options.rest).await?);
    let before = shop.measure(options.fans, window).await?;
    println!("closed loop: {before}");
    flood(&house, &shop, before.rate() * options.times, window).await?.print(before.rate());
    println!("closed loop: {}", shop.measure(options.fans, window).await?);
    drop(shop);
    Arc::into_inner(house).context("a fan is still there")?.close().await
}

/// What became of those who came.
struct Flood {
    rate: f64,
    window: Duration,
    /// What the processes used until the window and until its end.
    usage: (Usage, Usage),
    /// By the step and its outcome: how long it took.
    ends: BTreeMap<(&'static str, String), Histogram<u64>>,
}

/// Fans begin to book at a fixed rate. Who is not given seats leaves; who has some and can't book them comes back.
async fn flood(house: &House, shop: &Arc<Shop>, rate: f64, window: Duration) -> anyhow::Result<Flood> {
    let (sender, mut received) = mpsc::unbounded_channel();
    let start = Instant::now();
    let (from, until) = (start + WARM_UP, start + WARM_UP + window);
    let arrivals = {
        let shop = Arc::clone(shop);
        tokio::spawn(async move {
            for number in 0..(rate * (WARM_UP + window).as_secs_f64()) as usize {
                let begin = start + Duration::from_secs_f64(number as f64 / rate);
                tokio::time::sleep_until(begin).await;
                let (shop, sender) = (Arc::clone(&shop), sender.clone());
                tokio::spawn(async move { visit(&shop, begin, until, &sender).await });
            }
        })
    };
    let usage = async {
        tokio::time::sleep_until(from).await;
        let before = house.usage().await?.context("nothing is deployed")?;
        tokio::time::sleep_until(until).await;
        anyhow::Ok((before, house.usage().await?.context("nothing is deployed")?))
    };
    let ends = async {
        let mut ends: BTreeMap<_, Histogram<u64>> = BTreeMap::new();
        while let Some(End { at, step, took, outcome }) = received.recv().await {
            if at < from || at >= until {
                continue;
            }
            let times = match ends.entry((step, outcome)) {
                std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::btree_map::Entry::Vacant(entry) => entry.insert(Histogram::new(3)?),
            };
            times.record(took.as_micros() as u64)?;
        }
        anyhow::Ok(ends)
    };
    let (usage, ends) = tokio::try_join!(usage, ends)?;
    arrivals.await?;
    Ok(Flood { rate, window, usage, ends })
}

async fn visit(shop: &Shop, begin: Instant, until: Instant, ends: &mpsc::UnboundedSender<End>) {
    let tell = |step, since: Instant, refused: Option<Refused>| {
        let outcome = refused.map_or(ACCEPTED.to_owned(), |Refused(reason)| reason);
        // Nobody listens any more when the measurement failed.
        let _ = ends.send(End { at: Instant::now(), step, took: since.elapsed(), outcome });
    };
    // How late the generator itself is: a part of each hold's time.
    tell("generator late", begin, None);
    let wish = match shop.wish() {
        Ok(wish) => wish,
        Err(error) => return tell("hold", begin, Some(error.into())),
    };
    let hold = match shop.hold(&wish).await {
        Ok(hold) => hold,
        Err(refused) => return tell("hold", begin, Some(refused)),
    };
    tell("hold", begin, None);
    while Instant::now() < until {
        let begin = Instant::now();
        match shop.book(&wish, &hold).await {
            Ok(()) => return tell("booking", begin, None),
            Err(refused) => tell("booking", begin, Some(refused)),
        }
        tokio::time::sleep(COME_BACK).await;
    }
}

impl Flood {
    fn print(&self, peak: f64) {
        let rate = |count: u64| count as f64 / self.window.as_secs_f64();
        let confirmed = self.ends.get(&("booking", ACCEPTED.to_owned())).map_or(0, Histogram::len);
        let goodput = rate(confirmed);
        println!("{:.0} fans/s come: {goodput:.0} bookings/s, ratio {:.2}", self.rate, goodput / peak);
        if confirmed > 0 {
            println!("{}", self.usage.1.report(&self.usage.0, confirmed as usize));
        }
        for ((step, outcome), times) in &self.ends {
            let at = |quantile| times.value_at_quantile(quantile) as f64 / 1000.0;
            println!(
                "  {step} {outcome}: {:.0}/s, p50 {:.1} ms, p99 {:.1} ms, at most {:.0} ms",
                rate(times.len()),
                at(0.5),
                at(0.99),
                at(1.0)
            );
        }
    }
}

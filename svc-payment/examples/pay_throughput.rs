//! How many payments a second the service takes, asked by gRPC as booking asks it, with the callers on the same machine.
//!
//! ```text
//! cargo run --release -p svc-payment --example pay_throughput                       # SQLite, 64 callers, 10 s
//! cargo run --release -p svc-payment --example pay_throughput -- --callers 16
//! cargo run --release -p svc-payment --example pay_throughput -- --url postgres://…  # an empty database
//! ```

use std::time::{Duration, Instant};

use boxoffice_proto::{
    common::v1::Money,
    payment::v1::{PayRequest, payment_service_client::PaymentServiceClient},
};
use clap::Parser;
use mesh::{
    auth::ServiceTokens,
    client::Channel,
    clock::Clock,
    config::{Secret, duration},
    database::{Database, insert_rows},
    id::{BookingId, ConcertId, Id, UserId},
    shutdown::Shutdown,
};
use tokio::net::TcpListener;

const SERVICE_KEY: &str = "the-key-that-services-of-this-example-share";
/// What is in each wallet at first, and what is taken from it each time, in minor units.
const BALANCE: i64 = 1_000_000_000_000;
const PRICE: i64 = 110_000;

#[derive(Parser)]
struct Options {
    /// How many callers pay at once, each the next as soon as one is answered.
    #[arg(long, default_value_t = 64)]
    callers: usize,
    /// How many wallets they pay out of.
    #[arg(long, default_value_t = 10_000)]
    fans: usize,
    /// How long they go on.
    #[arg(long, default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// The database, which must be empty. Without one: SQLite in a temporary directory.
    #[arg(long)]
    url: Option<String>,
}

/// The service's command line, as its process reads it.
#[derive(Parser)]
struct Service {
    #[command(flatten)]
    config: svc_payment::Config,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let file = mesh_test::sqlite::create_database();
    let database_url = options.url.clone().unwrap_or_else(|| file.url().to_owned());
    let fans = fill_wallets(&database_url, options.fans).await?;

    let arguments = [
        "svc-payment",
        "--database-url",
        &database_url,
        "--service-token-key",
        SERVICE_KEY,
        "--drain-wait",
        "0s",
    ];
    let config = Service::parse_from(arguments).config;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let uri = format!("http://{}", listener.local_addr()?).parse()?;
    let (clock, shutdown) = (Clock::system(), Shutdown::new());
    let serving = tokio::spawn(svc_payment::serve(config, listener.into(), clock.clone(), shutdown.clone()));

    let tokens =
        ServiceTokens::new("booking", &Secret::parse(SERVICE_KEY).map_err(anyhow::Error::msg)?, None);
    let channel = Channel::new("payment", uri, Some(tokens), clock);
    pay(channel.clone(), &fans, Duration::from_secs(1), 0, 1).await?;

    let begin = Instant::now();
    let callers = (0..options.callers).map(|caller| {
        let (channel, fans, options) = (channel.clone(), fans.clone(), (options.duration, options.callers));
        tokio::spawn(async move { pay(channel, &fans, options.0, caller, options.1).await })
    });
    let mut paid = 0;
    for caller in callers.collect::<Vec<_>>() {
        paid += caller.await??;
    }
    let rate = paid as f64 / begin.elapsed().as_secs_f64();
    println!("{paid} payments by {} callers: {rate:.0} a second", options.callers);
    shutdown.begin();
    serving.await?
}

/// New fans with money to spend, put there behind the ledger's back.
async fn fill_wallets(database_url: &str, count: usize) -> anyhow::Result<Vec<UserId>> {
    let database = Database::open(&database_url.parse().map_err(anyhow::Error::msg)?, 2).await?;
    database.migrate(svc_payment::MIGRATIONS).await?;
    let fans: Vec<UserId> = (0..count).map(|_| UserId::new()).collect();
    let transaction = database.begin().await?;
    for fans in fans.chunks(64) {
        let rows = fans.iter().map(|fan| vec![fan.uuid().into(), BALANCE.into()]).collect();
        insert_rows(&transaction, "wallet", &["fan", "balance"], "", rows).await?;
    }
    transaction.commit().await?;
    database.close().await;
    Ok(fans)
}

/// Pays for one booking after the other, out of every `step`th wallet; how many were paid.
async fn pay(
    channel: Channel,
    fans: &[UserId],
    duration: Duration,
    first: usize,
    step: usize,
) -> anyhow::Result<u64> {
    let mut client = PaymentServiceClient::new(channel);
    let concert_id = ConcertId::new().to_string();
    let begin = Instant::now();
    let mut paid = 0;
    for fan in fans.iter().cycle().skip(first).step_by(step) {
        if begin.elapsed() >= duration {
            break;
        }
        let request = PayRequest {
            booking_id: BookingId::new().to_string(),
            user_id: fan.to_string(),
            concert_id: concert_id.clone(),
            amount: Some(Money { currency_code: "KRW".to_owned(), minor_units: PRICE }),
        };
        client.pay(request).await?;
        paid += 1;
    }
    Ok(paid)
}

//! The measurements of docs/BENCHMARKS.md; `scripts/bench` runs each beside its reference. Everything runs in this
//! process, on SQLite files in a temporary directory, the generator included; or, where it says distributed, each
//! service in a process of its own.

mod bookings;
mod calls;
mod collector;
mod deployment;
mod holds;
mod house;
mod machine;
mod overload;
mod policies;
mod rest;
mod seats;
mod shop;
mod spread;
mod start;

use clap::{Parser, Subcommand};
use collector::Collector;
use mesh::telemetry::{self, Export, LogFilter, LogFormat};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bookings a second: hold, book by wallet, confirmed.
    Bookings(bookings::Options),
    /// The same call by REST and by gRPC.
    Calls(calls::Options),
    /// A handler behind all policies, and the same handler bare.
    Policies(policies::Options),
    /// The seats of a concert of 100,000 places.
    Seats(seats::Options),
    /// Holds a second beside redis-benchmark with the same script; distributed.
    Holds(holds::Options),
    /// Bookings a second of one concert beside a thousand; distributed.
    Spread(spread::Options),
    /// Bookings a second when twice as many fans come as can be served; distributed.
    Overload(overload::Options),
    /// Each process: how long until it serves, and its memory when it is idle.
    Start(start::Options),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Cli::parse();
    let collector = Collector::default();
    // As it is in production: 5 % of the traces are sampled and sent.
    let address = collector.serve().await?;
    let export = Export { otel_exporter_otlp_endpoint: Some(address.clone()), ..Export::default() };
    // A lane says at its end how many commits it made for how many jobs.
    let filter: LogFilter = "error,mesh::lane=info".parse().map_err(anyhow::Error::msg)?;
    let telemetry = telemetry::install("bench", LogFormat::Human, &filter, &export)?;
    run(options.command, &address).await?;
    telemetry.flush().await;
    println!("{} spans were sent to a collector meanwhile", collector.spans());
    Ok(())
}

async fn run(command: Command, collector: &str) -> anyhow::Result<()> {
    match command {
        Command::Bookings(options) => bookings::run(options, collector).await,
        Command::Calls(options) => calls::run(options).await,
        Command::Policies(options) => policies::run(options).await,
        Command::Seats(options) => seats::run(options).await,
        Command::Holds(options) => holds::run(options, collector).await,
        Command::Spread(options) => spread::run(options, collector).await,
        Command::Overload(options) => overload::run(options, collector).await,
        Command::Start(options) => start::run(options, collector).await,
    }
}

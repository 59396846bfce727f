//! The measurements of docs/BENCHMARKS.md. Everything runs in this process, on SQLite files in a temporary directory,
//! the generator included; `scripts/bench` runs each beside its reference.

mod bookings;
mod calls;
mod collector;
mod house;
mod policies;
mod seats;

use clap::{Parser, Subcommand};
use collector::Collector;
use mesh::telemetry::{self, Export, LogFormat};

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
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Cli::parse();
    let collector = Collector::default();
    // As it is in production: 5 % of the traces are sampled and sent.
    let export = Export { otel_exporter_otlp_endpoint: Some(collector.serve().await?), ..Export::default() };
    // A lane says at its end how many commits it made for how many jobs.
    let telemetry = telemetry::install("bench", LogFormat::Human, "error,mesh::lane=info", &export)?;
    run(options.command).await?;
    telemetry.flush().await;
    println!("{} spans were sent to a collector meanwhile", collector.spans());
    Ok(())
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Bookings(options) => bookings::run(options).await,
        Command::Calls(options) => calls::run(options).await,
        Command::Policies(options) => policies::run(options).await,
        Command::Seats(options) => seats::run(options).await,
    }
}

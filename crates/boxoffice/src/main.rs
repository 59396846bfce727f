//! `boxoffice`: everything in one process; `boxoffice sellout`: the sell-out that proves it; `boxoffice sweep`: the
//! invariants, checked against the databases.

use std::{io::Write, process::ExitCode};

use boxoffice::{
    api::Api,
    demo::{self, Demo},
    embedded::{Embedded, Options},
    sellout, sweep,
};
use clap::{Parser, Subcommand};
use mesh::{
    clock::Clock,
    failure::chain,
    shutdown::Shutdown,
    telemetry::{self, LogFilter, LogFormat},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Boxoffice sells concerts. Without a command, everything runs in this process.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
    /// What is logged: a level, and levels of parts of the program, such as `warn,svc_booking=debug`. Default: warn; of a
    /// command, error.
    #[arg(long, env, default_value = "", hide_default_value = true)]
    log: LogFilter,
    #[command(flatten)]
    telemetry: telemetry::Export,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Sells a concert out, with many fans at once, and checks that nothing was sold twice or lost.
    Sellout(sellout::Options),
    /// Checks the invariants against the databases of a running or stopped Boxoffice, without writing.
    Sweep(sweep::Databases),
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = cli.log.or(if cli.command.is_some() { "error" } else { "warn" });
    let work = async {
        match cli.command {
            None => run(cli.options).await.map(|()| true),
            Some(Command::Sellout(options)) => sellout::run(options, &Clock::system()).await,
            Some(Command::Sweep(options)) => sweep::run(options).await,
        }
    };
    let human = LogFormat::Human;
    match telemetry::around("boxoffice", human, &filter, &cli.telemetry, work).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("boxoffice: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// Runs everything until Ctrl-C or SIGTERM.
async fn run(options: Options) -> anyhow::Result<()> {
    let data_dir = options.data_dir.clone();
    let shutdown = Shutdown::new();
    shutdown.on_signals()?;
    let mut embedded = Embedded::start(options).await?;
    let api = Api::new(embedded.url())?;
    let seeding = async { demo::seed(&api, &data_dir, Clock::system().now()).await };
    tokio::select! {
        demo = seeding => print_welcome(&embedded, &demo?, &data_dir),
        error = embedded.broken() => return Err(error),
        () = shutdown.begun() => return embedded.stop().await,
    }
    tokio::select! {
        error = embedded.broken() => return Err(error),
        () = shutdown.begun() => {}
    }
    let _ = writeln!(std::io::stdout(), "Stopping: the calls in flight are finished first.");
    embedded.stop().await
}

fn print_welcome(embedded: &Embedded, demo: &Demo, data_dir: &std::path::Path) {
    let url = embedded.url();
    let services: Vec<String> =
        embedded.services.iter().map(|(name, address)| format!("{name} {address}")).collect();
    let booking = embedded.services.iter().find(|(name, _)| *name == "booking");
    let booking = booking.map(|(_, address)| address.to_string()).unwrap_or_default();
    let fans: String = demo.fans.iter().map(|(email, password)| format!("  {email}  {password}\n")).collect();
    // Whoever started it may not care to read.
    let _ = writeln!(
        std::io::stdout(),
        "Boxoffice is ready.
  REST      {url}        docs {url}/docs
  gRPC      {}
  metrics   http://{}/metrics
  data      {}
On sale: {} ({})
Demo fans, e-mail and password (kept in {}):
{fans}Try:
  curl {url}/v1/concerts/{}/seats
  grpcurl -plaintext {booking} list
  cargo run --release -- sellout --fans 500 --seats 100
Ctrl-C stops it; the data stays.",
        services.join(", "),
        embedded.admin,
        data_dir.display(),
        demo.title,
        demo.concert_id,
        data_dir.join("demo.txt").display(),
        demo.concert_id,
    );
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}

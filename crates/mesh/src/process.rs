//! A service as a process of its own: reads the environment, listens, and serves or migrates.

use std::{net::SocketAddr, process::ExitCode};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use tokio::net::TcpListener;

use crate::{
    clock::Clock,
    shutdown::Shutdown,
    telemetry::{self, LogFormat},
};

#[derive(Debug, Parser)]
#[command(version, subcommand_required = false)]
struct Cli<Config: Args> {
    #[command(subcommand)]
    command: Option<Command>,
    /// Where to listen for gRPC.
    #[arg(long, env, default_value = "0.0.0.0:50051", global = true)]
    grpc_listen_addr: SocketAddr,
    /// How logs are written.
    #[arg(long, env, default_value = "json", global = true)]
    log_format: LogFormat,
    #[command(flatten)]
    config: Config,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Command {
    /// Migrate the database, then serve until SIGTERM (the default).
    Serve,
    /// Migrate the database and exit.
    Migrate,
}

/// Runs a service's process: `serve` (the default) or `migrate`. An error is one line on standard error and exit code 1.
pub async fn run<Config: Args>(
    name: &'static str,
    serve: impl AsyncFnOnce(Config, TcpListener, Clock, Shutdown) -> anyhow::Result<()>,
    migrate: impl AsyncFnOnce(Config, Shutdown) -> anyhow::Result<()>,
) -> ExitCode {
    let command = Cli::<Config>::command().name(name);
    let matches = command.get_matches();
    let cli = Cli::<Config>::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    telemetry::install(cli.log_format, "info");
    let shutdown = Shutdown::new();
    let outcome = async {
        shutdown.on_signals()?;
        match cli.command.unwrap_or(Command::Serve) {
            Command::Migrate => migrate(cli.config, shutdown.clone()).await,
            Command::Serve => {
                let listener = TcpListener::bind(cli.grpc_listen_addr)
                    .await
                    .map_err(|error| anyhow::anyhow!("can't listen on {}: {error}", cli.grpc_listen_addr))?;
                tracing::info!(service.name = name, address = %listener.local_addr()?, "listening");
                serve(cli.config, listener, Clock::system(), shutdown.clone()).await
            }
        }
    };
    match outcome.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

//! The gateway as a process of its own.

use std::{net::SocketAddr, process::ExitCode};

use clap::Parser;
use gateway_rest::Config;
use mesh::{
    clock::Clock,
    shutdown::Shutdown,
    telemetry::{self, LogFormat},
};
use tokio::net::TcpListener;

/// Speaks REST with frontends and gRPC with the services.
#[derive(Debug, Parser)]
#[command(name = "gateway-rest", version)]
struct Cli {
    /// Where to listen for HTTP.
    #[arg(long, env, default_value = "0.0.0.0:8080")]
    http_listen_addr: SocketAddr,
    /// How logs are written.
    #[arg(long, env, default_value = "json")]
    log_format: LogFormat,
    #[command(flatten)]
    config: Config,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    telemetry::install(cli.log_format, "info");
    match run(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gateway-rest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let shutdown = Shutdown::new();
    shutdown.on_signals()?;
    let listener = TcpListener::bind(cli.http_listen_addr)
        .await
        .map_err(|error| anyhow::anyhow!("can't listen on {}: {error}", cli.http_listen_addr))?;
    tracing::info!(service.name = "gateway", address = %listener.local_addr()?, "listening");
    gateway_rest::serve(cli.config, listener, Clock::system(), shutdown).await
}

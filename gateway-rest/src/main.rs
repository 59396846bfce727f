//! The gateway as a process of its own.

use std::{net::SocketAddr, process::ExitCode};

use clap::Parser;
use gateway_rest::Config;
use mesh::{
    admin,
    clock::Clock,
    process,
    shutdown::Shutdown,
    telemetry::{self, LogFormat},
};

/// Speaks REST with frontends and gRPC with the services.
#[derive(Debug, Parser)]
#[command(name = "gateway-rest", version)]
struct Cli {
    /// Where to listen for HTTP.
    #[arg(long, env, default_value = "0.0.0.0:8080")]
    http_listen_addr: SocketAddr,
    /// Where operators are answered: /metrics and /healthz.
    #[arg(long, env, default_value = "0.0.0.0:9090")]
    admin_listen_addr: SocketAddr,
    /// How logs are written.
    #[arg(long, env, default_value = "json")]
    log_format: LogFormat,
    #[command(flatten)]
    telemetry: telemetry::Export,
    #[command(flatten)]
    config: Config,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let (format, export) = (cli.log_format, cli.telemetry.clone());
    match telemetry::around("gateway-rest", format, "info,opentelemetry=warn", &export, run(cli)).await {
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
    let listener = process::listen(cli.http_listen_addr).await?;
    let admin = process::listen(cli.admin_listen_addr).await?;
    tracing::info!(
        service.name = "gateway",
        address = %listener.local_addr()?,
        admin.address = %admin.local_addr()?,
        "listening"
    );
    admin::beside(admin, gateway_rest::serve(cli.config, listener, Clock::system(), shutdown)).await
}

//! The gateway as a process of its own.

use std::process::ExitCode;

use clap::CommandFactory;
use gateway_rest::config::Cli;
use mesh::{admin, clock::Clock, failure::chain, process, shutdown::Shutdown, telemetry};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    let cli: Cli = process::parse(Cli::command());
    let (format, filter, export) = (cli.log_format, cli.log.clone(), cli.telemetry.clone());
    match telemetry::around("gateway-rest", format, &filter, &export, run(cli)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gateway-rest: {}", chain(error.as_ref()));
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
        service.name = "gateway-rest",
        address = %listener.local_addr()?,
        admin.address = %admin.local_addr()?,
        "listening"
    );
    admin::beside(admin, gateway_rest::serve(cli.config, listener, Clock::system(), shutdown)).await
}

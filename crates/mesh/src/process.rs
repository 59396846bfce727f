//! A service as a process of its own: reads the environment, listens, and serves or migrates.

use std::{net::SocketAddr, process::ExitCode};

use clap::{
    Args, CommandFactory, FromArgMatches, Parser, Subcommand,
    error::{ContextKind, ContextValue},
};
use tokio::net::TcpListener;

use crate::{
    admin,
    clock::Clock,
    failure::chain,
    server::Port,
    shutdown::Shutdown,
    telemetry::{self, LogFormat},
};

/// What a process logs unless it is told otherwise. Postgres notices what a migration finds done already; whether Redis is
/// there, [`crate::redis`] says.
pub const LOGGED: &str = "info,opentelemetry=warn,fred=off,sqlx::postgres::notice=warn";

#[derive(Debug, Parser)]
#[command(version, subcommand_required = false)]
struct Cli<Config: Args> {
    #[command(subcommand)]
    command: Option<Command>,
    /// Where to listen for gRPC.
    #[arg(long, env, default_value = "0.0.0.0:50051", global = true)]
    grpc_listen_addr: SocketAddr,
    /// Where operators are answered: /metrics and /healthz.
    #[arg(long, env, default_value = "0.0.0.0:9090", global = true)]
    admin_listen_addr: SocketAddr,
    /// How logs are written.
    #[arg(long, env, default_value = "json", global = true)]
    log_format: LogFormat,
    #[command(flatten)]
    telemetry: telemetry::Export,
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
    serve: impl AsyncFnOnce(Config, Port, Clock, Shutdown) -> anyhow::Result<()>,
    migrate: impl AsyncFnOnce(Config, Shutdown) -> anyhow::Result<()>,
) -> ExitCode {
    let cli: Cli<Config> = parse(command::<Config>(name));
    let shutdown = Shutdown::new();
    let work = async {
        shutdown.on_signals()?;
        match cli.command.unwrap_or(Command::Serve) {
            Command::Migrate => migrate(cli.config, shutdown.clone()).await,
            Command::Serve => {
                let port = reserve(cli.grpc_listen_addr)?;
                let admin = listen(cli.admin_listen_addr).await?;
                tracing::info!(
                    service.name = name,
                    address = %port.local_addr()?,
                    admin.address = %admin.local_addr()?,
                    "starting"
                );
                let serving = serve(cli.config, port, Clock::system(), shutdown.clone());
                admin::beside(admin, serving).await
            }
        }
    };
    match telemetry::around(name, cli.log_format, LOGGED, &cli.telemetry, work).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// What a service's process may be told.
pub fn command<Config: Args>(name: &'static str) -> clap::Command {
    Cli::<Config>::command().name(name)
}

/// What this process is told by its arguments and environment. If that makes no sense, it ends with an error that names
/// the setting, and shows no secret.
pub fn parse<Cli: FromArgMatches>(command: clap::Command) -> Cli {
    let matches = command.try_get_matches().unwrap_or_else(|error| without_secrets(error).exit());
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// Listens on an address.
///
/// # Errors
/// If it is in use, or not this machine's.
pub async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| cannot_listen(address, &error))
}

/// Takes an address, which is listened on later.
fn reserve(address: SocketAddr) -> anyhow::Result<Port> {
    Port::reserve(address).map_err(|error| cannot_listen(address, &error))
}

fn cannot_listen(address: SocketAddr, error: &std::io::Error) -> anyhow::Error {
    anyhow::anyhow!("can't listen on {address}: {error}")
}

/// The error without the value that was refused, where that may be a secret or hold a password.
fn without_secrets(mut error: clap::Error) -> clap::Error {
    let argument = error.get(ContextKind::InvalidArg).map(ToString::to_string).unwrap_or_default();
    if argument.contains("key") || argument.contains("url") {
        error.insert(ContextKind::InvalidValue, ContextValue::String("[hidden]".to_owned()));
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Common;

    #[test]
    fn a_refused_secret_is_not_shown() {
        let arguments =
            ["svc", "--database-url", "mysql://root:hunter2@db", "--service-token-key", "hunter2"];
        for skipped in [1, 3] {
            let given =
                arguments.iter().enumerate().filter(|(index, _)| *index != skipped && *index != skipped + 1);
            let error = Cli::<Common>::command().try_get_matches_from(given.map(|(_, argument)| *argument));
            let text = without_secrets(error.unwrap_err()).to_string();
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}

//! A service as a process of its own: reads the environment, listens, and serves or migrates.

use std::{io::Write, net::SocketAddr, process::ExitCode};

use clap::{
    ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand,
    error::{ContextKind, ContextValue},
};
use tokio::net::TcpListener;

use crate::{
    admin,
    clock::Clock,
    config::wait_for_database,
    database::{DatabaseUrl, Migration, SchemaChange},
    failure::chain,
    server::Port,
    shutdown::Shutdown,
    telemetry::{self, LogFilter, LogFormat},
};

/// What a process logs unless it is told otherwise. Postgres notices what a migration finds done already; whether Redis is
/// there, [`crate::redis`] says; a connection of a pool that broke is replaced, and whoever can't be served says so.
pub const LOGGED: &str = "info,opentelemetry=warn,fred=off,sqlx::postgres::notice=warn,sqlx_core::pool=error";

/// Migrations have one connection, which they close.
const MIGRATION_CONNECTIONS: u32 = 1;

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
    /// What is logged: a level, and levels of parts of the program, such as `info,svc_booking=debug`.
    #[arg(long, env, default_value = LOGGED, value_parser = log_filter, global = true)]
    log: LogFilter,
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
    /// Migrate the database, say what was done, and exit. Of what must be set it needs the database only.
    #[command(name = MIGRATE)]
    Migrate,
}

const MIGRATE: &str = "migrate";

/// What is needed to migrate. The arguments are those of the service.
#[derive(Debug, Args)]
struct ToMigrate {
    #[arg(long)]
    database_url: DatabaseUrl,
    #[arg(long)]
    log: LogFilter,
    #[arg(long)]
    log_format: LogFormat,
    #[command(flatten)]
    telemetry: telemetry::Export,
}

/// Runs a service's process: `serve` (the default) or `migrate`. An error is one line on standard error and exit code 1.
pub async fn run<Config: Args>(
    name: &'static str,
    migrations: &'static [Migration],
    serve: impl AsyncFnOnce(Config, Port, Clock, Shutdown) -> anyhow::Result<()>,
) -> ExitCode {
    let mut command = command::<Config>(name);
    if std::env::args().any(|argument| argument == MIGRATE) {
        command = needing_the_database_only(command);
    }
    let matches = matches(command);
    let outcome = if matches.subcommand_name() == Some(MIGRATE) {
        let told: ToMigrate = read(&matches);
        let work = migrate(name, migrations, &told.database_url);
        telemetry::around(name, told.log_format, &told.log, &told.telemetry, work).await
    } else {
        let cli: Cli<Config> = read(&matches);
        let work = async {
            let shutdown = Shutdown::new();
            shutdown.on_signals()?;
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
        };
        telemetry::around(name, cli.log_format, &cli.log, &cli.telemetry, work).await
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// Migrates a database, and says on standard output what was done.
async fn migrate(name: &str, migrations: &[Migration], url: &DatabaseUrl) -> anyhow::Result<()> {
    let shutdown = Shutdown::new();
    shutdown.on_signals()?;
    let database = wait_for_database(url, MIGRATION_CONNECTIONS, &shutdown).await?;
    let SchemaChange { from, to } = database.migrate(migrations).await?;
    database.close().await;
    let done = match to {
        _ if from == to => format!("is at version {to} already: nothing to do"),
        _ => format!("went from version {from} to {to}"),
    };
    // Whoever started it may not care to read.
    let _ = writeln!(std::io::stdout(), "{name}: the schema of {url:?} {done}");
    Ok(())
}

/// What a process logs by what it is told.
///
/// # Errors
/// If the text makes no sense.
pub fn log_filter(text: &str) -> Result<LogFilter, &'static str> {
    text.parse().map(|filter: LogFilter| filter.or(LOGGED))
}

fn needing_the_database_only(command: clap::Command) -> clap::Command {
    command.mut_args(|argument| {
        let is_needed = argument.get_id() == "database_url";
        argument.required(is_needed)
    })
}

/// What a service's process may be told.
pub fn command<Config: Args>(name: &'static str) -> clap::Command {
    Cli::<Config>::command().name(name)
}

/// What this process is told by its arguments and environment. If that makes no sense, it ends with an error that names
/// the setting, and shows no secret.
pub fn parse<Cli: FromArgMatches>(command: clap::Command) -> Cli {
    read(&matches(command))
}

fn matches(command: clap::Command) -> ArgMatches {
    command.try_get_matches().unwrap_or_else(|error| without_secrets(error).exit())
}

fn read<Cli: FromArgMatches>(matches: &ArgMatches) -> Cli {
    Cli::from_arg_matches(matches).unwrap_or_else(|error| error.exit())
}

/// Listens on an address.
///
/// # Errors
/// If it is in use, or not this machine's.
pub async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    reserve(address)?.listen().map_err(|error| cannot_listen(address, &error))
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
    use clap::error::ErrorKind;

    use super::*;
    use crate::config::Common;

    #[test]
    fn a_migration_needs_a_database_and_no_secrets() {
        let refusal = |arguments: &[&str]| {
            let command = needing_the_database_only(Cli::<Common>::command());
            command.try_get_matches_from(arguments).err().map(|error| error.kind())
        };
        assert_eq!(refusal(&["svc", "--database-url", "sqlite://x", MIGRATE]), None);
        assert_eq!(refusal(&["svc", MIGRATE]), Some(ErrorKind::MissingRequiredArgument));
    }

    #[test]
    fn what_is_logged_makes_sense_or_is_refused_by_its_name() {
        let told = |log: &[&str]| {
            let arguments = [&["svc", "--database-url", "sqlite://x"], log, &[MIGRATE]].concat();
            let command = needing_the_database_only(Cli::<Common>::command());
            let matches = command.try_get_matches_from(arguments);
            matches.map(|matches| read::<ToMigrate>(&matches).log).map_err(|error| error.to_string())
        };
        assert_eq!(told(&[]), Ok(LOGGED.parse().unwrap()));
        assert_eq!(told(&["--log", ""]), told(&[]));
        assert_eq!(told(&["--log", "debug"]), Ok("debug".parse().unwrap()));
        let refusal = told(&["--log", "info,svc_booking=loud"]).unwrap_err();
        assert!(refusal.contains("--log <LOG>") && refusal.contains("warn,svc_booking=debug"), "{refusal}");
    }

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

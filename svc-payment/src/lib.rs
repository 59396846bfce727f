//! The payment service: fans' wallets, payments of bookings, and the double-entry ledger of both. `serve` is where it is
//! put together.

mod domain;
mod error;
mod service;
mod store;
mod worker;

use boxoffice_proto::payment::v1::{
    payment_service_server::PaymentServiceServer, wallet_service_server::WalletServiceServer,
};
use mesh::{
    clock::Clock,
    config::Common,
    database::{Database, Migration},
    idempotency,
    lane::Lane,
    money::Currency,
    server::{self, Port},
    shutdown::Shutdown,
};
use tonic::service::Routes;

use crate::store::cashier::Cashier;

/// What the service is told.
#[derive(Debug, Clone, clap::Args)]
#[command(about)]
pub struct Config {
    /// What every service is told.
    #[command(flatten)]
    pub common: Common,
    /// The currency of every wallet and payment (ISO 4217).
    #[arg(long, env, default_value = "KRW")]
    pub currency: Currency,
    /// The payment provider that fills wallets. Without one, nobody can top up.
    #[arg(long, env)]
    pub psp: Option<Psp>,
}

/// A payment provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Psp {
    /// A pretended one that pays at once: for demonstrations and tests only.
    Sandbox,
}

/// The history of the schema.
pub const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        description: "wallets, payments and their ledger",
        sql: include_str!("migration/0001_initial.sql"),
    },
    Migration { version: 2, description: "idempotency keys", sql: idempotency::TABLE },
];

/// What every part of the service works with.
#[derive(Clone)]
struct Shared {
    database: Database,
    clock: Clock,
    currency: Currency,
    psp: Option<Psp>,
    payments: Lane<Cashier>,
}

/// Migrates the database and serves until shutdown. The port is opened when calls can be answered.
///
/// # Errors
/// If the database can't be used, or the listener breaks.
pub async fn serve(config: Config, port: Port, clock: Clock, shutdown: Shutdown) -> anyhow::Result<()> {
    let database = config.common.open_database(MIGRATIONS, &clock, &shutdown).await?;
    database.watch_connections("payment");
    let shared = Shared {
        database: database.clone(),
        clock: clock.clone(),
        currency: config.currency,
        psp: config.psp,
        payments: Lane::start(Cashier::new(database, clock.clone())),
    };
    let routes = Routes::new(WalletServiceServer::new(shared.clone()))
        .add_service(PaymentServiceServer::new(shared.clone()));
    worker::start(shared.clone(), shutdown.clone());

    let authenticator = config.common.authenticator("payment", &clock, &shutdown);
    let options = config.common.server_options("payment", &shared.database);
    server::serve(options, routes, authenticator, port.open()?, shutdown).await?;
    shared.database.close().await;
    Ok(())
}

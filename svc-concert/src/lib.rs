//! The concert service: venues with their layouts, and concerts from draft to end. `serve` is where it is put together.

mod domain;
mod error;
mod service;
mod store;
mod worker;

use boxoffice_proto::concert::v1::{
    concert_service_server::ConcertServiceServer, sale_service_server::SaleServiceServer,
    venue_service_server::VenueServiceServer,
};
use mesh::{
    clock::Clock,
    config::Common,
    database::{Database, Migration},
    idempotency,
    money::Currency,
    server::{self, Port},
    shutdown::Shutdown,
};
use tonic::service::Routes;

/// What the service is told.
#[derive(Debug, Clone, clap::Args)]
#[command(about)]
pub struct Config {
    /// What every service is told.
    #[command(flatten)]
    pub common: Common,
    /// The currency that tickets are sold in (ISO 4217).
    #[arg(long, env, default_value = "KRW")]
    pub currency: Currency,
}

/// The history of the schema.
pub const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        description: "venues and concerts",
        sql: include_str!("migration/0001_initial.sql"),
    },
    Migration { version: 2, description: "idempotency keys", sql: idempotency::TABLE },
];

/// What every part of the service works with.
#[derive(Debug, Clone)]
struct Shared {
    database: Database,
    clock: Clock,
    currency: Currency,
}

/// Migrates the database and serves until shutdown. The port is opened when calls can be answered.
///
/// # Errors
/// If the database can't be used, or the listener breaks.
pub async fn serve(config: Config, port: Port, clock: Clock, shutdown: Shutdown) -> anyhow::Result<()> {
    let database = config.common.open_database(MIGRATIONS, &clock, &shutdown).await?;
    database.watch_connections("concert");
    let shared = Shared { database, clock: clock.clone(), currency: config.currency };
    let routes = Routes::new(VenueServiceServer::new(shared.clone()))
        .add_service(ConcertServiceServer::new(shared.clone()))
        .add_service(SaleServiceServer::new(shared.clone()));
    worker::start(shared.clone(), shutdown.clone());

    let authenticator = config.common.authenticator("concert", &clock, &shutdown);
    let options = config.common.server_options("concert", &shared.database);
    server::serve(options, routes, authenticator, port.open()?, shutdown).await?;
    shared.database.close().await;
    Ok(())
}

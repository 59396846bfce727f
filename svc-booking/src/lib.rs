//! The booking service: seats, holds and bookings. `serve` is where it is put together.

mod audit;
mod catalog;
mod checkout;
mod clients;
mod domain;
mod error;
mod holds;
mod seats;
mod service;
mod store;
#[cfg(test)]
mod tests;
mod worker;

use std::{sync::Arc, time::Duration};

use boxoffice_proto::booking::v1::{
    booking_service_server::BookingServiceServer, hold_service_server::HoldServiceServer,
    seat_service_server::SeatServiceServer,
};
use mesh::{
    client::{Address, Channel},
    clock::Clock,
    config::{self, Common},
    database::Migration,
    money::Currency,
    redis::{Redis, RedisUrl},
    server::{self, Port},
    shutdown::Shutdown,
};
use tonic::service::Routes;

use crate::{catalog::Catalog, clients::Neighbours, holds::Holds, seats::Views, store::Store};

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
    /// Where svc-concert is.
    #[arg(long, env, default_value = "http://svc-concert:50051")]
    pub concert_url: Address,
    /// Where svc-payment is.
    #[arg(long, env, default_value = "http://svc-payment:50051")]
    pub payment_url: Address,
    /// Where Redis is, in which all replicas keep holds: redis://host:port, or redis-cluster://host:port?node=host:port.
    #[arg(long, env, hide_env_values = true, required = true)]
    pub redis_url: Option<RedisUrl>,
    /// How long seats are held; at most 30m.
    #[arg(long, env, default_value = "10m", value_parser = hold_ttl)]
    pub hold_ttl: Duration,
}

/// How long a hold may last by configuration: 1 s to 30 min.
///
/// # Errors
/// If the text is no such duration.
pub fn hold_ttl(text: &str) -> Result<Duration, String> {
    let ttl = config::duration(text).map_err(|error| error.to_string())?;
    let is_fine = (Duration::from_secs(1)..=Duration::from_secs(30 * 60)).contains(&ttl);
    if is_fine { Ok(ttl) } else { Err("must be 1s to 30m".to_owned()) }
}

/// The history of the schema.
pub const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        description: "bookings, claims, refunds",
        sql: include_str!("migration/0001_initial.sql"),
    },
    Migration {
        version: 2,
        description: "what an operator must look at",
        sql: include_str!("migration/0002_attention.sql"),
    },
];

/// What every part of the service works with.
#[derive(Clone)]
struct Shared {
    store: Store,
    holds: Arc<Holds>,
    catalog: Arc<Catalog>,
    neighbours: Neighbours,
    views: Arc<Views>,
    clock: Clock,
    currency: Currency,
    hold_ttl: Duration,
}

/// Migrates the database and serves until shutdown. The port is opened when calls can be answered.
///
/// # Errors
/// If the database can't be used, or the listener breaks.
pub async fn serve(config: Config, port: Port, clock: Clock, shutdown: Shutdown) -> anyhow::Result<()> {
    let database = config.common.open_database(MIGRATIONS, &clock, &shutdown).await?;
    database.watch_connections("booking");
    let tokens = config.common.service_tokens("booking");
    let channel = |name, uri| Channel::new(name, uri, Some(tokens.clone()), clock.clone());
    let neighbours = Neighbours::new(
        channel("concert", config.concert_url.clone()),
        channel("payment", config.payment_url.clone()),
        config.currency,
    );
    let redis = config.redis_url.as_ref().map(Redis::start);
    let holds = match &redis {
        Some(redis) => Holds::redis(redis.clone()),
        None => Holds::memory(clock.clone()),
    };
    let shared = Shared {
        store: Store::new(database.clone()),
        holds: Arc::new(holds),
        catalog: Arc::new(Catalog::new(neighbours.clone())),
        neighbours,
        views: Arc::new(Views::default()),
        clock: clock.clone(),
        currency: config.currency,
        hold_ttl: config.hold_ttl,
    };
    let routes = routes(&shared);
    worker::start(&shared, &shutdown);

    let authenticator = config.common.authenticator("booking", &clock, &shutdown);
    // What was begun is gone on with without it.
    if let Some(redis) = &redis {
        redis.wait(&shutdown).await;
    }
    let mut options = config.common.server_options("booking", &database);
    options.dependencies.extend(redis.map(Redis::dependency));
    server::serve(options, routes, authenticator, port.open()?, shutdown).await?;
    shared.store.close().await;
    Ok(())
}

/// What the service answers.
fn routes(shared: &Shared) -> Routes {
    Routes::new(SeatServiceServer::new(shared.clone()))
        .add_service(HoldServiceServer::new(shared.clone()))
        .add_service(BookingServiceServer::new(shared.clone()))
}

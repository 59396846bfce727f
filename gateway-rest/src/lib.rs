//! REST in, gRPC out: the gateway speaks REST with frontends and gRPC with the services. It owns no data, and no
//! endpoint has code of its own: what a route takes and gives follows from the contracts.
//!
//! A call passes, in this order: `connections`, `entry`, `router`, `endpoint` with `rate_limit`, `transcode`, the client
//! stack of `mesh`, and back. What goes wrong becomes a `problem`.

mod access;
mod answers;
mod codec;
pub mod config;
mod connections;
pub mod cors;
pub mod descriptors;
mod endpoint;
mod entry;
mod event_stream;
mod json_body;
pub mod openapi;
pub mod problem;
pub mod rate_limit;
mod rendering;
mod router;
pub mod transcode;

use std::sync::Arc;

use mesh::{
    auth::{Authenticator, Keys, ServiceTokens},
    client::Channel,
    clock::Clock,
    redis::Redis,
    server::MAX_IN_FLIGHT,
    shutdown::Shutdown,
};
use tokio::net::TcpListener;

pub use self::config::Config;
use self::{
    answers::Answers, endpoint::Shared, entry::Entry, rate_limit::RateLimits, rendering::Renderings,
    router::Channels,
};

/// Calls that may wait for one service beside those of any client: together as many as one of its processes works on at once. A
/// sale begins with a step; who is too many then is told so at once, and comes back when the answer says.
const ROOM: usize = MAX_IN_FLIGHT / 4;

/// Serves REST until shutdown, then drains: `/readyz` says no, nothing new is accepted, event streams end, calls in
/// flight finish.
///
/// # Errors
/// If a contract declares something that the gateway does not know how to serve.
pub async fn serve(
    config: Config,
    listener: TcpListener,
    clock: Clock,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    // Until it is there, this gateway counts for itself.
    let redis = config.redis_url.as_ref().map(Redis::start);
    if let Some(redis) = &redis {
        tokio::spawn(redis.clone().dependency().watch("gateway"));
    }
    let tokens = ServiceTokens::new("gateway", &config.service_token_key, None);
    let channel =
        |name, address| Channel::new(name, address, Some(tokens.clone()), clock.clone()).widened_by(ROOM);
    let user = channel("user", config.user_url);
    let keys = Keys::new();
    keys.follow(user.clone(), shutdown.clone());
    let channels = Channels([
        user,
        channel("concert", config.concert_url),
        channel("booking", config.booking_url),
        channel("payment", config.payment_url),
    ]);
    let stop = Shutdown::new();
    let shared = Arc::new(Shared {
        authenticator: Authenticator::new(keys.clone(), tokens.clone(), clock.clone()),
        rate_limits: RateLimits::new(
            config.rate_limit_per_user,
            config.rate_limit_per_address,
            redis.as_ref(),
        ),
        answers: Answers::new(),
        renderings: Renderings::new(),
        stop: stop.clone(),
    });
    let mut router =
        router::contract_routes(&channels, &shared)?.merge(router::own_routes(keys, shutdown.clone()));
    if config.docs {
        router = router.merge(router::documentation()?);
    }
    let entry = Entry::new(router::finish(router, config.cors_allowed_origins));

    let drain = async {
        shutdown.begun().await;
        tokio::time::sleep(config.drain_wait).await;
        stop.begin();
    };
    tokio::join!(drain, connections::serve(listener, entry, stop.clone()));
    Ok(())
}

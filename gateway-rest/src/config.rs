//! What the gateway is told by its environment.

use std::{net::SocketAddr, time::Duration};

use clap::Parser;
use mesh::{
    client::Address,
    config::{Secret, duration},
    process,
    redis::RedisUrl,
    telemetry::{self, LogFilter, LogFormat},
};

use crate::cors::AllowedOrigins;

/// Speaks REST with frontends and gRPC with the services.
#[derive(Debug, Parser)]
#[command(name = "gateway-rest", version)]
pub struct Cli {
    /// Where to listen for HTTP.
    #[arg(long, env, default_value = "0.0.0.0:8080")]
    pub http_listen_addr: SocketAddr,
    /// Where operators are answered: /metrics and /healthz.
    #[arg(long, env, default_value = "0.0.0.0:9090")]
    pub admin_listen_addr: SocketAddr,
    /// What is logged: a level, and levels of parts of the program, such as `info,svc_booking=debug`.
    #[arg(long, env, default_value = process::LOGGED, value_parser = process::log_filter)]
    pub log: LogFilter,
    /// How logs are written.
    #[arg(long, env, default_value = "json")]
    pub log_format: LogFormat,
    /// Where telemetry is sent.
    #[command(flatten)]
    pub telemetry: telemetry::Export,
    /// What the gateway is told.
    #[command(flatten)]
    pub config: Config,
}

/// What the gateway is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Config {
    /// Where svc-user is.
    #[arg(long, env, default_value = "http://svc-user:50051")]
    pub user_url: Address,
    /// Where svc-concert is.
    #[arg(long, env, default_value = "http://svc-concert:50051")]
    pub concert_url: Address,
    /// Where svc-booking is.
    #[arg(long, env, default_value = "http://svc-booking:50051")]
    pub booking_url: Address,
    /// Where svc-payment is.
    #[arg(long, env, default_value = "http://svc-payment:50051")]
    pub payment_url: Address,
    /// The secret that services show each other that they belong to the mesh; at least 32 bytes, the same for all.
    #[arg(long, env, hide_env_values = true, value_parser = Secret::parse)]
    pub service_token_key: Secret,
    /// Origins whose web pages may call, separated by commas, such as `https://tickets.example`; `http://localhost:*`
    /// stands for every port.
    #[arg(long, env, default_value = "")]
    pub cors_allowed_origins: AllowedOrigins,
    /// Calls a second that a user may make; unused ones can be saved up for 10 s.
    #[arg(long, env, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate_limit_per_user: u32,
    /// Calls a second that callers without a token may make from one address; unused ones can be saved up for 10 s.
    #[arg(long, env, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate_limit_per_address: u32,
    /// Where Redis is, in which all gateways count calls together: redis://host:port, or
    /// redis-cluster://host:port?node=host:port. Without it each counts for itself.
    #[arg(long, env, hide_env_values = true)]
    pub redis_url: Option<RedisUrl>,
    /// Show the description of the API: /docs and /openapi.json.
    #[arg(long, env, default_value_t = false, action = clap::ArgAction::Set)]
    pub docs: bool,
    /// How long to go on accepting calls after /readyz says no, so that balancers notice.
    #[arg(long, env, default_value = "5s", value_parser = duration)]
    pub drain_wait: Duration,
}

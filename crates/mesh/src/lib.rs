//! What every call between Boxoffice services passes through, and what every service stands on.
//!
//! One policy, one file, its tests beside it:
//! - a call in: [`server`], with [`context`], [`deadline`], [`auth`], [`failure`]
//! - a call out: [`client`], with its breaker, retries and balance
//! - state: [`database`], [`redis`], [`lane`], [`idempotency`], [`page`]
//! - what operators see: [`telemetry`], [`calls`], [`metrics`], [`admin`]
//! - the rest: [`id`], [`clock`], [`field`], [`money`], [`config`], [`shutdown`], [`process`], [`crash`]

pub mod admin;
pub mod auth;
pub mod calls;
pub mod client;
pub mod clock;
pub mod config;
pub mod context;
pub mod crash;
pub mod database;
pub mod deadline;
pub mod failure;
pub mod field;
mod gathered;
pub mod id;
pub mod idempotency;
pub mod lane;
pub mod metrics;
pub mod money;
pub mod page;
pub mod process;
pub mod redis;
mod room;
pub mod server;
pub mod shutdown;
pub mod telemetry;

pub use failure::Failure;

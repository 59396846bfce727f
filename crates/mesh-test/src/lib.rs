//! What the tests of every crate share: throwaway databases and Redis servers, waiting for a condition, and a proxy that misbehaves.

mod fault_proxy;
mod port;
pub mod postgres;
mod redis;
pub mod sqlite;
mod wait;

pub use fault_proxy::{FaultProxy, Mode};
pub use port::free_port;
pub use redis::{Redis, RedisCluster};
pub use wait::wait_until;

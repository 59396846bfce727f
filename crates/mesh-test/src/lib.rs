//! What the tests of every crate share: throwaway databases, waiting for a condition, and a proxy that misbehaves.

mod fault_proxy;
pub mod postgres;
pub mod sqlite;
mod wait;

pub use fault_proxy::{FaultProxy, Mode};
pub use wait::wait_until;

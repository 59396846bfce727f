//! The mesh as it is deployed: a process for each replica, on Postgres and Redis, with fans who come and go; and what happens to it.
//! Afterwards it must be sound: nobody lost what was acknowledged, and every invariant holds.
//!
//! How long it took to converge is printed: `converged: <fault>: <seconds>`.

#[path = "../stage/mod.rs"]
mod stage;

mod crashes;
mod crowd;
mod databases;
mod deployment;
mod feed;
mod neighbours;
mod pauses;
mod redis;
mod rollout;
mod traces;

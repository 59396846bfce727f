//! What every call between services passes through, seen from outside: real sockets, services whose handlers do what a
//! test says, each served and dialled as the real ones are.
//!
//! Most tests run on tokio's paused clock: it jumps ahead as soon as there is nothing left to do, so a deadline of ten
//! seconds passes at once, and at the moment it should.

mod access;
mod balance;
mod breaker;
mod deadline;
mod dependencies;
mod drain;
mod metrics;
mod service;
mod simulation;
mod transport;
mod world;

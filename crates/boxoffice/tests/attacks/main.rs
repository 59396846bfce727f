//! Attacks on the whole mesh, through REST and by gRPC straight to its services. Each is answered as documented, and harms
//! nobody.

#[path = "../stage/mod.rs"]
mod stage;

mod access;
mod database;
mod keys;
mod ownership;
mod races;
mod refresh_tokens;
mod requests;
mod tokens;

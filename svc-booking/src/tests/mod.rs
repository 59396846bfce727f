//! The booking service among neighbours that are fakes, served as in production: the laws of the saga, what fans are
//! told, how a crash is mended, and the gRPC adapters.

mod adapters;
mod cluster;
mod concert;
mod house;
mod orders;
mod payment;
mod payment_outcomes;
mod recovery;
mod replicas;
mod saga_laws;
mod seat_changes;
mod workers;

//! The gRPC adapters: decode and check, one call, encode.

mod bookings;
mod holds;
mod seats;

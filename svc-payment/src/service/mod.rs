//! The gRPC adapters: decode and check, one store or lane call, encode.

mod payments;
mod wallets;

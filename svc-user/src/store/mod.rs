//! Accounts, organisers, sessions and signing keys in the database. A function that is given the database is one
//! transaction; one that is given a connection is one statement, or part of the caller's transaction.

pub(crate) mod account;
pub(crate) mod organizer;
pub(crate) mod session;
pub(crate) mod signing_key;
#[cfg(test)]
mod tests;

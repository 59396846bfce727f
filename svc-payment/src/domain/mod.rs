//! What may become of money: the ledger's accounts, and what paying, voiding, refunding and topping up do to them. No I/O.

pub(crate) mod books;
pub(crate) mod ledger;

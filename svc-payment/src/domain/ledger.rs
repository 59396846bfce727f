//! The double-entry ledger: money never appears or vanishes, it moves from one account to another.

use mesh::id::{BookingId, ConcertId, UserId};

/// Whose money it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Account {
    /// What a fan can spend. The only kind with a balance that is kept, and that can't fall below zero.
    Wallet(UserId),
    /// What payment providers took for us. It falls by every top-up, until they pay it out.
    ProviderClearing,
    /// What the organiser of a concert is owed.
    ConcertPayable(ConcertId),
}

/// Why money moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Movement {
    /// From a payment provider into a wallet.
    TopUp,
    /// From a wallet to the organiser of a concert.
    Payment,
    /// Back again.
    Refund,
}

/// An amount that moved from one account to another. It is more than zero: what moves nothing is no transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Transaction {
    pub(crate) movement: Movement,
    /// The booking it belongs to. None for a top-up.
    pub(crate) booking: Option<BookingId>,
    pub(crate) from: Account,
    pub(crate) to: Account,
    /// In minor units.
    pub(crate) amount: i64,
}

/// What a transaction does to one account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) account: Account,
    /// In minor units: positive into the account, negative out of it.
    pub(crate) amount: i64,
}

impl Transaction {
    /// The entries, which sum to zero.
    pub(crate) fn entries(&self) -> [Entry; 2] {
        let Self { from, to, amount, .. } = *self;
        [Entry { account: from, amount: -amount }, Entry { account: to, amount }]
    }
}

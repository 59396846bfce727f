//! The bookings and the money, read once, and what must hold among them.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::Context;
use mesh::{
    database::{Database, sql},
    id::{BookingId, Id, UserId},
};
use sea_orm::{
    ConnectionTrait, DatabaseBackend, DatabaseTransaction, IsolationLevel, QueryResult, TransactionOptions,
    TransactionTrait,
};
use serde::Deserialize;
use uuid::Uuid;

use super::{Check, Witness};

// As the services' migrations number them.
const PAYING: i16 = 1;
const CONFIRMED: i16 = 3;
const FAILED: i16 = 4;
const CANCELLED: i16 = 5;
const CAPTURED: i16 = 1;
const WALLET_ACCOUNT: i16 = 1;

/// Everything that the invariants are about.
pub(super) struct Books {
    bookings: Vec<Booking>,
    claims: Vec<Claim>,
    refunds_to_do: HashMap<Uuid, i64>,
    payments: Vec<Payment>,
    entries: Vec<Entry>,
    wallets: HashMap<Uuid, i64>,
}

struct Booking {
    id: Uuid,
    hold: Option<Uuid>,
    concert: Uuid,
    state: i16,
    seats: Vec<u32>,
    total: i64,
    refunded: i64,
}

struct Claim {
    concert: Uuid,
    seat: u32,
    booking: Uuid,
}

struct Payment {
    booking: Uuid,
    state: i16,
    amount: i64,
    refunded: i64,
}

struct Entry {
    id: Uuid,
    transaction: Uuid,
    account: i16,
    owner: Option<Uuid>,
    amount: i64,
}

#[derive(Deserialize)]
struct Seat {
    ordinal: u32,
}

impl Books {
    /// Reads each database as it is at one moment; the two moments differ.
    pub(super) async fn read(booking: &Database, payment: &Database) -> anyhow::Result<Self> {
        let payment = &snapshot(payment).await?;
        let entries = rows(payment, "SELECT id, transaction_id, account, owner, amount FROM entry", |row| {
            Ok(Entry {
                id: row.try_get("", "id")?,
                transaction: row.try_get("", "transaction_id")?,
                account: row.try_get("", "account")?,
                owner: row.try_get("", "owner")?,
                amount: row.try_get("", "amount")?,
            })
        })
        .await?;
        let wallets = rows(payment, "SELECT fan, balance FROM wallet", |row| {
            Ok((row.try_get("", "fan")?, row.try_get("", "balance")?))
        })
        .await?;
        let payments = rows(payment, "SELECT booking, state, amount, refunded FROM payment", |row| {
            Ok(Payment {
                booking: row.try_get("", "booking")?,
                state: row.try_get("", "state")?,
                amount: row.try_get("", "amount")?,
                refunded: row.try_get("", "refunded")?,
            })
        })
        .await?;
        // Begun when it is needed: a transaction that does nothing is ended after a while.
        let booking = &snapshot(booking).await?;
        let claims = rows(booking, "SELECT concert, seat, booking FROM claim", |row| {
            Ok(Claim {
                concert: row.try_get("", "concert")?,
                seat: row.try_get::<i32>("", "seat")? as u32,
                booking: row.try_get("", "booking")?,
            })
        })
        .await?;
        let refunds = rows(booking, "SELECT booking, amount FROM refund WHERE NOT is_done", |row| {
            Ok((row.try_get("", "booking")?, row.try_get("", "amount")?))
        })
        .await?;
        let bookings =
            rows(booking, "SELECT id, hold, concert, state, seats, total, refunded FROM booking", |row| {
                let seats: String = row.try_get("", "seats")?;
                let seats: Vec<Seat> =
                    serde_json::from_str(&seats).context("a booking's seats can't be read")?;
                Ok(Booking {
                    id: row.try_get("", "id")?,
                    hold: row.try_get("", "hold")?,
                    concert: row.try_get("", "concert")?,
                    state: row.try_get("", "state")?,
                    seats: seats.into_iter().map(|seat| seat.ordinal).collect(),
                    total: row.try_get("", "total")?,
                    refunded: row.try_get("", "refunded")?,
                })
            })
            .await?;
        Ok(Self {
            bookings,
            claims,
            refunds_to_do: refunds.into_iter().collect(),
            payments,
            entries,
            wallets: wallets.into_iter().collect(),
        })
    }

    /// I1: what the bookings say they have, and what the claims say, is the same, and no seat is had twice.
    pub(super) fn one_claim_a_seat(&self) -> Check {
        let mut breaches = Vec::new();
        let mut owners: HashMap<(Uuid, u32), Uuid> = HashMap::new();
        for booking in self.bookings.iter().filter(|booking| matches!(booking.state, PAYING | CONFIRMED)) {
            for seat in &booking.seats {
                if let Some(other) = owners.insert((booking.concert, *seat), booking.id) {
                    breaches.push(format!("seat {seat} is sold to {} and {}", name(other), name(booking.id)));
                }
            }
        }
        let mut claimed = HashSet::new();
        for claim in &self.claims {
            let place = (claim.concert, claim.seat);
            if !claimed.insert(place) {
                breaches.push(format!("seat {} is claimed twice", claim.seat));
            }
            if owners.get(&place) != Some(&claim.booking) {
                breaches.push(format!(
                    "seat {} is claimed by {}, which does not have it",
                    claim.seat,
                    name(claim.booking)
                ));
            }
        }
        for (place, booking) in &owners {
            if !claimed.contains(place) {
                breaches.push(format!("seat {} of {} is not claimed", place.1, name(*booking)));
            }
        }
        Check {
            number: "I1",
            promise: "at most one live claim a seat",
            looked_at: Some(owners.len()),
            breaches,
        }
    }

    /// I3: the ledger sums to zero, wallets are what their entries say, and what was taken is confirmed or given back:
    /// `unmatched` is where it is not.
    pub(super) fn money_adds_up(&self, unmatched: Vec<String>) -> Check {
        let mut breaches = Vec::new();
        let mut transactions: BTreeMap<Uuid, i128> = BTreeMap::new();
        let mut balances: HashMap<Uuid, i128> = HashMap::new();
        for entry in &self.entries {
            *transactions.entry(entry.transaction).or_default() += i128::from(entry.amount);
            if let (WALLET_ACCOUNT, Some(owner)) = (entry.account, entry.owner) {
                *balances.entry(owner).or_default() += i128::from(entry.amount);
            }
        }
        for (transaction, sum) in transactions.iter().filter(|(_, sum)| **sum != 0) {
            breaches.push(format!("the entries of transaction {transaction} sum to {sum}"));
        }
        for (fan, balance) in &self.wallets {
            let sum = balances.remove(fan).unwrap_or_default();
            if sum != i128::from(*balance) {
                breaches.push(format!(
                    "the wallet of {} has {balance}, its entries say {sum}",
                    UserId::from_uuid(*fan)
                ));
            }
        }
        for (fan, sum) in balances.iter().filter(|(_, sum)| **sum != 0) {
            breaches.push(format!("{} has no wallet, its entries say {sum}", UserId::from_uuid(*fan)));
        }
        breaches.extend(unmatched);
        Check {
            number: "I3",
            promise: "captured = confirmed + refunded; the ledger sums to 0",
            looked_at: Some(self.entries.len()),
            breaches,
        }
    }

    /// Payments that bookings know nothing of, and the other way round. In a running Boxoffice it may only look so: a
    /// booking that was paid and confirmed between the two moments is in one of the databases alone.
    pub(super) fn unmatched_payments(&self) -> Vec<String> {
        let mut breaches = Vec::new();
        let payments: HashMap<Uuid, &Payment> =
            self.payments.iter().map(|payment| (payment.booking, payment)).collect();
        let bookings: HashMap<Uuid, &Booking> =
            self.bookings.iter().map(|booking| (booking.id, booking)).collect();
        for payment in self.payments.iter().filter(|payment| payment.state == CAPTURED) {
            let kept = payment.amount - payment.refunded;
            let booking = bookings.get(&payment.booking);
            let due = match booking.map(|booking| booking.state) {
                Some(CONFIRMED) => booking.map_or(0, |booking| booking.total),
                // Not known yet, or being given back: a worker is on it.
                Some(PAYING) => continue,
                Some(CANCELLED) => self.refunds_to_do.get(&payment.booking).copied().unwrap_or_default(),
                _ => 0,
            };
            // A refund that was made and not noted yet is made again by its key, so less may be kept than is due.
            let is_fine =
                kept == due || kept == 0 && booking.is_some_and(|booking| booking.state == CANCELLED);
            if !is_fine {
                breaches.push(format!("{kept} was kept for {}, {due} is due", name(payment.booking)));
            }
        }
        for booking in &self.bookings {
            let payment = payments.get(&booking.id).filter(|payment| payment.state == CAPTURED);
            if booking.state == CONFIRMED && payment.is_none() {
                breaches.push(format!("{} is confirmed and was never paid", name(booking.id)));
            }
            let refunded = payment.map_or(0, |payment| payment.refunded);
            if booking.refunded > refunded {
                breaches.push(format!(
                    "{} says {} was given back; it was {refunded}",
                    name(booking.id),
                    booking.refunded
                ));
            }
        }
        breaches
    }

    /// I4: what a client was told is there.
    pub(super) fn acknowledged_is_there(&self, witness: &Witness) -> Check {
        let states: HashMap<Uuid, i16> =
            self.bookings.iter().map(|booking| (booking.id, booking.state)).collect();
        let mut breaches = Vec::new();
        for booking in &witness.confirmed {
            match states.get(&booking.uuid()) {
                Some(&(CONFIRMED | CANCELLED)) => {}
                Some(state) => {
                    breaches.push(format!("{booking} was answered CONFIRMED and is in state {state}"))
                }
                None => breaches.push(format!("{booking} was answered CONFIRMED and is not there")),
            }
        }
        for booking in witness.made.iter().filter(|booking| !states.contains_key(&booking.uuid())) {
            breaches.push(format!("{booking} was answered and is not there"));
        }
        let acknowledged = witness.confirmed.len() + witness.made.len();
        let looked_at = (acknowledged > 0).then_some(acknowledged);
        Check { number: "I4", promise: "every acknowledged create can be read back", looked_at, breaches }
    }

    /// I6: no number stands for two things, and no hold became two bookings.
    pub(super) fn numbers_are_unique(&self) -> Check {
        let mut breaches = Vec::new();
        let mut once = |what: &str, numbers: &mut dyn Iterator<Item = Uuid>| {
            let mut seen = HashSet::new();
            for number in numbers.filter(|number| !seen.insert(*number)) {
                breaches.push(format!("{what} {number} is there twice"));
            }
        };
        once("booking", &mut self.bookings.iter().map(|booking| booking.id));
        let live = self.bookings.iter().filter(|booking| booking.state != FAILED);
        once("the booking of hold", &mut live.filter_map(|booking| booking.hold));
        once("the payment of booking", &mut self.payments.iter().map(|payment| payment.booking));
        once("ledger entry", &mut self.entries.iter().map(|entry| entry.id));
        let looked_at = Some(self.bookings.len() + self.payments.len() + self.entries.len());
        Check { number: "I6", promise: "booking, payment and ledger numbers are unique", looked_at, breaches }
    }
}

fn name(booking: Uuid) -> String {
    BookingId::from_uuid(booking).to_string()
}

/// A transaction that sees the database as it is when it first reads.
async fn snapshot(database: &Database) -> anyhow::Result<DatabaseTransaction> {
    let isolation_level =
        (database.backend() == DatabaseBackend::Postgres).then_some(IsolationLevel::RepeatableRead);
    let options = TransactionOptions { isolation_level, ..Default::default() };
    Ok(database.reader().begin_with_options(options).await?)
}

async fn rows<T>(
    snapshot: &DatabaseTransaction,
    text: &str,
    read: impl Fn(&QueryResult) -> anyhow::Result<T>,
) -> anyhow::Result<Vec<T>> {
    snapshot.query_all_raw(sql(snapshot, text, [])).await?.iter().map(read).collect()
}

//! The books in the database: reading what a batch of commands is about, and writing what became of it. A statement
//! takes all rows of its kind, so that a batch of sixty-four costs hardly more than one of one.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use mesh::{
    database::{Insert, Rows, postgres_rows, rows_of, sql},
    id::{BookingId, ConcertId, EntryId, Id, RefundId, UserId},
};
use sea_orm::{ConnectionTrait, DatabaseBackend, DbErr, QueryResult, Value};
use uuid::Uuid;

use super::movement_number;
use crate::domain::{
    books::{Books, Changes, Charge, Command, Payment, PaymentState, Refund},
    ledger::Account,
};

/// Reads what is stored of the payments, refunds and wallets that the commands are about.
///
/// On Postgres, a fan's wallet is the lock on all of the fan's payments: whoever changes them holds it. So payments are
/// read after the wallets are locked; read before, one that another process is just writing would be missing, and its
/// booking would be charged, or found too dear for what that process left in the wallet. What no wallet guards, the
/// primary keys do.
///
/// # Errors
/// A failing database; a payment that came to be meanwhile and whose wallet is not locked.
pub(super) async fn open(transaction: &impl ConnectionTrait, commands: &[Command]) -> Result<Books, DbErr> {
    // Commands to give back don't say whose wallet they are about; the payment does.
    let given_back: BTreeSet<BookingId> =
        commands.iter().filter(|command| command.payer().is_none()).map(Command::booking).collect();
    let known = find_payments(transaction, given_back.iter().copied()).await?;
    let payers = known.iter().filter_map(Payment::payer);
    let fans: BTreeSet<UserId> = commands.iter().filter_map(Command::payer).chain(payers).collect();
    let wallets = lock_wallets(transaction, fans.iter().copied()).await?;
    let payments = find_payments(transaction, commands.iter().map(Command::booking)).await?;
    let is_locked = |payment: &Payment| payment.payer().is_none_or(|fan| fans.contains(&fan));
    if payments.iter().any(|payment| given_back.contains(&payment.booking) && !is_locked(payment)) {
        return Err(DbErr::Custom("a payment to be given back was made meanwhile".into()));
    }
    let refunds = find_refunds(transaction, commands.iter().filter_map(Command::refund_id)).await?;
    Ok(Books::open(payments, refunds, wallets))
}

async fn find_payments(
    transaction: &impl ConnectionTrait,
    bookings: impl Iterator<Item = BookingId>,
) -> Result<Vec<Payment>, DbErr> {
    let keys = Keys::of(bookings);
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let text = format!(
        "SELECT booking, state, fan, concert, amount, refunded FROM payment WHERE booking IN ({})",
        keys.places()
    );
    let rows = transaction.query_all_raw(sql(transaction, text, keys.values())).await?;
    rows.iter().map(read_payment).collect()
}

async fn find_refunds(
    transaction: &impl ConnectionTrait,
    refunds: impl Iterator<Item = RefundId>,
) -> Result<Vec<Refund>, DbErr> {
    let keys = Keys::of(refunds);
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let text = format!("SELECT id, booking, amount FROM refund WHERE id IN ({})", keys.places());
    let rows = transaction.query_all_raw(sql(transaction, text, keys.values())).await?;
    rows.iter().map(read_refund).collect()
}

/// The balances of these fans' wallets, in minor units, locked on Postgres until the transaction ends.
pub(super) async fn lock_wallets(
    transaction: &impl ConnectionTrait,
    fans: impl IntoIterator<Item = UserId>,
) -> Result<Vec<(UserId, i64)>, DbErr> {
    let keys = Keys::of(fans);
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    // On SQLite there is no other writer during a transaction.
    let is_postgres = transaction.get_database_backend() == DatabaseBackend::Postgres;
    let lock = if is_postgres { "FOR UPDATE" } else { "" };
    // Sorted: two batches that lock the same wallets don't wait for each other.
    let text =
        format!("SELECT fan, balance FROM wallet WHERE fan IN ({}) ORDER BY fan {lock}", keys.places());
    let rows = transaction.query_all_raw(sql(transaction, text, keys.values())).await?;
    rows.iter()
        .map(|row| Ok((UserId::from_uuid(row.try_get("", "fan")?), row.try_get("", "balance")?)))
        .collect()
}

/// Writes what became of the books.
///
/// # Errors
/// A failing database; a row that vanished or was added since it was read.
pub(super) async fn write(
    transaction: &impl ConnectionTrait,
    changes: &Changes,
    now: DateTime<Utc>,
) -> Result<(), DbErr> {
    let new_payments = changes.new_payments.iter().map(|payment| {
        vec![
            payment.booking.uuid().into(),
            state_number(payment.state).into(),
            payment.charge.map(|charge| charge.fan.uuid()).into(),
            payment.charge.map(|charge| charge.concert.uuid()).into(),
            payment.amount().into(),
            payment.refunded.into(),
            now.into(),
        ]
    });
    let new_payments = Insert {
        table: "payment",
        columns: &["booking", "state", "fan", "concert", "amount", "refunded", "create_time"],
        tail: "",
        rows: new_payments.collect(),
    };
    let new_refunds = changes.new_refunds.iter().map(|refund| {
        vec![refund.id.uuid().into(), refund.booking.uuid().into(), refund.amount.into(), now.into()]
    });
    let new_refunds = Insert {
        table: "refund",
        columns: &["id", "booking", "amount", "create_time"],
        tail: "",
        rows: new_refunds.collect(),
    };
    let entries = changes.transactions.iter().flat_map(|moved| {
        let transaction_id = Uuid::now_v7();
        moved.entries().map(|entry| {
            let (account, owner) = account_columns(entry.account);
            vec![
                EntryId::new().uuid().into(),
                transaction_id.into(),
                movement_number(moved.movement).into(),
                account.into(),
                owner.into(),
                moved.booking.map(BookingId::uuid).into(),
                entry.amount.into(),
                now.into(),
            ]
        })
    });
    let entries = Insert {
        table: "entry",
        columns: &[
            "id",
            "transaction_id",
            "movement",
            "account",
            "owner",
            "booking",
            "amount",
            "create_time",
        ],
        tail: "",
        rows: entries.collect(),
    };
    for payment in &changes.changed_payments {
        update_payment(transaction, payment).await?;
    }
    let inserts = [new_payments, new_refunds, entries];
    if transaction.get_database_backend() == DatabaseBackend::Postgres {
        return write_together(transaction, &inserts, &changes.wallet_changes).await;
    }
    for insert in inserts {
        insert.run(transaction).await?;
    }
    change_wallets(transaction, &changes.wallet_changes).await
}

/// Inserts and changes wallets by one statement of Postgres: a round trip instead of three or four.
async fn write_together(
    transaction: &impl ConnectionTrait,
    inserts: &[Insert],
    wallet_changes: &[(UserId, i64)],
) -> Result<(), DbErr> {
    let mut values = Vec::new();
    let mut parts = Vec::new();
    for insert in inserts {
        parts.extend(insert.part(&mut values)?);
    }
    let mut select = "SELECT 0::bigint AS count";
    if !wallet_changes.is_empty() {
        let query = postgres_rows(&mut values, &wallet_rows(wallet_changes))?;
        parts.push(format!("changed AS ({} RETURNING fan)", wallet_text(&query)));
        select = "SELECT count(*) AS count FROM changed";
    }
    if parts.is_empty() {
        return Ok(());
    }
    let statement = sql(transaction, format!("WITH {} {select}", parts.join(", ")), values);
    let row = transaction.query_one_raw(statement).await?;
    let changed: i64 = row.map_or(Ok(0), |row| row.try_get("", "count"))?;
    expect_rows(changed as u64, wallet_changes.len(), "wallet")
}

async fn update_payment(transaction: &impl ConnectionTrait, payment: &Payment) -> Result<(), DbErr> {
    let statement = sql(
        transaction,
        "UPDATE payment SET state = $2, refunded = $3 WHERE booking = $1",
        [payment.booking.uuid().into(), state_number(payment.state).into(), payment.refunded.into()],
    );
    expect_rows(transaction.execute_raw(statement).await?.rows_affected(), 1, "payment")
}

/// Adds to each wallet, or takes from it; the database refuses a balance below zero.
async fn change_wallets(transaction: &impl ConnectionTrait, changes: &[(UserId, i64)]) -> Result<(), DbErr> {
    for Rows { query, values, count } in rows_of(transaction.get_database_backend(), wallet_rows(changes))? {
        let statement = sql(transaction, wallet_text(&query), values);
        expect_rows(transaction.execute_raw(statement).await?.rows_affected(), count, "wallet")?;
    }
    Ok(())
}

fn wallet_rows(changes: &[(UserId, i64)]) -> Vec<Vec<Value>> {
    changes.iter().map(|(fan, change)| vec![fan.uuid().into(), (*change).into()]).collect()
}

fn wallet_text(query: &str) -> String {
    format!(
        "UPDATE wallet SET balance = wallet.balance + change.column2
         FROM ({query}) AS change WHERE wallet.fan = change.column1"
    )
}

fn expect_rows(updated: u64, expected: usize, table: &str) -> Result<(), DbErr> {
    if updated == expected as u64 {
        return Ok(());
    }
    Err(DbErr::Custom(format!("{updated} rows of {table} were updated, not {expected}")))
}

/// Keys to look for. Repeated up to a power of two, so that only a handful of texts are ever prepared.
struct Keys(Vec<Uuid>);

impl Keys {
    fn of(ids: impl IntoIterator<Item = impl Id>) -> Self {
        let mut keys: Vec<Uuid> = ids.into_iter().map(Id::uuid).collect();
        keys.sort_unstable();
        keys.dedup();
        if let Some(last) = keys.last().copied() {
            keys.resize(keys.len().next_power_of_two(), last);
        }
        Self(keys)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `$1, $2, $3`
    fn places(&self) -> String {
        let places: Vec<String> = (1..=self.0.len()).map(|place| format!("${place}")).collect();
        places.join(", ")
    }

    fn values(self) -> impl Iterator<Item = Value> {
        self.0.into_iter().map(Value::from)
    }
}

fn read_payment(row: &QueryResult) -> Result<Payment, DbErr> {
    let (fan, concert): (Option<Uuid>, Option<Uuid>) = (row.try_get("", "fan")?, row.try_get("", "concert")?);
    let amount = row.try_get("", "amount")?;
    let charge = fan.zip(concert).map(|(fan, concert)| Charge {
        fan: UserId::from_uuid(fan),
        concert: ConcertId::from_uuid(concert),
        amount,
    });
    Ok(Payment {
        booking: BookingId::from_uuid(row.try_get("", "booking")?),
        state: state_of(row.try_get("", "state")?)?,
        charge,
        refunded: row.try_get("", "refunded")?,
    })
}

fn read_refund(row: &QueryResult) -> Result<Refund, DbErr> {
    Ok(Refund {
        id: RefundId::from_uuid(row.try_get("", "id")?),
        booking: BookingId::from_uuid(row.try_get("", "booking")?),
        amount: row.try_get("", "amount")?,
    })
}

/// `payment.state`.
fn state_number(state: PaymentState) -> i16 {
    match state {
        PaymentState::Captured => 1,
        PaymentState::Voided => 2,
    }
}

fn state_of(number: i16) -> Result<PaymentState, DbErr> {
    match number {
        1 => Ok(PaymentState::Captured),
        2 => Ok(PaymentState::Voided),
        other => Err(DbErr::Type(format!("payment.state is {other}"))),
    }
}

/// `entry.account` and `entry.owner`.
fn account_columns(account: Account) -> (i16, Option<Uuid>) {
    match account {
        Account::Wallet(fan) => (1, Some(fan.uuid())),
        Account::ProviderClearing => (2, None),
        Account::ConcertPayable(concert) => (3, Some(concert.uuid())),
    }
}

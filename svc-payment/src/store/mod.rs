//! Wallets, payments and their ledger in the database. Reads take whose wallet it is.

#[cfg(test)]
mod audit;
mod books;
pub(crate) mod cashier;
#[cfg(test)]
mod tests;

use chrono::{DateTime, Utc};
use mesh::{
    database::{insert_rows, sql},
    id::{BookingId, EntryId, Id, TopUpId, UserId},
    page::Page,
};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, QueryResult};
use uuid::Uuid;

use crate::{
    domain::{books::Books, ledger::Movement},
    error::Error,
};

/// A top-up that the sandbox provider paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TopUp {
    pub(crate) id: TopUpId,
    pub(crate) fan: UserId,
    /// In minor units.
    pub(crate) amount: i64,
    pub(crate) create_time: DateTime<Utc>,
}

/// A movement in a fan's wallet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WalletEntry {
    pub(crate) id: EntryId,
    pub(crate) movement: Movement,
    /// The booking it belongs to. None for a top-up.
    pub(crate) booking: Option<BookingId>,
    /// In minor units: positive into the wallet, negative out of it.
    pub(crate) amount: i64,
    pub(crate) create_time: DateTime<Utc>,
}

/// `top_up.provider` of the sandbox.
const SANDBOX: i16 = 1;

/// What a fan can spend, in minor units.
pub(crate) async fn wallet_balance(connection: &impl ConnectionTrait, fan: UserId) -> Result<i64, Error> {
    let statement = sql(connection, "SELECT balance FROM wallet WHERE fan = $1", [fan.uuid().into()]);
    match connection.query_one_raw(statement).await? {
        Some(row) => Ok(row.try_get("", "balance")?),
        None => Ok(0),
    }
}

/// A page of what moved a fan's wallet, the newest first, and one row more if there is one.
pub(crate) async fn list_wallet_entries(
    connection: &impl ConnectionTrait,
    fan: UserId,
    page: &Page<EntryId>,
) -> Result<Vec<WalletEntry>, Error> {
    let before = page.after.map_or(Uuid::max(), EntryId::uuid);
    let statement = sql(
        connection,
        "SELECT id, movement, booking, amount, create_time FROM entry
         WHERE account = 1 AND owner = $1 AND id < $2 ORDER BY id DESC LIMIT $3",
        [fan.uuid().into(), before.into(), (page.rows() as i64).into()],
    );
    let rows = connection.query_all_raw(statement).await?;
    Ok(rows.iter().map(read_wallet_entry).collect::<Result<_, _>>()?)
}

/// Puts a top-up into its fan's wallet, in a transaction of the caller.
///
/// # Errors
/// If the wallet would hold more than one may; a failing database.
pub(crate) async fn record_top_up(transaction: &DatabaseTransaction, top_up: &TopUp) -> Result<(), Error> {
    let TopUp { id, fan, amount, create_time } = *top_up;
    // The row has to be there to be locked; otherwise two first top-ups at once would both count from nothing.
    let wallet = vec![vec![fan.uuid().into(), 0i64.into()]];
    insert_rows(transaction, "wallet", &["fan", "balance"], "ON CONFLICT DO NOTHING", wallet).await?;
    let wallets = books::lock_wallets(transaction, [fan]).await?;
    let mut books = Books::open([], [], wallets);
    books.top_up(fan, amount)?;
    books::write(transaction, &books.changes(), create_time).await?;
    let row =
        vec![vec![id.uuid().into(), fan.uuid().into(), SANDBOX.into(), amount.into(), create_time.into()]];
    insert_rows(transaction, "top_up", &["id", "fan", "provider", "amount", "create_time"], "", row).await?;
    Ok(())
}

fn read_wallet_entry(row: &QueryResult) -> Result<WalletEntry, DbErr> {
    let booking: Option<Uuid> = row.try_get("", "booking")?;
    Ok(WalletEntry {
        id: EntryId::from_uuid(row.try_get("", "id")?),
        movement: movement_of(row.try_get("", "movement")?)?,
        booking: booking.map(BookingId::from_uuid),
        amount: row.try_get("", "amount")?,
        create_time: row.try_get("", "create_time")?,
    })
}

/// `entry.movement`.
fn movement_number(movement: Movement) -> i16 {
    match movement {
        Movement::TopUp => 1,
        Movement::Payment => 2,
        Movement::Refund => 3,
    }
}

fn movement_of(number: i16) -> Result<Movement, DbErr> {
    match number {
        1 => Ok(Movement::TopUp),
        2 => Ok(Movement::Payment),
        3 => Ok(Movement::Refund),
        other => Err(DbErr::Type(format!("entry.movement is {other}"))),
    }
}

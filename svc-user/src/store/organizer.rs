//! Organisers and who acts for them.

use chrono::{DateTime, Utc};
use mesh::{
    database::sql,
    id::{Id, OrganizerId, UserId},
};
use sea_orm::{ConnectionTrait, DatabaseTransaction, FromQueryResult};
use uuid::Uuid;

use crate::error::Error;

/// How many organisers a user may act for: they all stand in each of their tokens. The schema has the same number.
pub(crate) const ORGANIZER_LIMIT: i64 = 20;

/// An organiser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Organizer {
    pub(crate) id: OrganizerId,
    pub(crate) display_name: String,
    pub(crate) create_time: DateTime<Utc>,
}

#[derive(FromQueryResult)]
struct OrganizerRow {
    id: Uuid,
    display_name: String,
    create_time: DateTime<Utc>,
}

/// Makes an organiser with its first member. Several statements: the caller brings the transaction.
pub(crate) async fn create(
    transaction: &DatabaseTransaction,
    organizer: &Organizer,
    member: UserId,
) -> Result<(), Error> {
    // First, because it locks the account's row: two requests at once are counted one after the other.
    let count = sql(
        transaction,
        "UPDATE account SET organizer_count = organizer_count + 1 WHERE id = $1 AND organizer_count < $2",
        [member.uuid().into(), ORGANIZER_LIMIT.into()],
    );
    if transaction.execute_raw(count).await?.rows_affected() == 0 {
        super::account::find_own(transaction, member).await?;
        return Err(Error::OrganizerLimitExceeded { limit: ORGANIZER_LIMIT });
    }
    let insert_organizer = sql(
        transaction,
        "INSERT INTO organizer (id, display_name, create_time) VALUES ($1, $2, $3)",
        [organizer.id.uuid().into(), organizer.display_name.as_str().into(), organizer.create_time.into()],
    );
    transaction.execute_raw(insert_organizer).await?;
    let insert_member = sql(
        transaction,
        "INSERT INTO organizer_member (account, organizer, create_time) VALUES ($1, $2, $3)",
        [member.uuid().into(), organizer.id.uuid().into(), organizer.create_time.into()],
    );
    transaction.execute_raw(insert_member).await?;
    Ok(())
}

/// The organisers that the caller acts for, the oldest first.
pub(crate) async fn list_own(
    connection: &impl ConnectionTrait,
    caller: UserId,
) -> Result<Vec<Organizer>, Error> {
    let statement = sql(
        connection,
        "SELECT organizer.id, organizer.display_name, organizer.create_time
         FROM organizer_member JOIN organizer ON organizer.id = organizer_member.organizer
         WHERE organizer_member.account = $1 ORDER BY organizer.id",
        [caller.uuid().into()],
    );
    let rows = OrganizerRow::find_by_statement(statement).all(connection).await?;
    let organizer = |row: OrganizerRow| Organizer {
        id: OrganizerId::from_uuid(row.id),
        display_name: row.display_name,
        create_time: row.create_time,
    };
    Ok(rows.into_iter().map(organizer).collect())
}

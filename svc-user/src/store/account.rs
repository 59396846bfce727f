//! Accounts.

use chrono::{DateTime, Utc};
use mesh::{
    database::sql,
    id::{Id, UserId},
};
use sea_orm::{ConnectionTrait, FromQueryResult};
use uuid::Uuid;

use crate::{email::EmailAddress, error::Error};

/// An account to be made.
#[derive(Debug)]
pub(crate) struct NewAccount {
    pub(crate) id: UserId,
    pub(crate) email: EmailAddress,
    /// As [`PasswordHasher`](crate::password::PasswordHasher) makes it.
    pub(crate) password_hash: String,
    pub(crate) display_name: String,
    pub(crate) create_time: DateTime<Utc>,
}

/// An account, as its owner sees it.
#[derive(Debug, PartialEq, Eq, FromQueryResult)]
pub(crate) struct Account {
    pub(crate) email: String,
    pub(crate) display_name: String,
    pub(crate) create_time: DateTime<Utc>,
}

/// What a login is checked against.
#[derive(FromQueryResult)]
struct CredentialsRow {
    id: Uuid,
    password_hash: String,
}

/// Makes an account, unless its e-mail has one: then nothing changes, and the caller is told nothing. The known row is
/// written as it is, so that this takes a commit, and so as long, as making one: nobody learns who has an account.
pub(crate) async fn create(connection: &impl ConnectionTrait, account: NewAccount) -> Result<(), Error> {
    let statement = sql(
        connection,
        "INSERT INTO account (id, email, password_hash, display_name, organizer_count, create_time)
         VALUES ($1, $2, $3, $4, 0, $5) ON CONFLICT (email) DO UPDATE SET email = excluded.email",
        [
            account.id.uuid().into(),
            account.email.as_str().into(),
            account.password_hash.into(),
            account.display_name.into(),
            account.create_time.into(),
        ],
    );
    connection.execute_raw(statement).await?;
    Ok(())
}

/// The account of an e-mail and the hash of its password.
pub(crate) async fn find_credentials(
    connection: &impl ConnectionTrait,
    email: &EmailAddress,
) -> Result<Option<(UserId, String)>, Error> {
    let statement =
        sql(connection, "SELECT id, password_hash FROM account WHERE email = $1", [email.as_str().into()]);
    let row = CredentialsRow::find_by_statement(statement).one(connection).await?;
    Ok(row.map(|row| (UserId::from_uuid(row.id), row.password_hash)))
}

/// The caller's own account.
pub(crate) async fn find_own(connection: &impl ConnectionTrait, caller: UserId) -> Result<Account, Error> {
    let statement = sql(
        connection,
        "SELECT email, display_name, create_time FROM account WHERE id = $1",
        [caller.uuid().into()],
    );
    Account::find_by_statement(statement).one(connection).await?.ok_or(Error::UserNotFound)
}

//! Signing keys, their private part encrypted.

use chrono::{DateTime, Utc};
use mesh::database::sql;
use sea_orm::{ConnectionTrait, FromQueryResult};

use crate::error::Error;

/// A signing key, as kept.
#[derive(Debug, Clone, PartialEq, Eq, FromQueryResult)]
pub(crate) struct StoredKey {
    /// 1, 2, 3, …
    pub(crate) generation: i64,
    pub(crate) kid: String,
    pub(crate) public_key: Vec<u8>,
    pub(crate) private_key: Vec<u8>,
    pub(crate) create_time: DateTime<Utc>,
    pub(crate) sign_time: DateTime<Utc>,
}

/// All keys, the newest first.
pub(crate) async fn list(connection: &impl ConnectionTrait) -> Result<Vec<StoredKey>, Error> {
    let statement = sql(
        connection,
        "SELECT generation, kid, public_key, private_key, create_time, sign_time
         FROM signing_key ORDER BY generation DESC",
        [],
    );
    Ok(StoredKey::find_by_statement(statement).all(connection).await?)
}

/// Adds a key, unless another process was first with this generation. Whether it was added.
pub(crate) async fn add(connection: &impl ConnectionTrait, key: StoredKey) -> Result<bool, Error> {
    let statement = sql(
        connection,
        "INSERT INTO signing_key (generation, kid, public_key, private_key, create_time, sign_time)
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (generation) DO NOTHING",
        [
            key.generation.into(),
            key.kid.into(),
            key.public_key.into(),
            key.private_key.into(),
            key.create_time.into(),
            key.sign_time.into(),
        ],
    );
    Ok(connection.execute_raw(statement).await?.rows_affected() == 1)
}

/// Deletes a key.
pub(crate) async fn delete(connection: &impl ConnectionTrait, generation: i64) -> Result<(), Error> {
    let statement = sql(connection, "DELETE FROM signing_key WHERE generation = $1", [generation.into()]);
    connection.execute_raw(statement).await?;
    Ok(())
}

//! Cold mutations done once: the answer to an idempotency key is written in the transaction of its effect, and given
//! again when the key comes again within [`LIFETIME`].
//!
//! Each service that uses it has the table in its own database: see [`TABLE`].

use boxoffice_proto::{common::v1::ErrorReason, policy};
use chrono::{DateTime, TimeDelta, Utc};
use prost::Message;
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr};
use sha2::{Digest, Sha256};
use tonic::{Response, metadata::MetadataValue};

use crate::{
    clock::Clock,
    database::{Database, sql},
    failure::{Failure, Violation},
    id::{Id, UserId},
};

/// How long a key is remembered.
pub const LIFETIME: TimeDelta = TimeDelta::hours(24);
/// The longest key, in bytes.
pub const KEY_LIMIT: usize = 255;
/// Says in an answer's metadata that it is one given before.
pub const REPLAYED: &str = "idempotency-replayed";

/// The table, for a service's migration.
pub const TABLE: &str = "CREATE TABLE idempotency (
    caller uuid NOT NULL, method text NOT NULL, request_key text NOT NULL,
    fingerprint bytea NOT NULL, response bytea NOT NULL, create_time timestamptz NOT NULL,
    PRIMARY KEY (caller, method, request_key)
);
CREATE INDEX idempotency_create_time ON idempotency (create_time);";

/// Whose request it is, and what it asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestKey {
    caller: UserId,
    method: &'static str,
    key: String,
    fingerprint: [u8; 32],
}

impl RequestKey {
    /// Takes the key out of a request of the method with this gRPC path. The request without it is what must be the
    /// same the next time. Where the contract lets the key be missing, a new one is made up.
    ///
    /// # Errors
    /// As [`check_key`].
    pub fn take<M: Message>(
        caller: UserId,
        method: &'static str,
        message: &mut M,
        request_id: impl FnOnce(&mut M) -> &mut String,
    ) -> Result<Self, Failure> {
        let mut key = std::mem::take(request_id(message));
        check_key(method, &key)?;
        if key.is_empty() {
            key = uuid::Uuid::now_v7().to_string();
        }
        Ok(Self { caller, method, key, fingerprint: fingerprint(message) })
    }
}

/// Checks the key of a request of the method with this gRPC path.
///
/// # Errors
/// `IDEMPOTENCY_KEY_MISSING` where the contract demands one; `FIELD_INVALID`, naming `request_id`, for a key that is too
/// long or not visible ASCII.
pub fn check_key(method: &str, key: &str) -> Result<(), Failure> {
    let is_required = policy::method(method)
        .is_some_and(|method| method.idempotency_key == policy::IdempotencyKey::Required);
    if key.is_empty() && is_required {
        return Err(Failure::field(ErrorReason::IdempotencyKeyMissing, "request_id", "is required"));
    }
    if key.len() <= KEY_LIMIT && key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(());
    }
    Err(Failure::fields(vec![Violation {
        field: "request_id".into(),
        reason: "MALFORMED",
        description: format!("must be 1 to {KEY_LIMIT} visible ASCII characters without spaces"),
    }]))
}

/// What must be the same when a key comes again.
pub fn fingerprint(message: &impl Message) -> [u8; 32] {
    Sha256::digest(message.encode_to_vec()).into()
}

/// The failure of a key that came again with another request.
pub fn reused() -> Failure {
    Failure::new(ErrorReason::IdempotencyKeyReused, "this idempotency key was used with another request")
}

/// A request on its way to being done once.
pub enum Once<R> {
    /// It was done before; this was the answer.
    Replayed(Response<R>),
    /// It is new: do it in this transaction, then [`Fresh::commit`].
    Fresh(Fresh),
}

/// The transaction of a request that is done for the first time.
pub struct Fresh {
    transaction: DatabaseTransaction,
    key: RequestKey,
}

/// Begins a request. If the same key is being worked on, waits for that.
///
/// # Errors
/// `IDEMPOTENCY_KEY_REUSED` if the key came with another request before; a failing database.
pub async fn begin<R: Message + Default>(
    database: &Database,
    clock: &Clock,
    key: RequestKey,
) -> Result<Once<R>, Failure> {
    let transaction = database.begin().await?;
    let inserted = transaction
        .execute_raw(sql(
            &transaction,
            "INSERT INTO idempotency (caller, method, request_key, fingerprint, response, create_time)
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
            [
                key.caller.uuid().into(),
                key.method.into(),
                key.key.clone().into(),
                key.fingerprint.to_vec().into(),
                Vec::<u8>::new().into(),
                clock.now().into(),
            ],
        ))
        .await?;
    if inserted.rows_affected() == 1 {
        return Ok(Once::Fresh(Fresh { transaction, key }));
    }
    let row = transaction
        .query_one_raw(sql(
            &transaction,
            "SELECT fingerprint, response FROM idempotency WHERE caller = $1 AND method = $2 AND request_key = $3",
            [key.caller.uuid().into(), key.method.into(), key.key.into()],
        ))
        .await?
        .ok_or_else(|| Failure::internal("an idempotency key vanished"))?;
    let (fingerprint, response): (Vec<u8>, Vec<u8>) =
        (row.try_get("", "fingerprint")?, row.try_get("", "response")?);
    if fingerprint != key.fingerprint {
        return Err(reused());
    }
    Ok(Once::Replayed(replayed(R::decode(response.as_slice()).map_err(Failure::internal)?)))
}

/// An answer that was given before.
pub fn replayed<R>(message: R) -> Response<R> {
    let mut response = Response::new(message);
    response.metadata_mut().insert(REPLAYED, MetadataValue::from_static("true"));
    response
}

impl Fresh {
    /// Where the effect is written.
    pub fn transaction(&self) -> &DatabaseTransaction {
        &self.transaction
    }

    /// Commits the effect and the answer together.
    ///
    /// # Errors
    /// A failing database: nothing happened then; or, if it failed during the commit, maybe all of it, and the key tells.
    pub async fn commit<R: Message>(self, response: R) -> Result<Response<R>, Failure> {
        let Self { transaction, key } = self;
        transaction
            .execute_raw(sql(
                &transaction,
                "UPDATE idempotency SET response = $4 WHERE caller = $1 AND method = $2 AND request_key = $3",
                [
                    key.caller.uuid().into(),
                    key.method.into(),
                    key.key.into(),
                    response.encode_to_vec().into(),
                ],
            ))
            .await?;
        transaction.commit().await?;
        Ok(Response::new(response))
    }
}

/// Forgets the keys whose time has passed.
///
/// # Errors
/// A failing database.
pub async fn delete_expired(database: &Database, now: DateTime<Utc>) -> Result<u64, DbErr> {
    let transaction = database.begin().await?;
    let statement =
        sql(&transaction, "DELETE FROM idempotency WHERE create_time < $1", [(now - LIFETIME).into()]);
    let deleted = transaction.execute_raw(statement).await?.rows_affected();
    transaction.commit().await?;
    Ok(deleted)
}

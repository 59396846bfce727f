//! Sessions: families of refresh tokens, of which one can be used.

use chrono::{DateTime, TimeDelta, Utc};
use mesh::{
    database::{Database, sql},
    id::{Id, OrganizerId, SessionId, UserId},
};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, FromQueryResult};
use uuid::Uuid;

use crate::{error::Error, refresh_token::TokenHash};

/// How long a refresh token is valid.
pub(crate) const REFRESH_TOKEN_LIFETIME: TimeDelta = TimeDelta::days(30);
/// How long after its rotation a refresh token may come again without harm: two tabs raced, or a reply was lost.
pub(crate) const REUSE_WINDOW: TimeDelta = TimeDelta::seconds(10);
/// How many rows are deleted at once, so that nobody waits long for them.
const DELETE_BATCH: i64 = 1000;

/// A refresh token that was traded for its successor.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rotation {
    pub(crate) session: SessionId,
    pub(crate) user: UserId,
    /// When it was traded, which both new tokens' times count from.
    pub(crate) time: DateTime<Utc>,
    /// Whether the same request had traded it before.
    pub(crate) is_replay: bool,
}

#[derive(FromQueryResult)]
struct TokenRow {
    session: Uuid,
    account: Uuid,
    rotate_time: Option<DateTime<Utc>>,
    rotate_key: Option<String>,
    revoke_time: Option<DateTime<Utc>>,
}

#[derive(FromQueryResult)]
struct RightRow {
    organizer: Option<Uuid>,
}

#[derive(FromQueryResult)]
struct IdRow {
    id: Uuid,
}

/// Begins a session with its first refresh token.
pub(crate) async fn start(
    database: &Database,
    session: SessionId,
    user: UserId,
    first_token: &TokenHash,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    let transaction = database.begin().await?;
    let insert_session = sql(
        &transaction,
        "INSERT INTO session (id, account, create_time, expire_time) VALUES ($1, $2, $3, $4)",
        [session.uuid().into(), user.uuid().into(), now.into(), (now + REFRESH_TOKEN_LIFETIME).into()],
    );
    transaction.execute_raw(insert_session).await?;
    insert_token(&transaction, session, first_token, now).await?;
    transaction.commit().await?;
    Ok(())
}

/// Trades a refresh token for its successor: of many requests at once, one does it. If the token was traded before, the
/// same request within [`REUSE_WINDOW`] gets the same answer, another one [`Error::RefreshRaced`]; later, somebody has
/// a token that isn't theirs, so the session ends: [`Error::RefreshTokenReused`].
pub(crate) async fn rotate(
    database: &Database,
    token: &TokenHash,
    successor: &TokenHash,
    request_key: &str,
    now: DateTime<Utc>,
) -> Result<Rotation, Error> {
    let transaction = database.begin().await?;
    let trade = sql(
        &transaction,
        "UPDATE refresh_token SET rotate_time = $2, rotate_key = $3
         WHERE token_hash = $1 AND rotate_time IS NULL AND expire_time > $2
         AND EXISTS (SELECT 1 FROM session WHERE id = refresh_token.session AND revoke_time IS NULL)",
        [token.to_vec().into(), now.into(), request_key.into()],
    );
    let is_traded = transaction.execute_raw(trade).await?.rows_affected() == 1;
    let row = find_token(&transaction, token).await?.ok_or(Error::RefreshTokenInvalid)?;
    let (session, user) = (SessionId::from_uuid(row.session), UserId::from_uuid(row.account));
    if is_traded {
        insert_token(&transaction, session, successor, now).await?;
        extend(&transaction, session, now).await?;
        transaction.commit().await?;
        return Ok(Rotation { session, user, time: now, is_replay: false });
    }
    let (Some(rotate_time), None) = (row.rotate_time, row.revoke_time) else {
        return Err(Error::RefreshTokenInvalid);
    };
    if now - rotate_time <= REUSE_WINDOW {
        let is_replay = row.rotate_key.as_deref() == Some(request_key);
        let replay = Rotation { session, user, time: rotate_time, is_replay };
        return if is_replay { Ok(replay) } else { Err(Error::RefreshRaced) };
    }
    revoke(&transaction, session, user, now).await?;
    transaction.commit().await?;
    Err(Error::RefreshTokenReused { session })
}

async fn insert_token(
    transaction: &DatabaseTransaction,
    session: SessionId,
    token: &TokenHash,
    now: DateTime<Utc>,
) -> Result<(), DbErr> {
    let statement = sql(
        transaction,
        "INSERT INTO refresh_token (token_hash, session, expire_time) VALUES ($1, $2, $3)",
        [token.to_vec().into(), session.uuid().into(), (now + REFRESH_TOKEN_LIFETIME).into()],
    );
    transaction.execute_raw(statement).await?;
    Ok(())
}

async fn find_token(transaction: &DatabaseTransaction, token: &TokenHash) -> Result<Option<TokenRow>, DbErr> {
    let statement = sql(
        transaction,
        "SELECT refresh_token.session, session.account, refresh_token.rotate_time, refresh_token.rotate_key,
                session.revoke_time
         FROM refresh_token JOIN session ON session.id = refresh_token.session
         WHERE refresh_token.token_hash = $1",
        [token.to_vec().into()],
    );
    TokenRow::find_by_statement(statement).one(transaction).await
}

async fn extend(
    transaction: &DatabaseTransaction,
    session: SessionId,
    now: DateTime<Utc>,
) -> Result<(), DbErr> {
    let statement = sql(
        transaction,
        "UPDATE session SET expire_time = $2 WHERE id = $1",
        [session.uuid().into(), (now + REFRESH_TOKEN_LIFETIME).into()],
    );
    transaction.execute_raw(statement).await?;
    Ok(())
}

/// Ends a session of a user. Ended before, or not theirs: nothing happens.
pub(crate) async fn revoke(
    connection: &impl ConnectionTrait,
    session: SessionId,
    user: UserId,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    let statement = sql(
        connection,
        "UPDATE session SET revoke_time = $3 WHERE id = $1 AND account = $2 AND revoke_time IS NULL",
        [session.uuid().into(), user.uuid().into(), now.into()],
    );
    connection.execute_raw(statement).await?;
    Ok(())
}

/// The organisers that the user of a session acted for at a time. None: the session has ended, or never was.
pub(crate) async fn find_rights(
    connection: &impl ConnectionTrait,
    session: SessionId,
    user: UserId,
    time: DateTime<Utc>,
) -> Result<Option<Vec<OrganizerId>>, Error> {
    let statement = sql(
        connection,
        "SELECT organizer_member.organizer FROM session
         LEFT JOIN organizer_member
             ON organizer_member.account = session.account AND organizer_member.create_time <= $3
         WHERE session.id = $1 AND session.account = $2 AND session.revoke_time IS NULL
         ORDER BY organizer_member.organizer",
        [session.uuid().into(), user.uuid().into(), time.into()],
    );
    // One row for each organiser, or a row without one.
    let rows = RightRow::find_by_statement(statement).all(connection).await?;
    if rows.is_empty() {
        return Ok(None);
    }
    Ok(Some(rows.into_iter().filter_map(|row| row.organizer).map(OrganizerId::from_uuid).collect()))
}

/// The sessions that were ended after a time.
pub(crate) async fn list_revoked_since(
    connection: &impl ConnectionTrait,
    time: DateTime<Utc>,
) -> Result<Vec<SessionId>, Error> {
    let statement = sql(connection, "SELECT id FROM session WHERE revoke_time > $1", [time.into()]);
    let rows = IdRow::find_by_statement(statement).all(connection).await?;
    Ok(rows.into_iter().map(|row| SessionId::from_uuid(row.id)).collect())
}

/// Deletes refresh tokens and sessions that expired, and sessions that were ended before `revoked_before`.
pub(crate) async fn delete_expired(
    connection: &impl ConnectionTrait,
    now: DateTime<Utc>,
    revoked_before: DateTime<Utc>,
) -> Result<(), Error> {
    loop {
        let tokens = sql(
            connection,
            "DELETE FROM refresh_token WHERE token_hash IN
             (SELECT token_hash FROM refresh_token WHERE expire_time < $1 LIMIT $2)",
            [now.into(), DELETE_BATCH.into()],
        );
        // The tokens of a session go with it.
        let sessions = sql(
            connection,
            "DELETE FROM session WHERE id IN
             (SELECT id FROM session WHERE expire_time < $1 OR revoke_time < $2 LIMIT $3)",
            [now.into(), revoked_before.into(), DELETE_BATCH.into()],
        );
        let deleted = connection.execute_raw(tokens).await?.rows_affected()
            + connection.execute_raw(sessions).await?.rows_affected();
        if deleted == 0 {
            return Ok(());
        }
    }
}

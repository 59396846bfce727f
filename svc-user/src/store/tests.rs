//! The store on SQLite and on Postgres.

use std::collections::HashSet;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use mesh::{
    database::{Database, sql},
    id::{OrganizerId, SessionId, UserId},
};
use sea_orm::ConnectionTrait;

use super::{
    account::{self, NewAccount},
    organizer::{self, ORGANIZER_LIMIT, Organizer},
    session::{self, REFRESH_TOKEN_LIFETIME, REUSE_WINDOW, Rotation},
    signing_key::{self, StoredKey},
};
use crate::{
    email::EmailAddress,
    error::Error,
    refresh_token::TokenHash,
    test_database::{TestDatabase, on_both_databases},
};

on_both_databases! {
    an_e_mail_has_one_account,
    a_token_is_traded_once,
    of_50_refreshes_at_once_one_wins,
    the_same_request_50_times_at_once_gets_one_successor,
    a_used_token_may_come_again_for_10_seconds,
    a_token_expires,
    an_ended_session_can_not_be_refreshed,
    nobody_ends_a_session_of_someone_else,
    rights_are_those_of_a_time,
    of_30_organizers_at_once_20_are_made,
    organizers_of_others_are_not_seen,
    only_what_has_expired_is_deleted,
    a_generation_has_one_key,
}

fn start() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

fn seconds(count: i64) -> TimeDelta {
    TimeDelta::seconds(count)
}

/// The hash of the token that a test calls by this number.
fn token(number: u8) -> TokenHash {
    [number; 32]
}

async fn sign_up(database: &Database, email: &str) -> UserId {
    let new = NewAccount {
        id: UserId::new(),
        email: EmailAddress::parse(email).unwrap(),
        password_hash: "hash".to_owned(),
        display_name: "Fan".to_owned(),
        create_time: start(),
    };
    let id = new.id;
    account::create(database.writer(), new).await.unwrap();
    id
}

/// A user with a session that begins with token 1.
async fn log_in(database: &Database) -> (UserId, SessionId) {
    let user = sign_up(database, "fan@example.com").await;
    let session = SessionId::new();
    session::start(database, session, user, &token(1), start()).await.unwrap();
    (user, session)
}

async fn rotate(
    database: &Database,
    old: u8,
    new: u8,
    request_key: &str,
    now: DateTime<Utc>,
) -> Result<Rotation, Error> {
    session::rotate(database, &token(old), &token(new), request_key, now).await
}

async fn count(database: &Database, table: &str) -> i64 {
    let statement = sql(database.reader(), format!("SELECT COUNT(*) AS rows FROM {table}"), []);
    database.reader().query_one_raw(statement).await.unwrap().unwrap().try_get("", "rows").unwrap()
}

async fn an_e_mail_has_one_account(test: TestDatabase) {
    let database = &test.database;
    let first = sign_up(database, "Fan@example.com").await;
    let second = sign_up(database, "fan@EXAMPLE.com").await;
    let email = EmailAddress::parse("fan@example.com").unwrap();
    let found = account::find_credentials(database.reader(), &email).await.unwrap();
    assert_eq!(found, Some((first, "hash".to_owned())));
    assert_eq!(account::find_own(database.reader(), first).await.unwrap().create_time, start());
    let refused = account::find_own(database.reader(), second).await;
    assert!(matches!(refused, Err(Error::UserNotFound)));
    let unknown = EmailAddress::parse("nobody@example.com").unwrap();
    assert_eq!(account::find_credentials(database.reader(), &unknown).await.unwrap(), None);
}

async fn a_token_is_traded_once(test: TestDatabase) {
    let database = &test.database;
    let (user, session) = log_in(database).await;
    // A time with microseconds, which both databases must keep: replays are signed as of it.
    let time = start() + TimeDelta::microseconds(1_234_567);
    let rotation = rotate(database, 1, 2, "key", time).await.unwrap();
    assert_eq!(rotation, Rotation { session, user, time, is_replay: false });
    let replay = rotate(database, 1, 2, "key", time + seconds(1)).await.unwrap();
    assert_eq!(replay, Rotation { is_replay: true, ..rotation });
    rotate(database, 2, 3, "key", time).await.expect("the successor can be traded");
    let unknown = rotate(database, 9, 10, "key", time).await;
    assert!(matches!(unknown, Err(Error::RefreshTokenInvalid)));
}

async fn of_50_refreshes_at_once_one_wins(test: TestDatabase) {
    let database = test.database.clone();
    log_in(&database).await;
    let tasks = (0..50).map(|number| {
        let database = database.clone();
        tokio::spawn(
            async move { rotate(&database, 1, 100 + number, &format!("key-{number}"), start()).await },
        )
    });
    let outcomes: Vec<_> = join_all(tasks).await.into_iter().map(Result::unwrap).collect();
    let won = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    let raced = outcomes.iter().filter(|outcome| matches!(outcome, Err(Error::RefreshRaced))).count();
    assert_eq!((won, raced), (1, 49));
    assert_eq!(count(&database, "refresh_token").await, 2);
    assert_eq!(count(&database, "session WHERE revoke_time IS NULL").await, 1, "the family is kept");
}

async fn the_same_request_50_times_at_once_gets_one_successor(test: TestDatabase) {
    let database = test.database.clone();
    log_in(&database).await;
    let tasks = (0..50).map(|_| {
        let database = database.clone();
        tokio::spawn(async move { rotate(&database, 1, 2, "key", start()).await.unwrap() })
    });
    let rotations: Vec<_> = join_all(tasks).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(rotations.iter().filter(|rotation| !rotation.is_replay).count(), 1);
    assert_eq!(count(&database, "refresh_token").await, 2);
}

async fn a_used_token_may_come_again_for_10_seconds(test: TestDatabase) {
    let database = &test.database;
    let (_, session) = log_in(database).await;
    rotate(database, 1, 2, "key", start()).await.unwrap();
    // The grace of a token does not depend on how often its successors were traded since.
    rotate(database, 2, 3, "key", start() + seconds(5)).await.unwrap();
    let in_time = start() + REUSE_WINDOW;
    assert!(rotate(database, 1, 2, "key", in_time).await.unwrap().is_replay);
    assert!(matches!(rotate(database, 1, 9, "other", in_time).await, Err(Error::RefreshRaced)));

    let too_late = in_time + TimeDelta::microseconds(1);
    let reused = rotate(database, 1, 2, "key", too_late).await;
    assert!(matches!(reused, Err(Error::RefreshTokenReused { session: ended }) if ended == session));
    let revoked = session::list_revoked_since(database.reader(), start()).await.unwrap();
    assert_eq!(revoked, [session]);
    for number in 1..=3 {
        let refused = rotate(database, number, 9, "key", too_late).await;
        assert!(matches!(refused, Err(Error::RefreshTokenInvalid)), "token {number}");
    }
}

async fn a_token_expires(test: TestDatabase) {
    let database = &test.database;
    log_in(database).await;
    let end = start() + REFRESH_TOKEN_LIFETIME;
    rotate(database, 1, 2, "key", end - seconds(1)).await.expect("the last second");
    let end = end - seconds(1) + REFRESH_TOKEN_LIFETIME;
    assert!(matches!(rotate(database, 2, 3, "key", end).await, Err(Error::RefreshTokenInvalid)));
    assert_eq!(count(database, "session WHERE revoke_time IS NULL").await, 1, "nobody stole anything");
}

async fn an_ended_session_can_not_be_refreshed(test: TestDatabase) {
    let database = &test.database;
    let (user, session) = log_in(database).await;
    for time in [start(), start() + seconds(60)] {
        session::revoke(database.writer(), session, user, time).await.unwrap();
    }
    assert!(matches!(rotate(database, 1, 2, "key", start()).await, Err(Error::RefreshTokenInvalid)));
    let since = |time| session::list_revoked_since(database.reader(), time);
    assert_eq!(since(start() - seconds(1)).await.unwrap(), [session]);
    assert_eq!(since(start()).await.unwrap(), [], "the second time changed nothing");
}

async fn nobody_ends_a_session_of_someone_else(test: TestDatabase) {
    let database = &test.database;
    let (_, session) = log_in(database).await;
    session::revoke(database.writer(), session, UserId::new(), start()).await.unwrap();
    rotate(database, 1, 2, "key", start()).await.expect("the session lives on");
}

async fn make_organizer(
    database: &Database,
    member: UserId,
    create_time: DateTime<Utc>,
) -> Result<OrganizerId, Error> {
    let organizer = Organizer { id: OrganizerId::new(), display_name: "Live".to_owned(), create_time };
    let transaction = database.begin().await?;
    organizer::create(&transaction, &organizer, member).await?;
    transaction.commit().await?;
    Ok(organizer.id)
}

async fn rights_are_those_of_a_time(test: TestDatabase) {
    let database = &test.database;
    let (user, session) = log_in(database).await;
    let rights = |user, time| session::find_rights(database.reader(), session, user, time);
    assert_eq!(rights(user, start()).await.unwrap(), Some(Vec::new()));
    let first = make_organizer(database, user, start() + seconds(1)).await.unwrap();
    let second = make_organizer(database, user, start() + seconds(2)).await.unwrap();
    assert_eq!(rights(user, start()).await.unwrap(), Some(Vec::new()));
    assert_eq!(rights(user, start() + seconds(1)).await.unwrap(), Some(vec![first]));
    assert_eq!(rights(user, start() + seconds(2)).await.unwrap(), Some(vec![first, second]));
    assert_eq!(rights(UserId::new(), start()).await.unwrap(), None);
    session::revoke(database.writer(), session, user, start()).await.unwrap();
    assert_eq!(rights(user, start()).await.unwrap(), None);
}

async fn of_30_organizers_at_once_20_are_made(test: TestDatabase) {
    let database = test.database.clone();
    let user = sign_up(&database, "fan@example.com").await;
    let tasks = (0..30).map(|_| {
        let database = database.clone();
        tokio::spawn(async move { make_organizer(&database, user, start()).await })
    });
    let outcomes: Vec<_> = join_all(tasks).await.into_iter().map(Result::unwrap).collect();
    let made: HashSet<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()).collect();
    assert_eq!(made.len() as i64, ORGANIZER_LIMIT);
    let over = |outcome: &&Result<_, _>| matches!(outcome, Err(Error::OrganizerLimitExceeded { limit: 20 }));
    assert_eq!(outcomes.iter().filter(over).count(), 10);
    let listed = organizer::list_own(database.reader(), user).await.unwrap();
    assert_eq!(listed.iter().map(|organizer| &organizer.id).collect::<HashSet<_>>(), made);
    assert_eq!(count(&database, "organizer").await, ORGANIZER_LIMIT, "nothing is left of the others");
    let nobody = make_organizer(&database, UserId::new(), start()).await;
    assert!(matches!(nobody, Err(Error::UserNotFound)));
}

async fn organizers_of_others_are_not_seen(test: TestDatabase) {
    let database = &test.database;
    let one = sign_up(database, "one@example.com").await;
    let other = sign_up(database, "other@example.com").await;
    make_organizer(database, one, start()).await.unwrap();
    assert_eq!(organizer::list_own(database.reader(), other).await.unwrap(), []);
}

async fn only_what_has_expired_is_deleted(test: TestDatabase) {
    let database = &test.database;
    let (user, session) = log_in(database).await;
    rotate(database, 1, 2, "key", start() + seconds(60)).await.unwrap();
    let ended = SessionId::new();
    session::start(database, ended, user, &token(8), start()).await.unwrap();
    session::revoke(database.writer(), ended, user, start() + seconds(60)).await.unwrap();
    let delete = |now, revoked_before| session::delete_expired(database.writer(), now, revoked_before);

    delete(start() + REFRESH_TOKEN_LIFETIME, start() + seconds(60)).await.unwrap();
    assert_eq!(count(database, "session").await, 2);
    assert_eq!(count(database, "refresh_token").await, 3);
    let stolen = rotate(database, 1, 9, "other", start() + REFRESH_TOKEN_LIFETIME).await;
    assert!(matches!(stolen, Err(Error::RefreshTokenReused { session: ended }) if ended == session));

    delete(start() + REFRESH_TOKEN_LIFETIME + seconds(1), start() + seconds(61)).await.unwrap();
    assert_eq!(count(database, "session").await, 1, "the one that was ended is gone with its token");
    assert_eq!(count(database, "refresh_token").await, 1, "the used one has expired");
    delete(start() + REFRESH_TOKEN_LIFETIME + seconds(61), start()).await.unwrap();
    assert_eq!(count(database, "session").await, 0);
    assert_eq!(count(database, "refresh_token").await, 0);
    assert_eq!(count(database, "account").await, 1);
}

async fn a_generation_has_one_key(test: TestDatabase) {
    let database = &test.database;
    let key = |generation, kid: &str| StoredKey {
        generation,
        kid: kid.to_owned(),
        public_key: vec![1],
        private_key: vec![2],
        create_time: start(),
        sign_time: start() + seconds(60),
    };
    assert!(signing_key::add(database.writer(), key(1, "one")).await.unwrap());
    assert!(!signing_key::add(database.writer(), key(1, "other")).await.unwrap());
    assert!(signing_key::add(database.writer(), key(2, "two")).await.unwrap());
    let listed = || signing_key::list(database.reader());
    assert_eq!(listed().await.unwrap(), [key(2, "two"), key(1, "one")]);
    signing_key::delete(database.writer(), 1).await.unwrap();
    assert_eq!(listed().await.unwrap(), [key(2, "two")]);
}

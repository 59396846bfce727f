//! A request that comes again by its key gets the answer it had, and has its effect once.

use std::pin::pin;

use boxoffice_proto::{
    common::v1::ErrorReason,
    concert::v1::{CancelConcertRequest, CreateVenueRequest, CreateVenueResponse, Venue},
};
use chrono::{DateTime, TimeDelta};
use futures_util::future::{join_all, poll_immediate};
use mesh::{
    Failure,
    clock::Clock,
    database::{Database, Migration, sql},
    id::{Id, UserId, VenueId},
    idempotency::{self, LIFETIME, Once, REPLAYED, RequestKey},
};
use prost::Message;
use sea_orm::ConnectionTrait;
use tonic::Response;

use crate::{on_both_databases, open};

const CREATE_VENUE: &str = "/boxoffice.concert.v1.VenueService/CreateVenue";
const CREATE_CONCERT: &str = "/boxoffice.concert.v1.ConcertService/CreateConcert";
const CANCEL_CONCERT: &str = "/boxoffice.concert.v1.ConcertService/CancelConcert";

const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, description: "idempotency", sql: idempotency::TABLE },
    Migration {
        version: 2,
        description: "venues",
        sql: "CREATE TABLE venue (venue_id uuid PRIMARY KEY, display_name text NOT NULL)",
    },
];

/// The name of a venue that can't be made.
const IMPOSSIBLE: &str = "impossible";

on_both_databases!(
    a_request_that_comes_again_gets_the_same_answer,
    another_request_with_the_same_key_is_refused,
    a_key_belongs_to_one_caller_and_one_method,
    of_many_at_once_one_has_an_effect,
    of_two_different_requests_at_once_one_is_refused,
    a_failed_effect_leaves_the_key_free,
    an_abandoned_request_leaves_the_key_free_for_whoever_waits,
    a_key_is_forgotten_when_its_time_has_passed,
    a_request_without_a_key_is_new_each_time,
);

/// What stands behind `CreateVenue`.
struct Venues {
    database: Database,
    clock: Clock,
}

impl Venues {
    async fn open(url: &str) -> Self {
        let database = open(url).await;
        database.migrate(MIGRATIONS).await.unwrap();
        Self { database, clock: Clock::manual(DateTime::from_timestamp(1_800_000_000, 0).unwrap()) }
    }

    async fn begin(&self, key: RequestKey) -> Result<Once<CreateVenueResponse>, Failure> {
        idempotency::begin(&self.database, &self.clock, key).await
    }

    /// Does what a service does: the effect and the answer in one transaction.
    async fn create(
        &self,
        caller: UserId,
        mut request: CreateVenueRequest,
    ) -> Result<Response<CreateVenueResponse>, Failure> {
        let fresh = match self.begin(key(caller, CREATE_VENUE, &mut request)).await? {
            Once::Replayed(response) => return Ok(response),
            Once::Fresh(fresh) => fresh,
        };
        let (id, display_name) = (VenueId::new(), request.display_name);
        let insert = sql(
            fresh.transaction(),
            "INSERT INTO venue (venue_id, display_name) VALUES ($1, $2)",
            [id.uuid().into(), display_name.clone().into()],
        );
        fresh.transaction().execute_raw(insert).await?;
        if display_name == IMPOSSIBLE {
            return Err(Failure::internal("after the effect, before the commit"));
        }
        let venue = Venue { venue_id: id.to_string(), display_name, ..Default::default() };
        fresh.commit(CreateVenueResponse { venue: Some(venue) }).await
    }

    async fn count(&self) -> i64 {
        let statement = sql(self.database.reader(), "SELECT count(*) AS venues FROM venue", []);
        let row = self.database.reader().query_one_raw(statement).await.unwrap().unwrap();
        row.try_get("", "venues").unwrap()
    }
}

fn key(caller: UserId, method: &'static str, request: &mut CreateVenueRequest) -> RequestKey {
    RequestKey::take(caller, method, request, |request| &mut request.request_id).unwrap()
}

fn request(key: &str, display_name: &str) -> CreateVenueRequest {
    CreateVenueRequest {
        request_id: key.into(),
        display_name: display_name.into(),
        time_zone: "Asia/Seoul".into(),
        ..Default::default()
    }
}

fn is_replayed<T>(response: &Response<T>) -> bool {
    response.metadata().get(REPLAYED).is_some_and(|value| value == "true")
}

async fn a_request_that_comes_again_gets_the_same_answer(url: &str) {
    let (venues, caller) = (Venues::open(url).await, UserId::new());
    let first = venues.create(caller, request("k1", "Hall")).await.unwrap();
    assert!(!is_replayed(&first));
    let first = first.into_inner().encode_to_vec();
    for _ in 0..3 {
        let again = venues.create(caller, request("k1", "Hall")).await.unwrap();
        assert!(is_replayed(&again));
        assert_eq!(again.into_inner().encode_to_vec(), first);
    }
    assert_eq!(venues.count().await, 1);
}

async fn another_request_with_the_same_key_is_refused(url: &str) {
    let (venues, caller) = (Venues::open(url).await, UserId::new());
    let first = venues.create(caller, request("k1", "Hall")).await.unwrap().into_inner();
    let failure = venues.create(caller, request("k1", "Arena")).await.unwrap_err();
    assert!(failure.is(ErrorReason::IdempotencyKeyReused), "{failure}");
    assert_eq!(venues.count().await, 1);
    let again = venues.create(caller, request("k1", "Hall")).await.unwrap();
    assert_eq!(again.into_inner(), first, "and the first answer is still there");
}

async fn a_key_belongs_to_one_caller_and_one_method(url: &str) {
    let (venues, caller) = (Venues::open(url).await, UserId::new());
    venues.create(caller, request("k1", "Hall")).await.unwrap();
    let of_another = venues.create(UserId::new(), request("k1", "Arena")).await.unwrap();
    assert!(!is_replayed(&of_another));
    assert_eq!(venues.count().await, 2);
    let elsewhere = key(caller, CREATE_CONCERT, &mut request("k1", "Concert"));
    assert!(matches!(venues.begin(elsewhere).await, Ok(Once::Fresh(_))));
}

async fn of_many_at_once_one_has_an_effect(url: &str) {
    let (venues, caller) = (Venues::open(url).await, UserId::new());
    let responses = join_all((0..16).map(|_| venues.create(caller, request("k1", "Hall")))).await;
    let responses: Vec<_> = responses.into_iter().map(Result::unwrap).collect();
    assert_eq!(responses.iter().filter(|response| !is_replayed(response)).count(), 1);
    assert!(responses.iter().all(|response| response.get_ref() == responses[0].get_ref()));
    assert_eq!(venues.count().await, 1);
}

async fn of_two_different_requests_at_once_one_is_refused(url: &str) {
    let (venues, caller) = (Venues::open(url).await, UserId::new());
    let hall = venues.create(caller, request("k1", "Hall"));
    let arena = venues.create(caller, request("k1", "Arena"));
    match tokio::join!(hall, arena) {
        (Ok(_), Err(failure)) | (Err(failure), Ok(_)) => {
            assert!(failure.is(ErrorReason::IdempotencyKeyReused), "{failure}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(venues.count().await, 1);
}

async fn a_failed_effect_leaves_the_key_free(url: &str) {
    let (venues, caller) = (Venues::open(url).await, UserId::new());
    venues.create(caller, request("k1", IMPOSSIBLE)).await.unwrap_err();
    assert_eq!(venues.count().await, 0);
    let mended = venues.create(caller, request("k1", "Hall")).await.unwrap();
    assert!(!is_replayed(&mended));
    assert_eq!(venues.count().await, 1);
}

async fn an_abandoned_request_leaves_the_key_free_for_whoever_waits(url: &str) {
    let (venues, caller) = (Venues::open(url).await, UserId::new());
    let begun = venues.begin(key(caller, CREATE_VENUE, &mut request("k1", "Hall"))).await;
    assert!(matches!(begun, Ok(Once::Fresh(_))));
    let mut waiting = pin!(venues.create(caller, request("k1", "Hall")));
    assert!(poll_immediate(&mut waiting).await.is_none(), "it waits for the one before");
    drop(begun);
    assert!(!is_replayed(&waiting.await.unwrap()));
    assert_eq!(venues.count().await, 1);
}

async fn a_key_is_forgotten_when_its_time_has_passed(url: &str) {
    let (venues, caller) = (Venues::open(url).await, UserId::new());
    venues.create(caller, request("k1", "Hall")).await.unwrap();
    venues.clock.advance(LIFETIME);
    assert_eq!(idempotency::delete_expired(&venues.database, venues.clock.now()).await.unwrap(), 0);
    assert!(is_replayed(&venues.create(caller, request("k1", "Hall")).await.unwrap()));
    venues.clock.advance(TimeDelta::seconds(1));
    venues.create(caller, request("k2", "Arena")).await.unwrap();
    assert_eq!(idempotency::delete_expired(&venues.database, venues.clock.now()).await.unwrap(), 1);
    assert!(!is_replayed(&venues.create(caller, request("k1", "Hall")).await.unwrap()));
    assert!(
        is_replayed(&venues.create(caller, request("k2", "Arena")).await.unwrap()),
        "a younger one stays"
    );
}

async fn a_request_without_a_key_is_new_each_time(url: &str) {
    let (venues, caller) = (Venues::open(url).await, UserId::new());
    for _ in 0..2 {
        assert!(!is_replayed(&venues.create(caller, request("", "Hall")).await.unwrap()));
    }
    assert_eq!(venues.count().await, 2);
}

#[test]
fn a_key_that_is_missing_or_malformed_is_refused() {
    let take = |key: &str| {
        let mut request = CancelConcertRequest { request_id: key.into(), ..Default::default() };
        RequestKey::take(UserId::new(), CANCEL_CONCERT, &mut request, |request| &mut request.request_id)
    };
    assert!(take("").unwrap_err().is(ErrorReason::IdempotencyKeyMissing));
    for malformed in ["two words", "line\nbreak", "schlüssel", &"k".repeat(256)] {
        assert!(take(malformed).unwrap_err().is(ErrorReason::FieldInvalid), "{malformed:?}");
    }
    assert!(take(&"k".repeat(255)).is_ok());
}

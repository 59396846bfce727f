//! Two processes of booking with their holds in one Redis, and what becomes of a sale when Redis forgets or goes away.

use boxoffice_proto::booking::v1::{SeatState, WatchSeatsRequest, WatchSeatsResponse};
use mesh::{id::UserId, shutdown::Shutdown};
use mesh_test::{Redis, wait_until};
use tonic::Streaming;
use tonic_types::StatusExt;

use super::{
    adapters::{Door, best},
    house::{House, PATIENCE, order, reason},
    payment::Manner,
};
use crate::{
    Shared,
    audit::Audit,
    domain::booking::State,
    holds::{Granted, Holds},
};

/// The house is one process, the other one is beside it.
struct Replicas {
    redis: Redis,
    house: House,
    other: Shared,
}

impl Replicas {
    async fn open() -> Self {
        let redis = Redis::start().await;
        let mut house = House::open().await;
        house.shared.holds = holds_in(&redis).await.into();
        let other = Shared { holds: holds_in(&redis).await.into(), ..house.second_process().await };
        Self { redis, house, other }
    }
}

async fn holds_in(redis: &Redis) -> Holds {
    let redis = mesh::redis::Redis::start(&redis.url().parse().unwrap());
    redis.wait(&Shutdown::new()).await;
    Holds::redis(redis)
}

async fn next(stream: &mut Streaming<WatchSeatsResponse>) -> WatchSeatsResponse {
    let message = tokio::time::timeout(PATIENCE, stream.message()).await.expect("a message in time");
    message.unwrap().expect("the stream goes on")
}

fn first_change(message: &WatchSeatsResponse) -> (&str, SeatState) {
    let change = message.changes.first().expect("a change");
    (change.seat_id.as_str(), change.state())
}

#[tokio::test]
#[ignore = "needs Redis: scripts/test runs it"]
async fn who_loses_the_race_for_the_best_seats_may_come_again() {
    let Replicas { house, redis: _redis, .. } = Replicas::open().await;
    let door = Door::open(&house).await;
    let wishes = (0..100).map(|number| {
        let fan = house.fan_with(1000);
        door.hold(fan, best(house.concert, "A", 1, &format!("key-{number}")))
    });
    let answers = futures_util::future::join_all(wishes).await;
    let mut seats: Vec<String> = Vec::new();
    for answer in answers {
        match answer {
            Ok(hold) => seats.extend(hold.into_inner().seats.into_iter().map(|seat| seat.seat_id)),
            Err(status) => match status.get_details_error_info().expect("a reason").reason.as_str() {
                "NOT_ENOUGH_SEATS" => {}
                "RACE_LOST" => assert!(status.get_details_retry_info().is_some(), "{status:?}"),
                other => panic!("nobody asked for a certain seat: {other}"),
            },
        }
    }
    let held = seats.len();
    seats.sort_unstable();
    seats.dedup();
    assert!(held == seats.len() && held > 0, "{seats:?}");
}

#[tokio::test]
#[ignore = "needs Redis: scripts/test runs it"]
async fn a_watcher_of_one_sees_what_the_other_does() {
    let Replicas { house, other, redis: _redis } = Replicas::open().await;
    let door = Door::open(&house).await;
    let request = WatchSeatsRequest { concert_id: house.concert.to_string(), ..Default::default() };
    let mut stream = door.seats().watch_seats(request).await.unwrap().into_inner();
    next(&mut stream).await;
    let fan = house.fan_with(1000);
    let hold = house.hold_in(&other, fan, &["A-1-2"]).await;
    assert_eq!(first_change(&next(&mut stream).await), ("A-1-2", SeatState::Held));
    other.book(order(fan, hold.id, "key")).await.unwrap();
    assert_eq!(first_change(&next(&mut stream).await), ("A-1-2", SeatState::Sold));
}

#[tokio::test]
#[ignore = "needs Redis: scripts/test runs it"]
async fn a_hold_made_at_one_is_booked_at_the_other() {
    let Replicas { house, other, redis: _redis } = Replicas::open().await;
    let fan = house.fan_with(1000);
    let hold = house.hold(fan, &["A-1-2"]).await;
    let booking = other.book(order(fan, hold.id, "key")).await.unwrap().booking;
    assert_eq!(booking.state, State::Confirmed);
    let again = house.book(fan, hold.id, "key").await.unwrap();
    assert!(again.is_replay && again.booking.id == booking.id);
    assert_eq!(reason(house.book(fan, hold.id, "another key").await), "HOLD_BOOKED");
}

#[tokio::test]
#[ignore = "needs Redis: scripts/test runs it"]
async fn a_flush_loses_holds_and_sells_nothing_twice() {
    let Replicas { house, other, redis } = Replicas::open().await;
    let [ann, bob, eve] = [(); 3].map(|()| house.fan_with(1000));
    let sold = house.hold(ann, &["A-1-1"]).await;
    house.booked(ann, sold.id, "key").await;
    let lost = house.hold(bob, &["A-1-2"]).await;
    let door = Door::open(&house).await;
    let request = WatchSeatsRequest { concert_id: house.concert.to_string(), ..Default::default() };
    let mut stream = door.seats().watch_seats(request).await.unwrap().into_inner();
    next(&mut stream).await;

    assert_eq!(redis.command("FLUSHALL"), "+OK");
    let message = next(&mut stream).await;
    assert!(message.reset && message.changes.is_empty(), "whoever watches starts over: {message:?}");
    assert_eq!(reason(house.book(bob, lost.id, "key").await), "HOLD_EXPIRED");
    let taken = house.ask_for(&other, eve, &["A-1-1", "A-1-2"]).await;
    assert_eq!(taken, Granted::Taken(sold.seats), "what is sold is read from the database");
    let hold = house.hold_in(&other, eve, &["A-1-2"]).await;
    other.book(order(eve, hold.id, "key")).await.unwrap();
    assert_eq!(reason(house.book(bob, lost.id, "key").await), "HOLD_EXPIRED");
    assert!(house.letters().await.starts_with("SSA"), "{}", house.letters().await);
}

#[tokio::test]
#[ignore = "needs Redis: scripts/test runs it"]
async fn without_redis_what_has_begun_is_finished() {
    let Replicas { house, mut redis, other: _ } = Replicas::open().await;
    let fan = house.fan_with(1000);
    let hold = house.hold(fan, &["A-1-1"]).await;
    let later = house.hold(fan, &["A-1-2"]).await;
    house.payment.set_manner(Manner::Hangs);
    let paying = tokio::spawn({
        let process = house.shared.clone();
        async move { process.book(order(fan, hold.id, "key")).await }
    });
    wait_until("the charge to begin", PATIENCE, async || {
        if house.payment.calls("pay") > 0 { Ok(()) } else { Err("nobody asked payment".to_owned()) }
    })
    .await;
    redis.stop();
    house.payment.set_manner(Manner::Answers);
    let booking = paying.await.unwrap().unwrap().booking;
    assert_eq!(booking.state, State::Confirmed);

    assert_eq!(reason(house.book(fan, later.id, "key 2").await), "HOLDS_UNAVAILABLE");
    let again = house.book(fan, hold.id, "key").await.unwrap();
    assert!(again.is_replay && again.booking.id == booking.id, "a key needs no Redis");
    assert_eq!(reason(house.shared.snapshot(&*house.sale().await).await), "HOLDS_UNAVAILABLE");

    redis.run().await;
    wait_until("Redis to be used again", PATIENCE, async || {
        let snapshot = house.shared.snapshot(&*house.sale().await).await;
        snapshot.map(drop).map_err(|error| error.to_string())
    })
    .await;
    assert!(house.letters().await.starts_with("SAA"), "{}", house.letters().await);
    assert_eq!(reason(house.book(fan, later.id, "key 2").await), "HOLD_EXPIRED");
    let hold = house.hold(fan, &["A-1-2"]).await;
    house.booked(fan, hold.id, "key 3").await;
}

/// Another process changes seats and can't tell this one's holds, as if it had died before.
async fn an_audit_finds_what_nobody_told(house: House) {
    let deaf = Shared { holds: Holds::memory(house.clock.clone()).into(), ..house.shared.clone() };
    let fan = house.fan_with(1000);
    let hold = house.hold(fan, &["A-1-1"]).await;
    let booking = house.booked(fan, hold.id, "key").await;
    deaf.cancel(fan, booking.id, "cancel".to_owned()).await.unwrap();
    let hold = house.hold_in(&deaf, fan, &["A-1-2"]).await;
    deaf.book(order(fan, hold.id, "key 2")).await.unwrap();
    house.hold(UserId::new(), &["A-1-3"]).await;
    assert!(house.letters().await.starts_with("SAH"), "{}", house.letters().await);

    let mut audit = Audit::default();
    audit.sweep(&house.shared).await.unwrap();
    assert!(house.letters().await.starts_with("SAH"), "once means nothing: {}", house.letters().await);
    audit.sweep(&house.shared).await.unwrap();
    assert!(house.letters().await.starts_with("ASH"), "{}", house.letters().await);
    let revision = house.shared.holds.snapshot(house.concert).await.unwrap().unwrap().revision;
    for _ in 0..2 {
        audit.sweep(&house.shared).await.unwrap();
    }
    let unchanged = house.shared.holds.snapshot(house.concert).await.unwrap().unwrap().revision;
    assert_eq!(unchanged, revision, "nothing differs any more");
}

#[tokio::test]
async fn an_audit_finds_what_nobody_told_memory() {
    an_audit_finds_what_nobody_told(House::open().await).await;
}

#[tokio::test]
#[ignore = "needs Redis: scripts/test runs it"]
async fn an_audit_finds_what_nobody_told_redis() {
    let Replicas { house, redis: _redis, .. } = Replicas::open().await;
    an_audit_finds_what_nobody_told(house).await;
}

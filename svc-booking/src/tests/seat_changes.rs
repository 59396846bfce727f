//! The stream of a concert's seats: where it starts, what it tells, and how a watcher comes back to it.

use boxoffice_proto::booking::v1::{SeatState, WatchSeatsRequest, WatchSeatsResponse};
use mesh::id::UserId;
use tonic::{Status, Streaming};

use super::{
    adapters::Door,
    house::{House, PATIENCE},
};

/// Watches a house's concert, from a revision on if it is named.
async fn watch(door: &Door, house: &House, revision: &str) -> Result<Streaming<WatchSeatsResponse>, Status> {
    let request = WatchSeatsRequest { concert_id: house.concert.to_string(), revision: revision.to_owned() };
    Ok(door.seats().watch_seats(request).await?.into_inner())
}

async fn next(stream: &mut Streaming<WatchSeatsResponse>) -> WatchSeatsResponse {
    let message = tokio::time::timeout(PATIENCE, stream.message()).await.expect("a message in time");
    message.unwrap().expect("the stream goes on")
}

/// The seats of a message with their states, sorted.
fn changes(message: &WatchSeatsResponse) -> Vec<(&str, SeatState)> {
    let mut changes: Vec<_> =
        message.changes.iter().map(|change| (change.seat_id.as_str(), change.state())).collect();
    changes.sort();
    changes
}

#[tokio::test]
async fn the_first_message_says_where_the_stream_starts() {
    let house = House::open().await;
    let door = Door::open(&house).await;
    house.hold(UserId::new(), &["A-1-2"]).await;
    let mut stream = watch(&door, &house, "").await.unwrap();
    let first = next(&mut stream).await;
    let revision = house.shared.holds.snapshot(house.concert).await.unwrap().unwrap().revision;
    assert_eq!(first, WatchSeatsResponse { revision: revision.to_string(), ..Default::default() });
}

#[tokio::test]
async fn changes_close_together_are_one_message_with_each_seat_once() {
    let house = House::open().await;
    let door = Door::open(&house).await;
    let mut stream = watch(&door, &house, "").await.unwrap();
    next(&mut stream).await;
    let fan = house.fan_with(1000);
    for _ in 0..50 {
        let hold = house.hold(UserId::new(), &["A-1-2", "A-1-3"]).await;
        house.shared.holds.release(hold.id).await.unwrap();
    }
    house.hold(fan, &["A-1-2"]).await;
    house.hold(fan, &["FLOOR-1"]).await;
    let message = next(&mut stream).await;
    let expected =
        [("A-1-2", SeatState::Held), ("A-1-3", SeatState::Available), ("FLOOR-1", SeatState::Held)];
    assert_eq!((changes(&message).as_slice(), message.reset), (expected.as_slice(), false));
}

#[tokio::test]
async fn a_watcher_sees_a_seat_being_held_sold_and_given_back() {
    let house = House::open().await;
    let door = Door::open(&house).await;
    let mut stream = watch(&door, &house, "").await.unwrap();
    next(&mut stream).await;
    let fan = house.fan_with(1000);
    let hold = house.hold(fan, &["A-1-2"]).await;
    assert_eq!(changes(&next(&mut stream).await), [("A-1-2", SeatState::Held)]);
    let booking = house.booked(fan, hold.id, "key").await;
    assert_eq!(changes(&next(&mut stream).await), [("A-1-2", SeatState::Sold)]);
    house.cancel(fan, booking.id, "cancel").await.unwrap();
    assert_eq!(changes(&next(&mut stream).await), [("A-1-2", SeatState::Available)]);
}

#[tokio::test]
async fn who_comes_back_hears_what_was_missed() {
    let house = House::open().await;
    let door = Door::open(&house).await;
    let last_seen = next(&mut watch(&door, &house, "").await.unwrap()).await.revision;
    house.hold(UserId::new(), &["A-1-2"]).await;
    let missed = next(&mut watch(&door, &house, &last_seen).await.unwrap()).await;
    assert_eq!((changes(&missed).as_slice(), missed.reset), ([("A-1-2", SeatState::Held)].as_slice(), false));
    let nothing = next(&mut watch(&door, &house, &missed.revision).await.unwrap()).await;
    assert_eq!((nothing.changes, nothing.revision), (vec![], missed.revision));
}

#[tokio::test]
async fn who_comes_back_too_late_is_told_to_start_over() {
    let mut house = House::open().await;
    let door = Door::open(&house).await;
    let last_seen = next(&mut watch(&door, &house, "").await.unwrap()).await.revision;
    house.restart().await;
    let door = Door::open(&house).await;
    let message = next(&mut watch(&door, &house, &last_seen).await.unwrap()).await;
    assert!(message.reset && message.changes.is_empty(), "{message:?}");
    let again = next(&mut watch(&door, &house, &message.revision).await.unwrap()).await;
    assert!(!again.reset, "from there the stream goes on");
}

#[tokio::test]
async fn who_comes_with_a_revision_that_is_none_is_told_to_start_over() {
    let house = House::open().await;
    let door = Door::open(&house).await;
    let now = next(&mut watch(&door, &house, "").await.unwrap()).await.revision;
    for revision in ["x", "1", "zz-1", "0123456789abcdef-", &format!("{now} "), &"x".repeat(10_000)] {
        let message = next(&mut watch(&door, &house, revision).await.unwrap()).await;
        let expected = WatchSeatsResponse { revision: now.clone(), changes: vec![], reset: true };
        assert_eq!(message, expected, "{revision}");
    }
}

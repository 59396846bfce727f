//! What the service does by itself, as `serve` starts it.

use std::time::Duration;

use chrono::TimeDelta;
use mesh::shutdown::Shutdown;
use mesh_test::wait_until;

use super::{
    house::{HOLD_TTL, House, PATIENCE},
    payment::Manner,
};
use crate::{
    domain::booking::State,
    store::LEASE,
    worker::{self, Reports},
};

/// The workers of a house; they stop when this goes.
struct Workers(Shutdown);

impl Workers {
    fn start(house: &House) -> Self {
        let shutdown = Shutdown::new();
        worker::start(&house.shared, &shutdown);
        Self(shutdown)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.0.begin();
    }
}

async fn wait_for_letters(house: &House, expected: &str) {
    wait_until("the seats to change", PATIENCE, async || match house.letters().await {
        letters if letters == expected => Ok(()),
        letters => Err(letters),
    })
    .await;
}

async fn wait_for_places_left(house: &House, expected: i32) {
    wait_until("concert to be told", PATIENCE, async || {
        match house.concert_service.places_left(house.concert) {
            Some(places) if places == expected => Ok(()),
            other => Err(format!("it was told {other:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn an_expired_hold_is_given_back() {
    let house = House::open().await;
    let _workers = Workers::start(&house);
    house.hold(house.fan_with(0), &["A-1-2", "A-1-3"]).await;
    assert_eq!(house.letters().await, "AHHAAAAAAA");
    house.clock.advance(HOLD_TTL);
    wait_for_letters(&house, "AAAAAAAAAA").await;
}

#[tokio::test]
async fn an_abandoned_booking_is_gone_on_with_and_a_lost_refund_is_made() {
    let house = House::open().await;
    let _workers = Workers::start(&house);
    let fan = house.fan_with(1000);
    let booking = house.claimed(fan, &["A-1-2"], "key").await.booking;
    house.clock.advance(LEASE * 2);
    wait_until("the booking to be confirmed", PATIENCE, async || match house.stored(&booking).await.state {
        State::Confirmed => Ok(()),
        state => Err(format!("{state:?}")),
    })
    .await;

    house.payment.set_manner(Manner::Fails);
    let cancelled = house.cancel(fan, booking.id, "cancel").await.unwrap().booking;
    assert_eq!(cancelled.refunded, 0);
    house.payment.set_manner(Manner::Answers);
    house.clock.advance(LEASE);
    wait_until("the refund", PATIENCE, async || match house.stored(&booking).await.refunded {
        100 => Ok(()),
        refunded => Err(format!("{refunded} given back")),
    })
    .await;
    assert_eq!((house.payment.balance(fan), house.payment.refunds()), (1000, 1));
}

#[tokio::test]
async fn concert_is_told_what_is_sold_out_and_what_is_no_longer() {
    let house = House::open().await;
    let _workers = Workers::start(&house);
    let mut last = None;
    for seats in [
        ["A-1-1", "A-1-2", "A-1-3", "A-1-4"].as_slice(),
        &["A-2-1", "A-2-2", "A-2-3", "A-2-4"],
        &["FLOOR-1", "FLOOR-2"],
    ] {
        let fan = house.fan_with(1000);
        let hold = house.hold(fan, seats).await;
        last = Some(house.booked(fan, hold.id, "key").await);
    }
    wait_for_places_left(&house, 0).await;
    let last = last.unwrap();
    house.cancel(last.fan, last.id, "cancel").await.unwrap();
    wait_for_places_left(&house, 2).await;
}

#[tokio::test]
async fn after_a_restart_concert_is_told_again_and_of_a_cancellation_too() {
    let mut house = House::open().await;
    let fan = house.fan_with(1000);
    let hold = house.hold(fan, &["A-1-1", "A-1-2"]).await;
    let booking = house.booked(fan, hold.id, "key").await;
    house.restart().await;
    let _workers = Workers::start(&house);
    wait_for_places_left(&house, 8).await;
    assert!(house.shared.holds.watch(house.concert).await.unwrap().is_none(), "nobody asked for its seats");
    house.cancel(fan, booking.id, "cancel").await.unwrap();
    wait_for_places_left(&house, 10).await;
}

#[tokio::test]
async fn after_a_restart_of_each_concert_that_is_on_sale_what_is_left_is_told() {
    let house = House::open().await;
    let (open_time, close_time) = (house.clock.now(), house.clock.now() + TimeDelta::days(1));
    // More than are counted at once.
    let concerts: Vec<_> =
        (0..70).map(|_| house.concert_service.put_on_sale(open_time, close_time)).collect();
    for concert in &concerts {
        house.count_as_sold(*concert).await;
    }
    let mut reports = Reports::default();
    house.concert_service.set_down(true);
    reports.sweep(&house.shared).await.unwrap();
    house.concert_service.set_down(false);
    // Rounds that are cut off.
    for _ in 0..8 {
        let _ = tokio::time::timeout(Duration::from_millis(5), reports.sweep(&house.shared)).await;
    }
    for _ in 0..4 {
        reports.sweep(&house.shared).await.unwrap();
    }
    for concert in concerts {
        assert_eq!(house.concert_service.places_left(concert), Some(9), "{concert}");
    }
}

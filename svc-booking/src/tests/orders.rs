//! What a fan may do with holds, keys and bookings, and what is answered when it is too late, too much or not theirs.

use chrono::TimeDelta;
use mesh::{Failure, failure::error_info, id::UserId};
use mesh_test::wait_until;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::{
    concert::SEAT_LIMIT,
    house::{HOLD_TTL, House, PATIENCE, order, reason},
    payment::Manner,
};
use crate::{
    domain::{booking::State, hold},
    holds::{Granted, Holds},
};

#[tokio::test]
async fn the_same_order_again_is_answered_with_the_same_booking() {
    let house = House::open().await;
    let fan = house.fan_with(1000);
    let hold = house.hold(fan, &["A-1-2"]).await;
    let first = house.book(fan, hold.id, "key").await.unwrap();
    let again = house.book(fan, hold.id, "key").await.unwrap();
    assert_eq!((first.is_replay, again.is_replay), (false, true));
    assert_eq!(first.booking, again.booking);
    assert_eq!(house.payment.balance(fan), 900);
    assert_eq!(reason(house.book(fan, hold.id, "other key").await), "HOLD_BOOKED");
}

#[tokio::test]
async fn a_key_is_for_one_order_of_one_fan() {
    let house = House::open().await;
    let (fan, other) = (house.fan_with(1000), house.fan_with(1000));
    let (first, second) = (house.hold(fan, &["A-1-2"]).await, house.hold(fan, &["A-1-3"]).await);
    house.booked(fan, first.id, "key").await;
    assert_eq!(reason(house.book(fan, second.id, "key").await), "IDEMPOTENCY_KEY_REUSED");
    assert!(house.find_hold(second.id).await.is_some(), "nothing happened to the other hold");
    assert_eq!(house.payment.balance(fan), 900);

    let third = house.hold(other, &["A-1-4"]).await;
    assert_eq!(house.booked(other, third.id, "key").await.state, State::Confirmed, "another fan's key");
}

#[tokio::test]
async fn an_order_that_is_being_worked_on_is_not_begun_again() {
    let house = House::open().await;
    let fan = house.fan_with(1000);
    let hold = house.hold(fan, &["A-1-2"]).await;
    house.payment.set_manner(Manner::Hangs);
    let again = async {
        wait_until("the charge", PATIENCE, async || match house.payment.calls("pay") {
            1 => Ok(()),
            calls => Err(format!("asked {calls} times")),
        })
        .await;
        let refused = house.book(fan, hold.id, "key").await.unwrap_err();
        let status = Status::from(Failure::from(refused));
        assert_eq!(error_info(&status).unwrap().reason, "REQUEST_IN_PROGRESS");
        assert_eq!(status.code(), Code::Aborted);
        assert!(status.get_details_retry_info().is_some(), "when to come back");
        assert_eq!(reason(house.book(fan, hold.id, "other key").await), "HOLD_BOOKED");
        house.payment.set_manner(Manner::Answers);
    };
    let (outcome, ()) = tokio::join!(house.book(fan, hold.id, "key"), again);
    assert_eq!(outcome.unwrap().booking.state, State::Confirmed);
    assert_eq!((house.payment.calls("pay"), house.payment.balance(fan)), (1, 900));
}

#[tokio::test]
async fn of_two_orders_for_one_hold_one_wins() {
    let house = House::open().await;
    let fan = house.fan_with(1000);
    for (turn, seat) in ["A-1-2", "A-1-3", "A-1-4", "A-2-1"].into_iter().enumerate() {
        let hold = house.hold(fan, &[seat]).await;
        let (one, two) = (format!("one {turn}"), format!("two {turn}"));
        let (one, two) = tokio::join!(house.book(fan, hold.id, &one), house.book(fan, hold.id, &two));
        let mut outcomes = [reason(one), reason(two)];
        outcomes.sort_unstable();
        assert_eq!(outcomes, ["HOLD_BOOKED", "none"]);
        assert_eq!(house.payment.balance(fan), 900 - turn as i64 * 100);
    }
}

#[tokio::test]
async fn a_double_click_books_once() {
    let house = House::open().await;
    let fan = house.fan_with(1000);
    let hold = house.hold(fan, &["A-1-2"]).await;
    let clicks = futures_util::future::join_all((0..20).map(|_| house.book(fan, hold.id, "key"))).await;
    let reasons: Vec<_> = clicks.into_iter().map(reason).collect();
    assert_eq!(reasons.iter().filter(|reason| **reason == "none").count(), 1, "{reasons:?}");
    assert!(reasons.iter().all(|reason| ["none", "REQUEST_IN_PROGRESS"].contains(reason)), "{reasons:?}");
    assert_eq!(house.traces(fan).await.bookings, [State::Confirmed]);
    assert_eq!(house.payment.balance(fan), 900);
}

#[tokio::test]
async fn a_fan_has_so_many_seats_and_no_more_holds_and_bookings_together() {
    let house = House::open().await;
    let fan = house.fan_with(1000);
    let first = house.hold(fan, &["A-1-2", "A-1-3"]).await;
    let booking = house.booked(fan, first.id, "key").await;
    house.hold(fan, &["A-2-1"]).await;
    let ask = async |seats: &[&str]| house.ask_for(&house.shared, fan, seats).await;
    assert_eq!(ask(&["A-2-2", "A-2-3"]).await, Granted::LimitExceeded { remaining: SEAT_LIMIT - 3 });

    house.cancel(fan, booking.id, "cancel").await.unwrap();
    assert!(
        matches!(ask(&["A-1-2", "A-1-3", "A-2-2"]).await, Granted::Held(_)),
        "cancelled ones don't count"
    );
}

#[tokio::test]
async fn the_limit_holds_though_the_holds_were_lost() {
    let mut house = House::open().await;
    let fan = house.fan_with(1000);
    let lost = house.hold(fan, &["A-1-2", "A-1-3", "A-1-4"]).await;
    let other = house.second_process().await;
    let kept = house.hold_in(&other, fan, &["A-2-1", "A-2-2"]).await;
    house.booked(fan, lost.id, "key").await;
    assert_eq!(reason(other.book(order(fan, kept.id, "other key")).await), "SEAT_LIMIT_EXCEEDED");

    house.restart().await;
    let granted = house.ask_for(&house.shared, fan, &["A-2-1", "A-2-2"]).await;
    assert_eq!(granted, Granted::LimitExceeded { remaining: 1 }, "counted anew from the database");
}

#[tokio::test]
async fn an_expired_hold_is_not_booked() {
    let house = House::open().await;
    let fan = house.fan_with(1000);
    let hold = house.hold(fan, &["A-1-2"]).await;
    house.clock.advance(HOLD_TTL);
    assert_eq!(reason(house.book(fan, hold.id, "key").await), "HOLD_EXPIRED", "though nobody swept yet");
    house.shared.holds.release_expired().await.unwrap();
    assert_eq!(reason(house.book(fan, hold.id, "key").await), "HOLD_EXPIRED");
    assert_eq!(house.payment.calls("pay"), 0);
    house.hold(UserId::new(), &["A-1-2"]).await;
}

#[tokio::test]
async fn a_hold_is_booked_to_its_last_moment_and_does_not_end_meanwhile() {
    let house = House::open().await;
    let fan = house.fan_with(0);
    let hold = house.hold(fan, &["A-1-2"]).await;
    house.clock.advance(HOLD_TTL - TimeDelta::microseconds(1));
    assert_eq!(reason(house.book(fan, hold.id, "key").await), "INSUFFICIENT_BALANCE");
    let kept = house.find_hold(hold.id).await.unwrap();
    assert!(kept.expire_time > house.clock.now() + TimeDelta::seconds(10), "time to top up");
}

#[tokio::test]
async fn another_fans_hold_is_no_other_than_one_that_never_was() {
    let house = House::open().await;
    let (fan, thief) = (house.fan_with(1000), house.fan_with(1000));
    let hold = house.hold(fan, &["A-1-2"]).await;
    let never_was = hold::new_id(UserId::new(), house.concert);
    let mut answers = Vec::new();
    for id in [hold.id, never_was] {
        let refused = house.book(thief, id, "key").await.unwrap_err();
        answers.push(format!("{:?}", Failure::from(refused)));
    }
    assert!(answers[0].contains("HOLD_NOT_FOUND"), "{}", answers[0]);
    assert_eq!(answers[0], answers[1]);
    assert_eq!(house.booked(fan, hold.id, "key").await.state, State::Confirmed);
}

#[tokio::test]
async fn a_hold_lost_in_a_restart_has_expired_for_its_fan_alone() {
    let mut house = House::open().await;
    let (fan, other) = (house.fan_with(1000), house.fan_with(1000));
    let hold = house.hold(fan, &["A-1-2"]).await;
    house.restart().await;
    assert_eq!(reason(house.book(fan, hold.id, "key").await), "HOLD_EXPIRED");
    assert_eq!(reason(house.book(other, hold.id, "key").await), "HOLD_NOT_FOUND");
}

#[tokio::test]
async fn a_booking_of_before_a_restart_is_still_answered_by_its_key() {
    let mut house = House::open().await;
    let fan = house.fan_with(1000);
    let hold = house.hold(fan, &["A-1-2"]).await;
    let booking = house.booked(fan, hold.id, "key").await;
    house.restart().await;
    let again = house.book(fan, hold.id, "key").await.unwrap();
    assert!(again.is_replay);
    assert_eq!(again.booking, booking);
    assert_eq!(reason(house.book(fan, hold.id, "other key").await), "HOLD_BOOKED");
}

#[tokio::test]
async fn another_fans_booking_is_not_found_and_not_cancelled() {
    let house = House::open().await;
    let (fan, thief) = (house.fan_with(1000), house.fan_with(1000));
    let hold = house.hold(fan, &["A-1-2"]).await;
    let booking = house.booked(fan, hold.id, "key").await;
    assert_eq!(reason(house.shared.store.find_own(thief, booking.id).await), "BOOKING_NOT_FOUND");
    assert_eq!(reason(house.cancel(thief, booking.id, "key").await), "BOOKING_NOT_FOUND");
    assert_eq!(house.stored(&booking).await, booking);
}

#[tokio::test]
async fn a_cancelled_seat_is_on_sale_again_at_once() {
    let house = House::open().await;
    let (fan, other) = (house.fan_with(1000), house.fan_with(1000));
    let hold = house.hold(fan, &["A-1-2"]).await;
    let booking = house.booked(fan, hold.id, "key").await;
    house.cancel(fan, booking.id, "cancel").await.unwrap();
    let hold = house.hold(other, &["A-1-2"]).await;
    assert_eq!(house.booked(other, hold.id, "key").await.state, State::Confirmed);
}

#[tokio::test]
async fn a_cancel_key_is_for_one_booking() {
    let house = House::open().await;
    let fan = house.fan_with(1000);
    let (one, two) = (house.hold(fan, &["A-1-2"]).await, house.hold(fan, &["A-1-3"]).await);
    let (one, two) = (house.booked(fan, one.id, "one").await, house.booked(fan, two.id, "two").await);
    house.cancel(fan, one.id, "cancel").await.unwrap();
    assert_eq!(reason(house.cancel(fan, two.id, "cancel").await), "IDEMPOTENCY_KEY_REUSED");
    assert_eq!(house.stored(&two).await.state, State::Confirmed);
}

#[tokio::test]
async fn what_is_not_confirmed_is_not_cancelled() {
    let house = House::open().await;
    let fan = house.fan_with(1000);
    let hold = house.hold(fan, &["A-1-2"]).await;
    house.payment.set_manner(Manner::Fails);
    let booking = house.booked(fan, hold.id, "key").await;
    let refused = Failure::from(house.cancel(fan, booking.id, "cancel").await.unwrap_err());
    let info = error_info(&refused.into()).unwrap();
    assert_eq!(
        (info.reason.as_str(), info.metadata["state"].as_str()),
        ("BOOKING_NOT_CANCELLABLE", "PAYING")
    );
    assert_eq!(house.stored(&booking).await.state, State::Paying);
}

#[tokio::test]
async fn concert_is_told_once_and_its_no_is_heard() {
    let house = House::open().await;
    let fan = house.fan_with(1000);
    let (one, two) = (house.hold(fan, &["A-1-2"]).await, house.hold(fan, &["A-1-3"]).await);
    house.booked(fan, one.id, "one").await;
    house.booked(fan, two.id, "two").await;
    assert_eq!(house.concert_service.times_begun(house.concert), 1);

    let other = house.second_process().await;
    let three = house.hold_in(&other, fan, &["A-1-4"]).await;
    other.catalog.find(house.concert).await.unwrap();
    house.concert_service.cancel(house.concert);
    // The copy of a moment ago says that it is on sale.
    assert_eq!(reason(other.book(order(fan, three.id, "three")).await), "CONCERT_CANCELLED");
    assert_eq!(house.payment.balance(fan), 800);
    assert_eq!(house.traces(fan).await.bookings, [State::Confirmed; 2], "nothing was written");
}

#[tokio::test]
async fn a_sale_that_has_begun_goes_on_while_concert_is_down() {
    let house = House::open().await;
    let fan = house.fan_with(1000);
    let hold = house.hold(fan, &["A-1-2"]).await;
    house.booked(fan, hold.id, "one").await;
    house.concert_service.set_down(true);
    let asked = house.concert_service.times_asked();
    wait_until("booking to ask concert in vain", PATIENCE, async || {
        house.shared.catalog.find(house.concert).await.expect("the last known copy");
        match house.concert_service.times_asked() - asked {
            0 => Err("its copy is still fresh".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    let hold = house.hold(fan, &["A-1-3"]).await;
    assert_eq!(house.booked(fan, hold.id, "two").await.state, State::Confirmed);

    let other = house.second_process().await;
    assert_eq!(reason(other.catalog.find(house.concert).await), "CONCERT_UNAVAILABLE", "no copy to go by");
}

#[tokio::test]
async fn of_five_hundred_fans_who_want_the_same_seats_one_gets_them() {
    let house = House::open().await;
    let fans: Vec<_> = (0..500).map(|_| house.fan_with(1000)).collect();
    let wishes = fans.iter().map(|fan| house.ask_for(&house.shared, *fan, &["A-1-2", "A-1-3"]));
    let granted = futures_util::future::join_all(wishes).await;
    let held: Vec<_> = granted
        .into_iter()
        .filter_map(|granted| match granted {
            Granted::Held(hold) => Some(hold),
            _ => None,
        })
        .collect();
    let [hold] = held.as_slice() else { panic!("{} fans hold the same seats", held.len()) };
    // As after a flush: every fan holds the seats, in a memory of their own.
    let rivals = fans.iter().filter(|fan| **fan != hold.fan).take(16);
    let mut processes = Vec::new();
    for rival in rivals {
        let process =
            crate::Shared { holds: Holds::memory(house.clock.clone()).into(), ..house.shared.clone() };
        let hold = house.hold_in(&process, *rival, &["A-1-2", "A-1-3"]).await;
        processes.push((process, order(*rival, hold.id, "key")));
    }
    processes.push((house.shared.clone(), order(hold.fan, hold.id, "key")));
    let booked = processes.into_iter().map(|(process, order)| async move { process.book(order).await });
    let mut reasons: Vec<_> = futures_util::future::join_all(booked).await.into_iter().map(reason).collect();
    reasons.sort_unstable();
    let mut expected = vec!["SEAT_TAKEN"; 16];
    expected.push("none");
    assert_eq!(reasons, expected);
    assert_eq!(house.payment.calls("pay"), 1);
}

//! What becomes of a booking, its claims, its hold and its key, and what the fan is told, by what came of the charge.

use chrono::TimeDelta;
use futures_util::future::join_all;
use mesh::{Failure, id::UserId};
use mesh_test::{Mode, wait_until};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::{
    house::{House, PATIENCE, Traces, order, reason},
    payment::Manner,
};
use crate::{
    Shared,
    domain::{
        booking::{CHARGE_WINDOW_SECONDS, Charge, PaymentFailure, State},
        hold::Hold,
    },
    error::Error,
};

/// What the traces of a fan are who holds A-1-2 and has no booking.
fn only_a_hold(balance: i64) -> Traces {
    Traces { bookings: vec![], claims: vec![], fan_seats: 0, letters: "AHAAAAAAAA".to_owned(), balance }
}

/// What the traces of a fan are who has A-1-2, wherever its booking stands.
fn has_the_seat(state: State, balance: i64) -> Traces {
    Traces { bookings: vec![state], claims: vec![1], fan_seats: 1, letters: "ASAAAAAAAA".to_owned(), balance }
}

/// What the traces of a fan are whose booking of A-1-2 failed, hold and all.
fn gave_the_seat_back(balance: i64) -> Traces {
    let letters = "AAAAAAAAAA".to_owned();
    Traces { bookings: vec![State::Failed], claims: vec![], fan_seats: 0, letters, balance }
}

async fn fan_with_a_hold(house: &House, balance: i64) -> (UserId, Hold) {
    let fan = house.fan_with(balance);
    (fan, house.hold(fan, &["A-1-2"]).await)
}

/// Makes the breaker in front of payment open.
async fn wear_out(process: &Shared, house: &House) {
    let someone = house.fan_with(0);
    let booking = house.claimed(someone, &["FLOOR-1"], "someone's key").await.booking;
    wait_until("the breaker to open", PATIENCE, async || {
        process.neighbours.charge(&booking).await;
        if process.neighbours.is_payment_refusing() { Ok(()) } else { Err("it is closed".to_owned()) }
    })
    .await;
    house.shared.store.fail(&booking, PaymentFailure::Unavailable).await.unwrap();
    house.shared.holds.release(booking.hold.unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_booking_is_paid_once_and_confirmed() {
    let house = House::open().await;
    let (fan, hold) = fan_with_a_hold(&house, 1000).await;
    let booking = house.booked(fan, hold.id, "key").await;
    assert_eq!((booking.state, booking.total), (State::Confirmed, 100));
    assert_eq!(house.traces(fan).await, has_the_seat(State::Confirmed, 900));
    assert_eq!(house.find_hold(hold.id).await, None);
    assert_eq!(house.payment.calls("pay"), 1);
}

#[tokio::test]
async fn while_the_breaker_is_open_nothing_is_written_and_the_hold_is_kept_longer_once() {
    let house = House::open().await;
    let process = house.without_payment().await;
    wear_out(&process, &house).await;
    let (fan, hold) = fan_with_a_hold(&house, 1000).await;
    for _ in 0..2 {
        house.clock.advance(TimeDelta::minutes(4));
        let refused = process.book(order(fan, hold.id, "key")).await;
        let status = Status::from(Failure::from(refused.unwrap_err()));
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(mesh::failure::error_info(&status).unwrap().reason, "PAYMENT_UNAVAILABLE");
        assert!(status.get_details_retry_info().is_some(), "when to come back");
        assert_eq!(house.traces(fan).await, only_a_hold(1000));
        let kept = house.find_hold(hold.id).await.unwrap();
        assert_eq!(kept.expire_time, hold.expire_time + TimeDelta::minutes(5));
    }
    let booking = house.booked(fan, hold.id, "key").await;
    assert_eq!(booking.state, State::Confirmed, "a moment later");
}

#[tokio::test]
async fn while_the_breaker_is_open_a_payment_under_way_is_not_denied() {
    let house = House::open().await;
    let process = house.without_payment().await;
    wear_out(&process, &house).await;
    let fan = house.fan_with(1000);
    let new = house.claimed(fan, &["A-1-2"], "key").await;
    let hold = new.booking.hold.unwrap();
    let book = async |key| process.book(order(fan, hold, key)).await;
    assert_eq!(reason(book("key").await), "REQUEST_IN_PROGRESS");
    assert_eq!(reason(book("other key").await), "HOLD_BOOKED");
}

#[tokio::test]
async fn a_charge_that_surely_was_not_sent_fails_the_booking_and_keeps_the_hold() {
    let house = House::open().await;
    let process = house.without_payment().await;
    let (fan, hold) = fan_with_a_hold(&house, 1000).await;
    let refused = process.book(order(fan, hold.id, "key")).await;
    assert_eq!(reason(refused), "PAYMENT_UNAVAILABLE");
    let failed = Traces { bookings: vec![State::Failed], ..only_a_hold(1000) };
    assert_eq!(house.traces(fan).await, failed);

    let booking = house.booked(fan, hold.id, "key").await;
    assert_eq!(booking.state, State::Confirmed, "the same hold by the same key");
}

#[tokio::test]
async fn who_tops_up_after_a_refusal_books_the_same_hold_by_the_same_key() {
    let house = House::open().await;
    let (fan, hold) = fan_with_a_hold(&house, 99).await;
    let Err(refused) = house.book(fan, hold.id, "key").await else { panic!("99 is less than 100") };
    let Error::PaymentFailed { booking: Some(failed), .. } = refused else { panic!("{refused:?}") };
    assert_eq!(Failure::from(refused).info().reason, "INSUFFICIENT_BALANCE");
    let failed = house.shared.store.find_own(fan, failed).await.unwrap();
    assert_eq!(failed.failure, Some(PaymentFailure::InsufficientBalance));
    let expected = Traces { bookings: vec![State::Failed], ..only_a_hold(99) };
    assert_eq!(house.traces(fan).await, expected);

    house.payment.top_up(fan, 1);
    // Bookings of one millisecond are in no order.
    house.clock.advance(TimeDelta::milliseconds(1));
    let booking = house.booked(fan, hold.id, "key").await;
    assert_eq!(booking.state, State::Confirmed);
    let bookings = vec![State::Failed, State::Confirmed];
    assert_eq!(house.traces(fan).await, Traces { bookings, ..has_the_seat(State::Confirmed, 0) });
}

#[tokio::test]
async fn a_lost_reply_leaves_it_paying_until_a_worker_has_asked_again() {
    let house = House::open().await;
    let (fan, hold) = fan_with_a_hold(&house, 1000).await;
    house.payment.set_manner(Manner::LosesReplies);
    let booking = house.booked(fan, hold.id, "key").await;
    assert_eq!(booking.state, State::Paying, "the fan is told to ask again");
    assert_eq!(house.traces(fan).await, has_the_seat(State::Paying, 900));

    house.sweep_after_the_lease().await;
    assert_eq!(house.traces(fan).await, has_the_seat(State::Paying, 900), "still nobody knows");
    house.payment.set_manner(Manner::Answers);
    house.sweep_after_the_lease().await;
    assert_eq!(house.traces(fan).await, has_the_seat(State::Confirmed, 900), "taken once");
    assert_eq!(house.payment.calls("pay"), 3);
}

#[tokio::test]
async fn a_payment_service_that_hangs_leaves_it_paying() {
    let house = House::open().await;
    let (fan, hold) = fan_with_a_hold(&house, 1000).await;
    house.payment.set_manner(Manner::Hangs);
    let booking = house.booked(fan, hold.id, "key").await;
    assert_eq!(booking.state, State::Paying);
    house.payment.set_manner(Manner::Answers);
    house.sweep_after_the_lease().await;
    assert_eq!(house.traces(fan).await, has_the_seat(State::Confirmed, 900));
}

#[tokio::test]
async fn what_payment_should_have_understood_is_not_held_against_the_fan() {
    let house = House::open().await;
    let (fan, hold) = fan_with_a_hold(&house, 1000).await;
    house.payment.set_manner(Manner::Misunderstands);
    let booking = house.booked(fan, hold.id, "key").await;
    assert_eq!(booking.state, State::Paying);
    assert_eq!(house.count_rows("booking WHERE attention IS NOT NULL").await, 1, "an operator has to look");
    house.payment.set_manner(Manner::Answers);
    house.sweep_after_the_lease().await;
    assert_eq!(house.traces(fan).await, has_the_seat(State::Confirmed, 900));
}

#[tokio::test]
async fn a_connection_that_breaks_after_the_charge_is_asked_again_at_once() {
    let house = House::open().await;
    let (fan, hold) = fan_with_a_hold(&house, 1000).await;
    house.payment.set_manner(Manner::HangsAfterwards);
    let book = house.book(fan, hold.id, "key");
    let break_connection = async {
        wait_until("the money to be taken", PATIENCE, async || match house.payment.balance(fan) {
            900 => Ok(()),
            balance => Err(format!("the fan has {balance}")),
        })
        .await;
        house.payment_line.reset_connections();
        wait_until("another try", PATIENCE, async || match house.payment.calls("pay") {
            2 => Ok(()),
            calls => Err(format!("asked {calls} times")),
        })
        .await;
        house.payment.set_manner(Manner::Answers);
    };
    let (outcome, ()) = tokio::join!(book, break_connection);
    assert_eq!(outcome.unwrap().booking.state, State::Confirmed);
    assert_eq!(house.traces(fan).await, has_the_seat(State::Confirmed, 900));
}

#[tokio::test]
async fn a_partition_after_the_charge_leaves_it_paying_until_it_heals() {
    let house = House::open().await;
    let (fan, hold) = fan_with_a_hold(&house, 1000).await;
    house.payment.set_manner(Manner::HangsAfterwards);
    let book = house.book(fan, hold.id, "key");
    let cut = async {
        wait_until("the money to be taken", PATIENCE, async || match house.payment.balance(fan) {
            900 => Ok(()),
            balance => Err(format!("the fan has {balance}")),
        })
        .await;
        house.payment_line.set_mode(Mode::Refuse);
    };
    let (outcome, ()) = tokio::join!(book, cut);
    assert_eq!(outcome.unwrap().booking.state, State::Paying, "it may have been sent: it was");
    house.sweep_after_the_lease().await;
    assert_eq!(house.traces(fan).await, has_the_seat(State::Paying, 900), "not sent now, but before");

    house.payment.set_manner(Manner::Answers);
    house.payment_line.set_mode(Mode::Pass);
    house.sweep_after_the_lease().await;
    assert_eq!(house.traces(fan).await, has_the_seat(State::Confirmed, 900));
}

#[tokio::test]
async fn whatever_payment_does_a_fan_has_paid_and_has_a_seat_or_neither() {
    let manners = [Manner::Answers, Manner::LosesReplies, Manner::Fails];
    for (balance, age) in [(1000, 0), (99, 0), (1000, CHARGE_WINDOW_SECONDS)] {
        let stories = (0..27).map(|turn| [manners[turn % 3], manners[turn / 3 % 3], manners[turn / 9]]);
        join_all(stories.map(|story| live_through(story, balance, age))).await;
    }
}

/// Books by the first manner, resumes by the others when the booking is so many seconds old, and at last by a good one.
async fn live_through(story: [Manner; 3], balance: i64, age: i64) {
    let house = House::open().await;
    let (fan, hold) = fan_with_a_hold(&house, balance).await;
    let [first, rest @ ..] = story;
    house.payment.set_manner(first);
    let _ = house.book(fan, hold.id, "key").await;
    house.clock.advance(TimeDelta::seconds(age));
    for manner in rest.into_iter().chain([Manner::Answers]) {
        house.payment.set_manner(manner);
        house.sweep_after_the_lease().await;
    }
    let traces = house.traces(fan).await;
    let seats = match traces.bookings.as_slice() {
        [State::Confirmed] => 1,
        [State::Failed] => 0,
        other => panic!("{story:?}: {other:?}"),
    };
    assert_eq!(traces.balance, balance - 100 * i64::from(seats), "{story:?}");
    assert_eq!((traces.claims.len(), traces.fan_seats), (seats as usize, seats), "{story:?}");
    assert_eq!(traces.letters.contains('S'), seats == 1, "{story:?}: {}", traces.letters);
}

#[tokio::test]
async fn what_is_unknown_for_too_long_is_undone_and_given_back() {
    let house = House::open().await;
    let (fan, hold) = fan_with_a_hold(&house, 1000).await;
    house.payment.set_manner(Manner::LosesReplies);
    let booking = house.booked(fan, hold.id, "key").await;
    assert_eq!(house.payment.balance(fan), 900);
    house.clock.advance(TimeDelta::seconds(CHARGE_WINDOW_SECONDS));
    house.payment.set_manner(Manner::Answers);
    house.sweep_after_the_lease().await;
    assert_eq!(house.traces(fan).await, gave_the_seat_back(1000));
    assert_eq!(house.stored(&booking).await.failure, Some(PaymentFailure::TimedOut));
    assert_eq!(house.payment.calls("pay"), 1, "it was voided, not charged");
    assert_eq!(reason(house.book(fan, hold.id, "key").await), "HOLD_EXPIRED", "key and hold are free");
}

#[tokio::test]
async fn what_was_never_charged_and_is_too_old_is_never_charged() {
    let house = House::open().await;
    let (fan, hold) = fan_with_a_hold(&house, 1000).await;
    house.payment.set_manner(Manner::Fails);
    let booking = house.booked(fan, hold.id, "key").await;
    house.clock.advance(TimeDelta::seconds(CHARGE_WINDOW_SECONDS));
    house.sweep_after_the_lease().await;
    assert_eq!(house.traces(fan).await, has_the_seat(State::Paying, 1000), "voiding failed too");
    house.payment.set_manner(Manner::Answers);
    house.sweep_after_the_lease().await;
    assert_eq!(house.traces(fan).await, gave_the_seat_back(1000));
    let late = house.shared.neighbours.charge(&booking).await;
    assert_eq!(late, Charge::Refused(PaymentFailure::TimedOut));
    assert!(!house.payment.has_charged(booking.id));
}

#[tokio::test]
async fn a_charge_that_is_still_on_its_way_when_a_later_one_is_refused_is_never_taken() {
    let house = House::open().await;
    let (fan, hold) = fan_with_a_hold(&house, 0).await;
    house.payment.set_manner(Manner::Fails);
    let booking = house.booked(fan, hold.id, "key").await;
    assert_eq!(booking.state, State::Paying);

    house.payment.set_manner(Manner::Answers);
    house.sweep_after_the_lease().await;
    assert_eq!(house.traces(fan).await, gave_the_seat_back(0));
    assert_eq!(house.stored(&booking).await.failure, Some(PaymentFailure::InsufficientBalance));

    house.payment.top_up(fan, 1000);
    // The first charge, which was thought lost, comes at last.
    house.shared.neighbours.charge(&booking).await;
    assert_eq!(house.payment.balance(fan), 1000, "no money is taken for a booking that failed");
}

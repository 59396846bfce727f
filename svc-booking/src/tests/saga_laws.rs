//! The laws of the saga, for each of its steps: doing it twice is doing it once; a step that fails leaves a clean
//! slate; undoing again is harmless.

use super::house::{House, Traces, order, reason};
use crate::{
    checkout::Attempt,
    domain::booking::{Charge, PaymentFailure, State},
    store::Conflict,
};

const NOTHING_BOOKED: &str = "AAAAAAAAAA";

fn no_traces(balance: i64) -> Traces {
    Traces { bookings: vec![], claims: vec![], fan_seats: 0, letters: NOTHING_BOOKED.to_owned(), balance }
}

#[tokio::test]
async fn each_step_done_twice_is_done_once() {
    let house = House::open().await;
    let fan = house.fan_with(1000);
    let new = house.claimed(fan, &["A-1-2", "A-1-3"], "key").await;
    let booking = &new.booking;
    let claimed = house.traces(fan).await;
    assert_eq!((claimed.claims.as_slice(), claimed.fan_seats), ([1, 2].as_slice(), 2));

    let again = house.shared.store.claim(new.clone()).await.unwrap();
    assert!(matches!(again, Err(Conflict::Replay { .. })), "{again:?}");
    assert_eq!(house.traces(fan).await, claimed, "claimed twice");

    for _ in 0..2 {
        assert_eq!(house.shared.neighbours.charge(booking).await, Charge::Captured);
        assert_eq!(house.traces(fan).await, Traces { balance: 800, ..claimed.clone() }, "charged twice");
    }

    assert!(house.shared.store.confirm(booking).await.unwrap());
    let confirmed = house.traces(fan).await;
    assert_eq!(confirmed.bookings, [State::Confirmed]);
    assert!(!house.shared.store.confirm(booking).await.unwrap());
    assert_eq!(house.traces(fan).await, confirmed, "confirmed twice");

    for _ in 0..2 {
        let settled = house.shared.run(booking.clone(), Attempt::Again).await.unwrap();
        assert_eq!(settled.state, State::Confirmed);
        let expected = Traces { letters: "ASSAAAAAAA".to_owned(), ..confirmed.clone() };
        assert_eq!(house.traces(fan).await, expected, "the whole saga twice");
    }
}

#[tokio::test]
async fn each_undo_done_twice_is_harmless() {
    let house = House::open().await;
    let fan = house.fan_with(1000);
    let booking = house.claimed(fan, &["A-1-2"], "key").await.booking;
    assert_eq!(house.shared.neighbours.charge(&booking).await, Charge::Captured);

    for _ in 0..2 {
        house.shared.neighbours.void(&booking).await.unwrap();
        assert_eq!(house.payment.balance(fan), 1000, "given back once");
    }
    assert!(house.shared.store.fail(&booking, PaymentFailure::TimedOut).await.unwrap());
    let failed = house.traces(fan).await;
    assert_eq!((failed.claims.len(), failed.fan_seats), (0, 0));
    assert!(!house.shared.store.fail(&booking, PaymentFailure::TimedOut).await.unwrap());
    assert_eq!(house.traces(fan).await, failed, "failed twice");
    for _ in 0..2 {
        house.shared.give_back(&booking).await;
        assert_eq!(house.traces(fan).await, failed, "given back twice");
    }
    let charged = house.shared.neighbours.charge(&booking).await;
    assert_eq!(charged, Charge::Refused(PaymentFailure::TimedOut), "a voided booking is never charged");
}

#[tokio::test]
async fn a_cancellation_done_twice_refunds_once() {
    let house = House::open().await;
    let fan = house.fan_with(1000);
    let hold = house.hold(fan, &["A-1-2"]).await;
    let booking = house.booked(fan, hold.id, "key").await;
    let cancelled = Traces { bookings: vec![State::Cancelled], ..no_traces(1000) };
    for is_replay in [false, true] {
        let outcome = house.cancel(fan, booking.id, "cancel").await.unwrap();
        assert_eq!((outcome.is_replay, outcome.booking.state), (is_replay, State::Cancelled));
        assert_eq!(outcome.booking.refunded, 100);
        assert_eq!(house.traces(fan).await, cancelled);
    }
    assert_eq!(house.shared.make_refunds(None).await.unwrap(), 0);
    assert_eq!((house.payment.refunds(), house.count_rows("refund").await), (1, 1));

    let other_key = house.cancel(fan, booking.id, "other").await;
    assert_eq!(reason(other_key), "BOOKING_NOT_CANCELLABLE");
    assert_eq!(house.traces(fan).await, cancelled);
}

#[tokio::test]
async fn a_claim_that_fails_leaves_nothing() {
    let house = House::open().await;
    let (winner, loser) = (house.fan_with(1000), house.fan_with(1000));
    let hold = house.hold(loser, &["A-1-2", "A-1-3"]).await;
    // As after a flush: the database knows of a booking of which `holds` does not.
    let other = house.second_process().await;
    let winning = house.hold_in(&other, winner, &["A-1-2", "A-1-3"]).await;
    other.book(order(winner, winning.id, "key")).await.unwrap();

    assert_eq!(reason(house.book(loser, hold.id, "key").await), "SEAT_TAKEN");
    let expected = Traces { claims: vec![1, 2], letters: "ASSAAAAAAA".to_owned(), ..no_traces(1000) };
    assert_eq!(house.traces(loser).await, expected);
    assert_eq!(house.find_hold(hold.id).await, None, "a hold of sold seats is worth nothing");
    assert_eq!(house.payment.calls("pay"), 1, "the loser was never charged");
}

#[tokio::test]
async fn a_charge_that_is_refused_leaves_a_clean_slate() {
    let house = House::open().await;
    let fan = house.fan_with(99);
    let booking = house.claimed(fan, &["A-1-2"], "key").await.booking;
    let failed = house.shared.run(booking.clone(), Attempt::First).await.unwrap();
    assert_eq!((failed.state, failed.failure), (State::Failed, Some(PaymentFailure::InsufficientBalance)));
    let expected =
        Traces { bookings: vec![State::Failed], letters: "AHAAAAAAAA".to_owned(), ..no_traces(99) };
    assert_eq!(house.traces(fan).await, expected, "nothing but the note that it failed, and the hold");
    assert_eq!(house.shared.store.find_by_key(fan, "key").await.unwrap(), None, "the key is free");
    assert_eq!(house.shared.store.find_by_hold(booking.hold.unwrap()).await.unwrap(), None);
}

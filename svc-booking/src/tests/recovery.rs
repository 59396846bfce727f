//! A crash at each step, and what the next process makes of it; workers that lost their lease; several processes.

use chrono::TimeDelta;
use futures_util::future::{join_all, poll_immediate};
use mesh::id::{BookingId, ConcertId, HoldId};
use mesh_test::wait_until;

use super::{
    house::{HOLD_TTL, House, PATIENCE, Traces, order},
    payment::Manner,
};
use crate::{
    checkout::Attempt,
    domain::booking::{Booking, PaymentFailure, State},
    store::{LEASE, NewBooking},
    worker::Recovery,
};

/// What the traces of a fan are who has A-1-2, wherever its booking stands.
fn has_the_seat(state: State, balance: i64) -> Traces {
    Traces { bookings: vec![state], claims: vec![1], fan_seats: 1, letters: "ASAAAAAAAA".to_owned(), balance }
}

#[tokio::test]
async fn a_crash_after_the_claim_is_gone_on_with() {
    let mut house = House::open().await;
    let fan = house.fan_with(1000);
    house.claimed(fan, &["A-1-2"], "key").await;
    house.restart().await;
    assert_eq!(house.traces(fan).await, has_the_seat(State::Paying, 1000));
    house.sweep_after_the_lease().await;
    assert_eq!(house.traces(fan).await, has_the_seat(State::Confirmed, 900));
}

#[tokio::test]
async fn a_crash_after_the_charge_is_gone_on_with_and_charges_nothing_more() {
    let mut house = House::open().await;
    let fan = house.fan_with(1000);
    let booking = house.claimed(fan, &["A-1-2"], "key").await.booking;
    house.shared.neighbours.charge(&booking).await;
    house.restart().await;
    house.sweep_after_the_lease().await;
    assert_eq!(house.traces(fan).await, has_the_seat(State::Confirmed, 900));
    assert_eq!(house.payment.calls("pay"), 2, "asked again, by the same key");
}

#[tokio::test]
async fn a_crash_after_the_confirmation_loses_nothing() {
    let mut house = House::open().await;
    let fan = house.fan_with(1000);
    let booking = house.claimed(fan, &["A-1-2"], "key").await.booking;
    house.shared.neighbours.charge(&booking).await;
    house.shared.store.confirm(&booking).await.unwrap();
    house.restart().await;
    let confirmed = has_the_seat(State::Confirmed, 900);
    assert_eq!(house.traces(fan).await, confirmed);
    house.sweep_after_the_lease().await;
    assert_eq!(house.traces(fan).await, confirmed);
    assert_eq!(house.payment.calls("pay"), 1, "there was nothing to go on with");
}

#[tokio::test]
async fn a_crash_after_voiding_ends_in_a_failed_booking() {
    let mut house = House::open().await;
    let fan = house.fan_with(1000);
    let booking = house.claimed(fan, &["A-1-2"], "key").await.booking;
    house.shared.neighbours.charge(&booking).await;
    house.shared.neighbours.void(&booking).await.unwrap();
    house.restart().await;
    house.sweep_after_the_lease().await;
    let letters = "AAAAAAAAAA".to_owned();
    let expected =
        Traces { bookings: vec![State::Failed], claims: vec![], fan_seats: 0, letters, balance: 1000 };
    assert_eq!(house.traces(fan).await, expected);
}

#[tokio::test]
async fn a_crash_after_the_failure_was_written_leaves_the_seats_for_others() {
    let mut house = House::open().await;
    let (fan, other) = (house.fan_with(0), house.fan_with(100));
    let booking = house.claimed(fan, &["A-1-2"], "key").await.booking;
    house.shared.store.fail(&booking, PaymentFailure::InsufficientBalance).await.unwrap();
    house.restart().await;
    let hold = house.hold(other, &["A-1-2"]).await;
    assert_eq!(house.booked(other, hold.id, "key").await.state, State::Confirmed);
}

#[tokio::test]
async fn a_crash_between_cancelling_and_refunding_is_made_up_for() {
    let mut house = House::open().await;
    let fan = house.fan_with(1000);
    let hold = house.hold(fan, &["A-1-2"]).await;
    let booking = house.booked(fan, hold.id, "key").await;
    house.shared.store.cancel(fan, booking.id, "cancel", house.clock.now()).await.unwrap();
    house.restart().await;
    assert_eq!((house.stored(&booking).await.refunded, house.payment.balance(fan)), (0, 900));
    assert_eq!(house.shared.make_refunds(None).await.unwrap(), 1);
    assert_eq!((house.stored(&booking).await.refunded, house.payment.balance(fan)), (100, 1000));
    assert_eq!(house.shared.make_refunds(None).await.unwrap(), 0);
}

#[tokio::test]
async fn a_refund_whose_reply_was_lost_is_made_once() {
    let house = House::open().await;
    let fan = house.fan_with(1000);
    let hold = house.hold(fan, &["A-1-2"]).await;
    let booking = house.booked(fan, hold.id, "key").await;
    house.payment.set_manner(Manner::LosesReplies);
    let cancelled = house.cancel(fan, booking.id, "cancel").await.unwrap().booking;
    assert_eq!((cancelled.state, cancelled.refunded), (State::Cancelled, 0), "on its way");
    house.payment.set_manner(Manner::Answers);
    assert_eq!(house.shared.make_refunds(None).await.unwrap(), 0, "it was tried a moment ago");
    house.clock.advance(TimeDelta::seconds(1));
    assert_eq!(house.shared.make_refunds(None).await.unwrap(), 1);
    assert_eq!(house.stored(&booking).await.refunded, 100);
    assert_eq!((house.payment.balance(fan), house.payment.refunds()), (1000, 1));
}

#[tokio::test]
async fn a_booking_is_left_alone_while_its_lease_lasts() {
    let house = House::open().await;
    let fan = house.fan_with(1000);
    house.claimed(fan, &["A-1-2"], "key").await;
    house.clock.advance(LEASE);
    Recovery::default().sweep(&house.shared).await.unwrap();
    assert_eq!((house.payment.calls("pay"), house.payment.balance(fan)), (0, 1000));
    house.clock.advance(TimeDelta::microseconds(1));
    Recovery::default().sweep(&house.shared).await.unwrap();
    assert_eq!(house.traces(fan).await, has_the_seat(State::Confirmed, 900));
}

#[tokio::test]
async fn a_lease_begins_with_the_claim_however_long_concert_took() {
    let house = House::open().await;
    let fan = house.fan_with(1000);
    let hold = house.hold(fan, &["A-1-2"]).await;
    house.concert_service.set_slow(&house.clock, LEASE - TimeDelta::seconds(1));
    house.payment.set_manner(Manner::Fails);
    let booking = house.booked(fan, hold.id, "key").await;
    assert_eq!(house.stored(&booking).await.lease.until, house.clock.now() + LEASE);
}

#[tokio::test]
async fn one_worker_goes_on_with_what_has_to_wait_at_every_sweep() {
    let house = House::open().await;
    let fan = house.fan_with(1000);
    house.claimed(fan, &["A-1-2"], "key").await;
    house.payment.set_manner(Manner::Fails);
    let mut recovery = Recovery::default();
    house.clock.advance(LEASE + TimeDelta::seconds(1));
    for turn in 1..=5 {
        recovery.sweep(&house.shared).await.unwrap();
        assert_eq!(house.payment.calls("pay"), turn, "its own lease does not stop it");
    }
    house.payment.set_manner(Manner::Answers);
    recovery.sweep(&house.shared).await.unwrap();
    assert_eq!(house.traces(fan).await, has_the_seat(State::Confirmed, 900));
    recovery.sweep(&house.shared).await.unwrap();
    assert_eq!(house.payment.calls("pay"), 6, "and then nothing is left to do");
}

#[tokio::test]
async fn a_crash_in_the_middle_of_a_stampede_is_made_up_for_in_one_sweep() {
    let mut house = House::open().await;
    let sample = house.claimed(house.fan_with(1000), &["A-1-2"], "key").await;
    let wishes: Vec<_> = (0..300)
        .map(|_| {
            let fan = house.fan_with(1000);
            let (id, concert, hold) = (BookingId::new(), ConcertId::new(), Some(HoldId::new()));
            let booking = Booking { id, fan, concert, hold, ..sample.booking.clone() };
            NewBooking { booking, ..sample.clone() }
        })
        .collect();
    for claimed in join_all(wishes.iter().map(|wish| house.shared.store.claim(wish.clone()))).await {
        claimed.unwrap().unwrap();
    }
    house.restart().await;
    house.sweep_after_the_lease().await;
    for wish in wishes {
        assert_eq!(house.stored(&wish.booking).await.state, State::Confirmed);
        assert_eq!(house.payment.balance(wish.booking.fan), 900);
    }
}

#[tokio::test]
async fn a_database_that_goes_away_after_the_charge_leaves_the_seats_to_the_fan() {
    let mut house = House::open().await;
    let fan = house.fan_with(1000);
    let hold = house.hold(fan, &["A-1-2"]).await;
    house.payment.set_manner(Manner::HangsAfterwards);
    let go_away = async {
        wait_until("the money to be taken", PATIENCE, async || match house.payment.balance(fan) {
            900 => Ok(()),
            balance => Err(format!("the fan has {balance}")),
        })
        .await;
        house.shared.store.clone().close().await;
        house.payment.set_manner(Manner::Answers);
    };
    let (outcome, ()) = tokio::join!(house.book(fan, hold.id, "key"), go_away);
    assert_eq!(outcome.unwrap().booking.state, State::Paying, "the fan is told to ask again");
    assert_eq!(house.letters().await, "ASAAAAAAAA", "nobody else is offered the seat");
    assert_eq!(house.find_hold(hold.id).await, None, "and it does not depend on the hold any more");

    house.restart().await;
    house.sweep_after_the_lease().await;
    assert_eq!(house.traces(fan).await, has_the_seat(State::Confirmed, 900));
}

#[tokio::test]
async fn a_worker_that_lost_its_lease_changes_nothing() {
    let house = House::open().await;
    let fan = house.fan_with(1000);
    let stale = house.claimed(fan, &["A-1-2"], "key").await.booking;
    house.clock.advance(LEASE + TimeDelta::seconds(1));
    let current = house.shared.store.take_over(stale.clone(), house.clock.now()).await.unwrap().unwrap();

    let seen = house.shared.run(stale.clone(), Attempt::First).await.unwrap();
    assert_eq!(seen.state, State::Paying, "it could not confirm");
    assert!(!house.shared.store.fail(&stale, PaymentFailure::Declined).await.unwrap(), "nor fail it");
    assert_eq!(house.stored(&stale).await.lease, current.lease);

    let settled = house.shared.run(current, Attempt::Again).await.unwrap();
    assert_eq!(settled.state, State::Confirmed);
    assert_eq!(house.traces(fan).await, has_the_seat(State::Confirmed, 900));
    let seen = house.shared.run(stale, Attempt::First).await.unwrap();
    assert_eq!(seen.state, State::Confirmed, "it says what the other wrote");
}

#[tokio::test]
async fn a_worker_that_wakes_too_late_takes_no_seat_from_anybody() {
    let house = House::open().await;
    let (fan, other) = (house.fan_with(0), house.fan_with(100));
    let stale = house.claimed(fan, &["A-1-2"], "key").await.booking;
    house.sweep_after_the_lease().await;
    assert_eq!(house.stored(&stale).await.state, State::Failed);
    house.payment.set_manner(Manner::Fails);
    house.shared.run(stale.clone(), Attempt::First).await.unwrap();
    house.payment.set_manner(Manner::Answers);
    house.shared.run(stale, Attempt::First).await.unwrap();

    house.clock.advance(HOLD_TTL);
    house.shared.holds.release_expired().await.unwrap();
    assert_eq!(house.letters().await, "AAAAAAAAAA", "the seat is not lost");
    let hold = house.hold(other, &["A-1-2"]).await;
    assert_eq!(house.booked(other, hold.id, "key").await.state, State::Confirmed);
}

#[tokio::test]
async fn seats_that_were_sold_again_are_not_given_back_by_whoever_had_them_before() {
    let house = House::open().await;
    let (fan, other) = (house.fan_with(100), house.fan_with(100));
    let stale = house.claimed(fan, &["A-1-2"], "key").await.booking;
    house.clock.advance(LEASE + TimeDelta::seconds(1));
    let current = house.shared.store.take_over(stale.clone(), house.clock.now()).await.unwrap().unwrap();
    house.shared.store.fail(&current, PaymentFailure::Declined).await.unwrap();
    house.shared.holds.release(stale.hold.unwrap()).await.unwrap();
    let hold = house.hold(other, &["A-1-2"]).await;
    house.booked(other, hold.id, "key").await;

    house.shared.run(stale.clone(), Attempt::First).await.unwrap();
    house.shared.give_back(&stale).await;
    assert_eq!(house.letters().await, "ASAAAAAAAA");
    let refused = house.ask_for(&house.shared, fan, &["A-1-2"]).await;
    assert_eq!(refused, crate::holds::Granted::Taken(vec![1]));
}

#[tokio::test]
async fn two_processes_that_find_the_same_bookings_charge_each_once() {
    let house = House::open().await;
    let fans: Vec<_> = (0..8).map(|_| house.fan_with(1000)).collect();
    let seats = ["A-1-1", "A-1-2", "A-1-3", "A-1-4", "A-2-1", "A-2-2", "A-2-3", "A-2-4"];
    for (fan, seat) in fans.iter().zip(seats) {
        house.claimed(*fan, &[seat], "key").await;
    }
    house.clock.advance(LEASE + TimeDelta::seconds(1));
    let other = house.second_process().await;
    let (mut here, mut there) = (Recovery::default(), Recovery::default());
    let (one, two) = tokio::join!(here.sweep(&house.shared), there.sweep(&other));
    one.unwrap();
    two.unwrap();
    for fan in fans {
        assert_eq!(house.traces(fan).await.bookings, [State::Confirmed]);
        assert_eq!(house.payment.balance(fan), 900);
    }
    assert_eq!(house.payment.calls("pay"), 8, "whoever lost the race for a lease did not even ask");
}

#[tokio::test]
async fn what_another_process_worked_on_long_ago_is_not_forgotten_when_that_one_dies() {
    let house = House::open().await;
    let fan = house.fan_with(1000);
    let booking = house.claimed(fan, &["A-1-2"], "key").await.booking;
    house.clock.advance(TimeDelta::minutes(30));
    let other = house.second_process().await;
    other.store.take_over(booking.clone(), house.clock.now()).await.unwrap().unwrap();
    let mut recovery = Recovery::default();
    recovery.sweep(&house.shared).await.unwrap();
    assert_eq!(house.stored(&booking).await.state, State::Paying, "the other one has the lease");

    house.clock.advance(LEASE + TimeDelta::seconds(1));
    for _ in 0..31 {
        recovery.sweep(&house.shared).await.unwrap();
    }
    assert_eq!(house.stored(&booking).await.state, State::Failed, "undone: it is far too old");
}

#[tokio::test]
async fn who_leaves_while_the_claim_waits_books_nothing_and_who_leaves_later_does() {
    let house = House::open().await;
    let [begun, waiting] = [house.fan_with(1000), house.fan_with(1000)];
    let first = house.hold(begun, &["A-1-1"]).await.id;
    let second = house.hold(waiting, &["A-1-2"]).await.id;
    // What is asked for only once is known then.
    let other = house.fan_with(1000);
    house.booked(other, house.hold(other, &["A-1-3"]).await.id, "key").await;
    let batches = house.shared.store.batches();
    let other_writer = house.other_writer().await;
    let mut handlers =
        [(begun, first), (waiting, second)].map(|(fan, hold)| Box::pin(house.book(fan, hold, "key")));
    assert!(poll_immediate(&mut handlers[0]).await.is_none());
    wait_until("its batch to begin", PATIENCE, async || match house.shared.store.batches() - batches {
        1 => Ok(()),
        begun => Err(format!("{begun} batches")),
    })
    .await;
    assert!(poll_immediate(&mut handlers[1]).await.is_none());
    drop(handlers);
    other_writer.rollback().await.unwrap();
    // Through the lane after them.
    house.booked(other, house.hold(other, &["A-1-4"]).await.id, "another key").await;

    assert_eq!(house.traces(begun).await.bookings, [State::Paying]);
    assert_eq!(house.traces(waiting).await.bookings, []);
    house.sweep_after_the_lease().await;
    assert_eq!((house.payment.balance(begun), house.payment.balance(waiting)), (900, 1000));
    assert_eq!(house.traces(begun).await.bookings, [State::Confirmed]);
    house.booked(waiting, second, "key").await;
    assert_eq!(house.traces(waiting).await.bookings, [State::Confirmed]);
}

#[tokio::test]
async fn what_has_just_been_left_is_found_at_once_whatever_the_machine_s_clock_says() {
    let house = House::open().await;
    let mut recovery = Recovery::default();
    // The first looks at all bookings.
    recovery.sweep(&house.shared).await.unwrap();
    let fan = house.fan_with(1000);
    house.claimed(fan, &["A-1-2"], "key").await;
    house.clock.advance(LEASE + TimeDelta::seconds(1));
    recovery.sweep(&house.shared).await.unwrap();
    assert_eq!(house.traces(fan).await, has_the_seat(State::Confirmed, 900));
}

#[tokio::test]
async fn the_work_goes_on_when_the_fan_has_left() {
    let house = House::open().await;
    let fan = house.fan_with(1000);
    let hold = house.hold(fan, &["A-1-2"]).await;
    house.payment.set_manner(Manner::Hangs);
    let (shared, order) = (house.shared.clone(), order(fan, hold.id, "key"));
    let handler = tokio::spawn(async move { shared.book(order).await });
    wait_until("the charge", PATIENCE, async || match house.payment.calls("pay") {
        1 => Ok(()),
        calls => Err(format!("asked {calls} times")),
    })
    .await;
    // As the server drops a handler whose caller went away.
    handler.abort();
    house.payment.set_manner(Manner::Answers);
    let confirmed = has_the_seat(State::Confirmed, 900);
    wait_until("the booking to be confirmed", PATIENCE, async || match house.traces(fan).await {
        traces if traces == confirmed => Ok(()),
        traces => Err(format!("{traces:?}")),
    })
    .await;
}

#[tokio::test]
async fn a_cancellation_goes_on_when_the_fan_has_left() {
    let house = House::open().await;
    let fan = house.fan_with(1000);
    let hold = house.hold(fan, &["A-1-2"]).await;
    let booking = house.booked(fan, hold.id, "key").await;
    house.payment.set_manner(Manner::Hangs);
    let (shared, id) = (house.shared.clone(), booking.id);
    let handler = tokio::spawn(async move { shared.cancel(fan, id, "cancel".to_owned()).await });
    wait_until("the refund to be asked for", PATIENCE, async || match house.payment.calls("refund") {
        1 => Ok(()),
        calls => Err(format!("asked {calls} times")),
    })
    .await;
    handler.abort();
    house.payment.set_manner(Manner::Answers);
    wait_until("the refund", PATIENCE, async || match house.stored(&booking).await.refunded {
        100 => Ok(()),
        refunded => Err(format!("{refunded} given back")),
    })
    .await;
    assert_eq!(house.payment.balance(fan), 1000);
}

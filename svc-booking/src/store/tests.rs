//! The store on SQLite and on Postgres: the same bodies on both.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::future::join_all;
use mesh::lane::BATCH_LIMIT;
use mesh_test::wait_until;
use sea_orm::TransactionTrait;

use super::*;
use crate::domain::layout::Ordinal;

/// Runs each body on a fresh database of either kind.
macro_rules! on_both_databases {
    ($($body:ident),* $(,)?) => {
        mod sqlite {
            $(
                #[tokio::test]
                async fn $body() {
                    let file = mesh_test::sqlite::create_database();
                    super::$body(super::Office::open(file.url()).await).await;
                }
            )*
        }
        mod postgres {
            $(
                #[tokio::test]
                #[ignore = "needs Postgres: scripts/test runs it"]
                async fn $body() {
                    let database = mesh_test::postgres::create_database().await;
                    super::$body(super::Office::open(database.url()).await).await;
                }
            )*
        }
    };
}

on_both_databases!(
    a_claim_is_all_there_or_not_at_all,
    of_sixty_four_claims_at_once_exactly_the_impossible_fail,
    of_sixty_four_claims_of_one_seat_one_wins,
    of_sixty_four_bookings_of_one_hold_one_wins,
    sixty_four_seats_are_confirmed_at_once,
    two_processes_sell_each_seat_once,
    two_processes_give_a_fan_no_more_than_the_limit,
    a_confirmation_is_fenced_by_the_epoch,
    a_failure_is_fenced_by_the_epoch,
    a_failed_booking_frees_seats_hold_and_key,
    a_mixed_batch_does_all_it_can,
    a_cancelled_booking_frees_its_seats_and_is_refunded_once,
    a_cancel_key_is_for_one_booking,
    twenty_cancellations_at_once_are_one,
    a_refund_counts_once,
    refunds_are_listed_until_they_are_made,
    a_refund_tried_in_vain_lets_the_others_go_first,
    a_flag_is_fenced_by_the_epoch,
    seats_sold_are_counted_by_concert,
    a_fan_lists_own_bookings_page_by_page,
    a_list_is_stable_while_bookings_are_made,
    bookings_are_found_by_their_fan_key_and_hold,
    bookings_that_are_paying_are_listed_from_any_id_on,
    of_twenty_who_take_over_a_booking_one_gets_it,
    a_settled_booking_is_not_taken_over,
    what_is_sold_is_told_by_seat_and_by_fan,
    the_schema_refuses_what_the_rules_forbid,
    a_database_that_is_gone_is_a_503,
);

/// A store with a concert to sell.
struct Office {
    store: Store,
    database: Database,
    concert: ConcertId,
    now: DateTime<Utc>,
}

const LIMIT: u32 = 4;

impl Office {
    async fn open(url: &str) -> Self {
        let database = Database::open(&url.parse().unwrap(), 10).await.unwrap();
        database.migrate(crate::MIGRATIONS).await.unwrap();
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        Self { store: Store::new(database.clone()), database, concert: ConcertId::new(), now }
    }

    /// What another process on the same database would be.
    fn second_process(&self) -> Store {
        Store::new(self.database.clone())
    }

    /// A booking of seats at 100 each, by a new hold and a key of its own.
    fn booking_of(&self, fan: UserId, seats: &[Ordinal]) -> NewBooking {
        let id = BookingId::new();
        let seat = |ordinal: &Ordinal| Seat {
            ordinal: *ordinal,
            seat_id: format!("A-1-{}", ordinal + 1),
            section_id: "A".to_owned(),
            row_label: "1".to_owned(),
            seat_label: (ordinal + 1).to_string(),
            price: 100,
        };
        let booking = Booking {
            id,
            fan,
            concert: self.concert,
            hold: Some(HoldId::new()),
            state: State::Paying,
            seats: seats.iter().map(seat).collect(),
            total: seats.len() as i64 * 100,
            refunded: 0,
            failure: None,
            create_time: self.now,
            lease: Lease { epoch: 1, until: self.now + LEASE },
        };
        NewBooking { booking, request_key: id.to_string(), fingerprint: [7; 32], seat_limit: LIMIT }
    }

    /// A booking that is PAYING.
    async fn claimed(&self, fan: UserId, seats: &[Ordinal]) -> Booking {
        let new = self.booking_of(fan, seats);
        self.store.claim(new.clone()).await.unwrap().expect("free seats");
        new.booking
    }

    async fn confirmed(&self, fan: UserId, seats: &[Ordinal]) -> Booking {
        let booking = self.claimed(fan, seats).await;
        assert!(self.store.confirm(&booking).await.unwrap());
        self.stored(&booking).await
    }

    async fn stored(&self, booking: &Booking) -> Booking {
        self.store.find_own(booking.fan, booking.id).await.unwrap()
    }

    /// The seats that are claimed, sorted.
    async fn claims(&self) -> Vec<Ordinal> {
        let mut seats = self.store.find_sold(self.concert, 1000).await.unwrap().seats;
        seats.sort_unstable();
        seats
    }

    /// How many seats a fan is counted to have.
    async fn seats_of(&self, fan: UserId) -> u32 {
        let reader = self.database.reader();
        let statement = sql(
            reader,
            "SELECT seats FROM fan_seats WHERE concert = $1 AND fan = $2",
            [self.concert.uuid().into(), fan.uuid().into()],
        );
        let row = reader.query_one_raw(statement).await.unwrap();
        row.map_or(0, |row| row.try_get::<i32>("", "seats").unwrap() as u32)
    }

    async fn count(&self, table: &str) -> i64 {
        let reader = self.database.reader();
        let statement = sql(reader, format!("SELECT COUNT(*) AS count FROM {table}"), []);
        reader.query_one_raw(statement).await.unwrap().unwrap().try_get("", "count").unwrap()
    }

    async fn list(&self, fan: UserId, concert: Option<ConcertId>, page: &Page<BookingId>) -> Vec<BookingId> {
        let found = self.store.list_own(fan, concert, page).await.unwrap();
        found.into_iter().map(|booking| booking.id).collect()
    }
}

/// What came of a claim, as a word.
fn outcome(claimed: &Result<Result<(), Conflict>, Failure>) -> &'static str {
    match claimed.as_ref().expect("no failure") {
        Ok(()) => "claimed",
        Err(Conflict::Replay { .. }) => "replay",
        Err(Conflict::HoldBooked(_)) => "hold booked",
        Err(Conflict::SeatTaken(_)) => "seat taken",
        Err(Conflict::LimitExceeded { .. }) => "limit exceeded",
    }
}

fn reason<T>(outcome: Result<T, Error>) -> &'static str {
    match outcome {
        Ok(_) => "none",
        Err(error) => Failure::from(error).info().reason,
    }
}

async fn a_claim_is_all_there_or_not_at_all(office: Office) {
    let (ann, bob) = (UserId::new(), UserId::new());
    let booking = office.claimed(ann, &[1, 2]).await;
    assert_eq!(office.stored(&booking).await, booking, "as it was made");
    let refused = office.store.claim(office.booking_of(bob, &[0, 1, 3])).await.unwrap();
    let Err(Conflict::SeatTaken(taken)) = refused else { panic!("{refused:?}") };
    assert_eq!(taken, [1]);
    assert_eq!(office.claims().await, [1, 2]);
    assert_eq!((office.seats_of(ann).await, office.seats_of(bob).await), (2, 0));
    assert_eq!(office.count("booking").await, 1);
}

async fn of_sixty_four_claims_at_once_exactly_the_impossible_fail(office: Office) {
    let (collector, clicker) = (UserId::new(), UserId::new());
    office.claimed(UserId::new(), &[500]).await;
    office.claimed(collector, &[501, 502, 503]).await;
    let mut wishes: Vec<NewBooking> =
        (0..BATCH_LIMIT as u32).map(|seat| office.booking_of(UserId::new(), &[seat])).collect();
    wishes[5] = office.booking_of(UserId::new(), &[5, 500]);
    wishes[20] = office.booking_of(collector, &[20, 120]);
    wishes[40] = office.booking_of(clicker, &[40]);
    wishes[41] =
        NewBooking { request_key: wishes[40].request_key.clone(), ..office.booking_of(clicker, &[41]) };
    let batches = office.store.batches();
    let outcomes = join_all(wishes.iter().map(|wish| office.store.claim(wish.clone()))).await;
    assert_eq!(office.store.batches(), batches + 1, "they went as one batch");

    for (number, (wish, claimed)) in wishes.iter().zip(&outcomes).enumerate() {
        let expected = match number {
            5 => "seat taken",
            20 => "limit exceeded",
            41 => "replay",
            _ => "claimed",
        };
        assert_eq!(outcome(claimed), expected, "claim {number}");
        let stored = office.store.find_own(wish.booking.fan, wish.booking.id).await.ok();
        let is_there = expected == "claimed";
        assert_eq!(stored.as_ref(), is_there.then_some(&wish.booking), "claim {number}");
    }
    let Ok(Err(Conflict::SeatTaken(taken))) = &outcomes[5] else { panic!() };
    assert_eq!(taken, &[500]);
    let Ok(Err(Conflict::LimitExceeded { remaining })) = &outcomes[20] else { panic!() };
    assert_eq!(*remaining, 1);
    let Ok(Err(Conflict::Replay { booking, fingerprint })) = &outcomes[41] else { panic!() };
    assert_eq!((&**booking, fingerprint.as_slice()), (&wishes[40].booking, [7; 32].as_slice()));
    let expected: Vec<Ordinal> =
        (0..64).filter(|seat| ![5, 20, 41].contains(seat)).chain(500..=503).collect();
    assert_eq!(office.claims().await, expected);
    assert_eq!(office.seats_of(collector).await, 3);
}

async fn of_sixty_four_claims_of_one_seat_one_wins(office: Office) {
    let wishes = (0..64).map(|_| office.booking_of(UserId::new(), &[7]));
    let outcomes = join_all(wishes.map(|wish| office.store.claim(wish))).await;
    let won = outcomes.iter().filter(|claimed| outcome(claimed) == "claimed").count();
    let lost = outcomes.iter().filter(|claimed| outcome(claimed) == "seat taken").count();
    assert_eq!((won, lost), (1, 63));
    assert_eq!((office.claims().await, office.count("booking").await), (vec![7], 1));
    assert_eq!(office.count("fan_seats").await, 1, "who lost is not counted");
}

async fn of_sixty_four_bookings_of_one_hold_one_wins(office: Office) {
    let (fan, hold) = (UserId::new(), HoldId::new());
    let wish = || {
        let mut wish = office.booking_of(fan, &[7]);
        wish.booking.hold = Some(hold);
        wish
    };
    let outcomes = join_all((0..64).map(|_| office.store.claim(wish()))).await;
    let won = outcomes.iter().filter(|claimed| outcome(claimed) == "claimed").count();
    let lost = outcomes.iter().filter(|claimed| outcome(claimed) == "hold booked").count();
    assert_eq!((won, lost), (1, 63));
}

async fn sixty_four_seats_are_confirmed_at_once(office: Office) {
    let wishes: Vec<_> = (0..64).map(|seat| office.booking_of(UserId::new(), &[seat])).collect();
    for claimed in join_all(wishes.iter().map(|wish| office.store.claim(wish.clone()))).await {
        assert_eq!(outcome(&claimed), "claimed");
    }
    let batches = office.store.batches();
    let confirmed = join_all(wishes.iter().map(|wish| office.store.confirm(&wish.booking))).await;
    assert!(confirmed.into_iter().all(|confirmed| confirmed.unwrap()));
    assert_eq!(office.store.batches(), batches + 1, "they went as one batch");
    for wish in wishes {
        assert_eq!(office.stored(&wish.booking).await, Booking { state: State::Confirmed, ..wish.booking });
    }
}

async fn two_processes_sell_each_seat_once(office: Office) {
    let other = office.second_process();
    // Pairs of neighbouring seats, so that each wish is in conflict with two others.
    let wish = |seat: Ordinal| office.booking_of(UserId::new(), &[(seat + 1) % 32, seat]);
    let mut here: Vec<_> = (0..32).map(wish).collect();
    let there: Vec<_> = (0..32).map(wish).collect();
    here.reverse();
    let (one, two) = tokio::join!(
        join_all(here.into_iter().map(|wish| office.store.claim(wish))),
        join_all(there.into_iter().map(|wish| other.claim(wish))),
    );
    let outcomes: Vec<_> = one.iter().chain(&two).map(outcome).collect();
    assert!(outcomes.iter().all(|outcome| ["claimed", "seat taken"].contains(outcome)), "{outcomes:?}");
    let won = outcomes.iter().filter(|outcome| **outcome == "claimed").count();
    let claims = office.claims().await;
    assert_eq!(claims.len(), 2 * won, "whoever won has both seats, and nobody else any");
    let is_free = |seat: &Ordinal| !claims.contains(seat);
    let left = (0..32).filter(|seat| is_free(seat) && is_free(&((seat + 1) % 32)));
    assert_eq!(left.count(), 0, "nobody lost though the seats were free");
}

async fn two_processes_give_a_fan_no_more_than_the_limit(office: Office) {
    let (other, fan) = (office.second_process(), UserId::new());
    let wishes = |from: Ordinal| (from..from + 8).map(|seat| office.booking_of(fan, &[seat]));
    let (one, two) = tokio::join!(
        join_all(wishes(0).map(|wish| office.store.claim(wish))),
        join_all(wishes(8).map(|wish| other.claim(wish))),
    );
    let won = one.iter().chain(&two).filter(|claimed| outcome(claimed) == "claimed").count();
    assert_eq!((won, office.seats_of(fan).await), (LIMIT as usize, LIMIT));
    assert_eq!(office.claims().await.len(), LIMIT as usize);
}

async fn a_confirmation_is_fenced_by_the_epoch(office: Office) {
    let stale = office.claimed(UserId::new(), &[1]).await;
    let current = office.store.take_over(stale.clone(), office.now).await.unwrap().unwrap();
    assert!(!office.store.confirm(&stale).await.unwrap());
    assert_eq!(office.stored(&stale).await, current, "nothing was written");
    assert!(office.store.confirm(&current).await.unwrap());
    assert!(!office.store.confirm(&current).await.unwrap(), "it is no longer PAYING");
    assert_eq!(office.stored(&stale).await.state, State::Confirmed);
}

async fn a_failure_is_fenced_by_the_epoch(office: Office) {
    let fan = UserId::new();
    let stale = office.claimed(fan, &[1]).await;
    let current = office.store.take_over(stale.clone(), office.now).await.unwrap().unwrap();
    assert!(!office.store.fail(&stale, PaymentFailure::Declined).await.unwrap());
    assert_eq!(office.stored(&stale).await, current, "nothing was written");
    assert_eq!((office.claims().await, office.seats_of(fan).await), (vec![1], 1));
    assert!(office.store.confirm(&current).await.unwrap());
    assert!(!office.store.fail(&current, PaymentFailure::Declined).await.unwrap(), "it is confirmed");
    assert_eq!(office.claims().await, [1]);
}

async fn a_failed_booking_frees_seats_hold_and_key(office: Office) {
    let fan = UserId::new();
    let new = office.booking_of(fan, &[1, 2]);
    office.claimed(fan, &[3]).await;
    office.store.claim(new.clone()).await.unwrap().unwrap();
    for is_first in [true, false] {
        let has_failed = office.store.fail(&new.booking, PaymentFailure::Declined).await.unwrap();
        assert_eq!(has_failed, is_first);
        assert_eq!((office.claims().await, office.seats_of(fan).await), (vec![3], 1));
        let stored = office.stored(&new.booking).await;
        assert_eq!((stored.state, stored.failure), (State::Failed, Some(PaymentFailure::Declined)));
    }
    let again = NewBooking { booking: Booking { id: BookingId::new(), ..new.booking.clone() }, ..new };
    assert_eq!(outcome(&office.store.claim(again).await), "claimed", "the same seats, hold and key");
}

async fn a_mixed_batch_does_all_it_can(office: Office) {
    let (paid, declined, stale) = (
        office.claimed(UserId::new(), &[1]).await,
        office.claimed(UserId::new(), &[2]).await,
        office.claimed(UserId::new(), &[3]).await,
    );
    office.store.take_over(stale.clone(), office.now).await.unwrap().unwrap();
    let (free, taken) = (office.booking_of(UserId::new(), &[4]), office.booking_of(UserId::new(), &[1]));
    let batches = office.store.batches();
    let (free, taken, confirmed, failed, fenced) = tokio::join!(
        office.store.claim(free),
        office.store.claim(taken),
        office.store.confirm(&paid),
        office.store.fail(&declined, PaymentFailure::Declined),
        office.store.confirm(&stale),
    );
    assert_eq!(office.store.batches(), batches + 1, "they went as one batch");
    assert_eq!((outcome(&free), outcome(&taken)), ("claimed", "seat taken"));
    assert_eq!((confirmed.unwrap(), failed.unwrap(), fenced.unwrap()), (true, true, false));
    assert_eq!(office.claims().await, [1, 3, 4]);
    assert_eq!(office.stored(&paid).await.state, State::Confirmed);
    assert_eq!(office.stored(&declined).await.state, State::Failed);
}

async fn a_cancelled_booking_frees_its_seats_and_is_refunded_once(office: Office) {
    let fan = UserId::new();
    let booking = office.confirmed(fan, &[1, 2]).await;
    for is_replay in [false, true] {
        let cancelled = office.store.cancel(fan, booking.id, "key", office.now).await.unwrap();
        assert_eq!((cancelled.is_replay, cancelled.booking.state), (is_replay, State::Cancelled));
        assert_eq!((office.claims().await, office.seats_of(fan).await), (vec![], 0));
        let refunds = office.store.list_refunds_to_do(Some(booking.id), office.now).await.unwrap();
        assert_eq!(refunds.iter().map(|refund| refund.amount).collect::<Vec<_>>(), [200]);
    }
    let other_key = office.store.cancel(fan, booking.id, "other", office.now).await;
    assert_eq!(reason(other_key), "BOOKING_NOT_CANCELLABLE");
    assert_eq!(office.count("refund").await, 1);
}

async fn a_cancel_key_is_for_one_booking(office: Office) {
    let (ann, bob) = (UserId::new(), UserId::new());
    let (one, two) = (office.confirmed(ann, &[1]).await, office.confirmed(ann, &[2]).await);
    let (three, four) = (office.confirmed(bob, &[3]).await, office.claimed(bob, &[4]).await);
    let cancel = async |fan, id| reason(office.store.cancel(fan, id, "key", office.now).await);
    assert_eq!(cancel(bob, one.id).await, "BOOKING_NOT_FOUND");
    assert_eq!(cancel(bob, four.id).await, "BOOKING_NOT_CANCELLABLE", "it is PAYING");
    assert_eq!(cancel(ann, one.id).await, "none");
    assert_eq!(cancel(ann, two.id).await, "IDEMPOTENCY_KEY_REUSED");
    assert_eq!(cancel(bob, three.id).await, "none", "another fan's key is another key");
    assert_eq!(office.claims().await, [2, 4]);
}

async fn twenty_cancellations_at_once_are_one(office: Office) {
    let fan = UserId::new();
    let booking = office.confirmed(fan, &[1, 2]).await;
    let cancel = || office.store.cancel(fan, booking.id, "key", office.now);
    let cancelled = join_all((0..20).map(|_| cancel())).await;
    let replays = cancelled.into_iter().filter(|cancelled| cancelled.as_ref().unwrap().is_replay);
    assert_eq!(replays.count(), 19);
    assert_eq!((office.seats_of(fan).await, office.count("refund").await), (0, 1));

    let (one, two) = (office.confirmed(fan, &[1]).await, office.confirmed(fan, &[2]).await);
    let (first, second) = tokio::join!(
        office.store.cancel(fan, one.id, "other", office.now),
        office.store.cancel(fan, two.id, "other", office.now),
    );
    let mut reasons = [reason(first), reason(second)];
    reasons.sort_unstable();
    assert_eq!(reasons, ["IDEMPOTENCY_KEY_REUSED", "none"]);
    assert_eq!(office.seats_of(fan).await, 1);
}

async fn a_refund_counts_once(office: Office) {
    let fan = UserId::new();
    let booking = office.confirmed(fan, &[1, 2]).await;
    office.store.cancel(fan, booking.id, "key", office.now).await.unwrap();
    let refund = office.store.list_refunds_to_do(Some(booking.id), office.now).await.unwrap()[0];
    let finished = join_all((0..10).map(|_| office.store.finish_refund(refund))).await;
    assert!(finished.iter().all(Result::is_ok), "{finished:?}");
    assert_eq!(office.stored(&booking).await.refunded, 200);
    assert_eq!(office.store.list_refunds_to_do(Some(booking.id), office.now).await.unwrap(), []);
}

async fn refunds_are_listed_until_they_are_made(office: Office) {
    let fan = UserId::new();
    let mut bookings = Vec::new();
    for seat in 0..3 {
        let booking = office.confirmed(fan, &[seat]).await;
        office.store.cancel(fan, booking.id, &seat.to_string(), office.now).await.unwrap();
        bookings.push(booking.id);
    }
    let listed = async |booking| {
        let refunds = office.store.list_refunds_to_do(booking, office.now).await.unwrap();
        refunds.into_iter().map(|refund| refund.booking).collect::<Vec<_>>()
    };
    assert_eq!(listed(None).await, bookings, "the oldest first");
    assert_eq!(listed(Some(bookings[1])).await, bookings[1..2]);
    let second = office.store.list_refunds_to_do(Some(bookings[1]), office.now).await.unwrap()[0];
    office.store.finish_refund(second).await.unwrap();
    assert_eq!(listed(None).await, [bookings[0], bookings[2]]);
}

async fn a_refund_tried_in_vain_lets_the_others_go_first(office: Office) {
    let fan = UserId::new();
    for seat in 0..2 {
        let booking = office.confirmed(fan, &[seat]).await;
        office.store.cancel(fan, booking.id, &seat.to_string(), office.now).await.unwrap();
    }
    let list = async |now| office.store.list_refunds_to_do(None, now).await.unwrap();
    let refunds = list(office.now).await;
    office.store.postpone_refund(refunds[0], office.now).await.unwrap();
    assert_eq!(list(office.now).await, refunds[1..]);
    let named = office.store.list_refunds_to_do(Some(refunds[0].booking), office.now).await.unwrap();
    assert_eq!(named[0].tries, 1, "whoever asks for it by name gets it");
    for (tries, pause) in [(1, 2), (2, 4), (3, 8), (4, 16), (5, 30), (6, 30)] {
        let refund = office.store.list_refunds_to_do(Some(named[0].booking), office.now).await.unwrap()[0];
        assert_eq!(refund.tries, tries);
        office.store.postpone_refund(refund, office.now).await.unwrap();
        assert_eq!(list(office.now + TimeDelta::seconds(pause - 1)).await.len(), 1);
        assert_eq!(list(office.now + TimeDelta::seconds(pause)).await.len(), 2);
    }
}

async fn a_flag_is_fenced_by_the_epoch(office: Office) {
    let booking = office.claimed(UserId::new(), &[1]).await;
    let flags = async || office.count("booking WHERE attention = 'look'").await;
    let stale = Booking { lease: Lease { epoch: 0, ..booking.lease }, ..booking.clone() };
    office.store.flag(&stale, "look").await.unwrap();
    assert_eq!(flags().await, 0);
    office.store.flag(&booking, "look").await.unwrap();
    assert_eq!(flags().await, 1);
}

async fn seats_sold_are_counted_by_concert(office: Office) {
    let (ann, bob) = (UserId::new(), UserId::new());
    office.confirmed(ann, &[1, 2]).await;
    let cancelled = office.confirmed(bob, &[3]).await;
    let all = ConcertId::from_uuid(Uuid::max());
    assert_eq!(office.store.count_sold(all, 2).await.unwrap(), [(office.concert, 3)]);
    office.store.cancel(bob, cancelled.id, "key", office.now).await.unwrap();
    assert_eq!(office.store.count_sold(all, 2).await.unwrap(), [(office.concert, 2)]);
    assert_eq!(office.store.count_sold(office.concert, 2).await.unwrap(), []);
    assert_eq!(office.store.find_sold_of(office.concert, &[3, 2, 9]).await.unwrap(), [2]);
}

async fn a_fan_lists_own_bookings_page_by_page(office: Office) {
    let (fan, stranger) = (UserId::new(), UserId::new());
    let mut made = Vec::new();
    for seat in 0..3 {
        made.push(office.claimed(fan, &[seat]).await.id);
        office.claimed(stranger, &[seat + 10]).await;
    }
    let mut elsewhere = office.booking_of(fan, &[0]);
    elsewhere.booking.concert = ConcertId::new();
    office.store.claim(elsewhere.clone()).await.unwrap().unwrap();
    made.push(elsewhere.booking.id);
    made.reverse();

    let all = Page::read(None, "", &[]).unwrap();
    assert_eq!(office.list(fan, None, &all).await, made, "the newest first");
    assert_eq!(office.list(fan, Some(elsewhere.booking.concert), &all).await, made[..1]);
    assert_eq!(office.list(fan, Some(office.concert), &all).await, made[1..]);
    let first = Page::read(Some(2), "", &[]).unwrap();
    let mut ids = office.list(fan, None, &first).await;
    assert_eq!(ids, made[..3], "one more than the page has");
    let token = first.next_token(&mut ids, |id| *id);
    let second = Page::read(Some(2), &token, &[]).unwrap();
    let mut ids = office.list(fan, None, &second).await;
    assert_eq!(ids, made[2..]);
    assert_eq!(second.next_token(&mut ids, |id| *id), "", "that was all");
}

async fn a_list_is_stable_while_bookings_are_made(office: Office) {
    let fan = UserId::new();
    let (old, new) = (office.claimed(fan, &[0]).await.id, office.claimed(fan, &[1]).await.id);
    let first = Page::read(Some(1), "", &[]).unwrap();
    let mut ids = office.list(fan, None, &first).await;
    let token = first.next_token(&mut ids, |id| *id);
    assert_eq!(ids, [new]);
    office.claimed(fan, &[2]).await;
    let second = Page::read(Some(1), &token, &[]).unwrap();
    assert_eq!(office.list(fan, None, &second).await, [old], "no booking twice, none left out");
}

async fn bookings_are_found_by_their_fan_key_and_hold(office: Office) {
    let (fan, stranger) = (UserId::new(), UserId::new());
    let new = office.booking_of(fan, &[1]);
    office.store.claim(new.clone()).await.unwrap().unwrap();
    let found = office.store.find_by_key(fan, &new.request_key).await.unwrap();
    assert_eq!(found, Some((new.booking.clone(), vec![7; 32])));
    assert_eq!(office.store.find_by_key(stranger, &new.request_key).await.unwrap(), None);
    assert_eq!(office.store.find_by_key(fan, "another").await.unwrap(), None);
    let hold = new.booking.hold.unwrap();
    assert_eq!(office.store.find_by_hold(hold).await.unwrap(), Some(new.booking.id));
    assert_eq!(office.store.find_by_hold(HoldId::new()).await.unwrap(), None);
    let earlier = async |fan, key, hold| {
        let earlier = office.store.find_earlier(fan, key, hold).await.unwrap();
        (earlier.by_key.map(|(booking, _)| booking.id), earlier.by_hold)
    };
    let id = Some(new.booking.id);
    assert_eq!(earlier(fan, &new.request_key, hold).await, (id, id));
    assert_eq!(earlier(fan, &new.request_key, HoldId::new()).await, (id, None));
    assert_eq!(earlier(fan, "another", hold).await, (None, id));
    assert_eq!(earlier(stranger, &new.request_key, hold).await, (None, id));
    assert_eq!(earlier(fan, "another", HoldId::new()).await, (None, None));
    let other = office.booking_of(fan, &[2]);
    office.store.claim(other.clone()).await.unwrap().unwrap();
    let both = earlier(fan, &new.request_key, other.booking.hold.unwrap()).await;
    assert_eq!(both, (id, Some(other.booking.id)));
    assert_eq!(reason(office.store.find_own(stranger, new.booking.id).await), "BOOKING_NOT_FOUND");
    assert_eq!(reason(office.store.find_own(fan, BookingId::new()).await), "BOOKING_NOT_FOUND");
}

async fn bookings_that_are_paying_are_listed_from_any_id_on(office: Office) {
    let (one, two) = (office.claimed(UserId::new(), &[1]).await, office.claimed(UserId::new(), &[2]).await);
    office.confirmed(UserId::new(), &[3]).await;
    let failed = office.claimed(UserId::new(), &[4]).await;
    office.store.fail(&failed, PaymentFailure::Declined).await.unwrap();
    let list = async |from| office.store.list_paying(from).await.unwrap();
    assert_eq!(list(Uuid::nil()).await, [one.clone(), two.clone()]);
    assert_eq!(list(one.id.uuid()).await, [one, two.clone()]);
    assert_eq!(list(two.id.uuid()).await, [two]);
    assert_eq!(list(Uuid::max()).await, []);
}

async fn of_twenty_who_take_over_a_booking_one_gets_it(office: Office) {
    let booking = office.claimed(UserId::new(), &[1]).await;
    let now = office.now + LEASE;
    let taken = join_all((0..20).map(|_| office.store.take_over(booking.clone(), now))).await;
    let winners: Vec<_> = taken.into_iter().filter_map(Result::unwrap).collect();
    let [winner] = winners.as_slice() else { panic!("{} have it", winners.len()) };
    assert_eq!(winner.lease, Lease { epoch: 2, until: now + LEASE });
    assert_eq!(office.stored(&booking).await, *winner);
}

async fn a_settled_booking_is_not_taken_over(office: Office) {
    let confirmed = office.confirmed(UserId::new(), &[1]).await;
    assert_eq!(office.store.take_over(confirmed.clone(), office.now).await.unwrap(), None);
    assert_eq!(office.stored(&confirmed).await, confirmed);
}

async fn what_is_sold_is_told_by_seat_and_by_fan(office: Office) {
    let (ann, bob) = (UserId::new(), UserId::new());
    office.confirmed(ann, &[1, 2]).await;
    office.claimed(ann, &[3]).await;
    office.claimed(bob, &[4]).await;
    let failed = office.claimed(UserId::new(), &[5]).await;
    office.store.fail(&failed, PaymentFailure::Declined).await.unwrap();
    let sold = office.store.find_sold(office.concert, 1000).await.unwrap();
    assert_eq!((sold.places, sold.fans.len()), (1000, 2), "who has none is not listed");
    assert_eq!(office.claims().await, [1, 2, 3, 4]);
    assert_eq!((office.seats_of(ann).await, office.seats_of(bob).await), (3, 1));
    let elsewhere = office.store.find_sold(ConcertId::new(), 10).await.unwrap();
    assert_eq!((elsewhere.seats, elsewhere.fans), (vec![], vec![]));
}

async fn the_schema_refuses_what_the_rules_forbid(office: Office) {
    let fan = UserId::new();
    let booking = office.confirmed(fan, &[1]).await;
    let writer = office.database.writer();
    for statement in [
        "INSERT INTO claim (concert, seat, booking) SELECT concert, seat, booking FROM claim",
        "UPDATE fan_seats SET seats = 5",
        "UPDATE fan_seats SET seats = -1",
        "UPDATE booking SET refunded = total + 1",
        "UPDATE booking SET refunded = -1",
    ] {
        assert!(writer.execute_unprepared(statement).await.is_err(), "{statement}");
    }
    assert_eq!(office.stored(&booking).await, booking);
    assert_eq!((office.claims().await, office.seats_of(fan).await), (vec![1], 1));
}

async fn a_database_that_is_gone_is_a_503(office: Office) {
    let booking = office.claimed(UserId::new(), &[1]).await;
    office.database.clone().close().await;
    let claimed = office.store.claim(office.booking_of(UserId::new(), &[2])).await;
    assert_eq!(claimed.unwrap_err().info().reason, "DATABASE_UNAVAILABLE");
    assert_eq!(office.store.confirm(&booking).await.unwrap_err().info().reason, "DATABASE_UNAVAILABLE");
    assert_eq!(reason(office.store.find_own(booking.fan, booking.id).await), "DATABASE_UNAVAILABLE");
}

/// A deadlock is resolved by Postgres at the cost of one of the two, after a second.
#[tokio::test]
#[ignore = "needs Postgres: scripts/test runs it"]
async fn a_claim_that_loses_deadlocks_is_tried_again() {
    let database = mesh_test::postgres::create_database().await;
    let office = Office::open(database.url()).await;
    let fan = UserId::new();
    office.confirmed(fan, &[1]).await;
    let other = office.database.begin().await.unwrap();
    // Who looks for the deadlock first is ended: the claim.
    other.execute_unprepared("SET LOCAL deadlock_timeout = '1min'").await.unwrap();
    let take_row = sql(
        &other,
        "UPDATE fan_seats SET seats = seats WHERE concert = $1 AND fan = $2",
        [office.concert.uuid().into(), fan.uuid().into()],
    );
    other.execute_raw(take_row).await.unwrap();

    let store = office.store.clone();
    let new = office.booking_of(fan, &[2]);
    let claim = tokio::spawn(async move { store.claim(new).await });
    // Twice: the batch, and then the claim alone.
    for _ in 0..2 {
        wait_until("the claim to wait for the fan's row", Duration::from_secs(20), async || {
            let waits = "pg_locks JOIN pg_stat_activity USING (pid)
                         WHERE NOT granted AND locktype = 'transactionid' AND datname = current_database()";
            if office.count(waits).await == 1 { Ok(()) } else { Err("nobody waits".to_owned()) }
        })
        .await;
        let take_seat = || {
            let values = [office.concert.uuid().into(), BookingId::new().uuid().into()];
            sql(&other, "INSERT INTO claim (concert, seat, booking) VALUES ($1, 2, $2)", values)
        };
        wait_until("the claim to have the seat", Duration::from_secs(20), async || {
            let onlooker = office.database.begin().await.unwrap();
            onlooker.execute_unprepared("SET LOCAL lock_timeout = '50ms'").await.unwrap();
            let taken = onlooker.execute_raw(take_seat()).await;
            onlooker.rollback().await.unwrap();
            taken.err().map(drop).ok_or_else(|| "the seat is to be had".to_owned())
        })
        .await;
        // It has the seat and waits for the fan's row; now the seat is waited for by whoever has the row.
        let savepoint = other.begin().await.unwrap();
        savepoint.execute_raw(take_seat()).await.expect("the claim is the one that is ended");
        savepoint.rollback().await.unwrap();
    }
    other.rollback().await.unwrap();
    let claimed = claim.await.unwrap();
    assert!(matches!(claimed, Ok(Ok(()))), "{claimed:?}");
    assert_eq!(office.claims().await, [1, 2]);
}

/// Whoever has locked a seat may stand still: only who wants that seat has to come again.
#[tokio::test]
#[ignore = "needs Postgres: scripts/test runs it"]
async fn a_claim_that_waits_for_a_lock_is_refused_alone() {
    let database = mesh_test::postgres::create_database().await;
    let office = Office::open(database.url()).await;
    let other = office.database.begin().await.unwrap();
    let take_seat = sql(
        &other,
        "INSERT INTO claim (concert, seat, booking) VALUES ($1, 2, $2)",
        [office.concert.uuid().into(), BookingId::new().uuid().into()],
    );
    other.execute_raw(take_seat).await.unwrap();

    let claims = [1, 2, 3].map(|seat| office.store.claim(office.booking_of(UserId::new(), &[seat])));
    let claimed = futures_util::future::join_all(claims).await;
    let reasons = claimed.iter().map(|claimed| match claimed {
        Ok(Ok(())) => "claimed",
        Ok(Err(_)) => "conflict",
        Err(failure) => failure.info().reason,
    });
    assert_eq!(reasons.collect::<Vec<_>>(), ["claimed", "RACE_LOST", "claimed"]);
    other.rollback().await.unwrap();
    assert_eq!(office.claims().await, [1, 3]);
}

/// What Postgres says when it can't write its log: that shows with the commit, not before.
#[tokio::test]
#[ignore = "needs Postgres: scripts/test runs it"]
async fn nothing_is_acknowledged_while_the_disk_is_full() {
    let database = mesh_test::postgres::create_database().await;
    let office = Office::open(database.url()).await;
    let writer = office.database.writer();
    for text in [
        "CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$",
        "CREATE CONSTRAINT TRIGGER full_disk AFTER INSERT OR UPDATE ON booking
         DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fill()",
        "ALTER TABLE booking DISABLE TRIGGER full_disk",
    ] {
        writer.execute_unprepared(text).await.unwrap();
    }
    let paying = office.claimed(UserId::new(), &[1]).await;
    writer.execute_unprepared("ALTER TABLE booking ENABLE TRIGGER full_disk").await.unwrap();
    let new = office.booking_of(UserId::new(), &[2]);
    let (claimed, confirmed) = tokio::join!(office.store.claim(new.clone()), office.store.confirm(&paying));
    let reasons = [claimed.map(drop).unwrap_err().info().reason, confirmed.unwrap_err().info().reason];
    assert_eq!(reasons, ["DATABASE_UNAVAILABLE"; 2]);
    assert_eq!((office.claims().await, office.stored(&paying).await), (vec![1], paying.clone()));

    writer.execute_unprepared("ALTER TABLE booking DISABLE TRIGGER full_disk").await.unwrap();
    office.store.claim(new).await.unwrap().unwrap();
    assert!(office.store.confirm(&paying).await.unwrap());
    assert_eq!(office.claims().await, [1, 2]);
}

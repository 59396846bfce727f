//! What every adapter of the port must do. Each test is run against each adapter.

use chrono::{DateTime, TimeDelta, Utc};
use mesh::id::{ConcertId, UserId};

use super::{Granted, Holds, Released, Revision, SeatState, Sold, Wish};
use crate::domain::hold::{self, Hold};

/// Runs each test against each adapter.
macro_rules! contract {
    ($($name:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Sale::open(super::Holds::memory()).await).await;
            })*
        }
    };
}

contract! {
    all_seats_or_none,
    one_of_many_wins,
    a_fan_has_a_limit,
    a_key_holds_once,
    an_expired_hold_frees_its_seats,
    an_end_only_moves_later,
    sold_seats_stay_sold_until_freed,
    settling_twice_is_once,
    a_hold_that_lost_its_seats_frees_none,
    a_watcher_sees_each_change,
    an_old_revision_starts_over,
    an_unknown_concert_is_not_loaded,
    a_concert_that_nobody_asks_for_is_forgotten,
    a_hold_that_is_being_booked_is_not_given_back,
}

struct Sale {
    holds: Holds,
    concert: ConcertId,
    now: DateTime<Utc>,
}

const PLACES: u32 = 20;

impl Sale {
    /// A concert of twenty places of which the last is sold.
    async fn open(holds: Holds) -> Self {
        let concert = ConcertId::new();
        let sold = Sold { places: PLACES, seats: vec![PLACES - 1], fans: vec![(UserId::new(), 1)] };
        holds.load(concert, sold).await;
        Self { holds, concert, now: DateTime::from_timestamp(1_800_000_000, 0).unwrap() }
    }

    fn wish(&self, fan: UserId, seats: &[u32], key: &str) -> Wish {
        let hold = Hold {
            id: hold::new_id(fan),
            concert: self.concert,
            fan,
            seats: seats.to_vec(),
            is_adjacent: true,
            create_time: self.now,
            expire_time: self.now + TimeDelta::minutes(10),
        };
        Wish { hold, limit: 4, request_key: key.to_owned(), fingerprint: [seats[0] as u8; 32] }
    }

    async fn hold(&self, fan: UserId, seats: &[u32], key: &str) -> Granted {
        self.holds.hold(self.wish(fan, seats, key), self.now).await
    }

    async fn held(&self, fan: UserId, seats: &[u32], key: &str) -> Hold {
        match self.hold(fan, seats, key).await {
            Granted::Held(hold) => hold,
            other => panic!("{other:?}"),
        }
    }

    async fn letters(&self) -> String {
        let snapshot = self.holds.snapshot(self.concert).await.unwrap();
        snapshot.states.iter().map(|state| *state as u8 as char).collect()
    }
}

async fn all_seats_or_none(sale: Sale) {
    let (ann, bob) = (UserId::new(), UserId::new());
    let hold = sale.held(ann, &[0, 1], "k").await;
    assert_eq!(sale.hold(bob, &[1, 2, 19], "k").await, Granted::Taken(vec![1, 19]));
    assert_eq!(sale.letters().await, "HHAAAAAAAAAAAAAAAAAS");
    assert_eq!(sale.holds.find(hold.id, sale.now).await, Some(hold.clone()));
    assert_eq!(sale.holds.release(hold.id, sale.now).await, Released::GivenBack(hold.clone()));
    assert_eq!(sale.holds.release(hold.id, sale.now).await, Released::Gone);
    assert_eq!(sale.letters().await, "AAAAAAAAAAAAAAAAAAAS");
    sale.held(bob, &[1, 2], "k2").await;
}

async fn one_of_many_wins(sale: Sale) {
    let wishes = (0..500).map(|_| sale.hold(UserId::new(), &[3, 4], "k"));
    let granted = futures_util::future::join_all(wishes).await;
    assert_eq!(granted.iter().filter(|granted| matches!(granted, Granted::Held(_))).count(), 1);
    assert!(granted.iter().all(|granted| matches!(granted, Granted::Held(_) | Granted::Taken(_))));
}

async fn a_fan_has_a_limit(sale: Sale) {
    let fan = UserId::new();
    let first = sale.held(fan, &[0, 1, 2], "a").await;
    assert_eq!(sale.hold(fan, &[3, 4], "b").await, Granted::LimitExceeded { remaining: 1 });
    sale.holds.settle(sale.concert, fan, &first.seats, Some(first.id)).await;
    assert_eq!(sale.hold(fan, &[3, 4], "c").await, Granted::LimitExceeded { remaining: 1 });
    sale.held(fan, &[3], "d").await;
    sale.holds.free(sale.concert, fan, &first.seats).await;
    sale.held(fan, &[4, 5, 6], "e").await;
}

async fn a_key_holds_once(sale: Sale) {
    let (ann, bob) = (UserId::new(), UserId::new());
    let hold = sale.held(ann, &[0], "k").await;
    assert_eq!(sale.hold(ann, &[0], "k").await, Granted::Replayed(hold.id));
    assert_eq!(sale.hold(ann, &[1], "k").await, Granted::KeyReused);
    let granted = async |fan, key, fingerprint| {
        sale.holds.find_granted(sale.concert, fan, key, &[fingerprint; 32]).await
    };
    assert_eq!(granted(ann, "k", 0).await, Some(Granted::Replayed(hold.id)));
    assert_eq!(granted(ann, "k", 1).await, Some(Granted::KeyReused));
    assert_eq!(granted(ann, "l", 0).await, None);
    assert_eq!(granted(bob, "k", 0).await, None);
    sale.held(bob, &[1], "k").await;
    sale.holds.release(hold.id, sale.now).await;
    assert_eq!(sale.hold(ann, &[0], "k").await, Granted::Replayed(hold.id), "a key is used up");
}

async fn an_expired_hold_frees_its_seats(sale: Sale) {
    let hold = sale.held(UserId::new(), &[0], "k").await;
    let late = hold.expire_time;
    assert_eq!(sale.holds.release_expired(late - TimeDelta::seconds(1)).await, 0);
    assert_eq!(sale.holds.find(hold.id, late).await, None, "expired, though nobody swept yet");
    assert_eq!(sale.holds.release_expired(late).await, 1);
    assert_eq!(sale.holds.release_expired(late).await, 0);
    assert_eq!(sale.letters().await, "AAAAAAAAAAAAAAAAAAAS");
}

async fn an_end_only_moves_later(sale: Sale) {
    let hold = sale.held(UserId::new(), &[0], "k").await;
    let earlier = sale.holds.extend(hold.id, sale.now, sale.now).await.unwrap();
    assert_eq!(earlier.expire_time, hold.expire_time);
    let until = hold.expire_time + TimeDelta::minutes(1);
    assert_eq!(sale.holds.extend(hold.id, until, sale.now).await.unwrap().expire_time, until);
    assert_eq!(sale.holds.release_expired(hold.expire_time).await, 0);
    assert_eq!(sale.holds.release_expired(until).await, 1);
    assert_eq!(sale.holds.extend(hold.id, until, until).await, None);
}

async fn sold_seats_stay_sold_until_freed(sale: Sale) {
    let fan = UserId::new();
    let hold = sale.held(fan, &[0, 1], "k").await;
    sale.holds.settle(sale.concert, fan, &hold.seats, Some(hold.id)).await;
    assert_eq!(sale.holds.find(hold.id, sale.now).await, None);
    assert_eq!(sale.holds.release_expired(hold.expire_time).await, 0);
    assert_eq!(sale.letters().await, "SSAAAAAAAAAAAAAAAAAS");
    assert_eq!(sale.holds.unsold().await, [(sale.concert, PLACES - 3)]);
    sale.holds.free(sale.concert, fan, &hold.seats).await;
    assert_eq!(sale.letters().await, "AAAAAAAAAAAAAAAAAAAS");
    assert_eq!(sale.holds.unsold().await, [(sale.concert, PLACES - 1)]);
}

async fn settling_twice_is_once(sale: Sale) {
    let fan = UserId::new();
    for _ in 0..2 {
        sale.holds.settle(sale.concert, fan, &[0, 1], None).await;
    }
    assert_eq!(sale.holds.unsold().await, [(sale.concert, PLACES - 3)]);
    sale.held(fan, &[2, 3], "k").await;
    for _ in 0..2 {
        sale.holds.free(sale.concert, fan, &[0, 1]).await;
    }
    assert_eq!(sale.letters().await, "AAHHAAAAAAAAAAAAAAAS");
    sale.held(fan, &[0, 1], "l").await;
}

async fn a_hold_that_lost_its_seats_frees_none(sale: Sale) {
    let hold = sale.held(UserId::new(), &[0, 1], "k").await;
    sale.holds.settle(sale.concert, UserId::new(), &[0], None).await;
    sale.holds.release(hold.id, sale.now).await;
    assert_eq!(sale.letters().await, "SAAAAAAAAAAAAAAAAAAS");
    assert_eq!(sale.holds.unsold().await, [(sale.concert, PLACES - 2)]);
}

async fn a_watcher_sees_each_change(sale: Sale) {
    let start = sale.holds.snapshot(sale.concert).await.unwrap().revision;
    let mut watcher = sale.holds.watch(sale.concert).await.unwrap();
    let hold = sale.held(UserId::new(), &[0, 1], "k").await;
    watcher.changed().await.unwrap();
    sale.holds.settle(sale.concert, hold.fan, &[0], None).await;
    let changes = sale.holds.changes_since(sale.concert, start).await.unwrap();
    assert_eq!(
        changes.seats,
        Some(vec![(0, SeatState::Sold), (1, SeatState::Held)]),
        "each once, as it is now"
    );
    let none = sale.holds.changes_since(sale.concert, changes.revision).await.unwrap();
    assert_eq!(none.seats, Some(Vec::new()));
    assert_eq!(changes.revision.to_string().parse(), Ok(changes.revision));
}

async fn an_old_revision_starts_over(sale: Sale) {
    let start = sale.holds.snapshot(sale.concert).await.unwrap().revision;
    let foreign = Revision { epoch: start.epoch ^ 1, ..start };
    assert_eq!(sale.holds.changes_since(sale.concert, foreign).await.unwrap().seats, None);
    let future = Revision { number: start.number + 1, ..start };
    assert_eq!(sale.holds.changes_since(sale.concert, future).await.unwrap().seats, None);
    for turn in 0..3000 {
        let hold = sale.held(UserId::new(), &[0], &turn.to_string()).await;
        sale.holds.release(hold.id, sale.now).await;
    }
    assert_eq!(sale.holds.changes_since(sale.concert, start).await.unwrap().seats, None);
}

async fn an_unknown_concert_is_not_loaded(sale: Sale) {
    let other = ConcertId::new();
    let mut wish = sale.wish(UserId::new(), &[0], "k");
    wish.hold.concert = other;
    assert_eq!(sale.holds.hold(wish, sale.now).await, Granted::NotLoaded);
    assert!(sale.holds.snapshot(other).await.is_none());
    assert!(sale.holds.watch(other).await.is_none());
}

async fn a_concert_that_nobody_asks_for_is_forgotten(sale: Sale) {
    let is_loaded = async || sale.holds.snapshot(sale.concert).await.is_some();
    let forget = async || {
        let forgotten = sale.holds.forget_unused().await;
        forgotten + sale.holds.forget_unused().await
    };
    sale.holds.forget_unused().await;
    assert!(is_loaded().await, "it was asked for since the last time");
    let watcher = sale.holds.watch(sale.concert).await;
    assert_eq!(forget().await, 0, "somebody watches");
    drop(watcher);
    let hold = sale.held(UserId::new(), &[0], "k").await;
    assert_eq!(forget().await, 0, "a seat is held");
    sale.holds.release(hold.id, sale.now).await;
    assert_eq!(forget().await, 0, "its key may come again");
    sale.holds.release_expired(sale.now + TimeDelta::days(1)).await;
    assert_eq!(forget().await, 1);
    assert!(!is_loaded().await);
}

async fn a_hold_that_is_being_booked_is_not_given_back(sale: Sale) {
    let hold = sale.held(UserId::new(), &[0], "k").await;
    let until = sale.now + TimeDelta::seconds(15);
    let begin = async || sale.holds.begin_booking(hold.id, until, sale.now).await;
    assert_eq!(begin().await, Some(hold.clone()), "it lasts longer than that anyway");
    assert_eq!(sale.holds.release(hold.id, sale.now).await, Released::BeingBooked);
    assert_eq!(sale.letters().await, "HAAAAAAAAAAAAAAAAAAS");
    sale.holds.end_booking(hold.id).await;
    begin().await.unwrap();
    let released = sale.holds.release(hold.id, until).await;
    assert_eq!(released, Released::GivenBack(hold.clone()), "whoever booked it is gone");
    assert_eq!(begin().await, None);

    let second = sale.held(UserId::new(), &[0], "l").await;
    sale.holds.begin_booking(second.id, until, sale.now).await.unwrap();
    sale.holds.end_booking(second.id).await;
    assert_eq!(sale.holds.release(second.id, sale.now).await, Released::GivenBack(second));
}

//! What every adapter of the port must do. Each test is run against each adapter.

use chrono::TimeDelta;
use mesh::{
    clock::Clock,
    id::{ConcertId, Id, UserId},
    redis::Redis,
    shutdown::Shutdown,
};

use mesh_test::wait_until;

use super::{Changes, Granted, Holds, Released, Revision, SeatState, Sold, Wish};
use crate::domain::hold::{self, Hold};

/// Runs each test against each adapter.
macro_rules! contract {
    ($($name:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Sale::in_memory().await).await;
            })*
        }

        mod redis {
            $(#[tokio::test]
            #[ignore = "needs Redis: scripts/test runs it"]
            async fn $name() {
                let server = mesh_test::Redis::start().await;
                super::$name(super::Sale::in_redis(&server.url()).await).await;
            })*
        }

        /// One cluster for all, emptied in between, as it takes seconds to come up. The concerts are spread over its servers.
        #[tokio::test]
        #[ignore = "needs Redis: scripts/test runs it"]
        async fn a_cluster_keeps_the_contract() {
            let mut cluster = mesh_test::RedisCluster::start().await;
            $(
                $name(Sale::in_redis(&cluster.url()).await).await;
                cluster.nodes().iter().for_each(|node| assert_eq!(node.command("FLUSHALL"), "+OK"));
            )*
        }
    };
}

contract! {
    all_seats_or_none,
    one_of_many_wins,
    who_comes_at_once_gets_their_own_answer,
    a_fan_has_a_limit,
    a_key_holds_once,
    an_expired_hold_frees_its_seats,
    all_that_expired_is_released_at_once,
    an_end_only_moves_later,
    sold_seats_stay_sold_until_freed,
    settling_twice_is_once,
    a_hold_that_lost_its_seats_frees_none,
    a_hold_behind_a_sale_comes_back_to_light,
    what_a_settled_hold_had_beside_is_free,
    a_watcher_sees_each_change,
    an_old_revision_starts_over,
    an_unknown_concert_is_not_loaded,
    a_concert_that_nobody_asks_for_is_forgotten,
    a_hold_that_is_being_booked_is_not_given_back,
    a_load_that_was_overtaken_is_refused,
    a_hold_ends_though_its_concert_is_not_loaded,
    concerts_whose_ids_end_alike_are_told_apart,
    what_a_fan_holds_still_counts_after_a_load,
}

struct Sale {
    holds: Holds,
    concert: ConcertId,
    /// The clock of holds in memory; Redis has its own.
    clock: Clock,
}

const PLACES: u32 = 20;
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);
const LIFE: TimeDelta = TimeDelta::minutes(10);

impl Sale {
    async fn in_memory() -> Self {
        let clock = Clock::manual(Clock::system().now());
        Self::open(Holds::memory(clock.clone()), clock).await
    }

    async fn in_redis(url: &str) -> Self {
        let redis = Redis::start(&url.parse().unwrap());
        redis.wait(&Shutdown::new()).await;
        Self::open(Holds::redis(redis), Clock::manual(Clock::system().now())).await
    }

    /// A concert of twenty places of which the last is sold.
    async fn open(holds: Holds, clock: Clock) -> Self {
        let sale = Self { holds, concert: ConcertId::new(), clock };
        assert!(sale.load(sale.begin_load().await).await);
        sale
    }

    async fn begin_load(&self) -> u64 {
        self.holds.begin_load(self.concert).await.unwrap()
    }

    async fn load(&self, begun_at: u64) -> bool {
        let sold = Sold { places: PLACES, seats: vec![PLACES - 1], fans: vec![(UserId::new(), 1)] };
        self.holds.load(self.concert, sold, Some(begun_at)).await.unwrap()
    }

    fn advance(&self, by: TimeDelta) {
        self.clock.advance(by);
        if let Holds::Redis(redis) = &self.holds {
            redis.move_clock(by);
        }
    }

    fn wish(&self, fan: UserId, seats: &[u32], key: &str) -> Wish {
        let create_time = self.clock.now();
        let hold = Hold {
            id: hold::new_id(fan, self.concert),
            concert: self.concert,
            fan,
            seats: seats.to_vec(),
            is_adjacent: true,
            create_time,
            expire_time: create_time + LIFE,
        };
        Wish { hold, limit: 4, request_key: key.to_owned(), fingerprint: [seats[0] as u8; 32] }
    }

    async fn hold(&self, fan: UserId, seats: &[u32], key: &str) -> Granted {
        self.holds.hold(self.wish(fan, seats, key)).await.unwrap()
    }

    async fn held(&self, fan: UserId, seats: &[u32], key: &str) -> Hold {
        match self.hold(fan, seats, key).await {
            Granted::Held(hold) => hold,
            other => panic!("{other:?}"),
        }
    }

    async fn find(&self, hold: &Hold) -> Option<Hold> {
        self.holds.find(hold.id).await.unwrap()
    }

    async fn release(&self, hold: &Hold) -> Released {
        self.holds.release(hold.id).await.unwrap()
    }

    async fn release_expired(&self) -> usize {
        self.holds.release_expired().await.unwrap()
    }

    async fn settle(&self, fan: UserId, seats: &[u32], hold: Option<&Hold>) {
        self.holds.settle(self.concert, fan, seats, hold.map(|hold| hold.id)).await.unwrap();
    }

    async fn free(&self, fan: UserId, seats: &[u32]) {
        self.holds.free(self.concert, fan, seats).await.unwrap();
    }

    async fn revision(&self) -> Revision {
        self.holds.snapshot(self.concert).await.unwrap().unwrap().revision
    }

    async fn changes_since(&self, since: Revision) -> Changes {
        self.holds.changes_since(self.concert, since).await.unwrap().unwrap()
    }

    async fn unsold(&self) -> Vec<(ConcertId, u32)> {
        self.holds.unsold().await.unwrap()
    }

    async fn letters(&self) -> String {
        let snapshot = self.holds.snapshot(self.concert).await.unwrap().unwrap();
        snapshot.states.iter().map(|state| *state as u8 as char).collect()
    }
}

async fn all_seats_or_none(sale: Sale) {
    let (ann, bob) = (UserId::new(), UserId::new());
    let hold = sale.held(ann, &[0, 1], "k").await;
    assert_eq!(hold.expire_time - hold.create_time, LIFE);
    assert_eq!(sale.hold(bob, &[1, 2, 19], "k").await, Granted::Taken(vec![1, 19]));
    assert_eq!(
        sale.hold(bob, &[3, PLACES], "k").await,
        Granted::Taken(vec![PLACES]),
        "there is no such seat"
    );
    assert_eq!(sale.letters().await, "HHAAAAAAAAAAAAAAAAAS");
    assert_eq!(sale.find(&hold).await, Some(hold.clone()));
    assert_eq!(sale.release(&hold).await, Released::GivenBack(hold.clone()));
    assert_eq!(sale.release(&hold).await, Released::Gone);
    assert_eq!(sale.letters().await, "AAAAAAAAAAAAAAAAAAAS");
    sale.held(bob, &[1, 2], "k2").await;
}

async fn who_comes_at_once_gets_their_own_answer(sale: Sale) {
    let [ann, bob, cem] = [UserId::new(), UserId::new(), UserId::new()];
    let booked = sale.held(ann, &[0, 1], "k").await;
    let given_back = sale.held(bob, &[2], "k").await;
    let settled = sale.held(bob, &[3], "l").await;
    let mut watcher = sale.holds.watch(sale.concert).await.unwrap().unwrap();
    let before = sale.revision().await;
    let patience = TimeDelta::seconds(15);
    let stranger = sale.wish(cem, &[9], "m").hold;
    let (held, taken, again, begun, released, (), found, unknown, freed) = tokio::join!(
        sale.hold(cem, &[4, 5], "k"),
        sale.hold(ann, &[5, 6], "l"),
        sale.hold(cem, &[4, 5], "k"),
        sale.holds.begin_booking(booked.id, patience),
        sale.release(&given_back),
        sale.settle(bob, &[3], Some(&settled)),
        sale.find(&settled),
        sale.find(&stranger),
        sale.free(cem, &[PLACES - 1]),
    );
    let Granted::Held(held) = held else { panic!("{held:?}") };
    assert_eq!((held.fan, held.seats), (cem, vec![4, 5]));
    assert_eq!(taken, Granted::Taken(vec![5]));
    assert_eq!(again, Granted::Replayed(held.id));
    assert_eq!(begun.unwrap(), Some(booked.clone()));
    assert_eq!(released, Released::GivenBack(given_back));
    assert_eq!((found, unknown, freed), (None, None, ()));
    assert_eq!(sale.letters().await, "HHASHHAAAAAAAAAAAAAA");
    assert_eq!(sale.unsold().await, [(sale.concert, PLACES - 1)]);
    watcher.changed().await.unwrap();
    let letter = |(seat, state): (u32, SeatState)| (seat, state as u8 as char);
    let changes = sale.changes_since(before).await.seats.unwrap();
    let mut changed: Vec<_> = changes.into_iter().map(letter).collect();
    changed.sort_unstable();
    assert_eq!(changed, [(2, 'A'), (3, 'S'), (4, 'H'), (5, 'H'), (19, 'A')]);
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
    sale.settle(fan, &first.seats, Some(&first)).await;
    assert_eq!(sale.hold(fan, &[3, 4], "c").await, Granted::LimitExceeded { remaining: 1 });
    sale.held(fan, &[3], "d").await;
    sale.free(fan, &first.seats).await;
    sale.held(fan, &[4, 5, 6], "e").await;
}

async fn a_key_holds_once(sale: Sale) {
    let (ann, bob) = (UserId::new(), UserId::new());
    let hold = sale.held(ann, &[0], "k").await;
    assert_eq!(sale.hold(ann, &[0], "k").await, Granted::Replayed(hold.id));
    assert_eq!(sale.hold(ann, &[1], "k").await, Granted::KeyReused);
    let granted = async |fan, key, fingerprint| {
        sale.holds.find_granted(sale.concert, fan, key, &[fingerprint; 32]).await.unwrap()
    };
    assert_eq!(granted(ann, "k", 0).await, Some(Granted::Replayed(hold.id)));
    assert_eq!(granted(ann, "k", 1).await, Some(Granted::KeyReused));
    assert_eq!(granted(ann, "l", 0).await, None);
    assert_eq!(granted(bob, "k", 0).await, None);
    sale.held(bob, &[1], "k").await;
    sale.release(&hold).await;
    assert_eq!(sale.hold(ann, &[0], "k").await, Granted::Replayed(hold.id), "a key is used up");
}

async fn an_expired_hold_frees_its_seats(sale: Sale) {
    let hold = sale.held(UserId::new(), &[0], "k").await;
    sale.advance(LIFE - TimeDelta::seconds(30));
    assert_eq!(sale.release_expired().await, 0);
    sale.advance(TimeDelta::seconds(30));
    assert_eq!(sale.find(&hold).await, None, "expired, though nobody swept yet");
    assert_eq!(sale.release(&hold).await, Released::Gone);
    assert_eq!(sale.release_expired().await, 1);
    assert_eq!(sale.release_expired().await, 0);
    assert_eq!(sale.letters().await, "AAAAAAAAAAAAAAAAAAAS");
    sale.held(hold.fan, &[0, 1, 2, 3], "l").await;
}

async fn all_that_expired_is_released_at_once(sale: Sale) {
    const HOLDS: u32 = 350;
    let sold = Sold { places: HOLDS, ..Sold::default() };
    let crowded = Sale { concert: ConcertId::new(), ..sale };
    let begun_at = crowded.begin_load().await;
    assert!(crowded.holds.load(crowded.concert, sold, Some(begun_at)).await.unwrap());
    for seat in 0..HOLDS {
        crowded.held(UserId::new(), &[seat], "k").await;
    }
    crowded.advance(LIFE);
    assert_eq!(crowded.release_expired().await, HOLDS as usize);
    assert_eq!(crowded.letters().await, "A".repeat(HOLDS as usize));
}

async fn an_end_only_moves_later(sale: Sale) {
    let hold = sale.held(UserId::new(), &[0], "k").await;
    let extend = async |life| sale.holds.extend(&hold, life).await.unwrap();
    assert_eq!(extend(TimeDelta::zero()).await, Some(hold.clone()));
    let longer = LIFE + TimeDelta::minutes(1);
    assert_eq!(extend(longer).await.unwrap().expire_time, hold.create_time + longer);
    sale.advance(LIFE);
    assert_eq!(sale.release_expired().await, 0);
    assert_eq!(extend(TimeDelta::days(1)).await.unwrap().expire_time, hold.create_time + hold::MAX_LIFE);
    sale.advance(hold::MAX_LIFE - LIFE);
    assert_eq!(extend(longer).await, None);
    assert_eq!(sale.release_expired().await, 1);
}

async fn sold_seats_stay_sold_until_freed(sale: Sale) {
    let fan = UserId::new();
    let hold = sale.held(fan, &[0, 1], "k").await;
    sale.settle(fan, &hold.seats, Some(&hold)).await;
    assert_eq!(sale.find(&hold).await, None);
    sale.advance(LIFE);
    assert_eq!(sale.release_expired().await, 0);
    assert_eq!(sale.letters().await, "SSAAAAAAAAAAAAAAAAAS");
    assert_eq!(sale.unsold().await, [(sale.concert, PLACES - 3)]);
    sale.free(fan, &hold.seats).await;
    assert_eq!(sale.letters().await, "AAAAAAAAAAAAAAAAAAAS");
    assert_eq!(sale.unsold().await, [(sale.concert, PLACES - 1)]);
}

async fn settling_twice_is_once(sale: Sale) {
    let fan = UserId::new();
    for _ in 0..2 {
        sale.settle(fan, &[0, 1], None).await;
    }
    assert_eq!(sale.unsold().await, [(sale.concert, PLACES - 3)]);
    sale.held(fan, &[2, 3], "k").await;
    for _ in 0..2 {
        sale.free(fan, &[0, 1]).await;
    }
    assert_eq!(sale.letters().await, "AAHHAAAAAAAAAAAAAAAS");
    sale.held(fan, &[0, 1], "l").await;
}

async fn a_hold_that_lost_its_seats_frees_none(sale: Sale) {
    let hold = sale.held(UserId::new(), &[0, 1], "k").await;
    sale.settle(UserId::new(), &[0], None).await;
    sale.release(&hold).await;
    assert_eq!(sale.letters().await, "SAAAAAAAAAAAAAAAAAAS");
    assert_eq!(sale.unsold().await, [(sale.concert, PLACES - 2)]);
}

async fn a_hold_behind_a_sale_comes_back_to_light(sale: Sale) {
    let hold = sale.held(UserId::new(), &[0, 1], "k").await;
    let buyer = UserId::new();
    sale.settle(buyer, &[0], None).await;
    sale.free(buyer, &[0]).await;
    assert_eq!(sale.letters().await, "HHAAAAAAAAAAAAAAAAAS", "it is still held");
    assert_eq!(sale.hold(buyer, &[0], "k").await, Granted::Taken(vec![0]));
    sale.release(&hold).await;
    assert_eq!(sale.letters().await, "AAAAAAAAAAAAAAAAAAAS");
}

async fn what_a_settled_hold_had_beside_is_free(sale: Sale) {
    let hold = sale.held(UserId::new(), &[0, 1, 2], "k").await;
    sale.settle(hold.fan, &[1], Some(&hold)).await;
    assert_eq!(sale.letters().await, "ASAAAAAAAAAAAAAAAAAS");
    assert_eq!(sale.unsold().await, [(sale.concert, PLACES - 2)]);
}

async fn a_watcher_sees_each_change(sale: Sale) {
    let start = sale.revision().await;
    let mut watcher = sale.holds.watch(sale.concert).await.unwrap().unwrap();
    let hold = sale.held(UserId::new(), &[0, 1], "k").await;
    watcher.changed().await.unwrap();
    sale.settle(hold.fan, &[0], None).await;
    let each_once = Some(vec![(0, SeatState::Sold), (1, SeatState::Held)]);
    let changes = wait_until("the changes to be told", PATIENCE, async || {
        let changes = sale.changes_since(start).await;
        if changes.seats == each_once { Ok(changes) } else { Err(format!("{changes:?}")) }
    })
    .await;
    assert_eq!(sale.changes_since(changes.revision).await.seats, Some(Vec::new()));
    assert_eq!(changes.revision.to_string().parse(), Ok(changes.revision));
}

async fn an_old_revision_starts_over(sale: Sale) {
    let start = sale.revision().await;
    let foreign = Revision { epoch: start.epoch ^ 1, ..start };
    assert_eq!(sale.changes_since(foreign).await.seats, None);
    let future = Revision { number: start.number + 1, ..start };
    assert_eq!(sale.changes_since(future).await.seats, None);
    for turn in 0..2500 {
        let hold = sale.held(UserId::new(), &[0], &turn.to_string()).await;
        sale.release(&hold).await;
    }
    assert_eq!(sale.changes_since(start).await.seats, None);
}

async fn an_unknown_concert_is_not_loaded(sale: Sale) {
    let other = ConcertId::new();
    let mut wish = sale.wish(UserId::new(), &[0], "k");
    wish.hold.concert = other;
    assert_eq!(sale.holds.hold(wish).await.unwrap(), Granted::NotLoaded);
    assert!(sale.holds.snapshot(other).await.unwrap().is_none());
    assert!(sale.holds.watch(other).await.unwrap().is_none());
    assert!(sale.holds.changes_since(other, sale.revision().await).await.unwrap().is_none());
}

async fn a_concert_that_nobody_asks_for_is_forgotten(sale: Sale) {
    let forget = async || {
        let forgotten = sale.holds.forget_unused().await.unwrap();
        forgotten + sale.holds.forget_unused().await.unwrap()
    };
    let hold = sale.held(UserId::new(), &[0], "k").await;
    let watcher = sale.holds.watch(sale.concert).await.unwrap();
    assert_eq!(forget().await, 0, "a seat is held");
    sale.release(&hold).await;
    sale.advance(TimeDelta::days(1));
    sale.release_expired().await;
    assert_eq!(forget().await, 0, "somebody watches");
    drop(watcher);
    assert_eq!(forget().await, 1);
    assert_eq!(sale.unsold().await, []);
}

async fn a_hold_that_is_being_booked_is_not_given_back(sale: Sale) {
    let hold = sale.held(UserId::new(), &[0], "k").await;
    let patience = TimeDelta::seconds(15);
    let begin = async |hold: &Hold| sale.holds.begin_booking(hold.id, patience).await.unwrap();
    assert_eq!(begin(&hold).await, Some(hold.clone()), "it lasts longer than that anyway");
    assert_eq!(sale.release(&hold).await, Released::BeingBooked);
    assert_eq!(sale.letters().await, "HAAAAAAAAAAAAAAAAAAS");
    sale.holds.end_booking(&hold).await.unwrap();
    begin(&hold).await.unwrap();
    sale.advance(patience);
    assert_eq!(sale.release(&hold).await, Released::GivenBack(hold.clone()), "whoever booked it is gone");
    assert_eq!(begin(&hold).await, None);

    let second = sale.held(UserId::new(), &[0], "l").await;
    begin(&second).await.unwrap();
    sale.holds.end_booking(&second).await.unwrap();
    assert_eq!(sale.release(&second).await, Released::GivenBack(second));

    let third = sale.held(UserId::new(), &[0], "m").await;
    sale.advance(LIFE - TimeDelta::seconds(5));
    let longer = begin(&third).await.unwrap();
    assert!(longer.expire_time > third.expire_time + TimeDelta::seconds(5), "it is kept while it is booked");
}

async fn a_load_that_was_overtaken_is_refused(sale: Sale) {
    let fan = UserId::new();
    let hold = sale.held(fan, &[0], "k").await;
    let before = sale.revision().await;
    let mut watcher = sale.holds.watch(sale.concert).await.unwrap().unwrap();
    sale.holds.unload(sale.concert).await.unwrap();
    watcher.changed().await.unwrap();
    assert_eq!(sale.hold(fan, &[1], "l").await, Granted::NotLoaded);

    for change in 0..3 {
        let begun_at = sale.begin_load().await;
        match change {
            0 => sale.settle(fan, &[2], None).await,
            1 => sale.free(fan, &[2]).await,
            _ => sale.holds.unload(sale.concert).await.unwrap(),
        }
        assert!(!sale.load(begun_at).await, "the database was read before change {change}");
    }
    let sold = Sold { places: PLACES, ..Sold::default() };
    assert!(sale.holds.load(sale.concert, sold, None).await.unwrap(), "who insists is heard");
    sale.holds.unload(sale.concert).await.unwrap();
    assert!(sale.load(sale.begin_load().await).await);
    assert!(sale.load(0).await, "it is loaded");
    assert_eq!(sale.letters().await, "HAAAAAAAAAAAAAAAAAAS", "what is held stays held");
    assert_eq!(sale.changes_since(before).await.seats, None, "a new epoch has begun");
    assert_eq!(sale.hold(fan, &[1, 2, 3, 4], "l").await, Granted::LimitExceeded { remaining: 3 });
    assert_eq!(sale.release(&hold).await, Released::GivenBack(hold));
    assert_eq!(sale.letters().await, "AAAAAAAAAAAAAAAAAAAS");
}

async fn a_hold_ends_though_its_concert_is_not_loaded(sale: Sale) {
    let fan = UserId::new();
    let booked = sale.held(fan, &[0], "k").await;
    let given_back = sale.held(fan, &[1], "l").await;
    sale.holds.unload(sale.concert).await.unwrap();
    sale.settle(fan, &booked.seats, Some(&booked)).await;
    sale.release(&given_back).await;
    assert_eq!((sale.find(&booked).await, sale.find(&given_back).await), (None, None));
    assert!(sale.load(sale.begin_load().await).await);
    assert_eq!(sale.letters().await, "AAAAAAAAAAAAAAAAAAAS", "the database said that nothing is sold");
}

async fn concerts_whose_ids_end_alike_are_told_apart(sale: Sale) {
    let fan = UserId::new();
    let first = sale.held(fan, &[1], "first").await;
    let mut bytes = *sale.concert.uuid().as_bytes();
    bytes[0] ^= 1;
    let other = Sale { concert: ConcertId::from_uuid(uuid::Uuid::from_bytes(bytes)), ..sale };
    assert!(other.load(other.begin_load().await).await);
    let second = other.held(fan, &[1], "second").await;
    for hold in [&first, &second] {
        assert_eq!(other.holds.find(hold.id).await.unwrap().map(|found| found.concert), Some(hold.concert));
    }
    assert!(matches!(other.holds.release(first.id).await, Ok(Released::GivenBack(_))));
    assert!(other.holds.find(first.id).await.unwrap().is_none());
    assert!(other.holds.begin_booking(second.id, LIFE).await.unwrap().is_some());
}

async fn what_a_fan_holds_still_counts_after_a_load(sale: Sale) {
    let fan = UserId::new();
    let hold = sale.held(fan, &[1, 2, 3], "first").await;
    sale.holds.unload(sale.concert).await.unwrap();
    assert!(sale.load(sale.begin_load().await).await);
    assert_eq!(sale.hold(fan, &[4, 5], "second").await, Granted::LimitExceeded { remaining: 1 });
    assert_eq!(sale.hold(UserId::new(), &[3, 4], "third").await, Granted::Taken(vec![3]));
    assert!(matches!(sale.holds.release(hold.id).await, Ok(Released::GivenBack(_))));
    sale.held(fan, &[2, 3, 4, 5], "fourth").await;
}

//! Holds on a Redis Cluster of three servers: sales of concerts that are spread over them, and what becomes of these when a
//! server dies and its part is taken over.

use std::time::Duration;

use chrono::TimeDelta;
use mesh::{
    id::{ConcertId, Id},
    redis::Redis,
    shutdown::Shutdown,
};
use mesh_test::{RedisCluster, wait_until};

use super::house::{House, PATIENCE, reason};
use crate::{
    domain::booking::State,
    holds::{Granted, Holds},
};

/// As many as leave none of three servers without one.
const CONCERTS: usize = 30;
/// Within which somebody is told that there are no holds: a call may take 2 s at least.
const AT_ONCE: Duration = Duration::from_secs(2);

/// A sale, and the server that its holds are on.
struct Placed {
    concert: ConcertId,
    server: usize,
}

/// Has a new fan buy a seat.
async fn buy(house: &mut House, concert: ConcertId, seat: &str) {
    house.concert = concert;
    let fan = house.fan_with(1000);
    let hold = house.hold(fan, &[seat]).await;
    assert_eq!(house.booked(fan, hold.id, "key").await.state, State::Confirmed);
}

/// Puts concerts on sale, and sells a seat of each.
async fn sell_everywhere(house: &mut House, cluster: &mut RedisCluster) -> Vec<Placed> {
    let (open_time, close_time) = (house.clock.now(), house.clock.now() + TimeDelta::days(1));
    let mut placed = Vec::new();
    for _ in 0..CONCERTS {
        let concert = house.concert_service.put_on_sale(open_time, close_time);
        buy(house, concert, "A-1-1").await;
        let is_there = format!("EXISTS booking:2:{{{}}}:meta", concert.uuid().simple());
        let mut has_it = cluster.nodes().iter().map(|node| node.command(&is_there) == ":1");
        placed.push(Placed { concert, server: has_it.position(|has_it| has_it).expect("one has it") });
    }
    placed
}

/// Kills a server; the next one takes its slots, as one that copied it would. What it knew is lost.
async fn take_over(cluster: &mut RedisCluster, dead: usize, while_dead: impl AsyncFnOnce()) {
    let nodes = cluster.nodes();
    let id = nodes[dead].ask("CLUSTER MYID").remove(1);
    let slots = nodes[dead].ask("CLUSTER NODES");
    let slots = slots.iter().find(|line| line.contains("myself")).expect("it knows itself");
    let slots = slots.rsplit(' ').next().expect("its slots").replace('-', " ");
    nodes[dead].stop();
    while_dead().await;
    let [heir, other] = [1, 2].map(|step| &nodes[(dead + step) % 3]);
    for node in [heir, other] {
        assert_eq!(node.command(&format!("CLUSTER FORGET {id}")), "+OK");
    }
    assert_eq!(heir.command(&format!("CLUSTER ADDSLOTSRANGE {slots}")), "+OK");
}

#[tokio::test]
#[ignore = "needs Redis: scripts/test runs it"]
async fn a_server_that_dies_stops_sales_at_once_and_nothing_is_sold_twice_when_another_takes_over() {
    let mut cluster = RedisCluster::start().await;
    let mut house = House::open().await;
    let redis = Redis::start(&cluster.url().parse().unwrap());
    redis.wait(&Shutdown::new()).await;
    house.shared.holds = Holds::redis(redis).into();
    let placed = sell_everywhere(&mut house, &mut cluster).await;
    for server in 0..3 {
        assert!(placed.iter().any(|placed| placed.server == server), "no concert is on server {server}");
    }

    let dead = placed[0].server;
    let of_dead = || placed.iter().filter(|placed| placed.server == dead);
    take_over(&mut cluster, dead, async || {
        for Placed { concert, .. } in of_dead() {
            house.concert = *concert;
            let fan = house.fan_with(1000);
            let refused =
                tokio::time::timeout(AT_ONCE, house.try_to_hold(&house.shared, fan, &["A-1-2"])).await;
            assert_eq!(reason(refused.expect("an answer at once")), "HOLDS_UNAVAILABLE");
        }
    })
    .await;

    for Placed { concert, .. } in &placed {
        house.concert = *concert;
        wait_until("holds to be had", PATIENCE, async || {
            let snapshot = house.shared.snapshot(&*house.sale().await).await;
            snapshot.map(drop).map_err(|error| error.to_string())
        })
        .await;
    }
    for Placed { concert, .. } in &placed {
        buy(&mut house, *concert, "A-2-1").await;
        let fan = house.fan_with(1000);
        let taken = house.ask_for(&house.shared, fan, &["A-1-1", "A-2-2"]).await;
        assert!(matches!(&taken, Granted::Taken(seats) if seats.len() == 1), "{taken:?}");
    }
}

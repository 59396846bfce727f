//! A Redis that forgets, or is away: holds are lost or can't be had, and nothing is sold twice.

use std::time::{Duration, Instant};

use boxoffice::api::{Api, Login, Reply, new_key};
use boxoffice_proto::booking::v1::ErrorReason as Booking;
use mesh_test::{Mode, wait_until};
use reqwest::Method;
use serde_json::json;

use crate::{
    crowd::{Crowd, concert},
    deployment::{Deployment, Plan, RECOVERY, report},
    stage::{Visit, assert_refused, fan, order, refusal},
};

/// How long it is away.
const AWAY: Duration = Duration::from_secs(20);
/// Within which holds can be had again.
const HEALING: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(30);
/// What a standing place costs, in won.
const STANDING: i64 = 55_000;

/// Tries to hold a place.
async fn hold(api: &Api, fan: &Login, concert: &str) -> Reply {
    let wish = json!({"bestAvailable": {"sectionId": "FLOOR", "quantity": 1}});
    api.post(&format!("/v1/concerts/{concert}/holds"), Some(&fan.access_token), &wish).await.unwrap()
}

#[tokio::test]
#[ignore = "needs Postgres and Redis: scripts/test runs it"]
async fn a_redis_that_forgets_costs_holds_and_no_seats() {
    let mut mesh = Plan::default().with_replicas("booking", 2).start().await;
    let crowd = Crowd::gather(&mesh, 5, 1).await;
    for _ in 0..2 {
        assert_eq!(mesh.redis.command("FLUSHALL"), "+OK");
        mesh.converges("Redis flushed", RECOVERY, &crowd).await;
    }
    mesh.redis.stop();
    mesh.redis.run().await;
    mesh.converges("Redis restarted", RECOVERY, &crowd).await;
    mesh.assert_all_run();
    mesh.assert_sound(crowd).await;
}

#[tokio::test]
#[ignore = "needs Postgres and Redis: scripts/test runs it"]
async fn without_redis_nothing_is_held_and_what_is_being_paid_is_finished() {
    let plan = Plan::default().with_replicas("booking", 2).with_line("booking", "payment");
    let mut mesh = plan.start().await;
    let (api, crowd) = (mesh.api.clone(), Crowd::gather(&mesh, 5, 1).await);
    let (concert, fan) = (concert(&api).await, fan(&api, STANDING).await);
    let (held, key) = (api.hold(&fan, &concert, &["FLOOR-1"]).await, new_key());
    for index in [0, 1] {
        mesh.line("booking", index, "payment").set_mode(Mode::Stall);
    }
    let buy = {
        let (api, token, key) = (api.clone(), fan.access_token.clone(), key.clone());
        tokio::spawn(async move {
            api.send(Method::POST, "/v1/bookings", Some(&token), Some(&key), Some(&order(&held)))
                .await
                .unwrap()
        })
    };
    wait_until_booking(&mesh, "request_key = $1 AND state = 1", &key).await;
    mesh.redis.stop();
    let end = Instant::now() + AWAY;
    for index in [0, 1] {
        mesh.line("booking", index, "payment").set_mode(Mode::Pass);
    }
    wait_until_booking(&mesh, "request_key = $1 AND state = 3", &key).await;
    buy.await.unwrap().expect_success("booking").unwrap();
    let refused = hold(&api, &fan, &concert).await;
    assert_refused("holding", &refused, &refusal(503, Booking::HoldsUnavailable, &[]));
    // The fault lasts so long.
    tokio::time::sleep_until(end.into()).await;

    mesh.redis.run().await;
    let begin = Instant::now();
    wait_until("holds to be had", HEALING, async || {
        let reply = hold(&api, &fan, &concert).await;
        reply.expect_success("holding").map(drop).map_err(|error| error.to_string())
    })
    .await;
    report("Redis away for 20 s, holds can be had", begin);
    mesh.converges("Redis away for 20 s", RECOVERY, &crowd).await;
    mesh.assert_all_run();
    mesh.assert_sound(crowd).await;
}

/// Waits until the booking of a key is so.
async fn wait_until_booking(mesh: &Deployment, condition: &str, key: &str) {
    wait_until(condition, PATIENCE, async || match mesh.count_bookings(condition, [key.into()]).await? {
        1 => Ok(()),
        _ => Err("not yet".to_owned()),
    })
    .await;
}

//! Neighbours that are slow, that can't be reached, or whose answers are lost.

use std::time::{Duration, Instant};

use boxoffice::api::{Api, Login, Reply, new_key, text};
use mesh_test::{Mode, wait_until};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    crowd::{Crowd, concert},
    deployment::{Deployment, Plan, report},
    stage::{Visit, fan, order, scrape, top_up},
};

/// How late the slow neighbour's answers come.
const SLOWNESS: Duration = Duration::from_secs(5);
/// Within which the breaker of a slow neighbour opens.
const OPENING: Duration = Duration::from_secs(10);
/// Within which everything is settled after a partition.
const REPAIR: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(30);
/// Calls that are timed, one after the other.
const CALLS: usize = 21;
/// What a standing place costs, in won.
const STANDING: i64 = 55_000;

/// The state of a breaker; 2: it refuses.
async fn breaker(mesh: &mut Deployment, service: &str, neighbour: &str) -> Option<f64> {
    let metrics = scrape(mesh.replica(service, 0).admin).await;
    let series = format!(r#"rpc_client_breaker_state{{neighbour="{neighbour}",service="{service}"}}"#);
    metrics.get(&series).copied()
}

async fn wait_until_payment_is_refused(mesh: &mut Deployment, limit: Duration) {
    wait_until("booking to refuse calls to payment", limit, async || {
        match breaker(mesh, "booking", "payment").await {
            Some(2.0) => Ok(()),
            state => Err(format!("the breaker is {state:?}")),
        }
    })
    .await;
}

/// How long a call takes, the middle one of several.
async fn median(mut call: impl AsyncFnMut()) -> Duration {
    let mut times = Vec::new();
    for _ in 0..CALLS {
        let begin = Instant::now();
        call().await;
        times.push(begin.elapsed());
    }
    times.sort();
    times[times.len() / 2]
}

async fn book(api: &Api, fan: &Login, hold: &str, key: &str) -> Reply {
    let token = Some(fan.access_token.as_str());
    api.send(Method::POST, "/v1/bookings", token, Some(key), Some(&order(hold))).await.unwrap()
}

#[tokio::test]
#[ignore = "needs Postgres and Redis: scripts/test runs it"]
async fn a_slow_payment_is_refused_at_once_and_holds_up_nothing_else() {
    let mut mesh = Plan::default().with_line("booking", "payment").start().await;
    let (api, crowd) = (mesh.api.clone(), Crowd::gather(&mesh, 14, 0).await);
    let hasty = fan(&api, STANDING).await;
    let read = async || {
        let token = Some(hasty.access_token.as_str());
        for path in
            ["/v1/concerts", "/v1/wallet", "/v1/bookings", &format!("/v1/concerts/{}/seats", crowd.concert)]
        {
            let reply = api.get(path, token).await.unwrap();
            assert!(reply.status.is_success(), "{path}: {}", reply.body);
        }
    };
    let before = median(read).await;
    let begin = Instant::now();
    mesh.line("booking", 0, "payment").set_mode(Mode::Delay(SLOWNESS));
    wait_until_payment_is_refused(&mut mesh, OPENING).await;
    report("svc-payment slow by 5 s, breaker open", begin);

    // One call in five seconds is let through, to look: it may be one of these. Its booking is PAYING then, and the next ones
    // with other keys are refused because of it.
    let hold = api.hold(&hasty, &concert(&api).await, &["FLOOR-1"]).await;
    let mut refused = 0;
    let booked = median(async || {
        let reply = book(&api, &hasty, &hold, &new_key()).await;
        let expected = ["PAYMENT_UNAVAILABLE", "HOLD_BOOKED", ""];
        assert!(expected.contains(&reply.reason()), "{}", reply.body);
        refused += usize::from(reply.reason() == "PAYMENT_UNAVAILABLE");
    })
    .await;
    let others = median(read).await;
    assert_eq!(breaker(&mut mesh, "gateway", "booking").await, Some(0.0), "booking itself is well");

    mesh.line("booking", 0, "payment").set_mode(Mode::Pass);
    mesh.converges("svc-payment slow by 5 s, and well again", REPAIR, &crowd).await;
    // What four reads take when all is well, on a machine that others use, too.
    let well = before.max(median(read).await);
    assert!(refused > 0, "nobody was refused");
    assert!(booked < well, "a booking is refused after {booked:?}; four reads take {well:?}");
    assert!(2 * others < 3 * well, "other calls take {others:?}, and {well:?} when all is well");
    mesh.assert_sound(crowd).await;
}

/// Cuts the line from booking to payment, and mends it.
async fn partition(fault: &str, mode: Mode) {
    let mut mesh = Plan::default().with_line("booking", "payment").start().await;
    let (api, crowd) = (mesh.api.clone(), Crowd::gather(&mesh, 5, 0).await);
    let unlucky = fan(&api, STANDING).await;
    let (hold, key) = (api.hold(&unlucky, &concert(&api).await, &["FLOOR-1"]).await, new_key());
    mesh.line("booking", 0, "payment").set_mode(mode);
    let reply = book(&api, &unlucky, &hold, &key).await.expect_success(fault).unwrap();
    assert_eq!(reply["booking"]["state"], "BOOKING_STATE_PAYING", "{fault}");
    let booking = text(&reply, "/booking/bookingId").unwrap();
    wait_until_payment_is_refused(&mut mesh, PATIENCE).await;
    assert_eq!(api.booking(&unlucky, &booking).await["state"], "BOOKING_STATE_PAYING", "{fault}");
    mesh.assert_swept_clean(&Default::default()).await;

    mesh.line("booking", 0, "payment").set_mode(Mode::Pass);
    mesh.converges(fault, REPAIR, &crowd).await;
    assert_eq!(api.booking(&unlucky, &booking).await["state"], "BOOKING_STATE_CONFIRMED", "{fault}");
    assert_eq!(api.balance(&unlucky).await, 0, "{fault}");
    mesh.assert_sound(crowd).await;
}

#[tokio::test]
#[ignore = "needs Postgres and Redis: scripts/test runs it"]
async fn bookings_are_pending_while_payment_is_cut_off() {
    partition("booking and payment partitioned", Mode::Blackhole).await;
}

#[tokio::test]
#[ignore = "needs Postgres and Redis: scripts/test runs it"]
async fn bookings_are_pending_while_payment_is_not_heard() {
    partition("booking and payment partitioned one way", Mode::DropReplies).await;
}

#[tokio::test]
#[ignore = "needs Postgres and Redis: scripts/test runs it"]
async fn what_was_done_is_found_by_its_key_though_the_reply_was_lost() {
    let mesh = Plan::default().with_line("gateway", "booking").with_line("gateway", "payment").start().await;
    let (api, crowd) = (mesh.api.clone(), Crowd::gather(&mesh, 3, 0).await);
    let fan = fan(&api, STANDING).await;
    let lose = async |service, path: &str, body: &Value, done| {
        let reply = lose_reply(&mesh, service, &fan, path, body, done).await;
        assert_eq!(reply.headers["idempotency-replayed"], "true", "{path}: {}", reply.body);
        reply.expect_success(path).unwrap()
    };
    let wish = json!({"seatIds": ["FLOOR-200"]});
    let held = lose("booking", &format!("/v1/concerts/{}/holds", crowd.concert), &wish, None).await;
    let hold = text(&held, "/hold/holdId").unwrap();
    let is_confirmed = Some("request_key = $1 AND state = 3");
    let booked = lose("booking", "/v1/bookings", &order(&hold), is_confirmed).await;
    assert_eq!(booked["booking"]["state"], "BOOKING_STATE_CONFIRMED");
    assert_eq!(api.balance(&fan).await, 0);
    let path = format!("/v1/bookings/{}/cancel", text(&booked, "/booking/bookingId").unwrap());
    lose("booking", &path, &json!({}), Some("cancel_key = $1 AND refunded = total")).await;
    assert_eq!(api.balance(&fan).await, STANDING);
    lose("payment", "/v1/wallet/top-ups", &top_up(STANDING), None).await;
    assert_eq!(api.balance(&fan).await, 2 * STANDING);
    mesh.assert_sound(crowd).await;
}

/// Sends something whose reply is lost, and leaves when the booking database shows that it was done; if there is nothing
/// to see, waits for the answer that nobody knows. Then: what the same key is told.
async fn lose_reply(
    mesh: &Deployment,
    service: &'static str,
    fan: &Login,
    path: &str,
    body: &Value,
    done: Option<&str>,
) -> Reply {
    let (token, key) = (Some(fan.access_token.as_str()), new_key());
    let send = || mesh.api.send(Method::POST, path, token, Some(&key), Some(body));
    let is_done = async {
        let Some(condition) = done else { return std::future::pending().await };
        wait_until(condition, PATIENCE, async || {
            match mesh.count_bookings(condition, [key.as_str().into()]).await? {
                1 => Ok(()),
                count => Err(format!("{count} are so")),
            }
        })
        .await;
    };
    let line = mesh.line("gateway", 0, service);
    line.set_mode(Mode::DropReplies);
    tokio::select! {
        reply = send() => {
            let status = reply.unwrap().status.as_u16();
            assert!([503, 504].contains(&status) && done.is_none(), "{path}: {status}");
        }
        () = is_done => {}
    }
    line.set_mode(Mode::Pass);
    line.reset();
    wait_until(path, PATIENCE, async || {
        let reply = send().await.unwrap();
        if reply.status.is_server_error() { Err(reply.body.to_string()) } else { Ok(reply) }
    })
    .await
}

//! Neighbours that are slow, that can't be reached, or whose answers are lost.

use std::{
    fmt,
    time::{Duration, Instant},
};

use boxoffice::api::{Api, Login, Reply, new_key, text};
use mesh_test::{Mode, wait_until};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    crowd::{Crowd, concert},
    deployment::{Deployment, Plan, calls, report, say},
    stage::{Visit, fan, order, top_up},
};

/// How late the slow neighbour's answers come.
const SLOWNESS: Duration = Duration::from_secs(5);
/// Within which the breaker of a slow neighbour opens.
const OPENING: Duration = Duration::from_secs(10);
/// Within which everything is settled after a partition.
const REPAIR: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(30);
/// Rounds of calls that are timed, one after the other.
const ROUNDS: usize = 100;
/// Calls of a round that have nothing to do with payments.
const OTHERS: [&str; 4] = ["/v1/concerts", "/v1/wallet", "/v1/bookings", "/v1/concerts/{concert}/seats"];
/// What a standing place costs, in won.
const STANDING: i64 = 55_000;

/// The state of a breaker; 2: it refuses.
async fn breaker(mesh: &Deployment, service: &str, neighbour: &str) -> Option<f64> {
    let series = format!(r#"rpc_client_breaker_state{{neighbour="{neighbour}",service="{service}"}}"#);
    mesh.metric(service, 0, &series).await
}

async fn wait_until_payment_is_refused(mesh: &Deployment, limit: Duration) {
    wait_until("booking to refuse calls to payment", limit, async || {
        match breaker(mesh, "booking", "payment").await {
            Some(2.0) => Ok(()),
            state => Err(format!("the breaker is {state:?}")),
        }
    })
    .await;
}

/// How long calls of one kind take.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    async fn time<T>(&mut self, call: impl Future<Output = T>) -> T {
        let begin = Instant::now();
        let answer = call.await;
        self.0.push(begin.elapsed());
        answer
    }

    /// What so many of a hundred calls take at the most.
    fn percentile(&self, percent: usize) -> Duration {
        let mut times = self.0.clone();
        times.sort();
        times[(times.len() * percent).div_ceil(100).max(1) - 1]
    }

    fn median(&self) -> Duration {
        self.percentile(50)
    }
}

impl fmt::Display for Times {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [median, last] = [50, 99].map(|percent| self.percentile(percent).as_secs_f64() * 1000.0);
        write!(formatter, "{median:.1}, {last:.1} ({} calls)", self.0.len())
    }
}

async fn book(api: &Api, fan: &Login, hold: &str, key: &str) -> Reply {
    let token = Some(fan.access_token.as_str());
    api.send(Method::POST, "/v1/bookings", token, Some(key), Some(&order(hold))).await.unwrap()
}

#[tokio::test]
#[ignore = "needs Postgres and Redis: scripts/test runs it"]
async fn a_slow_payment_is_refused_at_once_and_holds_up_nothing_else() {
    let mut mesh = Plan::default().with_line("booking", "payment").start().await;
    let (api, crowd) = (mesh.api.clone(), Crowd::gather(&mesh, 20, 0).await);
    let (reader, concert) = (fan(&api, 0).await, concert(&api).await);
    let others = OTHERS.map(|path| path.replace("{concert}", &crowd.concert));
    let read = async |times: &mut Times| {
        for path in &others {
            let reply = times.time(api.get(path, Some(&reader.access_token))).await.unwrap();
            assert!(reply.status.is_success(), "{path}: {}", reply.body);
        }
    };
    let mut before = Times::default();
    for _ in 0..ROUNDS {
        read(&mut before).await;
    }
    let begin = Instant::now();
    mesh.line("booking", 0, "payment").set_mode(Mode::Delay(SLOWNESS));
    let mut while_closed = Times::default();
    tokio::select! {
        () = wait_until_payment_is_refused(&mesh, OPENING) => {}
        () = async { loop { read(&mut while_closed).await } } => {}
    }
    report("svc-payment slow by 5 s, breaker open", begin);
    mesh.replica("booking", 0).says("a breaker has opened").await;
    mesh.counts("booking", 0, &calls("booking", "payment", "deadline_exceeded")).await;

    let (mut refusals, mut while_open) = (Times::default(), Times::default());
    let come = async |number: usize| {
        let fan = fan(&api, STANDING).await;
        let hold = api.hold(&fan, &concert, &[&format!("FLOOR-{number}")]).await;
        (fan, hold)
    };
    let mut buyers = vec![come(1).await];
    for _ in 0..ROUNDS {
        let (fan, hold) = buyers.last().unwrap();
        let mut time = Times::default();
        let reply = time.time(book(&api, fan, hold, &new_key())).await;
        match reply.reason() {
            "PAYMENT_UNAVAILABLE" => refusals.0.append(&mut time.0),
            // One call in five seconds is let through, to look: it was this one. Its booking is PAYING then.
            "" => buyers.push(come(buyers.len() + 1).await),
            other => panic!("{other}: {}", reply.body),
        }
        read(&mut while_open).await;
    }
    assert!(!refusals.0.is_empty(), "nobody was refused");
    assert_eq!(breaker(&mesh, "gateway", "booking").await, Some(0.0), "booking itself is well");

    mesh.line("booking", 0, "payment").set_mode(Mode::Pass);
    mesh.converges("svc-payment slow by 5 s, and well again", REPAIR, &crowd).await;
    mesh.replica("booking", 0).says("a breaker has closed").await;
    let mut after = Times::default();
    for _ in 0..ROUNDS {
        read(&mut after).await;
    }
    say(&format!(
        "slow payment: p50, p99 in ms: refused at once {refusals}; other calls before {before}, until the breaker opens \
         {while_closed}, while it is open {while_open}, after {after}"
    ));
    // When all is well, on a machine that others use, too.
    let well = before.median().max(after.median());
    assert!(
        refusals.median() < 4 * well,
        "a booking is refused after {refusals}; other calls take {well:?} when all is well"
    );
    for during in [while_closed, while_open] {
        assert!(
            2 * during.median() < 3 * well,
            "other calls take {during}; when all is well, before {before}, after {after}"
        );
    }
    for (fan, hold) in buyers {
        // One that became no booking was to be kept for minutes.
        let path = format!("/v1/holds/{hold}");
        api.send(Method::DELETE, &path, Some(&fan.access_token), None, None).await.unwrap();
    }
    mesh.assert_sound(crowd).await;
}

/// Cuts the line from booking to payment, and mends it.
async fn partition(fault: &str, mode: Mode) {
    let mesh = Plan::default().with_line("booking", "payment").start().await;
    let (api, crowd) = (mesh.api.clone(), Crowd::gather(&mesh, 5, 0).await);
    let unlucky = fan(&api, STANDING).await;
    let (hold, key) = (api.hold(&unlucky, &concert(&api).await, &["FLOOR-1"]).await, new_key());
    mesh.line("booking", 0, "payment").set_mode(mode);
    let reply = book(&api, &unlucky, &hold, &key).await.expect_success(fault).unwrap();
    assert_eq!(reply["booking"]["state"], "BOOKING_STATE_PAYING", "{fault}");
    let booking = text(&reply, "/booking/bookingId").unwrap();
    wait_until_payment_is_refused(&mesh, PATIENCE).await;
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

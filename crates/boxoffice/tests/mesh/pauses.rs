//! A process that stands still and does not know: another one takes its work over, and what it does late counts for nothing.

use std::time::{Duration, Instant};

use boxoffice::api::{Login, new_key, text};
use mesh::database::sql;
use mesh_test::{Mode, wait_until};
use reqwest::Method;
use sea_orm::ConnectionTrait;
use serde_json::{Value, json};

use crate::{
    crowd::{Crowd, concert},
    deployment::{Deployment, Line, Plan, RECOVERY},
    stage::{Visit, fan, order, scrape},
};

/// How long it stands still: its leases last 5 s.
const PAUSE: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(30);
const PLACE: &str = "FLOOR-1";
/// What it costs, in won.
const PRICE: i64 = 55_000;

/// A booking that the first replica is at work on.
struct Purchase {
    concert: String,
    fan: Login,
    id: String,
}

/// Two bookings with lines that can be disturbed.
async fn start() -> Deployment {
    let plan = Plan::default().with_replicas("booking", 2).with_line("gateway", "booking");
    plan.with_line("booking", "payment").with_line("booking", "postgres").start().await
}

/// Has a fan book a place at the first replica, which payment does not hear, and leave when the booking is made.
async fn begin_purchase(mesh: &Deployment) -> Purchase {
    let (concert, fan) = (concert(&mesh.api).await, fan(&mesh.api, PRICE).await);
    let (hold, key) = (mesh.api.hold(&fan, &concert, &[PLACE]).await, new_key());
    mesh.line("booking", 0, "payment").set_mode(Mode::Stall);
    let way = mesh.line("gateway", 0, "booking");
    way.to(1).set_mode(Mode::Refuse);
    let call = {
        let (api, token, key) = (mesh.api.clone(), fan.access_token.clone(), key.clone());
        tokio::spawn(async move {
            let _ =
                api.send(Method::POST, "/v1/bookings", Some(&token), Some(&key), Some(&order(&hold))).await;
        })
    };
    let id: String = wait_until("the booking to be made", PATIENCE, async || {
        let text = "SELECT CAST(id AS text) AS id FROM booking WHERE request_key = $1 AND state = 1";
        let reader = mesh.bookings.reader();
        let row = reader.query_one_raw(sql(reader, text, [key.as_str().into()])).await.unwrap();
        row.map(|row| row.try_get("", "id").unwrap()).ok_or_else(|| "not yet".to_owned())
    })
    .await;
    // The fan leaves: who stays might be sold the place a second time, by the other replica.
    call.abort();
    way.set_mode(Mode::Pass);
    age(mesh, &id).await;
    Purchase { concert, fan, id }
}

/// Makes a booking so old that nobody expects it any more: whoever finds it voids it.
async fn age(mesh: &Deployment, booking: &str) {
    let writer = mesh.bookings.writer();
    let text =
        "UPDATE booking SET create_time = create_time - interval '11 minutes' WHERE CAST(id AS text) = $1";
    writer.execute_raw(sql(writer, text, [booking.into()])).await.unwrap();
}

/// Waits until the other replica has given a booking up.
async fn wait_until_failed(mesh: &Deployment, booking: &str) {
    wait_until("the other replica to take over", PATIENCE, async || {
        match mesh
            .count_bookings("CAST(id AS text) = $1 AND state = 4 AND lease_epoch > 1", [booking.into()])
            .await?
        {
            1 => Ok(()),
            _ => Err("not yet".to_owned()),
        }
    })
    .await;
}

/// Has another fan buy a place, and ask until it is to be had.
async fn buy(mesh: &Deployment, concert: &str, place: &str) -> (Login, String) {
    let fan = fan(&mesh.api, PRICE).await;
    let send = async |path: &str, body: &Value| {
        let (token, key) = (Some(fan.access_token.as_str()), new_key());
        wait_until(path, PATIENCE, async || {
            let reply = mesh.api.send(Method::POST, path, token, Some(&key), Some(body)).await;
            let reply = reply.map_err(|error| error.to_string())?;
            reply.expect_success(path).map_err(|error| error.to_string())
        })
        .await
    };
    let held = send(&format!("/v1/concerts/{concert}/holds"), &json!({"seatIds": [place]})).await;
    let booked = send("/v1/bookings", &order(&text(&held, "/hold/holdId").unwrap())).await;
    assert_eq!(booked["booking"]["state"], "BOOKING_STATE_CONFIRMED");
    (fan, text(&booked, "/booking/bookingId").unwrap())
}

/// Asserts that a booking has come to nothing and cost nothing, and that the place is the other fan's.
async fn assert_place_changed_hands(
    mesh: &Deployment,
    purchase: Purchase,
    (rival, booking): (Login, String),
) {
    wait_until_failed(mesh, &purchase.id).await;
    assert_eq!(mesh.api.balance(&purchase.fan).await, PRICE);
    assert_eq!(mesh.api.booking(&rival, &booking).await["state"], "BOOKING_STATE_CONFIRMED");
    assert_eq!(mesh.api.balance(&rival).await, 0);
}

/// Waits until a stalled line keeps more back than this many bytes.
async fn wait_until_more_is_kept_back(line: &Line, before: u64) {
    wait_until("more to be kept back", PATIENCE, async || match line.swallowed_bytes() {
        bytes if bytes > before => Ok(()),
        bytes => Err(format!("{bytes} bytes are")),
    })
    .await;
}

#[tokio::test]
#[ignore = "needs Postgres and Redis: scripts/test runs it"]
async fn a_charge_that_lands_after_its_void_takes_nothing() {
    let mut mesh = start().await;
    let purchase = begin_purchase(&mesh).await;
    wait_until_more_is_kept_back(mesh.line("booking", 0, "payment"), 0).await;
    mesh.replica("booking", 0).freeze();
    let end = Instant::now() + PAUSE;
    let crowd = Crowd::gather(&mesh, 4, 0).await;
    wait_until_failed(&mesh, &purchase.id).await;
    let rival = buy(&mesh, &purchase.concert, PLACE).await;
    // The fault lasts so long.
    tokio::time::sleep_until(end.into()).await;

    // Still asleep: awake, it would take back what it no longer waits for.
    mesh.line("booking", 0, "payment").set_mode(Mode::Pass);
    let admin = mesh.replica("payment", 0).admin;
    wait_until("the charge to land", PATIENCE, async || {
        let refused = r#"rpc_server_duration_seconds_count{code="FAILED_PRECONDITION",method="/boxoffice.payment.v1.PaymentService/Pay",service="payment"}"#;
        match scrape(admin).await.get(refused) {
            Some(count) if *count >= 1.0 => Ok(()),
            other => Err(format!("{other:?} were refused")),
        }
    })
    .await;
    mesh.replica("booking", 0).thaw();
    mesh.converges("svc-booking stopped for 30 s (SIGSTOP)", RECOVERY, &crowd).await;
    assert_place_changed_hands(&mesh, purchase, rival).await;
    mesh.assert_sound(crowd).await;
}

#[tokio::test]
#[ignore = "needs Postgres and Redis: scripts/test runs it"]
async fn a_confirmation_of_somebody_who_lost_the_lease_is_fenced() {
    let mut mesh = start().await;
    // The other replica is to take over, and not to come to an end yet.
    mesh.line("booking", 1, "payment").set_mode(Mode::Blackhole);
    let purchase = begin_purchase(&mesh).await;
    // The charge goes through, the confirmation does not.
    let database = mesh.line("booking", 0, "postgres");
    database.set_mode(Mode::Stall);
    mesh.line("booking", 0, "payment").set_mode(Mode::Pass);
    wait_until("the charge to be taken", PATIENCE, async || match mesh.api.balance(&purchase.fan).await {
        0 => Ok(()),
        balance => Err(format!("{balance} are left")),
    })
    .await;
    wait_until_more_is_kept_back(database, database.swallowed_bytes()).await;
    mesh.replica("booking", 0).freeze();
    wait_until("the other replica to take over", PATIENCE, async || {
        match mesh
            .count_bookings("CAST(id AS text) = $1 AND lease_epoch > 1", [purchase.id.as_str().into()])
            .await?
        {
            1 => Ok(()),
            _ => Err("not yet".to_owned()),
        }
    })
    .await;
    mesh.line("booking", 0, "postgres").set_mode(Mode::Pass);
    mesh.replica("booking", 0).thaw();
    // What it writes for somebody else comes after that confirmation.
    let way = mesh.line("gateway", 0, "booking");
    way.to(1).set_mode(Mode::Refuse);
    buy(&mesh, &purchase.concert, "FLOOR-2").await;
    way.set_mode(Mode::Pass);

    mesh.line("booking", 1, "payment").set_mode(Mode::Pass);
    let crowd = Crowd::gather(&mesh, 4, 0).await;
    wait_until_failed(&mesh, &purchase.id).await;
    let rival = buy(&mesh, &purchase.concert, PLACE).await;
    mesh.converges("svc-booking lost its lease with a write on its way", RECOVERY, &crowd).await;
    assert_place_changed_hands(&mesh, purchase, rival).await;
    mesh.assert_sound(crowd).await;
}

#[tokio::test]
#[ignore = "needs Postgres and Redis: scripts/test runs it"]
async fn a_payment_that_stands_still_is_passed_over() {
    let mut mesh = Plan::default().with_replicas("payment", 2).start().await;
    let crowd = Crowd::gather(&mesh, 8, 1).await;
    mesh.replica("payment", 0).freeze();
    let end = Instant::now() + PAUSE;
    // Whose charge was waited for in vain for three seconds: made so old that the other one voids it after the lease.
    let stuck: Vec<String> = wait_until("charges to be stuck", PATIENCE, async || {
        let text = "UPDATE booking SET create_time = create_time - interval '11 minutes'
            WHERE state = 1 AND create_time BETWEEN now() - interval '4.5 seconds' AND now() - interval '3.5 seconds'
            RETURNING CAST(id AS text) AS id";
        let writer = mesh.bookings.writer();
        let found = writer.query_all_raw(sql(writer, text, [])).await.map_err(|error| error.to_string())?;
        let found: Vec<_> = found.iter().map(|row| row.try_get("", "id").unwrap()).collect();
        if found.is_empty() { Err("none is".to_owned()) } else { Ok(found) }
    })
    .await;
    for booking in &stuck {
        wait_until_failed(&mesh, booking).await;
    }
    mesh.converges("svc-payment stands still, the other one goes on", RECOVERY, &crowd).await;
    // The fault lasts so long.
    tokio::time::sleep_until(end.into()).await;

    mesh.replica("payment", 0).thaw();
    mesh.replica("payment", 0).ready().await;
    mesh.converges("svc-payment stopped for 30 s (SIGSTOP)", RECOVERY, &crowd).await;
    mesh.assert_all_run();
    mesh.assert_sound(crowd).await;
}

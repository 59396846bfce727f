//! What operators see of a Boxoffice: its metrics, on the admin port.

mod stage;

use std::{collections::BTreeSet, fs, path::Path};

use mesh::telemetry::{self, LogFormat};
use mesh_test::wait_until;
use serde_json::json;
use stage::{PATIENCE, PRICE, Stage, Visit, scrape};

/// Values of labels that look like names of metrics.
const OUTCOMES: [&str; 2] = ["deadline_exceeded", "not_sent"];

/// The metrics that docs/OPERATIONS.md names.
fn documented() -> BTreeSet<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/OPERATIONS.md");
    let text = fs::read_to_string(page).unwrap();
    let (_, page) = text.split_once("\n## Metrics\n").expect("the chapter on metrics");
    let names = page.split('`').skip(1).step_by(2).filter_map(|code| code.split('{').next());
    let is_metric = |name: &&str| {
        let is_snake_case = name.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_');
        is_snake_case && name.contains('_') && !name.starts_with('_') && !OUTCOMES.contains(name)
    };
    names.filter(is_metric).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_booking_is_seen_in_the_metrics() {
    telemetry::install("test", LogFormat::Human, &"error".parse().unwrap(), &telemetry::Export::nowhere())
        .unwrap();
    let stage = Stage::open().await;
    let concert_id = stage.promoter().await.concert().await;
    let fan = stage.fan(PRICE).await;
    let hold_id = stage.api.hold(&fan, &concert_id, &["A-1-1"]).await;
    let live = r#"booking_holds_live{service="booking"}"#;
    wait_until("the hold to be counted", PATIENCE, async || {
        match scrape(stage.embedded.admin).await.get(live) {
            Some(count) if *count == 1.0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    stage.api.book(&fan, &hold_id).await;
    let again =
        stage.api.post("/v1/bookings", Some(&fan.access_token), &stage::order(&hold_id)).await.unwrap();
    assert_eq!(again.status, 409);
    let nothing = stage.api.post("/v1/bookings", None, &json!({})).await.unwrap();
    assert_eq!(nothing.status, 401);
    stage.api.get("/v1/no-such-route/4711", None).await.unwrap();

    let seen = scrape(stage.embedded.admin).await;
    let expected = [
        // REST by route, and never by what the client sent.
        (
            r#"http_server_duration_seconds_count{method="POST",route="/v1/bookings",service="gateway",status="200"}"#,
            1.0,
        ),
        (
            r#"http_server_duration_seconds_count{method="POST",route="/v1/bookings",service="gateway",status="409"}"#,
            1.0,
        ),
        (
            r#"http_server_duration_seconds_count{method="POST",route="/v1/bookings",service="gateway",status="401"}"#,
            1.0,
        ),
        (
            r#"http_server_duration_seconds_count{method="any",route="other",service="gateway",status="404"}"#,
            1.0,
        ),
        // Each method, by service and code.
        (
            r#"rpc_server_duration_seconds_count{code="OK",method="/boxoffice.booking.v1.BookingService/CreateBooking",service="booking"}"#,
            1.0,
        ),
        (
            r#"rpc_server_duration_seconds_count{code="FAILED_PRECONDITION",method="/boxoffice.booking.v1.BookingService/CreateBooking",service="booking"}"#,
            1.0,
        ),
        (
            r#"rpc_server_duration_seconds_count{code="OK",method="/boxoffice.payment.v1.PaymentService/Pay",service="payment"}"#,
            1.0,
        ),
        (r#"rpc_server_in_flight_calls{service="payment"}"#, 0.0),
        // Neighbours.
        (
            r#"rpc_client_duration_seconds_count{neighbour="payment",outcome="answered",service="booking"}"#,
            1.0,
        ),
        (r#"rpc_client_breaker_state{neighbour="payment",service="booking"}"#, 0.0),
        (r#"rpc_client_retries_total{neighbour="payment",service="booking"}"#, 0.0),
        // The lane carried the claim and the confirmation; alone, each is a batch.
        (r#"lane_batch_jobs_sum{lane="hot",service="booking"}"#, 2.0),
        (r#"lane_batch_jobs_count{lane="hot",service="booking"}"#, 2.0),
        (r#"lane_batch_jobs_bucket{lane="hot",service="booking",le="1"}"#, 2.0),
        (r#"lane_waiting_jobs{lane="hot",service="booking"}"#, 0.0),
        (r#"database_pool_connections{pool="write",service="booking",state="limit"}"#, 1.0),
        (r#"database_pool_connections{pool="read",service="booking",state="limit"}"#, 4.0),
    ];
    for (series, value) in expected {
        assert_eq!(seen.get(series), Some(&value), "{series} in {:#?}", seen.keys());
    }
    let shown: BTreeSet<&str> = seen.keys().filter_map(|series| series.split('{').next()).collect();
    let documented = documented();
    assert!(documented.contains("dependency_up"), "{documented:?}");
    for name in documented {
        let is_shown = shown.contains(name.as_str()) || shown.contains(format!("{name}_count").as_str());
        assert!(is_shown, "the page names {name}, which is not among {shown:?}");
    }
    assert!(!seen.keys().any(|series| series.contains("4711") || series.contains(&concert_id)));
    let admin = format!("http://{}", stage.embedded.admin);
    let healthy = reqwest::get(format!("{admin}/healthz")).await.unwrap();
    assert_eq!((healthy.status().as_u16(), healthy.text().await.unwrap().as_str()), (200, "healthy\n"));
    assert_eq!(reqwest::get(format!("{admin}/v1/concerts")).await.unwrap().status(), 404);
}

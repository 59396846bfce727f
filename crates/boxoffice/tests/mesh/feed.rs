//! Seats as they change: whoever watches at one process sees what is done at another.

use boxoffice::api::Api;
use serde_json::json;

use crate::{
    crowd::concert,
    deployment::{Deployment, Plan},
    stage::{Events, PRICE, Visit, client, fan},
};

/// Calls of a method that a booking answered well.
async fn answered(mesh: &Deployment, booking: usize, method: &str) -> Option<f64> {
    let series = format!(
        r#"rpc_server_duration_seconds_count{{code="OK",method="/boxoffice.booking.v1.{method}",service="booking"}}"#
    );
    mesh.metric("booking", booking, &series).await
}

#[tokio::test]
#[ignore = "needs Postgres and Redis: scripts/test runs it"]
async fn a_watcher_at_one_booking_sees_what_is_done_at_the_other() {
    let plan = Plan::default().with_replicas("gateway", 2).with_replicas("booking", 2);
    let mesh = plan.with_pairs("gateway", "booking").start().await;
    let (concert, fan) = (concert(&mesh.api).await, fan(&mesh.api, PRICE).await);
    let [here, there] = [0, 1].map(|index| mesh.api.bases()[index].clone());
    let there = Api::new(there).unwrap();
    let path = format!("{here}/v1/concerts/{concert}/seats/events");
    let mut events = Events::open(client().get(path)).await;
    assert_eq!(events.next().await.unwrap().data["changes"], json!([]));

    let hold = there.hold(&fan, &concert, &["A-1-1"]).await;
    let held = json!([{"seatId": "A-1-1", "state": "SEAT_STATE_HELD"}]);
    assert_eq!(events.next().await.unwrap().data["changes"], held);
    there.book(&fan, &hold).await;
    let sold = json!([{"seatId": "A-1-1", "state": "SEAT_STATE_SOLD"}]);
    assert_eq!(events.next().await.unwrap().data["changes"], sold);

    for (method, calls) in [
        ("SeatService/WatchSeats", [Some(1.0), None]),
        ("HoldService/CreateHold", [None, Some(1.0)]),
        ("BookingService/CreateBooking", [None, Some(1.0)]),
    ] {
        let seen = [answered(&mesh, 0, method).await, answered(&mesh, 1, method).await];
        assert_eq!(seen, calls, "{method}");
    }
}

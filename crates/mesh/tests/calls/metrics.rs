//! What Prometheus is shown of calls, as text.

use std::time::Duration;

use boxoffice_proto::concert::v1::{GetSaleRequest, sale_service_client::SaleServiceClient};
use mesh::{
    client::Channel,
    metrics,
    server::Options,
    telemetry::{self, LogFormat},
};
use mesh_test::wait_until;

use crate::{
    service::{Fake, Gate},
    world::{Mesh, PATIENCE, Port},
};

/// How many calls the breaker looks back.
const WINDOW: u32 = 20;
const OPEN_PERIOD: Duration = Duration::from_secs(5);

/// The value of a series; none, if it isn't there.
fn value(series: &str) -> Option<f64> {
    let text = metrics::text();
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    Some(line.parse().unwrap())
}

fn calls(outcome: &str) -> Option<f64> {
    let labels = format!(r#"neighbour="metered",outcome="{outcome}",service="gateway""#);
    value(&format!("rpc_client_duration_seconds_count{{{labels}}}"))
}

fn of_neighbour(name: &str) -> Option<f64> {
    value(&format!(r#"{name}{{neighbour="metered",service="gateway"}}"#))
}

async fn get_sale(channel: &Channel) {
    let _ = SaleServiceClient::new(channel.clone()).get_sale(GetSaleRequest::default()).await;
}

#[tokio::test(start_paused = true)]
async fn calls_are_counted_by_how_they_end_and_the_breaker_is_seen() {
    telemetry::install("test", LogFormat::Human, &"error".parse().unwrap(), &telemetry::Export::nowhere())
        .unwrap();
    let (mesh, port, gate) = (Mesh::new(), Port::reserve(), Gate::default());
    // A neighbour that no other test of this process has.
    let channel = mesh.channel("metered", port.address());
    assert_eq!(of_neighbour("rpc_client_breaker_state"), Some(0.0));
    assert_eq!(of_neighbour("rpc_client_retries_total"), Some(0.0));
    assert_eq!(of_neighbour("rpc_client_ejections_total"), Some(0.0));
    assert_eq!(calls("refused"), None, "what never happened is not shown");

    for _ in 0..WINDOW {
        get_sale(&channel).await;
    }
    get_sale(&channel).await;
    assert_eq!(calls("not_sent"), Some(f64::from(WINDOW)));
    assert_eq!(calls("refused"), Some(1.0));
    assert_eq!(of_neighbour("rpc_client_breaker_state"), Some(2.0), "open");
    assert!(of_neighbour("rpc_client_retries_total") > Some(0.0));
    assert_eq!(of_neighbour("rpc_client_ejections_total"), Some(1.0), "its only endpoint, once");

    let _service = mesh.serve_on(port.listen(), Options::new("metered"), &Fake::behind(&gate));
    tokio::time::advance(OPEN_PERIOD).await;
    let in_flight = r#"rpc_server_in_flight_calls{service="metered"}"#;
    let probe = tokio::time::timeout(Duration::from_secs(1), get_sale(&channel));
    assert!(probe.await.is_err(), "the gate is closed");
    assert_eq!(calls("abandoned"), Some(1.0));
    wait_until("the service to notice", PATIENCE, async || match value(in_flight) {
        Some(0.0) => Ok(()),
        count => Err(format!("{count:?} in flight")),
    })
    .await;
    gate.open();
    get_sale(&channel).await;
    assert_eq!(calls("answered"), Some(1.0));
    assert_eq!(of_neighbour("rpc_client_breaker_state"), Some(0.0), "closed");
    let method = r#"method="/boxoffice.concert.v1.SaleService/GetSale",service="metered""#;
    let served =
        |code: &str| value(&format!(r#"rpc_server_duration_seconds_count{{code="{code}",{method}}}"#));
    assert_eq!((served("OK"), served("CANCELLED")), (Some(1.0), Some(1.0)));
}

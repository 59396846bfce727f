//! What a collector is sent by separate processes about one call.

use std::time::Duration;

use mesh_test::{Mode, wait_until};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;

use crate::{
    crowd::concert,
    deployment::Plan,
    stage::{
        PATIENCE, PRICE, Visit, client,
        collector::{Collector, child, id},
        fan, order, read,
    },
};

/// What booking logs when payment did not answer a charge.
const NOT_KNOWN: &str = "whether a booking is paid is not known";
/// How often processes send spans and log records.
const PERIOD: Duration = Duration::from_millis(100);

#[tokio::test]
#[ignore = "needs Postgres and Redis: scripts/test runs it"]
async fn one_trace_runs_through_the_processes_and_their_logs() {
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const CALLER: &str = "b7ad6b7169203331";
    let collector = Collector::default();
    let plan = Plan::default().with_line("booking", "payment");
    let plan = plan.with_common_setting("OTEL_EXPORTER_OTLP_ENDPOINT", collector.serve().await);
    // No trace that begins here is sampled: what comes is what the caller wants.
    let plan = plan.with_common_setting("OTEL_TRACES_SAMPLER_ARG", 0);
    let plan = plan.with_common_setting("OTEL_BSP_SCHEDULE_DELAY", PERIOD.as_millis());
    let plan = plan.with_common_setting("OTEL_BLRP_SCHEDULE_DELAY", PERIOD.as_millis());
    let mesh = plan.start().await;
    let (concert, fan) = (concert(&mesh.api).await, fan(&mesh.api, PRICE).await);
    let hold = mesh.api.hold(&fan, &concert, &["A-1-1"]).await;
    mesh.line("booking", 0, "payment").set_mode(Mode::DropReplies);
    let call = client().post(format!("{}/v1/bookings", mesh.api.bases()[0])).bearer_auth(&fan.access_token);
    let call = call.json(&order(&hold)).header("idempotency-key", "key");
    let reply = read(call.header("traceparent", format!("00-{TRACE}-{CALLER}-01"))).await;
    let reply = reply.expect_success("booking").unwrap();
    assert_eq!(reply["booking"]["state"], "BOOKING_STATE_PAYING");

    let (trace_id, caller) = (id(TRACE), id(CALLER));
    for (process, words) in [("gateway-rest", "\"call\""), ("svc-booking", NOT_KNOWN)] {
        let what = format!("{process} to log {words} in the trace");
        wait_until(&what, PATIENCE, async || {
            let logs = collector.logs().into_iter();
            let said: Vec<_> = logs.filter(|sent| sent.process == process && sent.says(words)).collect();
            let is_told = said.iter().any(|sent| sent.record.trace_id == trace_id);
            if is_told { Ok(()) } else { Err(format!("{said:#?}")) }
        })
        .await;
    }

    let (booking, payment) =
        ("/boxoffice.booking.v1.BookingService/CreateBooking", "/boxoffice.payment.v1.PaymentService/Pay");
    let spans = wait_until("the spans", PATIENCE, async || {
        let spans = collector.spans();
        let missing = ["gateway-rest", "svc-booking", "svc-payment"].into_iter().find(|process| {
            !spans.iter().any(|sent| sent.process == *process && sent.span.kind() == SpanKind::Server)
        });
        missing.map_or(Ok(spans), |process| Err(format!("none of {process} yet")))
    })
    .await;
    let rest = child(&spans, &caller, "gateway", SpanKind::Server, "POST /v1/bookings");
    let call = child(&spans, &rest.span.span_id, "gateway", SpanKind::Client, booking);
    let served = child(&spans, &call.span.span_id, "booking", SpanKind::Server, booking);
    let paid = child(&spans, &served.span.span_id, "booking", SpanKind::Client, payment);
    let taken = child(&spans, &paid.span.span_id, "payment", SpanKind::Server, payment);
    for (sent, process) in [
        (rest, "gateway-rest"),
        (call, "gateway-rest"),
        (served, "svc-booking"),
        (paid, "svc-booking"),
        (taken, "svc-payment"),
    ] {
        assert_eq!((sent.process.as_str(), &sent.span.trace_id), (process, &trace_id), "{sent:#?}");
    }
}

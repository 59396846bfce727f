//! What a collector is sent: one trace through all services, the log records that belong to it, and metrics.

mod stage;

use std::process::Command;

use mesh::telemetry::{self, LogFormat};
use mesh_test::wait_until;
use opentelemetry_proto::tonic::{common::v1::KeyValue, trace::v1::span::SpanKind};
use stage::{
    PATIENCE, PRICE, Stage, Visit,
    collector::{Collector, SentRecord, SentSpan, child, id},
    order, read,
};

#[tokio::test]
async fn one_trace_runs_through_all_services_and_their_logs() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const CALLER: &str = "00f067aa0ba902b7";
    let collector = Collector::default();
    let options = telemetry::Export {
        otel_exporter_otlp_endpoint: Some(collector.serve().await),
        // No trace that begins here is sampled: what comes is what the caller wants.
        otel_traces_sampler_arg: 0.0,
        otel_service_name: None,
    };
    let telemetry =
        telemetry::install("boxoffice", LogFormat::Human, &"info".parse().unwrap(), &options).unwrap();

    let stage = Stage::open().await;
    let concert_id = stage.promoter().await.concert().await;
    let fan = stage.fan(PRICE).await;
    let hold_id = stage.api.hold(&fan, &concert_id, &["A-1-1"]).await;
    let book = async |key: &str, flags: &str| {
        let call = stage.call("POST", "/v1/bookings").bearer_auth(&fan.access_token).json(&order(&hold_id));
        let traceparent = format!("00-{TRACE}-{CALLER}-{flags}");
        read(call.header("idempotency-key", key).header("traceparent", traceparent)).await
    };
    assert_eq!(book("first", "01").await.status, 200);
    let refused = book("second", "00").await;
    assert_eq!((refused.status.as_u16(), refused.body["traceId"].as_str()), (409, Some(TRACE)));

    let (trace_id, caller) = (id(TRACE), id(CALLER));
    let spans = wait_until("the spans", PATIENCE, async || {
        telemetry.flush().await;
        let spans = collector.spans();
        if spans.iter().any(|sent| sent.span.name == "POST /v1/bookings") {
            Ok(spans)
        } else {
            Err(format!("{} spans", spans.len()))
        }
    })
    .await;
    assert!(
        spans.iter().all(|sent| sent.span.trace_id == trace_id),
        "the others are not sampled: {spans:#?}"
    );
    let is_question = |attribute: &KeyValue| attribute.key == "db.system.name";
    assert!(
        !spans.iter().any(|sent| sent.span.attributes.iter().any(is_question)),
        "what databases are asked is a span at debug only: {spans:#?}"
    );
    let rest = child(&spans, &caller, "gateway", SpanKind::Server, "POST /v1/bookings");
    let (booking, payment) =
        ("/boxoffice.booking.v1.BookingService/CreateBooking", "/boxoffice.payment.v1.PaymentService/Pay");
    let call = child(&spans, &rest.span.span_id, "gateway", SpanKind::Client, booking);
    let served = child(&spans, &call.span.span_id, "booking", SpanKind::Server, booking);
    let paid = child(&spans, &served.span.span_id, "booking", SpanKind::Client, payment);
    child(&spans, &paid.span.span_id, "payment", SpanKind::Server, payment);

    let logs = collector.logs();
    let of_it = logs.iter().filter(|sent| sent.record.trace_id == trace_id);
    let access: Vec<_> = of_it.filter(|sent| sent.says("\"call\"")).collect();
    assert_eq!(access.len(), 2, "each call has a line, sampled or not: {access:#?}");
    let why = refused.body["reason"].as_str().unwrap();
    let tells = |sent: &&&SentRecord| format!("{:?}", sent.record.attributes).contains(why);
    assert_eq!(access.iter().filter(tells).count(), 1, "one says why it was refused: {access:#?}");
    let is_of_another = |id: &[u8]| !id.is_empty() && id != trace_id;
    assert!(logs.iter().any(|sent| is_of_another(&sent.record.trace_id)));

    let metrics = collector.metrics();
    for name in ["http.server.duration", "rpc.server.duration", "rpc.client.breaker.state", "lane.batch.jobs"]
    {
        assert!(metrics.iter().any(|metric| metric.name == name), "no {name}");
    }
}

#[tokio::test]
async fn what_a_process_collected_is_sent_before_it_ends() {
    let collector = Collector::default();
    let address = collector.serve().await;
    let sellout = move || {
        Command::new(env!("CARGO_BIN_EXE_boxoffice"))
            .args(["sellout", "--fans", "4", "--seats", "4"])
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", address)
            .env("OTEL_TRACES_SAMPLER_ARG", "1")
            // Not before the end, in milliseconds.
            .env("OTEL_BSP_SCHEDULE_DELAY", "3600000")
            .output()
            .unwrap()
    };
    let output = tokio::task::spawn_blocking(sellout).await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let spans = collector.spans();
    let begins =
        |sent: &&SentSpan| sent.span.parent_span_id.is_empty() && sent.span.name == "POST /v1/bookings";
    let begun = spans.iter().find(begins);
    let begun = begun.unwrap_or_else(|| panic!("no trace begins with a booking in {} spans", spans.len()));
    let belongs = |sent: &SentSpan| sent.span.trace_id == begun.span.trace_id;
    assert!(spans.iter().any(|sent| sent.service == "booking" && belongs(sent)));
}

//! What a collector is sent: one trace through all services, the log records that belong to it, and metrics.

mod stage;

use std::{
    process::Command,
    sync::{Arc, Mutex, PoisonError},
};

use mesh::telemetry::{self, LogFormat};
use mesh_test::wait_until;
use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::{
            ExportLogsServiceRequest, ExportLogsServiceResponse,
            logs_service_server::{LogsService, LogsServiceServer},
        },
        metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse,
            metrics_service_server::{MetricsService, MetricsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    common::v1::KeyValue,
    logs::v1::LogRecord,
    metrics::v1::Metric,
    trace::v1::{Span, span::SpanKind},
};
use stage::{PATIENCE, PRICE, Stage, Visit, order, read};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

/// A collector that keeps what it is sent. Spans with the service that made them.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<(String, Span)>>>,
    logs: Arc<Mutex<Vec<LogRecord>>>,
    metrics: Arc<Mutex<Vec<Metric>>>,
}

fn all<T: Clone>(kept: &Mutex<Vec<T>>) -> Vec<T> {
    kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

impl Collector {
    /// Its address.
    async fn serve(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(self.clone()))
            .add_service(LogsServiceServer::new(self.clone()))
            .add_service(MetricsServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        format!("http://{address}")
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let scopes = request.into_inner().resource_spans.into_iter().flat_map(|spans| spans.scope_spans);
        for scope in scopes {
            let service = scope.scope.unwrap_or_default().name;
            let spans = scope.spans.into_iter().map(|span| (service.clone(), span));
            self.spans.lock().unwrap().extend(spans);
        }
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Collector {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let scopes = request.into_inner().resource_logs.into_iter().flat_map(|logs| logs.scope_logs);
        self.logs.lock().unwrap().extend(scopes.flat_map(|scope| scope.log_records));
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let scopes =
            request.into_inner().resource_metrics.into_iter().flat_map(|metrics| metrics.scope_metrics);
        self.metrics.lock().unwrap().extend(scopes.flat_map(|scope| scope.metrics));
        Ok(Response::new(Default::default()))
    }
}

/// The only span of a service and side that another one caused.
#[track_caller]
fn child<'a>(
    spans: &'a [(String, Span)],
    parent: &[u8],
    service: &str,
    kind: SpanKind,
    name: &str,
) -> &'a Span {
    let is_it = |(maker, span): &&(String, Span)| {
        span.parent_span_id == parent && maker == service && span.kind() == kind && span.name == name
    };
    let found: Vec<_> = spans.iter().filter(is_it).collect();
    let [(_, span)] = found[..] else { panic!("{} spans {name} of {service} in {spans:#?}", found.len()) };
    assert!(span.end_time_unix_nano >= span.start_time_unix_nano && span.start_time_unix_nano > 0);
    span
}

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

    let trace_id: Vec<u8> = u128::from_str_radix(TRACE, 16).unwrap().to_be_bytes().into();
    let caller: Vec<u8> = u64::from_str_radix(CALLER, 16).unwrap().to_be_bytes().into();
    let spans = wait_until("the spans", PATIENCE, async || {
        telemetry.flush().await;
        let spans = all(&collector.spans);
        if spans.iter().any(|(_, span)| span.name == "POST /v1/bookings") {
            Ok(spans)
        } else {
            Err(format!("{} spans", spans.len()))
        }
    })
    .await;
    assert!(
        spans.iter().all(|(_, span)| span.trace_id == trace_id),
        "the others are not sampled: {spans:#?}"
    );
    let is_question = |attribute: &KeyValue| attribute.key == "db.system.name";
    assert!(
        !spans.iter().any(|(_, span)| span.attributes.iter().any(is_question)),
        "what databases are asked is a span at debug only: {spans:#?}"
    );
    let rest = child(&spans, &caller, "gateway", SpanKind::Server, "POST /v1/bookings");
    let (booking, payment) =
        ("/boxoffice.booking.v1.BookingService/CreateBooking", "/boxoffice.payment.v1.PaymentService/Pay");
    let call = child(&spans, &rest.span_id, "gateway", SpanKind::Client, booking);
    let served = child(&spans, &call.span_id, "booking", SpanKind::Server, booking);
    let paid = child(&spans, &served.span_id, "booking", SpanKind::Client, payment);
    child(&spans, &paid.span_id, "payment", SpanKind::Server, payment);

    let logs = all(&collector.logs);
    let is_access = |record: &&LogRecord| format!("{:?}", record.body).contains("\"call\"");
    let access: Vec<_> = logs.iter().filter(|record| record.trace_id == trace_id).filter(is_access).collect();
    assert_eq!(access.len(), 2, "each call has a line, sampled or not: {access:#?}");
    assert!(logs.iter().any(|record| !record.trace_id.is_empty() && record.trace_id != trace_id));

    let metrics = all(&collector.metrics);
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
    let spans = all(&collector.spans);
    let begun =
        spans.iter().find(|(_, span)| span.parent_span_id.is_empty() && span.name == "POST /v1/bookings");
    let (_, begun) =
        begun.unwrap_or_else(|| panic!("no trace begins with a booking in {} spans", spans.len()));
    let belongs =
        |service: &str| spans.iter().any(|(maker, span)| maker == service && span.trace_id == begun.trace_id);
    assert!(belongs("booking"));
}

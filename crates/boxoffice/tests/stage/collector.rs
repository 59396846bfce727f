//! A collector of telemetry.

use std::sync::{Arc, Mutex, PoisonError};

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
    common::v1::any_value::Value,
    logs::v1::LogRecord,
    metrics::v1::Metric,
    resource::v1::Resource,
    trace::v1::{Span, span::SpanKind},
};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

/// A collector that keeps what it is sent.
#[derive(Clone, Default)]
pub(crate) struct Collector {
    spans: Arc<Mutex<Vec<SentSpan>>>,
    logs: Arc<Mutex<Vec<SentRecord>>>,
    metrics: Arc<Mutex<Vec<Metric>>>,
}

/// A span that was sent.
#[derive(Debug, Clone)]
pub(crate) struct SentSpan {
    /// What the process is called.
    pub(crate) process: String,
    /// The service that made it.
    pub(crate) service: String,
    pub(crate) span: Span,
}

/// A log record that was sent.
#[derive(Debug, Clone)]
pub(crate) struct SentRecord {
    /// What the process is called.
    pub(crate) process: String,
    pub(crate) record: LogRecord,
}

impl SentRecord {
    /// Whether its text has these words.
    pub(crate) fn says(&self, words: &str) -> bool {
        format!("{:?}", self.record.body).contains(words)
    }
}

impl Collector {
    /// Serves from now on. Its address.
    pub(crate) async fn serve(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(self.clone()))
            .add_service(LogsServiceServer::new(self.clone()))
            .add_service(MetricsServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        format!("http://{address}")
    }

    pub(crate) fn spans(&self) -> Vec<SentSpan> {
        all(&self.spans)
    }

    pub(crate) fn logs(&self) -> Vec<SentRecord> {
        all(&self.logs)
    }

    pub(crate) fn metrics(&self) -> Vec<Metric> {
        all(&self.metrics)
    }
}

fn all<T: Clone>(kept: &Mutex<Vec<T>>) -> Vec<T> {
    kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// What the process of a resource is called.
fn name_of(resource: Option<Resource>) -> String {
    let attributes = resource.unwrap_or_default().attributes;
    let name = attributes.into_iter().find(|attribute| attribute.key == "service.name");
    match name.and_then(|attribute| attribute.value?.value) {
        Some(Value::StringValue(name)) => name,
        other => panic!("no service.name: {other:?}"),
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for spans in request.into_inner().resource_spans {
            let process = name_of(spans.resource);
            for scope in spans.scope_spans {
                let service = scope.scope.unwrap_or_default().name;
                let sent = |span| SentSpan { process: process.clone(), service: service.clone(), span };
                self.spans.lock().unwrap().extend(scope.spans.into_iter().map(sent));
            }
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
        for logs in request.into_inner().resource_logs {
            let process = name_of(logs.resource);
            let records = logs.scope_logs.into_iter().flat_map(|scope| scope.log_records);
            let sent = |record| SentRecord { process: process.clone(), record };
            self.logs.lock().unwrap().extend(records.map(sent));
        }
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
pub(crate) fn child<'a>(
    spans: &'a [SentSpan],
    parent: &[u8],
    service: &str,
    kind: SpanKind,
    name: &str,
) -> &'a SentSpan {
    let is_it = |sent: &&SentSpan| {
        let span = &sent.span;
        span.parent_span_id == parent && sent.service == service && span.kind() == kind && span.name == name
    };
    let found: Vec<_> = spans.iter().filter(is_it).collect();
    let [sent] = found[..] else { panic!("{} spans {name} of {service} in {spans:#?}", found.len()) };
    let span = &sent.span;
    assert!(span.end_time_unix_nano >= span.start_time_unix_nano && span.start_time_unix_nano > 0);
    sent
}

/// The bytes of an id that is written in hexadecimal digits.
pub(crate) fn id(text: &str) -> Vec<u8> {
    let byte = |place| u8::from_str_radix(&text[place..place + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect()
}

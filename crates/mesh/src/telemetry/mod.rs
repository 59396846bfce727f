//! What a process tells of itself: logs, metrics, and the spans of traces. Logs go to standard error; all three also to a
//! collector by OTLP, where one is configured.

mod log;
pub(crate) mod span;
mod trace;

use std::{str::FromStr, time::Duration};

use anyhow::Context as _;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_otlp::{LogExporter, MetricExporter, SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    logs::SdkLoggerProvider,
    metrics::{PeriodicReader, SdkMeterProvider},
    trace::{BatchSpanProcessor, SpanProcessor},
};
use tracing_subscriber::{
    EnvFilter, Layer, filter::filter_fn, layer::SubscriberExt, util::SubscriberInitExt,
};

use crate::metrics;

pub use self::{
    log::LogFormat,
    trace::{HEADER, Trace, TraceId},
};

/// How long to wait for the collector at the end.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);
/// The share of traces that is sampled unless something else is said.
const SHARE: f64 = 0.05;
/// What these log goes to standard error only: sending logs makes them log.
const TRANSPORT_TARGETS: [&str; 6] = ["opentelemetry", "tonic", "tower", "h2", "hyper", "rustls"];

/// Where telemetry is sent beside standard error. What else OpenTelemetry's SDK reads from its standard variables
/// (headers, timeouts, batches, intervals), it reads by itself.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct Export {
    /// The collector that traces, metrics and logs are sent to by OTLP/gRPC, such as http://otel-collector:4317.
    /// Without one, they are not sent.
    #[arg(long, env)]
    pub otel_exporter_otlp_endpoint: Option<String>,
    /// The share of the traces that begin here whose spans are sent, from 0 to 1. A call that belongs to a trace already
    /// is sampled if its caller is.
    #[arg(long, env, default_value_t = SHARE, value_parser = share)]
    pub otel_traces_sampler_arg: f64,
    /// What the process is called in telemetry, instead of its own name.
    #[arg(long, env)]
    pub otel_service_name: Option<String>,
}

impl Default for Export {
    /// What is not set.
    fn default() -> Self {
        Self { otel_traces_sampler_arg: SHARE, ..Self::nowhere() }
    }
}

impl Export {
    /// Sends nothing.
    pub fn nowhere() -> Self {
        Self { otel_exporter_otlp_endpoint: None, otel_traces_sampler_arg: 0.0, otel_service_name: None }
    }
}

/// By OpenTelemetry's rules an empty variable is one that isn't set.
fn share(text: &str) -> Result<f64, String> {
    if text.is_empty() {
        return Ok(SHARE);
    }
    let share: f64 = text.parse().map_err(|_| "must be a number from 0 to 1".to_owned())?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err("must be a number from 0 to 1".to_owned()) }
}

/// What is logged: as `RUST_LOG`, a level, and levels of parts of the program, such as `info,svc_booking=debug`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFilter(String);

impl LogFilter {
    /// This one, or what is logged by default if it is empty: by OpenTelemetry's rules an empty variable is one that isn't set.
    pub fn or(self, default: &str) -> Self {
        if self.0.is_empty() { Self(default.to_owned()) } else { self }
    }
}

impl FromStr for LogFilter {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match EnvFilter::try_new(text) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(_) => Err("must be such as warn or warn,svc_booking=debug"),
        }
    }
}

/// What was installed in this process.
#[derive(Debug, Clone)]
pub struct Telemetry {
    meters: SdkMeterProvider,
    logs: Option<SdkLoggerProvider>,
}

/// Has this process log to standard error, measure and trace. Once a process, by `main`, within its runtime.
///
/// # Errors
/// If the collector's address is none, or something was installed before.
pub fn install(
    name: &'static str,
    format: LogFormat,
    filter: &LogFilter,
    export: &Export,
) -> anyhow::Result<Telemetry> {
    let filter = EnvFilter::try_new(&filter.0)?;
    let service_name = export.otel_service_name.clone().filter(|name| !name.is_empty());
    let service_name = service_name.unwrap_or_else(|| name.to_owned());
    let resource = Resource::builder().with_service_name(service_name).build();
    let endpoint = export.otel_exporter_otlp_endpoint.as_deref().filter(|endpoint| !endpoint.is_empty());
    let Some(endpoint) = endpoint else {
        tracing_subscriber::registry().with(filter).with(log::lines(format)).try_init()?;
        return Ok(Telemetry { meters: metrics::install(resource, None)?, logs: None });
    };
    let wrong = || "OTEL_EXPORTER_OTLP_ENDPOINT must be an http:// URL, such as http://otel-collector:4317";
    anyhow::ensure!(endpoint.starts_with("http://"), wrong());

    let exporter = LogExporter::builder().with_tonic().with_endpoint(endpoint).build().with_context(wrong)?;
    let logs = SdkLoggerProvider::builder()
        .with_resource(resource.clone())
        .with_log_processor(log::InTrace)
        .with_batch_exporter(exporter)
        .build();
    let is_ours = |target: &str| !TRANSPORT_TARGETS.iter().any(|transport| target.starts_with(transport));
    let records =
        OpenTelemetryTracingBridge::new(&logs).with_filter(filter_fn(move |event| is_ours(event.target())));
    tracing_subscriber::registry().with(filter).with(log::lines(format)).with(records).try_init()?;

    let exporter =
        MetricExporter::builder().with_tonic().with_endpoint(endpoint).build().with_context(wrong)?;
    let meters = metrics::install(resource.clone(), Some(PeriodicReader::builder(exporter).build()))?;

    let exporter =
        SpanExporter::builder().with_tonic().with_endpoint(endpoint).build().with_context(wrong)?;
    let mut spans = BatchSpanProcessor::builder(exporter).build();
    spans.set_resource(&resource);
    span::collect(spans, span::Ratio::new(export.otel_traces_sampler_arg));
    Ok(Telemetry { meters, logs: Some(logs) })
}

/// Installs, does something, and sends what was collected.
///
/// # Errors
/// As [`install`], and whatever the work answers.
pub async fn around<T>(
    name: &'static str,
    format: LogFormat,
    filter: &LogFilter,
    export: &Export,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let telemetry = install(name, format, filter, export)?;
    let outcome = work.await;
    telemetry.flush().await;
    outcome
}

impl Telemetry {
    /// Sends what was collected so far. The last thing that `main` does; a collector that doesn't answer is not waited for
    /// longer than 5 s.
    pub async fn flush(&self) {
        let (sent, all) = tokio::sync::oneshot::channel();
        let Self { meters, logs } = self.clone();
        if logs.is_none() {
            return;
        }
        // A thread of its own: it may block, and a runtime waits for its own threads before it ends.
        std::thread::spawn(move || {
            span::flush();
            let _ = logs.map(|logs| logs.force_flush());
            let _ = meters.force_flush();
            let _ = sent.send(());
        });
        if tokio::time::timeout(FLUSH_LIMIT, all).await.is_err() {
            tracing::warn!("the collector did not take the last telemetry in time");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_logged_is_the_default_or_what_makes_sense() {
        let logged = |told: &str| told.parse().map(|filter: LogFilter| filter.or("warn").0);
        assert_eq!(logged(""), Ok("warn".to_owned()));
        assert_eq!(logged("info,svc_booking=debug"), Ok("info,svc_booking=debug".to_owned()));
        for wrong in ["svc_booking=loud", "info,[", "=debug=info"] {
            assert!(logged(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_share_is_from_0_to_1() {
        assert_eq!(share("0.05"), Ok(0.05));
        assert_eq!((share("0"), share("1")), (Ok(0.0), Ok(1.0)));
        assert_eq!(share(""), Ok(SHARE));
        for wrong in ["-0.1", "1.1", "NaN", "five"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }
}

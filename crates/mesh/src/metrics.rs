//! What is counted and measured: instruments of OpenTelemetry, read by Prometheus from the [admin](crate::admin) port.
//! docs/OPERATIONS.md lists them all.
//!
//! There is one provider a process, installed by `main`; without it, as in most tests, nothing is recorded. Labels come
//! from tables (methods, routes, neighbours), never from what a client sent.

use opentelemetry::{
    KeyValue, global,
    metrics::{Gauge, Meter},
};
use opentelemetry_otlp::MetricExporter;
use opentelemetry_sdk::{
    Resource,
    metrics::{PeriodicReader, SdkMeterProvider},
};
use prometheus::TextEncoder;

/// How metrics are written: the text format of Prometheus.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// The names of the gRPC status codes, by number.
pub const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Where instruments are made. What is made before `main` installs the provider records nothing.
pub fn meter() -> Meter {
    global::meter("boxoffice")
}

/// Has what is measured from now on shown by [`text`], and sent by another reader, if there is one.
///
/// # Errors
/// If it was done before.
pub(crate) fn install(
    resource: Resource,
    sender: Option<PeriodicReader<MetricExporter>>,
) -> anyhow::Result<SdkMeterProvider> {
    let reader = opentelemetry_prometheus::exporter()
        .with_registry(prometheus::default_registry().clone())
        .scope_info_enabled(false)
        .build()?;
    let mut builder = SdkMeterProvider::builder().with_resource(resource).with_reader(reader);
    if let Some(sender) = sender {
        builder = builder.with_reader(sender);
    }
    let provider = builder.build();
    global::set_meter_provider(provider.clone());
    Ok(provider)
}

/// Everything that is measured in this process, as it is now.
pub fn text() -> String {
    let mut text = String::new();
    // Only a metric without a name or a value could fail, and ours have both.
    if let Err(error) = TextEncoder::new().encode_utf8(&prometheus::gather(), &mut text) {
        tracing::warn!(%error, "the metrics can't be written");
    }
    text
}

pub(crate) fn owned(labels: &[(&'static str, &str)]) -> Vec<KeyValue> {
    labels.iter().map(|(name, value)| KeyValue::new(*name, (*value).to_owned())).collect()
}

/// How much there is of something, as last seen.
pub struct Level {
    gauge: Gauge<f64>,
    labels: Vec<KeyValue>,
}

impl Level {
    /// A gauge `name` of a service. `unit` is `s` for seconds, or empty if the name says it.
    pub fn new(
        name: &'static str,
        unit: &'static str,
        description: &'static str,
        service: &'static str,
    ) -> Self {
        let gauge = meter().f64_gauge(name).with_unit(unit).with_description(description).build();
        Self { gauge, labels: owned(&[("service", service)]) }
    }

    /// It is this much now.
    pub fn set(&self, level: f64) {
        self.gauge.record(level, &self.labels);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    #[test]
    fn every_code_has_its_name() {
        for (number, name) in (0..).zip(CODES) {
            let words = format!("{:?}", Code::from_i32(number)).to_uppercase();
            assert_eq!(name.replace('_', ""), words);
        }
    }
}

//! What is counted and measured: instruments of OpenTelemetry, read by Prometheus from the [admin](crate::admin) port.
//! docs/OPERATIONS.md lists them all.
//!
//! There is one provider a process, installed by `main`; without it, as in most tests, nothing is recorded. Labels come
//! from tables (methods, routes, neighbours), never from what a client sent. Their handles are bound once, so recording a
//! call costs no lookup and no allocation.

use std::{sync::OnceLock, time::Duration};

use opentelemetry::{
    KeyValue, global,
    metrics::{BoundHistogram, Gauge, Histogram, Meter},
};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::TextEncoder;
use tokio::time::Instant;

/// How metrics are written: the text format of Prometheus.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Upper bounds of durations, in seconds.
const SECONDS: [f64; 14] =
    [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

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

/// Has what is measured from now on shown by [`text`]. Part of [`telemetry::install`](crate::telemetry::install).
///
/// # Errors
/// If it was done before.
pub fn install() -> anyhow::Result<()> {
    let reader = opentelemetry_prometheus::exporter()
        .with_registry(prometheus::default_registry().clone())
        .scope_info_enabled(false)
        .build()?;
    global::set_meter_provider(SdkMeterProvider::builder().with_reader(reader).build());
    Ok(())
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

fn owned(labels: &[(&'static str, &str)]) -> Vec<KeyValue> {
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

/// How often something ended how, and how long it took. What it ended with is one of a few values, the last label.
pub struct Durations {
    histogram: Histogram<f64>,
    labels: Vec<KeyValue>,
    end_label: &'static str,
    ends: &'static [&'static str],
    /// Beside `ends`; made when first seen, so that only what happens is shown.
    bound: Box<[OnceLock<BoundHistogram<f64>>]>,
}

impl Durations {
    /// A histogram `name` in seconds, with these labels, and one more that says how it ended.
    pub fn new(
        name: &'static str,
        description: &'static str,
        labels: &[(&'static str, &str)],
        (end_label, ends): (&'static str, &'static [&'static str]),
    ) -> Self {
        let histogram = meter()
            .f64_histogram(name)
            .with_unit("s")
            .with_description(description)
            .with_boundaries(SECONDS.to_vec())
            .build();
        Self {
            histogram,
            labels: owned(labels),
            end_label,
            ends,
            bound: ends.iter().map(|_| OnceLock::new()).collect(),
        }
    }

    /// Begins to measure one. If nobody waits for its end any more, it ends with `ends[abandoned]`.
    pub fn begin(&self, abandoned: usize) -> Measurement<'_> {
        Measurement { durations: self, begin: Instant::now(), end: abandoned }
    }

    /// Counts one that ended with `ends[end]`.
    pub fn record(&self, end: usize, took: Duration) {
        let bound = self.bound[end].get_or_init(|| {
            let end = KeyValue::new(self.end_label, self.ends[end]);
            self.histogram.bind(&[self.labels.as_slice(), &[end]].concat())
        });
        bound.record(took.as_secs_f64());
    }
}

/// Something that is being measured. Counted when it is dropped.
pub struct Measurement<'a> {
    durations: &'a Durations,
    begin: Instant,
    end: usize,
}

impl Measurement<'_> {
    /// It ended with `ends[end]`.
    pub fn end(mut self, end: usize) {
        self.end = end;
    }
}

impl Drop for Measurement<'_> {
    fn drop(&mut self) {
        self.durations.record(self.end, self.begin.elapsed());
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

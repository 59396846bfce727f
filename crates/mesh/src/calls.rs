//! Calls as operators see them, at one of their two sides: counted and timed by how they ended, and a span if their trace is
//! sampled. Handles are bound to their labels once, so a call costs no lookup and no allocation.

use std::{sync::OnceLock, time::Duration};

use opentelemetry::{
    KeyValue,
    metrics::{BoundHistogram, Histogram},
    trace::SpanKind,
};
use tokio::time::Instant;

use crate::{
    metrics,
    telemetry::{Trace, span::Span},
};

/// Upper bounds of durations, in seconds.
const SECONDS: [f64; 14] =
    [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// How calls may end.
#[derive(Debug)]
pub struct Ends {
    /// The label that says it.
    pub label: &'static str,
    /// What it may say. Elsewhere an end is its place here.
    pub names: &'static [&'static str],
    /// Those that are the fault of whoever is called.
    pub faults: &'static [&'static str],
}

/// Where calls are seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// By whoever answers.
    Server,
    /// By whoever calls.
    Client,
}

/// Calls of one kind, such as those of one method.
pub struct Calls {
    service: &'static str,
    kind: SpanKind,
    labels: Vec<KeyValue>,
    ends: &'static Ends,
    durations: Histogram<f64>,
    /// Beside the names of `ends`; made when first seen, so that only what happens is shown.
    bound: Box<[OnceLock<BoundHistogram<f64>>]>,
}

impl Calls {
    /// Calls that `service` answers or makes. With these labels, the service's name and how they ended, they go into the
    /// histogram `name`.
    pub fn new(
        service: &'static str,
        side: Side,
        (name, description): (&'static str, &'static str),
        labels: &[(&'static str, &str)],
        ends: &'static Ends,
    ) -> Self {
        let durations = metrics::meter()
            .f64_histogram(name)
            .with_unit("s")
            .with_description(description)
            .with_boundaries(SECONDS.to_vec())
            .build();
        Self {
            service,
            kind: match side {
                Side::Server => SpanKind::Server,
                Side::Client => SpanKind::Client,
            },
            labels: metrics::owned(&[&[("service", service)], labels].concat()),
            ends,
            durations,
            bound: ends.names.iter().map(|_| OnceLock::new()).collect(),
        }
    }

    /// Begins one, which is this span of a trace. If nobody waits for it any more, it ends as `abandoned`.
    pub fn begin(&self, span_name: &str, trace: &Trace, abandoned: usize) -> Call<'_> {
        let span = Span::begin(trace, &self.kind, self.service, span_name, &self.labels);
        Call { calls: self, begin: Instant::now(), end: abandoned, span }
    }

    /// Counts one that is no span.
    pub fn record(&self, end: usize, took: Duration) {
        let bound = self.bound[end].get_or_init(|| {
            let end = KeyValue::new(self.ends.label, self.ends.names[end]);
            self.durations.bind(&[self.labels.as_slice(), &[end]].concat())
        });
        bound.record(took.as_secs_f64());
    }
}

/// A call that has begun. It is over when this is dropped.
pub struct Call<'a> {
    calls: &'a Calls,
    begin: Instant,
    end: usize,
    span: Span,
}

impl Call<'_> {
    /// It is over, and this is how it ended.
    pub fn end(mut self, end: usize) {
        self.end = end;
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.calls.record(self.end, self.begin.elapsed());
        let Ends { label, names, faults } = self.calls.ends;
        self.span.set_end(label, names[self.end], faults);
    }
}

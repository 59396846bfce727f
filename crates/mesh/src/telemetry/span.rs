//! Spans: for a call whose trace is sampled, when it began and ended, and how. Made from a [`Trace`] and handed to the
//! batch processor of OpenTelemetry's SDK when it ends; a call that is not sampled costs one look at a flag.

use std::{sync::OnceLock, time::Duration};

use opentelemetry::{
    InstrumentationScope, KeyValue,
    trace::{SpanKind, Status},
};
use opentelemetry_sdk::trace::{BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor};

use super::Trace;
use crate::{clock::Clock, context::Context};

/// Where the spans of this process go. Set once, by `main`.
static COLLECTOR: OnceLock<Collector> = OnceLock::new();

#[derive(Debug)]
struct Collector {
    processor: BatchSpanProcessor,
    ratio: Ratio,
}

/// How many of the traces that begin here are sampled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ratio {
    /// Trace ids are random: those whose lower half is below this are sampled.
    bound: u128,
}

impl Ratio {
    /// A share from 0 to 1.
    pub(super) fn new(share: f64) -> Self {
        Self { bound: (share * 2f64.powi(64)) as u128 }
    }

    fn admits(self, trace_id: u128) -> bool {
        u128::from(trace_id as u64) < self.bound
    }
}

/// Has spans collected from now on.
pub(super) fn collect(processor: BatchSpanProcessor, ratio: Ratio) {
    let _ = COLLECTOR.set(Collector { processor, ratio });
}

/// Sends what was collected so far.
pub(super) fn flush() {
    if let Some(collector) = COLLECTOR.get() {
        let _ = collector.processor.force_flush();
    }
}

/// Whether a trace that begins here is sampled.
pub(super) fn is_sampled(trace_id: u128) -> bool {
    COLLECTOR.get().is_some_and(|collector| collector.ratio.admits(trace_id))
}

/// A span that has begun, if its trace is sampled. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Span(Option<Box<SpanData>>);

impl Span {
    /// Begins a span of a service.
    pub(crate) fn begin(
        trace: &Trace,
        kind: &SpanKind,
        service: &'static str,
        name: &str,
        attributes: &[KeyValue],
    ) -> Self {
        if !trace.is_sampled() || COLLECTOR.get().is_none() {
            return Self(None);
        }
        let now = Clock::system().now().into();
        Self(Some(Box::new(SpanData {
            span_context: trace.span_context(),
            parent_span_id: trace.parent(),
            parent_span_is_remote: *kind == SpanKind::Server,
            span_kind: kind.clone(),
            name: name.to_owned().into(),
            start_time: now,
            end_time: now,
            attributes: attributes.to_vec(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: InstrumentationScope::builder(service).build(),
        })))
    }

    /// No span.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// Begins a span of what a database or Redis is asked, in the trace of the call that it is for, or in one of its own. By
    /// OpenTelemetry's semantic conventions (<https://opentelemetry.io/docs/specs/semconv/database/>): `attribute` tells what is
    /// asked, and must hold no values.
    pub(crate) fn of_question(
        scope: &'static str,
        system: &'static str,
        name: &str,
        attribute: KeyValue,
    ) -> Self {
        let trace = Context::current().trace.child();
        let attributes = [KeyValue::new("db.system.name", system), attribute];
        Self::begin(&trace, &SpanKind::Client, scope, name, &attributes)
    }

    /// Says that it began so long ago.
    pub(crate) fn set_age(&mut self, age: Duration) {
        if let Some(data) = &mut self.0 {
            data.start_time -= age;
        }
    }

    /// Says that what was asked was refused, or not answered.
    pub(crate) fn set_failed(&mut self) {
        // What there is to say of it may hold values.
        const OTHER: &str = "_OTHER";
        self.set_end("error.type", OTHER, &[OTHER]);
    }

    /// Says how it ended.
    pub(crate) fn set_end(&mut self, label: &'static str, end: &'static str, faults: &[&str]) {
        let Some(data) = &mut self.0 else { return };
        data.attributes.push(KeyValue::new(label, end));
        if faults.contains(&end) {
            data.status = Status::error(end);
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let (Some(mut data), Some(collector)) = (self.0.take(), COLLECTOR.get()) {
            data.end_time = Clock::system().now().into();
            collector.processor.on_end(*data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_trace_is_sampled_by_its_id() {
        let (low, middle, high) = (0, 1 << 63, u128::from(u64::MAX));
        let admitted = |share| [low, middle, high].map(|id| Ratio::new(share).admits(id));
        assert_eq!(admitted(0.0), [false, false, false]);
        assert_eq!(admitted(0.05), [true, false, false]);
        assert_eq!(admitted(0.500_1), [true, true, false]);
        assert_eq!(admitted(1.0), [true, true, true]);
        let five_percent = Ratio::new(0.05);
        let sampled = (0..10_000).filter(|_| five_percent.admits(rand::random())).count();
        assert!((300..=700).contains(&sampled), "{sampled}");
    }
}

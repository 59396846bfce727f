//! Logs: lines on standard error, and records for a collector. Both say to which trace they belong.

use std::{fmt, io::IsTerminal};

use opentelemetry::{InstrumentationScope, logs::LogRecord};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    logs::{LogProcessor, SdkLogRecord},
};
use tracing::{Event, Subscriber};
use tracing_subscriber::{
    Layer,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{FmtSpan, Writer},
    },
    registry::LookupSpan,
};

use crate::context::Context;

/// What most lines are shorter than, in bytes.
const LINE: usize = 512;

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// A line for people.
    Human,
    /// A JSON object a line.
    Json,
}

/// Lines on standard error; in colour, if somebody may be looking.
pub(super) fn lines<S>(format: LogFormat) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let has_colours = std::io::stderr().is_terminal();
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(has_colours)
        .with_span_events(FmtSpan::NONE);
    match format {
        LogFormat::Human => layer
            .with_target(false)
            .map_event_format(|inner| Traced { inner: inner.with_ansi(has_colours), format })
            .boxed(),
        LogFormat::Json => layer
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .map_event_format(|inner| Traced { inner, format })
            .boxed(),
    }
}

/// A format that adds the trace's id to what is logged within a call.
struct Traced<F> {
    inner: F,
    format: LogFormat,
}

impl<S, N, F> FormatEvent<S, N> for Traced<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let Some(call) = Context::of_call() else {
            return self.inner.format_event(context, writer, event);
        };
        let mut line = String::with_capacity(LINE);
        self.inner.format_event(context, Writer::new(&mut line), event)?;
        let (line, trace_id) = (line.trim_end(), call.trace.id());
        match (self.format, line.strip_suffix('}')) {
            (LogFormat::Json, Some(object)) => writeln!(writer, "{object},\"trace.id\":\"{trace_id}\"}}"),
            _ => writeln!(writer, "{line} trace.id={trace_id}"),
        }
    }
}

/// Puts the records of a call into its trace, before they are sent.
#[derive(Debug)]
pub(super) struct InTrace;

impl LogProcessor for InTrace {
    fn emit(&self, record: &mut SdkLogRecord, _: &InstrumentationScope) {
        if let Some(call) = Context::of_call() {
            let span = call.trace.span_context();
            record.set_trace_context(span.trace_id(), span.span_id(), Some(span.trace_flags()));
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: std::time::Duration) -> OTelSdkResult {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, PoisonError};

    use tracing_subscriber::{fmt::MakeWriter, layer::SubscriberExt};

    use super::*;

    /// Keeps what is written.
    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Paper {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    #[test]
    fn a_line_within_a_call_says_its_trace() {
        let paper = Paper::default();
        let layer = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(paper.clone());
        let layer = layer.map_event_format(|inner| Traced { inner, format: LogFormat::Json });
        let call = Context::root();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            call.enter(|| tracing::info!(booking.id = "bkg_1", "paid"));
            tracing::info!("outside");
        });
        let text = String::from_utf8(paper.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let [within, outside] = lines[..] else { panic!("not two lines: {text}") };
        let end = format!(",\"trace.id\":\"{}\"}}", call.trace.id());
        assert!(within.contains("\"booking.id\":\"bkg_1\"") && within.ends_with(&end), "{within}");
        assert!(!outside.contains("trace.id") && outside.ends_with('}'), "{outside}");
    }
}

//! Logs, and the trace that joins the hops of a call: W3C `traceparent` (<https://www.w3.org/TR/trace-context/>).

use std::{fmt, io::IsTerminal};

use http::{HeaderMap, HeaderValue};
use tracing_subscriber::{EnvFilter, fmt::format::FmtSpan};

use crate::metrics;

/// The name of the header.
pub const HEADER: &str = "traceparent";

/// Where a call belongs: the trace it is part of, and the span that called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    trace_id: u128,
    span_id: u64,
    is_sampled: bool,
}

impl Trace {
    /// A new trace.
    pub fn root() -> Self {
        Self {
            trace_id: rand::random_range(1..=u128::MAX),
            span_id: rand::random_range(1..=u64::MAX),
            is_sampled: false,
        }
    }

    /// A span of its own in the same trace.
    pub fn child(self) -> Self {
        Self { span_id: rand::random_range(1..=u64::MAX), ..self }
    }

    /// The trace that the headers of a request continue, or a new one.
    pub fn read(headers: &HeaderMap) -> Self {
        headers.get(HEADER).and_then(|value| Self::parse(value.to_str().ok()?)).unwrap_or_else(Self::root)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_hex = |part: &str, length| {
            part.len() == length && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        if !is_hex(version, 2)
            || version == "ff"
            || !is_hex(trace, 32)
            || !is_hex(span, 16)
            || !is_hex(flags, 2)
        {
            return None;
        }
        if version == "00" && parts.next().is_some() {
            return None;
        }
        let trace_id = u128::from_str_radix(trace, 16).ok().filter(|id| *id != 0)?;
        let span_id = u64::from_str_radix(span, 16).ok().filter(|id| *id != 0)?;
        let is_sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        Some(Self { trace_id, span_id, is_sampled })
    }

    /// The header to send along.
    pub fn header(&self) -> HeaderValue {
        let flags = u8::from(self.is_sampled);
        HeaderValue::try_from(format!("00-{:032x}-{:016x}-{flags:02x}", self.trace_id, self.span_id))
            .expect("hexadecimal digits and dashes")
    }

    /// The trace's id, as people quote it.
    pub fn id(&self) -> TraceId {
        TraceId(self.trace_id)
    }
}

/// A trace's id: 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TraceId(u128);

impl fmt::Display for TraceId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// A line for people.
    Human,
    /// A JSON object a line.
    Json,
}

/// Sends logs to standard error. `LOG` (as `RUST_LOG`, such as `info,svc_booking=debug`) says which. Has metrics recorded.
/// Does nothing where a subscriber is installed already.
///
/// # Errors
/// If something else in the process shows metrics.
pub fn install(format: LogFormat, default_filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_env("LOG").unwrap_or_else(|_| EnvFilter::new(default_filter));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_span_events(FmtSpan::NONE);
    let builder = builder.with_ansi(std::io::stderr().is_terminal());
    let outcome = match format {
        LogFormat::Human => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(true).try_init(),
    };
    if outcome.is_ok() { metrics::install() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_trace_survives_the_wire() {
        let trace = Trace::parse(EXAMPLE).unwrap();
        assert_eq!(trace.header(), EXAMPLE);
        assert_eq!(trace.child().id(), trace.id());
        assert_ne!(trace.child(), trace);
    }

    #[test]
    fn other_texts_start_a_new_trace() {
        for text in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(Trace::parse(text), None, "{text}");
        }
    }
}

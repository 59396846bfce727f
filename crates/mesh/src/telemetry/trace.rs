//! The trace that joins the hops of a call: W3C `traceparent` (<https://www.w3.org/TR/trace-context/>).

use std::fmt;

use http::{HeaderMap, HeaderValue};
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceState};

use super::span;

/// The name of the header.
pub const HEADER: &str = "traceparent";

/// Where a call belongs: the trace it is part of, and its place there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    trace_id: u128,
    /// The span that called; 0, if none did.
    parent_id: u64,
    /// The span itself; 0, if the trace has none yet.
    span_id: u64,
    is_sampled: bool,
}

impl Trace {
    /// A new trace, which has no span yet. It is sampled as often as configured; never, if spans go nowhere.
    pub fn root() -> Self {
        let trace_id = rand::random_range(1..=u128::MAX);
        Self { trace_id, parent_id: 0, span_id: 0, is_sampled: span::is_sampled(trace_id) }
    }

    /// A span of its own in the same trace, sampled if the trace is.
    pub fn child(self) -> Self {
        Self { parent_id: self.span_id, span_id: rand::random_range(1..=u64::MAX), ..self }
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
        Some(Self { trace_id, parent_id: 0, span_id, is_sampled })
    }

    /// The header to send along with a call that this span makes.
    pub fn header(&self) -> HeaderValue {
        let flags = u8::from(self.is_sampled);
        HeaderValue::try_from(format!("00-{:032x}-{:016x}-{flags:02x}", self.trace_id, self.span_id))
            .expect("hexadecimal digits and dashes")
    }

    /// Whether its spans are recorded.
    pub(super) fn is_sampled(&self) -> bool {
        self.is_sampled
    }

    /// The span as OpenTelemetry names it.
    pub(super) fn span_context(&self) -> SpanContext {
        let flags = if self.is_sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
        let trace_id = opentelemetry::trace::TraceId::from_bytes(self.trace_id.to_be_bytes());
        let span_id = SpanId::from_bytes(self.span_id.to_be_bytes());
        SpanContext::new(trace_id, span_id, flags, false, TraceState::NONE)
    }

    /// The span that called; invalid, if none did.
    pub(super) fn parent(&self) -> SpanId {
        SpanId::from_bytes(self.parent_id.to_be_bytes())
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
        assert_eq!(trace.child().parent(), trace.span_context().span_id());
        assert_eq!(Trace::root().child().parent(), SpanId::INVALID, "the first span has no parent");
    }

    #[test]
    fn a_span_is_sampled_if_its_parent_is() {
        for (header, is_sampled) in [(EXAMPLE.to_owned(), true), (EXAMPLE.replace("-01", "-00"), false)] {
            let headers = HeaderMap::from_iter([(
                http::HeaderName::from_static(HEADER),
                HeaderValue::try_from(header).unwrap(),
            )]);
            let span = Trace::read(&headers).child();
            assert_eq!((span.is_sampled(), span.child().is_sampled()), (is_sampled, is_sampled));
            assert!(span.child().header().to_str().unwrap().ends_with(if is_sampled {
                "-01"
            } else {
                "-00"
            }));
        }
        assert!(!Trace::root().is_sampled(), "nobody collects spans here");
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

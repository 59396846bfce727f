//! A stream of messages as server-sent events (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).
//!
//! By convention a message of a stream has the field `revision`, which becomes the event's id, and `reset`, which makes
//! it the event `reset`; the request has `revision`, which says where to go on.

use std::{convert::Infallible, time::Duration};

use axum::response::{
    IntoResponse, Response,
    sse::{Event, KeepAlive, Sse},
};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue};
use mesh::{Failure, context::Context, shutdown::Shutdown, telemetry::TraceId};
use prost_reflect::{DynamicMessage, MessageDescriptor, ReflectMessage, Value};
use tonic::{Status, Streaming};

use crate::{
    problem::{FieldError, Problem},
    transcode,
};

/// The field that is the id of an event.
const REVISION: &str = "revision";
/// The field that says that events were missed.
pub(crate) const RESET: &str = "reset";
const LAST_EVENT_ID: &str = "Last-Event-ID";
const MAX_ID_LENGTH: usize = 255;
/// How often a comment comes while nothing happens, so that nobody in between thinks the connection dead.
const COMMENT_PERIOD: Duration = Duration::from_secs(15);

/// Goes on where the client's last event was. A browser that reconnects repeats the URL it began with, so the header is
/// newer than the query.
pub(crate) fn resume(message: &mut DynamicMessage, headers: &HeaderMap) -> Result<(), Problem> {
    let Some(id) = headers.get(LAST_EVENT_ID) else { return Ok(()) };
    let Some(field) = message.descriptor().get_field_by_name(REVISION) else { return Ok(()) };
    let Some(id) = id.to_str().ok().filter(|id| id.len() <= MAX_ID_LENGTH) else {
        return Err(Problem::fields(vec![FieldError {
            field: LAST_EVENT_ID.to_owned(),
            reason: "MALFORMED".into(),
            description: "must be the id of an event".into(),
        }]));
    };
    if !id.is_empty() {
        message.set_field(&field, Value::String(id.to_owned()));
    }
    Ok(())
}

/// Shows messages as events until they end, fail, or the gateway stops.
pub(crate) fn respond(messages: Streaming<Bytes>, output: MessageDescriptor, stop: Shutdown) -> Response {
    let trace = Context::current().trace.id();
    let events = stream::unfold(Some(messages), move |open| {
        let (output, stop) = (output.clone(), stop.clone());
        async move {
            let mut messages = open?;
            let next = tokio::select! {
                next = messages.message() => next,
                () = stop.begun() => return None,
            };
            let shown = match next {
                Ok(Some(bytes)) => show(&output, &bytes),
                Ok(None) => return None,
                Err(status) => Err(status),
            };
            Some(match shown {
                Ok(event) => (Ok::<_, Infallible>(event), Some(messages)),
                Err(status) => (Ok(failure(&status, trace)), None),
            })
        }
    });
    let keep_alive = KeepAlive::new().interval(COMMENT_PERIOD);
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    // Keeps nginx from holding events back.
    response
        .headers_mut()
        .insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

fn show(output: &MessageDescriptor, bytes: &[u8]) -> Result<Event, Status> {
    let message = transcode::decode_response(output, bytes).map_err(Failure::internal)?;
    let mut json = transcode::to_json(&message).map_err(Failure::internal)?;
    let is_reset = json.remove(RESET).is_some_and(|flag| flag == true);
    let mut event = Event::default();
    if let Some(id) = json.get(REVISION).and_then(|id| id.as_str()).filter(|id| is_event_id(id)) {
        event = event.id(id);
    }
    if is_reset {
        event = event.event(RESET);
    }
    event.json_data(json).map_err(|error| Failure::internal(error).into())
}

/// Whether a text can be the id of an event; an empty one would make the client forget where it was.
fn is_event_id(text: &str) -> bool {
    !text.is_empty() && !text.contains(['\n', '\r', '\0'])
}

fn failure(status: &Status, trace: TraceId) -> Event {
    Event::default().event("error").data(Problem::from_status(status).in_trace(trace).to_json())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptors::routes;
    use boxoffice_proto::booking::v1::{SeatChange, SeatState, WatchSeatsRequest, WatchSeatsResponse};
    use futures_util::StreamExt;
    use prost::Message;

    fn watch() -> crate::descriptors::Route {
        routes().unwrap().into_iter().find(|route| route.method.name() == "WatchSeats").unwrap()
    }

    /// An event as it goes over the wire.
    async fn text(event: Event) -> String {
        let response = Sse::new(stream::iter([Ok::<_, Infallible>(event)])).into_response();
        let chunks: Vec<_> = response.into_body().into_data_stream().collect().await;
        String::from_utf8(chunks.into_iter().flat_map(|chunk| chunk.unwrap()).collect()).unwrap()
    }

    async fn shown(message: WatchSeatsResponse) -> String {
        text(show(&watch().output, &message.encode_to_vec()).unwrap()).await
    }

    #[tokio::test]
    async fn a_message_is_shown_as_an_event() {
        let changes = vec![SeatChange { seat_id: "A-1-1".into(), state: SeatState::Held.into() }];
        let text = shown(WatchSeatsResponse { revision: "e1.7".into(), changes, reset: false }).await;
        let data = r#"{"changes":[{"seatId":"A-1-1","state":"SEAT_STATE_HELD"}],"revision":"e1.7"}"#;
        assert_eq!(text, format!("id: e1.7\ndata: {data}\n\n"));
    }

    #[tokio::test]
    async fn missed_events_are_said_by_an_event_of_its_own() {
        let text = shown(WatchSeatsResponse { revision: "e2.1".into(), changes: vec![], reset: true }).await;
        let data = r#"{"changes":[],"revision":"e2.1"}"#;
        assert_eq!(text, format!("id: e2.1\nevent: reset\ndata: {data}\n\n"));
    }

    #[tokio::test]
    async fn a_revision_can_not_break_out_of_its_line() {
        for revision in ["", "1\nevent: evil", "1\r", "1\0"] {
            let text = shown(WatchSeatsResponse { revision: revision.into(), ..Default::default() }).await;
            assert!(text.starts_with("data: "), "{text}");
            assert_eq!(text.lines().count(), 2, "{text}");
        }
    }

    #[tokio::test]
    async fn a_failure_is_shown_as_a_problem() {
        let trace = mesh::telemetry::Trace::root().id();
        let text = text(failure(&Status::unavailable("10.0.0.7 is gone"), trace)).await;
        let (event, data) = text.split_once('\n').unwrap();
        assert_eq!(event, "event: error");
        let problem: serde_json::Value = serde_json::from_str(data.trim_start_matches("data: ")).unwrap();
        assert_eq!(problem["reason"], "TRANSPORT_BROKEN");
        assert_eq!(problem["traceId"], trace.to_string());
        assert!(!text.contains("10.0.0.7"), "{text}");
    }

    fn resumed(revision: &str, header: Option<&str>) -> Result<String, Problem> {
        let mut message = DynamicMessage::new(watch().input);
        message.set_field_by_name(REVISION, Value::String(revision.to_owned()));
        let headers =
            header.map(|id| (HeaderName::from_static("last-event-id"), HeaderValue::from_str(id).unwrap()));
        resume(&mut message, &HeaderMap::from_iter(headers))?;
        Ok(WatchSeatsRequest::decode(message.encode_to_vec().as_slice()).unwrap().revision)
    }

    #[test]
    fn the_header_is_newer_than_the_query() {
        assert_eq!(resumed("1", None).unwrap(), "1");
        assert_eq!(resumed("1", Some("2")).unwrap(), "2");
        assert_eq!(resumed("1", Some("")).unwrap(), "1");
        let problem = resumed("1", Some(&"x".repeat(256))).unwrap_err();
        assert!(problem.to_json().contains(r#""field":"Last-Event-ID""#));
    }
}

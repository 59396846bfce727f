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

use crate::{problem::Problem, transcode};

/// The field that is the id of an event.
const REVISION: &str = "revision";
/// The field that says that events were missed.
pub(crate) const RESET: &str = "reset";
const LAST_EVENT_ID: &str = "Last-Event-ID";
/// How often a comment comes while nothing happens, so that nobody in between thinks the connection dead.
const COMMENT_PERIOD: Duration = Duration::from_secs(15);

/// Goes on where the client's last event was. A browser that reconnects repeats the URL it began with, so the header is
/// newer than the query.
///
/// A browser gives up for good if it is refused, and it can't drop an id that it was given elsewhere: so any id is passed
/// on, and the service says `reset` to one that it doesn't know.
pub(crate) fn resume(message: &mut DynamicMessage, headers: &HeaderMap) {
    let Some(id) = headers.get(LAST_EVENT_ID).filter(|id| !id.is_empty()) else { return };
    let Some(field) = message.descriptor().get_field_by_name(REVISION) else { return };
    message.set_field(&field, Value::String(String::from_utf8_lossy(id.as_bytes()).into_owned()));
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
    use crate::{codec::BytesCodec, descriptors::routes};
    use boxoffice_proto::booking::v1::{SeatChange, SeatState, WatchSeatsRequest, WatchSeatsResponse};
    use futures_util::StreamExt;
    use http::StatusCode;
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use prost::Message;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;
    use tonic::codec::Codec;

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

    fn resumed(revision: &str, header: Option<&[u8]>) -> String {
        let mut message = DynamicMessage::new(watch().input);
        message.set_field_by_name(REVISION, Value::String(revision.to_owned()));
        let headers =
            header.map(|id| (HeaderName::from_static("last-event-id"), HeaderValue::from_bytes(id).unwrap()));
        resume(&mut message, &HeaderMap::from_iter(headers));
        WatchSeatsRequest::decode(message.encode_to_vec().as_slice()).unwrap().revision
    }

    #[test]
    fn the_header_is_newer_than_the_query() {
        assert_eq!(resumed("1", None), "1");
        assert_eq!(resumed("1", Some(b"2")), "2");
        assert_eq!(resumed("1", Some(b"")), "1");
    }

    #[test]
    fn an_id_that_is_none_of_ours_is_passed_on() {
        let long = "x".repeat(1000);
        assert_eq!(resumed("1", Some(long.as_bytes())), long);
        assert_eq!(resumed("1", Some(b"\xff1-1")), "\u{fffd}1-1");
    }

    /// A stream of nothing, until it is given something.
    fn open_stream() -> (mpsc::Sender<Result<Frame<Bytes>, Status>>, Response) {
        let (sender, receiver) = mpsc::channel(1);
        let body = StreamBody::new(ReceiverStream::new(receiver));
        let messages = Streaming::new_response(BytesCodec.decoder(), body, StatusCode::OK, None, None);
        (sender, respond(messages, watch().output, Shutdown::new()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_comment_comes_every_15_seconds() {
        let (service, response) = open_stream();
        let mut body = response.into_body().into_data_stream();
        for _ in 0..3 {
            let early = tokio::time::timeout(Duration::from_millis(14_999), body.next()).await;
            assert!(early.is_err(), "{early:?}");
            let comment = tokio::time::timeout(Duration::from_millis(2), body.next()).await;
            assert_eq!(comment.expect("a comment").unwrap().unwrap(), ":\n\n");
        }
        // An event is a sign of life as well.
        tokio::time::advance(Duration::from_secs(10)).await;
        let message = WatchSeatsResponse::default().encode_to_vec();
        let mut frame = vec![0, 0, 0, 0, u8::try_from(message.len()).unwrap()];
        frame.extend(message);
        service.send(Ok(Frame::data(frame.into()))).await.unwrap();
        assert!(body.next().await.unwrap().unwrap().starts_with(b"data: "));
        let early = tokio::time::timeout(Duration::from_millis(14_999), body.next()).await;
        assert!(early.is_err(), "{early:?}");
        assert_eq!(body.next().await.unwrap().unwrap(), ":\n\n");
    }
}

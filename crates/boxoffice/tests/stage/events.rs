//! Server-sent events, read as a browser reads them.

use boxoffice::api::Reply;
use reqwest::{RequestBuilder, Response};
use serde_json::Value;

use super::PATIENCE;

/// An event.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    pub(crate) id: String,
    /// `message`, unless the event says otherwise.
    pub(crate) kind: String,
    pub(crate) data: Value,
}

/// A stream of events.
pub(crate) struct Events {
    pub(crate) response: Response,
    unread: String,
}

impl Events {
    /// Begins to listen.
    pub(crate) async fn open(call: RequestBuilder) -> Self {
        let response = call.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, unread: String::new() }
    }

    /// The next event. None: the stream has ended.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(end) = self.unread.find("\n\n") {
                let block: String = self.unread.drain(..end + 2).collect();
                match parse(&block) {
                    Some(event) => return Some(event),
                    None => continue,
                }
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await;
            let chunk = chunk.expect("an event, or the end, within the time that tests wait");
            self.unread += std::str::from_utf8(&chunk.ok()??).unwrap();
        }
    }
}

/// The event of a block of lines. None: it is a comment.
fn parse(block: &str) -> Option<Event> {
    let mut event = Event { id: String::new(), kind: "message".into(), data: Value::Null };
    for line in block.lines() {
        match line.split_once(": ") {
            Some(("id", id)) => event.id = id.into(),
            Some(("event", kind)) => event.kind = kind.into(),
            Some(("data", data)) => event.data = serde_json::from_str(data).unwrap(),
            _ => {}
        }
    }
    (event.data != Value::Null).then_some(event)
}

//! The body of a stream that has begun: if it breaks, or ends without a status, it says so with a reason.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame};
use tonic::{Status, body::Body};

use super::{balance::InFlight, broken};

pub(super) struct StreamBody {
    neighbour: &'static str,
    inner: Body,
    has_ended: bool,
    _in_flight: InFlight,
}

impl StreamBody {
    pub(super) fn new(neighbour: &'static str, inner: Body, in_flight: InFlight) -> Self {
        Self { neighbour, inner, has_ended: false, _in_flight: in_flight }
    }
}

impl HttpBody for StreamBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(context));
        let frame = match frame {
            Some(Ok(frame)) => Ok(frame),
            Some(Err(status)) => Err(broken(self.neighbour, status).into()),
            None => Err(broken(self.neighbour, "a stream ended without grpc-status").into()),
        };
        self.has_ended = frame.as_ref().map_or(true, Frame::is_trailers);
        Poll::Ready(Some(frame))
    }
}

//! The body of a stream that ends cleanly: when its longest life is over, or when the server drains.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body as HttpBody, Frame};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tonic::{Status, body::Body};

use crate::shutdown::Shutdown;

pub(super) struct EndingBody {
    inner: Body,
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
    has_ended: bool,
    _place: OwnedSemaphorePermit,
}

impl EndingBody {
    pub(super) fn new(
        inner: Body,
        deadline: Instant,
        shutdown: Shutdown,
        place: OwnedSemaphorePermit,
    ) -> Self {
        let end = Box::pin(async move {
            tokio::select! {
                () = tokio::time::sleep_until(deadline) => {}
                () = shutdown.begun() => {}
            }
        });
        Self { inner, end, has_ended: false, _place: place }
    }
}

impl HttpBody for EndingBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        if self.end.as_mut().poll(context).is_pending() {
            return Pin::new(&mut self.inner).poll_frame(context);
        }
        self.has_ended = true;
        let mut trailers = HeaderMap::new();
        trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

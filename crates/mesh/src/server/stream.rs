//! The body of a stream that ends cleanly when it is told to, and as a bug when it panics.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context as TaskContext, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame};
use tonic::{Status, body::Body};

use crate::{context::Context, failure::Failure};

pub(super) struct EndingBody {
    inner: Body,
    /// What the stream belongs to, for what is made of it on the way.
    context: Context,
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
    has_ended: bool,
}

impl EndingBody {
    /// A body that ends when `end` does.
    pub(super) fn new(inner: Body, context: Context, end: impl Future<Output = ()> + Send + 'static) -> Self {
        Self { inner, context, end: Box::pin(end), has_ended: false }
    }
}

impl HttpBody for EndingBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let status = if self.end.as_mut().poll(task).is_ready() {
            Status::ok("")
        } else {
            let context = self.context;
            let poll = || context.enter(|| Pin::new(&mut self.inner).poll_frame(task));
            match catch_unwind(AssertUnwindSafe(poll)) {
                Ok(polled) => return polled,
                Err(_) => {
                    context.enter(|| Failure::internal("a stream panicked; its message stands above").into())
                }
            }
        };
        self.has_ended = true;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }
}

//! A connection whose client has to begin: one that connects and says nothing would keep its place for ever.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};
use tonic::transport::server::Connected;

/// How long a client may take to begin. Later the keepalive finds out who is gone.
const LIMIT: Duration = Duration::from_secs(60);
/// What every client of HTTP/2 begins with, in bytes (RFC 9113, 3.4). No request of HTTP/1.1 is shorter.
const PREFACE_BYTES: usize = 24;

/// A connection that breaks off if its client does not begin: within a minute from when it was made.
#[derive(Debug)]
pub struct Prompt<Io> {
    inner: Io,
    /// What hasn't come yet of the beginning, in bytes.
    missing: usize,
    /// None: it has begun.
    limit: Option<Pin<Box<Sleep>>>,
}

impl<Io> Prompt<Io> {
    /// A connection just made.
    pub fn new(inner: Io) -> Self {
        Self { inner, missing: PREFACE_BYTES, limit: Some(Box::pin(sleep(LIMIT))) }
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Prompt<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(context, buffer);
        if let Some(limit) = &mut self.limit {
            if polled.is_pending() && limit.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.missing = self.missing.saturating_sub(buffer.filled().len() - before);
            if self.missing == 0 {
                self.limit = None;
            }
        }
        polled
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Prompt<Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

impl<Io: Connected> Connected for Prompt<Io> {
    type ConnectInfo = Io::ConnectInfo;

    fn connect_info(&self) -> Io::ConnectInfo {
        self.inner.connect_info()
    }
}

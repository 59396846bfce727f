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
    time::sleep,
};
use tonic::transport::server::Connected;

use crate::shutdown::Shutdown;

/// How long a client may take to begin. Later the keepalive finds out who is gone.
const LIMIT: Duration = Duration::from_secs(60);
/// The same once the server accepts nothing more: long enough for one whose first bytes are on their way.
const LAST_LIMIT: Duration = Duration::from_secs(1);
/// What every client of HTTP/2 begins with, in bytes (RFC 9113, 3.4). No request of HTTP/1.1 is shorter.
const PREFACE_BYTES: usize = 24;

/// A connection that breaks off if its client does not begin: within a minute from when it was made, or a second from when
/// the server stops.
pub struct Prompt<Io> {
    inner: Io,
    /// What hasn't come yet of the beginning, in bytes.
    missing: usize,
    /// None: it has begun.
    limit: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<Io> Prompt<Io> {
    /// A connection just made, to a server that stops when `stop` begins.
    pub fn new(inner: Io, stop: &Shutdown) -> Self {
        let stopped = stop.begun_owned();
        let limit = async {
            tokio::select! {
                () = sleep(LIMIT) => {}
                () = stopped => sleep(LAST_LIMIT).await,
            }
        };
        Self { inner, missing: PREFACE_BYTES, limit: Some(Box::pin(limit)) }
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

    // Without it, HTTP/1 copies each answer that many connections share.
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

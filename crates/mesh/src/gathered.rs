//! A connection that sends what many calls write with as few system calls as it can.
//!
//! HTTP/2 writes frames, and asks to have them sent as soon as one call has nothing more to write. Under load others are about
//! to write on the same connection; sending each apart costs both machines more than making the answer did. So a connection
//! that is asked to send steps back once: whoever is ready to write does so first. If nobody is, no time passes.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// What is kept to be sent together at the most, in bytes.
const LIMIT: usize = 32 * 1024;

/// A connection that gathers what is written until it is flushed, and then steps back once before it sends.
pub(crate) struct Gathered<Io> {
    inner: Io,
    unsent: BytesMut,
    has_stepped_back: bool,
}

impl<Io: AsyncWrite + Unpin> Gathered<Io> {
    pub(crate) fn new(inner: Io) -> Self {
        Self { inner, unsent: BytesMut::new(), has_stepped_back: false }
    }

    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let sent = ready!(Pin::new(&mut self.inner).poll_write(context, &self.unsent))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent.advance(sent);
        }
        self.has_stepped_back = false;
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Gathered<Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.unsent.len() + bytes.len() > LIMIT {
            ready!(self.poll_send(context))?;
        }
        if bytes.len() > LIMIT {
            return Pin::new(&mut self.inner).poll_write(context, bytes);
        }
        self.unsent.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.unsent.is_empty() && !self.has_stepped_back {
            self.has_stepped_back = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Gathered<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<Io: Connected> Connected for Gathered<Io> {
    type ConnectInfo = Io::ConnectInfo;

    fn connect_info(&self) -> Io::ConnectInfo {
        self.inner.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::io::AsyncWriteExt;

    use super::*;

    /// Notes what each write carried; takes so many bytes at once.
    #[derive(Clone)]
    struct Noting {
        writes: Arc<Mutex<Vec<Vec<u8>>>>,
        most: usize,
    }

    impl Noting {
        fn new(most: usize) -> Self {
            Self { writes: Arc::default(), most }
        }

        fn lengths(&self) -> Vec<usize> {
            self.writes.lock().unwrap().iter().map(Vec::len).collect()
        }
    }

    impl AsyncWrite for Noting {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let taken = bytes.len().min(self.most);
            self.writes.lock().unwrap().push(bytes[..taken].to_vec());
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_others_write_while_it_steps_back_is_sent_with_it() {
        let wire = Noting::new(usize::MAX);
        let connection = Arc::new(tokio::sync::Mutex::new(Gathered::new(wire.clone())));
        let other = tokio::spawn({
            let connection = Arc::clone(&connection);
            async move { connection.lock().await.write_all(b"others'").await.unwrap() }
        });
        connection.lock().await.write_all(b"first, ").await.unwrap();
        assert_eq!(wire.lengths(), [0; 0], "nothing is sent before it is flushed");
        let flush = std::future::poll_fn(|context| {
            let mut connection = connection.try_lock().expect("nobody keeps it");
            Pin::new(&mut *connection).poll_flush(context)
        });
        flush.await.unwrap();
        other.await.unwrap();
        assert_eq!(*wire.writes.lock().unwrap(), [b"first, others'"]);
    }

    #[tokio::test]
    async fn what_is_written_after_a_flush_waits_for_the_next_one_and_steps_back_again() {
        let wire = Noting::new(3);
        let mut connection = Gathered::new(wire.clone());
        connection.write_all(b"12345").await.unwrap();
        connection.flush().await.unwrap();
        assert_eq!(wire.lengths(), [3, 2]);
        connection.write_all(b"6").await.unwrap();
        let flush = futures_util::future::poll_immediate(connection.flush());
        assert!(flush.await.is_none(), "it steps back each time");
        assert_eq!(wire.lengths(), [3, 2]);
        connection.shutdown().await.unwrap();
        assert_eq!(wire.writes.lock().unwrap().concat(), b"123456");
    }

    #[tokio::test]
    async fn more_than_the_limit_is_not_kept_and_stays_in_order() {
        let wire = Noting::new(usize::MAX);
        let mut connection = Gathered::new(wire.clone());
        let long: Vec<u8> = (0..=LIMIT).map(|index| index as u8).collect();
        connection.write_all(b"before").await.unwrap();
        connection.write_all(&long).await.unwrap();
        assert_eq!(wire.lengths(), [6, LIMIT + 1]);
        connection.write_all(&long[..LIMIT]).await.unwrap();
        connection.write_all(b"after").await.unwrap();
        assert_eq!(wire.lengths(), [6, LIMIT + 1, LIMIT]);
        connection.flush().await.unwrap();
        assert_eq!(
            wire.writes.lock().unwrap().concat(),
            [b"before", &*long, &long[..LIMIT], b"after"].concat()
        );
    }
}

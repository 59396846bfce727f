//! What names stand for and how connections are made: the system's network, or one that a test simulates.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
};

/// A network that neighbours are found and reached by.
#[async_trait::async_trait]
pub trait Network: Send + Sync + 'static {
    /// The endpoints that a name stands for.
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;

    /// A connection to an endpoint.
    async fn connect(&self, endpoint: SocketAddr) -> io::Result<Box<dyn Connection>>;
}

/// A connection, whatever carries it.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// The system's network.
pub(super) struct System;

#[async_trait::async_trait]
impl Network for System {
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(lookup_host((host, port)).await?.collect())
    }

    async fn connect(&self, endpoint: SocketAddr) -> io::Result<Box<dyn Connection>> {
        let stream = TcpStream::connect(endpoint).await?;
        // Small messages must not wait for more to send.
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_are_resolved_by_the_system() {
        let endpoints = System.resolve("localhost", 50051).await.unwrap();
        assert!(!endpoints.is_empty());
        for endpoint in endpoints {
            assert!(endpoint.ip().is_loopback() && endpoint.port() == 50051, "{endpoint}");
        }
        // Nobody has a name below this one (RFC 2606).
        System.resolve("nothing.invalid", 50051).await.unwrap_err();
    }
}

//! Where a service is to be reached: it listens when it can answer, and not before.

use std::{io, net::SocketAddr};

use tokio::net::{TcpListener, TcpSocket};
use tonic::transport::server::TcpIncoming;

/// Connections that wait to be accepted; the system refuses more.
const BACKLOG: u32 = 1024;

/// Where a service is to be reached.
#[derive(Debug)]
pub enum Port {
    /// Taken: whoever calls before the service is ready is refused at once, and asks another one.
    Reserved(TcpSocket),
    /// Listened on already: whoever calls before the service is ready waits for it.
    Open(TcpListener),
}

impl Port {
    /// Takes an address.
    ///
    /// # Errors
    /// If it is in use, or not this machine's.
    pub fn reserve(address: SocketAddr) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // As listeners of tokio do: what is left of the connections of a process before is no obstacle.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(Self::Reserved(socket))
    }

    /// The address.
    ///
    /// # Errors
    /// If the system does not know it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Reserved(socket) => socket.local_addr(),
            Self::Open(listener) => listener.local_addr(),
        }
    }

    /// Listens, if it does not yet.
    ///
    /// # Errors
    /// If another process has begun to listen on it meanwhile.
    pub fn listen(self) -> io::Result<TcpListener> {
        match self {
            Self::Reserved(socket) => {
                let address = socket.local_addr()?;
                let in_use = |error: io::Error| {
                    io::Error::new(error.kind(), format!("can't listen on {address}: {error}"))
                };
                socket.listen(BACKLOG).map_err(in_use)
            }
            Self::Open(listener) => Ok(listener),
        }
    }

    /// The connections made to it, from now on.
    ///
    /// # Errors
    /// If another process has begun to listen on it meanwhile.
    pub fn open(self) -> io::Result<TcpIncoming> {
        let listener = self.listen()?;
        tracing::info!(address = %listener.local_addr()?, "listening");
        Ok(TcpIncoming::from(listener).with_nodelay(Some(true)))
    }
}

impl From<TcpListener> for Port {
    fn from(listener: TcpListener) -> Self {
        Self::Open(listener)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::TcpStream;
    use tokio_stream::StreamExt;

    use super::*;

    #[tokio::test]
    async fn whoever_connects_before_it_is_open_is_refused() {
        let port = Port::reserve((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = port.local_addr().unwrap();
        let refused = TcpStream::connect(address).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let mut incoming = port.open().unwrap();
        let _connected = TcpStream::connect(address).await.unwrap();
        incoming.next().await.unwrap().unwrap();
        Port::reserve(address).expect_err("it is in use");
    }
}

//! A TCP proxy that stands between two services and misbehaves on command: slow, cut off, or losing answers.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
};

/// What a [`FaultProxy`] does with connections and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Carries everything, both ways.
    Pass,
    /// Resets every connection, the open ones too: to its callers the target is a process that was killed.
    Refuse,
    /// Accepts connections and swallows whatever comes, from both sides: a partition.
    Blackhole,
    /// Carries everything, each chunk of an answer late by this much: a slow neighbour.
    Delay(Duration),
    /// Carries requests and swallows the answers: the work is done and nobody hears of it.
    DropReplies,
    /// Carries answers and keeps requests back until the mode changes: they come late, maybe after their caller has left.
    Stall,
}

/// A proxy on a port of its own in front of one target. It stops, and resets its connections, when it is dropped.
///
/// A connection of which bytes were swallowed stays deaf in that direction after the mode has changed: to carry the
/// later bytes would hand the peers a stream with a hole. It ends when a peer gives it up, or by
/// [`reset_connections`](Self::reset_connections).
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    orders: watch::Sender<Orders>,
    swallowed_bytes: Arc<AtomicU64>,
}

/// What every connection of a proxy obeys.
#[derive(Debug, Clone, Copy)]
struct Orders {
    mode: Mode,
    /// How often all connections were reset so far.
    resets: u64,
}

impl FaultProxy {
    /// Starts a proxy that passes everything to `target`.
    ///
    /// # Panics
    ///
    /// When no port can be had on 127.0.0.1.
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port on 127.0.0.1");
        let address = listener.local_addr().expect("the address of a bound listener");
        let (orders, received) = watch::channel(Orders { mode: Mode::Pass, resets: 0 });
        let swallowed_bytes = Arc::new(AtomicU64::new(0));
        tokio::spawn(accept(listener, target, received, Arc::clone(&swallowed_bytes)));
        Self { address, orders, swallowed_bytes }
    }

    /// Where to connect instead of to the target.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// [`address`](Self::address) as services are configured: `http://127.0.0.1:…`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Does this from now on, to open connections too.
    pub fn set_mode(&self, mode: Mode) {
        self.orders.send_modify(|orders| orders.mode = mode);
    }

    /// Resets the connections that were accepted so far; what new ones meet, the mode says. A connection just made may
    /// be one that the proxy has not come to accept yet: before a test counts on it, let it carry or lose a byte.
    pub fn reset_connections(&self) {
        self.orders.send_modify(|orders| orders.resets += 1);
    }

    /// How many bytes were swallowed or kept back so far, in both directions, HTTP/2's own frames included.
    pub fn swallowed_bytes(&self) -> u64 {
        self.swallowed_bytes.load(Ordering::Relaxed)
    }
}

async fn accept(
    listener: TcpListener,
    target: SocketAddr,
    mut orders: watch::Receiver<Orders>,
    swallowed_bytes: Arc<AtomicU64>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            changed = orders.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return, // the proxy was dropped
            },
        };
        // A failed accept is the peer's affair: it went away before we came.
        let Ok((client, _)) = accepted else { continue };
        tokio::spawn(relay(client, target, orders.clone(), Arc::clone(&swallowed_bytes)));
    }
}

/// Serves one connection to its end.
async fn relay(
    mut client: TcpStream,
    target: SocketAddr,
    orders: watch::Receiver<Orders>,
    swallowed_bytes: Arc<AtomicU64>,
) {
    let at_first = *orders.borrow();
    if at_first.mode == Mode::Refuse {
        return reset(&client);
    }
    let mut later_orders = orders.clone();
    let cut = async move {
        // It also ends with an error, when the proxy is dropped: another reason to cut.
        let _ = later_orders.wait_for(|now| now.mode == Mode::Refuse || now.resets != at_first.resets).await;
    };
    tokio::pin!(cut);

    if at_first.mode == Mode::Blackhole {
        let was_cut = tokio::select! {
            () = &mut cut => true,
            () = swallow(&mut client, &swallowed_bytes) => false,
        };
        if was_cut {
            reset(&client);
        }
        return;
    }

    let connected = tokio::select! {
        () = &mut cut => None,
        connected = TcpStream::connect(target) => connected.ok(),
    };
    let Some(mut server) = connected else {
        return reset(&client);
    };
    // Else the kernel holds small writes back for up to 40 ms. A socket that is dead already needs none of it.
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let ended_well = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let requests = carry_requests(from_client, to_server, orders.clone(), &swallowed_bytes);
        let replies = carry_replies(from_server, to_client, orders, &swallowed_bytes);
        tokio::select! {
            () = &mut cut => false,
            ended = async { tokio::try_join!(requests, replies) } => ended.is_ok(),
        }
    };
    if !ended_well {
        reset(&client);
        reset(&server);
    }
}

/// Makes the connection end by a reset instead of a farewell once it is dropped.
fn reset(connection: &TcpStream) {
    // It fails on a socket that is dead already, and then there is nothing left to reset.
    let _ = connection.set_zero_linger();
}

async fn swallow(client: &mut TcpStream, swallowed_bytes: &AtomicU64) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(length @ 1..) = client.read(&mut buffer).await {
        swallowed_bytes.fetch_add(length as u64, Ordering::Relaxed);
    }
}

const CHUNK: usize = 16 * 1024;

async fn carry_requests(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut orders: watch::Receiver<Orders>,
    swallowed_bytes: &AtomicU64,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut deaf = false;
    loop {
        let read = from.read(&mut buffer).await;
        if orders.borrow().mode == Mode::Stall {
            swallowed_bytes.fetch_add(read.as_ref().map_or(0, |length| *length as u64), Ordering::Relaxed);
            // It fails when the proxy is dropped, and then the connection is cut.
            let _ = orders.wait_for(|now| now.mode != Mode::Stall).await;
        }
        deaf |= orders.borrow().mode == Mode::Blackhole;
        if deaf {
            match read {
                Ok(length @ 1..) => {
                    swallowed_bytes.fetch_add(length as u64, Ordering::Relaxed);
                    continue;
                }
                // The target must not hear that its caller is gone: a partition swallows farewells too.
                Ok(0) | Err(_) => return Ok(()),
            }
        }
        match read? {
            0 => return to.shutdown().await,
            length => to.write_all(&buffer[..length]).await?,
        }
    }
}

async fn carry_replies(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    orders: watch::Receiver<Orders>,
    swallowed_bytes: &AtomicU64,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut deaf = false;
    loop {
        let read = from.read(&mut buffer).await;
        let mode = orders.borrow().mode;
        deaf |= matches!(mode, Mode::Blackhole | Mode::DropReplies);
        if deaf {
            match read {
                Ok(length @ 1..) => {
                    swallowed_bytes.fetch_add(length as u64, Ordering::Relaxed);
                    continue;
                }
                // The caller must not hear that the target is gone: its farewell is an answer too.
                Ok(0) | Err(_) => return Ok(()),
            }
        }
        let length = read?;
        if let Mode::Delay(delay) = mode {
            tokio::time::sleep(delay).await;
        }
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..length]).await?;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Mutex, PoisonError},
        time::Instant,
    };

    use super::*;
    use crate::wait_until;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// A target that answers with what it is sent, and remembers it.
    struct Echo {
        address: SocketAddr,
        received: Arc<Mutex<Vec<u8>>>,
    }

    impl Echo {
        async fn start() -> Self {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
            let address = listener.local_addr().expect("an address");
            let received = Arc::new(Mutex::new(Vec::new()));
            let record = Arc::clone(&received);
            tokio::spawn(async move {
                while let Ok((mut connection, _)) = listener.accept().await {
                    let record = Arc::clone(&record);
                    tokio::spawn(async move {
                        let mut buffer = [0; 64];
                        while let Ok(length @ 1..) = connection.read(&mut buffer).await {
                            record.lock().unwrap_or_else(PoisonError::into_inner).extend(&buffer[..length]);
                            if connection.write_all(&buffer[..length]).await.is_err() {
                                return;
                            }
                        }
                    });
                }
            });
            Self { address, received }
        }

        fn received(&self) -> String {
            String::from_utf8_lossy(&self.received.lock().unwrap_or_else(PoisonError::into_inner))
                .into_owned()
        }

        async fn wait_for(&self, expected: &str) {
            wait_until("the target to receive", PATIENCE, async || match self.received() {
                received if received == expected => Ok(()),
                received => Err(format!("received {received:?}, not {expected:?}")),
            })
            .await;
        }
    }

    async fn connect(proxy: &FaultProxy) -> TcpStream {
        TcpStream::connect(proxy.address()).await.expect("the proxy accepts")
    }

    /// Sends `text` and returns what comes back, or how the connection ended.
    async fn exchange(connection: &mut TcpStream, text: &str) -> io::Result<String> {
        connection.write_all(text.as_bytes()).await?;
        let mut answer = vec![0; text.len()];
        connection.read_exact(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    async fn wait_for_swallowed(proxy: &FaultProxy, expected: u64) {
        wait_until("bytes to be swallowed", PATIENCE, async || match proxy.swallowed_bytes() {
            bytes if bytes == expected => Ok(()),
            bytes => Err(format!("{bytes} bytes, not {expected}")),
        })
        .await;
    }

    /// Waits for the end of a connection that must have delivered nothing before.
    async fn silent_end(connection: &mut TcpStream) -> io::ErrorKind {
        let read = tokio::time::timeout(PATIENCE, connection.read(&mut [0; 64])).await.expect("an end");
        read.expect_err("neither bytes nor a farewell were to come through").kind()
    }

    #[tokio::test]
    async fn passing_carries_both_ways_and_the_farewell() {
        let echo = Echo::start().await;
        let proxy = FaultProxy::start(echo.address).await;
        let mut connection = connect(&proxy).await;
        assert_eq!(exchange(&mut connection, "hello").await.expect("an answer"), "hello");
        connection.shutdown().await.expect("half a close");
        assert_eq!(connection.read(&mut [0; 8]).await.expect("a farewell"), 0);
        assert_eq!(proxy.url(), format!("http://127.0.0.1:{}", proxy.address().port()));
    }

    #[tokio::test]
    async fn refusing_resets_open_and_new_connections() {
        let echo = Echo::start().await;
        let proxy = FaultProxy::start(echo.address).await;
        let mut open = connect(&proxy).await;
        exchange(&mut open, "before").await.expect("an answer");
        proxy.set_mode(Mode::Refuse);
        assert_eq!(silent_end(&mut open).await, io::ErrorKind::ConnectionReset);
        assert_eq!(silent_end(&mut connect(&proxy).await).await, io::ErrorKind::ConnectionReset);

        proxy.set_mode(Mode::Pass);
        assert_eq!(exchange(&mut connect(&proxy).await, "after").await.expect("an answer"), "after");
        assert_eq!(echo.received(), "beforeafter");
    }

    #[tokio::test]
    async fn a_black_hole_swallows_what_both_sides_send() {
        let echo = Echo::start().await;
        let proxy = FaultProxy::start(echo.address).await;
        let mut open = connect(&proxy).await;
        exchange(&mut open, "before").await.expect("an answer");
        proxy.set_mode(Mode::Blackhole);
        open.write_all(b"lost").await.expect("bytes are taken");
        let mut new = connect(&proxy).await;
        new.write_all(b"lost").await.expect("bytes are taken");
        wait_for_swallowed(&proxy, 8).await;

        proxy.reset_connections();
        assert_eq!(silent_end(&mut open).await, io::ErrorKind::ConnectionReset);
        assert_eq!(silent_end(&mut new).await, io::ErrorKind::ConnectionReset);
        assert_eq!(echo.received(), "before");
    }

    #[tokio::test]
    async fn a_connection_that_lost_bytes_stays_deaf_when_the_partition_heals() {
        let echo = Echo::start().await;
        let proxy = FaultProxy::start(echo.address).await;
        let mut open = connect(&proxy).await;
        exchange(&mut open, "before").await.expect("an answer");
        proxy.set_mode(Mode::DropReplies);
        open.write_all(b"unheard").await.expect("bytes are taken");
        wait_for_swallowed(&proxy, 7).await;

        proxy.set_mode(Mode::Pass);
        open.write_all(b"deaf").await.expect("bytes are taken");
        echo.wait_for("beforeunhearddeaf").await;
        assert_eq!(exchange(&mut connect(&proxy).await, "new").await.expect("an answer"), "new");
        proxy.reset_connections();
        assert_eq!(silent_end(&mut open).await, io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn dropped_replies_leave_the_request_done_and_unanswered() {
        let echo = Echo::start().await;
        let proxy = FaultProxy::start(echo.address).await;
        proxy.set_mode(Mode::DropReplies);
        let mut connection = connect(&proxy).await;
        connection.write_all(b"charge").await.expect("bytes are taken");
        echo.wait_for("charge").await;
        wait_for_swallowed(&proxy, 6).await;
        proxy.reset_connections();
        assert_eq!(silent_end(&mut connection).await, io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_delay_makes_each_answer_late_and_ends_with_the_mode() {
        const DELAY: Duration = Duration::from_millis(150);
        let echo = Echo::start().await;
        let proxy = FaultProxy::start(echo.address).await;
        let mut connection = connect(&proxy).await;
        proxy.set_mode(Mode::Delay(DELAY));
        let sent = Instant::now();
        assert_eq!(exchange(&mut connection, "slow").await.expect("an answer"), "slow");
        assert!(sent.elapsed() >= DELAY, "{:?}", sent.elapsed());

        proxy.set_mode(Mode::Delay(Duration::from_secs(3600)));
        connection.write_all(b"never").await.expect("bytes are taken");
        echo.wait_for("slownever").await;
        proxy.reset_connections();
        assert_eq!(silent_end(&mut connection).await, io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn stalled_requests_come_late_also_when_their_caller_has_left() {
        let echo = Echo::start().await;
        let proxy = FaultProxy::start(echo.address).await;
        let mut connection = connect(&proxy).await;
        exchange(&mut connection, "before ").await.expect("an answer");
        proxy.set_mode(Mode::Stall);
        connection.write_all(b"charge").await.expect("bytes are taken");
        drop(connection);
        wait_for_swallowed(&proxy, 6).await;
        assert_eq!(echo.received(), "before ");

        proxy.set_mode(Mode::Pass);
        echo.wait_for("before charge").await;
    }

    #[tokio::test]
    async fn a_target_that_is_down_is_a_reset_connection() {
        let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = closed.local_addr().expect("an address");
        drop(closed);
        let proxy = FaultProxy::start(address).await;
        assert_eq!(silent_end(&mut connect(&proxy).await).await, io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn dropping_the_proxy_resets_and_closes_its_port() {
        let echo = Echo::start().await;
        let proxy = FaultProxy::start(echo.address).await;
        let address = proxy.address();
        let mut open = connect(&proxy).await;
        exchange(&mut open, "before").await.expect("an answer");
        drop(proxy);
        assert_eq!(silent_end(&mut open).await, io::ErrorKind::ConnectionReset);
        wait_until("the port to close", PATIENCE, async || match TcpStream::connect(address).await {
            Ok(_) => Err("it still accepts".to_owned()),
            Err(_) => Ok(()),
        })
        .await;
    }
}

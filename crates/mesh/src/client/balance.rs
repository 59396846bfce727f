//! Which endpoint of a neighbour gets a call.
//!
//! Of two endpoints drawn at random, the one with fewer calls in flight (the power of two choices, M. Mitzenmacher,
//! 2001): a slow one gets less. One that fails [`FAILURES`] times in a row is ejected for [`EJECTION`]; then a single
//! failure is enough. Names are asked for again every [`PERIOD`], so whoever is added to a headless service gets calls
//! within that time, and whoever is taken out gets no new ones.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use http::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use opentelemetry::metrics::BoundCounter;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tonic::{
    body::Body,
    transport::{Channel, Endpoint, Error},
};
use tower::{Service, ServiceExt, service_fn};

use super::{address::Address, network::Network};
use crate::gathered::Gathered;

const CONNECT_LIMIT: Duration = Duration::from_secs(1);
// Without these, a connection through a partition that was repaired stays wedged.
const KEEPALIVE_PERIOD: Duration = Duration::from_secs(5);
const KEEPALIVE_LIMIT: Duration = Duration::from_secs(3);
/// Failures in a row that eject an endpoint.
const FAILURES: u32 = 5;
/// How long an endpoint is ejected.
const EJECTION: Duration = Duration::from_secs(30);
/// A call that its caller gave up after so long speaks against the endpoint.
const SILENCE: Duration = Duration::from_secs(1);
/// How often names are asked for.
const PERIOD: Duration = Duration::from_secs(5);
/// How long an answer about a name is waited for.
const NAME_LIMIT: Duration = Duration::from_secs(2);
const DEFAULT_PORT: u16 = 80;

/// The endpoints of a neighbour.
pub(super) struct Balance {
    endpoints: Arc<Endpoints>,
    /// Whether the endpoints were found at least once.
    found: watch::Receiver<bool>,
}

struct Endpoints {
    neighbour: &'static str,
    network: Arc<dyn Network>,
    ejections: BoundCounter<u64>,
    current: ArcSwap<Vec<Arc<Peer>>>,
    has_found: watch::Sender<bool>,
}

/// One endpoint.
struct Peer {
    neighbour: &'static str,
    address: SocketAddr,
    /// What was configured: it goes along as the authority, whatever the name stands for.
    origin: Uri,
    channel: Channel,
    in_flight: AtomicUsize,
    health: Mutex<Health>,
    ejections: BoundCounter<u64>,
}

#[derive(Default)]
struct Health {
    failures_in_a_row: u32,
    ejected_until: Option<Instant>,
}

/// A call to an endpoint.
pub(super) struct Lease {
    in_flight: InFlight,
    begin: Instant,
    is_settled: bool,
}

/// Counts as a call in flight until it is dropped.
pub(super) struct InFlight(Arc<Peer>);

impl Balance {
    /// `ejections` counts how often an endpoint is ejected.
    pub(super) fn new(
        neighbour: &'static str,
        address: &Address,
        network: Arc<dyn Network>,
        ejections: BoundCounter<u64>,
    ) -> Self {
        let (has_found, found) = watch::channel(false);
        let current = ArcSwap::default();
        let endpoints = Arc::new(Endpoints { neighbour, network, ejections, current, has_found });
        let literal: Option<Vec<_>> =
            address.uris().iter().map(|uri| Some((literal_of(uri)?, uri.clone()))).collect();
        match literal {
            Some(literal) => endpoints.update(literal),
            None => {
                tokio::spawn(follow(Arc::downgrade(&endpoints), address.uris().to_vec()));
            }
        }
        Self { endpoints, found }
    }

    /// An endpoint for a call; none that was `tried` before, if there is another. None: no endpoint is known.
    pub(super) async fn choose(&self, tried: &[SocketAddr]) -> Option<Lease> {
        if !*self.found.borrow() {
            // The first look at the names is under way; the caller's deadline bounds the wait.
            self.found.clone().wait_for(|has_found| *has_found).await.ok()?;
        }
        self.endpoints.choose(tried)
    }
}

/// Asks for names until nobody needs them any more.
async fn follow(endpoints: Weak<Endpoints>, uris: Vec<Uri>) {
    while let Some(endpoints) = endpoints.upgrade() {
        let found = find(&uris, &*endpoints.network).await;
        match found {
            Ok(found) if !found.is_empty() => endpoints.update(found),
            // Better old endpoints than none.
            Ok(_) => tracing::warn!(neighbour = endpoints.neighbour, ?uris, "a name stands for nobody"),
            Err(error) => {
                tracing::warn!(neighbour = endpoints.neighbour, ?uris, %error, "a name can't be looked up")
            }
        }
        endpoints.has_found.send_replace(true);
        drop(endpoints);
        tokio::time::sleep(PERIOD).await;
    }
}

async fn find(uris: &[Uri], network: &dyn Network) -> io::Result<Vec<(SocketAddr, Uri)>> {
    let mut found = Vec::new();
    for uri in uris {
        if let Some(literal) = literal_of(uri) {
            found.push((literal, uri.clone()));
            continue;
        }
        let host = uri.host().unwrap_or_default();
        let answer = timeout(NAME_LIMIT, network.resolve(host, port_of(uri))).await;
        let addresses = answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        found.extend(addresses.into_iter().map(|address| (address, uri.clone())));
    }
    Ok(found)
}

fn port_of(uri: &Uri) -> u16 {
    uri.port_u16().unwrap_or(DEFAULT_PORT)
}

/// The endpoint of a URI that names no name.
fn literal_of(uri: &Uri) -> Option<SocketAddr> {
    let host: IpAddr = uri.host()?.trim_matches(['[', ']']).parse().ok()?;
    Some((host, port_of(uri)).into())
}

impl Endpoints {
    /// Takes over what was found; an endpoint that was known before keeps its connection.
    fn update(&self, found: Vec<(SocketAddr, Uri)>) {
        let known = self.current.load();
        let peers = found.into_iter().map(|(address, origin)| {
            let same = known.iter().find(|peer| peer.address == address && peer.origin == origin);
            same.cloned().unwrap_or_else(|| Arc::new(Peer::new(address, origin, self)))
        });
        self.current.store(Arc::new(peers.collect()));
        self.has_found.send_replace(true);
    }

    fn choose(&self, tried: &[SocketAddr]) -> Option<Lease> {
        let peers = self.current.load();
        let peer = match peers.as_slice() {
            [] => return None,
            [peer] => peer,
            peers => {
                let one = draw(peers, |peer| !tried.contains(&peer.address));
                let other = draw(peers, |peer| peer.address != one.address && !tried.contains(&peer.address));
                // The second draw had to leave the first out, and may have found none but the ejected and tried.
                let is_fine = !other.is_ejected() && !tried.contains(&other.address);
                if is_fine && other.load() < one.load() { other } else { one }
            }
        };
        Some(Lease::new(Arc::clone(peer)))
    }
}

/// Draws one of several endpoints: any that is wanted and not ejected, or else any that is wanted, or else any.
fn draw(peers: &[Arc<Peer>], is_wanted: impl Fn(&Peer) -> bool) -> &Arc<Peer> {
    let start = rand::random_range(0..peers.len());
    let mut wanted = peers[start..].iter().chain(&peers[..start]).filter(|peer| is_wanted(peer));
    let first = wanted.next().unwrap_or(&peers[start]);
    std::iter::once(first).chain(wanted).find(|peer| !peer.is_ejected()).unwrap_or(first)
}

impl Peer {
    fn new(address: SocketAddr, origin: Uri, endpoints: &Endpoints) -> Self {
        let target = Uri::builder().scheme("http").authority(address.to_string()).path_and_query("/").build();
        let endpoint = Endpoint::from(target.expect("an address and a port"))
            .origin(origin.clone())
            .http2_keep_alive_interval(KEEPALIVE_PERIOD)
            .keep_alive_timeout(KEEPALIVE_LIMIT)
            .keep_alive_while_idle(true);
        let network = Arc::clone(&endpoints.network);
        let connect = service_fn(move |_: Uri| {
            let network = Arc::clone(&network);
            // tonic's own limit stands outside of what it calls a failure to connect.
            async move {
                let connection = timeout(CONNECT_LIMIT, network.connect(address)).await??;
                io::Result::Ok(TokioIo::new(Gathered::new(connection)))
            }
        });
        Self {
            neighbour: endpoints.neighbour,
            address,
            origin,
            channel: endpoint.connect_with_connector_lazy(connect),
            in_flight: AtomicUsize::new(0),
            health: Mutex::default(),
            ejections: endpoints.ejections.clone(),
        }
    }

    fn load(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_ejected(&self) -> bool {
        self.health().is_ejected()
    }

    fn note(&self, is_failure: bool) {
        let mut health = self.health();
        if !is_failure {
            if health.ejected_until.is_some() {
                tracing::info!(neighbour = self.neighbour, endpoint = %self.address, "an endpoint is used again");
            }
            *health = Health::default();
            return;
        }
        health.failures_in_a_row += 1;
        if health.failures_in_a_row < FAILURES {
            return;
        }
        if !health.is_ejected() {
            self.ejections.add(1);
            tracing::warn!(neighbour = self.neighbour, endpoint = %self.address, "an endpoint is ejected");
        }
        health.ejected_until = Some(Instant::now() + EJECTION);
    }
}

impl Health {
    fn is_ejected(&self) -> bool {
        self.ejected_until.is_some_and(|end| Instant::now() < end)
    }
}

impl Lease {
    fn new(peer: Arc<Peer>) -> Self {
        Self { in_flight: InFlight::new(peer), begin: Instant::now(), is_settled: false }
    }

    fn peer(&self) -> &Peer {
        &self.in_flight.0
    }

    /// Where it goes.
    pub(super) fn address(&self) -> SocketAddr {
        self.peer().address
    }

    /// For a stream that has begun, and outlives the call.
    pub(super) fn stream(&self) -> InFlight {
        InFlight::new(Arc::clone(&self.in_flight.0))
    }

    pub(super) async fn send(&self, request: Request<Body>) -> Result<Response<Body>, Error> {
        let mut channel = self.peer().channel.clone();
        channel.ready().await?.call(request).await
    }

    /// It answered, good or bad.
    pub(super) fn answered(&mut self) {
        self.is_settled = true;
        self.peer().note(false);
    }

    /// It can't be reached, or broke off.
    pub(super) fn failed(&mut self) {
        self.is_settled = true;
        self.peer().note(true);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.is_settled && self.begin.elapsed() >= SILENCE {
            self.peer().note(true);
        }
    }
}

impl InFlight {
    fn new(peer: Arc<Peer>) -> Self {
        peer.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(peer)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, collections::HashSet};

    use super::*;
    use crate::{
        client::network::{Connection, System},
        metrics,
    };

    /// What a name stands for.
    type Names = Arc<Mutex<io::Result<Vec<u16>>>>;

    /// A network that has one name, and no connections.
    struct Named(Names);

    #[async_trait::async_trait]
    impl Network for Named {
        async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
            assert_eq!((host, port), ("svc-concert", 50051));
            match &*self.0.lock().unwrap() {
                Ok(ports) => Ok(ports.iter().map(|port| ([127, 0, 0, 1], *port).into()).collect()),
                Err(error) => Err(error.kind().into()),
            }
        }

        async fn connect(&self, _: SocketAddr) -> io::Result<Box<dyn Connection>> {
            Err(io::ErrorKind::ConnectionRefused.into())
        }
    }

    fn ejections() -> BoundCounter<u64> {
        metrics::meter().u64_counter("test").build().bind(&[])
    }

    fn balance(names: &Names) -> Balance {
        Balance::new(
            "concert",
            &"http://svc-concert:50051".parse().unwrap(),
            Arc::new(Named(Arc::clone(names))),
            ejections(),
        )
    }

    /// The way to these ports of this machine.
    fn fixed(ports: &[u16]) -> Balance {
        let uris: Vec<String> = ports.iter().map(|port| format!("http://127.0.0.1:{port}")).collect();
        Balance::new("concert", &uris.join(",").parse().unwrap(), Arc::new(System), ejections())
    }

    fn names(ports: &[u16]) -> Names {
        Arc::new(Mutex::new(Ok(ports.to_vec())))
    }

    async fn pass_a_period() {
        tokio::time::sleep(PERIOD + Duration::from_millis(1)).await;
    }

    /// The ports that get calls.
    async fn chosen(balance: &Balance) -> HashSet<u16> {
        let mut ports = HashSet::new();
        for _ in 0..200 {
            ports.extend(balance.choose(&[]).await.map(|lease| lease.address().port()));
        }
        ports
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_added_to_a_name_gets_calls_and_who_is_taken_out_gets_none() {
        let names = names(&[1]);
        let balance = balance(&names);
        assert_eq!(chosen(&balance).await, [1].into());
        let first = Arc::clone(&balance.choose(&[]).await.unwrap().in_flight.0);
        *names.lock().unwrap() = Ok(vec![2, 1]);
        pass_a_period().await;
        assert_eq!(chosen(&balance).await, [1, 2].into());
        let peers = balance.endpoints.current.load();
        assert!(Arc::ptr_eq(&first, &peers[1]), "it keeps its connection");
        *names.lock().unwrap() = Ok(vec![2]);
        pass_a_period().await;
        assert_eq!(chosen(&balance).await, [2].into());
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_can_not_be_looked_up_leaves_the_endpoints_as_they_are() {
        let names = names(&[1]);
        let balance = balance(&names);
        assert_eq!(chosen(&balance).await, [1].into());
        for nothing in [Ok(vec![]), Err(io::ErrorKind::NotFound.into())] {
            *names.lock().unwrap() = nothing;
            pass_a_period().await;
            assert_eq!(chosen(&balance).await, [1].into());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_was_never_found_is_no_endpoint_until_it_is() {
        let names: Names = Arc::new(Mutex::new(Err(io::ErrorKind::NotFound.into())));
        let balance = balance(&names);
        assert!(balance.choose(&[]).await.is_none());
        *names.lock().unwrap() = Ok(vec![1]);
        pass_a_period().await;
        assert_eq!(chosen(&balance).await, [1].into());
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_fails_in_a_row_is_ejected_for_a_while() {
        let balance = fixed(&[1, 2]);
        let fail = async |times: u32| {
            let failures = Cell::new(0);
            while failures.get() < times {
                let mut lease = balance.choose(&[]).await.unwrap();
                if lease.address().port() == 1 {
                    lease.failed();
                    failures.set(failures.get() + 1);
                }
            }
        };
        fail(FAILURES - 1).await;
        assert_eq!(chosen(&balance).await, [1, 2].into());
        fail(1).await;
        assert_eq!(chosen(&balance).await, [2].into());
        tokio::time::advance(EJECTION).await;
        assert_eq!(chosen(&balance).await, [1, 2].into());
        fail(1).await;
        assert_eq!(chosen(&balance).await, [2].into(), "it is on probation");
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_tried_is_left_out_while_there_are_others() {
        let balance = fixed(&[1, 2, 3]);
        let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        for _ in 0..200 {
            let lease = balance.choose(&[address(1), address(3)]).await.unwrap();
            assert_eq!(lease.address(), address(2));
        }
        assert!(balance.choose(&[1, 2, 3].map(address)).await.is_some(), "better again than not at all");
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_are_ejected_all_are_tried() {
        let balance = fixed(&[1, 2]);
        for _ in 0..100 {
            balance.choose(&[]).await.unwrap().failed();
        }
        assert_eq!(chosen(&balance).await, [1, 2].into());
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_is_given_up_after_a_while_speaks_against_its_endpoint() {
        let balance = fixed(&[1]);
        let is_ejected = || balance.endpoints.current.load()[0].is_ejected();
        for _ in 0..FAILURES {
            drop(balance.choose(&[]).await);
        }
        assert!(!is_ejected(), "callers that leave at once say nothing");
        for _ in 0..FAILURES {
            let lease = balance.choose(&[]).await;
            tokio::time::advance(SILENCE).await;
            drop(lease);
        }
        assert!(is_ejected());
        balance.choose(&[]).await.unwrap().answered();
        assert!(!is_ejected());
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_with_calls_in_flight_gets_no_more_than_the_others() {
        let balance = fixed(&[1, 2, 3]);
        let mut kept = Vec::new();
        for _ in 0..300 {
            kept.push(balance.choose(&[]).await.unwrap());
        }
        for peer in balance.endpoints.current.load().iter() {
            assert!((95..=105).contains(&peer.load()), "{}: {}", peer.address, peer.load());
        }
        let stream = kept[0].stream();
        kept.clear();
        let in_flight: usize = balance.endpoints.current.load().iter().map(|peer| peer.load()).sum();
        assert_eq!(in_flight, 1, "the stream");
        drop(stream);
    }
}

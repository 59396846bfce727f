//! The policies on a simulated network (turmoil), which delays, loses and holds up messages, with hosts that crash.
//!
//! Each test runs with several seeds. A seed decides how long messages travel and which host goes first; it is printed
//! when a test fails, and `SIMULATION_SEED=…` runs it alone. Which endpoint a call draws and how long a retry pauses is
//! drawn apart from it.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use boxoffice_proto::{
    concert::v1::{GetSaleRequest, sale_service_client::SaleServiceClient},
    user::v1::{CreateSessionRequest, session_service_client::SessionServiceClient},
};
use futures_util::{future::join_all, stream};
use mesh::{
    client::{Channel, Connection, Network},
    clock::Clock,
    server::{self, Options},
    shutdown::Shutdown,
};
use mesh_test::wait_until;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};
use tonic::{Status, transport::server::Connected};
use turmoil::net::{TcpListener, TcpStream};

use crate::{
    service::Fake,
    world::{Mesh, reason},
};

/// How many seeds a test runs with.
const SEEDS: usize = 3;
/// How long a simulation may take by its own clock.
const LONGEST: Duration = Duration::from_secs(300);
const TICK: Duration = Duration::from_millis(10);
const LONGEST_TRAVEL: Duration = Duration::from_millis(50);

const CLIENT: &str = "gateway";
const HOSTS: [&str; 2] = ["concert-1", "concert-2"];
const PORT: u16 = 50051;

/// How often names are asked for.
const NAME_PERIOD: Duration = Duration::from_secs(5);
/// Within which a connection that carries nothing is given up: the keepalive's period and limit, and the way to them.
const KEEPALIVE: Duration = Duration::from_secs(9);
/// Within which calls flow again: the keepalive, the breaker's pause and its probe.
const HEALING_TIME: Duration = Duration::from_secs(15);
/// How long an endpoint is ejected.
const EJECTION: Duration = Duration::from_secs(30);

/// Two endpoints of the service `concert`, and whoever calls them.
#[derive(Clone)]
struct Scene {
    mesh: Arc<Mesh>,
    fakes: [Fake; 2],
    /// The hosts that the service's name stands for.
    named: Arc<Mutex<Vec<&'static str>>>,
    orders: Arc<Mutex<Vec<Order>>>,
}

/// What only the simulation can do to a host, from outside.
enum Order {
    Crash(&'static str),
    Start(&'static str),
}

/// Plays a scenario once with each seed.
fn simulate<F>(play: impl Fn(Scene) -> F)
where
    F: Future<Output = ()> + 'static,
{
    let given = std::env::var("SIMULATION_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let seeds: Vec<u64> =
        given.map_or_else(|| (0..SEEDS).map(|_| rand::random()).collect(), |seed| vec![seed]);
    for seed in seeds {
        println!("SIMULATION_SEED={seed}");
        let scene = Scene {
            mesh: Arc::new(Mesh::new()),
            fakes: [Fake::willing(), Fake::willing()],
            named: Arc::new(Mutex::new(vec![HOSTS[0]])),
            orders: Arc::default(),
        };
        let mut simulation = turmoil::Builder::new()
            .rng_seed(seed)
            .enable_random_order()
            .tick_duration(TICK)
            .max_message_latency(LONGEST_TRAVEL)
            .simulation_duration(LONGEST)
            .build();
        for (host, fake) in HOSTS.into_iter().zip(scene.fakes.clone()) {
            let mesh = Arc::clone(&scene.mesh);
            simulation.host(host, move || serve(Arc::clone(&mesh), fake.clone()));
        }
        let played = play(scene.clone());
        simulation.client(CLIENT, async {
            played.await;
            Ok(())
        });
        while !simulation.step().expect("the scenario ends in time") {
            for order in scene.orders.lock().unwrap().drain(..) {
                match order {
                    Order::Crash(host) => simulation.crash(host),
                    Order::Start(host) => simulation.bounce(host),
                }
            }
        }
    }
}

/// Serves the service `concert` on a host of the simulation.
async fn serve(mesh: Arc<Mesh>, fake: Fake) -> turmoil::Result {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
    let incoming = stream::unfold(listener, async |listener| {
        let accepted = listener.accept().await.map(|(stream, _)| Accepted(stream));
        Some((accepted, listener))
    });
    let (options, authenticator) = (Options::new("concert"), mesh.authenticator("concert"));
    Ok(server::serve(options, fake.routes(), authenticator, incoming, Shutdown::new()).await?)
}

/// The simulation's network, as the client sees it.
struct Simulated(Arc<Mutex<Vec<&'static str>>>);

#[async_trait::async_trait]
impl Network for Simulated {
    async fn resolve(&self, _: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let named = self.0.lock().unwrap();
        Ok(named.iter().map(|host| (turmoil::lookup(*host), port).into()).collect())
    }

    async fn connect(&self, endpoint: SocketAddr) -> io::Result<Box<dyn Connection>> {
        Ok(Box::new(TcpStream::connect(endpoint).await?))
    }
}

/// A connection that a simulated host accepted, as tonic wants it.
struct Accepted(TcpStream);

impl Connected for Accepted {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

impl Scene {
    /// A way to the service by its name, which stands for these hosts.
    fn channel(&self, hosts: &[&'static str]) -> Channel {
        self.name(hosts);
        let network = Arc::new(Simulated(Arc::clone(&self.named)));
        let address = format!("http://concert:{PORT}").parse().unwrap();
        let tokens = self.mesh.service_tokens("gateway");
        Channel::over(network, "concert", address, Some(tokens), Clock::system())
    }

    /// Has the service's name stand for these hosts.
    fn name(&self, hosts: &[&'static str]) {
        *self.named.lock().unwrap() = hosts.to_vec();
    }

    fn order(&self, order: Order) {
        self.orders.lock().unwrap().push(order);
    }

    /// How many calls have reached each host.
    fn calls(&self) -> [usize; 2] {
        self.fakes.each_ref().map(Fake::calls)
    }

    /// Calls until a host has answered once more.
    async fn call_until_answered(&self, channel: &Channel, host: usize, within: Duration) {
        let before = self.calls()[host];
        wait_until("the host's answer", within, async || match get_sale(channel).await {
            Ok(()) if self.calls()[host] > before => Ok(()),
            outcome => Err(format!("{outcome:?}")),
        })
        .await;
    }
}

/// Only reads: may be sent again.
async fn get_sale(channel: &Channel) -> Result<(), Status> {
    SaleServiceClient::new(channel.clone()).get_sale(GetSaleRequest::default()).await.map(drop)
}

/// Must not be sent again.
async fn create_session(channel: &Channel) -> Result<(), Status> {
    SessionServiceClient::new(channel.clone()).create_session(CreateSessionRequest::default()).await.map(drop)
}

/// Calls ten times a second for so long; how many calls failed.
async fn call_for(channel: &Channel, period: Duration) -> usize {
    let end = Instant::now() + period;
    let mut failures = 0;
    while Instant::now() < end {
        failures += usize::from(get_sale(channel).await.is_err());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    failures
}

/// Makes as many calls as open the breaker; all of them fail.
async fn expect_failures(channel: &Channel) {
    for outcome in join_all((0..20).map(|_| get_sale(channel))).await {
        outcome.expect_err("nobody answers");
    }
    assert!(channel.is_refusing());
}

/// Plays: calls flow; the network breaks; nothing gets through; it is mended; calls flow again.
fn simulate_a_break(cut: fn(), mend: fn()) {
    simulate(|scene| async move {
        let channel = scene.channel(&HOSTS[..1]);
        assert_eq!(call_for(&channel, Duration::from_secs(1)).await, 0);
        cut();
        expect_failures(&channel).await;
        mend();
        scene.call_until_answered(&channel, 0, HEALING_TIME).await;
        assert_eq!(call_for(&channel, 2 * KEEPALIVE).await, 0, "calls flow again");
    });
}

#[test]
fn after_a_partition_calls_flow_again() {
    simulate_a_break(|| turmoil::partition(CLIENT, HOSTS[0]), || turmoil::repair(CLIENT, HOSTS[0]));
}

#[test]
fn after_a_partition_on_the_way_out_calls_flow_again() {
    simulate_a_break(
        || turmoil::partition_oneway(CLIENT, HOSTS[0]),
        || turmoil::repair_oneway(CLIENT, HOSTS[0]),
    );
}

#[test]
fn after_a_partition_on_the_way_back_calls_flow_again() {
    simulate_a_break(
        || turmoil::partition_oneway(HOSTS[0], CLIENT),
        || turmoil::repair_oneway(HOSTS[0], CLIENT),
    );
}

#[test]
fn after_messages_were_held_up_calls_flow_again() {
    simulate_a_break(|| turmoil::hold(CLIENT, HOSTS[0]), || turmoil::release(CLIENT, HOSTS[0]));
}

#[test]
fn what_must_not_be_repeated_is_carried_out_once_although_the_answer_is_lost() {
    simulate(|scene| async move {
        let channel = scene.channel(&HOSTS[..1]);
        get_sale(&channel).await.unwrap();
        turmoil::partition_oneway(HOSTS[0], CLIENT);
        let status = create_session(&channel).await.unwrap_err();
        assert!(["DEADLINE_EXCEEDED", "TRANSPORT_BROKEN"].contains(&reason(&status)), "{status:?}");
        turmoil::repair_oneway(HOSTS[0], CLIENT);
        tokio::time::sleep(HEALING_TIME).await;
        assert_eq!(scene.calls(), [2, 0], "one of each");
    });
}

#[test]
fn an_endpoint_that_can_not_be_reached_was_surely_not_called() {
    simulate(|scene| async move {
        let channel = scene.channel(&HOSTS[..1]);
        // A connection that is not refused either: it is given up in time for the caller to be told so.
        turmoil::hold(CLIENT, HOSTS[0]);
        let status = create_session(&channel).await.unwrap_err();
        assert_eq!(reason(&status), "TRANSPORT_CONNECT_FAILED");
        turmoil::release(CLIENT, HOSTS[0]);
    });
}

/// Plays: one of two endpoints is cut off, for longer than it is ejected; once its connection is given up, so many calls
/// fail at the most.
fn simulate_a_loss(cut: fn(), failures: usize) {
    simulate(|scene| async move {
        let channel = scene.channel(&HOSTS);
        assert_eq!(call_for(&channel, Duration::from_secs(2)).await, 0);
        cut();
        call_for(&channel, 2 * KEEPALIVE).await;
        let failed = call_for(&channel, EJECTION).await;
        assert!(failed <= failures, "{failed} calls failed");
        turmoil::release(CLIENT, HOSTS[0]);
        turmoil::repair(CLIENT, HOSTS[0]);
        scene.call_until_answered(&channel, 0, EJECTION + HEALING_TIME).await;
    });
}

#[test]
fn an_endpoint_behind_a_partition_costs_no_call_while_there_is_another() {
    simulate_a_loss(|| turmoil::partition(CLIENT, HOSTS[0]), 0);
}

#[test]
fn an_endpoint_whose_messages_are_held_up_costs_no_call_while_there_is_another() {
    simulate_a_loss(|| turmoil::hold(CLIENT, HOSTS[0]), 0);
}

/// turmoil lets connections be made all the same, as a process does that is stopped: only a call can find it out.
#[test]
fn an_endpoint_that_takes_connections_and_answers_nothing_costs_a_call_for_each_ejection() {
    simulate_a_loss(|| turmoil::partition_oneway(HOSTS[0], CLIENT), 1);
}

#[test]
fn an_endpoint_that_crashed_gets_calls_again_when_it_is_back() {
    simulate(|scene| async move {
        let channel = scene.channel(&HOSTS);
        assert_eq!(call_for(&channel, Duration::from_secs(2)).await, 0);
        scene.order(Order::Crash(HOSTS[0]));
        assert_eq!(call_for(&channel, EJECTION + KEEPALIVE).await, 0, "the other one answers");
        scene.order(Order::Start(HOSTS[0]));
        scene.call_until_answered(&channel, 0, EJECTION + HEALING_TIME).await;
        let before = scene.calls();
        assert_eq!(call_for(&channel, Duration::from_secs(10)).await, 0);
        let after = scene.calls();
        assert!((0..2).all(|host| after[host] - before[host] >= 20), "both get calls: {before:?} {after:?}");
    });
}

#[test]
fn the_only_endpoint_that_crashed_is_called_again_when_it_is_back() {
    simulate(|scene| async move {
        let channel = scene.channel(&HOSTS[..1]);
        get_sale(&channel).await.unwrap();
        scene.order(Order::Crash(HOSTS[0]));
        expect_failures(&channel).await;
        scene.order(Order::Start(HOSTS[0]));
        scene.call_until_answered(&channel, 0, HEALING_TIME).await;
        assert_eq!(call_for(&channel, Duration::from_secs(5)).await, 0);
    });
}

#[test]
fn who_is_added_to_a_name_is_called_within_a_period_and_who_is_taken_out_is_not() {
    simulate(|scene| async move {
        let channel = scene.channel(&HOSTS[..1]);
        assert_eq!(call_for(&channel, Duration::from_secs(2)).await, 0);
        assert_eq!(scene.calls()[1], 0);
        scene.name(&HOSTS);
        scene.call_until_answered(&channel, 1, NAME_PERIOD + Duration::from_secs(1)).await;
        scene.name(&HOSTS[1..]);
        assert_eq!(call_for(&channel, NAME_PERIOD).await, 0);
        let before = scene.calls()[0];
        assert_eq!(call_for(&channel, NAME_PERIOD).await, 0);
        assert_eq!(scene.calls()[0], before);
    });
}

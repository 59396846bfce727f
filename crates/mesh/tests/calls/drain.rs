//! A service that is told to stop loses nothing that it has begun, and does not wait for what never ends.

use std::time::Duration;

use boxoffice_proto::booking::v1::{
    GetSeatsRequest, WatchSeatsRequest, WatchSeatsResponse, seat_service_client::SeatServiceClient,
};
use mesh::{client::Channel, server::Options, shutdown::DRAIN_LIMIT};
use mesh_test::{FaultProxy, Mode, wait_until};
use tokio::{
    net::{TcpListener, TcpStream},
    time::Instant,
};
use tonic::{Request, Status, Streaming};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;

use crate::{
    service::{Fake, Gate},
    world::{Mesh, PATIENCE, Service, connect, read_to_end, reason, wait_for_calls},
};

const DRAIN_WAIT: Duration = Duration::from_secs(1);

async fn get_seats(channel: &Channel) -> Result<(), Status> {
    SeatServiceClient::new(channel.clone()).get_seats(GetSeatsRequest::default()).await.map(drop)
}

/// A stream that has sent its first change.
async fn watch_seats(channel: &Channel) -> Streaming<WatchSeatsResponse> {
    let mut seats = SeatServiceClient::new(channel.clone());
    let mut changes = seats.watch_seats(WatchSeatsRequest::default()).await.unwrap().into_inner();
    assert_eq!(changes.message().await.unwrap().expect("a change").revision, "1");
    changes
}

async fn health(service: &Service) -> ServingStatus {
    let mut health = HealthClient::new(connect(service.address).await);
    health.check(HealthCheckRequest::default()).await.unwrap().into_inner().status()
}

#[tokio::test(start_paused = true)]
async fn no_call_in_flight_is_lost_while_a_stream_is_open() {
    let (mesh, gate) = (Mesh::new(), Gate::default());
    let fake = Fake::behind(&gate);
    let options = Options { drain_wait: DRAIN_WAIT, ..Options::new("booking") };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let booking = mesh.serve_on(listener, options, &fake);
    let channel = mesh.channel("booking", booking.address);
    let changes = watch_seats(&channel).await;
    let before = tokio::spawn({
        let channel = channel.clone();
        async move { get_seats(&channel).await }
    });
    wait_for_calls(&fake, 2).await;
    assert_eq!(health(&booking).await, ServingStatus::Serving);

    let begin = Instant::now();
    booking.shutdown.begin();
    wait_until("health to say so", DRAIN_WAIT / 2, async || match health(&booking).await {
        ServingStatus::NotServing => Ok(()),
        status => Err(format!("{status:?}")),
    })
    .await;
    let meanwhile = mesh.channel("booking", booking.address);
    let meanwhile = tokio::spawn(async move { get_seats(&meanwhile).await });
    wait_for_calls(&fake, 3).await;
    assert!(begin.elapsed() < DRAIN_WAIT, "balancers have not noticed yet: calls are still taken");

    read_to_end(changes).await.expect("a stream ends as if it were complete");
    assert!(begin.elapsed() >= DRAIN_WAIT);
    let refused = get_seats(&mesh.channel("booking", booking.address)).await.unwrap_err();
    assert_eq!(reason(&refused), "TRANSPORT_CONNECT_FAILED", "nothing new is taken");
    assert!(!booking.task.is_finished(), "two calls are not done yet");

    gate.open();
    before.await.unwrap().expect("the call that came before is answered");
    meanwhile.await.unwrap().expect("the call that came meanwhile is answered");
    booking.task.await.unwrap().unwrap();
    assert!(begin.elapsed() < DRAIN_WAIT + Duration::from_secs(1), "{:?}", begin.elapsed());
    assert_eq!(fake.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_call_on_a_connection_made_before_goes_elsewhere() {
    let (mesh, gate) = (Mesh::new(), Gate::default());
    let fake = Fake::behind(&gate);
    let booking = mesh.serve("booking", &fake).await;
    let channel = mesh.channel("booking", booking.address);
    let before = tokio::spawn({
        let channel = channel.clone();
        async move { get_seats(&channel).await }
    });
    wait_for_calls(&fake, 1).await;
    booking.shutdown.begin();
    wait_until("new connections to be refused", PATIENCE, async || {
        match get_seats(&mesh.channel("booking", booking.address)).await {
            Err(status) if reason(&status) == "TRANSPORT_CONNECT_FAILED" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let refused = get_seats(&channel).await.unwrap_err();
    assert_eq!(reason(&refused), "TRANSPORT_CONNECT_FAILED", "it was surely not taken");
    gate.open();
    before.await.unwrap().expect("the call in flight on the same connection is answered");
    booking.task.await.unwrap().unwrap();
    assert_eq!(fake.calls(), 1);
}

/// Balancers watch health for as long as a service lives, and testers leave reflection open.
#[tokio::test(start_paused = true)]
async fn whoever_watches_health_or_reflection_does_not_hold_it_up() {
    let mesh = Mesh::new();
    let options = Options { drain_wait: DRAIN_WAIT, ..Options::new("booking") };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let booking = mesh.serve_on(listener, options, &Fake::willing());
    let connection = connect(booking.address).await;
    let mut health = HealthClient::new(connection.clone());
    let mut watched = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let mut reflection = ServerReflectionClient::new(connection);
    let open = Request::new(tokio_stream::pending());
    let answers = reflection.server_reflection_info(open).await.unwrap().into_inner();

    let begin = Instant::now();
    booking.shutdown.begin();
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    booking.task.await.unwrap().unwrap();
    assert!(begin.elapsed() < DRAIN_WAIT + Duration::from_secs(1), "{:?}", begin.elapsed());
    read_to_end(watched).await.unwrap();
    read_to_end(answers).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_connects_and_says_nothing_does_not_hold_it_up() {
    let mesh = Mesh::new();
    let booking = mesh.serve("booking", &Fake::willing()).await;
    let _silent = TcpStream::connect(booking.address).await.unwrap();
    wait_until("the connection to be accepted", PATIENCE, async || match booking.connections() {
        1 => Ok(()),
        connections => Err(format!("{connections} connections")),
    })
    .await;
    let begin = Instant::now();
    booking.shutdown.begin();
    booking.task.await.unwrap().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_never_ends_is_dropped_at_the_limit() {
    let mesh = Mesh::new();
    let booking = mesh.serve("booking", &Fake::hanging()).await;
    let proxy = FaultProxy::start(booking.address).await;
    let _changes = watch_seats(&mesh.channel("booking", proxy.address())).await;
    // A peer that neither answers nor closes: no connection to it ends well.
    proxy.set_mode(Mode::Blackhole);
    let begin = Instant::now();
    booking.shutdown.begin();
    booking.task.await.unwrap().unwrap();
    let waited = begin.elapsed();
    assert!((DRAIN_LIMIT..DRAIN_LIMIT + Duration::from_secs(1)).contains(&waited), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_well_when_its_contract_says() {
    let mesh = Mesh::new();
    let booking = mesh.serve("booking", &Fake::hanging()).await;
    let begin = Instant::now();
    let changes = watch_seats(&mesh.channel("booking", booking.address)).await;
    tokio::time::timeout(Duration::from_secs(2000), read_to_end(changes)).await.expect("an end").unwrap();
    let lived = begin.elapsed().as_secs();
    assert!((899..=901).contains(&lived), "{lived} s");
}

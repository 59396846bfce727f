//! What becomes of a call when the connection, the neighbour or the message is broken: a reason that says whether it
//! may have been sent, and another try only where that does no harm.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use boxoffice_proto::{
    booking::v1::{
        CreateBookingRequest, WatchSeatsRequest, booking_service_client::BookingServiceClient,
        seat_service_client::SeatServiceClient,
    },
    concert::v1::{GetSaleRequest, sale_service_client::SaleServiceClient},
    payment::v1::{PayRequest, payment_service_client::PaymentServiceClient},
    user::v1::{CreateSessionRequest, session_service_client::SessionServiceClient},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use mesh::{client::Channel, server::Options};
use mesh_test::{FaultProxy, wait_until};
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::{self, Runtime},
    sync::mpsc,
    time::Instant,
};
use tonic::{Code, Request, Status, body::Body};
use tower::Service;

use crate::{
    service::{Fake, Gate},
    world::{
        Mesh, PATIENCE, Port, Resetting, framed, metadata, post, read_to_end, reason, retry_after,
        serve_answers, wait_for_calls,
    },
};

const GET_SEATS: &str = "/boxoffice.booking.v1.SeatService/GetSeats";

/// Only reads: may be sent again.
async fn get_sale(channel: &Channel) -> Result<(), Status> {
    SaleServiceClient::new(channel.clone()).get_sale(GetSaleRequest::default()).await.map(drop)
}

/// Twice is the same as once: may be sent again.
async fn pay(channel: &Channel) -> Result<(), Status> {
    PaymentServiceClient::new(channel.clone()).pay(PayRequest::default()).await.map(drop)
}

/// Must not be sent again.
async fn create_session(channel: &Channel) -> Result<(), Status> {
    SessionServiceClient::new(channel.clone()).create_session(CreateSessionRequest::default()).await.map(drop)
}

/// A stream: is not begun again.
async fn watch_seats(channel: &Channel) -> Result<(), Status> {
    let mut seats = SeatServiceClient::new(channel.clone());
    read_to_end(seats.watch_seats(WatchSeatsRequest::default()).await?.into_inner()).await
}

/// A body that brings these bytes, and then never ends.
fn endless(bytes: Vec<u8>) -> Body {
    let first = stream::iter([Ok::<_, Status>(Frame::data(Bytes::from(bytes)))]);
    Body::new(StreamBody::new(first.chain(stream::pending())))
}

fn ok_headers() -> http::response::Builder {
    http::Response::builder().header("content-type", "application/grpc")
}

#[tokio::test]
async fn a_connection_that_nobody_takes_was_surely_not_used() {
    let (mesh, nobody) = (Mesh::new(), Port::reserve());
    let channel = mesh.channel("user", nobody.address());
    let status = create_session(&channel).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "TRANSPORT_CONNECT_FAILED"));
    assert_eq!(metadata(&status, "service").as_deref(), Some("user"));
    assert!(retry_after(&status).is_some());
}

#[tokio::test]
async fn a_connection_reset_in_the_middle_of_an_answer_may_have_been_used() {
    let mesh = Mesh::new();
    let half_of_it = framed(&[0; 100])[..50].to_vec();
    let answers = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&answers);
    let address = serve_answers(move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
        ok_headers().body(endless(half_of_it.clone())).unwrap()
    })
    .await;
    let proxy = FaultProxy::start(address).await;
    let channel = mesh.channel("user", proxy.address());
    let (outcome, ()) = tokio::join!(create_session(&channel), async {
        wait_until("half of an answer", PATIENCE, async || match answers.load(Ordering::Relaxed) {
            0 => Err("no answer began".to_owned()),
            _ => Ok(()),
        })
        .await;
        proxy.reset_connections();
    });
    let status = outcome.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "TRANSPORT_BROKEN"));
    assert_eq!(metadata(&status, "service").as_deref(), Some("user"));
    assert_eq!(answers.load(Ordering::Relaxed), 1, "nobody is logged in twice");
}

#[tokio::test]
async fn a_stream_whose_connection_is_reset_says_so() {
    let mesh = Mesh::new();
    let booking = mesh.serve("booking", &Fake::hanging()).await;
    let proxy = FaultProxy::start(booking.address).await;
    let mut seats = SeatServiceClient::new(mesh.channel("booking", proxy.address()));
    let mut changes = seats.watch_seats(WatchSeatsRequest::default()).await.unwrap().into_inner();
    assert_eq!(changes.message().await.unwrap().expect("a change").revision, "1");
    proxy.reset_connections();
    let status = changes.message().await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "TRANSPORT_BROKEN"));
}

#[tokio::test]
async fn a_call_whose_connection_breaks_is_sent_again_only_where_that_does_no_harm() {
    let (mesh, gate) = (Mesh::new(), Gate::default());
    let fake = Fake::behind(&gate);
    let service = mesh.serve("payment", &fake).await;
    let proxy = FaultProxy::start(service.address).await;

    let channel = mesh.channel("payment", proxy.address());
    let (outcome, ()) = tokio::join!(create_session(&channel), async {
        wait_for_calls(&fake, 1).await;
        proxy.reset_connections();
    });
    assert_eq!(reason(&outcome.unwrap_err()), "TRANSPORT_BROKEN");
    assert_eq!(fake.calls(), 1);

    let (outcome, ()) = tokio::join!(pay(&channel), async {
        wait_for_calls(&fake, 2).await;
        proxy.reset_connections();
        wait_for_calls(&fake, 3).await;
        gate.open();
    });
    outcome.expect("the second try is answered");
    assert_eq!(fake.calls(), 3);
}

#[tokio::test]
async fn only_what_the_contract_lets_be_repeated_is_tried_again_and_at_most_twice() {
    let mesh = Mesh::new();
    for (method, expected_tries) in [("GetSale", 3), ("Pay", 3), ("CreateSession", 1), ("WatchSeats", 1)] {
        let neighbour = Resetting::start().await;
        let channel = mesh.channel("neighbour", neighbour.address);
        let outcome = match method {
            "GetSale" => get_sale(&channel).await,
            "Pay" => pay(&channel).await,
            "CreateSession" => create_session(&channel).await,
            _ => watch_seats(&channel).await,
        };
        assert_eq!(reason(&outcome.unwrap_err()), "TRANSPORT_BROKEN", "{method}");
        assert_eq!(neighbour.connections(), expected_tries, "{method}");
    }
}

#[tokio::test]
async fn every_try_of_a_call_has_the_same_key() {
    let (requests, mut received) = mpsc::unbounded_channel();
    let address = serve_answers(move |request| {
        let requests = requests.clone();
        let answer = async move {
            requests.send(request.into_body().collect().await.unwrap().to_bytes()).unwrap();
            let status = (HeaderName::from_static("grpc-status"), HeaderValue::from_static("14"));
            Ok::<_, Status>(Frame::trailers(HeaderMap::from_iter([status])))
        };
        ok_headers().body(Body::new(StreamBody::new(stream::once(answer)))).unwrap()
    })
    .await;
    let mut bookings = BookingServiceClient::new(Mesh::new().channel("booking", address));
    let mut keys = Vec::new();
    for own_key in ["", "", "mine"] {
        let order = CreateBookingRequest { request_id: own_key.into(), ..Default::default() };
        let status = bookings.create_booking(order).await.unwrap_err();
        assert_eq!(reason(&status), "TRANSPORT_BROKEN");
        let tries =
            [(); 3].map(|()| CreateBookingRequest::decode(&received.try_recv().unwrap()[5..]).unwrap());
        assert!(tries.iter().all(|request| request == &tries[0]), "{tries:?}");
        keys.push(tries[0].request_id.clone());
    }
    assert!(!keys[0].is_empty() && keys[0] != keys[1], "another call, another key: {keys:?}");
    assert_eq!(keys[2], "mine");
}

#[tokio::test]
async fn a_try_that_broke_is_not_forgotten_when_the_next_is_refused() {
    let (mesh, port) = (Mesh::new(), Port::reserve());
    let listener = port.listen();
    let channel = mesh.channel("payment", port.address());
    let (outcome, ()) = tokio::join!(pay(&channel), break_first_and_refuse_others(listener));
    assert_eq!(reason(&outcome.unwrap_err()), "TRANSPORT_BROKEN", "it may have been sent");
}

async fn break_first_and_refuse_others(listener: TcpListener) {
    let (mut connection, _) = listener.accept().await.unwrap();
    connection.read_u8().await.unwrap();
    drop(listener);
    connection.set_zero_linger().unwrap();
}

/// The breaker stays closed here, as most calls are answered: it is the budget that protects the neighbour. It grows as time
/// passes, so time passes here: a hundred calls a second, for twice as long as the budget looks back.
#[tokio::test(start_paused = true)]
async fn a_neighbour_in_trouble_sees_a_fifth_more_calls_at_the_most() {
    const CALLS: usize = 2000;
    let tries = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&tries);
    let address = serve_answers(move |request| {
        counter.fetch_add(1, Ordering::Relaxed);
        match request.headers().get("x-trouble") {
            Some(_) => ok_headers().header("grpc-status", "14").body(Body::empty()).unwrap(),
            None => ok_headers()
                .header("grpc-status", "5")
                .header("grpc-status-details-bin", "")
                .body(Body::empty())
                .unwrap(),
        }
    })
    .await;
    let mesh = Mesh::new();
    let mut sales = SaleServiceClient::new(mesh.channel("concert", address));
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    let begin = Instant::now();
    for call in 0..CALLS {
        pace.tick().await;
        let mut request = Request::new(GetSaleRequest::default());
        let is_in_trouble = call % 5 < 2;
        if is_in_trouble {
            request.metadata_mut().insert("x-trouble", "yes".parse().unwrap());
        }
        let status = sales.get_sale(request).await.unwrap_err();
        assert_eq!(status.code(), if is_in_trouble { Code::Unavailable } else { Code::NotFound });
    }
    assert!(begin.elapsed() >= Duration::from_secs(19), "{:?}", begin.elapsed());
    let retries = tries.load(Ordering::Relaxed) - CALLS;
    assert!((CALLS / 10..=CALLS / 5).contains(&retries), "{retries}");
}

/// A service in a runtime of its own, so that it can be killed: handlers and connections end at once.
struct Process(Runtime);

impl Process {
    fn start(mesh: &Mesh, port: &Port, fake: &Fake) -> Self {
        let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        {
            let _inside = runtime.enter();
            mesh.serve_on(port.listen(), Options::new("concert"), fake);
        }
        Self(runtime)
    }

    async fn kill(self, port: &Port) {
        self.0.shutdown_background();
        wait_until("the process to be gone", PATIENCE, async || {
            match TcpStream::connect(port.address()).await {
                Ok(_) => Err("it still listens".to_owned()),
                Err(_) => Ok(()),
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_call_whose_service_is_killed_may_have_been_carried_out() {
    let (mesh, port, fake) = (Mesh::new(), Port::reserve(), Fake::hanging());
    let channel = mesh.channel("concert", port.address());
    let process = Process::start(&mesh, &port, &fake);
    let (outcome, ()) = tokio::join!(create_session(&channel), async {
        wait_for_calls(&fake, 1).await;
        process.kill(&port).await;
    });
    assert_eq!(reason(&outcome.unwrap_err()), "TRANSPORT_BROKEN");
}

#[tokio::test]
async fn a_service_that_was_killed_is_reached_again_once_it_is_back() {
    let (mesh, port) = (Mesh::new(), Port::reserve());
    let channel = mesh.channel("concert", port.address());
    for _ in 0..3 {
        let process = Process::start(&mesh, &port, &Fake::willing());
        get_sale(&channel).await.expect("the same channel finds the new process");
        process.kill(&port).await;
        let status = get_sale(&channel).await.unwrap_err();
        // Broken, if the channel had not noticed yet that its connection is gone.
        assert!(["TRANSPORT_CONNECT_FAILED", "TRANSPORT_BROKEN"].contains(&reason(&status)));
    }
}

#[tokio::test]
async fn what_tonic_refuses_has_a_reason_too() {
    let (mesh, fake) = (Mesh::new(), Fake::willing());
    let booking = mesh.serve("booking", &fake).await.address;
    let unimplemented = (Code::Unimplemented, "TRANSPORT_UNIMPLEMENTED");
    let refused = (Code::InvalidArgument, "TRANSPORT_MESSAGE_REFUSED");
    let empty = framed(&[]);
    let compressed = [&[1], &empty[1..]].concat();
    let unfinished = framed(b"concert")[..8].to_vec();
    let too_large = framed(&vec![0; 4 * 1024 * 1024 + 1]);
    let no_text = framed(&[0x0a, 1, 0xff]);
    let cases = [
        ("no such service", "/boxoffice.booking.v1.Nothing/GetSeats", None, &empty, unimplemented),
        ("no such method", "/boxoffice.booking.v1.SeatService/Nothing", None, &empty, unimplemented),
        ("another service's", "/boxoffice.concert.v1.ConcertService/GetConcert", None, &empty, unimplemented),
        ("an encoding it has not", GET_SEATS, Some(("grpc-encoding", "gzip")), &compressed, unimplemented),
        ("compressed, not saying how", GET_SEATS, None, &compressed, refused),
        ("not protobuf", GET_SEATS, None, &framed(&[0xff; 16]), refused),
        ("not UTF-8", GET_SEATS, None, &no_text, refused),
        ("no message", GET_SEATS, None, &Vec::new(), refused),
        ("half a message", GET_SEATS, None, &unfinished, refused),
        ("too large", GET_SEATS, None, &too_large, refused),
    ];
    for (what, path, header, body, expected) in cases {
        let status = post(booking, path, header.as_slice(), body.clone()).await;
        assert_eq!((status.code(), reason(&status)), expected, "{what}: {status:?}");
    }
    assert_eq!(fake.calls(), 0);
    let status = post(booking, GET_SEATS, &[], empty).await;
    assert_eq!((status.code(), fake.calls()), (Code::Ok, 1), "and the service lives on");
}

#[tokio::test]
async fn an_answer_that_no_service_of_ours_gives_is_a_broken_connection() {
    let mesh = Mesh::new();
    let answers: [fn() -> http::Response<Body>; 4] = [
        || http::Response::builder().status(503).body(Body::empty()).unwrap(),
        || ok_headers().body(Body::empty()).unwrap(),
        || ok_headers().header("grpc-status", "14").body(Body::empty()).unwrap(),
        || ok_headers().header("grpc-status", "2").body(Body::empty()).unwrap(),
    ];
    for answer in answers {
        let address = serve_answers(move |_| answer()).await;
        let channel = mesh.channel("booking", address);
        for outcome in [create_session(&channel).await, watch_seats(&channel).await] {
            let status = outcome.unwrap_err();
            assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "TRANSPORT_BROKEN"));
        }
    }
}

#[tokio::test]
async fn a_method_that_no_contract_has_is_not_sent() {
    let (mesh, fake) = (Mesh::new(), Fake::willing());
    let booking = mesh.serve("booking", &fake).await;
    let mut channel = mesh.channel("booking", booking.address);
    let request =
        http::Request::post("/boxoffice.booking.v1.SeatService/Nothing").body(Body::empty()).unwrap();
    let response = channel.call(request).await.unwrap();
    let status = Status::from_header_map(response.headers()).unwrap();
    assert_eq!(reason(&status), "TRANSPORT_UNIMPLEMENTED");
    assert_eq!(booking.connections(), 0);
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_asked_for_once_and_opens_no_breaker() {
    let answers = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&answers);
    let address = serve_answers(move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
        ok_headers().body(Body::new(http_body_util::Full::new(vec![0; 5 << 20].into()))).unwrap()
    })
    .await;
    let channel = Mesh::new().channel("concert", address);
    for calls in 1..=30 {
        let status = get_sale(&channel).await.unwrap_err();
        assert_eq!((status.code(), reason(&status)), (Code::Internal, "INTERNAL"));
        assert_eq!(answers.load(Ordering::Relaxed), calls);
    }
    assert!(!channel.is_refusing());
}

/// How long a client may take to begin.
const BEGIN_LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_begin_is_dropped_after_a_minute() {
    let mesh = Mesh::new();
    let service = mesh.serve("concert", &Fake::willing()).await;
    for beginning in ["", "PRI * HTTP/2.0\r\n"] {
        let mut client = TcpStream::connect(service.address).await.unwrap();
        client.write_all(beginning.as_bytes()).await.unwrap();
        let begin = Instant::now();
        // What it hears before is no matter; a reset is an end, too.
        let end = tokio::time::timeout(10 * BEGIN_LIMIT, client.read_to_end(&mut Vec::new())).await;
        let waited = begin.elapsed();
        assert!((BEGIN_LIMIT..2 * BEGIN_LIMIT).contains(&waited), "{beginning:?}: {waited:?}, {end:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_has_begun_may_be_idle() {
    let mesh = Mesh::new();
    let service = mesh.serve("concert", &Fake::willing()).await;
    let channel = mesh.channel("concert", service.address);
    get_sale(&channel).await.unwrap();
    tokio::time::sleep(2 * BEGIN_LIMIT).await;
    get_sale(&channel).await.unwrap();
    assert_eq!(service.connections(), 1);
}

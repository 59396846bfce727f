//! Who may call what, and what everyone may: health and reflection. A bug or a crowd stops one call, not the service.

use std::collections::BTreeSet;

use boxoffice_proto::{
    booking::v1::{
        GetBookingRequest, WatchSeatsRequest, booking_service_client::BookingServiceClient,
        seat_service_client::SeatServiceClient,
    },
    policy::{Access, METHODS},
};
use http::HeaderMap;
use mesh::{
    Failure,
    auth::{Caller, SERVICE_HEADER},
    clock::Clock,
    id::UserId,
    server::Options,
};
use tokio::net::TcpListener;
use tonic::{Code, Request, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::pb::RequestInfo;

use crate::{
    service::{Fake, Gate},
    world::{
        Mesh, administrator, connect, details, fan, framed, organizer, post, read_to_end, reason,
        retry_after, wait_for_calls, with_token,
    },
};

const GET_SEATS: &str = "/boxoffice.booking.v1.SeatService/GetSeats";
const CREATE_HOLD: &str = "/boxoffice.booking.v1.HoldService/CreateHold";
const GET_BOOKING: &str = "/boxoffice.booking.v1.BookingService/GetBooking";
const GET_VENUE: &str = "/boxoffice.concert.v1.VenueService/GetVenue";
const PAY: &str = "/boxoffice.payment.v1.PaymentService/Pay";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

const OK: &str = "OK";
const MISSING: &str = "TOKEN_MISSING";
const INVALID: &str = "TOKEN_INVALID";
const EXPIRED: &str = "TOKEN_EXPIRED";
const DENIED: &str = "ACCESS_DENIED";

/// What comes with a call, and what methods answer to it that are for anyone, users, organisers, administrators, and
/// services.
struct Case {
    who: &'static str,
    headers: Vec<(&'static str, String)>,
    answers: [&'static str; 5],
}

/// As the service `payment` is called.
fn cases(mesh: &Mesh) -> Vec<Case> {
    let case = |who, headers, answers| Case { who, headers, answers };
    let bearer = |token: &str| ("authorization", format!("Bearer {token}"));
    let user = |user| bearer(&mesh.token(&user));
    let service = |token: &str| (SERVICE_HEADER, token.to_owned());
    let service_token = |callee| {
        let token = mesh.service_tokens("booking").header(callee, Clock::system().now());
        token.to_str().unwrap().to_owned()
    };
    let (ours, another) = (service_token("payment"), service_token("concert"));
    let forged = [INVALID, INVALID, INVALID, INVALID, INVALID];
    let expired = [OK, EXPIRED, EXPIRED, EXPIRED, EXPIRED];
    let no_user = [OK, MISSING, MISSING, MISSING, INVALID];
    vec![
        case("nobody", vec![], [OK, MISSING, MISSING, MISSING, MISSING]),
        case("nonsense", vec![bearer("nonsense")], forged),
        case("no bearer", vec![("authorization", "Basic Zm9v".into())], forged),
        case("a fan of another mesh", vec![bearer(&Mesh::new().token(&fan()))], forged),
        case("a fan whose token expired", vec![bearer(&mesh.expired_token(&fan()))], expired),
        case("a fan", vec![user(fan())], [OK, OK, DENIED, DENIED, DENIED]),
        case("an organizer", vec![user(organizer())], [OK, OK, OK, DENIED, DENIED]),
        case("an administrator", vec![user(administrator())], [OK, OK, DENIED, OK, DENIED]),
        case("a service", vec![service(&ours)], [OK, MISSING, MISSING, MISSING, OK]),
        case("a service, of another's token", vec![service(&another)], no_user),
        case("nonsense as a service", vec![service("nonsense")], no_user),
        case("an administrator as a service", vec![service(&mesh.token(&administrator()))], no_user),
        case("a service as a user", vec![bearer(&ours)], forged),
    ]
}

#[tokio::test]
async fn each_access_level_is_for_those_it_is_for() {
    let (mesh, fake) = (Mesh::new(), Fake::willing());
    let payment = mesh.serve("payment", &fake).await;
    for Case { who, headers, answers: [anyone, user, organizer, administrator, service] } in cases(&mesh) {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let methods = [(GET_SEATS, anyone), (GET_BOOKING, user), (GET_VENUE, organizer), (PAY, service)];
        for (path, expected) in methods {
            let before = fake.calls();
            let status = post(payment.address, path, &headers, framed(&[])).await;
            assert_eq!(outcome(&status), expected, "{who} calls {path}");
            assert_eq!(fake.calls() - before, usize::from(expected == OK), "{who} calls {path}");
        }

        // No contract has a method for administrators yet, so this level is asked for here.
        assert!(METHODS.iter().all(|method| method.access != Access::Admin));
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        let headers: HeaderMap = headers.collect();
        let answer = mesh.authenticator("payment").authenticate(&headers, Access::Admin).await;
        let status = answer.map_or_else(Status::from, |_| Status::ok(""));
        assert_eq!(outcome(&status), administrator, "{who} calls an administrator's method");
    }
}

fn outcome(status: &Status) -> &'static str {
    if status.code() == Code::Ok { OK } else { reason(status) }
}

#[tokio::test]
async fn identity_in_a_plain_header_means_nothing() {
    let (mesh, fake) = (Mesh::new(), Fake::willing());
    let booking = mesh.serve("booking", &fake).await;
    let (attacker, victim) = (fan(), UserId::new().to_string());
    let bearer = format!("Bearer {}", mesh.token(&attacker));
    let claims = [
        ("x-user-id", victim.as_str()),
        ("x-user-id-bin", "dmljdGlt"),
        ("x-roles", "admin"),
        ("x-forwarded-user", victim.as_str()),
    ];
    for path in [GET_BOOKING, GET_VENUE, PAY] {
        assert_eq!(reason(&post(booking.address, path, &claims, framed(&[])).await), "TOKEN_MISSING");
    }
    let headers = [&claims[..], &[("authorization", bearer.as_str())]].concat();
    assert_eq!(post(booking.address, GET_BOOKING, &headers, framed(&[])).await.code(), Code::Ok);
    let callers: Vec<Caller> = fake.seen().into_iter().map(|seen| seen.caller).collect();
    let [Caller::User(caller)] = callers.as_slice() else { panic!("{callers:?}") };
    assert_eq!(**caller, attacker);
    assert_eq!(reason(&post(booking.address, GET_VENUE, &headers, framed(&[])).await), "ACCESS_DENIED");
}

#[tokio::test]
async fn a_bug_ends_one_call_and_tells_nothing() {
    let bugs = [
        Fake::doing(|| async { panic!("SELECT secret FROM account") }),
        Fake::doing(|| async { Err(Failure::internal("SELECT secret FROM account").into()) }),
    ];
    for bug in bugs {
        let mesh = Mesh::new();
        let booking = mesh.serve("booking", &bug).await;
        let mut seats = SeatServiceClient::new(connect(booking.address).await);
        for _ in 0..3 {
            let trace = [("traceparent", TRACEPARENT)];
            let status = post(booking.address, GET_SEATS, &trace, framed(&[])).await;
            assert_tells_nothing(&status);

            let mut request = Request::new(WatchSeatsRequest::default());
            request.metadata_mut().insert("traceparent", TRACEPARENT.parse().unwrap());
            let changes = seats.watch_seats(request).await.unwrap().into_inner();
            assert_tells_nothing(&read_to_end(changes).await.unwrap_err());
        }
    }
}

#[track_caller]
fn assert_tells_nothing(status: &Status) {
    assert_eq!((status.code(), reason(status)), (Code::Internal, "INTERNAL"));
    let wire = format!("{status:?}{}", String::from_utf8_lossy(status.details()));
    assert!(!wire.contains("secret"), "{wire}");
    let info: Vec<RequestInfo> = details(status, "google.rpc.RequestInfo");
    assert_eq!(info[0].request_id, TRACE, "but where to look it up");
}

#[tokio::test]
async fn where_there_are_many_calls_those_that_begin_something_give_way() {
    let (mesh, gate) = (Mesh::new(), Gate::default());
    let fake = Fake::behind(&gate);
    let options = Options { max_in_flight: 2, ..Options::new("booking") };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let booking = mesh.serve_on(listener, options, &fake);
    let begin = async || post(booking.address, CREATE_HOLD, &[], framed(&[])).await;
    assert_eq!(reason(&begin().await), "TOKEN_MISSING");
    let first = tokio::spawn(post(booking.address, GET_SEATS, &[], framed(&[])));
    wait_for_calls(&fake, 1).await;
    let refused = begin().await;
    assert_eq!((refused.code(), reason(&refused)), (Code::ResourceExhausted, "OVERLOADED"));
    assert!(retry_after(&refused).is_some());
    let second = tokio::spawn(post(booking.address, GET_SEATS, &[], framed(&[])));
    wait_for_calls(&fake, 2).await;
    gate.open();
    for answer in [first, second] {
        assert_eq!(answer.await.unwrap().code(), Code::Ok);
    }
    assert_eq!(reason(&begin().await), "TOKEN_MISSING");
}

#[tokio::test]
async fn a_call_too_many_is_refused_at_once() {
    let (mesh, gate) = (Mesh::new(), Gate::default());
    let fake = Fake::behind(&gate);
    let options = Options { max_in_flight: 1, ..Options::new("booking") };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let booking = mesh.serve_on(listener, options, &fake);
    let mut seats = SeatServiceClient::new(connect(booking.address).await);
    let mut changes = seats.watch_seats(WatchSeatsRequest::default()).await.unwrap().into_inner();
    changes.message().await.unwrap().expect("a stream that is open takes no room");

    let first = tokio::spawn(post(booking.address, GET_SEATS, &[], framed(&[])));
    wait_for_calls(&fake, 2).await;
    let status = post(booking.address, GET_SEATS, &[], framed(&[])).await;
    assert_eq!((status.code(), reason(&status)), (Code::ResourceExhausted, "OVERLOADED"));
    assert!(retry_after(&status).is_some());
    let health = HealthClient::new(connect(booking.address).await).check(HealthCheckRequest::default()).await;
    assert_eq!(health.unwrap().into_inner().status(), ServingStatus::Serving, "busy, and well");

    gate.open();
    assert_eq!(first.await.unwrap().code(), Code::Ok);
    assert_eq!(post(booking.address, GET_SEATS, &[], framed(&[])).await.code(), Code::Ok);
}

#[tokio::test]
async fn health_needs_no_token() {
    let mesh = Mesh::new();
    let booking = mesh.serve("booking", &Fake::willing()).await;
    let mut health = HealthClient::new(connect(booking.address).await);
    let answer = health.check(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(answer.status(), ServingStatus::Serving);
    let unknown = health.check(HealthCheckRequest { service: "nobody".into() }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound, "as the health protocol wants it");
}

#[tokio::test]
async fn a_way_for_a_user_carries_the_user_s_token_unless_a_call_has_its_own() {
    let (mesh, fake, ann, bob) = (Mesh::new(), Fake::willing(), fan(), fan());
    let booking = mesh.serve("booking", &fake).await;
    let channel = mesh.channel("booking", booking.address);
    let mut bookings = BookingServiceClient::new(channel.as_user(&mesh.token(&ann)).unwrap());
    bookings.get_booking(GetBookingRequest::default()).await.unwrap();
    bookings.get_booking(with_token(&mesh.token(&bob), GetBookingRequest::default())).await.unwrap();
    let callers = fake.seen().into_iter().map(|seen| match seen.caller {
        Caller::User(user) => user.id,
        other => panic!("{other:?}"),
    });
    assert_eq!(callers.collect::<Vec<UserId>>(), [ann.id, bob.id]);
    let status = BookingServiceClient::new(channel.clone()).get_booking(GetBookingRequest::default()).await;
    assert_eq!(reason(&status.unwrap_err()), MISSING, "the way itself is nobody's");
    assert!(channel.as_user("two\nlines").is_err());
}

/// The services that reflection lists, by one of its two versions.
macro_rules! listed_services {
    ($version:ident, $address:expr) => {{
        use tonic_reflection::pb::$version::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let message_request = Some(MessageRequest::ListServices(String::new()));
        let request = ServerReflectionRequest { host: String::new(), message_request };
        let mut reflection = ServerReflectionClient::new(connect($address).await);
        let requests = tokio_stream::once(request);
        match reflection.server_reflection_info(requests).await {
            Err(status) => Err(status),
            Ok(response) => match response.into_inner().message().await.unwrap().unwrap().message_response {
                Some(MessageResponse::ListServicesResponse(list)) => {
                    Ok(list.service.into_iter().map(|service| service.name).collect::<BTreeSet<String>>())
                }
                other => panic!("{other:?}"),
            },
        }
    }};
}

#[tokio::test]
async fn reflection_lists_what_a_service_has_and_needs_no_token() {
    let mesh = Mesh::new();
    let booking = mesh.serve("booking", &Fake::willing()).await;
    let expected = [
        "boxoffice.booking.v1.BookingService",
        "boxoffice.booking.v1.HoldService",
        "boxoffice.booking.v1.SeatService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
    ];
    for listed in [listed_services!(v1, booking.address), listed_services!(v1alpha, booking.address)] {
        assert_eq!(listed.unwrap(), expected.map(str::to_owned).into());
    }
}

#[tokio::test]
async fn reflection_can_be_turned_off() {
    let mesh = Mesh::new();
    let options = Options { has_reflection: false, ..Options::new("booking") };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let booking = mesh.serve_on(listener, options, &Fake::willing());
    for listed in [listed_services!(v1, booking.address), listed_services!(v1alpha, booking.address)] {
        let status = listed.unwrap_err();
        assert_eq!((status.code(), reason(&status)), (Code::Unimplemented, "TRANSPORT_UNIMPLEMENTED"));
    }
}

//! The breaker of a neighbour opens for what the neighbour did, never for what it said.

use std::time::Duration;

use boxoffice_proto::{
    booking::v1::{
        CreateBookingRequest, ErrorReason as BookingReason, WatchSeatsRequest,
        booking_service_client::BookingServiceClient, seat_service_client::SeatServiceClient,
    },
    common::v1::ErrorReason as CommonReason,
    concert::v1::{GetSaleRequest, sale_service_client::SaleServiceClient},
    payment::v1::{PayRequest, payment_service_client::PaymentServiceClient},
};
use futures_util::future::{join_all, poll_immediate};
use mesh::{Failure, client::Channel, context::Context, server::Options};
use mesh_test::{FaultProxy, Mode, wait_until};
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::{
    service::{Fake, Gate},
    world::{Mesh, Port, Resetting, metadata, reason, retry_after, wait_for_calls},
};

/// How many calls the breaker looks back.
const WINDOW: usize = 20;
/// How long it refuses before it probes.
const OPEN_PERIOD: Duration = Duration::from_secs(5);

async fn get_sale(channel: &Channel) -> Result<(), Status> {
    SaleServiceClient::new(channel.clone()).get_sale(GetSaleRequest::default()).await.map(drop)
}

/// Calls until the breaker opens, which it must do after so many calls.
async fn open(channel: &Channel, expected: &str) {
    for _ in 0..WINDOW {
        assert!(!channel.is_refusing());
        assert_eq!(reason(&get_sale(channel).await.unwrap_err()), expected);
    }
    assert!(channel.is_refusing());
}

#[tokio::test(start_paused = true)]
async fn a_neighbour_that_refuses_is_left_alone_and_then_probed_with_one_call() {
    let (mesh, port, gate) = (Mesh::new(), Port::reserve(), Gate::default());
    let channel = mesh.channel("concert", port.address());
    open(&channel, "TRANSPORT_CONNECT_FAILED").await;

    let fake = Fake::behind(&gate);
    let concert = mesh.serve_on(port.listen(), Options::new("concert"), &fake);
    for _ in 0..100 {
        let status = get_sale(&channel).await.unwrap_err();
        assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "TRANSPORT_BREAKER_OPEN"));
        assert_eq!(metadata(&status, "service").as_deref(), Some("concert"));
        assert_eq!(retry_after(&status), Some(OPEN_PERIOD));
    }
    assert_eq!(concert.connections(), 0);

    tokio::time::advance(OPEN_PERIOD).await;
    let calls = join_all((0..10).map(|_| get_sale(&channel)));
    let ((), outcomes) = tokio::join!(
        async {
            wait_for_calls(&fake, 1).await;
            gate.open();
        },
        calls
    );
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    for status in outcomes.into_iter().filter_map(Result::err) {
        assert_eq!(reason(&status), "TRANSPORT_BREAKER_OPEN");
    }
    assert_eq!(fake.calls(), 1);

    for _ in 0..WINDOW {
        get_sale(&channel).await.expect("the breaker has closed");
    }
}

#[tokio::test(start_paused = true)]
async fn a_neighbour_that_stays_dead_is_asked_once_a_period() {
    let (mesh, neighbour) = (Mesh::new(), Resetting::start().await);
    let channel = mesh.channel("concert", neighbour.address);
    open(&channel, "TRANSPORT_BROKEN").await;
    for _ in 0..3 {
        tokio::time::advance(OPEN_PERIOD).await;
        let before = neighbour.connections();
        let outcomes = join_all((0..50).map(|_| get_sale(&channel))).await;
        let refused = outcomes.iter().filter(|outcome| {
            outcome.as_ref().is_err_and(|status| reason(status) == "TRANSPORT_BREAKER_OPEN")
        });
        assert_eq!(refused.count(), 49);
        assert!(
            (1..=3).contains(&(neighbour.connections() - before)),
            "one call, of three tries at the most"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_neighbour_sees_hardly_any_of_the_load() {
    const PERIODS: usize = 6;
    let (mesh, neighbour) = (Mesh::new(), Resetting::start().await);
    let channel = mesh.channel("concert", neighbour.address);
    let (begin, mut calls) = (Instant::now(), 0);
    while begin.elapsed() < PERIODS as u32 * OPEN_PERIOD {
        get_sale(&channel).await.unwrap_err();
        calls += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(calls > 1000, "{calls} calls");
    // What opens the breaker, and a probe for each period, of three tries each.
    let (seen, most) = (neighbour.connections(), 3 * (WINDOW + PERIODS));
    assert!((WINDOW..=most).contains(&seen), "{seen} of {calls} calls");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_waits_for_nothing() {
    let (mesh, port) = (Mesh::new(), Port::reserve());
    let channel = mesh.channel("concert", port.address());
    open(&channel, "TRANSPORT_CONNECT_FAILED").await;
    let refused = poll_immediate(get_sale(&channel)).await.expect("an answer at the first poll");
    assert_eq!(reason(&refused.unwrap_err()), "TRANSPORT_BREAKER_OPEN");
}

#[tokio::test(start_paused = true)]
async fn a_neighbour_that_answers_nothing_is_left_alone_and_found_again() {
    let (mesh, fake) = (Mesh::new(), Fake::willing());
    let concert = mesh.serve("concert", &fake).await;
    let proxy = FaultProxy::start(concert.address).await;
    let channel = mesh.channel("concert", proxy.address());
    get_sale(&channel).await.unwrap();

    proxy.set_mode(Mode::Blackhole);
    for outcome in join_all((0..WINDOW).map(|_| get_sale(&channel))).await {
        assert_eq!(reason(&outcome.unwrap_err()), "DEADLINE_EXCEEDED");
    }
    assert!(channel.is_refusing());
    assert_eq!(fake.calls(), 1);

    // The connection that went through the black hole never carries anything again: keepalive must find that out.
    proxy.set_mode(Mode::Pass);
    wait_until("the neighbour to be found again", 3 * OPEN_PERIOD, async || {
        get_sale(&channel).await.map_err(|status| status.to_string())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_neighbour_whose_handlers_hang_is_left_alone() {
    let mesh = Mesh::new();
    let concert = mesh.serve("concert", &Fake::hanging()).await;
    let channel = mesh.channel("concert", concert.address);
    for outcome in join_all((0..WINDOW).map(|_| get_sale(&channel))).await {
        assert_eq!(reason(&outcome.unwrap_err()), "DEADLINE_EXCEEDED");
    }
    assert!(channel.is_refusing());
}

#[tokio::test(start_paused = true)]
async fn a_neighbour_whose_streams_do_not_begin_is_left_alone() {
    let mesh = Mesh::new();
    let booking = mesh.serve("booking", &Fake::willing()).await;
    let proxy = FaultProxy::start(booking.address).await;
    proxy.set_mode(Mode::Blackhole);
    let channel = mesh.channel("booking", proxy.address());
    let watch = async || {
        SeatServiceClient::new(channel.clone()).watch_seats(WatchSeatsRequest::default()).await.map(drop)
    };
    for outcome in join_all((0..WINDOW).map(|_| watch())).await {
        assert_eq!(reason(&outcome.unwrap_err()), "DEADLINE_EXCEEDED");
    }
    assert!(channel.is_refusing());
}

#[tokio::test(start_paused = true)]
async fn a_dead_payment_service_does_not_open_the_breaker_on_booking() {
    let (mesh, nobody) = (Mesh::new(), Port::reserve());
    let payment = mesh.channel("payment", nobody.address());
    let payments = PaymentServiceClient::new(payment.clone());
    let fake = Fake::doing(move || {
        let mut payments = payments.clone();
        async move {
            payments.pay(PayRequest::default()).await.map(drop).map_err(|_| {
                Failure::new(BookingReason::PaymentUnavailable, "payments can't be taken right now")
                    .retry_after(Duration::from_secs(1))
                    .into()
            })
        }
    });
    let service = mesh.serve("booking", &fake).await;
    let booking = mesh.channel("booking", service.address);
    for _ in 0..100 {
        let mut bookings = BookingServiceClient::new(booking.clone());
        let status =
            bookings.create_booking(mesh.request(CreateBookingRequest::default())).await.unwrap_err();
        assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "PAYMENT_UNAVAILABLE"));
        assert_eq!(retry_after(&status), Some(Duration::from_secs(1)));
        assert!(!booking.is_refusing());
    }
    assert!(payment.is_refusing());
    assert_eq!(fake.calls(), 100, "an answer is not asked for again");
}

#[tokio::test(start_paused = true)]
async fn what_a_neighbour_says_is_no_fault_of_its_but_a_bug_is() {
    let mesh = Mesh::new();
    let said: [fn() -> Failure; 6] = [
        || Failure::new(BookingReason::SeatTaken, ""),
        || Failure::new(BookingReason::ConcertUnavailable, ""),
        || Failure::new(CommonReason::Overloaded, ""),
        || Failure::new(CommonReason::DatabaseUnavailable, ""),
        || Failure::new(CommonReason::DeadlineExceeded, ""),
        || Failure::new(CommonReason::TransportBroken, ""),
    ];
    for failure in said {
        let concert = mesh.serve("concert", &Fake::failing(failure)).await;
        let channel = mesh.channel("concert", concert.address);
        for _ in 0..2 * WINDOW {
            assert_eq!(reason(&get_sale(&channel).await.unwrap_err()), failure().info().reason);
        }
        assert!(!channel.is_refusing(), "{:?}", failure().info());
    }
    let bugs = [Fake::failing(|| Failure::internal("a bug")), Fake::doing(|| async { panic!("a bug") })];
    for bug in bugs {
        let concert = mesh.serve("concert", &bug).await;
        open(&mesh.channel("concert", concert.address), "INTERNAL").await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_expired_deadline_counts_if_the_call_had_half_of_its_time() {
    let mesh = Mesh::new();
    let concert = mesh.serve("concert", &Fake::hanging()).await;
    let channel = mesh.channel("concert", concert.address);
    // The contract gives this call two seconds.
    let call_within = async |millis| {
        let context = Context::root().within(Duration::from_millis(millis));
        let status = context.scope(get_sale(&channel)).await.unwrap_err();
        assert_eq!(reason(&status), "DEADLINE_EXCEEDED");
    };
    for _ in 0..2 * WINDOW {
        call_within(950).await;
    }
    assert!(!channel.is_refusing(), "they were given too little time");
    for _ in 0..WINDOW {
        call_within(1050).await;
    }
    assert!(channel.is_refusing());
}

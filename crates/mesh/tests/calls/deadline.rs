//! A deadline set once holds for every hop, and whoever waits for the slowest hop says so.

use std::time::Duration;

use boxoffice_proto::{
    booking::v1::{
        CreateBookingRequest, GetSeatsRequest, booking_service_client::BookingServiceClient,
        seat_service_client::SeatServiceClient,
    },
    payment::v1::{PayRequest, payment_service_client::PaymentServiceClient},
    user::v1::{ListSigningKeysRequest, key_service_client::KeyServiceClient},
};
use mesh::{context::Context, deadline};
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::{
    service::Fake,
    world::{Mesh, Service, framed, post, reason},
};

const BUDGET: Duration = Duration::from_secs(1);
const GET_SEATS: &str = "/boxoffice.booking.v1.SeatService/GetSeats";

/// booking, which calls payment, which calls user.
struct Chain {
    mesh: Mesh,
    booking: Service,
    fakes: [Fake; 3],
}

impl Chain {
    /// Each does its own deed after it has called the next.
    async fn start([booking, payment, user]: [Fake; 3]) -> Self {
        let mesh = Mesh::new();
        let user_service = mesh.serve("user", &user).await;
        let users = KeyServiceClient::new(mesh.channel("user", user_service.address));
        let payment = payment.after(move || {
            let mut users = users.clone();
            async move { users.list_signing_keys(ListSigningKeysRequest {}).await.map(drop) }
        });
        let payment_service = mesh.serve("payment", &payment).await;
        let payments = PaymentServiceClient::new(mesh.channel("payment", payment_service.address));
        let booking = booking.after(move || {
            let mut payments = payments.clone();
            async move { payments.pay(PayRequest::default()).await.map(drop) }
        });
        let booking_service = mesh.serve("booking", &booking).await;
        Self { mesh, booking: booking_service, fakes: [booking, payment, user] }
    }

    /// What the gateway gets from booking within a budget.
    async fn create_booking(&self, budget: Duration) -> Result<(), Status> {
        let mut bookings = BookingServiceClient::new(self.mesh.channel("booking", self.booking.address));
        let request = self.mesh.request(CreateBookingRequest::default());
        Context::root().within(budget).scope(bookings.create_booking(request)).await.map(drop)
    }
}

#[tokio::test(start_paused = true)]
async fn a_budget_shrinks_at_every_hop() {
    let chain = Chain::start([Fake::willing(), Fake::willing(), Fake::willing()]).await;
    chain.create_booking(BUDGET).await.unwrap();
    let mut budget = BUDGET;
    for fake in &chain.fakes {
        let [seen] = fake.seen().try_into().ok().expect("one call");
        let given = deadline::read(&seen.headers).unwrap().expect("every hop is given a timeout");
        assert!(given + deadline::MARGIN <= budget, "{given:?} of {budget:?}");
        assert!(given + 3 * deadline::MARGIN >= budget, "and no less than it must: {given:?} of {budget:?}");
        budget = given;
    }
}

#[tokio::test(start_paused = true)]
async fn a_method_takes_no_longer_than_its_contract_lets_it() {
    let chain = Chain::start([Fake::willing(), Fake::willing(), Fake::willing()]).await;
    chain.create_booking(Duration::from_secs(3600)).await.unwrap();
    let given = chain.fakes.map(|fake| deadline::read(&fake.seen()[0].headers).unwrap().unwrap());
    let contract = [10, 3, 2].map(Duration::from_secs);
    assert!(given.iter().zip(&contract).all(|(given, contract)| given <= contract), "{given:?}");
}

#[tokio::test(start_paused = true)]
async fn the_slowest_hop_is_reported_by_its_caller_and_in_time() {
    let slow_ones = [
        ([Fake::willing(), Fake::willing(), Fake::hanging()], "user did not answer in time"),
        ([Fake::willing(), Fake::hanging(), Fake::willing()], "payment did not answer in time"),
        ([Fake::hanging(), Fake::willing(), Fake::willing()], "booking did not answer in time"),
    ];
    for (fakes, expected) in slow_ones {
        let chain = Chain::start(fakes).await;
        let begin = Instant::now();
        let status = chain.create_booking(BUDGET).await.unwrap_err();
        assert_eq!((reason(&status), status.message()), ("DEADLINE_EXCEEDED", expected));
        let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
        assert_eq!(retry, Some(Duration::from_secs(1)), "{expected}");
        assert!(begin.elapsed() < BUDGET, "{expected} after {:?}", begin.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_with_no_time_left_is_not_sent() {
    let (mesh, fake) = (Mesh::new(), Fake::willing());
    let booking = mesh.serve("booking", &fake).await;
    let channel = mesh.channel("booking", booking.address);
    let mut seats = SeatServiceClient::new(channel.clone());
    seats.get_seats(GetSeatsRequest::default()).await.expect("there is a connection");
    for _ in 0..100 {
        let call = seats.get_seats(GetSeatsRequest::default());
        let status = Context::root().within(deadline::MARGIN).scope(call).await.unwrap_err();
        assert_eq!(reason(&status), "DEADLINE_EXCEEDED");
    }
    assert!(!channel.is_refusing(), "it says nothing about the neighbour");
    seats.get_seats(GetSeatsRequest::default()).await.unwrap();
    assert_eq!(fake.calls(), 2);
}

#[tokio::test]
async fn a_malformed_timeout_is_refused() {
    let (mesh, fake) = (Mesh::new(), Fake::willing());
    let booking = mesh.serve("booking", &fake).await;
    for timeout in ["soon", "1", "-1S", "123456789S"] {
        let status = post(booking.address, GET_SEATS, &[(deadline::HEADER, timeout)], framed(&[])).await;
        assert_eq!(
            (status.code(), reason(&status)),
            (Code::InvalidArgument, "TIMEOUT_MALFORMED"),
            "{timeout}"
        );
    }
    assert_eq!(fake.calls(), 0);
}

/// Tonic's server has a timer of its own for `grpc-timeout`, which would answer CANCELLED without a reason.
#[tokio::test]
async fn whoever_waits_longer_than_it_said_hears_a_reason() {
    let (mesh, fake) = (Mesh::new(), Fake::hanging());
    let booking = mesh.serve("booking", &fake).await;
    for micros in (1000..20_000).step_by(97) {
        let timeout = format!("{micros}u");
        let status = post(booking.address, GET_SEATS, &[(deadline::HEADER, &timeout)], framed(&[])).await;
        assert_eq!(status.code(), Code::DeadlineExceeded, "{timeout}: {status:?}");
        assert_eq!(reason(&status), "DEADLINE_EXCEEDED");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_without_a_timeout_ends_when_its_contract_says() {
    let (mesh, fake) = (Mesh::new(), Fake::hanging());
    let booking = mesh.serve("booking", &fake).await;
    let begin = Instant::now();
    let status = post(booking.address, GET_SEATS, &[], framed(&[])).await;
    assert_eq!(reason(&status), "DEADLINE_EXCEEDED");
    assert!(status.get_details_retry_info().is_some(), "{status:?}");
    assert!((2000..2100).contains(&begin.elapsed().as_millis()), "{:?}", begin.elapsed());
}

//! Books two seats of the concert that is on sale, as a program of another team does it: by the generated clients, through
//! [`Channel`], which brings the deadlines, retries and idempotency keys of the contracts. Beside a `cargo run`:
//!
//! ```sh
//! read -r EMAIL PASSWORD < <(grep ^dan data/demo.txt)
//! EMAIL=$EMAIL PASSWORD=$PASSWORD cargo run -p mesh --example book
//! ```

use std::env;

use anyhow::Context;
use boxoffice_proto::{
    booking::v1::{
        BestAvailable, CreateBookingRequest, CreateBookingResponse, CreateHoldRequest, PaymentMethod,
        booking_service_client::BookingServiceClient, hold_service_client::HoldServiceClient,
    },
    concert::v1::{ListConcertsRequest, concert_service_client::ConcertServiceClient},
    user::v1::{CreateSessionRequest, session_service_client::SessionServiceClient},
};
use mesh::{client::Channel, clock::Clock, failure};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let login = CreateSessionRequest { email: var("EMAIL")?, password: var("PASSWORD")? };
    let [user, concert, booking] =
        [channel("user", 50051)?, channel("concert", 50052)?, channel("booking", 50053)?];
    let booked = book(login, user, concert, booking).await.map_err(with_reason)?;
    println!("{}", booked.booking.unwrap_or_default().state().as_str_name());
    Ok(())
}

fn var(name: &str) -> anyhow::Result<String> {
    env::var(name).with_context(|| format!("{name} must be set"))
}

// The README shows this function as it stands.
async fn book(
    login: CreateSessionRequest,
    user: Channel,
    concert: Channel,
    booking: Channel,
) -> anyhow::Result<CreateBookingResponse> {
    let session = SessionServiceClient::new(user).create_session(login).await?.into_inner();
    let mut concerts = ConcertServiceClient::new(concert);
    let on_sale = concerts.list_concerts(ListConcertsRequest::default()).await?.into_inner().concerts;
    let concert_id = on_sale.into_iter().next().context("nothing is on sale")?.concert_id;
    let booking = booking.as_user(&session.access_token)?;
    let best_available = Some(BestAvailable { section_id: "A".into(), quantity: 2, accessible: false });
    let wish = CreateHoldRequest { concert_id, best_available, ..Default::default() };
    let hold = HoldServiceClient::new(booking.clone()).create_hold(wish).await?.into_inner().hold;
    let (hold_id, payment_method) = (hold.unwrap_or_default().hold_id, PaymentMethod::Wallet.into());
    let order = CreateBookingRequest { hold_id, payment_method, ..Default::default() };
    Ok(BookingServiceClient::new(booking).create_booking(order).await?.into_inner())
}

/// The way to a service, which is where `USER_URL` and so on say.
fn channel(name: &'static str, port: u16) -> anyhow::Result<Channel> {
    let url = env::var(format!("{}_URL", name.to_uppercase()));
    let url = url.unwrap_or_else(|_| format!("http://127.0.0.1:{port}"));
    Ok(Channel::new(name, url.parse()?, None, Clock::system()))
}

/// A refusal with its reason, for which programs look: docs/ERRORS.md has them all.
fn with_reason(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref().and_then(failure::error_info) {
        Some(info) => error.context(info.reason),
        None => error,
    }
}

//! Books two seats of the concert that is on sale, as a program of another team does it: by the generated clients, through
//! [`Channel`], which brings the deadlines, retries and idempotency keys of the contracts. Beside a `cargo run`:
//!
//! ```sh
//! read -r EMAIL PASSWORD < <(grep ^ann data/demo.txt)
//! EMAIL=$EMAIL PASSWORD=$PASSWORD cargo run -p mesh --example book
//! ```

use anyhow::Context;
use boxoffice_proto::{
    booking::v1::{
        BestAvailable, CreateBookingRequest, CreateHoldRequest, PaymentMethod,
        booking_service_client::BookingServiceClient, hold_service_client::HoldServiceClient,
    },
    concert::v1::{ListConcertsRequest, concert_service_client::ConcertServiceClient},
    user::v1::{CreateSessionRequest, session_service_client::SessionServiceClient},
};
use clap::Parser;
use mesh::{
    client::{Address, Channel},
    clock::Clock,
};

/// Who books, and where Boxoffice is.
#[derive(Parser)]
struct Cli {
    #[arg(long, env)]
    email: String,
    #[arg(long, env, hide_env_values = true)]
    password: String,
    #[arg(long, env, default_value = "http://127.0.0.1:50051")]
    user_url: Address,
    #[arg(long, env, default_value = "http://127.0.0.1:50052")]
    concert_url: Address,
    #[arg(long, env, default_value = "http://127.0.0.1:50053")]
    booking_url: Address,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Cli { email, password, user_url, concert_url, booking_url } = Cli::parse();
    let channel = |name, url| Channel::new(name, url, None, Clock::system());

    let mut sessions = SessionServiceClient::new(channel("user", user_url));
    let session = sessions.create_session(CreateSessionRequest { email, password }).await?.into_inner();

    let mut concerts = ConcertServiceClient::new(channel("concert", concert_url));
    let listed = concerts.list_concerts(ListConcertsRequest::default()).await?.into_inner().concerts;
    let concert_id = listed.into_iter().next().context("nothing is on sale")?.concert_id;

    let booking = channel("booking", booking_url).as_user(&session.access_token)?;
    let best_available = Some(BestAvailable { section_id: "A".into(), quantity: 2, accessible: false });
    let wish = CreateHoldRequest { concert_id, best_available, ..Default::default() };
    let hold = HoldServiceClient::new(booking.clone()).create_hold(wish).await?.into_inner().hold;

    let (hold_id, payment_method) = (hold.unwrap_or_default().hold_id, PaymentMethod::Wallet.into());
    let order = CreateBookingRequest { hold_id, payment_method, ..Default::default() };
    let booking = BookingServiceClient::new(booking).create_booking(order).await?.into_inner().booking;
    println!("{}", booking.unwrap_or_default().state().as_str_name());
    Ok(())
}

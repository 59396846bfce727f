//! A handler behind everything a service puts before it (trace, room, deadline, identity), and the same handler bare. The
//! handler only makes an answer, so the difference is all policy: a real one hides most of it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use boxoffice_proto::booking::v1::{
    BookedSeat, Booking, BookingState, CancelBookingRequest, CancelBookingResponse, CreateBookingRequest,
    CreateBookingResponse, GetBookingRequest, GetBookingResponse, ListBookingsRequest, ListBookingsResponse,
    booking_service_client::BookingServiceClient,
    booking_service_server::{BookingService, BookingServiceServer},
};
use chrono::TimeDelta;
use jsonwebtoken::EncodingKey;
use mesh::{
    auth::{Authenticator, Keys, ServiceTokens, User, keys::PublicKey, token},
    clock::Clock,
    config::Secret,
    id::{SessionId, UserId},
    server::{self, Options as ServerOptions},
    shutdown::Shutdown,
};
use tokio::{net::TcpListener, time::Instant};
use tonic::{
    Request, Response, Status,
    service::Routes,
    transport::{Server, server::TcpIncoming},
};

use crate::house::{authorized, channels};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How long to measure each, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Callers at the same time.
    #[arg(long, default_value_t = 64)]
    callers: usize,
}

/// Answers every GetBooking with a booking of four seats.
#[derive(Clone, Copy)]
struct Shelf;

#[tonic::async_trait]
impl BookingService for Shelf {
    async fn get_booking(
        &self,
        request: Request<GetBookingRequest>,
    ) -> Result<Response<GetBookingResponse>, Status> {
        let seat = |number: usize| BookedSeat {
            seat_id: format!("A-1-{number}"),
            section_id: "A".into(),
            row_label: "1".into(),
            seat_label: number.to_string(),
            ..BookedSeat::default()
        };
        let booking = Booking {
            booking_id: request.into_inner().booking_id,
            state: BookingState::Confirmed.into(),
            seats: (1..=4).map(seat).collect(),
            ..Booking::default()
        };
        Ok(Response::new(GetBookingResponse { booking: Some(booking) }))
    }

    async fn create_booking(
        &self,
        _: Request<CreateBookingRequest>,
    ) -> Result<Response<CreateBookingResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn list_bookings(
        &self,
        _: Request<ListBookingsRequest>,
    ) -> Result<Response<ListBookingsResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn cancel_booking(
        &self,
        _: Request<CancelBookingRequest>,
    ) -> Result<Response<CancelBookingResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }
}

pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let document = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new())?;
    let x =
        BASE64_URL_SAFE_NO_PAD.encode(Ed25519KeyPair::from_pkcs8(document.as_ref())?.public_key().as_ref());
    let keys = Keys::new();
    keys.replace(vec![PublicKey { kid: "bench".into(), x }], Default::default());
    let user = User { id: UserId::new(), session: SessionId::new(), organizers: Vec::new(), is_admin: false };
    let now = Clock::system().now();
    let key = EncodingKey::from_ed_der(document.as_ref());
    let token: Arc<str> = token::sign(&user, "bench", &key, now, now + TimeDelta::hours(1))?.into();

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let guarded = listener.local_addr()?;
    let tokens = ServiceTokens::new("booking", &Secret::random(), None);
    let authenticator = Authenticator::new(keys, tokens, Clock::system());
    let routes = Routes::new(BookingServiceServer::new(Shelf));
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::spawn(server::serve(
        ServerOptions::new("booking"),
        routes,
        authenticator,
        incoming,
        Shutdown::new(),
    ));

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let bare = listener.local_addr()?;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::spawn(
        Server::builder().add_service(BookingServiceServer::new(Shelf)).serve_with_incoming(incoming),
    );

    let before = measure(&options, bare, &token).await?;
    let behind = measure(&options, guarded, &token).await?;
    let after = measure(&options, bare, &token).await?;
    let ratio = behind / ((before + after) / 2.0);
    println!(
        "GetBooking: behind the policies {behind:.0}/s, bare {before:.0} and {after:.0}/s, ratio {ratio:.2}"
    );
    Ok(())
}

async fn measure(options: &Options, address: SocketAddr, token: &Arc<str>) -> anyhow::Result<f64> {
    let clients: Vec<_> = channels(address).into_iter().map(BookingServiceClient::new).collect();
    let start = Instant::now();
    let stop = start + Duration::from_secs(options.seconds);
    let callers: Vec<_> = (0..options.callers)
        .map(|caller| {
            let (mut client, token) = (clients[caller % clients.len()].clone(), Arc::clone(token));
            tokio::spawn(async move {
                let mut calls = 0_usize;
                while Instant::now() < stop {
                    let request = GetBookingRequest { booking_id: "bkg_01h455vb4pex5vsknk084sn02q".into() };
                    client.get_booking(authorized(request, &token)?).await?;
                    calls += 1;
                }
                anyhow::Ok(calls)
            })
        })
        .collect();
    let mut calls = 0;
    for caller in callers {
        calls += caller.await??;
    }
    Ok(calls as f64 / start.elapsed().as_secs_f64())
}

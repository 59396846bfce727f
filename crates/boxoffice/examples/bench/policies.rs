//! A handler behind everything a service puts before it (trace, room, deadline, identity), and the same handler bare. The
//! handler only makes an answer, so the difference is all policy: a real one hides most of it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use boxoffice::api::new_key;
use boxoffice_proto::booking::v1::{
    BookedSeat, Booking, BookingState, CancelBookingRequest, CancelBookingResponse, CreateBookingRequest,
    CreateBookingResponse, CreateHoldRequest, CreateHoldResponse, DeleteHoldRequest, DeleteHoldResponse,
    GetBookingRequest, GetBookingResponse, GetHoldRequest, GetHoldResponse, HeldSeat, Hold,
    ListBookingsRequest, ListBookingsResponse,
    booking_service_client::BookingServiceClient,
    booking_service_server::{BookingService, BookingServiceServer},
    hold_service_client::HoldServiceClient,
    hold_service_server::{HoldService, HoldServiceServer},
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

use crate::house::{CONNECTIONS, authorized, channels};

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

#[tonic::async_trait]
impl HoldService for Shelf {
    async fn create_hold(
        &self,
        request: Request<CreateHoldRequest>,
    ) -> Result<Response<CreateHoldResponse>, Status> {
        let seat = |seat_id: String| HeldSeat {
            section_id: "A".into(),
            row_label: "1".into(),
            seat_label: seat_id.clone(),
            seat_id,
            ..HeldSeat::default()
        };
        let message = request.into_inner();
        let hold = Hold {
            hold_id: "hld_01h455vb4pex5vsknk084sn02q".into(),
            concert_id: message.concert_id,
            seats: message.seat_ids.into_iter().map(seat).collect(),
            ..Hold::default()
        };
        Ok(Response::new(CreateHoldResponse { hold: Some(hold) }))
    }

    async fn get_hold(&self, _: Request<GetHoldRequest>) -> Result<Response<GetHoldResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn delete_hold(
        &self,
        _: Request<DeleteHoldRequest>,
    ) -> Result<Response<DeleteHoldResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }
}

#[derive(Clone, Copy)]
enum What {
    GetBooking,
    Hold,
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
    let routes = Routes::new(BookingServiceServer::new(Shelf)).add_service(HoldServiceServer::new(Shelf));
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
    let server = Server::builder()
        .add_service(BookingServiceServer::new(Shelf))
        .add_service(HoldServiceServer::new(Shelf));
    tokio::spawn(server.serve_with_incoming(incoming));

    for (name, what) in [("GetBooking", What::GetBooking), ("Hold of 4 seats", What::Hold)] {
        // A-B-A-B-A: what the machine does meanwhile shows in how far the same side differs.
        let mut rates = Vec::new();
        for side in [bare, guarded, bare, guarded, bare] {
            rates.push(measure(&options, side, what, &token).await?);
        }
        let [bare_1, behind_1, bare_2, behind_2, bare_3] = rates[..] else { anyhow::bail!("five sides") };
        let ratio = (behind_1 + behind_2) / 2.0 / ((bare_1 + bare_2 + bare_3) / 3.0);
        println!(
            "{name}: behind the policies {behind_1:.0} and {behind_2:.0}/s, \
             bare {bare_1:.0}, {bare_2:.0} and {bare_3:.0}/s, ratio {ratio:.2}"
        );
    }
    Ok(())
}

async fn measure(
    options: &Options,
    address: SocketAddr,
    what: What,
    token: &Arc<str>,
) -> anyhow::Result<f64> {
    let channels = channels(address, CONNECTIONS);
    let start = Instant::now();
    let stop = start + Duration::from_secs(options.seconds);
    let callers: Vec<_> = (0..options.callers)
        .map(|caller| {
            let (channel, token) = (channels[caller % channels.len()].clone(), Arc::clone(token));
            let mut bookings = BookingServiceClient::new(channel.clone());
            let mut holds = HoldServiceClient::new(channel);
            tokio::spawn(async move {
                let mut calls = 0_usize;
                while Instant::now() < stop {
                    match what {
                        What::GetBooking => {
                            let booking_id = "bkg_01h455vb4pex5vsknk084sn02q".into();
                            let request = GetBookingRequest { booking_id };
                            bookings.get_booking(authorized(request, &token)?).await?;
                        }
                        What::Hold => {
                            let request = CreateHoldRequest {
                                concert_id: "cnc_01h455vb4pex5vsknk084sn02q".into(),
                                seat_ids: (1..=4).map(|seat| format!("A-1-{seat}")).collect(),
                                best_available: None,
                                request_id: new_key(),
                            };
                            holds.create_hold(authorized(request, &token)?).await?;
                        }
                    }
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

//! A gateway on a port of its own, in front of services that are fakes.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use boxoffice_proto::{
    booking::v1::{
        CreateHoldRequest, CreateHoldResponse, DeleteHoldRequest, DeleteHoldResponse, ErrorReason,
        GetHoldRequest, GetHoldResponse, GetSeatMapRequest, GetSeatMapResponse, GetSeatsRequest,
        GetSeatsResponse, HeldSeat, Hold, SeatChange, SeatMap, SeatMapRow, SeatMapRows, SeatMapSeat,
        SeatMapSection, SeatState, SectionAvailability, WatchSeatsRequest, WatchSeatsResponse,
        hold_service_server::{HoldService, HoldServiceServer},
        seat_map_section::Arrangement,
        seat_service_server::{SeatService, SeatServiceServer},
    },
    common::v1::ErrorReason as CommonReason,
    user::v1::{
        ListSigningKeysRequest, ListSigningKeysResponse, SigningKey,
        key_service_server::{KeyService, KeyServiceServer},
    },
};
use futures_util::{Stream, StreamExt, stream};
use gateway_rest::Config;
use http::{HeaderMap, StatusCode};
use jsonwebtoken::EncodingKey;
use mesh::{
    Failure,
    auth::{User, token},
    clock::Clock,
    config::Secret,
    failure::Violation,
    id::{OrganizerId, SessionId, UserId},
    shutdown::Shutdown,
};
use mesh_test::{FaultProxy, wait_until};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, service::Routes, transport::Server};

/// How long to wait for what should happen at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A gateway and what stands around it.
pub(crate) struct World {
    pub(crate) url: String,
    pub(crate) http: reqwest::Client,
    pub(crate) shutdown: Shutdown,
    pub(crate) gateway: JoinHandle<anyhow::Result<()>>,
    /// The headers of the calls that reached the fakes.
    pub(crate) seen: Arc<Mutex<Vec<HeaderMap>>>,
    /// What stands between the gateway and booking.
    pub(crate) booking: FaultProxy,
    /// Lets calls for the seat `slow` go on.
    pub(crate) release: watch::Sender<bool>,
    key: EncodingKey,
}

/// Starts a gateway. `change` may change what it is told.
pub(crate) async fn start(change: impl FnOnce(&mut Config)) -> World {
    let document = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new()).unwrap();
    let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
    let x = BASE64_URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (release, released) = watch::channel(false);
    let fake = Fake { seen: Arc::clone(&seen), released };

    let user = serve(Routes::new(KeyServiceServer::new(Keys(x)))).await;
    let booking =
        serve(Routes::new(SeatServiceServer::new(fake.clone())).add_service(HoldServiceServer::new(fake)))
            .await;
    let booking = FaultProxy::start(booking).await;
    // Nobody listens where a listener has just been closed.
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let uri = |address: SocketAddr| format!("http://{address}").parse().unwrap();
    let mut config = Config {
        user_url: uri(user),
        concert_url: uri(nobody),
        booking_url: booking.url().parse().unwrap(),
        payment_url: uri(nobody),
        service_token_key: Secret::random(),
        cors_allowed_origins: "https://tickets.example".parse().unwrap(),
        rate_limit_per_user: 1000,
        rate_limit_per_address: 1000,
        redis_url: None,
        docs: false,
        drain_wait: Duration::ZERO,
    };
    change(&mut config);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let shutdown = Shutdown::new();
    let gateway = tokio::spawn(gateway_rest::serve(config, listener, Clock::system(), shutdown.clone()));
    let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let key = EncodingKey::from_ed_der(document.as_ref());
    let world = World { url, http, shutdown, gateway, seen, booking, release, key };
    wait_until("the signing keys", PATIENCE, async || {
        let status =
            world.anonymous("GET", "/.well-known/jwks.json").send().await.map(|response| response.status());
        if matches!(status, Ok(StatusCode::OK)) { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
    world
}

async fn serve(routes: Routes) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::builder().add_routes(routes).serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    address
}

impl World {
    /// A request with a fan's token.
    pub(crate) fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        self.anonymous(method, path).bearer_auth(self.token(vec![]))
    }

    /// A request without a token.
    pub(crate) fn anonymous(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method.parse().unwrap(), format!("{}{path}", self.url))
    }

    /// A fan's request to hold seats.
    pub(crate) fn hold(&self, seat_ids: &[&str]) -> reqwest::RequestBuilder {
        self.request("POST", "/v1/concerts/cnc_1/holds")
            .header("idempotency-key", "key-1")
            .json(&serde_json::json!({"seatIds": seat_ids}))
    }

    /// An access token of a new user.
    pub(crate) fn token(&self, organizers: Vec<OrganizerId>) -> String {
        let user = User { id: UserId::new(), session: SessionId::new(), organizers, is_admin: false };
        let now = Clock::system().now();
        token::sign(&user, "k1", &self.key, now, now + Duration::from_secs(900)).unwrap()
    }
}

/// A response whose body is JSON.
pub(crate) async fn json(response: reqwest::Response) -> serde_json::Value {
    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
}

struct Keys(String);

#[tonic::async_trait]
impl KeyService for Keys {
    async fn list_signing_keys(
        &self,
        _: Request<ListSigningKeysRequest>,
    ) -> Result<Response<ListSigningKeysResponse>, Status> {
        let keys = vec![SigningKey { kid: "k1".into(), x: self.0.clone() }];
        Ok(Response::new(ListSigningKeysResponse { keys, revoked_session_ids: vec![] }))
    }
}

#[derive(Clone)]
struct Fake {
    seen: Arc<Mutex<Vec<HeaderMap>>>,
    released: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl HoldService for Fake {
    /// Answers by the first seat's name.
    async fn create_hold(
        &self,
        request: Request<CreateHoldRequest>,
    ) -> Result<Response<CreateHoldResponse>, Status> {
        self.seen.lock().unwrap().push(request.metadata().clone().into_headers());
        let request = request.into_inner();
        let first = request.seat_ids.first().cloned().unwrap_or_default();
        match first.as_str() {
            "taken" => {
                let failure =
                    Failure::new(ErrorReason::SeatTaken, "a seat is taken").with("seat_ids", "taken");
                return Err(failure.into());
            }
            "wrong" => {
                return Err(Failure::fields(vec![Violation {
                    field: "seat_ids[0]".into(),
                    reason: "MALFORMED",
                    description: "is no seat".into(),
                }])
                .into());
            }
            "bug" => return Err(Failure::internal("SELECT password FROM account").into()),
            "slow" => {
                let _ = self.released.clone().wait_for(|is_released| *is_released).await;
            }
            _ => {}
        }
        let seats =
            request.seat_ids.into_iter().map(|seat_id| HeldSeat { seat_id, ..Default::default() }).collect();
        let hold =
            Hold { hold_id: request.request_id, concert_id: request.concert_id, seats, ..Default::default() };
        let mut response = Response::new(CreateHoldResponse { hold: Some(hold) });
        if first == "replayed" {
            response.metadata_mut().insert("idempotency-replayed", "true".parse().unwrap());
        }
        Ok(response)
    }

    async fn get_hold(&self, _: Request<GetHoldRequest>) -> Result<Response<GetHoldResponse>, Status> {
        Err(Failure::new(ErrorReason::HoldNotFound, "there is no such hold").into())
    }

    async fn delete_hold(
        &self,
        _: Request<DeleteHoldRequest>,
    ) -> Result<Response<DeleteHoldResponse>, Status> {
        Ok(Response::new(DeleteHoldResponse { hold: None }))
    }
}

#[tonic::async_trait]
impl SeatService for Fake {
    async fn get_seat_map(
        &self,
        request: Request<GetSeatMapRequest>,
    ) -> Result<Response<GetSeatMapResponse>, Status> {
        let seat = |number: u32| SeatMapSeat {
            seat_id: format!("A-1-{number}"),
            seat_label: number.to_string(),
            accessible: false,
        };
        let row = SeatMapRow { row_label: "1".into(), seats: (1..=100).map(seat).collect() };
        let section = SeatMapSection {
            section_id: request.into_inner().section_id,
            arrangement: Some(Arrangement::Seated(SeatMapRows { rows: vec![row] })),
            ..Default::default()
        };
        let seat_map = SeatMap { layout_version: "1".into(), sections: vec![section] };
        Ok(Response::new(GetSeatMapResponse { seat_map: Some(seat_map) }))
    }

    async fn get_seats(&self, _: Request<GetSeatsRequest>) -> Result<Response<GetSeatsResponse>, Status> {
        let section = SectionAvailability { seat_states: "A".repeat(10_000), ..Default::default() };
        Ok(Response::new(GetSeatsResponse { sections: vec![section], ..Default::default() }))
    }

    type WatchSeatsStream = Pin<Box<dyn Stream<Item = Result<WatchSeatsResponse, Status>> + Send>>;

    /// The revision that was asked for, then a change, and then what the concert's name says.
    async fn watch_seats(
        &self,
        request: Request<WatchSeatsRequest>,
    ) -> Result<Response<Self::WatchSeatsStream>, Status> {
        let request = request.into_inner();
        let changes = vec![SeatChange { seat_id: "A-1-1".into(), state: SeatState::Sold.into() }];
        let first = WatchSeatsResponse { revision: request.revision, changes: vec![], reset: true };
        let second = WatchSeatsResponse { revision: "e1.8".into(), changes, reset: false };
        let beginning = stream::iter([Ok(first), Ok(second)]);
        match request.concert_id.as_str() {
            "unknown" => Err(Failure::new(ErrorReason::ConcertNotFound, "there is no such concert").into()),
            "failing" => {
                let failure = Failure::new(CommonReason::DatabaseUnavailable, "the database is away");
                Ok(Response::new(beginning.chain(stream::iter([Err(failure.into())])).boxed()))
            }
            "ending" => Ok(Response::new(beginning.boxed())),
            _ => Ok(Response::new(beginning.chain(stream::pending()).boxed())),
        }
    }
}

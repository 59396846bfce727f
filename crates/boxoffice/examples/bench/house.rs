//! The mesh in small, for measuring: the real concert, booking and payment services and the gateway, and in place of the
//! user service one that only publishes the key that the bench signs its fans' tokens with. Passwords would take longer
//! to make than the measurement.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use boxoffice::{
    api::Api,
    demo::{Organizer, Plan},
    embedded::database_url,
};
use boxoffice_proto::{
    booking::v1::{booking_service_client::BookingServiceClient, hold_service_client::HoldServiceClient},
    common::v1::Money,
    payment::v1::{CreateTopUpRequest, PaymentProvider, wallet_service_client::WalletServiceClient},
    user::v1::{
        ListSigningKeysRequest, ListSigningKeysResponse, SigningKey,
        key_service_server::{KeyService, KeyServiceServer},
    },
};
use chrono::TimeDelta;
use futures_util::{StreamExt, TryStreamExt, stream};
use jsonwebtoken::EncodingKey;
use mesh::{
    auth::{Authenticator, Keys, ServiceTokens, User, token},
    clock::Clock,
    config::{Common, Secret},
    id::{OrganizerId, SessionId, UserId},
    money::Currency,
    server,
    shutdown::Shutdown,
};
use tokio::net::TcpListener;
use tonic::{
    Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    service::Routes,
    transport::{Channel, server::TcpIncoming},
};

const KID: &str = "bench";
/// What a fan's wallet holds: enough for every booking that the limit of seats lets a fan make.
const ALLOWANCE: i64 = 10_000_000;
/// Connections of the generator.
const CONNECTIONS: usize = 4;

/// A running mesh.
pub(crate) struct House {
    pub(crate) api: Api,
    channels: Vec<Channel>,
    payment: SocketAddr,
    key: EncodingKey,
    shutdown: Shutdown,
    tasks: Vec<tokio::task::JoinHandle<anyhow::Result<()>>>,
    _directory: tempfile::TempDir,
}

struct PublishedKey(SigningKey);

#[tonic::async_trait]
impl KeyService for PublishedKey {
    async fn list_signing_keys(
        &self,
        _: Request<ListSigningKeysRequest>,
    ) -> Result<Response<ListSigningKeysResponse>, Status> {
        Ok(Response::new(ListSigningKeysResponse {
            keys: vec![self.0.clone()],
            revoked_session_ids: Vec::new(),
        }))
    }
}

impl House {
    pub(crate) async fn open() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let document = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new())?;
        let x = BASE64_URL_SAFE_NO_PAD
            .encode(Ed25519KeyPair::from_pkcs8(document.as_ref())?.public_key().as_ref());
        let key = EncodingKey::from_ed_der(document.as_ref());

        let (clock, shutdown, secret) = (Clock::system(), Shutdown::new(), Secret::random());
        let mut listeners = Vec::new();
        for _ in 0..5 {
            listeners.push(TcpListener::bind("127.0.0.1:0").await?);
        }
        let address = |index: usize| listeners[index].local_addr();
        let [user, concert, booking, payment, http] =
            [address(0)?, address(1)?, address(2)?, address(3)?, address(4)?];
        let url = |address: SocketAddr| -> mesh::client::Address {
            format!("http://{address}").parse().expect("a URL")
        };
        let common = |service: &str| -> anyhow::Result<Common> {
            Ok(Common {
                database_url: database_url(directory.path(), service)?,
                database_connections: 4,
                service_token_key: secret.clone(),
                service_token_key_previous: None,
                user_url: url(user),
                reflection: false,
                drain_wait: Duration::ZERO,
                max_connection_age: Duration::from_secs(300),
            })
        };
        let mut listeners = listeners.into_iter();
        let mut listener = || listeners.next().expect("five were bound");

        let tokens = ServiceTokens::new("user", &secret, None);
        let authenticator = Authenticator::new(Keys::new(), tokens, clock.clone());
        let routes = Routes::new(KeyServiceServer::new(PublishedKey(SigningKey { kid: KID.into(), x })));
        let incoming = TcpIncoming::from(listener()).with_nodelay(Some(true));
        let keys = {
            let shutdown = shutdown.clone();
            async move {
                let options = server::Options::new("user");
                server::serve(options, routes, authenticator, incoming, shutdown).await.map_err(Into::into)
            }
        };
        let concert_config = svc_concert::Config { common: common("concert")?, currency: Currency::KRW };
        let booking_config = svc_booking::Config {
            common: common("booking")?,
            currency: Currency::KRW,
            concert_url: url(concert),
            payment_url: url(payment),
            redis_url: None,
            hold_ttl: Duration::from_secs(600),
        };
        let payment_config = svc_payment::Config {
            common: common("payment")?,
            currency: Currency::KRW,
            psp: Some(svc_payment::Psp::Sandbox),
        };
        let gateway_config = gateway_rest::Config {
            user_url: url(user),
            concert_url: url(concert),
            booking_url: url(booking),
            payment_url: url(payment),
            service_token_key: secret.clone(),
            cors_allowed_origins: "http://localhost:*".parse().map_err(anyhow::Error::msg)?,
            rate_limit_per_user: 1_000_000,
            rate_limit_per_address: 1_000_000,
            redis_url: None,
            docs: false,
            drain_wait: Duration::ZERO,
        };
        let stop = || shutdown.clone();
        let tasks = vec![
            tokio::spawn(keys),
            tokio::spawn(svc_concert::serve(concert_config, listener(), clock.clone(), stop())),
            tokio::spawn(svc_booking::serve(booking_config, listener(), clock.clone(), stop())),
            tokio::spawn(svc_payment::serve(payment_config, listener(), clock.clone(), stop())),
            tokio::spawn(gateway_rest::serve(gateway_config, listener(), clock.clone(), stop())),
        ];
        let api = Api::new(format!("http://{http}"))?;
        boxoffice::demo::wait_until_ready(&api).await?;
        let channels = channels(booking);
        Ok(Self { api, channels, payment, key, shutdown, tasks, _directory: directory })
    }

    pub(crate) async fn close(self) -> anyhow::Result<()> {
        self.shutdown.begin();
        for task in self.tasks {
            task.await??;
        }
        Ok(())
    }

    /// A concert of so many rows of 1,000 seats, on sale. Ten seats a fan.
    pub(crate) async fn concert(&self, rows: u32) -> anyhow::Result<String> {
        let organizer_id = OrganizerId::new();
        let access_token = self.token(vec![organizer_id])?;
        let organizer = Organizer { organizer_id: organizer_id.to_string(), access_token };
        let section = serde_json::json!({"sectionId": "A", "seated": {"rows": rows, "seatsPerRow": 1000}});
        let plan = Plan { title: "Bench", genre: "", sections: vec![(section, 100)], max_seats_per_fan: 10 };
        organizer.publish(&self.api, plan, Clock::system().now()).await
    }

    /// Tokens of so many fans who have money.
    pub(crate) async fn fans(&self, count: usize) -> anyhow::Result<Vec<Arc<str>>> {
        let client = WalletServiceClient::new(channels(self.payment).remove(0));
        stream::iter(0..count)
            .map(|number| {
                let (mut client, token) = (client.clone(), self.token(Vec::new()));
                async move {
                    let token = token?;
                    let request = CreateTopUpRequest {
                        provider: PaymentProvider::Sandbox.into(),
                        amount: Some(Money { currency_code: "KRW".into(), minor_units: ALLOWANCE }),
                        return_url: String::new(),
                        request_id: format!("top-up-{number}"),
                    };
                    client.create_top_up(authorized(request, &token)?).await?;
                    anyhow::Ok(Arc::from(token))
                }
            })
            .buffer_unordered(64)
            .try_collect()
            .await
    }

    fn token(&self, organizers: Vec<OrganizerId>) -> anyhow::Result<String> {
        let user = User { id: UserId::new(), session: SessionId::new(), organizers, is_admin: false };
        let now = Clock::system().now();
        Ok(token::sign(&user, KID, &self.key, now, now + TimeDelta::hours(1))?)
    }

    /// A connection to booking for this fan.
    pub(crate) fn hold_client(&self, fan: usize) -> HoldServiceClient<Channel> {
        HoldServiceClient::new(self.channels[fan % CONNECTIONS].clone())
    }

    /// A connection to booking for this fan.
    pub(crate) fn booking_client(&self, fan: usize) -> BookingServiceClient<Channel> {
        BookingServiceClient::new(self.channels[fan % CONNECTIONS].clone())
    }
}

/// Plain connections, without the client stack: the generator is not what is measured.
pub(crate) fn channels(address: SocketAddr) -> Vec<Channel> {
    let endpoint = || Channel::from_shared(format!("http://{address}")).expect("a URL").tcp_nodelay(true);
    (0..CONNECTIONS).map(|_| endpoint().connect_lazy()).collect()
}

pub(crate) fn authorized<T>(message: T, token: &str) -> anyhow::Result<Request<T>> {
    let mut request = Request::new(message);
    let value: MetadataValue<Ascii> = format!("Bearer {token}").parse().context("a token is ASCII")?;
    request.metadata_mut().insert("authorization", value);
    Ok(request)
}

/// The CPU time of this process so far, user and system.
pub(crate) fn cpu_time() -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("no name in stat")?.1.split_whitespace().collect();
    // Fields 14 and 15 of proc(5), in ticks of 10 ms.
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Duration::from_millis(ticks * 10))
}

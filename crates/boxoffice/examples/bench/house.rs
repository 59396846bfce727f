//! The mesh in small, for measuring: the real concert, booking and payment services and the gateway, and in place of the
//! user service one that only publishes the key that the bench signs its fans' tokens with. Passwords would take longer
//! to make than the measurement.
//!
//! It is either embedded, all in this process on SQLite, or deployed, a process each on Postgres and Redis.

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

use crate::{
    deployment::{Deployment, Usage, new_database},
    rest::Rest,
};

const KID: &str = "bench";
/// What a fan's wallet holds: enough for every booking that the limit of seats lets a fan make.
const ALLOWANCE: i64 = 10_000_000;
/// Connections of the generator.
pub(crate) const CONNECTIONS: usize = 4;
/// Calls a second that the gateway lets anyone make: more than they do.
const RATE_LIMIT: u32 = 1_000_000;

/// A running mesh.
pub(crate) struct House {
    pub(crate) api: Api,
    /// The same, for calls that are measured.
    pub(crate) rest: Rest,
    /// Its processes; none if it is embedded.
    pub(crate) deployment: Option<Deployment>,
    channels: Vec<Channel>,
    booking: SocketAddr,
    payment: SocketAddr,
    key: EncodingKey,
    shutdown: Shutdown,
    tasks: Vec<Task>,
    /// Of the databases, if it is embedded.
    _directory: Option<tempfile::TempDir>,
}

type Task = tokio::task::JoinHandle<anyhow::Result<()>>;

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
    /// All services in this process.
    pub(crate) async fn embedded() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let (clock, shutdown, secret) = (Clock::system(), Shutdown::new(), Secret::random());
        let (key, user, keys) = publish_key(&secret, &shutdown).await?;
        let mut listeners = Vec::new();
        for _ in 0..4 {
            listeners.push(TcpListener::bind("127.0.0.1:0").await?);
        }
        let address = |index: usize| listeners[index].local_addr();
        let [concert, booking, payment, http] = [address(0)?, address(1)?, address(2)?, address(3)?];
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
        let mut listener = || listeners.next().expect("four were bound");

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
            rate_limit_per_user: RATE_LIMIT,
            rate_limit_per_address: RATE_LIMIT,
            redis_url: None,
            docs: false,
            drain_wait: Duration::ZERO,
        };
        let stop = || shutdown.clone();
        let tasks = vec![
            keys,
            tokio::spawn(svc_concert::serve(concert_config, listener().into(), clock.clone(), stop())),
            tokio::spawn(svc_booking::serve(booking_config, listener().into(), clock.clone(), stop())),
            tokio::spawn(svc_payment::serve(payment_config, listener().into(), clock.clone(), stop())),
            tokio::spawn(gateway_rest::serve(gateway_config, listener(), clock.clone(), stop())),
        ];
        let api = Api::new(format!("http://{http}"))?;
        boxoffice::demo::wait_until_ready(&api).await?;
        let channels = channels(booking, CONNECTIONS);
        let (deployment, _directory) = (None, Some(directory));
        Ok(Self {
            api,
            rest: Rest::new(http),
            deployment,
            channels,
            booking,
            payment,
            key,
            shutdown,
            tasks,
            _directory,
        })
    }

    /// A process of each service and of the gateway, whose telemetry is sent to a collector.
    pub(crate) async fn deployed(collector: &str) -> anyhow::Result<Self> {
        let (shutdown, secret) = (Shutdown::new(), Secret::random());
        let (key, user, keys) = publish_key(&secret, &shutdown).await?;
        let url = |address: SocketAddr| format!("http://{address}");
        let mut deployment = Deployment::prepare(vec![
            ("SERVICE_TOKEN_KEY", String::from_utf8(secret.expose().to_vec())?),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.to_owned()),
            ("PSP", "sandbox".to_owned()),
            ("RATE_LIMIT_PER_USER", RATE_LIMIT.to_string()),
            ("RATE_LIMIT_PER_ADDRESS", RATE_LIMIT.to_string()),
            ("USER_URL", url(user)),
        ])
        .await?;
        let concert = deployment.start_service("svc-concert", &new_database().await).await?;
        deployment.tell("CONCERT_URL", url(concert));
        let payment = deployment.start_service("svc-payment", &new_database().await).await?;
        deployment.tell("PAYMENT_URL", url(payment));
        let booking = deployment.start_service("svc-booking", &new_database().await).await?;
        deployment.tell("BOOKING_URL", url(booking));
        let http = deployment.start_gateway().await?;
        let api = Api::new(url(http))?;
        boxoffice::demo::wait_until_ready(&api).await?;
        let channels = channels(booking, CONNECTIONS);
        let (deployment, tasks, _directory) = (Some(deployment), vec![keys], None);
        Ok(Self {
            api,
            rest: Rest::new(http),
            deployment,
            channels,
            booking,
            payment,
            key,
            shutdown,
            tasks,
            _directory,
        })
    }

    /// The same with so many connections of the generator. One carries 200 calls at once.
    #[must_use]
    pub(crate) fn with_connections(self, count: usize) -> Self {
        Self { channels: channels(self.booking, count), ..self }
    }

    /// What its processes used up so far; none if it is embedded.
    pub(crate) async fn usage(&self) -> anyhow::Result<Option<Usage>> {
        match &self.deployment {
            Some(deployment) => Ok(Some(deployment.usage().await?)),
            None => Ok(None),
        }
    }

    pub(crate) async fn close(self) -> anyhow::Result<()> {
        drop(self.deployment);
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
        let client = WalletServiceClient::new(channels(self.payment, 1).remove(0));
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

    /// Tokens of so many fans who have no money.
    pub(crate) fn tokens(&self, count: usize) -> anyhow::Result<Vec<Arc<str>>> {
        (0..count).map(|_| Ok(Arc::from(self.token(Vec::new())?))).collect()
    }

    fn token(&self, organizers: Vec<OrganizerId>) -> anyhow::Result<String> {
        let user = User { id: UserId::new(), session: SessionId::new(), organizers, is_admin: false };
        let now = Clock::system().now();
        Ok(token::sign(&user, KID, &self.key, now, now + TimeDelta::hours(1))?)
    }

    /// A connection to booking for this fan.
    pub(crate) fn hold_client(&self, fan: usize) -> HoldServiceClient<Channel> {
        HoldServiceClient::new(self.channels[fan % self.channels.len()].clone())
    }

    /// A connection to booking for this fan.
    pub(crate) fn booking_client(&self, fan: usize) -> BookingServiceClient<Channel> {
        BookingServiceClient::new(self.channels[fan % self.channels.len()].clone())
    }
}

/// Publishes a new key to sign tokens with, in place of the user service: the key, where that is, and what serves it.
async fn publish_key(
    secret: &Secret,
    shutdown: &Shutdown,
) -> anyhow::Result<(EncodingKey, SocketAddr, Task)> {
    let document = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new())?;
    let x =
        BASE64_URL_SAFE_NO_PAD.encode(Ed25519KeyPair::from_pkcs8(document.as_ref())?.public_key().as_ref());
    let key = EncodingKey::from_ed_der(document.as_ref());

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let tokens = ServiceTokens::new("user", secret, None);
    let authenticator = Authenticator::new(Keys::new(), tokens, Clock::system());
    let routes = Routes::new(KeyServiceServer::new(PublishedKey(SigningKey { kid: KID.into(), x })));
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let shutdown = shutdown.clone();
    let serving = async move {
        let options = server::Options::new("user");
        server::serve(options, routes, authenticator, incoming, shutdown).await.map_err(Into::into)
    };
    Ok((key, address, tokio::spawn(serving)))
}

/// Plain connections, without the client stack: the generator is not what is measured.
pub(crate) fn channels(address: SocketAddr, count: usize) -> Vec<Channel> {
    let endpoint = || Channel::from_shared(format!("http://{address}")).expect("a URL").tcp_nodelay(true);
    (0..count).map(|_| endpoint().connect_lazy()).collect()
}

pub(crate) fn authorized<T>(message: T, token: &str) -> anyhow::Result<Request<T>> {
    let mut request = Request::new(message);
    let value: MetadataValue<Ascii> = format!("Bearer {token}").parse().context("a token is ASCII")?;
    request.metadata_mut().insert("authorization", value);
    Ok(request)
}

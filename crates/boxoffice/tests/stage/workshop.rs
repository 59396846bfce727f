//! A mesh put together by hand, for what `Embedded` keeps to itself: the clock, the keys, and the line between booking and
//! payment.

use std::{net::SocketAddr, time::Duration};

use aws_lc_rs::{
    hmac,
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use boxoffice::{
    api::{Api, Login},
    demo::{self, Organizer},
    embedded::database_url,
};
use boxoffice_proto::user::v1::{
    ListSigningKeysRequest, ListSigningKeysResponse, SigningKey,
    key_service_server::{KeyService, KeyServiceServer},
};
use chrono::TimeDelta;
use mesh::{
    clock::Clock,
    config::{Common, Secret},
    id::{OrganizerId, SessionId, UserId},
    money::Currency,
    shutdown::Shutdown,
};
use mesh_test::FaultProxy;
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use super::{PATIENCE, Promoter, client};

/// A mesh put together by hand. Where nobody signs up, whoever the signer vouches for is a user.
pub(crate) struct Workshop {
    pub(crate) api: Api,
    pub(crate) url: String,
    pub(crate) http: reqwest::Client,
    pub(crate) clock: Clock,
    pub(crate) signer: Signer,
    pub(crate) service_token_key: Secret,
    pub(crate) booking: SocketAddr,
    pub(crate) payment: SocketAddr,
    /// What booking's calls to payment pass.
    pub(crate) payment_line: FaultProxy,
    _directory: TempDir,
}

/// Who stands for svc-user.
enum Users {
    /// It does itself.
    Real,
    /// Something that only publishes the signer's key.
    Pretended,
}

impl Workshop {
    /// A mesh whose tokens the test signs. Nobody has to sign up.
    pub(crate) async fn with_own_keys() -> Self {
        Self::start(Users::Pretended, Clock::system()).await
    }

    /// A mesh whose clock the test sets.
    pub(crate) async fn with_clock(clock: Clock) -> Self {
        Self::start(Users::Real, clock).await
    }

    async fn start(users: Users, clock: Clock) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (signer, service_token_key) = (Signer::new("own"), Secret::random());
        let [at_user, at_concert, at_booking, at_payment, at_http] = [(); 5].map(|()| bind());
        let [user, concert, booking, payment, http] =
            [&at_user, &at_concert, &at_booking, &at_payment, &at_http]
                .map(|listener| listener.local_addr().unwrap());
        let payment_line = FaultProxy::start(payment).await;
        let uri = |address: SocketAddr| format!("http://{address}").parse::<mesh::client::Address>().unwrap();
        let common = |name: &str| Common {
            database_url: database_url(directory.path(), name).unwrap(),
            database_connections: 4,
            service_token_key: service_token_key.clone(),
            service_token_key_previous: None,
            user_url: uri(user),
            reflection: true,
            drain_wait: Duration::ZERO,
            max_connection_age: Duration::from_secs(300),
        };
        match users {
            Users::Real => {
                let config = svc_user::Config {
                    common: common("user"),
                    key_encryption_key: Secret::random(),
                    key_rotation_period: Duration::from_secs(30 * 24 * 3600),
                    password_queue_limit: 64,
                };
                tokio::spawn(svc_user::serve(config, at_user.into(), clock.clone(), Shutdown::new()));
            }
            Users::Pretended => {
                let keys = KeyServiceServer::new(PublishedKey { kid: signer.kid, x: signer.x() });
                let incoming = TcpListenerStream::new(at_user);
                tokio::spawn(Server::builder().add_service(keys).serve_with_incoming(incoming));
            }
        }
        let config = svc_concert::Config { common: common("concert"), currency: Currency::KRW };
        tokio::spawn(svc_concert::serve(config, at_concert.into(), clock.clone(), Shutdown::new()));
        let psp = Some(svc_payment::Psp::Sandbox);
        let config = svc_payment::Config { common: common("payment"), currency: Currency::KRW, psp };
        tokio::spawn(svc_payment::serve(config, at_payment.into(), clock.clone(), Shutdown::new()));
        let config = svc_booking::Config {
            common: common("booking"),
            currency: Currency::KRW,
            concert_url: uri(concert),
            payment_url: uri(payment_line.address()),
            redis_url: None,
            hold_ttl: Duration::from_secs(600),
        };
        tokio::spawn(svc_booking::serve(config, at_booking.into(), clock.clone(), Shutdown::new()));
        let config = gateway_rest::Config {
            user_url: uri(user),
            concert_url: uri(concert),
            booking_url: uri(booking),
            payment_url: uri(payment),
            service_token_key: service_token_key.clone(),
            cors_allowed_origins: Default::default(),
            rate_limit_per_user: 1_000_000,
            rate_limit_per_address: 1_000_000,
            redis_url: None,
            docs: false,
            drain_wait: Duration::ZERO,
        };
        tokio::spawn(gateway_rest::serve(config, at_http, clock.clone(), Shutdown::new()));

        let url = format!("http://{http}");
        let api = Api::new(&url).unwrap();
        demo::wait_until_ready(&api).await.unwrap();
        Self {
            api,
            url,
            http: client(),
            clock,
            signer,
            service_token_key,
            booking,
            payment,
            payment_line,
            _directory: directory,
        }
    }

    /// A call made by hand.
    pub(crate) fn call(&self, method: &str, path: &str) -> RequestBuilder {
        self.http.request(method.parse().unwrap(), format!("{}{path}", self.url))
    }

    /// A new user with so much money.
    pub(crate) async fn fan(&self, won: i64) -> Login {
        let access_token = self.signer.token(&self.claims(&[]));
        if won > 0 {
            self.api.top_up(&access_token, won).await.unwrap();
        }
        Login { access_token, refresh_token: String::new() }
    }

    /// Somebody who may publish concerts, with a venue.
    pub(crate) async fn promoter(&self) -> Promoter {
        let organizer = OrganizerId::new();
        let access_token = self.signer.token(&self.claims(&[organizer]));
        Promoter::new(&self.api, Organizer { organizer_id: organizer.to_string(), access_token }).await
    }

    /// What stands in a good token of a new user.
    pub(crate) fn claims(&self, organizers: &[OrganizerId]) -> Value {
        let now = self.clock.now();
        let mut claims = json!({
            "iss": "boxoffice", "aud": "boxoffice-api", "sub": UserId::new().to_string(),
            "sid": SessionId::new().to_string(), "iat": now.timestamp(), "nbf": now.timestamp(),
            "exp": (now + TimeDelta::minutes(15)).timestamp(),
        });
        if !organizers.is_empty() {
            claims["org"] = organizers.iter().map(ToString::to_string).collect();
        }
        claims
    }
}

fn bind() -> TcpListener {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    TcpListener::from_std(listener).unwrap()
}

/// Signs tokens.
pub(crate) struct Signer {
    pub(crate) kid: &'static str,
    pair: Ed25519KeyPair,
}

impl Signer {
    pub(crate) fn new(kid: &'static str) -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self { kid, pair: Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap() }
    }

    /// The public key, as it is published.
    pub(crate) fn x(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.public_key())
    }

    pub(crate) fn public_key(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// A token that is good if its claims are.
    pub(crate) fn token(&self, claims: &Value) -> String {
        self.token_with(&json!({"alg": "EdDSA", "typ": "JWT", "kid": self.kid}), claims)
    }

    /// The same with another header.
    pub(crate) fn token_with(&self, header: &Value, claims: &Value) -> String {
        jwt(header, claims, |text| self.pair.sign(text).as_ref().to_vec())
    }
}

/// A JWT with whatever in it.
pub(crate) fn jwt(header: &Value, claims: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let encode = |part: &Value| BASE64_URL_SAFE_NO_PAD.encode(part.to_string());
    let signed = format!("{}.{}", encode(header), encode(claims));
    let signature = BASE64_URL_SAFE_NO_PAD.encode(sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}

/// Signs as HS256 does.
pub(crate) fn sign_hs256(key: &[u8]) -> impl Fn(&[u8]) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    move |text| hmac::sign(&key, text).as_ref().to_vec()
}

struct PublishedKey {
    kid: &'static str,
    x: String,
}

#[tonic::async_trait]
impl KeyService for PublishedKey {
    async fn list_signing_keys(
        &self,
        _: Request<ListSigningKeysRequest>,
    ) -> Result<Response<ListSigningKeysResponse>, Status> {
        let keys = vec![SigningKey { kid: self.kid.into(), x: self.x.clone() }];
        Ok(Response::new(ListSigningKeysResponse { keys, revoked_session_ids: Vec::new() }))
    }
}

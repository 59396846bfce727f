//! A small mesh: services on ports of their own, ways to call them, and tokens.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use boxoffice_proto::policy;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use jsonwebtoken::EncodingKey;
use mesh::{
    auth::{Authenticator, Keys, ServiceTokens, User, keys::PublicKey, token},
    client::Channel,
    clock::Clock,
    config::Secret,
    id::{OrganizerId, SessionId, UserId},
    server::{self, Options},
    shutdown::Shutdown,
};
use mesh_test::wait_until;
use prost::Message;
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
};
use tonic::{
    Request, Status, Streaming,
    body::Body,
    transport::{Endpoint, Server, server::TcpIncoming},
};
use tonic_types::pb;

use crate::service::Fake;

/// How long to wait for what should happen at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

const TOKEN_LIFETIME: Duration = Duration::from_secs(900);

/// What the services of a mesh share: the secret they know each other by, and the key that access tokens are signed
/// with.
pub(crate) struct Mesh {
    secret: Secret,
    signing_key: EncodingKey,
    keys: Keys,
}

impl Mesh {
    pub(crate) fn new() -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
        let x = BASE64_URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
        let keys = Keys::new();
        keys.replace(vec![PublicKey { kid: "k1".into(), x }], [].into());
        Self { secret: Secret::random(), signing_key: EncodingKey::from_ed_der(document.as_ref()), keys }
    }

    pub(crate) fn service_tokens(&self, name: &'static str) -> ServiceTokens {
        ServiceTokens::new(name, &self.secret, None)
    }

    pub(crate) fn authenticator(&self, name: &'static str) -> Authenticator {
        Authenticator::new(self.keys.clone(), self.service_tokens(name), Clock::system())
    }

    /// A way to the service `name`, as another service of the mesh has it.
    pub(crate) fn channel(&self, name: &'static str, address: SocketAddr) -> Channel {
        self.balanced(name, [address])
    }

    /// A way to the service `name`, which has several endpoints.
    pub(crate) fn balanced(
        &self,
        name: &'static str,
        addresses: impl IntoIterator<Item = SocketAddr>,
    ) -> Channel {
        let uris: Vec<String> = addresses.into_iter().map(|address| format!("http://{address}")).collect();
        let tokens = self.service_tokens("gateway");
        Channel::new(name, uris.join(",").parse().unwrap(), Some(tokens), Clock::system())
    }

    /// Serves the service `name` on a free port.
    pub(crate) async fn serve(&self, name: &'static str, fake: &Fake) -> Service {
        self.serve_on(TcpListener::bind("127.0.0.1:0").await.unwrap(), Options::new(name), fake)
    }

    pub(crate) fn serve_on(&self, listener: TcpListener, options: Options, fake: &Fake) -> Service {
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true)).inspect(move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let shutdown = Shutdown::new();
        let authenticator = self.authenticator(options.name);
        let task =
            tokio::spawn(server::serve(options, fake.routes(), authenticator, incoming, shutdown.clone()));
        Service { address, shutdown, task, connections }
    }

    /// An access token of this user.
    pub(crate) fn token(&self, user: &User) -> String {
        self.token_of(user, Clock::system().now())
    }

    /// An access token of this user that was one until an hour ago.
    pub(crate) fn expired_token(&self, user: &User) -> String {
        self.token_of(user, Clock::system().now() - 5 * TOKEN_LIFETIME)
    }

    fn token_of(&self, user: &User, sign_time: DateTime<Utc>) -> String {
        token::sign(user, "k1", &self.signing_key, sign_time, sign_time + TOKEN_LIFETIME).unwrap()
    }

    /// A fan's request.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        with_token(&self.token(&fan()), message)
    }
}

/// A service that is being served.
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    pub(crate) shutdown: Shutdown,
    pub(crate) task: JoinHandle<Result<(), tonic::transport::Error>>,
    connections: Arc<AtomicUsize>,
}

impl Service {
    /// How many connections were made to it so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// A port that nobody else gets while this lives. It refuses connections unless it is listened on.
pub(crate) struct Port(TcpSocket);

impl Port {
    pub(crate) fn reserve() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseport(true).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self(socket)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    pub(crate) fn listen(&self) -> TcpListener {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseport(true).unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(self.address()).unwrap();
        socket.listen(1024).unwrap()
    }
}

/// Serves answers that a test makes up, with none of our policies.
pub(crate) async fn serve_answers(
    answer: impl Fn(http::Request<Body>) -> http::Response<Body> + Clone + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = tower::service_fn(move |request| std::future::ready(Ok::<_, Infallible>(answer(request))));
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::spawn(Server::builder().serve_with_incoming(service, incoming));
    address
}

/// A neighbour that resets every connection once it was made and written to: the call may have been sent.
pub(crate) struct Resetting {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Resetting {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                connection.read_u8().await.unwrap();
                connection.set_zero_linger().unwrap();
            }
        });
        Self { address, connections }
    }

    /// How many connections were made to it so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// A user without any rights.
pub(crate) fn fan() -> User {
    User { id: UserId::new(), session: SessionId::new(), organizers: Vec::new(), is_admin: false }
}

/// A member of an organiser.
pub(crate) fn organizer() -> User {
    User { organizers: vec![OrganizerId::new()], ..fan() }
}

/// An administrator.
pub(crate) fn administrator() -> User {
    User { is_admin: true, ..fan() }
}

pub(crate) fn with_token<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

/// A connection as a stranger has it: gRPC and none of our policies.
pub(crate) async fn connect(address: SocketAddr) -> tonic::transport::Channel {
    Endpoint::try_from(format!("http://{address}")).unwrap().connect().await.unwrap()
}

/// Posts a body to a path, over HTTP/2 and no more, and reads the status that it is answered with.
pub(crate) async fn post(
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Status {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut connection, driver) = handshake.await.unwrap();
    tokio::spawn(driver);
    let mut request = http::Request::post(format!("http://{address}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(body.into())).unwrap();
    let response = connection.send_request(request).await.unwrap();
    assert_eq!(response.status(), http::StatusCode::OK, "a gRPC status comes with HTTP 200");
    if let Some(status) = Status::from_header_map(response.headers()) {
        return status;
    }
    let trailers = response.into_body().collect().await.unwrap().trailers().cloned();
    trailers.as_ref().and_then(Status::from_header_map).expect("an answer has a status")
}

/// A message as gRPC frames it: uncompressed, its length, its bytes.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap();
    [&[0][..], &length.to_be_bytes(), message].concat()
}

/// Waits until so many calls have reached a handler.
pub(crate) async fn wait_for_calls(fake: &Fake, expected: usize) {
    wait_until("calls to arrive", PATIENCE, async || match fake.calls() {
        calls if calls == expected => Ok(()),
        calls => Err(format!("{calls} calls, not {expected}")),
    })
    .await;
}

/// How a stream ends.
pub(crate) async fn read_to_end<T>(mut stream: Streaming<T>) -> Result<(), Status> {
    while stream.message().await?.is_some() {}
    Ok(())
}

/// The reason of a status, which must be exactly one, and of the contracts, which must have given it the status's code.
#[track_caller]
pub(crate) fn reason(status: &Status) -> &'static str {
    let infos = error_infos(status);
    let [info] = infos.as_slice() else { panic!("{} reasons: {status:?}", infos.len()) };
    let known = policy::reason(&info.domain, &info.reason).unwrap_or_else(|| panic!("not ours: {info:?}"));
    assert_eq!(status.code() as i32, known.code, "{status:?}");
    known.reason
}

/// What a status says in metadata of its reason.
pub(crate) fn metadata(status: &Status, key: &str) -> Option<String> {
    error_infos(status).first()?.metadata.get(key).cloned()
}

/// When a status says that trying again may help.
pub(crate) fn retry_after(status: &Status) -> Option<Duration> {
    let info: pb::RetryInfo = details(status, "google.rpc.RetryInfo").pop()?;
    info.retry_delay?.try_into().ok()
}

fn error_infos(status: &Status) -> Vec<pb::ErrorInfo> {
    details(status, "google.rpc.ErrorInfo")
}

/// The details of one kind that a status carries.
pub(crate) fn details<T: Message + Default>(status: &Status, name: &str) -> Vec<T> {
    let details = pb::Status::decode(status.details()).expect("details are a google.rpc.Status").details;
    let wanted = details.iter().filter(|detail| detail.type_url == format!("type.googleapis.com/{name}"));
    wanted.map(|detail| T::decode(detail.value.as_slice()).unwrap()).collect()
}

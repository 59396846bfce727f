//! A call in: trace → room → deadline → who calls → handler, and an answer that always has a reason. Every service is
//! served by [`serve`], so that none can forget any of it.

mod dependencies;
mod port;
mod prompt;
mod stream;

use std::{
    convert::Infallible,
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use boxoffice_proto::{
    DESCRIPTORS,
    common::v1::ErrorReason,
    policy::{self, METHODS, Method},
};
use futures_util::{FutureExt, Stream, StreamExt};
use http::{Request, Response};
use opentelemetry::KeyValue;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
    time::Instant,
};
use tonic::{
    Code, Status,
    body::Body,
    service::Routes,
    transport::server::{Connected, Server},
};
use tonic_health::pb::health_server;
use tonic_reflection::pb::v1::server_reflection_server;
use tower::{Layer, Service, ServiceExt};
use tracing::Instrument;

pub use self::dependencies::Dependency;
pub use self::port::Port;
pub use self::prompt::Prompt;
use self::stream::EndingBody;
use crate::{
    auth::Authenticator,
    calls::{Calls, Ends, Side},
    context::Context,
    deadline,
    failure::Failure,
    gathered::Gathered,
    metrics,
    room::Room,
    shutdown::{DRAIN_LIMIT, Shutdown},
    telemetry::Trace,
};

/// The default of [`Options::max_in_flight`].
pub const MAX_IN_FLIGHT: usize = 1024;
/// When to ask again.
const COME_BACK: Duration = Duration::from_secs(1);
/// Streams open at once; more are refused.
const MAX_STREAMS: usize = 10_000;
const KEEPALIVE_PERIOD: Duration = Duration::from_secs(30);
/// A client that resets streams faster than they are dropped is attacking (CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 50;
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// The only inquiry that is no stream.
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";

static ENDS: Ends = Ends {
    label: "code",
    names: &metrics::CODES,
    faults: &["UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"],
};

/// How a service is served.
#[derive(Debug, Clone)]
pub struct Options {
    /// The service's name, such as `booking`.
    pub name: &'static str,
    /// Calls worked on at once; more are refused with `OVERLOADED`.
    pub max_in_flight: usize,
    /// Whether testers may ask what there is (gRPC reflection).
    pub has_reflection: bool,
    /// How long to go on accepting after health says NOT_SERVING, so that balancers notice.
    pub drain_wait: Duration,
    /// How long a connection lives before its client is asked, gently, for a new one: so that calls spread over servers
    /// that were added since. None: for ever.
    pub max_connection_age: Option<Duration>,
    /// What calls need and may be away for a while.
    pub dependencies: Vec<Dependency>,
}

impl Options {
    /// The defaults for a service.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            max_in_flight: MAX_IN_FLIGHT,
            has_reflection: true,
            drain_wait: Duration::ZERO,
            max_connection_age: None,
            dependencies: Vec::new(),
        }
    }
}

/// Serves until shutdown, then drains: health says NOT_SERVING, nothing new is accepted, streams end, calls in flight
/// finish; after [`DRAIN_LIMIT`] the rest is dropped.
///
/// # Errors
/// If the listener breaks.
pub async fn serve<Incoming, Io, IoError>(
    options: Options,
    routes: Routes,
    authenticator: Authenticator,
    incoming: Incoming,
    shutdown: Shutdown,
) -> Result<(), tonic::transport::Error>
where
    Incoming: Stream<Item = Result<Io, IoError>> + Send,
    Io: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    IoError: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let mut routes = routes.add_service(health_service);
    if options.has_reflection {
        routes = add_reflection(routes, options.name);
    }

    let reports = options.dependencies.iter().cloned();
    let reports = futures_util::future::join_all(
        reports.map(|dependency| dependency.report(options.name, Some(health.clone()))),
    );
    // An empty list would be done at once.
    let reports = async {
        reports.await;
        std::future::pending::<Infallible>().await
    };

    let stop_accepting = Shutdown::new();
    let drain = {
        let (shutdown, stop_accepting, wait) = (shutdown.clone(), stop_accepting.clone(), options.drain_wait);
        async move {
            shutdown.begun().await;
            health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
            tokio::time::sleep(wait).await;
            stop_accepting.begin();
            tokio::time::sleep(DRAIN_LIMIT).await;
        }
    };
    let room = Arc::new(Room::new(options.max_in_flight));
    watch_calls_in_flight(options.name, &room);
    let policies = Policies(Arc::new(Shared {
        name: options.name,
        calls: calls_by_method(options.name),
        room,
        stream_room: Arc::new(Semaphore::new(MAX_STREAMS)),
        authenticator,
        shutdown: stop_accepting.clone(),
    }));
    let mut server = Server::builder();
    if let Some(age) = options.max_connection_age {
        server = server.max_connection_age(age);
    }
    let stop = stop_accepting.clone();
    let incoming =
        incoming.map(move |accepted| accepted.map(|stream| Gathered::new(Prompt::new(stream, &stop))));
    let serving = server
        .http2_keepalive_interval(Some(KEEPALIVE_PERIOD))
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .layer(policies)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop_accepting.begun_owned());
    tokio::select! {
        outcome = serving => outcome,
        never = reports => match never {},
        () = drain => {
            tracing::warn!(service = options.name, "calls were dropped that did not finish in time");
            Ok(())
        }
    }
}

/// The calls of each method, in the order of the table of methods; last, those of methods that it doesn't have.
fn calls_by_method(service: &'static str) -> Box<[Calls]> {
    let methods = METHODS.iter().map(|method| method.path).chain(["unknown"]);
    let calls = methods.map(|method| {
        let metric = ("rpc.server.duration", "Calls that a service answered; of a stream, until it began");
        Calls::new(service, Side::Server, metric, &[("method", method)], &ENDS)
    });
    calls.collect()
}

fn watch_calls_in_flight(service: &'static str, room: &Arc<Room>) {
    let (labels, room) = ([KeyValue::new("service", service)], Arc::downgrade(room));
    metrics::meter()
        .u64_observable_gauge("rpc.server.in_flight.calls")
        .with_description("Calls that a service is working on")
        .with_callback(move |observer| {
            if let Some(room) = room.upgrade() {
                observer.observe(room.taken() as u64, &labels);
            }
        })
        .build();
}

/// Reflection lists what the service `name` has, and knows every message.
fn add_reflection(routes: Routes, name: &str) -> Routes {
    let package = format!("boxoffice.{name}.");
    let mut listed: Vec<&str> = METHODS.iter().filter_map(|method| method.path.split('/').nth(1)).collect();
    listed.retain(|service| service.starts_with(&package));
    listed.dedup();
    listed.extend([health_server::SERVICE_NAME, server_reflection_server::SERVICE_NAME]);
    let builder = || {
        let builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // Without these, grpcurl can't show the details of an error.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET);
        listed.iter().fold(builder, |builder, service| builder.with_service_name(*service))
    };
    let valid = "our own descriptors are valid";
    routes
        .add_service(builder().build_v1().expect(valid))
        .add_service(builder().build_v1alpha().expect(valid))
}

/// Puts the policies before a server's routes.
#[derive(Clone)]
struct Policies(Arc<Shared>);

struct Shared {
    name: &'static str,
    calls: Box<[Calls]>,
    room: Arc<Room>,
    stream_room: Arc<Semaphore>,
    authenticator: Authenticator,
    shutdown: Shutdown,
}

impl<S> Layer<S> for Policies {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { shared: Arc::clone(&self.0), inner }
    }
}

/// A server's routes behind the policies.
#[derive(Clone)]
struct Guarded<S> {
    shared: Arc<Shared>,
    inner: S,
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        // Whether there is room is decided in `call`: an error from here would end the connection.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // Here and not in the future below: tonic's own timer for `grpc-timeout` starts when this returns, and would
        // answer without a reason if it ended first.
        let arrival = Instant::now();
        let inner = self.inner.clone();
        let shared = Arc::clone(&self.shared);
        let context = Context { deadline: None, trace: Trace::read(request.headers()).child() };
        let path = request.uri().path();
        let span = tracing::debug_span!("call", service = shared.name, rpc.method = path);
        Box::pin(
            context
                .scope(async move {
                    let into_response = |failure| Status::from(failure).into_http();
                    if request.uri().path().starts_with("/grpc.") {
                        let answer = shared.handle_inquiry(inner, request).await;
                        return Ok(answer.unwrap_or_else(into_response));
                    }
                    let method = policy::method(request.uri().path());
                    let place = method.and_then(|method| METHODS.element_offset(method));
                    let calls = &shared.calls[place.unwrap_or(METHODS.len())];
                    let span_name = method.map_or("unknown", |method| method.path);
                    let call = calls.begin(span_name, &context.trace, Code::Cancelled as usize);
                    let answer = shared.handle(inner, request, method, arrival).await;
                    let response = answer.unwrap_or_else(into_response);
                    call.end(code_of(&response) as usize);
                    Ok(response)
                })
                .instrument(span),
        )
    }
}

impl Shared {
    async fn handle<S>(
        &self,
        inner: S,
        mut request: Request<Body>,
        method: Option<&Method>,
        arrival: Instant,
    ) -> Result<Response<Body>, Failure>
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    {
        let method = method
            .ok_or_else(|| Failure::new(ErrorReason::TransportUnimplemented, "there is no such method"))?;
        let _place = self.room.enter(method).ok_or_else(overloaded)?;
        let deadline = arrival + budget_of(method, &request)?;
        let context = Context { deadline: Some(deadline), ..Context::current() };

        let work = context.scope(async {
            let caller = self.authenticator.authenticate(request.headers(), method.access).await?;
            request.extensions_mut().insert(caller);
            let Ok(response) = inner.oneshot(request).await;
            Ok::<_, Failure>(response)
        });
        let response = match tokio::time::timeout_at(deadline, AssertUnwindSafe(work).catch_unwind()).await {
            Err(_) => {
                let text = "the work was not finished in time";
                return Err(Failure::new(ErrorReason::DeadlineExceeded, text).retry_after(COME_BACK));
            }
            Ok(Err(_)) => return Err(Failure::internal("a handler panicked; its message stands above")),
            Ok(Ok(answer)) => with_reason(answer?)?,
        };
        if !method.streams || response.headers().contains_key(Status::GRPC_STATUS) {
            return Ok(response);
        }
        let place = Arc::clone(&self.stream_room).try_acquire_owned().map_err(|_| overloaded())?;
        let shutdown = self.shutdown.clone();
        let end = async move {
            let _place = place;
            tokio::select! { () = tokio::time::sleep_until(deadline) => {}, () = shutdown.begun() => {} }
        };
        Ok(response.map(|body| Body::new(EndingBody::new(body, context, end))))
    }

    /// Health and reflection are for anyone, at any time. But some watch or ask for ever: streams either way end when the
    /// server drains.
    async fn handle_inquiry<S>(&self, inner: S, request: Request<Body>) -> Result<Response<Body>, Failure>
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    {
        if request.uri().path() == HEALTH_CHECK {
            let Ok(response) = inner.oneshot(request).await;
            return Ok(response);
        }
        let ending = |body| Body::new(EndingBody::new(body, Context::current(), self.shutdown.begun_owned()));
        let Ok(response) = inner.oneshot(request.map(ending)).await;
        let status = response.headers().get(Status::GRPC_STATUS);
        match status.map(|status| Code::from_bytes(status.as_bytes())) {
            Some(Code::Unimplemented) => with_reason(response),
            // What the health protocol answers stays as it is.
            Some(_) => Ok(response),
            None => Ok(response.map(ending)),
        }
    }
}

/// What a call was answered. A status that is not in the headers comes after a message, and is OK.
fn code_of(response: &Response<Body>) -> Code {
    response.headers().get(Status::GRPC_STATUS).map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()))
}

fn overloaded() -> Failure {
    Failure::new(ErrorReason::Overloaded, "too many calls at once").retry_after(COME_BACK)
}

/// How long the answer is waited for: what the method may take, or less if the caller says so.
fn budget_of(method: &Method, request: &Request<Body>) -> Result<Duration, Failure> {
    let given = deadline::read(request.headers())
        .map_err(|error| Failure::new(ErrorReason::TimeoutMalformed, error.to_string()))?;
    Ok(given.map_or(method.deadline, |given| given.min(method.deadline)))
}

/// Gives a reason to a status that tonic made itself. Our handlers' statuses have one.
fn with_reason(response: Response<Body>) -> Result<Response<Body>, Failure> {
    let headers = response.headers();
    let Some(status) = headers.get(Status::GRPC_STATUS) else { return Ok(response) };
    let code = Code::from_bytes(status.as_bytes());
    if code == Code::Ok || headers.contains_key(Status::GRPC_STATUS_DETAILS) {
        return Ok(response);
    }
    let message =
        Status::from_header_map(headers).map(|status| status.message().to_owned()).unwrap_or_default();
    Err(match code {
        Code::Unimplemented if message.is_empty() => {
            Failure::new(ErrorReason::TransportUnimplemented, "there is no such method")
        }
        // An encoding that we don't have; gRPC wants this code for it.
        Code::Unimplemented => Failure::new(ErrorReason::TransportUnimplemented, message),
        Code::Cancelled => Failure::new(ErrorReason::TransportCancelled, message),
        // What tonic makes before a handler runs is about the message: undecodable, too large, badly compressed.
        _ => Failure::new(ErrorReason::TransportMessageRefused, message),
    })
}

//! A call out: trace → deadline → room → breaker → idempotency key → retry within a budget → balance. Generated clients take
//! a [`Channel`] as their transport, so nobody has to remember any of it. `examples/book.rs` is a program that does.
//!
//! Every try of a call has the same idempotency key. Whoever wants to come back later with the same request, as after
//! `TRANSPORT_BROKEN` or `DEADLINE_EXCEEDED`, when nobody knows whether it was carried out, sets `request_id` before the
//! first call and sends the same message again.
//!
//! Whatever happens, the caller gets a gRPC status with a reason of the contracts: a broken connection is
//! `TRANSPORT_BROKEN`, never a silent UNKNOWN.

mod address;
mod balance;
mod breaker;
mod key;
mod network;
mod retry;
mod stream;

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use boxoffice_proto::{
    common::v1::ErrorReason,
    policy::{self, Access, Method},
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode,
    header::{AUTHORIZATION, InvalidHeaderValue, USER_AGENT},
};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use opentelemetry::{KeyValue, metrics::BoundCounter};
use tokio::time::Instant;
use tonic::{Code, Status, body::Body};

pub use self::{
    address::{Address, AddressError},
    network::{Connection, Network},
};
use self::{
    balance::{Balance, Lease},
    breaker::Breaker,
    retry::RetryBudget,
    stream::StreamBody,
};
use crate::{
    auth::{SERVICE_HEADER, ServiceTokens},
    calls::{Calls, Ends, Side},
    clock::Clock,
    context::Context,
    deadline,
    failure::Failure,
    metrics,
    room::Room,
    server::MAX_IN_FLIGHT,
    telemetry::{self, Trace},
};

/// The largest unary message, in bytes, with its frame.
const MESSAGE_LIMIT: usize = 4 * 1024 * 1024 + 1024;
/// Calls to a neighbour that may wait for its answers: three quarters of what a server works on, so that a slow neighbour
/// leaves room for the calls that don't need it.
pub const ROOM: usize = MAX_IN_FLIGHT / 4 * 3;
/// How long to wait for a stream to begin.
const STREAM_START_LIMIT: Duration = Duration::from_secs(5);
/// How long to wait before coming back, if a connection failed.
const COME_BACK: Duration = Duration::from_secs(1);

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A way to a neighbour. Cheap to clone; clones share connections, breaker and retry budget.
#[derive(Clone)]
pub struct Channel {
    neighbour: Arc<Neighbour>,
    /// The user's access token that calls carry, as a header has it.
    authorization: Option<HeaderValue>,
}

struct Neighbour {
    name: &'static str,
    balance: Balance,
    breaker: Breaker,
    retry_budget: RetryBudget,
    room: Room,
    calls: Calls,
    retries: BoundCounter<u64>,
    service_tokens: Option<ServiceTokens>,
    clock: Clock,
}

/// How a call ended, as metrics tell it. The names stand in [`OUTCOMES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Answered,
    Faulty,
    DeadlineExceeded,
    Refused,
    Busy,
    NotSent,
    Broken,
    Abandoned,
}

static OUTCOMES: Ends = Ends {
    label: "outcome",
    names: &["answered", "faulty", "deadline_exceeded", "refused", "busy", "not_sent", "broken", "abandoned"],
    faults: &["faulty", "deadline_exceeded", "refused", "busy", "not_sent", "broken"],
};

/// What came of one attempt.
enum Attempt {
    /// An answer, good or bad.
    Answered { response: Response<Body>, is_fault: bool },
    /// It was surely not sent.
    NotSent(Cause),
    /// It may have been sent.
    Broken(Cause),
}

impl Channel {
    /// A way to the service `name` at an address. Connects when first used. `service_tokens` name the caller to internal
    /// methods.
    pub fn new(
        name: &'static str,
        address: Address,
        service_tokens: Option<ServiceTokens>,
        clock: Clock,
    ) -> Self {
        Self::over(Arc::new(network::System), name, address, service_tokens, clock)
    }

    /// The same over another network than the system's.
    pub fn over(
        network: Arc<dyn Network>,
        name: &'static str,
        address: Address,
        service_tokens: Option<ServiceTokens>,
        clock: Clock,
    ) -> Self {
        let caller = service_tokens.as_ref().map_or("unknown", ServiceTokens::name);
        let metric =
            ("rpc.client.duration", "Calls to a neighbour, retries included; of a stream, until it began");
        let labels =
            [("service", caller), ("neighbour", name)].map(|(label, value)| KeyValue::new(label, value));
        let retries = metrics::meter()
            .u64_counter("rpc.client.retries")
            .with_description("Calls to a neighbour that were tried again")
            .build();
        let ejections = metrics::meter()
            .u64_counter("rpc.client.ejections")
            .with_description(
                "Endpoints of a neighbour that were left alone for a while, as they failed in a row",
            )
            .build();
        let neighbour = Arc::new(Neighbour {
            name,
            balance: Balance::new(name, &address, network, ejections.bind(&labels)),
            breaker: Breaker::new(name),
            retry_budget: RetryBudget::new(),
            room: Room::new(ROOM),
            calls: Calls::new(caller, Side::Client, metric, &[("neighbour", name)], &OUTCOMES),
            retries: retries.bind(&labels),
            service_tokens,
            clock,
        });
        let observed = Arc::downgrade(&neighbour);
        metrics::meter()
            .u64_observable_gauge("rpc.client.breaker.state")
            .with_description("The breaker of a neighbour. 0: closed; 1: half-open; 2: open")
            .with_callback(move |observer| {
                if let Some(neighbour) = observed.upgrade() {
                    observer.observe(neighbour.breaker.level(), &labels);
                }
            })
            .build();
        Self { neighbour, authorization: None }
    }

    /// The same way, on which calls carry this access token of a user, unless they have one of their own.
    ///
    /// # Errors
    /// If no header can carry the token.
    pub fn as_user(&self, access_token: &str) -> Result<Self, InvalidHeaderValue> {
        let mut header = HeaderValue::try_from(format!("Bearer {access_token}"))?;
        header.set_sensitive(true);
        Ok(Self { authorization: Some(header), ..self.clone() })
    }

    /// The same way, on which so many calls more than [`ROOM`] may wait: for a caller that has no limit of its own.
    #[must_use]
    pub fn widened_by(self, calls: usize) -> Self {
        self.neighbour.room.widen(calls);
        self
    }

    /// The neighbour's name.
    pub fn name(&self) -> &'static str {
        self.neighbour.name
    }

    /// Looks whether a call of this method would find a place now, for who can spare themselves the work before the call.
    ///
    /// # Errors
    /// `TRANSPORT_BUSY`, as the call would be refused.
    pub fn check_room(&self, method: &Method) -> Result<(), Failure> {
        if self.neighbour.room.is_open_to(method) { Ok(()) } else { Err(self.neighbour.busy()) }
    }

    /// Whether the neighbour has failed so often lately that calls are refused.
    pub fn is_refusing(&self) -> bool {
        self.neighbour.breaker.is_refusing()
    }
}

impl tower::Service<Request<Body>> for Channel {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let neighbour = Arc::clone(&self.neighbour);
        if let Some(token) = &self.authorization {
            request.headers_mut().entry(AUTHORIZATION).or_insert_with(|| token.clone());
        }
        Box::pin(async move {
            let context = Context::current();
            let trace = context.trace.child();
            let call = neighbour.calls.begin(request.uri().path(), &trace, Outcome::Abandoned as usize);
            let answer = neighbour.call(request, context, trace).await;
            call.end(outcome_of(&answer) as usize);
            let into_response = |failure| context.enter(|| Status::from(failure).into_http());
            Ok(answer.unwrap_or_else(into_response))
        })
    }
}

impl Neighbour {
    async fn call(
        &self,
        request: Request<Body>,
        context: Context,
        trace: Trace,
    ) -> Result<Response<Body>, Failure> {
        let method = policy::method(request.uri().path()).ok_or_else(|| {
            Failure::new(ErrorReason::TransportUnimplemented, "the contracts have no such method")
        })?;
        let deadline = self.deadline(method, &context)?;
        let _place = self.room.enter(method).ok_or_else(|| self.busy())?;
        let permit = self.breaker.admit().map_err(|retry_after| {
            Failure::new(
                ErrorReason::TransportBreakerOpen,
                format!("{} has failed too often lately", self.name),
            )
            .with("service", self.name)
            .retry_after(retry_after)
        })?;
        let begin = Instant::now();

        let (mut parts, body) = request.into_parts();
        parts.headers.insert(telemetry::HEADER, trace.header());
        parts.headers.remove(USER_AGENT);
        if method.access == Access::Internal
            && let Some(tokens) = &self.service_tokens
        {
            parts.headers.insert(SERVICE_HEADER, tokens.header(self.name, self.clock.now()));
        }
        let body = key::with_key(method, collect(body).await.map_err(Failure::internal)?.0);

        let Ok(attempt) =
            tokio::time::timeout_at(deadline, self.attempts(method, parts, body, deadline)).await
        else {
            // A call that was given too little time says nothing about the neighbour.
            let had_time = deadline - begin >= patience(method) / 2;
            permit.finish(had_time.then_some(breaker::Outcome::Fault));
            return Err(out_of_time(self.name));
        };
        match attempt {
            Attempt::Answered { response, is_fault } => {
                permit.finish(Some(if is_fault {
                    breaker::Outcome::Fault
                } else {
                    breaker::Outcome::Answer
                }));
                Ok(response)
            }
            Attempt::NotSent(cause) => {
                permit.finish(Some(breaker::Outcome::Fault));
                Err(Failure::new(
                    ErrorReason::TransportConnectFailed,
                    format!("{} can't be reached", self.name),
                )
                .with("service", self.name)
                .retry_after(COME_BACK)
                .caused_by(cause))
            }
            Attempt::Broken(cause) => {
                permit.finish(Some(breaker::Outcome::Fault));
                Err(broken(self.name, cause))
            }
        }
    }

    fn busy(&self) -> Failure {
        Failure::new(ErrorReason::TransportBusy, format!("too many calls wait for {}", self.name))
            .with("service", self.name)
            .retry_after(COME_BACK)
    }

    /// When to stop waiting: what the method may take, or what remains to our own caller less a margin.
    fn deadline(&self, method: &Method, context: &Context) -> Result<Instant, Failure> {
        let own = Instant::now() + patience(method);
        let deadline = context.deadline.map_or(own, |deadline| own.min(deadline - deadline::MARGIN));
        if deadline <= Instant::now() { Err(out_of_time(self.name)) } else { Ok(deadline) }
    }

    /// Tries, and tries again where the contract and the budget allow it.
    async fn attempts(
        &self,
        method: &Method,
        parts: http::request::Parts,
        body: Bytes,
        deadline: Instant,
    ) -> Attempt {
        self.retry_budget.deposit();
        let mut tries = 0;
        let mut may_have_been_sent = false;
        let mut tried = Vec::new();
        loop {
            let mut request = Request::from_parts(parts.clone(), Body::new(Full::new(body.clone())));
            let timeout = if method.streams {
                method.deadline
            } else {
                deadline.saturating_duration_since(Instant::now())
            };
            request.headers_mut().insert(deadline::HEADER, deadline::format(timeout));
            // Whoever failed a moment ago is not asked again while there are others.
            let Some(mut lease) = self.balance.choose(&tried).await else {
                return Attempt::NotSent(format!("no endpoint of {} is known", self.name).into());
            };
            let attempt = self.attempt(method, request, &lease).await;
            match &attempt {
                Attempt::Answered { .. } => lease.answered(),
                Attempt::NotSent(_) | Attempt::Broken(_) => lease.failed(),
            }
            let attempt = match attempt {
                // This try was not sent, but an earlier one may have been.
                Attempt::NotSent(cause) if may_have_been_sent => Attempt::Broken(cause),
                attempt => attempt,
            };
            may_have_been_sent |= matches!(attempt, Attempt::Broken(_));
            tries += 1;
            let may_repeat = match &attempt {
                Attempt::Answered { .. } => false,
                Attempt::NotSent(_) => true,
                Attempt::Broken(_) => method.repeat != policy::Repeat::Unsafe && !method.streams,
            };
            if !may_repeat || tries == retry::TRIES || !self.retry_budget.withdraw() {
                return attempt;
            }
            tried.push(lease.address());
            drop(lease);
            self.retries.add(1);
            tokio::time::sleep(retry::pause(tries)).await;
        }
    }

    async fn attempt(&self, method: &Method, request: Request<Body>, lease: &Lease) -> Attempt {
        let response = match lease.send(request).await {
            Ok(response) => response,
            Err(error) if was_not_sent(&error) => return Attempt::NotSent(error.into()),
            Err(error) => return Attempt::Broken(error.into()),
        };
        let has_begun = response.status() == StatusCode::OK;
        if method.streams && has_begun && !response.headers().contains_key(Status::GRPC_STATUS) {
            let response = response.map(|body| Body::new(StreamBody::new(self.name, body, lease.stream())));
            return Attempt::Answered { response, is_fault: false };
        }
        // A unary answer is complete only with its trailers: until then the connection may still break.
        let (mut parts, body) = response.into_parts();
        let (bytes, trailers) = match collect(body).await {
            Ok(collected) => collected,
            // It would be as large again.
            Err(cause) if cause.is::<LengthLimitError>() => {
                let failure =
                    Failure::internal(format!("{} answers more than {MESSAGE_LIMIT} bytes", self.name));
                return Attempt::Answered { response: Status::from(failure).into_http(), is_fault: false };
            }
            Err(cause) => return Attempt::Broken(cause),
        };
        let status_of = |headers: &HeaderMap| headers.get(Status::GRPC_STATUS).cloned();
        let Some(status) = status_of(&parts.headers).or_else(|| trailers.as_ref().and_then(status_of)) else {
            return Attempt::Broken(format!("an answer without grpc-status, HTTP {}", parts.status).into());
        };
        let code = Code::from_bytes(status.as_bytes());
        let has_reason = [Some(&parts.headers), trailers.as_ref()]
            .into_iter()
            .flatten()
            .any(|headers| headers.contains_key(Status::GRPC_STATUS_DETAILS));
        if !has_reason && matches!(code, Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled)
        {
            return Attempt::Broken(format!("an answer that no service of ours gives: {code}").into());
        }
        let is_fault = matches!(code, Code::Internal | Code::Unknown);
        let body = match trailers {
            Some(trailers) => {
                Body::new(Full::new(bytes).with_trailers(std::future::ready(Some(Ok(trailers)))))
            }
            None => Body::new(Full::new(bytes)),
        };
        parts.headers.remove(http::header::CONTENT_LENGTH);
        Attempt::Answered { response: Response::from_parts(parts, body), is_fault }
    }
}

fn outcome_of(answer: &Result<Response<Body>, Failure>) -> Outcome {
    let failure = match answer {
        Ok(response) => {
            let status = response.headers().get(Status::GRPC_STATUS);
            return match status.map(|status| Code::from_bytes(status.as_bytes())) {
                Some(Code::Internal | Code::Unknown) => Outcome::Faulty,
                _ => Outcome::Answered,
            };
        }
        Err(failure) => failure,
    };
    let known = [
        (ErrorReason::DeadlineExceeded, Outcome::DeadlineExceeded),
        (ErrorReason::TransportBreakerOpen, Outcome::Refused),
        (ErrorReason::TransportBusy, Outcome::Busy),
        (ErrorReason::TransportConnectFailed, Outcome::NotSent),
        (ErrorReason::TransportBroken, Outcome::Broken),
    ];
    let found = known.into_iter().find(|(reason, _)| failure.is(*reason));
    // Otherwise it is a bug: a request that can't be made.
    found.map_or(Outcome::Faulty, |(_, outcome)| outcome)
}

/// The bytes of a body that holds one message, and its trailers.
async fn collect(body: Body) -> Result<(Bytes, Option<HeaderMap<HeaderValue>>), Cause> {
    let collected = Limited::new(body, MESSAGE_LIMIT).collect().await?;
    let trailers = collected.trailers().cloned();
    Ok((collected.to_bytes(), trailers))
}

/// How long an answer is waited for at the most; of a stream, its beginning.
fn patience(method: &Method) -> Duration {
    if method.streams { STREAM_START_LIMIT } else { method.deadline }
}

/// Whether a call was surely not sent: no connection was made, or the one there was closed before it took the call, as
/// that of a neighbour that drains.
fn was_not_sent(error: &tonic::transport::Error) -> bool {
    let error: &(dyn std::error::Error + 'static) = error;
    std::iter::successors(Some(error), |error| error.source()).any(|cause| {
        let was_canceled = cause.downcast_ref().is_some_and(hyper::Error::is_canceled);
        cause.is::<tonic::ConnectError>() || was_canceled
    })
}

fn broken(name: &str, cause: impl Into<Cause>) -> Failure {
    Failure::new(ErrorReason::TransportBroken, format!("the connection to {name} broke"))
        .with("service", name)
        .retry_after(COME_BACK)
        .caused_by(cause)
}

fn out_of_time(name: &str) -> Failure {
    Failure::new(ErrorReason::DeadlineExceeded, format!("{name} did not answer in time"))
        .retry_after(COME_BACK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_tell_failures_apart() {
        let outcome = |reason| {
            let failed = Err(Failure::new(reason, "as the test wants"));
            OUTCOMES.names[outcome_of(&failed) as usize]
        };
        assert_eq!(outcome(ErrorReason::DeadlineExceeded), "deadline_exceeded");
        assert_eq!(outcome(ErrorReason::TransportBreakerOpen), "refused");
        assert_eq!(outcome(ErrorReason::TransportBusy), "busy");
        assert_eq!(outcome(ErrorReason::TransportConnectFailed), "not_sent");
        assert_eq!(outcome(ErrorReason::TransportBroken), "broken");
        assert_eq!(outcome(ErrorReason::Internal), "faulty");
        assert_eq!(OUTCOMES.names[Outcome::Abandoned as usize], "abandoned");
        let answered = Ok(Status::not_found("nothing").into_http());
        assert_eq!(OUTCOMES.names[outcome_of(&answered) as usize], "answered");
    }
}

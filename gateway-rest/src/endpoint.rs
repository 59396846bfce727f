//! One call: who calls and whether they may, the message, the service's answer, and the answer as REST shows it.

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    RequestExt,
    body::Body,
    extract::{RawPathParams, Request},
    response::{IntoResponse, Response},
};
use boxoffice_proto::common::v1::ErrorReason;
use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, EXPECT},
    request::Parts,
    uri::PathAndQuery,
};
use http_body_util::BodyExt;
use mesh::{
    Failure,
    auth::{self, Authenticator},
    calls::Calls,
    client::Channel,
    context::Context,
    id::UserId,
    shutdown::Shutdown,
};
use prost::Message as _;
use prost_reflect::DynamicMessage;
use tonic::{client::Grpc, metadata::MetadataMap};

use crate::{
    access,
    answers::Answers,
    codec::BytesCodec,
    descriptors::{Caching, Route},
    event_stream,
    problem::Problem,
    rate_limit::{self, RateLimits},
    rendering::{Renderings, Version},
    transcode::{self, RestRequest},
};

/// The largest body that is accepted, in bytes.
const BODY_LIMIT: usize = 1024 * 1024;
/// How much of a body that is too large is read all the same: a client that is still sending does not hear the answer.
const OVERSIZE_LIMIT: usize = 16 * 1024 * 1024;

const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// Where a request came from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// What a response tells the access log about the call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Served {
    /// The method's gRPC path.
    pub(crate) method: &'static str,
    pub(crate) user: Option<UserId>,
}

/// What all endpoints share.
pub(crate) struct Shared {
    pub(crate) authenticator: Authenticator,
    pub(crate) rate_limits: RateLimits,
    pub(crate) answers: Answers,
    pub(crate) renderings: Renderings,
    /// Ends event streams.
    pub(crate) stop: Shutdown,
}

/// A route, and the way to its service.
pub(crate) struct Endpoint {
    route: Route,
    channel: Channel,
    grpc_path: PathAndQuery,
    cache_control: HeaderValue,
    calls: Calls,
    span_name: String,
    shared: Arc<Shared>,
}

impl Endpoint {
    pub(crate) fn new(route: Route, channel: Channel, shared: Arc<Shared>) -> Self {
        let grpc_path = PathAndQuery::from_static(route.policy.path);
        let cache_control = route.caching.header();
        let span_name = format!("{} {}", route.http_method, route.path);
        let calls = access::calls_of(route.http_method.as_str(), &route.path);
        Self { route, channel, grpc_path, cache_control, calls, span_name, shared }
    }

    /// Answers a request.
    pub(crate) async fn answer(self: Arc<Self>, request: Request) -> Response {
        let call = self.calls.begin(&self.span_name, &Context::current().trace, access::abandoned());
        let policy = self.route.policy;
        // First of all: where there are too many, refusing must cost less than serving. What does not yield may be answered without
        // the service.
        if policy.yields
            && let Err(busy) = self.channel.check_room(policy)
        {
            let mut response = respond_with(busy.into());
            response.extensions_mut().insert(Served { method: policy.path, user: None });
            call.end(access::place_of(response.status()));
            return response;
        }
        let caller = self.shared.authenticator.authenticate(request.headers(), policy.access).await;
        let user = match &caller {
            Ok(auth::Caller::User(user)) => Some(user.id),
            _ => None,
        };
        let caller_counted = match user {
            Some(user) => rate_limit::Caller::User(user),
            None => rate_limit::Caller::at(peer(&request)),
        };
        let decision = self.shared.rate_limits.take(caller_counted).await;
        let outcome = match (decision.admit(), caller) {
            (Err(too_many), _) => Err(too_many),
            (Ok(()), Err(refused)) => Err(refused.into()),
            // Boxed, as a large future is copied on its way through each layer around it.
            (Ok(()), Ok(_)) => Box::pin(self.call(request)).await,
        };
        let mut response = outcome.unwrap_or_else(respond_with);
        decision.write(response.headers_mut());
        response.extensions_mut().insert(Served { method: policy.path, user });
        call.end(access::place_of(response.status()));
        response
    }

    async fn call(&self, request: Request) -> Result<Response, Problem> {
        let context = Context::current();
        if self.route.policy.streams {
            let (message, headers) = self.read(request).await?;
            return Box::pin(self.open_stream(message, &headers)).await;
        }
        let context = context.within(self.route.policy.deadline);
        context
            .scope(async {
                let (message, headers) = self.read(request).await?;
                self.ask(message, &headers).await
            })
            .await
    }

    /// The message of a request, and the request's headers.
    async fn read(&self, mut request: Request) -> Result<(DynamicMessage, HeaderMap), Problem> {
        let parameters = request.extract_parts::<RawPathParams>().await.ok();
        if parameters.is_none() && !self.route.path_fields.is_empty() {
            return Err(Problem::new(ErrorReason::RouteNotFound, "the path is not UTF-8"));
        }
        let path_values: Vec<&str> = parameters.iter().flatten().map(|(_, value)| value).collect();
        let (Parts { uri, headers, .. }, body) = request.into_parts();
        let body = if self.route.takes_body { read_body(&headers, body).await? } else { Bytes::new() };
        let rest = RestRequest {
            path_values: &path_values,
            query: uri.query().unwrap_or_default(),
            headers: &headers,
            body: &body,
        };
        let message = transcode::decode_request(&self.route, &rest)?;
        Ok((message, headers))
    }

    /// Asks the service and shows what it answers.
    async fn ask(&self, message: DynamicMessage, headers: &HeaderMap) -> Result<Response, Problem> {
        let mut response = match self.route.caching {
            Caching::Public(max_age) => Box::pin(self.ask_for_all(message, headers, max_age)).await?,
            Caching::NoStore => {
                let answer = self.call_service(message, headers).await?;
                let is_replayed = answer.metadata().contains_key(IDEMPOTENCY_REPLAYED.as_str());
                let message = transcode::decode_response(&self.route.output, answer.get_ref());
                let json = message.and_then(|message| transcode::write_json(&message));
                let mut response = respond_with_json(json.map_err(Failure::internal)?);
                if is_replayed {
                    response.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
                }
                response
            }
        };
        response.headers_mut().insert(CACHE_CONTROL, self.cache_control.clone());
        Ok(response)
    }

    async fn call_service(
        &self,
        message: DynamicMessage,
        headers: &HeaderMap,
    ) -> Result<tonic::Response<Bytes>, Problem> {
        let mut client = Grpc::new(self.channel.clone());
        client
            .unary(forward(message, headers), self.grpc_path.clone(), BytesCodec)
            .await
            .map_err(|status| Problem::from_status(&status))
    }

    /// Shows an answer that is the same for everyone, if the client does not have it already.
    async fn ask_for_all(
        &self,
        message: DynamicMessage,
        headers: &HeaderMap,
        max_age: Duration,
    ) -> Result<Response, Problem> {
        let question = message.encode_to_vec().into();
        let ask = async {
            let bytes = self.call_service(message, headers).await?.into_inner();
            Ok((Version::of(&self.route.output, &bytes), bytes))
        };
        let (version, bytes) = self.shared.answers.find(self.route.policy, question, max_age, ask).await?;
        if version.is_known_to(headers) {
            return Ok(version.not_modified());
        }
        let rendering = self.shared.renderings.render(version, &self.route.output, bytes).await?;
        Ok(rendering.respond(headers))
    }

    async fn open_stream(
        &self,
        mut message: DynamicMessage,
        headers: &HeaderMap,
    ) -> Result<Response, Problem> {
        event_stream::resume(&mut message, headers);
        let mut client = Grpc::new(self.channel.clone());
        let answer = client
            .server_streaming(forward(message, headers), self.grpc_path.clone(), BytesCodec)
            .await
            .map_err(|status| Problem::from_status(&status))?;
        Ok(event_stream::respond(answer.into_inner(), self.route.output.clone(), self.shared.stop.clone()))
    }
}

fn peer(request: &Request) -> IpAddr {
    let unknown = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
    request.extensions().get::<Peer>().map_or(unknown, |peer| peer.0)
}

/// An answer in JSON.
pub(crate) fn respond_with_json(json: impl Into<Body>) -> Response {
    let mut response = Response::new(json.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A problem of the call being handled.
pub(crate) fn respond_with(problem: Problem) -> Response {
    problem.in_trace(Context::current().trace.id()).into_response()
}

/// A call to a service. Of what the client sent, only the token goes along: nobody can name themselves in a header.
fn forward(message: DynamicMessage, headers: &HeaderMap) -> tonic::Request<DynamicMessage> {
    let mut forwarded = HeaderMap::new();
    if let Some(token) = headers.get(AUTHORIZATION) {
        let mut token = token.clone();
        token.set_sensitive(true);
        forwarded.insert(AUTHORIZATION, token);
    }
    tonic::Request::from_parts(MetadataMap::from_headers(forwarded), Default::default(), message)
}

/// Reads a body within the time and the size that it may take.
async fn read_body(headers: &HeaderMap, body: Body) -> Result<Bytes, Problem> {
    let too_large = || {
        Problem::new(ErrorReason::BodyTooLarge, format!("the body has more than {BODY_LIMIT} bytes"))
            .with("limit_bytes", BODY_LIMIT)
    };
    let declared = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    let is_too_large = declared.is_some_and(|length| length > BODY_LIMIT);
    let waits_for_leave = headers.contains_key(EXPECT);
    if waits_for_leave && is_too_large {
        return Err(too_large());
    }
    let read = match Context::current().deadline {
        Some(deadline) => tokio::time::timeout_at(deadline, collect(body)).await,
        None => Ok(collect(body).await),
    };
    match read {
        Ok(Ok(Some(bytes))) => Ok(bytes),
        Ok(Ok(None)) => Err(too_large()),
        Ok(Err(error)) => {
            Err(Problem::new(ErrorReason::BodyMalformed, format!("the body ended too soon: {error}")))
        }
        Err(_) if is_too_large => Err(too_large()),
        Err(_) => Err(Problem::new(ErrorReason::DeadlineExceeded, "the body did not arrive in time")),
    }
}

/// The bytes of a body. None: it is too large.
async fn collect(mut body: Body) -> Result<Option<Bytes>, axum::Error> {
    let mut bytes = BytesMut::new();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        length += data.len();
        if length > OVERSIZE_LIMIT {
            break;
        }
        if length > BODY_LIMIT {
            bytes = BytesMut::new();
            continue;
        }
        bytes.extend_from_slice(&data);
    }
    Ok((length <= BODY_LIMIT).then(|| bytes.freeze()))
}

//! What every call passes first and last: its trace, its request id, its line in the log and its place in the metrics.

use std::{net::SocketAddr, sync::Arc};

use axum::{Router, body::Body, response::Response};
use http::{HeaderMap, HeaderName, HeaderValue, Request, header::X_CONTENT_TYPE_OPTIONS};
use mesh::{calls::Calls, context::Context, telemetry::Trace};
use tokio::time::Instant;
use tower::ServiceExt;

use crate::{
    access, cors,
    endpoint::{Peer, Served},
    problem::Refused,
};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_ID_LENGTH: usize = 128;

/// The routes behind what every call passes.
#[derive(Clone)]
pub(crate) struct Entry {
    router: Router,
    /// Calls that are not of the contracts: those have measurements of their own.
    others: Arc<Calls>,
}

impl Entry {
    pub(crate) fn new(router: Router) -> Self {
        Self { router, others: Arc::new(access::calls_of("any", "other")) }
    }

    /// Answers a request that came from an address.
    pub(crate) async fn respond(self, from: SocketAddr, mut request: Request<Body>) -> Response {
        let begin = Instant::now();
        let trace = Trace::read(request.headers()).child();
        let request_id = request_id(request.headers(), trace);
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        request.extensions_mut().insert(Peer(from.ip()));

        let context = Context { deadline: None, trace };
        let Ok(mut response) = context.scope(self.router.oneshot(request)).await;

        let served = response.extensions().get::<Served>().copied();
        let log = || {
            tracing::info!(
                target: "access",
                {
                http.method = %method,
                http.path = path,
                http.status = response.status().as_u16(),
                error.reason = response.extensions().get::<Refused>().map(|refused| &*refused.0),
                rpc.method = served.map(|served| served.method),
                user.id = served.and_then(|served| served.user).map(tracing::field::display),
                duration_us = begin.elapsed().as_micros() as u64,
                request.id = request_id.to_str().unwrap_or_default(),
                },
                "call"
            )
        };
        context.enter(log);
        if served.is_none() {
            self.others.record(access::place_of(response.status()), begin.elapsed());
        }
        let headers = response.headers_mut();
        cors::hide_from_strangers(headers);
        headers.insert(X_REQUEST_ID, request_id);
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response
    }
}

/// The client's own id for the call, if it is harmless; otherwise the trace's.
fn request_id(headers: &HeaderMap, trace: Trace) -> HeaderValue {
    let is_harmless = |id: &&HeaderValue| {
        let bytes = id.as_bytes();
        (1..=MAX_ID_LENGTH).contains(&bytes.len())
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(byte))
    };
    let own = || HeaderValue::try_from(trace.id().to_string()).expect("hexadecimal digits");
    headers.get(X_REQUEST_ID).filter(is_harmless).cloned().unwrap_or_else(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_harmless_request_id_is_kept() {
        let trace = Trace::root();
        let id_of = |id: &str| {
            let headers = HeaderMap::from_iter([(X_REQUEST_ID, HeaderValue::from_str(id).unwrap())]);
            request_id(&headers, trace).to_str().unwrap().to_owned()
        };
        assert_eq!(id_of("checkout-42.a:b_c"), "checkout-42.a:b_c");
        let too_long = "x".repeat(129);
        for harmful in ["", "a b", "a\tb", "<script>", &too_long] {
            assert_eq!(id_of(harmful), trace.id().to_string(), "{harmful}");
        }
        assert_eq!(request_id(&HeaderMap::new(), trace), trace.id().to_string());
    }
}

//! Which path leads where: the routes of the contracts, what only the gateway has, and the layers around them.

use std::{any::Any, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{
    Router,
    extract::Request,
    response::{IntoResponse, Redirect, Response},
    routing::{MethodFilter, get, on},
};
use boxoffice_proto::common::v1::ErrorReason;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use mesh::{auth::Keys, client::Channel, shutdown::Shutdown};
use serde_json::json;
use tower::ServiceBuilder;
use tower_http::{
    catch_panic::CatchPanicLayer,
    compression::{
        CompressionLayer, Predicate,
        predicate::{NotForContentType, SizeAbove},
    },
};
use utoipa_swagger_ui::SwaggerUi;

use crate::{
    cors::{self, AllowedOrigins},
    descriptors::{self, Route},
    endpoint::{Endpoint, Shared, respond_with, respond_with_json},
    openapi,
    problem::Problem,
};

/// A smaller answer gains nothing by compression.
pub(crate) const COMPRESSION_MINIMUM: usize = 1024;

/// The ways to the services, by the name of their package.
pub(crate) struct Channels(pub(crate) [Channel; 4]);

impl Channels {
    fn to(&self, route: &Route) -> anyhow::Result<Channel> {
        let service = route.method.parent_service();
        let name = service.package_name().split('.').nth(1).unwrap_or_default();
        let channel = self.0.iter().find(|channel| channel.name() == name);
        channel.cloned().with_context(|| format!("there is no way to the service of {}", service.full_name()))
    }
}

/// The routes of the contracts.
pub(crate) fn contract_routes(channels: &Channels, shared: &Arc<Shared>) -> anyhow::Result<Router> {
    let mut router = Router::new();
    for route in descriptors::routes()? {
        let filter = MethodFilter::try_from(route.http_method.clone())?;
        let (path, channel) = (route.path.clone(), channels.to(&route)?);
        let endpoint = Arc::new(Endpoint::new(route, channel, Arc::clone(shared)));
        router =
            router.route(&path, on(filter, move |request: Request| Arc::clone(&endpoint).answer(request)));
    }
    Ok(router)
}

/// Whether the gateway runs and takes calls, and the keys that tokens are verified with.
pub(crate) fn own_routes(keys: Keys, shutdown: Shutdown) -> Router {
    let readiness = move || {
        let is_stopping = shutdown.has_begun();
        async move { if is_stopping { respond_with(stopping()) } else { "ready\n".into_response() } }
    };
    Router::new()
        .route("/healthz", get(async || "healthy\n"))
        .route("/readyz", get(readiness))
        .route("/.well-known/jwks.json", get(async move || key_set(&keys)))
}

fn stopping() -> Problem {
    Problem::new(ErrorReason::ShuttingDown, "the gateway is about to stop")
        .retry_after(Duration::from_secs(1))
}

fn key_set(keys: &Keys) -> Response {
    let Some(keys) = keys.public_keys() else {
        let problem = Problem::new(ErrorReason::KeysUnavailable, "the keys can't be had right now");
        return respond_with(problem.retry_after(Duration::from_secs(1)));
    };
    let keys: Vec<_> = keys
        .iter()
        .map(|key| {
            json!({"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": key.kid, "x": key.x})
        })
        .collect();
    let headers = [(CONTENT_TYPE, "application/jwk-set+json"), (CACHE_CONTROL, "public, max-age=60")];
    (headers, json!({"keys": keys}).to_string()).into_response()
}

/// The description of the API, for programs and for people.
pub(crate) fn documentation() -> anyhow::Result<Router> {
    let description = Bytes::from(openapi::describe(&descriptors::routes()?)?.to_string());
    let config = utoipa_swagger_ui::Config::from("/openapi.json")
        // By itself the page would have a stranger on the internet look at the description.
        .validator_url("none")
        .persist_authorization(true);
    Ok(Router::from(SwaggerUi::new("/docs").config(config))
        .route("/openapi.json", get(async move || respond_with_json(description)))
        .route("/", get(async || Redirect::temporary("/docs/"))))
}

/// Answers what no route does, and puts around all routes what none of them should have to know.
pub(crate) fn finish(router: Router, origins: AllowedOrigins) -> Router {
    let compressible = SizeAbove::new(COMPRESSION_MINIMUM as u64).and(NotForContentType::SSE);
    router
        .fallback(no_such_route)
        .method_not_allowed_fallback(method_not_allowed)
        // Together, the outermost first: a router boxes what each of its layers makes, for every call.
        .layer(
            ServiceBuilder::new()
                .layer(cors::layer(origins))
                .layer(CompressionLayer::new().gzip(true).compress_when(compressible))
                .layer(CatchPanicLayer::custom(respond_to_panic)),
        )
        // Otherwise every call would put the layers around its handler anew.
        .with_state(())
}

async fn no_such_route() -> Response {
    respond_with(Problem::new(ErrorReason::RouteNotFound, "there is no such route"))
}

/// The router adds the header `Allow`.
async fn method_not_allowed() -> Response {
    respond_with(Problem::new(ErrorReason::MethodNotAllowed, "the route has other methods: see Allow"))
}

fn respond_to_panic(_: Box<dyn Any + Send>) -> Response {
    tracing::error!("a handler panicked; its message stands above");
    respond_with(Problem::new(ErrorReason::Internal, "something went wrong on our side"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use http::{Request, StatusCode, header::ACCESS_CONTROL_ALLOW_ORIGIN};
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    async fn status_of(router: &Router, path: &str) -> StatusCode {
        let request = Request::get(path).body(Body::empty()).unwrap();
        router.clone().oneshot(request).await.unwrap().status()
    }

    #[tokio::test]
    async fn the_gateway_takes_calls_until_it_is_about_to_stop() {
        let shutdown = Shutdown::new();
        let router = own_routes(Keys::new(), shutdown.clone());
        assert_eq!(status_of(&router, "/readyz").await, StatusCode::OK);
        shutdown.begin();
        assert_eq!(status_of(&router, "/readyz").await, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(status_of(&router, "/healthz").await, StatusCode::OK, "it still runs");
    }

    #[tokio::test]
    async fn without_keys_there_are_none_to_show() {
        let router = own_routes(Keys::new(), Shutdown::new());
        assert_eq!(status_of(&router, "/.well-known/jwks.json").await, StatusCode::SERVICE_UNAVAILABLE);
    }

    #[tokio::test]
    async fn a_panic_becomes_a_problem_that_says_nothing() {
        let bug = async || -> Response { panic!("SELECT password FROM account") };
        let origins: AllowedOrigins = "https://tickets.example".parse().unwrap();
        let router = finish(Router::new().route("/bug", get(bug)), origins);
        let request =
            Request::get("/bug").header("origin", "https://tickets.example").body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(response.headers()[ACCESS_CONTROL_ALLOW_ORIGIN], "https://tickets.example");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["reason"], "INTERNAL");
        assert!(!body.to_string().contains("SELECT"), "{body}");
    }
}

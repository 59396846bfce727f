//! The REST routes, as the contracts declare them with `google.api.http`.

use std::{sync::LazyLock, time::Duration};

use anyhow::{Context as _, bail, ensure};
use boxoffice_proto::policy::{self, Access, IdempotencyKey, Method as Policy};
use http::HeaderValue;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor,
};

/// The field that REST sends as the header `Idempotency-Key`.
pub const REQUEST_ID: &str = "request_id";

/// The contracts, decoded once: a pool is shared and never changes.
static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(boxoffice_proto::DESCRIPTORS).expect("the contracts are compiled in")
});

/// A REST route and the method it leads to. Whatever a call needs of the descriptors is looked up here, once.
#[derive(Debug)]
pub struct Route {
    /// The HTTP method.
    pub http_method: http::Method,
    /// The path, as axum and the contracts write it: `/v1/concerts/{concert_id}`.
    pub path: String,
    /// Whether the fields that are not in the path come as a JSON body (`body: "*"`), rather than as query parameters.
    pub takes_body: bool,
    /// The method.
    pub method: MethodDescriptor,
    /// What the contract says about calling the method.
    pub policy: &'static Policy,
    /// The request message.
    pub input: MessageDescriptor,
    /// The response message.
    pub output: MessageDescriptor,
    /// The fields that come from the path, in the order of the path.
    pub path_fields: Vec<FieldDescriptor>,
    /// The field that comes from the header `Idempotency-Key`.
    pub key_field: Option<FieldDescriptor>,
    /// Whether an answer may be kept.
    pub caching: Caching,
}

impl Route {
    /// Whether a field of the request message may come in the body or the query.
    pub fn is_open(&self, field: &FieldDescriptor) -> bool {
        !self.path_fields.contains(field) && self.key_field.as_ref() != Some(field)
    }

    /// Whether a field of the request message may come as a query parameter.
    pub fn is_query_field(&self, field: &FieldDescriptor) -> bool {
        !self.takes_body && self.is_open(field) && is_text_field(field)
    }
}

/// Whether an answer may be kept. The contracts don't say it, so it stands here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caching {
    /// By nobody.
    NoStore,
    /// By anyone, for a time; after that, as long as its `ETag` is the current one.
    Public(Duration),
}

impl Caching {
    fn of(grpc_path: &str) -> Self {
        match grpc_path {
            // Frozen at publication.
            "/boxoffice.booking.v1.SeatService/GetSeatMap" => Self::Public(Duration::from_secs(300)),
            "/boxoffice.booking.v1.SeatService/GetSeats" => Self::Public(Duration::from_secs(1)),
            _ => Self::NoStore,
        }
    }

    /// The header `Cache-Control`.
    pub fn header(self) -> HeaderValue {
        match self {
            Self::NoStore => HeaderValue::from_static("no-store"),
            Self::Public(age) => HeaderValue::try_from(format!("public, max-age={}", age.as_secs()))
                .expect("words and a number"),
        }
    }
}

/// Every route that the contracts declare, by method name.
///
/// # Errors
/// If a contract declares something that the gateway does not know how to serve.
pub fn routes() -> anyhow::Result<Vec<Route>> {
    let mut routes = Vec::new();
    for service in POOL.services() {
        for method in service.methods() {
            let name = method.full_name().to_owned();
            routes.extend(route(method).with_context(|| format!("the REST route of {name}"))?);
        }
    }
    routes.sort_by(|a, b| a.method.full_name().cmp(b.method.full_name()));
    Ok(routes)
}

fn route(method: MethodDescriptor) -> anyhow::Result<Option<Route>> {
    let options = method.options();
    let extension =
        POOL.get_extension_by_name("google.api.http").context("the contracts lack google.api.http")?;
    if !options.has_extension(&extension) {
        return Ok(None);
    }
    let rule = options.get_extension(&extension);
    let rule = rule.as_message().context("google.api.http is not a message")?;
    for unsupported in ["additional_bindings", "response_body", "custom"] {
        ensure!(!rule.has_field_by_name(unsupported), "`{unsupported}` is not supported");
    }
    let (http_method, path) = pattern(rule)?;
    let takes_body = match text(rule, "body").as_str() {
        "" => false,
        "*" => true,
        other => bail!("body must be \"*\" or absent, not {other:?}"),
    };
    ensure!(!method.is_client_streaming(), "a stream of requests can't come as REST");

    let input = method.input();
    let mut path_fields = Vec::new();
    for name in parameter_names(&path)? {
        let field =
            input.get_field_by_name(name).with_context(|| format!("the request has no field `{name}`"))?;
        ensure!(is_text_field(&field), "`{name}` can't be part of a path: it is not a single plain value");
        path_fields.push(field);
    }
    let grpc_path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let policy = policy::method(&grpc_path).context("the method has no policy")?;
    let key_field = match policy.idempotency_key {
        IdempotencyKey::None => None,
        IdempotencyKey::Optional | IdempotencyKey::Required => input.get_field_by_name(REQUEST_ID),
    };
    let output = method.output();
    let caching = Caching::of(policy.path);
    let is_kept_for_all = matches!(caching, Caching::Public(_));
    ensure!(
        !is_kept_for_all || policy.access == Access::Public,
        "{} is not the same for everyone",
        policy.path
    );
    Ok(Some(Route {
        http_method,
        path,
        takes_body,
        method,
        policy,
        input,
        output,
        path_fields,
        key_field,
        caching,
    }))
}

fn pattern(rule: &DynamicMessage) -> anyhow::Result<(http::Method, String)> {
    let methods = [
        ("get", http::Method::GET),
        ("put", http::Method::PUT),
        ("post", http::Method::POST),
        ("delete", http::Method::DELETE),
        ("patch", http::Method::PATCH),
    ];
    let (field, method) =
        methods.into_iter().find(|(field, _)| rule.has_field_by_name(field)).context("it has no path")?;
    Ok((method, text(rule, field)))
}

fn text(rule: &DynamicMessage, field: &str) -> String {
    let value = rule.get_field_by_name(field);
    value.and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// The names in the braces of a path.
fn parameter_names(path: &str) -> anyhow::Result<Vec<&str>> {
    let mut names = Vec::new();
    for segment in path.split('/') {
        match segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            Some(name) => names.push(name),
            None => ensure!(
                !segment.contains(['{', '}', ':', '*']),
                "the path segment `{segment}` is not supported"
            ),
        }
    }
    Ok(names)
}

/// Whether a field is a single value that can stand in a URL.
fn is_text_field(field: &FieldDescriptor) -> bool {
    let has_one_form = !matches!(field.kind(), Kind::Message(_) | Kind::Bytes | Kind::Double | Kind::Float);
    has_one_form && !field.is_list() && !field.is_map()
}

#[cfg(test)]
mod tests {
    use super::*;
    use boxoffice_proto::policy::Access;

    fn route_of(method: &str) -> Route {
        routes().unwrap().into_iter().find(|route| route.method.name() == method).unwrap()
    }

    #[test]
    fn a_route_is_read_from_its_annotation() {
        let route = route_of("CreateHold");
        assert_eq!(route.http_method, http::Method::POST);
        assert_eq!(route.path, "/v1/concerts/{concert_id}/holds");
        assert!(route.takes_body);
        assert_eq!(route.policy.path, "/boxoffice.booking.v1.HoldService/CreateHold");
        let open: Vec<String> = route
            .input
            .fields()
            .filter(|field| route.is_open(field))
            .map(|field| field.json_name().into())
            .collect();
        assert_eq!(open, ["seatIds", "bestAvailable"]);
        assert!(!route.input.fields().any(|field| route.is_query_field(&field)));
    }

    #[test]
    fn what_is_not_in_the_path_of_a_get_is_a_query_parameter() {
        let route = route_of("ListBookings");
        let query: Vec<String> = route
            .input
            .fields()
            .filter(|field| route.is_query_field(field))
            .map(|field| field.json_name().into())
            .collect();
        assert_eq!(query, ["concertId", "pageSize", "pageToken"]);
    }

    #[test]
    fn every_method_that_is_not_internal_has_a_route_and_no_other() {
        let mut public: Vec<&str> = policy::METHODS
            .iter()
            .filter(|method| method.access != Access::Internal)
            .map(|method| method.path)
            .collect();
        let routes = routes().unwrap();
        let mut routed: Vec<&str> = routes.iter().map(|route| route.policy.path).collect();
        public.sort_unstable();
        routed.sort_unstable();
        assert_eq!(routed, public);
    }

    #[test]
    fn paths_that_the_router_has_no_match_for_are_refused() {
        for path in ["/v1/{name=concerts/*}", "/v1/concerts/{id}:publish", "/v1/*"] {
            assert!(parameter_names(path).is_err(), "{path}");
        }
        assert_eq!(parameter_names("/v1/a/{x}/b/{y}").unwrap(), ["x", "y"]);
    }
}

//! Which web pages may call: those from the origins that the operator lists.

use std::{str::FromStr, time::Duration};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{
        ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, AUTHORIZATION, CONTENT_TYPE, DATE, ETAG,
        IF_MATCH, IF_NONE_MATCH, LOCATION, RETRY_AFTER,
    },
};
use tower_http::cors::{AllowOrigin, CorsLayer};

/// How long a browser may remember what it was told.
const MAX_AGE: Duration = Duration::from_secs(600);

/// Origins whose pages may call, such as `https://tickets.example`. `http://localhost:*` stands for every port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedOrigins(Vec<Origin>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    Exact(String),
    /// A scheme and a host, up to and with the colon before the port.
    AnyPort(String),
}

/// Why a text is no list of origins.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no origin such as https://tickets.example or http://localhost:*")]
pub struct InvalidOrigin(String);

impl FromStr for AllowedOrigins {
    type Err = InvalidOrigin;

    fn from_str(text: &str) -> Result<Self, InvalidOrigin> {
        let origins = text.split(',').map(str::trim).filter(|origin| !origin.is_empty());
        origins.map(parse).collect::<Result<_, _>>().map(Self)
    }
}

fn parse(text: &str) -> Result<Origin, InvalidOrigin> {
    let invalid = || InvalidOrigin(text.to_owned());
    let authority =
        text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).ok_or_else(invalid)?;
    let is_plain = |part: &str| !part.is_empty() && !part.contains(['/', '*', '@', '?', '#', ' ']);
    if let Some(host) = authority.strip_suffix(":*") {
        return is_plain(host)
            .then(|| Origin::AnyPort(text.trim_end_matches('*').to_owned()))
            .ok_or_else(invalid);
    }
    is_plain(authority).then(|| Origin::Exact(text.to_owned())).ok_or_else(invalid)
}

impl AllowedOrigins {
    fn contains(&self, origin: &HeaderValue) -> bool {
        let Ok(origin) = origin.to_str() else { return false };
        self.0.iter().any(|allowed| match allowed {
            Origin::Exact(allowed) => allowed == origin,
            Origin::AnyPort(prefix) => origin.strip_prefix(prefix.as_str()).is_some_and(is_port),
        })
    }
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Takes back what the layer says to pages that may not call: they are told nothing.
pub(crate) fn hide_from_strangers(headers: &mut HeaderMap) {
    if headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) {
        return;
    }
    for header in [
        ACCESS_CONTROL_ALLOW_HEADERS,
        ACCESS_CONTROL_ALLOW_METHODS,
        ACCESS_CONTROL_EXPOSE_HEADERS,
        ACCESS_CONTROL_MAX_AGE,
    ] {
        headers.remove(header);
    }
}

/// Answers browsers that ask whether a page may call.
pub fn layer(origins: AllowedOrigins) -> CorsLayer {
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(move |origin, _| origins.contains(origin)))
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers([
            AUTHORIZATION,
            CONTENT_TYPE,
            HeaderName::from_static("idempotency-key"),
            IF_MATCH,
            IF_NONE_MATCH,
            HeaderName::from_static("last-event-id"),
            HeaderName::from_static("prefer"),
            HeaderName::from_static("traceparent"),
        ])
        .expose_headers([
            DATE,
            ETAG,
            LOCATION,
            RETRY_AFTER,
            HeaderName::from_static("ratelimit"),
            HeaderName::from_static("ratelimit-policy"),
            HeaderName::from_static("idempotency-replayed"),
            HeaderName::from_static("x-request-id"),
        ])
        .max_age(MAX_AGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(list: &str, origin: &str) -> bool {
        list.parse::<AllowedOrigins>().unwrap().contains(&HeaderValue::from_str(origin).unwrap())
    }

    #[test]
    fn only_listed_origins_are_allowed() {
        let list = "https://tickets.example, http://localhost:*,http://127.0.0.1:8080";
        for origin in ["https://tickets.example", "http://localhost:5173", "http://127.0.0.1:8080"] {
            assert!(allows(list, origin), "{origin}");
        }
        for origin in [
            "http://tickets.example",
            "https://tickets.example.evil.example",
            "https://tickets.example:444",
            "http://localhost",
            "http://localhost:80.evil.example",
            "http://localhost:",
            "http://127.0.0.1:8081",
            "null",
        ] {
            assert!(!allows(list, origin), "{origin}");
        }
        assert!(!allows("", "https://tickets.example"));
    }

    #[test]
    fn what_is_no_origin_is_refused() {
        for text in [
            "*",
            "tickets.example",
            "https://",
            "https://tickets.example/",
            "https://*.example",
            "http://:*",
            "ftp://x",
        ] {
            assert!(text.parse::<AllowedOrigins>().is_err(), "{text}");
        }
    }
}

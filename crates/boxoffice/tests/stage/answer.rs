//! A close look at answers of REST.

use boxoffice::api::Reply;
use boxoffice_proto::policy::{Reason, ReasonInfo};
use reqwest::{RequestBuilder, header::CONTENT_TYPE};
use serde_json::Value;

/// How a call is to be refused.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    status: u16,
    info: &'static ReasonInfo,
    /// The fields at fault, in the client's own words.
    fields: Vec<String>,
}

/// A refusal that names these fields; with none, no field is at fault.
pub(crate) fn refusal(status: u16, reason: impl Reason, fields: &[&str]) -> Refusal {
    Refusal { status, info: reason.info(), fields: fields.iter().map(ToString::to_string).collect() }
}

/// Sends a call made by hand. A body that is not JSON is read as null.
pub(crate) async fn read(call: RequestBuilder) -> Reply {
    let response = call.send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let body = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or_default();
    Reply { status, headers, body }
}

/// Asserts that an answer is this refusal, and a whole one: problem+json with one reason, a text, and the trace id.
#[track_caller]
pub(crate) fn assert_refused(what: &str, reply: &Reply, expected: &Refusal) {
    let Reply { status, headers, body } = reply;
    let Refusal { status: expected_status, info, fields } = expected;
    let found = (status.as_u16(), reply.reason());
    assert_eq!(found, (*expected_status, info.reason), "{what}: {body}");
    assert_eq!(headers[CONTENT_TYPE], "application/problem+json", "{what}");
    assert_eq!(headers["cache-control"], "no-store", "{what}");
    assert_eq!(body["domain"], info.domain, "{what}");
    assert_eq!(body["status"], *expected_status, "{what}");
    let service = info.domain.trim_start_matches("boxoffice.");
    assert_eq!(body["type"], format!("urn:boxoffice:error:{service}:{}", info.reason), "{what}");
    for text in ["title", "detail"] {
        assert!(body[text].as_str().is_some_and(|text| !text.is_empty()), "{what}: no {text} in {body}");
    }
    assert!(body["metadata"].is_object(), "{what}: {body}");
    let trace_id = body["traceId"].as_str().unwrap_or_default();
    let is_trace_id = trace_id.len() == 32 && trace_id.bytes().all(|byte| byte.is_ascii_hexdigit());
    assert!(is_trace_id, "{what}: no traceId in {body}");

    let errors = body["errors"].as_array().unwrap_or_else(|| panic!("{what}: no errors in {body}"));
    let named: Vec<&str> = errors.iter().map(|error| error["field"].as_str().unwrap_or_default()).collect();
    assert_eq!(named, *fields, "{what}: {body}");
    if errors.is_empty() {
        assert!(
            !names_a_field_of_the_contracts(body["detail"].as_str().unwrap_or_default()),
            "{what}: {body}"
        );
    }
    for error in errors {
        let is_said = |part: &str| error[part].as_str().is_some_and(|text| !text.is_empty());
        assert!(is_said("reason") && is_said("description"), "{what}: {body}");
        let description = error["description"].as_str().unwrap_or_default();
        assert!(!names_a_field_of_the_contracts(description), "{what}: {description}");
    }
    if *expected_status == 401 {
        assert!(headers["www-authenticate"].to_str().unwrap().starts_with("Bearer"), "{what}");
    }
    if matches!(*expected_status, 429 | 503) {
        let seconds: u64 = headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!(seconds >= 1, "{what}: Retry-After is {seconds}");
    }
}

/// Whether a text has a name as contracts spell it, such as `best_available`, which REST spells in another way.
fn names_a_field_of_the_contracts(text: &str) -> bool {
    let mut words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    // Ids have an underscore as well, and digits.
    words.any(|word| {
        word.contains('_') && word.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_')
    })
}

//! Errors as REST shows them: `application/problem+json` (RFC 9457), from a gRPC status with its details or from the
//! gateway's own refusals.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use axum::response::{IntoResponse, Response};
use boxoffice_proto::{
    common::v1::ErrorReason,
    policy::{self, Reason, ReasonInfo},
};
use http::{
    HeaderValue, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
};
use mesh::Failure;
use serde::Serialize;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::{descriptors::REQUEST_ID, transcode};

/// The media type of a problem.
pub const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

/// What a client gets instead of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem(Box<Content>);

/// Boxed: a problem is rare, and every `Result` would be as large.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    #[serde(rename = "type")]
    kind: String,
    title: String,
    status: u16,
    detail: Cow<'static, str>,
    reason: Cow<'static, str>,
    domain: Cow<'static, str>,
    metadata: BTreeMap<String, String>,
    errors: Vec<FieldError>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    #[serde(skip)]
    retry_after: Option<Duration>,
}

/// A part of the request that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// Where it is, as the client wrote it: `prices[0].price.minorUnits`, a query parameter, or a header.
    pub field: String,
    /// What is wrong, for programs.
    pub reason: Cow<'static, str>,
    /// What is wrong, for developers: a phrase that follows the field's name.
    pub description: Cow<'static, str>,
}

impl Problem {
    /// A refusal of the gateway itself.
    pub fn new(reason: impl Reason, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::of(reason.info(), detail.into())
    }

    fn of(info: &'static ReasonInfo, detail: Cow<'static, str>) -> Self {
        Self::build(info.http_status(), info.domain.into(), info.reason.into(), detail)
    }

    fn build(
        status: u16,
        domain: Cow<'static, str>,
        reason: Cow<'static, str>,
        detail: Cow<'static, str>,
    ) -> Self {
        Self(Box::new(Content {
            kind: format!("urn:boxoffice:error:{}:{reason}", domain.trim_start_matches("boxoffice.")),
            title: title(&reason),
            status,
            detail,
            reason,
            domain,
            metadata: BTreeMap::new(),
            errors: Vec::new(),
            trace_id: None,
            retry_after: None,
        }))
    }

    /// Parts of the request that are wrong; at least one.
    pub fn fields(errors: Vec<FieldError>) -> Self {
        let detail = match errors.as_slice() {
            [only] => format!("{} {}", only.field, only.description),
            several => format!("{} fields are wrong", several.len()),
        };
        let mut problem = Self::new(ErrorReason::FieldInvalid, detail);
        problem.0.errors = errors;
        problem
    }

    /// What a service answered.
    pub fn from_status(status: &Status) -> Self {
        let details = status.get_error_details();
        let mut problem = match details.error_info() {
            Some(error) => Self::from_reason(status, &error.domain, &error.reason),
            None => Self::of(reason_of(status.code()).info(), REDACTED),
        };
        if let Some(error) = details.error_info().filter(|_| problem.is_told_in_full()) {
            problem.0.metadata = error.metadata.clone().into_iter().collect();
            let violations = details.bad_request().map(|bad| bad.field_violations.as_slice());
            problem.add_violations(violations.unwrap_or_default());
        }
        problem.0.trace_id =
            details.request_info().map(|info| info.request_id.clone()).filter(|id| !id.is_empty());
        problem.0.retry_after = details.retry_info().and_then(|info| info.retry_delay);
        problem
    }

    fn from_reason(status: &Status, domain: &str, reason: &str) -> Self {
        let mut problem = match policy::reason(domain, reason) {
            Some(info) => Self::of(info, REDACTED),
            // A service newer than this gateway may know more reasons.
            None => Self::build(
                policy::http_status(status.code() as i32),
                domain.to_owned().into(),
                reason.to_owned().into(),
                REDACTED,
            ),
        };
        if problem.is_told_in_full() {
            problem.0.detail = status.message().to_owned().into();
        }
        problem
    }

    /// Whether the service's words may be shown. A bug's words are for the log.
    fn is_told_in_full(&self) -> bool {
        self.0.status != StatusCode::INTERNAL_SERVER_ERROR.as_u16()
    }

    fn add_violations(&mut self, violations: &[tonic_types::FieldViolation]) {
        for violation in violations {
            let field = client_path(&violation.field);
            // The text begins with the field's name as the message has it.
            let rest = self.0.detail.strip_prefix(violation.field.as_str());
            if let Some(rest) = rest.filter(|rest| rest.starts_with(' ')) {
                self.0.detail = format!("{field}{rest}").into();
            }
            self.0.errors.push(FieldError {
                field,
                reason: violation.reason.clone().into(),
                description: violation.description.clone().into(),
            });
        }
    }

    /// Adds a detail that programs can read.
    pub fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.0.metadata.insert(key.to_owned(), value.to_string());
        self
    }

    /// Says when trying again may help.
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.0.retry_after = Some(delay);
        self
    }

    /// Says which trace the call belongs to, where the service has not said it.
    pub fn in_trace(mut self, trace_id: impl ToString) -> Self {
        self.0.trace_id.get_or_insert_with(|| trace_id.to_string());
        self
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The reason, such as `SEAT_TAKEN`.
    pub fn reason(&self) -> &str {
        &self.0.reason
    }

    /// The body.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("texts and numbers can be written as JSON")
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Self::from_status(&failure.into())
    }
}

/// What stands in place of words that are not for clients.
const REDACTED: Cow<'static, str> = Cow::Borrowed("The call failed. Quote the trace id to ask why.");

/// The reason for a status that names none: something between the gateway and the service made it.
fn reason_of(code: Code) -> ErrorReason {
    match code {
        Code::Cancelled => ErrorReason::TransportCancelled,
        Code::DeadlineExceeded => ErrorReason::DeadlineExceeded,
        Code::InvalidArgument | Code::OutOfRange => ErrorReason::TransportMessageRefused,
        Code::NotFound | Code::Unimplemented => ErrorReason::TransportUnimplemented,
        Code::PermissionDenied => ErrorReason::AccessDenied,
        Code::ResourceExhausted => ErrorReason::Overloaded,
        Code::Unauthenticated => ErrorReason::TokenInvalid,
        Code::Unavailable => ErrorReason::TransportBroken,
        Code::Ok
        | Code::Unknown
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Internal
        | Code::DataLoss => ErrorReason::Internal,
    }
}

/// `SEAT_TAKEN` as people read it: `Seat taken`.
fn title(reason: &str) -> String {
    let mut words = reason.to_lowercase().replace('_', " ");
    if let Some(first) = words.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    words
}

/// The path of a field in a message (`prices[0].price.minor_units`), as the client wrote it.
fn client_path(field: &str) -> String {
    if field == REQUEST_ID {
        return transcode::IDEMPOTENCY_KEY.to_owned();
    }
    let mut path = String::with_capacity(field.len());
    let mut is_in_brackets = false;
    let mut is_after_underscore = false;
    for letter in field.chars() {
        match letter {
            '[' => is_in_brackets = true,
            ']' => is_in_brackets = false,
            _ => {}
        }
        if letter == '_' && !is_in_brackets {
            is_after_underscore = true;
            continue;
        }
        path.push(if is_after_underscore { letter.to_ascii_uppercase() } else { letter });
        is_after_underscore = false;
    }
    path
}

/// A time to wait as HTTP writes it: whole seconds, never too few, never none.
pub fn whole_seconds(delay: Duration) -> u64 {
    let is_part_of_a_second_left = delay.subsec_nanos() > 0;
    (delay.as_secs() + u64::from(is_part_of_a_second_left)).max(1)
}

/// What a response tells the access log about why the call was refused.
#[derive(Debug, Clone)]
pub(crate) struct Refused(pub(crate) Cow<'static, str>);

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut response = Response::new(self.to_json().into());
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, PROBLEM_JSON);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(delay) = self.0.retry_after {
            headers.insert(RETRY_AFTER, whole_seconds(delay).into());
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(Refused(self.0.reason));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use boxoffice_proto::booking::v1::ErrorReason as BookingReason;
    use serde_json::{Value, json};
    use std::collections::HashMap;
    use tonic_types::{ErrorDetails, FieldViolation};

    fn status(
        code: Code,
        message: &str,
        reason: impl Reason,
    ) -> (ErrorDetails, impl Fn(ErrorDetails) -> Problem) {
        let mut details = ErrorDetails::new();
        let info = reason.info();
        details.set_error_info(info.reason, info.domain, HashMap::new());
        let message = message.to_owned();
        (details, move |details| {
            Problem::from_status(&Status::with_error_details(code, message.clone(), details))
        })
    }

    fn body(problem: &Problem) -> Value {
        serde_json::from_str(&problem.to_json()).unwrap()
    }

    #[test]
    fn a_status_is_shown_with_all_its_details() {
        let mut details = ErrorDetails::new();
        let metadata = HashMap::from([("remaining".to_owned(), "1".to_owned())]);
        details.set_error_info("SEAT_LIMIT_EXCEEDED", "boxoffice.booking", metadata);
        details.set_request_info("4bf92f3577b34da6a3ce929d0e0e4736", "");
        let status = Status::with_error_details(Code::FailedPrecondition, "at most 4 seats a fan", details);
        let problem = Problem::from_status(&status);
        assert_eq!(
            body(&problem),
            json!({
                "type": "urn:boxoffice:error:booking:SEAT_LIMIT_EXCEEDED",
                "title": "Seat limit exceeded",
                "status": 409,
                "detail": "at most 4 seats a fan",
                "reason": "SEAT_LIMIT_EXCEEDED",
                "domain": "boxoffice.booking",
                "metadata": {"remaining": "1"},
                "errors": [],
                "traceId": "4bf92f3577b34da6a3ce929d0e0e4736",
            })
        );
        let response = problem.into_response();
        assert_eq!(response.status(), StatusCode::CONFLICT);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        assert!(!response.headers().contains_key(RETRY_AFTER));
    }

    #[test]
    fn fields_are_named_as_the_client_wrote_them() {
        let (mut details, problem) = status(
            Code::InvalidArgument,
            "prices[0].price.minor_units must be at least 0",
            ErrorReason::FieldInvalid,
        );
        details.set_bad_request(vec![FieldViolation {
            field: "prices[0].price.minor_units".into(),
            description: "must be at least 0".into(),
            reason: "OUT_OF_RANGE".into(),
            localized_message: None,
        }]);
        let body = body(&problem(details));
        assert_eq!(
            body["errors"],
            json!([{
                "field": "prices[0].price.minorUnits",
                "reason": "OUT_OF_RANGE",
                "description": "must be at least 0",
            }])
        );
        assert_eq!(body["detail"], "prices[0].price.minorUnits must be at least 0");
    }

    #[test]
    fn paths_are_rewritten_outside_of_brackets_only() {
        let paths = [
            ("display_name", "displayName"),
            ("sections[12].seated.accessible_seat_ids[3]", "sections[12].seated.accessibleSeatIds[3]"),
            ("labels[\"a_b\"].best_available", "labels[\"a_b\"].bestAvailable"),
            ("request_id", "Idempotency-Key"),
            ("", ""),
        ];
        for (field, expected) in paths {
            assert_eq!(client_path(field), expected);
        }
    }

    #[test]
    fn the_reason_decides_the_http_status() {
        let statuses = [
            (ErrorReason::IdempotencyKeyReused, Code::InvalidArgument, 422),
            (ErrorReason::EtagMismatch, Code::FailedPrecondition, 412),
            (ErrorReason::TransportUnimplemented, Code::Unimplemented, 404),
            (ErrorReason::RequestInProgress, Code::Aborted, 409),
            (ErrorReason::RateLimited, Code::ResourceExhausted, 429),
        ];
        for (reason, code, expected) in statuses {
            let (details, problem) = status(code, "no", reason);
            assert_eq!(problem(details).status().as_u16(), expected, "{reason:?}");
        }
    }

    #[test]
    fn a_time_to_wait_is_rounded_up_to_whole_seconds() {
        let waits = [(0, 1), (1, 1), (999, 1), (1000, 1), (1001, 2), (2500, 3)];
        for (milliseconds, expected) in waits {
            let (mut details, problem) = status(Code::Unavailable, "down", BookingReason::PaymentUnavailable);
            details.set_retry_info(Some(Duration::from_millis(milliseconds)));
            let response = problem(details).into_response();
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(response.headers()[RETRY_AFTER], expected.to_string(), "{milliseconds} ms");
        }
    }

    #[test]
    fn a_missing_token_asks_for_one() {
        let (details, problem) = status(Code::Unauthenticated, "no token", ErrorReason::TokenMissing);
        let response = problem(details).into_response();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(response.headers()[WWW_AUTHENTICATE], "Bearer");
    }

    #[test]
    fn the_words_of_a_bug_are_not_shown() {
        const SECRET: &str = "SELECT password FROM account";
        let mut details = ErrorDetails::new();
        let metadata = HashMap::from([("query".to_owned(), SECRET.to_owned())]);
        details.set_error_info("INTERNAL", "boxoffice.common", metadata);
        let bugs = [
            Status::with_error_details(Code::Internal, SECRET, details),
            Status::internal(SECRET),
            Status::unknown(SECRET),
            Status::data_loss(SECRET),
            Status::unavailable(SECRET),
            Status::with_details(Code::Internal, SECRET, b"not a message".to_vec().into()),
        ];
        for bug in bugs {
            let json = Problem::from_status(&bug).to_json();
            assert!(!json.contains("SELECT"), "{json}");
        }
    }

    #[test]
    fn a_status_without_a_reason_gets_one_by_its_code() {
        let garbage = Status::with_details(Code::Unknown, "", vec![0xff; 9].into());
        let statuses = [
            (garbage, 500, "INTERNAL"),
            (Status::unknown("h2 protocol error"), 500, "INTERNAL"),
            (Status::unavailable("tcp connect error"), 503, "TRANSPORT_BROKEN"),
            (Status::deadline_exceeded(""), 504, "DEADLINE_EXCEEDED"),
            (Status::unimplemented(""), 404, "TRANSPORT_UNIMPLEMENTED"),
            (Status::resource_exhausted(""), 429, "OVERLOADED"),
        ];
        for (status, http, reason) in statuses {
            let problem = Problem::from_status(&status);
            assert_eq!((problem.status().as_u16(), problem.reason()), (http, reason), "{status:?}");
        }
    }

    #[test]
    fn a_reason_from_a_newer_service_is_shown_by_its_code() {
        let mut details = ErrorDetails::new();
        details.set_error_info("MOON_IS_FULL", "boxoffice.moon", HashMap::new());
        let status = Status::with_error_details(Code::FailedPrecondition, "the moon is full", details);
        let body = body(&Problem::from_status(&status));
        assert_eq!(body["status"], 409);
        assert_eq!(body["type"], "urn:boxoffice:error:moon:MOON_IS_FULL");
        assert_eq!(body["detail"], "the moon is full");
    }

    #[test]
    fn the_service_names_the_trace_if_it_can() {
        let own = Problem::new(ErrorReason::RouteNotFound, "no such route");
        assert_eq!(body(&own).get("traceId"), None);
        assert_eq!(body(&own.clone().in_trace("a"))["traceId"], "a");
        assert_eq!(body(&own.in_trace("a").in_trace("b"))["traceId"], "a");
    }
}

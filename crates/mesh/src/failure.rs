//! Failures: what a service answers when it can't do what it was asked. A failure has a reason from the contracts, a
//! text for developers, and a cause that is logged once and never sent.

use std::{
    collections::{BTreeMap, HashMap},
    error::Error,
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use boxoffice_proto::{
    common::v1::ErrorReason,
    policy::{self, Reason, ReasonInfo},
};
use prost::Message;
use tonic::{Code, Status};
use tonic_types::pb;

use crate::{context::Context, database};

type Cause = Box<dyn Error + Send + Sync>;

/// How long the log does not say again that the same is unavailable.
const SAME_NEWS: Duration = Duration::from_secs(10);

/// What a service answers when it can't do what it was asked.
#[derive(Debug)]
pub struct Failure(Box<Details>);

/// Boxed: a failure is rare, and every `Result` would be as large.
#[derive(Debug)]
struct Details {
    info: &'static ReasonInfo,
    message: String,
    metadata: HashMap<String, String>,
    violations: Vec<Violation>,
    retry_after: Option<Duration>,
    cause: Option<Cause>,
}

/// A field of the request that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The path of the field in the message, such as `prices[0].price.minor_units`.
    pub field: String,
    /// What is wrong, for programs: `REQUIRED`, `OUT_OF_RANGE`, …
    pub reason: &'static str,
    /// What is wrong, for developers.
    pub description: String,
}

impl Failure {
    /// A failure with a reason of the contracts and a text for developers.
    pub fn new(reason: impl Reason, message: impl Into<String>) -> Self {
        Self(Box::new(Details {
            info: reason.info(),
            message: message.into(),
            metadata: HashMap::new(),
            violations: Vec::new(),
            retry_after: None,
            cause: None,
        }))
    }

    /// A bug, or something that should never happen. The cause is logged, not sent.
    pub fn internal(cause: impl Into<Cause>) -> Self {
        Self::new(ErrorReason::Internal, "something went wrong on our side").caused_by(cause)
    }

    /// Fields of the request that are wrong.
    pub fn fields(violations: Vec<Violation>) -> Self {
        let message = match violations.as_slice() {
            [only] => format!("{} {}", only.field, only.description),
            several => format!("{} fields are wrong", several.len()),
        };
        let mut failure = Self::new(ErrorReason::FieldInvalid, message);
        failure.0.violations = violations;
        failure
    }

    /// One field of the request that is wrong, with a reason of its own.
    pub fn field(reason: impl Reason, field: impl Into<String>, description: impl Into<String>) -> Self {
        let (field, description) = (field.into(), description.into());
        let message = format!("{field} {description}");
        let violation = Violation { field, reason: reason.info().reason, description };
        let mut failure = Self::new(reason, message);
        failure.0.violations.push(violation);
        failure
    }

    /// Adds a detail that programs can read.
    pub fn with(mut self, key: &str, value: impl fmt::Display) -> Self {
        self.0.metadata.insert(key.to_owned(), value.to_string());
        self
    }

    /// Says when trying again may help.
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.0.retry_after = Some(delay);
        self
    }

    /// Keeps the cause, for the log.
    pub fn caused_by(mut self, cause: impl Into<Cause>) -> Self {
        self.0.cause = Some(cause.into());
        self
    }

    /// The same failure for someone else who waited for the same thing; the cause stays with the first.
    pub fn copy_without_cause(&self) -> Self {
        Self(Box::new(Details {
            info: self.0.info,
            message: self.0.message.clone(),
            metadata: self.0.metadata.clone(),
            violations: self.0.violations.clone(),
            retry_after: self.0.retry_after,
            cause: None,
        }))
    }

    /// What the contract says about the reason.
    pub fn info(&self) -> &'static ReasonInfo {
        self.0.info
    }

    /// Whether this is the failure's reason.
    pub fn is(&self, reason: impl Reason) -> bool {
        std::ptr::eq(self.0.info, reason.info())
    }

    fn log(&self) {
        let reason = self.0.info.reason;
        let cause = self.0.cause.as_deref().map(|cause| chain(cause));
        match Code::from_i32(self.0.info.code) {
            Code::Internal | Code::Unknown | Code::DataLoss => {
                tracing::error!(error.reason = reason, error.cause = cause, "{}", self.0.message);
            }
            // Each call that an open breaker refuses says the same: the calls that opened it were logged.
            Code::Unavailable if !self.is(ErrorReason::TransportBreakerOpen) && self.is_news() => {
                tracing::warn!(error.reason = reason, error.cause = cause, "{}", self.0.message);
            }
            _ => {
                tracing::debug!(error.reason = reason, error.cause = cause, "{}", self.0.message)
            }
        }
    }

    /// Whether the log has not said the same for a while. What is away is away for every call, and their number is in the
    /// metrics.
    fn is_news(&self) -> bool {
        static TOLD: Mutex<BTreeMap<String, Instant>> = Mutex::new(BTreeMap::new());
        let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|_, time| time.elapsed() < SAME_NEWS);
        let is_news = !told.contains_key(&self.to_string());
        if is_news {
            told.insert(self.to_string(), Instant::now());
        }
        is_news
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.0.info.reason, self.0.message)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.cause.as_deref().map(|cause| cause as &(dyn Error + 'static))
    }
}

/// A failure becomes a status once, at the adapter; that is where it is logged.
impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        failure.log();
        let mut failure = *failure.0;
        failure.fit_into_headers();
        let mut details = vec![any(
            "google.rpc.ErrorInfo",
            &pb::ErrorInfo {
                reason: failure.info.reason.to_owned(),
                domain: failure.info.domain.to_owned(),
                metadata: failure.metadata,
            },
        )];
        if !failure.violations.is_empty() {
            let field_violations = failure
                .violations
                .into_iter()
                .map(|violation| pb::bad_request::FieldViolation {
                    field: violation.field,
                    description: violation.description,
                    reason: violation.reason.to_owned(),
                    ..Default::default()
                })
                .collect();
            details.push(any("google.rpc.BadRequest", &pb::BadRequest { field_violations }));
        }
        if let Some(delay) = failure.retry_after {
            let retry_delay = prost_types::Duration::try_from(delay).ok();
            details.push(any("google.rpc.RetryInfo", &pb::RetryInfo { retry_delay }));
        }
        let request_id = Context::current().trace.id().to_string();
        details.push(any("google.rpc.RequestInfo", &pb::RequestInfo { request_id, ..Default::default() }));
        let status = pb::Status { code: failure.info.code, message: failure.message.clone(), details };
        Status::with_details(
            Code::from_i32(failure.info.code),
            failure.message,
            status.encode_to_vec().into(),
        )
    }
}

/// Violations that are told; whoever mends these learns of the next.
const VIOLATIONS_TOLD: usize = 16;
/// Bytes of a text that are told. gRPC sends a failure in headers, and peers drop the connection over headers of more than
/// 16 KiB: a client must not be able to make us send such.
const TEXT_TOLD: usize = 160;
const MESSAGE_TOLD: usize = 300;
const METADATA_TOLD: usize = 512;

impl Details {
    fn fit_into_headers(&mut self) {
        shorten(&mut self.message, MESSAGE_TOLD);
        self.metadata.values_mut().for_each(|value| shorten(value, METADATA_TOLD));
        self.violations.truncate(VIOLATIONS_TOLD);
        for violation in &mut self.violations {
            shorten(&mut violation.field, TEXT_TOLD);
            shorten(&mut violation.description, TEXT_TOLD);
        }
    }
}

/// Cuts a text down to so many bytes, dots included.
fn shorten(text: &mut String, limit: usize) {
    if text.len() > limit {
        text.truncate(text.floor_char_boundary(limit - 3));
        text.push_str("...");
    }
}

fn any(name: &str, message: &impl Message) -> prost_types::Any {
    prost_types::Any { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec() }
}

/// An error with all its causes, on one line. What one says already, its cause does not say again.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for error in std::iter::successors(Some(error), |&error| error.source()) {
        let told = error.downcast_ref().map_or_else(|| database::told(error), told);
        if text.is_empty() {
            text = told;
        } else if !text.ends_with(&told) {
            text.push_str(": ");
            text.push_str(&told);
        }
    }
    text
}

/// What a neighbour answered, in one line: its reason, or else the code, and its text.
fn told(status: &Status) -> String {
    let reason = error_info(status).map_or_else(|| format!("{:?}", status.code()), |info| info.reason);
    format!("{reason}: {}", status.message())
}

/// What a neighbour answered when it did not do what it was asked, as far as its caller must tell it apart.
#[derive(Debug, Clone)]
pub enum Refusal {
    /// It refused, for a reason of the contracts: nothing happened.
    Reason {
        /// The reason.
        info: &'static ReasonInfo,
        /// Its details.
        metadata: HashMap<String, String>,
    },
    /// The call was surely not sent: nothing happened.
    NotSent,
    /// The call may have been sent: whether something happened is unknown.
    Unknown,
}

impl Refusal {
    /// Reads what a status means.
    pub fn of(status: &Status) -> Self {
        let Some(error_info) = error_info(status) else { return Self::Unknown };
        let Some(info) = policy::reason(&error_info.domain, &error_info.reason) else { return Self::Unknown };
        let is = |reason: ErrorReason| std::ptr::eq(info, reason.info());
        if is(ErrorReason::TransportConnectFailed)
            || is(ErrorReason::TransportBreakerOpen)
            || is(ErrorReason::TransportBusy)
        {
            return Self::NotSent;
        }
        match Code::from_i32(info.code) {
            Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Internal
            | Code::Unknown
            | Code::Cancelled
            | Code::Aborted
            | Code::ResourceExhausted
            | Code::DataLoss => Self::Unknown,
            _ => Self::Reason { info, metadata: error_info.metadata },
        }
    }

    /// Whether the neighbour refused for this reason.
    pub fn is(&self, reason: impl Reason) -> bool {
        matches!(self, Self::Reason { info, .. } if std::ptr::eq(*info, reason.info()))
    }
}

/// The `ErrorInfo` of a status, if it has one.
pub fn error_info(status: &Status) -> Option<pb::ErrorInfo> {
    let details = pb::Status::decode(status.details()).ok()?.details;
    let info = details.iter().find(|detail| detail.type_url.ends_with("/google.rpc.ErrorInfo"))?;
    pb::ErrorInfo::decode(info.value.as_slice()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use boxoffice_proto::booking::v1::ErrorReason as BookingReason;

    #[test]
    fn a_failure_survives_the_wire() {
        let status = Status::from(
            Failure::new(BookingReason::SeatTaken, "two seats are taken").with("seat_ids", "A-1-1,A-1-2"),
        );
        assert_eq!(status.code(), Code::FailedPrecondition);
        let refusal = Refusal::of(&status);
        assert!(refusal.is(BookingReason::SeatTaken));
        let Refusal::Reason { metadata, .. } = refusal else { panic!("{refusal:?}") };
        assert_eq!(metadata["seat_ids"], "A-1-1,A-1-2");
    }

    #[test]
    fn a_cause_is_never_sent() {
        let status = Status::from(Failure::internal("SELECT password FROM account"));
        let wire = format!("{status:?}{}", String::from_utf8_lossy(status.details()));
        assert!(!wire.contains("password"), "{wire}");
    }

    #[test]
    fn what_is_away_is_told_once_in_a_while() {
        let away = |what: &str| Failure::new(ErrorReason::TransportConnectFailed, format!("{what} is away"));
        assert!(away("tea").is_news() && away("milk").is_news());
        assert!(!away("tea").is_news() && !away("milk").is_news());
    }

    #[test]
    fn what_was_said_is_not_said_again() {
        let cause = std::io::Error::other("the disk is full");
        let error = anyhow::Error::new(cause).context("can't write: the disk is full").context("lost");
        assert_eq!(chain(error.as_ref()), "lost: can't write: the disk is full");
    }

    #[test]
    fn a_neighbours_answer_is_told_by_its_reason() {
        let status = Status::from(Failure::new(BookingReason::SeatTaken, "A-1-1 is taken"));
        let failure = Failure::internal(status);
        assert_eq!(chain(&failure), "INTERNAL: something went wrong on our side: SEAT_TAKEN: A-1-1 is taken");
        assert_eq!(chain(&Status::unavailable("tcp")), "Unavailable: tcp");
    }

    #[test]
    fn what_a_client_sends_can_not_swell_the_headers() {
        let violation =
            Violation { field: "x".repeat(9000), reason: "UNKNOWN", description: "\u{1f3ab}".repeat(9000) };
        let failure = Failure::fields(vec![violation; 500]).with("seat_ids", "y".repeat(9000));
        let headers = Status::from(failure).into_http::<tonic::body::Body>().into_parts().0.headers;
        let size: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
        assert!(size < 14 * 1024, "{size} bytes");
    }

    #[test]
    fn only_what_surely_was_not_sent_counts_as_not_sent() {
        let refusal = |reason: ErrorReason| Refusal::of(&Failure::new(reason, "").into());
        assert!(matches!(refusal(ErrorReason::TransportConnectFailed), Refusal::NotSent));
        assert!(matches!(refusal(ErrorReason::TransportBreakerOpen), Refusal::NotSent));
        assert!(matches!(refusal(ErrorReason::TransportBusy), Refusal::NotSent));
        assert!(matches!(refusal(ErrorReason::TransportBroken), Refusal::Unknown));
        assert!(matches!(refusal(ErrorReason::DeadlineExceeded), Refusal::Unknown));
        assert!(matches!(Refusal::of(&Status::unknown("h2 protocol error")), Refusal::Unknown));
    }
}

//! What the contracts say about each method and each error reason, as tables made from the options in `proto/`.

use std::time::Duration;

/// The policy of one method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method {
    /// The path in gRPC: `/package.Service/Method`.
    pub path: &'static str,
    /// Who may call it.
    pub access: Access,
    /// The longest a call may take; for a stream, its longest life.
    pub deadline: Duration,
    /// Whether it takes an idempotency key, in the field `request_id`.
    pub idempotency_key: IdempotencyKey,
    /// The number of the field `request_id`. None: it takes no key.
    pub key_field: Option<u32>,
    /// Whether a call may be sent again when its fate is unknown.
    pub repeat: Repeat,
    /// Whether the answer is a stream.
    pub streams: bool,
    /// Whether calls give way to those of other methods where there are too many.
    pub yields: bool,
}

/// Who may call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anyone.
    Public,
    /// Whoever holds a valid access token.
    User,
    /// A member of at least one organiser.
    Organizer,
    /// An administrator.
    Admin,
    /// Another service of the mesh.
    Internal,
}

/// Whether a method takes an idempotency key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdempotencyKey {
    /// It takes none.
    None,
    /// It refuses a request without one.
    Required,
    /// It treats a request without one as new.
    Optional,
}

/// Whether a call may be sent again when its fate is unknown (`idempotency_level`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// It only reads.
    NoSideEffects,
    /// Twice is the same as once.
    Idempotent,
    /// It must not be sent again.
    Unsafe,
}

/// The policy of one error reason.
#[derive(Debug, PartialEq, Eq)]
pub struct ReasonInfo {
    /// `ErrorInfo.domain`, such as `boxoffice.booking`.
    pub domain: &'static str,
    /// `ErrorInfo.reason`, such as `SEAT_TAKEN`.
    pub reason: &'static str,
    /// The gRPC status code (google.rpc.Code).
    pub code: i32,
    /// The HTTP status, where it differs from what the gRPC code maps to.
    pub http_override: Option<u16>,
}

impl ReasonInfo {
    /// The HTTP status that REST answers this reason with.
    pub fn http_status(&self) -> u16 {
        self.http_override.unwrap_or_else(|| http_status(self.code))
    }
}

/// A reason from one of the registries `boxoffice.*.v1.ErrorReason`.
pub trait Reason: Copy {
    /// What the contract says about it.
    fn info(self) -> &'static ReasonInfo;
}

/// The policy of the method with this gRPC path, if the contracts have it.
pub fn method(path: &str) -> Option<&'static Method> {
    METHODS.binary_search_by(|method| method.path.cmp(path)).ok().map(|index| &METHODS[index])
}

/// What the contract says about a reason that came over the wire.
pub fn reason(domain: &str, reason: &str) -> Option<&'static ReasonInfo> {
    REASONS.iter().find(|info| info.domain == domain && info.reason == reason)
}

/// The HTTP status that a gRPC status code (google.rpc.Code) is answered with, unless its reason says otherwise. This is
/// the only such table: the gateway and `docs/ERRORS.md` both read it.
pub fn http_status(code: i32) -> u16 {
    match code {
        0 => 200,          // OK
        1 => 499,          // CANCELLED: nobody waits for the answer any more; the number is nginx's
        3 | 11 => 400,     // INVALID_ARGUMENT, OUT_OF_RANGE
        4 => 504,          // DEADLINE_EXCEEDED
        5 => 404,          // NOT_FOUND
        6 | 9 | 10 => 409, // ALREADY_EXISTS, FAILED_PRECONDITION, ABORTED
        7 => 403,          // PERMISSION_DENIED
        8 => 429,          // RESOURCE_EXHAUSTED
        12 => 501,         // UNIMPLEMENTED
        14 => 503,         // UNAVAILABLE
        16 => 401,         // UNAUTHENTICATED
        // UNKNOWN, INTERNAL and DATA_LOSS; and a code from the future is no success either.
        _ => 500,
    }
}

include!(concat!(env!("OUT_DIR"), "/policy.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::booking::v1::ErrorReason;

    #[test]
    fn every_method_is_found_by_its_path() {
        assert!(METHODS.len() > 20);
        for entry in METHODS {
            assert_eq!(method(entry.path), Some(entry));
        }
        assert_eq!(method("/boxoffice.booking.v1.BookingService/Missing"), None);
    }

    #[test]
    fn a_reason_carries_its_domain_and_code() {
        let info = ErrorReason::SeatTaken.info();
        assert_eq!((info.domain, info.reason, info.code), ("boxoffice.booking", "SEAT_TAKEN", 9));
        assert_eq!(reason("boxoffice.booking", "SEAT_TAKEN"), Some(info));
    }

    #[test]
    fn every_grpc_code_has_its_http_status() {
        use tonic::Code;
        let expected = [
            (Code::Ok, 200),
            (Code::Cancelled, 499),
            (Code::Unknown, 500),
            (Code::InvalidArgument, 400),
            (Code::DeadlineExceeded, 504),
            (Code::NotFound, 404),
            (Code::AlreadyExists, 409),
            (Code::PermissionDenied, 403),
            (Code::ResourceExhausted, 429),
            (Code::FailedPrecondition, 409),
            (Code::Aborted, 409),
            (Code::OutOfRange, 400),
            (Code::Unimplemented, 501),
            (Code::Internal, 500),
            (Code::Unavailable, 503),
            (Code::DataLoss, 500),
            (Code::Unauthenticated, 401),
        ];
        for (code, status) in expected {
            assert_eq!(http_status(code as i32), status, "{code:?}");
        }
        assert_eq!(http_status(17), 500, "a code that gRPC does not have");
        assert_eq!(http_status(-1), 500, "a code that gRPC does not have");
    }

    #[test]
    fn a_reason_may_override_the_http_status_of_its_code() {
        use crate::common::v1::ErrorReason as Common;
        assert_eq!(ErrorReason::SeatTaken.info().http_status(), 409);
        assert_eq!(Common::EtagMismatch.info().http_status(), 412);
        assert_eq!(Common::IdempotencyKeyReused.info().http_status(), 422);
        assert_eq!(Common::TransportUnimplemented.info().http_status(), 404);
    }
}

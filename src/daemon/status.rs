//! The one place where a failure becomes a gRPC status.
//!
//! Two kinds, never mixed: what was decided without looking at the value of `wrapped` names its
//! field; what depends on it is one answer, the same bytes for every cause.

use std::time::Duration;

use claviger_proto::v1::ItemError;
use claviger_provider_api::ErrorKind;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The likely causes, the likeliest first. One text, whatever the cause was.
const UNWRAP_FAILED: &str = "the value does not unwrap with this key: it was wrapped under another one, with another algorithm or \
     label, or changed since (from Java: without an OAEPParameterSpec)";
const UNAUTHENTICATED: &str = "no configured caller matches this peer";
const BAD_TOKEN: &str = "the call's token makes it no configured caller; the daemon's log says why";
const ISSUER_AWAY: &str =
    "the keys of the token's issuer cannot be had at the moment; safe to retry";
const PERMISSION_DENIED: &str = "no such key, or no grant for this operation on it";
const UNAVAILABLE: &str = "the key cannot be reached at the moment; safe to retry";
const NOT_RECORDED: &str =
    "the daemon's audit log cannot be written, so nothing is answered; safe to retry";
const DEADLINE_EXCEEDED: &str = "the deadline passed";
const FAILED_PRECONDITION: &str =
    "an operator must act before this key can be used; the daemon's log says what is wrong";
const INTERNAL: &str = "internal error; the daemon's log has the details under this request id";

/// Why a call, or an item of a batch, was not answered with a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A field is wrong, whatever the value of `wrapped`.
    Field {
        /// Its name in the request message.
        field: &'static str,
        /// What is allowed.
        allowed: String,
    },
    /// Everything that depends on the value of `wrapped`.
    UnwrapFailed,
    /// No caller matches; expired; revoked.
    Unauthenticated,
    /// The call's token is not good, or no caller matches it.
    BadToken,
    /// The keys of the token's issuer are not known.
    IssuerAway,
    /// No such key, not yours, or all its versions disabled.
    PermissionDenied,
    /// No room, or a limit is used up.
    Exhausted {
        /// Which room or limit.
        what: Exhausted,
        /// Not before this.
        retry_after: Duration,
    },
    /// The backend cannot be reached.
    Unavailable {
        /// When it is looked at again, where calls are answered without asking it until then.
        next_look: Option<Duration>,
    },
    /// The audit log cannot be written, so nothing is answered.
    NotRecorded,
    /// The caller's deadline passed.
    DeadlineExceeded,
    /// An operator must act.
    OperatorNeeded,
    /// A bug of ours, or wrong bytes from a backend.
    Internal,
}

/// What is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exhausted {
    /// The caller's configured `rate`.
    Rate,
    /// The caller's `failed_unwraps`.
    FailedUnwraps,
    /// The tokens with wrong signatures that are looked at of one source.
    WrongSignatures,
    /// Calls in flight, of this caller or of all.
    Calls,
    /// A queue for the backend, or the backend's own limit.
    Backend,
    /// The disk of the audit log, but for what is kept for unwrap, rewrap and sign.
    AuditRoom,
}

impl Exhausted {
    fn message(self) -> &'static str {
        match self {
            Self::Rate => "this caller's rate is used up",
            Self::FailedUnwraps => {
                "this caller has had too many failed unwraps on this key; an operator was told"
            }
            Self::WrongSignatures => "too many tokens with wrong signatures came from here",
            Self::Calls => "too many calls in flight",
            Self::Backend => "the key's backend has no room for this call",
            Self::AuditRoom => {
                "the disk of the daemon's audit log is full: only unwrap, rewrap and sign are answered"
            }
        }
    }

    /// Whether the caller has used it up himself, so that another daemon is no way out: clients ask
    /// the next endpoint for everything else (google.rpc.QuotaFailure tells them).
    fn is_the_callers_limit(self) -> bool {
        match self {
            Self::Rate | Self::FailedUnwraps | Self::WrongSignatures => true,
            Self::Calls | Self::Backend | Self::AuditRoom => false,
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::FailedUnwraps => "failed_unwraps",
            Self::WrongSignatures => "wrong_signatures",
            Self::Calls => "calls_in_flight",
            Self::Backend => "backend_throttled",
            Self::AuditRoom => "audit_room",
        }
    }
}

impl Failure {
    /// The backend cannot be reached, and the next call may find it well.
    pub fn unavailable() -> Self {
        Self::Unavailable { next_look: None }
    }

    /// A failure of a provider. Its text stays in log and audit.
    pub fn of(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::UnwrapFailed => Self::UnwrapFailed,
            ErrorKind::Unavailable => Self::unavailable(),
            ErrorKind::Throttled { retry_after } => Self::Exhausted {
                what: Exhausted::Backend,
                retry_after: retry_after.unwrap_or(Duration::from_millis(100)),
            },
            ErrorKind::DeadlineExceeded => Self::DeadlineExceeded,
            ErrorKind::OperatorNeeded => Self::OperatorNeeded,
            ErrorKind::Internal => Self::Internal,
        }
    }

    /// A failure of a provider that says nothing about a value: a check that failed, a key that
    /// did not open.
    pub fn of_backend(kind: ErrorKind) -> Self {
        match Self::of(kind) {
            Self::UnwrapFailed => Self::unavailable(),
            failure => failure,
        }
    }

    /// The gRPC code.
    pub fn code(&self) -> Code {
        match self {
            Self::Field { .. } | Self::UnwrapFailed => Code::InvalidArgument,
            Self::Unauthenticated | Self::BadToken => Code::Unauthenticated,
            Self::PermissionDenied => Code::PermissionDenied,
            Self::Exhausted { .. } => Code::ResourceExhausted,
            Self::Unavailable { .. } | Self::NotRecorded | Self::IssuerAway => Code::Unavailable,
            Self::DeadlineExceeded => Code::DeadlineExceeded,
            Self::OperatorNeeded => Code::FailedPrecondition,
            Self::Internal => Code::Internal,
        }
    }

    /// A word for metrics and audit; a closed set.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Field { .. } => "field",
            Self::UnwrapFailed => "unwrap_failed",
            Self::Unauthenticated => "unauthenticated",
            Self::BadToken => "bad_token",
            Self::IssuerAway => "issuer_unavailable",
            Self::PermissionDenied => "permission_denied",
            Self::Exhausted { what, .. } => what.reason(),
            Self::Unavailable { .. } => "unavailable",
            Self::NotRecorded => "not_recorded",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::OperatorNeeded => "operator_needed",
            Self::Internal => "internal",
        }
    }

    /// The text that the caller sees.
    fn message(&self) -> String {
        match self {
            Self::Field { field, allowed } => format!("{field}: {allowed}"),
            Self::UnwrapFailed => UNWRAP_FAILED.into(),
            Self::Unauthenticated => UNAUTHENTICATED.into(),
            Self::BadToken => BAD_TOKEN.into(),
            Self::IssuerAway => ISSUER_AWAY.into(),
            Self::PermissionDenied => PERMISSION_DENIED.into(),
            Self::Exhausted { what, .. } => what.message().into(),
            Self::Unavailable { .. } => UNAVAILABLE.into(),
            Self::NotRecorded => NOT_RECORDED.into(),
            Self::DeadlineExceeded => DEADLINE_EXCEEDED.into(),
            Self::OperatorNeeded => FAILED_PRECONDITION.into(),
            Self::Internal => INTERNAL.into(),
        }
    }

    /// The failure as one item of a batch.
    pub fn into_item_error(self) -> ItemError {
        let (field, retry_after) = match &self {
            Self::Field { field, .. } => (*field, Duration::ZERO),
            Self::Exhausted { retry_after, .. } => ("", *retry_after),
            Self::Unavailable { next_look } => ("", next_look.unwrap_or_default()),
            _ => ("", Duration::ZERO),
        };
        ItemError {
            code: self.code() as i32,
            message: self.message(),
            field: field.to_owned(),
            retry_after_ms: u32::try_from(retry_after.as_millis()).unwrap_or(u32::MAX),
        }
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let (code, message) = (failure.code(), failure.message());
        match failure {
            Failure::Field { field, allowed } => field_error(field, &allowed),
            Failure::Exhausted { what, retry_after } => {
                let mut details = ErrorDetails::with_retry_info(Some(retry_after));
                if what.is_the_callers_limit() {
                    details.add_quota_failure_violation("caller", what.reason());
                }
                Self::with_error_details(code, message, details)
            }
            Failure::Unavailable { next_look: Some(next_look) } => {
                let details = ErrorDetails::with_retry_info(Some(next_look));
                Self::with_error_details(code, message, details)
            }
            _ => Self::new(code, message),
        }
    }
}

/// Puts what tonic answers by itself into the words of the contract: an oversized message and
/// unreadable protobuf are the caller's INVALID_ARGUMENT, and nothing outside of the contract's
/// codes passes. None where the status may stay as it is.
pub fn in_contract(code: Code, message: &str) -> Option<Status> {
    match code {
        Code::Internal if message == INTERNAL => None,
        Code::OutOfRange => {
            let allowed = format!("must be at most {} bytes", claviger_proto::MAX_MESSAGE_BYTES);
            Some(field_error("message", &allowed))
        }
        Code::Internal => Some(field_error(
            unreadable_field(message).unwrap_or("message"),
            "cannot be read as this method's request",
        )),
        Code::Cancelled => Some(Failure::DeadlineExceeded.into()),
        Code::Unknown | Code::Aborted | Code::AlreadyExists | Code::DataLoss => {
            Some(Failure::Internal.into())
        }
        Code::Ok
        | Code::InvalidArgument
        | Code::DeadlineExceeded
        | Code::NotFound
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Unimplemented
        | Code::Unavailable
        | Code::Unauthenticated => None,
    }
}

/// The field that prost could not decode: it says `WrapRequest.key: invalid string value…`.
fn unreadable_field(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once("Protobuf message: ")?;
    let (place, _) = rest.split_once(": ")?;
    let (_, field) = place.rsplit_once('.')?;
    let is_name = !field.is_empty() && field.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    is_name.then_some(field)
}

fn field_error(field: &str, allowed: &str) -> Status {
    Status::with_error_details(
        Code::InvalidArgument,
        format!("{field}: {allowed}"),
        ErrorDetails::with_bad_request_violation(field, allowed),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_the_callers_is_told_from_room_that_another_daemon_may_have() {
        for (what, is_the_callers) in [
            (Exhausted::Rate, true),
            (Exhausted::FailedUnwraps, true),
            (Exhausted::WrongSignatures, true),
            (Exhausted::Calls, false),
            (Exhausted::Backend, false),
            (Exhausted::AuditRoom, false),
        ] {
            let status =
                Status::from(Failure::Exhausted { what, retry_after: Duration::from_secs(1) });
            let details = status.get_error_details();
            assert!(details.retry_info().is_some());
            assert_eq!(details.quota_failure().is_some(), is_the_callers, "{what:?}");
        }
    }

    #[test]
    fn the_uniform_failure_has_no_details_and_a_field_error_names_its_field() {
        let uniform = Status::from(Failure::UnwrapFailed);
        assert_eq!(uniform.code(), Code::InvalidArgument);
        assert!(uniform.details().is_empty() && uniform.metadata().is_empty());
        let field =
            Status::from(Failure::Field { field: "label", allowed: "at most 1024 bytes".into() });
        let details = field.get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "label");
    }

    #[test]
    fn exhaustion_says_when_to_come_back() {
        let failure = Failure::Exhausted {
            what: Exhausted::FailedUnwraps,
            retry_after: Duration::from_secs(7),
        };
        assert_eq!(failure.clone().into_item_error().retry_after_ms, 7000);
        let delay = Status::from(failure).get_error_details().retry_info().unwrap().retry_delay;
        assert_eq!(delay, Some(Duration::from_secs(7)));
    }

    #[test]
    fn what_cannot_be_reached_says_when_it_is_looked_at_again_where_that_is_known() {
        let known = Failure::Unavailable { next_look: Some(Duration::from_millis(500)) };
        assert_eq!(known.clone().into_item_error().retry_after_ms, 500);
        let status = Status::from(known);
        assert_eq!(status.code(), Code::Unavailable);
        let delay = status.get_error_details().retry_info().unwrap().retry_delay;
        assert_eq!(delay, Some(Duration::from_millis(500)));
        let not_known = Status::from(Failure::unavailable());
        assert!(not_known.details().is_empty());
        assert_eq!(not_known.message(), status.message());
    }

    #[test]
    fn tonics_own_codes_become_the_contracts() {
        assert_eq!(in_contract(Code::OutOfRange, "").unwrap().code(), Code::InvalidArgument);
        assert_eq!(in_contract(Code::Internal, "x").unwrap().code(), Code::InvalidArgument);
        assert!(in_contract(Code::Internal, INTERNAL).is_none());
        let utf8 = "failed to decode Protobuf message: UnwrapRequest.key: invalid string value: x";
        let details = in_contract(Code::Internal, utf8).unwrap().get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "key");
        assert_eq!(in_contract(Code::Cancelled, "").unwrap().code(), Code::DeadlineExceeded);
    }
}

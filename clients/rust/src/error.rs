//! One error for every call, with what the daemon said about it.

use std::error::Error as _;
use std::time::Duration;

pub use tonic::Code;
use tonic::Status;
use tonic_types::StatusExt;

use claviger_proto::{REQUEST_ID, v1};

use crate::config::ConfigError;

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What kind of failure it is; the .proto file lists the codes that the daemon sends.
    pub code: Code,
    /// One sentence for people.
    pub message: String,
    /// The field of the request that is wrong, if it is one field's fault.
    pub field: Option<String>,
    /// Trying again before this has passed does not help.
    pub retry_after: Option<Duration>,
    /// What to look for in the daemon's log and audit records: the daemon's id of the call or, if
    /// it did not answer, the id that was sent. None if nothing was sent.
    pub request_id: Option<String>,
}

impl Error {
    /// An error that is found before anything is sent.
    pub(crate) fn local(code: Code, message: String) -> Self {
        Self { code, message, field: None, retry_after: None, request_id: None }
    }

    pub(crate) fn refused(field: &str, message: String) -> Self {
        Self { field: Some(field.to_owned()), ..Self::local(Code::InvalidArgument, message) }
    }

    /// The error of a call that was sent, if at all, with the request id `sent_id` and had `timeout`
    /// to end.
    pub(crate) fn of_call(failure: CallFailure, sent_id: &str, timeout: Duration) -> Self {
        match failure {
            CallFailure::Final(status) => Self::sent_by_the_daemon(&status, sent_id),
            CallFailure::All(mut endpoints) => {
                endpoints.sort_by_key(|(_, failure)| failure.rank());
                let several = endpoints.len() > 1;
                let errors: Vec<_> = endpoints
                    .iter()
                    .map(|(name, failure)| failure.error(name, several, sent_id, timeout))
                    .collect();
                let messages: Vec<_> = errors.iter().map(|error| error.message.as_str()).collect();
                let message = messages.join("; ");
                let request_id = errors.iter().find_map(|error| error.request_id.clone());
                let first = errors.into_iter().next();
                let first = first.unwrap_or_else(|| Self::local(Code::Internal, String::new()));
                Self { message, request_id, ..first }
            }
        }
    }

    /// The error of one item of a batch.
    pub(crate) fn of_item(item: v1::ItemError, request_id: Option<&String>) -> Self {
        Self {
            code: Code::from(item.code),
            message: item.message,
            field: Some(item.field).filter(|field| !field.is_empty()),
            retry_after: Some(item.retry_after_ms)
                .filter(|ms| *ms != 0)
                .map(|ms| Duration::from_millis(ms.into())),
            request_id: request_id.cloned(),
        }
    }

    fn sent_by_the_daemon(status: &Status, sent_id: &str) -> Self {
        let details = status.get_error_details();
        let violation = details.bad_request().and_then(|bad| bad.field_violations.first());
        let mut message = status.message().to_owned();
        if let Some(violation) = violation
            && !message.contains(&violation.description)
        {
            message = format!("{message}: {}", violation.description);
        }
        Self {
            code: status.code(),
            message,
            field: violation.map(|violation| violation.field.clone()),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
            request_id: daemon_id(status.metadata()).or_else(|| Some(sent_id.to_owned())),
        }
    }
}

/// The daemon's id of a call, from the metadata of its answer.
pub(crate) fn daemon_id(metadata: &tonic::metadata::MetadataMap) -> Option<String> {
    metadata.get(REQUEST_ID).and_then(|id| id.to_str().ok()).map(str::to_owned)
}

/// How a call ended without the answer that was wanted.
#[derive(Debug)]
pub(crate) enum CallFailure {
    /// An answer about the request or the caller's rights: every daemon would say the same.
    Final(Status),
    /// What became of the call at each endpoint, by its name.
    All(Vec<(String, EndpointFailure)>),
}

/// Why an endpoint did not answer a call with a result, although another one may.
#[derive(Clone, Debug)]
pub(crate) enum EndpointFailure {
    /// No connection came about.
    Unreachable(String),
    /// It showed a certificate that is not to be trusted.
    NotTheDaemon(String),
    /// It refused this program's certificate, while connecting or after it.
    CertificateRefused(String),
    /// The connection broke before the answer; the call may have run.
    ConnectionLost(String),
    /// Nothing came before the call's deadline: no answer or, unless it was sent, no connection.
    Silent { sent: bool },
    /// It said that it cannot serve the call.
    Answered(Status),
}

/// What is to be done about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// It may pass by itself; the daemon knows sometimes when to ask again.
    Wait(Option<Duration>),
    /// It passes at this time and not before.
    WaitFor(Duration),
    /// Another endpoint may serve; waiting does not help.
    Elsewhere,
}

impl EndpointFailure {
    /// What is to be done about it.
    pub(crate) fn remedy(&self) -> Remedy {
        match self {
            Self::Unreachable(_) | Self::ConnectionLost(_) | Self::Silent { .. } => {
                Remedy::Wait(None)
            }
            Self::NotTheDaemon(_) | Self::CertificateRefused(_) => Remedy::Elsewhere,
            Self::Answered(status) => match (status.code(), retry_delay(status)) {
                (Code::Unavailable | Code::DeadlineExceeded, delay) => Remedy::Wait(delay),
                (Code::ResourceExhausted, Some(delay)) => Remedy::WaitFor(delay),
                (Code::ResourceExhausted, None) => Remedy::Wait(None),
                _ => Remedy::Elsewhere,
            },
        }
    }

    /// Whether the daemon was reached and said so.
    pub(crate) fn is_answer(&self) -> bool {
        matches!(self, Self::Answered(_) | Self::CertificateRefused(_))
    }

    /// The most telling failure has the lowest number: first what must be changed by a person, last
    /// what says the least.
    fn rank(&self) -> u8 {
        match self {
            Self::Answered(status) => match status.code() {
                Code::FailedPrecondition => 0,
                Code::Unauthenticated => 1,
                Code::ResourceExhausted => 3,
                Code::Unavailable => 4,
                Code::DeadlineExceeded => 6,
                _ => 2,
            },
            Self::CertificateRefused(_) | Self::NotTheDaemon(_) => 1,
            Self::ConnectionLost(_) => 5,
            Self::Silent { .. } => 6,
            Self::Unreachable(_) => 7,
        }
    }

    fn error(&self, endpoint: &str, several: bool, sent_id: &str, timeout: Duration) -> Error {
        let at = if several { format!(" at {endpoint}") } else { String::new() };
        let (code, was_sent, message) = match self {
            Self::Unreachable(reason) => {
                let message = format!("cannot reach the daemon at {endpoint}: {reason}");
                (Code::Unavailable, false, message)
            }
            Self::NotTheDaemon(reason) => {
                let message =
                    format!("the certificate of the daemon at {endpoint} is not trusted: {reason}");
                (Code::FailedPrecondition, false, message)
            }
            Self::CertificateRefused(reason) => {
                let message =
                    format!("the daemon{at} refused this program's certificate: {reason}");
                (Code::Unauthenticated, false, message)
            }
            Self::ConnectionLost(reason) => {
                let message = format!("the connection to the daemon{at} was lost: {reason}");
                (Code::Unavailable, true, message)
            }
            Self::Silent { sent: true } => {
                let message = format!("no answer from the daemon{at} within {timeout:?}");
                (Code::DeadlineExceeded, true, message)
            }
            Self::Silent { sent: false } => {
                let message =
                    format!("no connection to the daemon at {endpoint} within {timeout:?}");
                (Code::DeadlineExceeded, false, message)
            }
            Self::Answered(status) => {
                let error = Error::sent_by_the_daemon(status, sent_id);
                if several {
                    return Error { message: format!("{endpoint}: {}", error.message), ..error };
                }
                return error;
            }
        };
        let request_id = was_sent.then(|| sent_id.to_owned());
        Error { request_id, ..Error::local(code, message) }
    }
}

/// What a failed request means for the call.
pub(crate) enum Verdict {
    /// Every daemon would say the same.
    Final(Status),
    /// A limit of this caller's is used up: other daemons are not asked for it.
    LimitReached(Status, Option<Duration>),
    /// The daemon certainly did not look at it, as its connection was closing: send it again.
    NotProcessed,
    /// Another endpoint may serve.
    Failed(EndpointFailure),
}

/// Judges the status that a request failed with.
pub(crate) fn judge(status: Status) -> Verdict {
    if never_processed(&status) {
        return Verdict::NotProcessed;
    }
    if let Some(cause) = causes(&status).last() {
        return Verdict::Failed(EndpointFailure::ConnectionLost(for_people(&cause.to_string())));
    }
    match status.code() {
        // NOT_FOUND is an answer of grpc.health.v1 only: a key that this caller may not use.
        Code::InvalidArgument | Code::PermissionDenied | Code::NotFound => Verdict::Final(status),
        Code::ResourceExhausted if status.get_details_quota_failure().is_some() => {
            let delay = retry_delay(&status);
            Verdict::LimitReached(status, delay)
        }
        _ => Verdict::Failed(EndpointFailure::Answered(status)),
    }
}

fn retry_delay(status: &Status) -> Option<Duration> {
    status.get_details_retry_info().and_then(|info| info.retry_delay)
}

/// Whether the daemon certainly did not look at the request, so that sending it once more cannot run
/// it twice: the connection began to close in the moment it was chosen (RFC 9113 section 6.8), or
/// the daemon refused the stream (section 8.7).
fn never_processed(status: &Status) -> bool {
    causes(status).any(|cause| {
        cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled)
            || cause.downcast_ref::<h2::Error>().is_some_and(|error| {
                let graceful = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
                let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
                error.is_remote() && (graceful || refused)
            })
    })
}

/// The reason without the address of rustls's documentation that it may end with.
pub(crate) fn for_people(reason: &str) -> String {
    reason.split(": https://").next().unwrap_or(reason).to_owned()
}

/// A status made here has a source; one that the daemon sent has none.
fn causes(status: &Status) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(status.source(), |cause| (**cause).source())
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Self::local(Code::FailedPrecondition, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    #[test]
    fn details_become_fields() {
        let mut details = ErrorDetails::with_retry_info(Some(Duration::from_millis(250)));
        details.add_bad_request_violation("algorithm", "allowed: RSA-OAEP");
        let mut status =
            Status::with_error_details(Code::InvalidArgument, "algorithm is not known", details);
        status.metadata_mut().insert(REQUEST_ID, "0192".parse().unwrap());
        let error = Error::of_call(CallFailure::Final(status), "mine", Duration::from_secs(1));
        assert_eq!(
            error,
            Error {
                code: Code::InvalidArgument,
                message: "algorithm is not known: allowed: RSA-OAEP".into(),
                field: Some("algorithm".into()),
                retry_after: Some(Duration::from_millis(250)),
                request_id: Some("0192".into()),
            }
        );
    }

    #[test]
    fn a_bare_status_keeps_the_id_that_was_sent() {
        let failure = EndpointFailure::Answered(Status::internal("a bug"));
        let failure = CallFailure::All(vec![("unix:/a".into(), failure)]);
        let error = Error::of_call(failure, "mine", Duration::from_secs(1));
        assert_eq!((error.code, error.request_id.as_deref()), (Code::Internal, Some("mine")));
        assert_eq!((error.field, error.retry_after), (None, None));
    }

    #[test]
    fn people_are_not_sent_to_the_documentation_of_a_library() {
        let reason = "peer closed connection without sending TLS close_notify: \
                      https://docs.rs/rustls/latest/rustls/manual/_03_howto/index.html#unexpected-eof";
        let said = "peer closed connection without sending TLS close_notify";
        assert_eq!(for_people(reason), said);
        assert_eq!(for_people("Connection reset by peer"), "Connection reset by peer");
        let mut status = Status::unknown("transport error");
        status.set_source(std::sync::Arc::new(std::io::Error::other(reason)));
        let Verdict::Failed(failure) = judge(status) else { panic!("not the daemon's") };
        let failure = CallFailure::All(vec![("unix:/a".into(), failure)]);
        let error = Error::of_call(failure, "mine", Duration::from_secs(1));
        assert_eq!(error.message, format!("the connection to the daemon was lost: {said}"));
    }

    #[test]
    fn the_most_telling_failure_comes_first_and_every_endpoint_is_named() {
        let answered = |code, text| EndpointFailure::Answered(Status::new(code, text));
        let failure = CallFailure::All(vec![
            ("https://a:1".into(), EndpointFailure::Unreachable("refused".into())),
            ("https://b:2".into(), answered(Code::Unavailable, "no backend")),
            ("https://c:3".into(), answered(Code::FailedPrecondition, "key missing")),
            ("https://d:4".into(), EndpointFailure::Silent { sent: true }),
        ]);
        let error = Error::of_call(failure, "mine", Duration::from_secs(3));
        assert_eq!(error.code, Code::FailedPrecondition);
        assert_eq!(
            error.message,
            "https://c:3: key missing; https://b:2: no backend; \
             no answer from the daemon at https://d:4 within 3s; \
             cannot reach the daemon at https://a:1: refused"
        );
    }

    #[test]
    fn only_answers_about_the_request_and_the_callers_rights_are_final() {
        for code in (1..=16).map(Code::from) {
            let is_final = matches!(judge(Status::new(code, "")), Verdict::Final(_));
            let expected =
                matches!(code, Code::InvalidArgument | Code::PermissionDenied | Code::NotFound);
            assert_eq!(is_final, expected, "{code:?}");
        }
        let mut details = ErrorDetails::with_quota_failure_violation("rate", "50/s");
        details.set_retry_info(Some(Duration::from_millis(20)));
        let spent = Status::with_error_details(Code::ResourceExhausted, "rate", details);
        let Verdict::LimitReached(_, delay) = judge(spent) else { panic!("goes elsewhere") };
        assert_eq!(delay, Some(Duration::from_millis(20)));
    }

    #[test]
    fn an_items_empty_fields_are_absent() {
        let item =
            v1::ItemError { code: 8, message: "m".into(), field: String::new(), retry_after_ms: 5 };
        let error = Error::of_item(item, None);
        assert_eq!(error.code, Code::ResourceExhausted);
        assert_eq!((error.field, error.retry_after), (None, Some(Duration::from_millis(5))));
    }
}

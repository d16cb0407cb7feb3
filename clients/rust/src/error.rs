//! One error for every call, with what the daemon said about it.

use std::error::Error as _;
use std::time::Duration;

pub use tonic::Code;
use tonic::Status;
use tonic_types::StatusExt;

use claviger_proto::{REQUEST_ID, v1};

use crate::config::ConfigError;
use crate::connect::ConnectError;
use crate::retry::Failed;

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
    /// Trying again before this has passed cannot succeed.
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

    pub(crate) fn deadline(timeout: Duration, sent_id: &str) -> Self {
        let message = format!("no answer from the daemon within {timeout:?}");
        Self {
            request_id: Some(sent_id.to_owned()),
            ..Self::local(Code::DeadlineExceeded, message)
        }
    }

    /// No endpoint answered in time.
    pub(crate) fn not_connected_within(timeout: Duration, endpoints: &str) -> Self {
        let message = format!("no connection to the daemon at {endpoints} within {timeout:?}");
        Self::local(Code::DeadlineExceeded, message)
    }

    /// No endpoint could be connected to; what each of them said.
    pub(crate) fn not_connected(errors: &[ConnectError]) -> Self {
        let may_pass = errors.iter().any(|error| matches!(error, ConnectError::Unreachable { .. }));
        let code = if may_pass { Code::Unavailable } else { Code::FailedPrecondition };
        let messages: Vec<_> = errors.iter().map(ToString::to_string).collect();
        Self::local(code, messages.join("; "))
    }

    /// The error of a call that was sent with the request id `sent_id` and had `timeout` to end.
    pub(crate) fn of_call(failed: &Failed, sent_id: &str, timeout: Duration) -> Self {
        match failed {
            Failed::Silent => Self::deadline(timeout, sent_id),
            Failed::CertificateRefused(alert) => Self::local(
                Code::Unauthenticated,
                format!("the daemon refused this program's certificate: {alert}"),
            ),
            Failed::Status(status) => match on_the_way(status) {
                Some(OnTheWay::Lost(reason) | OnTheWay::CertificateRefused(reason)) => Self {
                    request_id: Some(sent_id.to_owned()),
                    ..Self::local(
                        Code::Unavailable,
                        format!("the connection to the daemon was lost: {reason}"),
                    )
                },
                None => Self::sent_by_the_daemon(status, sent_id),
            },
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

/// Whether the daemon certainly did not look at the request, so that sending it once more cannot run
/// it twice: the connection began to close in the moment it was chosen (RFC 9113 section 6.8), or
/// the daemon refused the stream (section 8.7).
pub(crate) fn never_processed(status: &Status) -> bool {
    causes(status).any(|cause| {
        cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled)
            || cause.downcast_ref::<h2::Error>().is_some_and(|error| {
                let graceful = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
                let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
                error.is_remote() && (graceful || refused)
            })
    })
}

/// What went wrong between this program and the daemon's answer.
pub(crate) enum OnTheWay {
    CertificateRefused(String),
    Lost(String),
}

/// Tells a status that was made here from one that the daemon sent.
pub(crate) fn on_the_way(status: &Status) -> Option<OnTheWay> {
    let reason = for_people(&causes(status).last()?.to_string());
    Some(match alert(&reason) {
        Some(alert) => OnTheWay::CertificateRefused(alert.to_owned()),
        None => OnTheWay::Lost(reason),
    })
}

/// The TLS alert that a connection ended with. In TLS 1.3 the daemon looks at the certificate after
/// the client's handshake has ended, and the HTTP/2 layer keeps only the text of what it then reads.
pub(crate) fn alert(reason: &str) -> Option<&str> {
    const ALERT: &str = "received fatal alert: ";
    reason.find(ALERT).map(|at| &reason[at + ALERT.len()..])
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
        let failed = Failed::Status(status);
        let error = Error::of_call(&failed, "mine", Duration::from_secs(1));
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
        let failed = Failed::Status(Status::internal("a bug"));
        let error = Error::of_call(&failed, "mine", Duration::from_secs(1));
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
        let error = Error::of_call(&Failed::Status(status), "mine", Duration::from_secs(1));
        assert_eq!(error.message, format!("the connection to the daemon was lost: {said}"));
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

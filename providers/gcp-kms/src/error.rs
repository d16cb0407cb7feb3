//! From what KMS or a token endpoint answered, or did not, to our error: one table.

use std::fmt::{self, Write as _};
use std::time::Duration;

use claviger_provider_api::{Error, ErrorKind, tls};
use serde::Deserialize;
use serde_json::Value;

/// How much of a server's own message is kept, in characters.
const MAX_MESSAGE: usize = 400;

/// The longest delay that is passed on.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(1);

/// What a request was for: the same status means different things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Unwrap,
    Sign,
    ReadKey,
    /// A token from OAuth, STS or IAM credentials.
    Token,
    /// A subject token from the issuer that vouches for this host (workload identity federation).
    SubjectToken,
    /// A token from the metadata server.
    Metadata,
}

impl Operation {
    /// Whether it goes to KMS, with an access token.
    pub(crate) fn is_of_kms(self) -> bool {
        matches!(self, Self::Unwrap | Self::Sign | Self::ReadKey)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Unwrap => "asymmetricDecrypt",
            Self::Sign => "asymmetricSign",
            Self::ReadKey => "getPublicKey",
            Self::Token => "asking for an access token",
            Self::SubjectToken => "asking for a subject token",
            Self::Metadata => "asking the metadata server for an access token",
        }
    }
}

/// Why a request gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("the deadline passed before the server answered")]
    Deadline { request_id: Option<String> },
    #[error("no answer within {} ms (`timeout`)", .after.as_millis())]
    TimedOut { after: Duration, request_id: String },
    #[error("cannot reach the server")]
    Transport {
        #[source]
        error: reqwest::Error,
        request_id: String,
    },
    #[error("{0}")]
    Refused(Refusal),
    #[error("the server's answer makes no sense: {what}")]
    Malformed { what: String, request_id: String },
    /// A checksum or a name that is not right: nothing of such an answer is used.
    #[error("{what}")]
    BrokenPromise { what: String, request_id: String },
}

/// An answer that is no success.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) operation: Operation,
    pub(crate) status: u16,
    pub(crate) said: Said,
    /// The header's; KMS's own is in `said`.
    pub(crate) retry_after: Option<Duration>,
    pub(crate) request_id: String,
}

/// What the body of an answer says that is no success.
#[derive(Debug, Default)]
pub(crate) struct Said {
    /// A name of `google.rpc.Code`, or an error of OAuth's (RFC 6749 section 5.2).
    code: Option<String>,
    message: Option<String>,
    retry_delay: Option<Duration>,
}

/// `{"error": {…}}` of Google's services, and `{"error": "…", "error_description": "…"}` of OAuth.
#[derive(Deserialize)]
struct Body {
    error: Value,
    error_description: Option<String>,
}

impl Said {
    pub(crate) fn parse(body: &[u8]) -> Self {
        let Ok(Body { error, error_description }) = serde_json::from_slice(body) else {
            return Self::default();
        };
        let text = |value: &Value| value.as_str().map(printable);
        if error.is_string() {
            let message = error_description.as_deref().map(printable);
            return Self { code: text(&error), message, retry_delay: None };
        }
        let details = error["details"].as_array();
        let retry = details.into_iter().flatten().find(|detail| {
            detail["@type"].as_str().is_some_and(|name| name.ends_with("/google.rpc.RetryInfo"))
        });
        Self {
            code: text(&error["status"]),
            message: text(&error["message"]),
            retry_delay: retry.and_then(|retry| duration(retry["retryDelay"].as_str()?)),
        }
    }
}

/// A `google.protobuf.Duration` in JSON: seconds with a fraction, and `s`.
fn duration(text: &str) -> Option<Duration> {
    let seconds: f64 = text.strip_suffix('s')?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

impl Refusal {
    /// Whether KMS does not take the access token.
    pub(crate) fn is_unauthenticated(&self) -> bool {
        self.operation.is_of_kms() && self.status == 401
    }

    fn advice(&self) -> Option<&'static str> {
        let code = self.said.code.as_deref();
        Some(match (self.operation, code, self.status) {
            (_, _, 300..=399) => "a redirect, which is never followed; look at `endpoint`",
            (Operation::Token, Some("invalid_grant"), _) => {
                "renew the credentials at their source, and check this host's clock"
            }
            (Operation::Metadata, _, 404) => {
                "no service account is attached to this machine or pod; attach one, or set \
                 `credentials`"
            }
            (Operation::Metadata, _, 400..=403) => {
                "it gives this machine or pod no token; outside of Google Cloud set `credentials`"
            }
            (operation, Some("PERMISSION_DENIED"), _) if operation.is_of_kms() => {
                "grant roles/cloudkms.publicKeyViewer and roles/cloudkms.cryptoKeyDecrypter (or \
                 .signer) on this key to the identity of these credentials"
            }
            (operation, Some("NOT_FOUND"), _) if operation.is_of_kms() => {
                "there is no such version; look at the locator"
            }
            (operation, Some("FAILED_PRECONDITION"), _) if operation.is_of_kms() => {
                "look at the version's state and its key's purpose: enable or restore it"
            }
            _ => return None,
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed: ", self.operation.name())?;
        f.write_str(self.said.code.as_deref().unwrap_or("an answer without a code"))?;
        write!(f, " (HTTP {})", self.status)?;
        if let Some(message) = self.said.message.as_ref().filter(|message| !message.is_empty()) {
            write!(f, ": {message}")?;
        }
        self.advice().map_or(Ok(()), |advice| write!(f, "; {advice}"))
    }
}

impl Failure {
    /// The id under which both logs have the request, if one was sent.
    fn request_id(&self) -> Option<&str> {
        match self {
            Self::Deadline { request_id } => request_id.as_deref(),
            Self::TimedOut { request_id, .. }
            | Self::Transport { request_id, .. }
            | Self::Refused(Refusal { request_id, .. })
            | Self::Malformed { request_id, .. }
            | Self::BrokenPromise { request_id, .. } => Some(request_id),
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Deadline { .. } => ErrorKind::DeadlineExceeded,
            Self::Refused(refusal) => kind(refusal),
            Self::Transport { error, .. } if tls::holds_certificate_error(error) => {
                ErrorKind::OperatorNeeded
            }
            Self::Transport { error, .. } if error.is_builder() => ErrorKind::Internal,
            Self::TimedOut { .. } | Self::Transport { .. } | Self::Malformed { .. } => {
                ErrorKind::Unavailable
            }
            Self::BrokenPromise { .. } => ErrorKind::Internal,
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let kind = failure.kind();
        let id = failure.request_id().map(str::to_owned);
        let failure = match failure {
            // The URL says no more than the locator does.
            Failure::Transport { error, request_id } => {
                Failure::Transport { error: error.without_url(), request_id }
            }
            other => other,
        };
        Self::new(kind, failure).with_backend_request_id(id)
    }
}

/// What an answer that is no success means.
///
/// KMS says INVALID_ARGUMENT to a bad ciphertext, and to one whose checksum is not right, which is not
/// the value's fault: a canary decides.
pub(crate) fn kind(refusal: &Refusal) -> ErrorKind {
    let Refusal { operation, status, said, .. } = refusal;
    match (said.code.as_deref(), status) {
        (Some("RESOURCE_EXHAUSTED"), _) | (_, 429) => {
            let delay = said.retry_delay.or(refusal.retry_after);
            ErrorKind::Throttled { retry_after: delay.map(|delay| delay.min(MAX_RETRY_AFTER)) }
        }
        (Some("INVALID_ARGUMENT"), 400) if *operation == Operation::Unwrap => {
            ErrorKind::UnwrapFailed
        }
        (Some("ABORTED" | "CANCELLED"), _) | (_, 408 | 500..=599)
            if said.code.as_deref() != Some("UNIMPLEMENTED") =>
        {
            ErrorKind::Unavailable
        }
        // UNAUTHENTICATED, which the session looks at first; PERMISSION_DENIED, NOT_FOUND,
        // FAILED_PRECONDITION, a redirect, OAuth's refusals and what may be invented: the same
        // request will fail again.
        _ => ErrorKind::OperatorNeeded,
    }
}

/// What a server sent, cut to a length and to one line.
pub(crate) fn printable(text: &str) -> String {
    let mut line = String::new();
    for c in text.chars().take(MAX_MESSAGE) {
        let _ = line.write_char(if c.is_control() { ' ' } else { c });
    }
    line
}

#[cfg(test)]
mod tests;

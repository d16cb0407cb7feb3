//! From what KMS or a token endpoint answered, or did not, to our error: one table.

use std::fmt;
use std::time::Duration;

use claviger_provider_api::foreign::{capped, printable};
use claviger_provider_api::http::NoAnswer;
use claviger_provider_api::{Cause, Error, ErrorKind};
use serde::Deserialize;
use serde_json::Value;

/// What a request was for: the same status means different things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Unwrap,
    Sign,
    ReadKey,
    /// A key ring, a key or a version.
    MakeKey,
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
        matches!(self, Self::Unwrap | Self::Sign | Self::ReadKey | Self::MakeKey)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Unwrap => "asymmetricDecrypt",
            Self::Sign => "asymmetricSign",
            Self::ReadKey => "getPublicKey",
            Self::MakeKey => "making a key",
            Self::Token => "asking for an access token",
            Self::SubjectToken => "asking for a subject token",
            Self::Metadata => "asking the metadata server for an access token",
        }
    }
}

/// Why a request gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{why}")]
    NoAnswer {
        #[source]
        why: NoAnswer,
        request_id: Option<String>,
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

    /// Who or what an operator must look at.
    fn cause(&self) -> Option<Cause> {
        if matches!(self.status, 300..=399) {
            return None;
        }
        if !self.operation.is_of_kms() {
            return Some(Cause::CredentialsRefused);
        }
        match (self.said.code.as_deref(), self.status) {
            (Some("UNAUTHENTICATED"), _) | (_, 401) => Some(Cause::CredentialsRefused),
            (Some("PERMISSION_DENIED"), _) | (_, 403) => Some(Cause::NotPermitted),
            (Some("NOT_FOUND"), _) | (_, 404) => Some(Cause::KeyAbsent),
            (Some("FAILED_PRECONDITION" | "INVALID_ARGUMENT"), _)
                if self.is_about_the_kind_of_key() =>
            {
                Some(Cause::KeyUnfit)
            }
            (Some("FAILED_PRECONDITION"), _) => Some(Cause::KeyDisabled),
            _ => None,
        }
    }

    /// Whether KMS refuses because the key has another purpose or algorithm, as a symmetric one has.
    fn is_about_the_kind_of_key(&self) -> bool {
        let message = self.said.message.as_deref().unwrap_or_default();
        message.contains("purpose") || message.contains("algorithm")
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
            (Operation::MakeKey, Some("PERMISSION_DENIED"), _) => {
                "grant roles/cloudkms.admin on the key ring, or on the location, to the operator"
            }
            (operation, Some("PERMISSION_DENIED"), _) if operation.is_of_kms() => {
                "grant roles/cloudkms.publicKeyViewer and roles/cloudkms.cryptoKeyDecrypter (or \
                 .signer) on this key to the identity of these credentials"
            }
            (operation, Some("NOT_FOUND"), _) if operation.is_of_kms() => {
                "there is no such version; look at the locator"
            }
            (operation, _, _) if operation.is_of_kms() && self.cause() == Some(Cause::KeyUnfit) => {
                "a key for RSA_DECRYPT_OAEP_… or RSA_SIGN_… is needed; make one, and name that"
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

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let (kind, cause) = match &failure {
            Failure::NoAnswer { why, .. } => why.meaning(),
            Failure::Refused(refusal) => meaning(refusal),
            Failure::Malformed { .. } => (ErrorKind::Unavailable, Some(Cause::BackendFailing)),
            Failure::BrokenPromise { .. } => (ErrorKind::Internal, Some(Cause::WrongAnswer)),
        };
        let id = match &failure {
            Failure::NoAnswer { request_id, .. } => request_id.clone(),
            Failure::Refused(Refusal { request_id, .. })
            | Failure::Malformed { request_id, .. }
            | Failure::BrokenPromise { request_id, .. } => Some(request_id.clone()),
        };
        Self::new(kind, failure).with_cause(cause).with_backend_request_id(id)
    }
}

/// What an answer that is no success means.
///
/// KMS says INVALID_ARGUMENT to a bad ciphertext, and to one whose checksum is not right, which is not
/// the value's fault: a canary decides.
pub(crate) fn meaning(refusal: &Refusal) -> (ErrorKind, Option<Cause>) {
    let Refusal { operation, status, said, .. } = refusal;
    let code = said.code.as_deref();
    match (code, status) {
        (Some("RESOURCE_EXHAUSTED"), _) | (_, 429) => {
            let delay = said.retry_delay.or(refusal.retry_after);
            (ErrorKind::Throttled { retry_after: delay.map(capped) }, None)
        }
        (Some("INVALID_ARGUMENT"), 400) if *operation == Operation::Unwrap => {
            (ErrorKind::UnwrapFailed, None)
        }
        (Some("ABORTED" | "CANCELLED"), _) | (_, 408 | 500..=599)
            if code != Some("UNIMPLEMENTED") =>
        {
            (ErrorKind::Unavailable, Some(Cause::BackendFailing))
        }
        // A redirect, OAuth's refusals and what may be invented as well: the same request will fail
        // again.
        _ => (ErrorKind::OperatorNeeded, refusal.cause()),
    }
}
#[cfg(test)]
mod tests;

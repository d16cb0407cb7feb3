//! From the SDK's errors to the one error of every provider: what Azure's answers mean here.

use std::fmt;
use std::time::Duration;

use azure_core::error::ErrorKind as SdkErrorKind;
use azure_core::http::RawResponse;
use azure_core::http::headers::{HeaderName, Headers, WWW_AUTHENTICATE};
use claviger_provider_api::foreign::{capped, causes, chain_line, printable};
use claviger_provider_api::{Cause, Error, ErrorKind, tls};
use serde::Deserialize;

use crate::limit::NoAnswer;

/// What was asked of the vault: the same status means different things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    GetKey,
    CreateKey,
    ImportKey,
    ListVersions,
    Unwrap,
    Sign,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GetKey => "get key",
            Self::CreateKey => "create key",
            Self::ImportKey => "import key",
            Self::ListVersions => "list key versions",
            Self::Unwrap => "unwrapKey",
            Self::Sign => "sign",
        })
    }
}

/// The error of a call that failed.
pub(crate) fn of_call(operation: Operation, error: &azure_core::Error) -> Error {
    if let Some(failure) = causes(error).find_map(|cause| cause.downcast_ref::<LoginFailure>()) {
        let text = format!("{operation}: {}", failure.text);
        return Error::new(failure.kind, text).with_cause(failure.cause);
    }
    if let SdkErrorKind::HttpResponse { status, raw_response, .. } = error.kind() {
        let refusal = Refusal::new(operation, u16::from(*status), raw_response.as_deref());
        let id = raw_response.as_ref().and_then(|response| request_id(response.headers()));
        let (kind, cause) = refusal.meaning();
        let error = Error::new(kind, refusal.to_string()).with_cause(cause);
        return error.with_backend_request_id(id);
    }
    let (kind, cause) = of_transport(error);
    Error::new(kind, format!("{operation}: {}", chain_line(error))).with_cause(cause)
}

/// The id under which Azure logged a request.
pub(crate) fn request_id(headers: &Headers) -> Option<String> {
    headers.get_optional_str(&REQUEST_ID).map(printable)
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-request-id");

/// An answer of the vault that is no success.
#[derive(Debug)]
struct Refusal {
    operation: Operation,
    status: u16,
    said: Said,
    retry_after: Option<Duration>,
    challenges: bool,
}

/// The body of an error.
#[derive(Debug, Default, Deserialize)]
struct Body {
    error: Said,
}

#[derive(Debug, Default, Deserialize)]
struct Said {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
    #[serde(default, rename = "innererror", alias = "innerError")]
    inner: Option<Inner>,
}

#[derive(Debug, Default, Deserialize)]
struct Inner {
    #[serde(default)]
    code: String,
}

impl Refusal {
    fn new(operation: Operation, status: u16, response: Option<&RawResponse>) -> Self {
        let body = response.map(|response| response.body().as_ref()).unwrap_or_default();
        let body: Body = serde_json::from_slice(body).unwrap_or_default();
        let headers = response.map(RawResponse::headers);
        let challenge = headers.and_then(|headers| headers.get_optional_str(&WWW_AUTHENTICATE));
        Self {
            operation,
            status,
            said: body.error,
            retry_after: headers.and_then(retry_after),
            challenges: challenge.is_some(),
        }
    }

    /// A bad value is 400 `BadParameter`, which is also what Azure says of a request that it does not
    /// like: of an unwrap it may be the value's fault, and a canary decides.
    fn meaning(&self) -> (ErrorKind, Option<Cause>) {
        match self.status {
            400 if self.operation == Operation::Unwrap => (ErrorKind::UnwrapFailed, None),
            429 => (ErrorKind::Throttled { retry_after: self.retry_after }, None),
            408 | 500.. => (ErrorKind::Unavailable, Some(Cause::BackendFailing)),
            _ => (ErrorKind::OperatorNeeded, self.cause()),
        }
    }

    /// Who or what an operator must look at.
    fn cause(&self) -> Option<Cause> {
        match (self.status, self.inner()) {
            (401, _) => Some(Cause::CredentialsRefused),
            (_, "KeyDisabled" | "SecretDisabled" | "KeyNotYetValid" | "KeyExpired") => {
                Some(Cause::KeyDisabled)
            }
            (_, "KeyOperationForbidden") => Some(Cause::KeyUnfit),
            (403, _) => Some(Cause::NotPermitted),
            (404, _) => Some(Cause::KeyAbsent),
            (409, "ObjectIsDeletedButRecoverable") => Some(Cause::KeyDisabled),
            _ => None,
        }
    }

    fn inner(&self) -> &str {
        self.said.inner.as_ref().map_or("", |inner| inner.code.as_str())
    }

    fn advice(&self) -> Option<&'static str> {
        Some(match (self.status, self.inner()) {
            (300..=399, _) => "a redirect, which is never followed; look at `vault`",
            // The SDK has asked for a token by now, and sent the request again with it.
            (401, _) if self.challenges => {
                "a token that was just given is refused; look at tenant, client and this host's \
                 clock"
            }
            (401, _) => {
                "no challenge (WWW-Authenticate) came with it, so no other token was tried; the \
                 next call brings another; look at `vault`, tenant, client and this host's clock"
            }
            (403, "KeyDisabled") => "enable the key",
            (403, "KeyOperationForbidden") => "add the operation to the key's `key_ops`",
            (403, "ForbiddenByFirewall") => "let this host through the vault's firewall",
            (403, "ForbiddenByRbac" | "AccessDenied" | "ForbiddenByPolicy") => {
                "allow keys/read and keys/unwrap/action (or keys/sign/action) on this key to this \
                 identity"
            }
            (404, _) => "there is no such key in this vault; look at the locator",
            _ => return None,
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: HTTP {}", self.operation, self.status)?;
        let Said { code, message, inner } = &self.said;
        if !code.is_empty() {
            write!(f, " {}", printable(code))?;
        }
        if let Some(inner) = inner {
            write!(f, " ({})", printable(&inner.code))?;
        }
        if !message.is_empty() {
            write!(f, ": {}", printable(message))?;
        }
        self.advice().map_or(Ok(()), |advice| write!(f, "; {advice}"))
    }
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct LoginFailure {
    kind: ErrorKind,
    cause: Option<Cause>,
    text: String,
}

impl LoginFailure {
    pub(crate) fn new(kind: ErrorKind, cause: Option<Cause>, text: String) -> Self {
        Self { kind, cause, text }
    }

    /// From what the identity library says.
    pub(crate) fn of(error: &azure_core::Error) -> Self {
        if let Some(known) = causes(error).find_map(|cause| cause.downcast_ref::<Self>()) {
            return Self::new(known.kind, known.cause, known.text.clone());
        }
        let answered = causes(error).find_map(|cause| {
            let cause = cause.downcast_ref::<azure_core::Error>()?;
            match cause.kind() {
                SdkErrorKind::HttpResponse { status, raw_response, .. } => {
                    let headers = raw_response.as_ref().map(|response| response.headers());
                    Some((u16::from(*status), headers.and_then(retry_after), cause.to_string()))
                }
                _ => None,
            }
        });
        let refused = (ErrorKind::OperatorNeeded, Some(Cause::CredentialsRefused));
        let Some((status, retry_after, said)) = answered else {
            let (kind, cause) = match of_transport(error) {
                // The library found out by itself, or a program did.
                (ErrorKind::Internal, _) => refused,
                other => other,
            };
            return Self::new(kind, cause, format!("no token: {}", chain_line(error)));
        };
        let (kind, cause) = match status {
            429 => (ErrorKind::Throttled { retry_after }, None),
            408 | 500.. => (ErrorKind::Unavailable, Some(Cause::BackendFailing)),
            _ => refused,
        };
        Self::new(kind, cause, format!("no token (HTTP {status}): {}", printable(&said)))
    }
}

/// No answer, or one that cannot be read.
fn of_transport(error: &azure_core::Error) -> (ErrorKind, Option<Cause>) {
    if tls::holds_certificate_error(error) {
        return (ErrorKind::OperatorNeeded, Some(Cause::WrongCa));
    }
    if causes(error).find_map(|cause| cause.downcast_ref::<NoAnswer>()).is_some() {
        return (ErrorKind::Unavailable, Some(Cause::NoAnswer));
    }
    let mut sdk = causes(error).filter_map(|cause| cause.downcast_ref::<azure_core::Error>());
    sdk.find_map(|error| match error.kind() {
        SdkErrorKind::Connection | SdkErrorKind::Io => Some(Cause::Unreachable),
        SdkErrorKind::DataConversion => Some(Cause::BackendFailing),
        _ => None,
    })
    .map_or((ErrorKind::Internal, None), |cause| (ErrorKind::Unavailable, Some(cause)))
}

/// `Retry-After` in seconds (RFC 9110 section 10.2.3), or Azure's own in milliseconds.
fn retry_after(headers: &Headers) -> Option<Duration> {
    let number =
        |name| headers.get_optional_str(&HeaderName::from_static(name))?.trim().parse().ok();
    let delay = number("retry-after").map(Duration::from_secs);
    let delay = delay.or_else(|| number("x-ms-retry-after-ms").map(Duration::from_millis));
    delay.map(capped)
}

#[cfg(test)]
mod tests;

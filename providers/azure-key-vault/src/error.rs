//! From the SDK's errors to the one error of every provider: what Azure's answers mean here.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use azure_core::error::ErrorKind as SdkErrorKind;
use azure_core::http::RawResponse;
use azure_core::http::headers::{HeaderName, Headers};
use claviger_provider_api::{Error, ErrorKind, tls};
use serde::Deserialize;

/// How much of Azure's own message is kept, in characters.
const MAX_MESSAGE: usize = 400;

/// The longest `Retry-After` that is passed on.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(1);

/// What was asked of the vault: the same status means different things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    GetKey,
    ListVersions,
    Unwrap,
    Sign,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GetKey => "get key",
            Self::ListVersions => "list key versions",
            Self::Unwrap => "unwrapKey",
            Self::Sign => "sign",
        })
    }
}

/// The error of a call that failed.
pub(crate) fn of_call(operation: Operation, error: &azure_core::Error) -> Error {
    if let Some(failure) = causes(error).find_map(|cause| cause.downcast_ref::<LoginFailure>()) {
        return Error::new(failure.kind, format!("{operation}: {}", failure.text));
    }
    if let SdkErrorKind::HttpResponse { status, raw_response, .. } = error.kind() {
        let refusal = Refusal::new(operation, u16::from(*status), raw_response.as_deref());
        let id = raw_response.as_ref().and_then(|response| request_id(response.headers()));
        return Error::new(refusal.kind(), refusal.to_string()).with_backend_request_id(id);
    }
    Error::new(of_transport(error), format!("{operation}: {}", chain(error)))
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
        let retry_after = response.and_then(|response| retry_after(response.headers()));
        Self { operation, status, said: body.error, retry_after }
    }

    /// A bad value is 400 `BadParameter`, which is also what Azure says of a request that it does not
    /// like: of an unwrap it may be the value's fault, and a canary decides. The SDK has replaced the
    /// token by the time a 401 comes here.
    fn kind(&self) -> ErrorKind {
        match self.status {
            400 if self.operation == Operation::Unwrap => ErrorKind::UnwrapFailed,
            429 => ErrorKind::Throttled { retry_after: self.retry_after },
            408 | 500.. => ErrorKind::Unavailable,
            _ => ErrorKind::OperatorNeeded,
        }
    }

    fn advice(&self) -> Option<&'static str> {
        let inner = self.said.inner.as_ref().map_or("", |inner| inner.code.as_str());
        Some(match (self.status, inner) {
            (300..=399, _) => "a redirect, which is never followed; look at `vault`",
            (401, _) => {
                "another token was got and is refused as well; look at tenant, client and this \
                 host's clock"
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

/// Why no token was to be had.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct LoginFailure {
    kind: ErrorKind,
    text: String,
}

impl LoginFailure {
    pub(crate) fn new(kind: ErrorKind, text: String) -> Self {
        Self { kind, text }
    }

    /// From what the identity library says.
    pub(crate) fn of(error: &azure_core::Error) -> Self {
        if let Some(known) = causes(error).find_map(|cause| cause.downcast_ref::<Self>()) {
            return Self::new(known.kind, known.text.clone());
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
        let Some((status, retry_after, said)) = answered else {
            let kind = match of_transport(error) {
                // The library found out by itself, or a program did.
                ErrorKind::Internal => ErrorKind::OperatorNeeded,
                kind => kind,
            };
            return Self::new(kind, format!("no token: {}", chain(error)));
        };
        let kind = match status {
            429 => ErrorKind::Throttled { retry_after },
            408 | 500.. => ErrorKind::Unavailable,
            _ => ErrorKind::OperatorNeeded,
        };
        Self::new(kind, format!("no token (HTTP {status}): {}", printable(&said)))
    }
}

/// No answer, or one that cannot be read.
fn of_transport(error: &azure_core::Error) -> ErrorKind {
    if tls::holds_certificate_error(error) {
        return ErrorKind::OperatorNeeded;
    }
    let kinds = causes(error).filter_map(|cause| cause.downcast_ref::<azure_core::Error>());
    let passing = |error: &azure_core::Error| {
        matches!(
            error.kind(),
            SdkErrorKind::Connection | SdkErrorKind::Io | SdkErrorKind::DataConversion
        )
    };
    if kinds.into_iter().any(passing) { ErrorKind::Unavailable } else { ErrorKind::Internal }
}

/// `Retry-After` in seconds (RFC 9110 section 10.2.3), or Azure's own in milliseconds.
fn retry_after(headers: &Headers) -> Option<Duration> {
    let number =
        |name| headers.get_optional_str(&HeaderName::from_static(name))?.trim().parse().ok();
    let delay = number("retry-after").map(Duration::from_secs);
    let delay = delay.or_else(|| number("x-ms-retry-after-ms").map(Duration::from_millis));
    delay.map(|delay| delay.min(MAX_RETRY_AFTER))
}

fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

/// An error and its causes in one line, each said once.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = String::new();
    for cause in causes(error).map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    printable(&text)
}

/// What a server sent, cut to a length and to one line.
pub(crate) fn printable(text: &str) -> String {
    let one_line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    one_line.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE).collect()
}

#[cfg(test)]
mod tests;

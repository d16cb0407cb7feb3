//! From the SDK's errors to the one error of every provider: what Azure's answers mean here.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use azure_core::error::ErrorKind as SdkErrorKind;
use azure_core::http::RawResponse;
use azure_core::http::headers::{HeaderName, Headers};
use claviger_provider_api::{Error, ErrorKind};
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
    if holds_certificate_error(error) {
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

/// Looks through the causes; those inside an [`std::io::Error`] are hidden from `source`.
fn holds_certificate_error(error: &(dyn StdError + 'static)) -> bool {
    if let Some(tls) = error.downcast_ref::<rustls::Error>() {
        return matches!(tls, rustls::Error::InvalidCertificate(_));
    }
    let held = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    held.is_some_and(|held| holds_certificate_error(held))
        || error.source().is_some_and(holds_certificate_error)
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
mod tests {
    use super::*;
    use ErrorKind::{OperatorNeeded, Unavailable, UnwrapFailed};
    use Operation::{GetKey, ListVersions, Sign, Unwrap};

    const THROTTLED: ErrorKind = ErrorKind::Throttled { retry_after: None };

    /// Bodies as recorded from the service (in reports of others), up to 404 `KeyNotFound`; those after
    /// it are from Microsoft's documentation.
    const TABLE: [(Operation, u16, &str, ErrorKind, &str); 23] = [
        (
            Unwrap,
            400,
            r#"{"error":{"code":"BadParameter","message":"Error occurred while decoding OAEP padding."}}"#,
            UnwrapFailed,
            "unwrapKey: HTTP 400 BadParameter: Error occurred while decoding OAEP padding.",
        ),
        (
            Unwrap,
            400,
            r#"{"error":{"code":"BadParameter","message":"Content of 'value' is not base64url.\r\nProperty 'value' is required.\r\n"}}"#,
            UnwrapFailed,
            "BadParameter: Content of 'value' is not base64url. Property 'value' is required.",
        ),
        (
            Unwrap,
            401,
            r#"{"error":{"code":"Unauthorized","message":"[TokenExpired] Error validating token: 'S2S12086'."}}"#,
            OperatorNeeded,
            "another token was got and is refused as well",
        ),
        (
            Unwrap,
            401,
            r#"{"error":{"code":"Unauthorized","message":"AKV10046: Unable to resolve the key used for signature validation."}}"#,
            OperatorNeeded,
            "AKV10046",
        ),
        (
            Unwrap,
            403,
            r#"{"error":{"code":"Forbidden","message":"Operation decrypt is not permitted on this key.","innererror":{"code":"KeyOperationForbidden"}}}"#,
            OperatorNeeded,
            "Forbidden (KeyOperationForbidden): Operation decrypt is not permitted on this key.; add",
        ),
        (
            GetKey,
            403,
            r#"{"error":{"code":"Forbidden","message":"Operation get is not allowed on a disabled secret.","innerError":{"code":"SecretDisabled"}}}"#,
            OperatorNeeded,
            "get key: HTTP 403 Forbidden (SecretDisabled): Operation get",
        ),
        (
            ListVersions,
            403,
            r#"{"error":{"code":"Forbidden","message":"Caller is not authorized to perform action on resource.\r\nIf role assignments, deny assignments or role definitions were changed recently, please observe propagation time.\r\nAction: 'Microsoft.KeyVault/vaults/keys/read'\r\n","innererror":{"code":"ForbiddenByRbac"}}}"#,
            OperatorNeeded,
            "keys/unwrap/action",
        ),
        (
            Unwrap,
            429,
            r#"{"error":{"code":"Throttled","message":"Request was not processed because too many requests were received. Reason: VaultRequestTypeLimitReached"}}"#,
            THROTTLED,
            "VaultRequestTypeLimitReached",
        ),
        (
            GetKey,
            404,
            r#"{"error":{"code":"KeyNotFound","message":"A key with (name/id) cosign was not found in this key vault. If you recently deleted this key you may be able to recover it using the correct recovery command. For help resolving this issue, please see https://go.microsoft.com/fwlink/?linkid=2125182"}}"#,
            OperatorNeeded,
            "look at the locator",
        ),
        (
            Unwrap,
            403,
            r#"{"error":{"code":"Forbidden","message":"Operation unwrapKey is not allowed on a disabled key.","innererror":{"code":"KeyDisabled"}}}"#,
            OperatorNeeded,
            "enable the key",
        ),
        (
            Unwrap,
            403,
            r#"{"error":{"code":"Forbidden","message":"Client address is not authorized and caller is not a trusted service.","innererror":{"code":"ForbiddenByFirewall"}}}"#,
            OperatorNeeded,
            "firewall",
        ),
        (Unwrap, 400, "", UnwrapFailed, "unwrapKey: HTTP 400"),
        (Sign, 400, r#"{"error":{"code":"BadParameter"}}"#, OperatorNeeded, "sign: HTTP 400 BadP"),
        (GetKey, 400, "", OperatorNeeded, "get key: HTTP 400"),
        (Unwrap, 408, "", Unavailable, "HTTP 408"),
        (Unwrap, 409, r#"{"error":{"code":"Conflict"}}"#, OperatorNeeded, "Conflict"),
        (
            Unwrap,
            500,
            r#"{"error":{"code":"InternalServerError","message":"x"}}"#,
            Unavailable,
            "InternalServerError: x",
        ),
        (Unwrap, 502, "<html>Bad Gateway</html>", Unavailable, "HTTP 502"),
        (Unwrap, 503, "", Unavailable, "HTTP 503"),
        (Sign, 504, "", Unavailable, "HTTP 504"),
        (Unwrap, 301, "", OperatorNeeded, "never followed"),
        (Sign, 307, "", OperatorNeeded, "never followed"),
        (Unwrap, 407, "", OperatorNeeded, "HTTP 407"),
    ];

    fn answered(
        status: u16,
        headers: &[(&'static str, &'static str)],
        body: &str,
    ) -> azure_core::Error {
        let mut all = Headers::new();
        for (name, value) in headers {
            all.insert(*name, *value);
        }
        let response = RawResponse::from_bytes(status.into(), all, body.to_owned());
        let kind = SdkErrorKind::HttpResponse {
            status: status.into(),
            error_code: None,
            raw_response: Some(Box::new(response)),
        };
        azure_core::Error::with_message(kind, "said by the SDK")
    }

    #[test]
    fn every_recorded_answer_has_its_kind_and_says_what_to_do() {
        for (operation, status, body, kind, text) in TABLE {
            let error = answered(status, &[("x-ms-request-id", "an-id")], body);
            let error = of_call(operation, &error);
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(text), "{text:?}: {error}");
            assert_eq!(error.backend_request_id(), Some("an-id"));
        }
    }

    #[test]
    fn the_delay_that_azure_names_is_passed_on_within_reason() {
        let table = [
            (&[][..], None),
            (&[("retry-after", "7")], Some(7000)),
            (&[("retry-after", "99999999")], Some(3_600_000)),
            (&[("retry-after", "soon")], None),
            (&[("x-ms-retry-after-ms", "250")], Some(250)),
            (&[("retry-after", "1"), ("x-ms-retry-after-ms", "250")], Some(1000)),
        ];
        for (headers, milliseconds) in table {
            let retry_after = milliseconds.map(Duration::from_millis);
            let error = of_call(Unwrap, &answered(429, headers, ""));
            assert_eq!(error.kind(), ErrorKind::Throttled { retry_after }, "{headers:?}");
        }
    }

    #[test]
    fn what_the_authority_says_has_its_kind() {
        for (status, kind) in
            [(400, OperatorNeeded), (401, OperatorNeeded), (429, THROTTLED), (503, Unavailable)]
        {
            let inner = answered(status, &[], "");
            let outer = azure_core::Error::with_error(
                SdkErrorKind::Credential,
                inner,
                "ClientSecretCredential authentication failed.",
            );
            let failure = LoginFailure::of(&outer);
            assert_eq!(failure.kind, kind, "{failure}");
            // And is still known once the SDK carried it through.
            let carried = azure_core::Error::from(failure);
            let error = of_call(Unwrap, &carried);
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().starts_with("unwrapKey: no token"), "{error}");
        }
        let missing = azure_core::Error::with_message(SdkErrorKind::Credential, "run az login");
        assert_eq!(LoginFailure::of(&missing).kind, OperatorNeeded);
        let unreachable = azure_core::Error::with_message(SdkErrorKind::Connection, "refused");
        assert_eq!(LoginFailure::of(&unreachable).kind, Unavailable);
    }

    #[test]
    fn what_a_server_says_stays_one_short_line() {
        let body = format!(
            r#"{{"error":{{"code":"Forbidden","message":"a\r\nb\u001b[1m{}"}}}}"#,
            "x".repeat(1000)
        );
        let text = of_call(Unwrap, &answered(403, &[], &body)).to_string();
        assert!(text.starts_with("unwrapKey: HTTP 403 Forbidden: a b[1mxxx"), "{text}");
        assert!(text.len() < 500 && !text.contains(char::is_control), "{text}");
    }
}

//! What Azure says when it refuses: status, code and sentence, as recorded from the service where a
//! recording is to be had.

use http::header::{HeaderName, HeaderValue, WWW_AUTHENTICATE};
use serde_json::json;

use crate::exchange::Reply;

/// A refusal of the vault.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: u16,
    code: &'static str,
    inner: Option<&'static str>,
    message: String,
    challenge: Option<HeaderValue>,
}

impl Refusal {
    fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, inner: None, message: message.into(), challenge: None }
    }

    /// 401 with the challenge that says where tokens are to be had and for what.
    pub(crate) fn unauthorized(message: &str, authority: &str, resource: &str) -> Self {
        let challenge = format!("Bearer authorization=\"{authority}\", resource=\"{resource}\"");
        let challenge = HeaderValue::from_str(&challenge).expect("URLs are visible ASCII");
        Self { challenge: Some(challenge), ..Self::new(401, "Unauthorized", message) }
    }

    /// 400: what was sent is wrong.
    pub(crate) fn bad_parameter(message: impl Into<String>) -> Self {
        Self::new(400, "BadParameter", message)
    }

    /// 400: an OAEP value that does not decrypt (recorded).
    pub(crate) fn oaep() -> Self {
        Self::bad_parameter("Error occurred while decoding OAEP padding.")
    }

    /// 400: a value that is no base64url (recorded).
    pub(crate) fn not_base64url(property: &str) -> Self {
        Self::bad_parameter(format!(
            "Content of '{property}' is not base64url.\r\nProperty '{property}' is required.\r\n"
        ))
    }

    /// 404: no key, or no version, of that name (recorded).
    pub(crate) fn key_not_found(id: &str) -> Self {
        Self::new(
            404,
            "KeyNotFound",
            format!(
                "A key with (name/id) {id} was not found in this key vault. If you recently deleted \
                 this key you may be able to recover it using the correct recovery command. For \
                 help resolving this issue, please see \
                 https://go.microsoft.com/fwlink/?linkid=2125182"
            ),
        )
    }

    /// 403: the key is disabled.
    pub(crate) fn disabled(operation: &str) -> Self {
        let message = format!("Operation {operation} is not allowed on a disabled key.");
        Self { inner: Some("KeyDisabled"), ..Self::new(403, "Forbidden", message) }
    }

    /// 403: outside of `nbf` and `exp`.
    pub(crate) fn outside_its_time(operation: &str, expired: bool) -> Self {
        let (state, inner) = if expired {
            ("an expired", "KeyExpired")
        } else {
            ("a not yet valid", "KeyNotYetValid")
        };
        let message = format!("Operation {operation} is not allowed on {state} key.");
        Self { inner: Some(inner), ..Self::new(403, "Forbidden", message) }
    }

    /// 403: not among the key's `key_ops` (recorded).
    pub(crate) fn not_permitted(operation: &str) -> Self {
        let message = format!("Operation {operation} is not permitted on this key.");
        Self { inner: Some("KeyOperationForbidden"), ..Self::new(403, "Forbidden", message) }
    }

    /// 404 or 405: no such route.
    pub(crate) fn no_route(status: u16) -> Self {
        Self::new(status, "NotFound", "The requested resource was not found.")
    }
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        let mut error = json!({ "code": refusal.code, "message": refusal.message });
        if let Some(inner) = refusal.inner {
            error["innererror"] = json!({ "code": inner });
        }
        let mut reply = Self::json(refusal.status, &json!({ "error": error }));
        let challenge = refusal.challenge.map(|challenge| (WWW_AUTHENTICATE, challenge));
        reply.headers.extend::<Option<(HeaderName, HeaderValue)>>(challenge);
        reply
    }
}

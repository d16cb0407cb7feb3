//! `google.rpc.Status` as the REST interface writes it.

use std::time::Duration;

use serde_json::{Value, json};

/// An error of the interface.
#[derive(Clone, Debug)]
pub(crate) struct Status {
    code: &'static str,
    message: String,
    details: Vec<Value>,
}

impl Status {
    pub(crate) fn new(code: &'static str, message: String) -> Self {
        Self { code, message, details: Vec::new() }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new("INVALID_ARGUMENT", message.into())
    }

    pub(crate) fn not_found(kind: &str, name: &str) -> Self {
        Self::new("NOT_FOUND", format!("{kind} {name} not found."))
    }

    pub(crate) fn already_exists(kind: &str, name: &str) -> Self {
        Self::new("ALREADY_EXISTS", format!("{kind} {name} already exists."))
    }

    pub(crate) fn unimplemented() -> Self {
        Self::new("UNIMPLEMENTED", "The fake does not do this.".into())
    }

    pub(crate) fn precondition(message: String, violation: &str, subject: &str) -> Self {
        let detail = json!({
            "@type": "type.googleapis.com/google.rpc.PreconditionFailure",
            "violations": [{ "type": violation, "subject": subject }],
        });
        Self { code: "FAILED_PRECONDITION", message, details: vec![detail] }
    }

    pub(crate) fn denied(permission: &str, name: &str) -> Self {
        let message =
            format!("Permission '{permission}' denied on resource '{name}' (or it may not exist).");
        let detail = json!({
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": "IAM_PERMISSION_DENIED",
            "domain": "cloudkms.googleapis.com",
            "metadata": { "permission": permission, "resource": name },
        });
        Self { code: "PERMISSION_DENIED", message, details: vec![detail] }
    }

    pub(crate) fn throttled(retry_delay: Option<Duration>) -> Self {
        let mut details = vec![json!({
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": "RATE_LIMIT_EXCEEDED",
            "domain": "googleapis.com",
            "metadata": { "service": "cloudkms.googleapis.com", "quota_limit_value": "60000" },
        })];
        if let Some(delay) = retry_delay {
            details.push(json!({
                "@type": "type.googleapis.com/google.rpc.RetryInfo",
                "retryDelay": format!("{}s", delay.as_secs_f64()),
            }));
        }
        let message = "Quota exceeded for quota metric 'Cryptographic requests' and limit \
                       'Cryptographic requests per minute' of service 'cloudkms.googleapis.com' \
                       for consumer 'project_number:123456789012'.";
        Self { code: "RESOURCE_EXHAUSTED", message: message.into(), details }
    }

    /// No access token, or one that is not good.
    pub(crate) fn unauthenticated(missing: bool) -> Self {
        let (begins, reason) = if missing {
            ("Request is missing required authentication credential.", "CREDENTIALS_MISSING")
        } else {
            ("Request had invalid authentication credentials.", "ACCESS_TOKEN_EXPIRED")
        };
        let message = format!(
            "{begins} Expected OAuth 2 access token, login cookie or other valid authentication \
             credential. See https://developers.google.com/identity/sign-in/web/devconsole-project."
        );
        let detail = json!({
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": reason,
            "domain": "googleapis.com",
            "metadata": { "service": "cloudkms.googleapis.com" },
        });
        Self { code: "UNAUTHENTICATED", message, details: vec![detail] }
    }

    /// The HTTP status of a code (google/rpc/code.proto).
    pub(crate) fn http(&self) -> u16 {
        match self.code {
            "INVALID_ARGUMENT" | "FAILED_PRECONDITION" | "OUT_OF_RANGE" => 400,
            "UNAUTHENTICATED" => 401,
            "PERMISSION_DENIED" => 403,
            "NOT_FOUND" => 404,
            "ABORTED" | "ALREADY_EXISTS" => 409,
            "RESOURCE_EXHAUSTED" => 429,
            "CANCELLED" => 499,
            "UNIMPLEMENTED" => 501,
            "UNAVAILABLE" => 503,
            "DEADLINE_EXCEEDED" => 504,
            _ => 500,
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut error =
            json!({ "code": self.http(), "message": self.message, "status": self.code });
        if !self.details.is_empty() {
            error["details"] = json!(self.details);
        }
        json!({ "error": error })
    }
}

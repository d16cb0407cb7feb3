//! How each service says that it throttles, fails, or refuses credentials; and which of its requests
//! unwrap.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::script::{Answer, Pattern};

/// A kind of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// AWS KMS.
    Aws,
    /// Azure Key Vault.
    Azure,
    /// Google Cloud KMS.
    Google,
    /// HashiCorp Vault and OpenBao.
    Vault,
}

impl Service {
    /// Requests that unwrap.
    pub fn unwraps(self) -> Pattern {
        match self {
            Self::Aws => Pattern::any().header("x-amz-target", "TrentService.Decrypt"),
            Self::Azure => Pattern::any().path("/unwrapkey"),
            Self::Google => Pattern::any().path(":asymmetricDecrypt"),
            Self::Vault => Pattern::any().path("/decrypt/"),
        }
    }

    /// Requests that unwrap this value.
    pub fn unwraps_of(self, wrapped: &[u8]) -> Pattern {
        self.unwraps().body(match self {
            Self::Azure => URL_SAFE_NO_PAD.encode(wrapped),
            Self::Aws | Self::Google | Self::Vault => STANDARD.encode(wrapped),
        })
    }

    /// It throttles. AWS names no delay of its own.
    pub fn throttled(self, retry_after: Option<Duration>) -> Answer {
        let seconds = retry_after.map(|delay| delay.as_secs());
        let answer = match self {
            Self::Aws => aws(
                400,
                "ThrottlingException",
                "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.",
            ),
            Self::Azure => azure(
                429,
                "Throttled",
                "Request was not processed because too many requests were received. Reason: VaultRequestTypeLimitReached",
            ),
            Self::Google => {
                let mut details = vec![json!({
                    "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                    "reason": "RATE_LIMIT_EXCEEDED", "domain": "googleapis.com",
                })];
                details.extend(seconds.map(|seconds| {
                    json!({
                        "@type": "type.googleapis.com/google.rpc.RetryInfo",
                        "retryDelay": format!("{seconds}s"),
                    })
                }));
                let said = "Quota exceeded for quota metric 'Asymmetric cryptographic requests'";
                return google(429, "RESOURCE_EXHAUSTED", said, &details);
            }
            Self::Vault => {
                vault(429, "request path \"transit/decrypt/k\": rate limit quota exceeded")
            }
        };
        match seconds {
            Some(seconds) => answer.with("retry-after", seconds.to_string()),
            None => answer,
        }
    }

    /// It cannot serve now.
    pub fn failing(self) -> Answer {
        match self {
            Self::Aws => aws(500, "KMSInternalException", ""),
            Self::Azure => azure(500, "InternalServerError", "An internal error occurred."),
            Self::Google => google(503, "UNAVAILABLE", "The service is unavailable.", &[]),
            Self::Vault => vault(500, "internal error"),
        }
    }

    /// The credentials were good once.
    pub fn expired(self) -> Answer {
        match self {
            Self::Aws => aws(
                400,
                "ExpiredTokenException",
                "The security token included in the request is expired",
            ),
            Self::Azure => azure(
                401,
                "Unauthorized",
                "AKV10046: Unable to resolve the key used for signature validation: the token has expired.",
            )
            .with(
                "www-authenticate",
                "Bearer authorization=\"https://login.microsoftonline.com/00000000-0000-0000-0000-000000000000\", \
                 resource=\"https://vault.azure.net\", error=\"invalid_token\"",
            ),
            Self::Google => {
                let said = "Request had invalid authentication credentials.";
                google(401, "UNAUTHENTICATED", said, &[])
            }
            Self::Vault => vault(403, "permission denied"),
        }
    }
}

fn aws(status: u16, code: &str, message: &str) -> Answer {
    let answer = Answer::json(status, &json!({ "__type": code, "message": message }));
    answer.with("x-amzn-requestid", "00000000-0000-0000-0000-00000000fa17")
}

fn azure(status: u16, code: &str, message: &str) -> Answer {
    Answer::json(status, &json!({ "error": { "code": code, "message": message } }))
        .with("x-ms-request-id", "00000000-0000-0000-0000-00000000fa17")
}

fn google(status: u16, name: &str, message: &str, details: &[Value]) -> Answer {
    let error = json!({ "code": status, "message": message, "status": name, "details": details });
    Answer::json(status, &json!({ "error": error }))
}

fn vault(status: u16, message: &str) -> Answer {
    Answer::json(status, &json!({ "errors": [message] }))
}

//! From what a server answered, or did not, to our error: one table.

use std::fmt;
use std::time::Duration;

use claviger_provider_api::{Error, ErrorKind, tls};

/// The longest `Retry-After` that is passed on.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(1);

/// What a request was for: the same status means different things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Unwrap,
    UnwrapBatch,
    Sign,
    ReadKey,
    LogIn,
    LookUpToken,
    RenewToken,
    ReadSecret,
}

/// Why a request gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("the deadline passed before the server answered")]
    Deadline,
    #[error("no answer within {} ms (`timeout`)", .0.as_millis())]
    TimedOut(Duration),
    #[error("cannot reach the server")]
    Transport(#[source] reqwest::Error),
    #[error("{0}")]
    Refused(Refusal),
    #[error("the server's answer makes no sense: {0}")]
    Malformed(String),
}

/// An answer that is no success.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) operation: Operation,
    pub(crate) status: u16,
    /// The server's own sentences.
    pub(crate) messages: Vec<String>,
    pub(crate) retry_after: Option<Duration>,
    /// Few servers give one with an error.
    pub(crate) request_id: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP {} ({:?})", self.status, self.operation)?;
        for message in self.messages.iter().take(4) {
            let one_line = message.split_whitespace().collect::<Vec<_>>().join(" ");
            let short: String = one_line.chars().filter(|c| !c.is_control()).take(300).collect();
            write!(f, ": {short}")?;
        }
        match self.status {
            300..=399 => f.write_str(
                ": a redirect, which is never followed; write the address of the active node, or \
                 let standby nodes forward requests",
            ),
            _ => Ok(()),
        }
    }
}

impl Failure {
    /// Whether the server's certificate, or ours, was refused: a new CA file may help.
    pub(crate) fn is_certificate(&self) -> bool {
        matches!(self, Self::Transport(error) if tls::holds_certificate_error(error))
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let kind = match &failure {
            Failure::Deadline => ErrorKind::DeadlineExceeded,
            Failure::Refused(refusal) => kind(refusal),
            Failure::Transport(_) if failure.is_certificate() => ErrorKind::OperatorNeeded,
            Failure::Transport(error) if error.is_builder() => ErrorKind::Internal,
            Failure::TimedOut(_) | Failure::Transport(_) | Failure::Malformed(_) => {
                ErrorKind::Unavailable
            }
        };
        match failure {
            Failure::Refused(Refusal { ref request_id, .. }) => {
                let id = request_id.clone();
                Self::new(kind, failure).with_backend_request_id(id)
            }
            // Its URL holds the key's name and nothing more, but is said by the locator already.
            Failure::Transport(error) => Self::new(kind, Failure::Transport(error.without_url())),
            other => Self::new(kind, other),
        }
    }
}

/// What an answer that is no success means.
///
/// A bad ciphertext gives 500, and so does a server that fails: of an unwrap, what names the RSA
/// operation, and 400 for no reason that is the key's, may be the value's fault, and a canary decides.
pub(crate) fn kind(refusal: &Refusal) -> ErrorKind {
    let says = |text: &str| refusal.messages.iter().any(|message| message.contains(text));
    let retry_after = refusal.retry_after.map(|delay| delay.min(MAX_RETRY_AFTER));
    match refusal.status {
        429 => ErrorKind::Throttled { retry_after },
        503 if says("overloaded") => ErrorKind::Throttled { retry_after },
        500 if refusal.operation == Operation::Unwrap
            && (says("failed to RSA decrypt") || says("decryption error")) =>
        {
            ErrorKind::UnwrapFailed
        }
        400 if refusal.operation == Operation::Unwrap && !OF_THE_KEY.into_iter().any(says) => {
            ErrorKind::UnwrapFailed
        }
        500 if says("does not have a private counterpart") => ErrorKind::OperatorNeeded,
        408 | 412 | 472 | 473 | 500..=599 => ErrorKind::Unavailable,
        _ => ErrorKind::OperatorNeeded,
    }
}

/// What the error of one item of a batch means. The status is the whole batch's: the text alone tells.
pub(crate) fn kind_of_item(text: &str) -> ErrorKind {
    let of_the_value = text.contains("invalid ciphertext") || text.contains("missing ciphertext");
    let of_the_key = OF_THE_KEY.into_iter().any(|said| text.contains(said));
    kind(&Refusal {
        operation: Operation::Unwrap,
        status: if of_the_value || of_the_key { 400 } else { 500 },
        messages: vec![text.to_owned()],
        retry_after: None,
        request_id: None,
    })
}

/// What a 400 says that is about the key and not about the value.
const OF_THE_KEY: [&str; 6] = [
    "encryption key not found",
    "disallowed by policy",
    "version is too new",
    "soft deleted",
    "unsupported operation",
    "does not support",
];

#[cfg(test)]
mod tests {
    use super::*;
    use ErrorKind::{OperatorNeeded, Unavailable, UnwrapFailed};
    use Operation::{
        LogIn, LookUpToken, ReadKey, ReadSecret, RenewToken, Sign, Unwrap, UnwrapBatch,
    };

    const THROTTLED: ErrorKind = ErrorKind::Throttled { retry_after: None };

    /// Unwraps with 400, 403, 404, "failed to RSA decrypt" and "sealed", and refused logins by AppRole,
    /// are what OpenBao 2.4.0 and Vault 1.21.0 were seen to say; the others are from their documentation.
    const TABLE: [(Operation, u16, &str, ErrorKind); 42] = [
        (
            Unwrap,
            500,
            "1 error occurred:\n\t* failed to RSA decrypt the ciphertext: crypto/rsa: decryption error\n\n",
            UnwrapFailed,
        ),
        (Unwrap, 500, "internal error", Unavailable),
        (Unwrap, 500, "1 error occurred:\n\t* failed to audit request", Unavailable),
        (Unwrap, 500, "key version does not have a private counterpart", OperatorNeeded),
        (Unwrap, 400, "invalid ciphertext: could not decode base64", UnwrapFailed),
        (Unwrap, 400, "invalid ciphertext: no prefix", UnwrapFailed),
        (Unwrap, 400, "", UnwrapFailed),
        (Unwrap, 400, "invalid ciphertext: version is too new", OperatorNeeded),
        (
            Unwrap,
            400,
            "ciphertext or signature version is disallowed by policy (too old)",
            OperatorNeeded,
        ),
        (Unwrap, 400, "encryption key not found", OperatorNeeded),
        (Unwrap, 403, "permission denied", OperatorNeeded),
        (
            Unwrap,
            404,
            "no handler for route \"x/decrypt/k\". route entry not found.",
            OperatorNeeded,
        ),
        (Unwrap, 405, "unsupported operation", OperatorNeeded),
        (Unwrap, 412, "required index state not present", Unavailable),
        (Unwrap, 429, "request path \"transit/decrypt/k\": rate limit quota exceeded", THROTTLED),
        (Unwrap, 472, "", Unavailable),
        (Unwrap, 473, "", Unavailable),
        (Unwrap, 502, "", Unavailable),
        (Unwrap, 503, "Vault is sealed", Unavailable),
        (Unwrap, 503, "error performing token check: Vault is sealed", Unavailable),
        (Unwrap, 503, "temporarily overloaded, try again later", THROTTLED),
        (Unwrap, 504, "", Unavailable),
        (Unwrap, 307, "", OperatorNeeded),
        (
            Sign,
            400,
            "requested version for signing is less than the minimum encryption key version",
            OperatorNeeded,
        ),
        (Sign, 500, "internal error", Unavailable),
        (Sign, 500, "decryption error", Unavailable),
        (ReadKey, 404, "", OperatorNeeded),
        (ReadKey, 403, "1 error occurred:\n\t* permission denied\n\n", OperatorNeeded),
        (ReadKey, 503, "Vault is sealed", Unavailable),
        (LogIn, 400, "invalid role or secret ID", OperatorNeeded),
        (LogIn, 400, "error validating token: invalid issuer (iss) claim", OperatorNeeded),
        (LogIn, 403, "permission denied", OperatorNeeded),
        (LogIn, 500, "internal error", Unavailable),
        (LogIn, 429, "", THROTTLED),
        (LookUpToken, 403, "1 error occurred:\n\t* invalid token", OperatorNeeded),
        (RenewToken, 400, "lease is not renewable", OperatorNeeded),
        (UnwrapBatch, 400, "encryption key not found", OperatorNeeded),
        (UnwrapBatch, 500, "failed to parse batch input", Unavailable),
        (UnwrapBatch, 503, "Vault is sealed", Unavailable),
        (ReadSecret, 403, "1 error occurred:\n\t* permission denied\n\n", OperatorNeeded),
        (ReadSecret, 404, "", OperatorNeeded),
        (ReadSecret, 503, "Vault is sealed", Unavailable),
    ];

    fn refusal(operation: Operation, status: u16, message: &str) -> Refusal {
        let messages = vec![message.to_owned()];
        Refusal { operation, status, messages, retry_after: None, request_id: None }
    }

    #[test]
    fn every_recorded_answer_has_its_kind() {
        for (operation, status, message, expected) in TABLE {
            let refusal = refusal(operation, status, message);
            assert_eq!(kind(&refusal), expected, "{refusal}");
            assert_eq!(Error::from(Failure::Refused(refusal)).kind(), expected);
        }
    }

    #[test]
    fn an_item_of_a_batch_means_what_it_would_alone() {
        for (operation, status, message, expected) in TABLE {
            if operation == Unwrap && matches!(status, 400 | 500) && !message.is_empty() {
                assert_eq!(kind_of_item(message), expected, "{message}");
            }
        }
    }

    #[test]
    fn the_servers_own_delay_is_passed_on_within_reason() {
        let retry_after = Some(Duration::from_secs(7));
        for (status, message) in [(429, ""), (503, "temporarily overloaded")] {
            let refusal = Refusal { retry_after, ..refusal(Unwrap, status, message) };
            assert_eq!(kind(&refusal), ErrorKind::Throttled { retry_after });
            let refusal = Refusal { retry_after: Some(Duration::MAX), ..refusal };
            let retry_after = Some(MAX_RETRY_AFTER);
            assert_eq!(kind(&refusal), ErrorKind::Throttled { retry_after });
        }
    }

    #[test]
    fn a_servers_words_stay_one_short_line() {
        let text =
            refusal(Unwrap, 500, &format!("a\n\tb\u{1b}[31m{}", "x".repeat(5000))).to_string();
        assert!(text.starts_with("HTTP 500 (Unwrap): a b[31mxxx"), "{text}");
        assert!(text.len() < 400 && !text.contains(char::is_control), "{text}");
    }

    #[test]
    fn the_deadline_is_the_callers_and_the_timeout_the_backends() {
        assert_eq!(Error::from(Failure::Deadline).kind(), ErrorKind::DeadlineExceeded);
        let error = Error::from(Failure::TimedOut(Duration::from_secs(3)));
        assert_eq!(error.kind(), Unavailable);
        assert!(error.to_string().contains("3000 ms"), "{error}");
    }
}

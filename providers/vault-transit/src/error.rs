//! From what a server answered, or did not, to our error: one table.

use std::fmt;
use std::time::Duration;

use claviger_provider_api::foreign::printable;
use claviger_provider_api::http::NoAnswer;
use claviger_provider_api::{Cause, Error, ErrorKind};

/// What a request was for: the same status means different things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Unwrap,
    UnwrapBatch,
    Sign,
    ReadKey,
    MakeKey,
    LogIn,
    LookUpToken,
    RenewToken,
    ReadSecret,
}

/// Why a request gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
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
            write!(f, ": {}", printable(message))?;
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
        matches!(self, Self::NoAnswer(why) if why.is_certificate())
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let (kind, cause) = match &failure {
            Failure::NoAnswer(why) => why.meaning(),
            Failure::Refused(refusal) => meaning(refusal),
            Failure::Malformed(_) => (ErrorKind::Unavailable, Some(Cause::BackendFailing)),
        };
        let id = match &failure {
            Failure::Refused(Refusal { request_id, .. }) => request_id.clone(),
            _ => None,
        };
        Self::new(kind, failure).with_cause(cause).with_backend_request_id(id)
    }
}

/// What an answer that is no success means.
///
/// A bad ciphertext gives 500, and so does a server that fails: of an unwrap, what names the RSA
/// operation, and 400 for no reason that is the key's, may be the value's fault, and a canary decides.
pub(crate) fn meaning(refusal: &Refusal) -> (ErrorKind, Option<Cause>) {
    let Refusal { operation, retry_after, .. } = *refusal;
    match refusal.status {
        429 => (ErrorKind::Throttled { retry_after }, None),
        503 if refusal.says("overloaded") => (ErrorKind::Throttled { retry_after }, None),
        500 if operation == Operation::Unwrap
            && (refusal.says("failed to RSA decrypt") || refusal.says("decryption error")) =>
        {
            (ErrorKind::UnwrapFailed, None)
        }
        400 if operation == Operation::Unwrap && refusal.of_the_key().is_none() => {
            (ErrorKind::UnwrapFailed, None)
        }
        500 if refusal.says("does not have a private counterpart") => {
            (ErrorKind::OperatorNeeded, Some(Cause::KeyUnfit))
        }
        503 if refusal.says("sealed") => (ErrorKind::Unavailable, Some(Cause::Sealed)),
        408 | 412 | 472 | 473 | 500..=599 => (ErrorKind::Unavailable, Some(Cause::BackendFailing)),
        _ => (ErrorKind::OperatorNeeded, refusal.cause()),
    }
}

impl Refusal {
    fn says(&self, text: &str) -> bool {
        self.messages.iter().any(|message| message.contains(text))
    }

    /// What a sentence about the key means; none if there is no such sentence.
    fn of_the_key(&self) -> Option<Cause> {
        let row = OF_THE_KEY.into_iter().find(|(text, _)| self.says(text));
        row.map(|(_, cause)| cause)
    }

    /// Who or what an operator must look at.
    fn cause(&self) -> Option<Cause> {
        match (self.operation, self.status) {
            // An address that is not the active node's; a namespace or mount that is not there.
            (_, 300..=399) | (Operation::LogIn, 404) => None,
            (Operation::LogIn | Operation::LookUpToken | Operation::RenewToken, _) | (_, 401) => {
                Some(Cause::CredentialsRefused)
            }
            (_, 403) => Some(Cause::NotPermitted),
            (Operation::ReadSecret, _) => Some(Cause::SecretFile),
            (_, 404) => Some(Cause::KeyAbsent),
            _ => self.of_the_key(),
        }
    }
}

/// What the error of one item of a batch means. The status is the whole batch's: the text alone tells.
pub(crate) fn meaning_of_item(text: &str) -> (ErrorKind, Option<Cause>) {
    let of_the_value = text.contains("invalid ciphertext") || text.contains("missing ciphertext");
    let of_the_key = OF_THE_KEY.into_iter().any(|(said, _)| text.contains(said));
    meaning(&Refusal {
        operation: Operation::Unwrap,
        status: if of_the_value || of_the_key { 400 } else { 500 },
        messages: vec![text.to_owned()],
        retry_after: None,
        request_id: None,
    })
}

/// What a 400 says that is about the key and not about the value. OpenBao writes "soft-deleted key".
const OF_THE_KEY: [(&str, Cause); 7] = [
    ("encryption key not found", Cause::KeyAbsent),
    ("disallowed by policy", Cause::KeyDisabled),
    ("version is too new", Cause::KeyAbsent),
    ("soft-deleted", Cause::KeyDisabled),
    ("soft deleted", Cause::KeyDisabled),
    ("unsupported operation", Cause::KeyUnfit),
    ("does not support", Cause::KeyUnfit),
];

#[cfg(test)]
mod tests {
    use super::*;
    use ErrorKind::{OperatorNeeded, Unavailable, UnwrapFailed};
    use Operation::{
        LogIn, LookUpToken, MakeKey, ReadKey, ReadSecret, RenewToken, Sign, Unwrap, UnwrapBatch,
    };

    type Meaning = (ErrorKind, Option<Cause>);
    const FAILED: Meaning = (UnwrapFailed, None);
    const FAILING: Meaning = (Unavailable, Some(Cause::BackendFailing));
    const SEALED: Meaning = (Unavailable, Some(Cause::Sealed));
    const THROTTLED: Meaning = (ErrorKind::Throttled { retry_after: None }, None);
    const ABSENT: Meaning = (OperatorNeeded, Some(Cause::KeyAbsent));
    const DISABLED: Meaning = (OperatorNeeded, Some(Cause::KeyDisabled));
    const UNFIT: Meaning = (OperatorNeeded, Some(Cause::KeyUnfit));
    const DENIED: Meaning = (OperatorNeeded, Some(Cause::NotPermitted));
    const LOGIN: Meaning = (OperatorNeeded, Some(Cause::CredentialsRefused));
    const SECRET: Meaning = (OperatorNeeded, Some(Cause::SecretFile));
    const OTHER: Meaning = (OperatorNeeded, None);

    /// Unwraps with 400, 403, 404, "failed to RSA decrypt" and "sealed", and refused logins by AppRole,
    /// are what OpenBao 2.4.0 and Vault 1.21.0 were seen to say; the others are from their documentation.
    const TABLE: [(Operation, u16, &str, Meaning); 47] = [
        (
            Unwrap,
            500,
            "1 error occurred:\n\t* failed to RSA decrypt the ciphertext: crypto/rsa: decryption error\n\n",
            FAILED,
        ),
        (Unwrap, 500, "internal error", FAILING),
        (Unwrap, 500, "1 error occurred:\n\t* failed to audit request", FAILING),
        (Unwrap, 500, "key version does not have a private counterpart", UNFIT),
        (Unwrap, 400, "invalid ciphertext: could not decode base64", FAILED),
        (Unwrap, 400, "invalid ciphertext: no prefix", FAILED),
        (Unwrap, 400, "", FAILED),
        (Unwrap, 400, "invalid ciphertext: version is too new", ABSENT),
        (
            Unwrap,
            400,
            "ciphertext or signature version is disallowed by policy (too old)",
            DISABLED,
        ),
        (Unwrap, 400, "encryption key not found", ABSENT),
        (Unwrap, 400, "refusing to use soft-deleted key", DISABLED),
        (ReadKey, 400, "key is soft deleted", DISABLED),
        (LogIn, 404, "no handler for route", OTHER),
        (Unwrap, 403, "permission denied", DENIED),
        (Unwrap, 404, "no handler for route \"x/decrypt/k\". route entry not found.", ABSENT),
        (Unwrap, 405, "unsupported operation", UNFIT),
        (Unwrap, 412, "required index state not present", FAILING),
        (Unwrap, 429, "request path \"transit/decrypt/k\": rate limit quota exceeded", THROTTLED),
        (Unwrap, 472, "", FAILING),
        (Unwrap, 473, "", FAILING),
        (Unwrap, 502, "", FAILING),
        (Unwrap, 503, "Vault is sealed", SEALED),
        (Unwrap, 503, "error performing token check: Vault is sealed", SEALED),
        (Unwrap, 503, "temporarily overloaded, try again later", THROTTLED),
        (Unwrap, 504, "", FAILING),
        (Unwrap, 307, "", OTHER),
        (
            Sign,
            400,
            "requested version for signing is less than the minimum encryption key version",
            OTHER,
        ),
        (Sign, 500, "internal error", FAILING),
        (Sign, 500, "decryption error", FAILING),
        (ReadKey, 404, "", ABSENT),
        (ReadKey, 403, "1 error occurred:\n\t* permission denied\n\n", DENIED),
        (ReadKey, 503, "Vault is sealed", SEALED),
        (MakeKey, 403, "1 error occurred:\n\t* permission denied\n\n", DENIED),
        (MakeKey, 500, "internal error", FAILING),
        (LogIn, 400, "invalid role or secret ID", LOGIN),
        (LogIn, 400, "error validating token: invalid issuer (iss) claim", LOGIN),
        (LogIn, 403, "permission denied", LOGIN),
        (LogIn, 500, "internal error", FAILING),
        (LogIn, 429, "", THROTTLED),
        (LookUpToken, 403, "1 error occurred:\n\t* invalid token", LOGIN),
        (RenewToken, 400, "lease is not renewable", LOGIN),
        (UnwrapBatch, 400, "encryption key not found", ABSENT),
        (UnwrapBatch, 500, "failed to parse batch input", FAILING),
        (UnwrapBatch, 503, "Vault is sealed", SEALED),
        (ReadSecret, 403, "1 error occurred:\n\t* permission denied\n\n", DENIED),
        (ReadSecret, 404, "", SECRET),
        (ReadSecret, 503, "Vault is sealed", SEALED),
    ];

    fn refusal(operation: Operation, status: u16, message: &str) -> Refusal {
        let messages = vec![message.to_owned()];
        Refusal { operation, status, messages, retry_after: None, request_id: None }
    }

    #[test]
    fn every_recorded_answer_has_its_kind_and_its_cause() {
        for (operation, status, message, expected) in TABLE {
            let error = Error::from(Failure::Refused(refusal(operation, status, message)));
            assert_eq!((error.kind(), error.cause()), expected, "{error}");
        }
    }

    #[test]
    fn an_item_of_a_batch_means_what_it_would_alone() {
        for (operation, status, message, expected) in TABLE {
            if operation == Unwrap && matches!(status, 400 | 500) && !message.is_empty() {
                assert_eq!(meaning_of_item(message), expected, "{message}");
            }
        }
    }

    #[test]
    fn the_servers_own_delay_is_passed_on() {
        let retry_after = Some(Duration::from_secs(7));
        for (status, message) in [(429, ""), (503, "temporarily overloaded")] {
            let refusal = Refusal { retry_after, ..refusal(Unwrap, status, message) };
            assert_eq!(meaning(&refusal), (ErrorKind::Throttled { retry_after }, None));
        }
    }

    #[test]
    fn a_servers_words_stay_one_short_line() {
        let text =
            refusal(Unwrap, 500, &format!("a\n\tb\u{1b}[31m{}", "x".repeat(5000))).to_string();
        assert!(text.starts_with("HTTP 500 (Unwrap): a b [31mxxx"), "{text}");
        assert!(text.len() < 450 && !text.contains(char::is_control), "{text}");
    }

    #[test]
    fn the_deadline_is_the_callers_and_the_timeout_the_backends() {
        let error = Error::from(Failure::from(NoAnswer::Deadline));
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
        let error = Error::from(Failure::from(NoAnswer::TimedOut(Duration::from_secs(3))));
        assert_eq!((error.kind(), error.cause()), (Unavailable, Some(Cause::NoAnswer)));
        assert!(error.to_string().contains("3000 ms"), "{error}");
    }
}

//! What goes wrong on purpose.

use std::time::Duration;

use serde_json::Value;

use crate::status::Status;

/// What happens to one request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This answer instead of the right one: status, headers, body.
    Answer(u16, Vec<(&'static str, String)>, String),
    /// The answer comes after this time.
    Slow(Duration),
    /// The connection is cut without an answer.
    Cut,
    /// The connection is cut in the middle of the answer.
    Truncated,
    /// The right answer, with these fields in place of its own; null takes one away.
    Changed(Value),
    /// KMS sees other bytes than those that were sent.
    CorruptedRequest,
}

impl Fault {
    /// An error as KMS words it: a code of `google.rpc.Code` by its name, and a message.
    pub fn error(code: &'static str, message: &str) -> Self {
        Self::of(&Status::new(code, message.to_owned()))
    }

    /// The quota is used up; with the delay that KMS names, if it names one.
    pub fn throttled(retry_delay: Option<Duration>) -> Self {
        Self::of(&Status::throttled(retry_delay))
    }

    fn of(status: &Status) -> Self {
        let headers = vec![("content-type", "application/json; charset=UTF-8".to_owned())];
        Self::Answer(status.http(), headers, status.to_json().to_string())
    }
}

/// Which checksum is wrong in every answer, until it is switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WrongCrc {
    /// `pemCrc32c` of a public key.
    Pem,
    /// `plaintextCrc32c`.
    Plaintext,
    /// `signatureCrc32c`.
    Signature,
    /// `verifiedCiphertextCrc32c` and `verifiedDigestCrc32c` are false: ours did not arrive.
    NotVerified,
}

//! The one error of every provider. Its kind says what to do; its source is for log and audit only.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use crate::cause::Cause;
use crate::foreign;

/// Why an operation failed, as far as a caller needs to know. Closed: it is
/// matched without a wildcard where it becomes a gRPC status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The backend did not unwrap this value. Where [`crate::WrappingKey::failure_needs_check`]
    /// says so, only a check can tell whether the value or the backend was at fault.
    UnwrapFailed,
    /// The backend cannot be reached or lost its session; nothing is known about the value.
    Unavailable,
    /// The backend or a queue has no room; try again later.
    Throttled {
        /// The backend's own delay, if it named one.
        retry_after: Option<Duration>,
    },
    /// The caller's deadline passed before the backend was asked or answered.
    DeadlineExceeded,
    /// An operator must act: PIN refused, key missing, other key found, key not permitted.
    OperatorNeeded,
    /// A broken promise of this program or of the backend, such as wrong bytes with success.
    Internal,
}

impl ErrorKind {
    /// Whether the operation may be tried once more after something was repaired (the one rule
    /// about retries; the one place that retries is the daemon's guard).
    pub fn may_retry_after_repair(self) -> bool {
        match self {
            Self::UnwrapFailed | Self::Unavailable => true,
            Self::Throttled { .. }
            | Self::DeadlineExceeded
            | Self::OperatorNeeded
            | Self::Internal => false,
        }
    }

    /// A word for metrics and audit records.
    pub fn reason(self) -> &'static str {
        match self {
            Self::UnwrapFailed => "unwrap_failed",
            Self::Unavailable => "unavailable",
            Self::Throttled { .. } => "throttled",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::OperatorNeeded => "operator_needed",
            Self::Internal => "internal",
        }
    }
}

/// The one error of every provider.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    cause: Option<Cause>,
    source: Box<dyn StdError + Send + Sync>,
    backend_request_id: Option<String>,
    next_look: Option<Duration>,
}

impl Error {
    /// An error of `kind`; `source` says what happened, for the operator. Never put a secret in it.
    pub fn new(kind: ErrorKind, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        let source = source.into();
        let cause = source.is::<AnotherKey>().then_some(Cause::AnotherKey);
        Self { kind, cause, source, backend_request_id: None, next_look: None }
    }

    /// An error of the kind [`ErrorKind::OperatorNeeded`], with its cause.
    pub fn needs_operator(
        cause: Cause,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self::new(ErrorKind::OperatorNeeded, source).with_cause(cause)
    }

    /// Adds the cause, where the provider knows more than the kind says. A cause that was there is
    /// replaced.
    #[must_use]
    pub fn with_cause(mut self, cause: impl Into<Option<Cause>>) -> Self {
        self.cause = cause.into();
        self
    }

    /// Adds the id under which the backend logged the request.
    #[must_use]
    pub fn with_backend_request_id(mut self, id: Option<String>) -> Self {
        self.backend_request_id = id;
        self
    }

    /// Adds how long it takes until the backend is asked again: before that every call gets this error.
    #[must_use]
    pub fn with_next_look(mut self, next_look: Option<Duration>) -> Self {
        self.next_look = next_look;
        self
    }

    /// Another kind and sentence for the same event: its cause and the backend's request id stay.
    #[must_use]
    pub fn retold(
        self,
        kind: ErrorKind,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self { kind, source: source.into(), ..self }
    }

    /// This error with a sentence before it that says what failed: `what: source`.
    #[must_use]
    pub fn in_context(self, what: impl fmt::Display) -> Self {
        let text = format!("{what}: {self}");
        let kind = self.kind;
        self.retold(kind, text)
    }

    /// A copy of this error for another call that waited for the same event.
    #[must_use]
    pub fn repeated(&self) -> Self {
        Self {
            kind: self.kind,
            cause: self.cause,
            source: self.to_string().into(),
            backend_request_id: self.backend_request_id.clone(),
            next_look: self.next_look,
        }
    }

    /// The other key, where one was found in place of the pinned one.
    pub fn another_key(&self) -> Option<&AnotherKey> {
        self.source.downcast_ref()
    }

    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What went wrong, where the provider knows more than the kind says.
    pub fn cause(&self) -> Option<Cause> {
        self.cause
    }

    /// How long it takes until the backend is asked again, where a provider answers without asking it.
    pub fn next_look(&self) -> Option<Duration> {
        self.next_look
    }

    /// The id under which the backend logged the request, if it gave one.
    pub fn backend_request_id(&self) -> Option<&str> {
        self.backend_request_id.as_deref()
    }
}

/// The source of an error about a key that is not the pinned one, for a provider that can tell more
/// of it than its hash.
#[derive(Debug, thiserror::Error)]
#[error(
    "another key lies here: {reason}; found public_key_sha256 {}, pinned is {}",
    hex::encode(found),
    hex::encode(pinned)
)]
pub struct AnotherKey {
    /// SHA-256 of the public key that was found.
    pub found: [u8; 32],
    /// SHA-256 of the public key that should be there.
    pub pinned: [u8; 32],
    /// Which key it is, and what to do.
    pub reason: String,
}

impl fmt::Display for Error {
    /// The source and all its causes in one line, each said once.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&foreign::chain(&*self.source))
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.source()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_the_cause_that_it_was_given_last() {
        let error = Error::new(ErrorKind::OperatorNeeded, "refused");
        assert_eq!(error.cause(), None);
        let error = error.with_cause(Cause::NotPermitted).with_cause(Cause::KeyDisabled);
        assert_eq!(error.cause(), Some(Cause::KeyDisabled));
        let error = Error::needs_operator(Cause::KeyAbsent, "no such key");
        assert_eq!(
            (error.kind(), error.cause()),
            (ErrorKind::OperatorNeeded, Some(Cause::KeyAbsent))
        );
        assert_eq!(error.with_cause(None).cause(), None);
    }

    #[test]
    fn another_key_as_the_source_is_the_cause() {
        let source = AnotherKey { found: [1; 32], pinned: [2; 32], reason: "alias/a".to_owned() };
        let error = Error::new(ErrorKind::OperatorNeeded, source);
        assert_eq!(error.cause(), Some(Cause::AnotherKey));
        assert!(error.another_key().is_some());
    }
}

//! The one error of every provider. Its kind says what to do; its source is for log and audit only.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

/// Why an operation failed, as far as anybody but the operator needs to know. Closed: it is
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
    source: Box<dyn StdError + Send + Sync>,
    backend_request_id: Option<String>,
}

impl Error {
    /// An error of `kind`; `source` says what happened, for the operator. Never put a secret in it.
    pub fn new(kind: ErrorKind, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { kind, source: source.into(), backend_request_id: None }
    }

    /// Adds the id under which the backend logged the request.
    #[must_use]
    pub fn with_backend_request_id(mut self, id: Option<String>) -> Self {
        self.backend_request_id = id;
        self
    }

    /// The other key, where one was found in place of the pinned one.
    pub fn another_key(&self) -> Option<&AnotherKey> {
        self.source.downcast_ref()
    }

    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
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
    /// The source and all its causes in one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source)?;
        let mut cause = self.source.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.source()
    }
}

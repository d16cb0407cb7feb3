//! Why a record is not in the log, or the log cannot be used.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Why a record is not in the log. Cheap to clone: one failed sync fails many records.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The file cannot be used as an audit log.
    #[error("the audit log {} cannot be opened: {reason}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: Arc<str>,
    },
    /// Checkpoints cannot be signed or kept.
    #[error("audit.checkpoints: {} {reason}", path.display())]
    Checkpoints {
        /// The key or the file of checkpoints.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: Arc<str>,
    },
    /// Another process writes this file.
    #[error(
        "the audit log {} is in use by another process; give each daemon its own `file` in [audit]",
        path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The record could not be written or synced.
    #[error("the audit log cannot be written: {0}")]
    Write(Arc<io::Error>),
    /// A sink cannot be used, or does not take records.
    #[error("audit.sinks.{name}: {reason}")]
    Sink {
        /// Its name in the configuration.
        name: Arc<str>,
        /// What is wrong.
        reason: Arc<str>,
    },
    /// The record is not where it must be after this time.
    #[error("the record is not durable after {} ms", limit.as_millis())]
    Hangs {
        /// `audit.hang_limit`.
        limit: Duration,
    },
    /// So much waits for the disk already that the record was not taken.
    #[error("the disk of the audit log does not keep up: {pending} bytes wait for it")]
    Behind {
        /// Bytes that wait.
        pending: usize,
    },
    /// The last write failed, so that nothing can be recorded at present.
    #[error("the audit log cannot be written at present")]
    Failing,
    /// The log was closed before the record was durable.
    #[error("the audit log is closed")]
    Closed,
}

impl AuditError {
    /// Whether the file has the record, and what is missing is a sink, or time.
    pub fn is_in_the_file(&self) -> bool {
        matches!(self, Self::Sink { .. } | Self::Hangs { .. })
    }

    pub(super) fn open(path: &Path, reason: impl Into<String>) -> Self {
        Self::Open { path: path.to_owned(), reason: reason.into().into() }
    }
}

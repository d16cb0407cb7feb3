//! How the log is: what its thread has told last, for status and metrics.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::chain::Head;
use super::sinks::SinkState;

/// How the log is.
#[derive(Clone, Debug)]
pub struct LogState {
    /// Where the chain ends.
    pub head: Head,
    /// The last checkpoint of this process, if it wrote one.
    pub checkpoint: Option<Covered>,
    /// Lines that no checkpoint covers yet; 0 where none are written.
    pub uncovered: u64,
    /// Why the last checkpoint is not where it should be: it was not signed, or its second file has it
    /// not. The next one tries again.
    pub checkpoint_error: Option<Arc<str>>,
}

/// What a checkpoint covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Covered {
    /// Lines, from the first of the chain on.
    pub records: u64,
    /// When it was written.
    pub at: SystemTime,
}

/// The log as a whole.
#[derive(Clone, Debug)]
pub struct AuditState {
    /// The file.
    pub path: PathBuf,
    /// Whether it cannot be written at present: calls fail.
    pub is_failing: bool,
    /// Whether only unwrap, rewrap and sign can be recorded.
    pub is_in_reserve: bool,
    /// Bytes that are left for it, where the file system tells.
    pub free_bytes: Option<u64>,
    /// Bytes of lines that wait for the write before them.
    pub waiting_bytes: u64,
    /// For how long the write that goes on has lasted; nothing where none does.
    pub writing_for: Duration,
    /// Where lines go beside the file.
    pub sinks: Vec<SinkState>,
    /// What its thread has told.
    pub log: LogState,
}

impl Default for LogState {
    fn default() -> Self {
        Self { head: Head::START, checkpoint: None, uncovered: 0, checkpoint_error: None }
    }
}

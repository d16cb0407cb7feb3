//! When checkpoints are written: into the log itself, and into a second file.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::AuditError;
use super::chain::Head;
use super::checkpoint::Signer;
use super::line::with_buffer;
use crate::daemon::config;
use crate::daemon::records::creatable::check_creatable;

/// After so many records a checkpoint is due, however little time has passed.
const MOST_RECORDS: u64 = 10_000;
/// Longer than a signed note with the longest origin.
const LONGEST_NOTE: usize = 1024;

/// The checkpoints of one log.
pub(super) struct Checkpoints {
    signer: Signer,
    file: PathBuf,
    every: Duration,
    /// When the last one was written.
    last: Instant,
    /// Records of the log that need no further checkpoint: those until the last one, and itself.
    covered: u64,
    /// So that a second file that cannot be written is told once.
    failed: bool,
}

impl Checkpoints {
    /// Reads the key. The second file is made with the first checkpoint.
    pub(super) fn open(config: &config::Checkpoints) -> Result<Self, AuditError> {
        let config::Checkpoints { origin, key, file, every } = config;
        let signer = Signer::from_pem_file(origin, key).map_err(|reason| refused(key, reason))?;
        let (file, every) = (file.clone(), *every);
        Ok(Self { signer, file, every, last: Instant::now(), covered: 0, failed: false })
    }

    /// Sees that [`Self::open`] would succeed and that the second file can be written or made.
    pub(super) fn check(config: &config::Checkpoints) -> Result<(), AuditError> {
        Self::open(config)?;
        let file = &config.file;
        let writable = match OpenOptions::new().append(true).open(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => check_creatable(file),
            opened => opened.map(|_| ()),
        };
        writable.map_err(|error| refused(file, error.to_string()))
    }

    /// The log ends at `head` before this process writes: only what it adds makes a checkpoint due.
    pub(super) fn begin(&mut self, head: &Head) {
        self.covered = head.records;
    }

    /// When the next one is due, if the log has grown since the last.
    pub(super) fn due(&self, head: &Head) -> Option<Instant> {
        let more = head.records.saturating_sub(self.covered);
        let every = if more >= MOST_RECORDS { Duration::ZERO } else { self.every };
        (more > 0).then(|| self.last + every)
    }

    /// The next one is due at once, if the log has grown since the last.
    pub(super) fn hurry(&mut self) {
        self.every = Duration::ZERO;
    }

    /// The signed note about the log until `head`, and the line that says it in the log.
    pub(super) fn make(&self, instance: Uuid, head: &Head) -> (String, Vec<u8>) {
        let note = self.signer.sign(head);
        let line = with_buffer(
            instance,
            |line| {
                line.plain("event", "checkpoint");
                line.number("size", head.records);
                line.text("note", &note, LONGEST_NOTE);
            },
            // Like a gap it has no `seq`: those of the lines behind it are given already.
            |body| [b"{", &body[1..]].concat(),
        );
        (note, line)
    }

    /// The line is durable: now the second file gets the note, or gives the reason why not.
    pub(super) fn written(&mut self, head: &Head, note: &str) -> Option<Arc<str>> {
        self.last = Instant::now();
        // The checkpoint is a record itself.
        self.covered = head.records + 1;
        let error = append(&self.file, note).err();
        let was_failed = std::mem::replace(&mut self.failed, error.is_some());
        let error = error?;
        if !was_failed {
            tracing::error!(
                path = %self.file.display(), %error,
                "a checkpoint of the audit log was not kept in its second file"
            );
        }
        Some(format!("{}: {error}", self.file.display()).into())
    }
}

fn append(path: &Path, note: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
    file.write_all(format!("{note}\n").as_bytes())?;
    file.sync_data()
}

fn refused(path: &Path, reason: String) -> AuditError {
    AuditError::Checkpoints { path: path.to_owned(), reason: reason.into() }
}

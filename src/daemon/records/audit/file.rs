//! The file over its life: durable writes, failures, rotation.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::AuditError;
use super::open::{Identity, Open, identity};

/// The audit file, locked for this process.
pub(super) struct LogFile {
    path: PathBuf,
    /// `None` after a failure, until it can be opened again.
    open: Option<Open>,
    /// What lies behind this length of this file was never durable.
    cut: Option<(Identity, u64)>,
    /// So that a rotation that went wrong is reported once.
    rotation_failed: bool,
}

impl LogFile {
    pub(super) fn open(path: &Path) -> Result<Self, AuditError> {
        let open = Open::at(path, None)?;
        Ok(Self { path: path.to_owned(), open: Some(open), cut: None, rotation_failed: false })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes `lines` durable, or nothing of them: after an error the file ends where it ended
    /// before, at the latest when it is opened again, which the next call does.
    pub(super) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let mut open = match self.open.take() {
            Some(open) => self.follow(open)?,
            None => Open::at(&self.path, self.cut).map_err(io::Error::other)?,
        };
        self.cut = None;
        match open.append(lines) {
            Ok(()) => {
                self.open = Some(open);
                Ok(())
            }
            Err(error) => {
                // A failed sync may not fail twice: the pages count as clean. So the file is
                // closed, and what was written is never taken for durable.
                let _ = open.file.set_len(open.length);
                self.cut = Some((open.identity, open.length));
                Err(error)
            }
        }
    }

    /// Goes on in a new file when the old one was renamed or removed, and never builds on what
    /// another program did to the file.
    fn follow(&mut self, open: Open) -> io::Result<Open> {
        let ours = open.file.metadata()?;
        if fs::symlink_metadata(&self.path).is_ok_and(|there| identity(&there) == open.identity) {
            self.rotation_failed = false;
            if ours.len() == open.length {
                return Ok(open);
            }
            tracing::error!(
                path = %self.path.display(), expected = open.length, found = ours.len(),
                "another program changed the audit log: records may be missing"
            );
            drop(open);
            return Open::at(&self.path, None).map_err(io::Error::other);
        }
        match Open::at(&self.path, None) {
            Ok(new) => {
                tracing::info!(path = %self.path.display(), "the audit log was rotated");
                self.rotation_failed = false;
                Ok(new)
            }
            Err(error) if ours.nlink() == 0 => Err(io::Error::other(error)),
            Err(error) => {
                // The renamed file is still there: records stay durable in it meanwhile.
                if !std::mem::replace(&mut self.rotation_failed, true) {
                    tracing::error!(%error, "the audit log was rotated, but there is no new file; \
                        records still go to the old one");
                }
                Ok(open)
            }
        }
    }
}

#[cfg(test)]
impl LogFile {
    /// A log at `path` whose open file is `instead`: how tests make a write fail.
    pub(super) fn with_open_file(path: &Path, instead: fs::File) -> Result<Self, AuditError> {
        let mut log = Self::open(path)?;
        let real = std::mem::replace(&mut log.open.as_mut().expect("just opened").file, instead);
        real.unlock().expect("the lock is ours");
        Ok(log)
    }
}

//! The file over its life: durable writes, failures, and going on in a new one.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::AuditError;
use super::chain::Head;
use super::open::{Access, Identity, Open, identity};
use super::room::{Allocate, Room};
use super::rotation::Rotation;
use super::sinks::Piece;
use crate::daemon::config;

/// What another program did to the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Changed {
    /// Lines are gone, as `copytruncate` of logrotate does it.
    Cut,
    /// It wrote into it.
    Written,
}

/// The audit file, locked for this process.
pub(super) struct LogFile {
    path: PathBuf,
    access: Access,
    room: Room,
    /// `None` after a failure, until it can be opened again.
    open: Option<Open>,
    /// Where the chain ends: behind the last durable line.
    head: Head,
    /// The lines of one write with their places in the chain; kept for its memory.
    linked: Vec<u8>,
    /// What lies behind this length of this file was never durable.
    cut: Option<(Identity, u64)>,
    /// So that a rotation that went wrong is reported once.
    rotation_failed: bool,
    rotation: Rotation,
    /// What another program did to the file, which is not recorded yet.
    changed: Option<Changed>,
}

impl LogFile {
    pub(super) fn open(config: &config::AuditFile, allocate: Allocate) -> Result<Self, AuditError> {
        let path = &config.path;
        let access = if config.group_reads { Access::Group } else { Access::Owner };
        let open = Open::at(path, access, None)?;
        let mut room = Room::new(allocate);
        room.keep(&open.file, open.length, 0);
        let head = open.head_of_chain(path)?;
        let modified = open.file.metadata().and_then(|found| found.modified());
        let rotation =
            Rotation::new(config.rotation, modified.unwrap_or_else(|_| SystemTime::now()));
        Ok(Self {
            path: path.to_owned(),
            access,
            room,
            open: Some(open),
            head,
            linked: Vec::new(),
            cut: None,
            rotation_failed: false,
            rotation,
            changed: None,
        })
    }

    /// What another program did to the file since this was asked last.
    pub(super) fn take_change(&mut self) -> Option<Changed> {
        self.changed.take()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the chain ends.
    pub(super) fn head(&self) -> Head {
        self.head
    }

    /// Makes `lines` durable, each with its place in the chain, or nothing of them: after an error the file
    /// ends where it ended before, at the latest when it is opened again, which the next call does. Gives
    /// where they are.
    pub(super) fn append(&mut self, lines: &[u8]) -> io::Result<Option<Piece>> {
        let mut linked = std::mem::take(&mut self.linked);
        linked.clear();
        let head = self.head.link(lines, &mut linked);
        let written = self.append_linked(&linked);
        // One flood must not keep its memory for ever.
        linked.shrink_to(1 << 20);
        self.linked = linked;
        let written = written?;
        self.head = head;
        Ok((written.from < written.to).then_some(Piece { records: head.records, ..written }))
    }

    fn append_linked(&mut self, lines: &[u8]) -> io::Result<Piece> {
        let mut open = match self.open.take() {
            Some(open) => {
                let open = self.follow(open)?;
                if lines.is_empty() { open } else { self.rotate(open)? }
            }
            None => self.open_anew(self.cut).map_err(io::Error::other)?,
        };
        self.cut = None;
        self.room.keep(&open.file, open.length, lines.len() as u64);
        let from = open.length;
        match open.append(lines) {
            Ok(()) => {
                let (file, to) = (Arc::clone(&open.reader), open.length);
                self.open = Some(open);
                if !lines.is_empty() {
                    self.rotation.written(SystemTime::now());
                }
                Ok(Piece { file, from, to, records: 0 })
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

    /// Whether only the reserve is left, and how many bytes are ready behind the end.
    pub(super) fn reserve(&self) -> (bool, u64) {
        let length = self.open.as_ref().map_or(0, |open| open.length);
        (self.room.is_reserve(), self.room.left(length))
    }

    fn open_anew(&mut self, cut: Option<(Identity, u64)>) -> Result<Open, AuditError> {
        let open = Open::at(&self.path, self.access, cut)?;
        self.room.start_anew();
        Ok(open)
    }

    /// Renames the file when that is due, and goes on in a new one.
    fn rotate(&mut self, open: Open) -> io::Result<Open> {
        let now = SystemTime::now();
        if !self.rotation.is_due(open.length, now) {
            return Ok(open);
        }
        match self.rotation.rename(&self.path, self.head.records, now) {
            Ok(()) => self.follow(open),
            Err(error) => {
                if !std::mem::replace(&mut self.rotation_failed, true) {
                    tracing::error!(%error, "the audit log cannot be rotated: records still go to the \
                        same file");
                }
                Ok(open)
            }
        }
    }

    /// Goes on in a new file when the old one was renamed or removed, and never builds on what
    /// another program did to the file.
    fn follow(&mut self, open: Open) -> io::Result<Open> {
        let ours = open.file.metadata()?;
        if fs::symlink_metadata(&self.path).is_ok_and(|there| identity(&there) == open.identity) {
            if ours.len() == open.length {
                return Ok(open);
            }
            let (changed, how) = if ours.len() < open.length {
                let how = "cut the audit log, as `copytruncate` of logrotate does: records may be missing; let logrotate rename the file instead";
                (Changed::Cut, how)
            } else {
                (Changed::Written, "wrote into the audit log")
            };
            self.changed = Some(changed);
            tracing::error!(
                path = %self.path.display(), expected = open.length, found = ours.len(),
                "another program {how}"
            );
            drop(open);
            return self.open_anew(None).map_err(io::Error::other);
        }
        match self.open_anew(None) {
            Ok(new) => {
                open.give_room_back();
                let path = self.path.display();
                if ours.nlink() == 0 {
                    tracing::warn!(
                        %path, lines_until = self.head.records,
                        "the audit log was deleted, or packed after it was renamed: records go to a new file"
                    );
                } else {
                    tracing::info!(%path, "the audit log was rotated");
                }
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

impl Drop for LogFile {
    fn drop(&mut self) {
        if let Some(open) = &self.open {
            open.give_room_back();
        }
    }
}

#[cfg(test)]
impl LogFile {
    /// A log at `path` whose open file is `instead`: how tests make a write fail.
    pub(super) fn with_open_file(path: &Path, instead: fs::File) -> Result<Self, AuditError> {
        let config = config::AuditFile::at(path.to_owned());
        let mut log = Self::open(&config, super::room::allocate)?;
        let real = std::mem::replace(&mut log.open.as_mut().expect("just opened").file, instead);
        real.unlock().expect("the lock is ours");
        Ok(log)
    }
}

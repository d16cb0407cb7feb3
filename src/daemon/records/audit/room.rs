//! Room for what must be recorded: blocks behind the end of the file that belong to it already.
//!
//! On a disk that fills up, by a caller or by another program, these blocks are still there for
//! unwrap, rewrap and sign; everything else is refused from the moment on when they cannot be
//! replenished.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

/// What is kept for unwrap, rewrap and sign: about 25,000 records.
pub(super) const RESERVE: u64 = 16 << 20;
/// How much is made ready at a time beyond it.
const STEP: u64 = 4 << 20;
/// How often a full disk is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// Makes blocks ready behind the end of a file, from an offset on, without changing its length.
pub(super) type Allocate = fn(&File, u64, u64) -> io::Result<()>;

/// The blocks that are ready behind the end of the audit file.
#[derive(Debug)]
pub(super) struct Room {
    allocate: Allocate,
    /// Up to this length of the file.
    ready_to: u64,
    /// Since when no more could be made ready.
    refused_at: Option<Instant>,
    /// Whether the file system can do it at all; else its free bytes are looked at.
    is_supported: bool,
    looked_at: Option<Instant>,
}

impl Room {
    /// Nothing is ready yet.
    pub(super) fn new(allocate: Allocate) -> Self {
        Self { allocate, ready_to: 0, refused_at: None, is_supported: true, looked_at: None }
    }

    /// Another file is written from now on, or this one was opened again.
    pub(super) fn start_anew(&mut self) {
        *self = Self::new(self.allocate);
    }

    /// Sees that the reserve is ready behind `length`, after `more` bytes that come next.
    pub(super) fn keep(&mut self, file: &File, length: u64, more: u64) {
        if !self.is_supported {
            return self.look(file);
        }
        let needed = length + more + RESERVE;
        if needed <= self.ready_to || self.refused_at.is_some_and(is_recent) {
            return;
        }
        match (self.allocate)(file, length, more + RESERVE + STEP) {
            Ok(()) => (self.ready_to, self.refused_at) = (needed + STEP, None),
            Err(error) if is_full(&error) => self.refused_at = Some(Instant::now()),
            Err(error) => {
                self.is_supported = false;
                tracing::warn!(
                    %error,
                    "the audit log's file system cannot reserve space: its free bytes are checked instead"
                );
                self.look(file);
            }
        }
    }

    /// The second best: others may take what is free.
    fn look(&mut self, file: &File) {
        if self.looked_at.is_some_and(is_recent) {
            return;
        }
        self.looked_at = Some(Instant::now());
        let is_short = rustix::fs::fstatvfs(file).is_ok_and(|system| free(&system) < RESERVE);
        self.refused_at = is_short.then(Instant::now);
    }

    /// Whether what is ready is all that is left.
    pub(super) fn is_reserve(&self) -> bool {
        self.refused_at.is_some()
    }

    /// Bytes that are ready behind `length`.
    pub(super) fn left(&self, length: u64) -> u64 {
        self.ready_to.saturating_sub(length)
    }
}

/// `fallocate` with `FALLOC_FL_KEEP_SIZE`.
pub(super) fn allocate(file: &File, from: u64, bytes: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    return Ok(rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, from, bytes)?);
    #[cfg(not(target_os = "linux"))]
    return Err(io::ErrorKind::Unsupported.into());
}

/// Bytes that the file system of the file at `path` still has for this user.
pub(super) fn free_bytes(path: &Path) -> io::Result<u64> {
    Ok(free(&rustix::fs::statvfs(path)?))
}

fn free(system: &rustix::fs::StatVfs) -> u64 {
    // A device has no blocks at all, and is never full.
    if system.f_blocks == 0 { u64::MAX } else { system.f_bavail.saturating_mul(system.f_frsize) }
}

fn is_full(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG))
}

fn is_recent(at: Instant) -> bool {
    at.elapsed() < RETRY
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(_: &File, _: u64, _: u64) -> io::Result<()> {
        Err(Errno::NOSPC.into())
    }

    fn unsupported(_: &File, _: u64, _: u64) -> io::Result<()> {
        Err(Errno::OPNOTSUPP.into())
    }

    #[test]
    fn blocks_are_ready_before_they_are_needed_and_the_length_stays() {
        let file = tempfile::tempfile().unwrap();
        let mut room = Room::new(allocate);
        room.keep(&file, 100, 50);
        assert!(!room.is_reserve());
        assert!(!room.is_supported || room.left(150) >= RESERVE);
        assert_eq!(file.metadata().unwrap().len(), 0);
    }

    #[test]
    fn a_disk_that_is_full_leaves_what_was_made_ready_and_is_asked_again() {
        let file = tempfile::tempfile().unwrap();
        let mut room = Room::new(allocate);
        room.keep(&file, 0, 0);
        room.allocate = full;
        let left = room.left(0);
        room.keep(&file, left - RESERVE + 1, 0);
        assert!(room.is_reserve());
        assert!(room.left(left - RESERVE + 1) < RESERVE);
        room.allocate = allocate;
        room.keep(&file, left, 0);
        assert!(room.is_reserve(), "not asked again at once");
        room.refused_at = Instant::now().checked_sub(RETRY);
        room.keep(&file, left, 0);
        assert!(!room.is_reserve());
    }

    #[test]
    fn where_no_blocks_can_be_kept_the_free_bytes_count() {
        let file = tempfile::tempfile().unwrap();
        let mut room = Room::new(unsupported);
        room.keep(&file, 0, 0);
        assert!(!room.is_supported && room.looked_at.is_some());
    }
}

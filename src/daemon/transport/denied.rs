//! The list of callers to refuse at once: one file, read again when it changes, valid whatever
//! happens to a reload of the configuration.

mod list;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use claviger_files::{FileError, Protection};

use crate::daemon::transport::caller::Peer;
use crate::daemon::transport::file_stamp::FileStamp;
use crate::daemon::transport::verdicts::TokenIdentity;
use list::List;
pub use list::{BadEntry, Entry, entries};

/// The largest list that is read, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// The denied callers in force.
///
/// The file has one entry a line: a URI SAN, a DNS SAN, a certificate's SHA-256 (64 hexadecimal
/// digits, colons allowed), `uid:N` or `token:ISSUER:SUBJECT`; `#` begins a comment. Any user may read it; only root and we may
/// write it. It must hold at least one line: an empty list is a comment. A line that is no entry
/// raises the alarm, and the others act.
#[derive(Debug)]
pub struct DeniedCallers {
    list: ArcSwap<List>,
    source: Mutex<Source>,
    generation: AtomicU64,
    failed: AtomicBool,
}

/// A list that was read and is not yet in force.
#[derive(Debug)]
pub struct PreparedDenied {
    list: List,
    bad: Vec<BadEntry>,
    source: Source,
}

impl PreparedDenied {
    /// The lines that are no entries.
    pub fn bad(&self) -> &[BadEntry] {
        &self.bad
    }
}

/// Why a list was refused as a whole.
#[derive(Debug, thiserror::Error)]
pub enum DeniedError {
    /// It cannot be read, or others could write it or put another one in its place.
    #[error(transparent)]
    File(#[from] FileError),
    /// It holds nothing at all.
    #[error("{path} is empty; a list without entries is a comment line: # none", path = .0.display())]
    Empty(PathBuf),
}

#[derive(Debug)]
struct Source {
    path: Option<PathBuf>,
    stamp: Option<FileStamp>,
}

impl DeniedCallers {
    /// Reads the list, or makes an empty one where there is no file.
    pub fn open(path: Option<&Path>) -> Result<Arc<Self>, DeniedError> {
        let PreparedDenied { list, bad, source } = Self::prepare(path)?;
        log_bad(path, &bad);
        Ok(Arc::new(Self {
            list: ArcSwap::from_pointee(list),
            source: Mutex::new(source),
            generation: AtomicU64::new(0),
            failed: AtomicBool::new(!bad.is_empty()),
        }))
    }

    /// Reads a list, perhaps from another file, without putting it in force.
    pub fn prepare(path: Option<&Path>) -> Result<PreparedDenied, DeniedError> {
        let stamp = path.map(FileStamp::of);
        let (list, bad) = path.map(read).transpose()?.unwrap_or_default();
        Ok(PreparedDenied { list, bad, source: Source { path: path.map(Path::to_owned), stamp } })
    }

    /// Puts a list in force.
    pub fn commit(&self, prepared: PreparedDenied) {
        log_bad(prepared.source.path.as_deref(), &prepared.bad);
        *self.source.lock().unwrap_or_else(PoisonError::into_inner) = prepared.source;
        self.put_in_force(prepared.list, &prepared.bad);
    }

    /// Looks whether the file has changed, and if so reads it. A file that is missing, empty or open
    /// to others leaves the last list in force; a line that is no entry is left out. Both raise the
    /// alarm. Blocks on the file system.
    pub fn poll(&self) {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        let Source { path: Some(path), stamp } = &mut *source else { return };
        let now = FileStamp::of(path);
        let changed = stamp.replace(now) != Some(now);
        if !changed && !self.failed() {
            return;
        }
        match read(path) {
            Ok((list, bad)) if changed || bad.is_empty() => {
                let entries = list.len();
                tracing::info!(path = %path.display(), entries, "denied callers read");
                log_bad(Some(path), &bad);
                self.put_in_force(list, &bad);
            }
            // Its bad lines were told when they came.
            Ok(_) => {}
            Err(error) => {
                if !self.failed.swap(true, Ordering::Relaxed) || changed {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "denied callers not read: the last list stays in force");
                }
            }
        }
    }

    /// Whether this peer is on the list. Cheap: to be asked for each call.
    pub fn denies(&self, peer: &Peer) -> bool {
        self.list.load().denies(peer)
    }

    /// Whether the subject of a token is on the list. Cheap: to be asked for each call.
    pub fn denies_token(&self, token: &TokenIdentity) -> bool {
        self.list.load().denies_token(token)
    }

    /// Whether the file as it is now could not be used, so that an older list is in force, or holds a
    /// line that is no entry.
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// The file of the list in force and the SHA-256 of its bytes; nothing without a file.
    pub fn file(&self) -> Option<(PathBuf, [u8; 32])> {
        let source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        Some((source.path.clone()?, self.list.load().file_sha256()))
    }

    /// How many entries the list in force has.
    pub fn entries(&self) -> usize {
        self.list.load().len()
    }

    /// Grows with each list that is put in force.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    fn put_in_force(&self, list: List, bad: &[BadEntry]) {
        self.list.store(Arc::new(list));
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.failed.store(!bad.is_empty(), Ordering::Relaxed);
    }
}

fn read(path: &Path) -> Result<(List, Vec<BadEntry>), DeniedError> {
    claviger_files::check_folders(path)?;
    let bytes = claviger_files::read(path, Protection::Trusted, MAX_FILE)?;
    let text = String::from_utf8_lossy(&bytes);
    if text.trim().is_empty() {
        return Err(DeniedError::Empty(path.to_owned()));
    }
    let (mut list, mut bad) = (List::of_file(&bytes), Vec::new());
    for entry in entries(&text) {
        match entry {
            Ok(entry) => list.add(entry),
            Err(error) => bad.push(error),
        }
    }
    Ok((list, bad))
}

fn log_bad(path: Option<&Path>, bad: &[BadEntry]) {
    for BadEntry { line, reason } in bad {
        let path = path.map(|path| path.display().to_string());
        tracing::error!(
            path,
            line,
            reason,
            "a line of the denied callers is no entry and has no effect"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn write(path: &Path, content: &str) {
        let new = path.with_extension("new");
        std::fs::write(&new, content).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    fn file(content: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("denied");
        write(&path, content);
        (directory, path)
    }

    #[test]
    fn an_empty_list_is_a_comment_and_no_file_at_all_denies_no_caller() {
        let (_directory, path) = file("# none\n");
        assert_eq!(DeniedCallers::open(Some(&path)).unwrap().entries(), 0);
        let (_directory, path) = file(" \n");
        let error = DeniedCallers::open(Some(&path)).unwrap_err();
        assert!(matches!(error, DeniedError::Empty(_)), "{error}");
        assert!(!DeniedCallers::open(None).unwrap().denies(&Peer::with_uid(1, None)));
    }

    #[test]
    fn a_file_that_others_may_write_is_refused() {
        let (_directory, path) = file("# none\n");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(matches!(DeniedCallers::open(Some(&path)), Err(DeniedError::File(_))));
    }

    #[test]
    fn a_bad_file_keeps_the_last_list_and_alarms_until_a_good_one_comes() {
        let (_directory, path) = file("uid:1000\n");
        let denied = DeniedCallers::open(Some(&path)).unwrap();
        let peer = Peer::with_uid(1000, None);
        denied.poll();
        assert_eq!(denied.generation(), 0);
        write(&path, "");
        denied.poll();
        assert!(denied.failed() && denied.denies(&peer));
        std::fs::remove_file(&path).unwrap();
        denied.poll();
        assert!(denied.failed() && denied.denies(&peer));
        write(&path, "# none\n");
        denied.poll();
        assert!(!denied.failed() && !denied.denies(&peer));
        assert_eq!(denied.generation(), 1);
    }

    #[test]
    fn a_bad_line_alarms_and_the_good_ones_act_at_start_and_after_a_change() {
        let (_directory, path) = file("uid:1000\nuid:\n");
        let denied = DeniedCallers::open(Some(&path)).unwrap();
        let [one, two] = [1000, 1001].map(|uid| Peer::with_uid(uid, None));
        assert!(denied.failed() && denied.denies(&one));
        let prepared = DeniedCallers::prepare(Some(&path)).unwrap();
        assert_eq!(prepared.bad()[0].line, 2);
        write(&path, "two words\nuid:1001\n");
        denied.poll();
        assert!(denied.failed() && denied.denies(&two) && !denied.denies(&one));
        denied.poll();
        assert_eq!(denied.generation(), 1, "put in force once");
        write(&path, "uid:1001\n");
        denied.poll();
        assert!(!denied.failed() && denied.denies(&two));
    }

    #[test]
    fn everybody_may_read_the_list() {
        let (_directory, path) = file("uid:1000\n");
        for mode in [0o644, 0o444, 0o600] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            DeniedCallers::open(Some(&path)).unwrap();
        }
    }
}

//! The list of callers to refuse at once: one file, read again when it changes, valid whatever
//! happens to a reload of the configuration.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use claviger_provider_api::SecretError;
use claviger_provider_api::secret::read_secret_file;

use crate::daemon::transport::caller::{Peer, PeerAddress, is_spiffe_id};
use crate::daemon::transport::file_stamp::FileStamp;

/// The denied callers in force.
///
/// The file has one entry a line: a URI SAN, a DNS SAN, a certificate's SHA-256 (64 hexadecimal
/// digits, colons allowed) or `uid:N`; `#` begins a comment. It is checked like a secret file and
/// must hold at least one line: an empty list is a comment.
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
    source: Source,
}

/// Why a list was refused.
#[derive(Debug, thiserror::Error)]
pub enum DeniedError {
    /// It cannot be read, or its owner or mode is not safe.
    #[error(transparent)]
    File(#[from] SecretError),
    /// It holds nothing at all.
    #[error("{path} is empty; a list without entries is a comment line: # nobody", path = .0.display())]
    Empty(PathBuf),
    /// A line is none of the four kinds of entry.
    #[error(
        "{path}, line {line}: not an entry; write a URI SAN, a DNS SAN, a certificate's SHA-256 \
         (64 hexadecimal digits) or uid:N",
        path = path.display()
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
}

#[derive(Debug)]
struct Source {
    path: Option<PathBuf>,
    stamp: Option<FileStamp>,
}

#[derive(Debug, Default)]
struct List {
    uris: HashSet<Box<str>>,
    dns: HashSet<Box<str>>,
    sha256: HashSet<[u8; 32]>,
    uids: HashSet<u32>,
}

impl DeniedCallers {
    /// Reads the list, or denies nobody where there is no file.
    pub fn open(path: Option<&Path>) -> Result<Arc<Self>, DeniedError> {
        let PreparedDenied { list, source } = Self::prepare(path)?;
        Ok(Arc::new(Self {
            list: ArcSwap::from_pointee(list),
            source: Mutex::new(source),
            generation: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        }))
    }

    /// Reads a list, perhaps from another file, without putting it in force.
    pub fn prepare(path: Option<&Path>) -> Result<PreparedDenied, DeniedError> {
        let stamp = path.map(FileStamp::of);
        let list = path.map(List::read).transpose()?.unwrap_or_default();
        Ok(PreparedDenied { list, source: Source { path: path.map(Path::to_owned), stamp } })
    }

    /// Puts a list in force.
    pub fn commit(&self, prepared: PreparedDenied) {
        *self.source.lock().unwrap_or_else(PoisonError::into_inner) = prepared.source;
        self.put_in_force(prepared.list);
    }

    /// Looks whether the file has changed, and if so reads it. A file that is missing, empty or
    /// malformed leaves the last list in force and raises the alarm. Blocks on the file system.
    pub fn poll(&self) {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        let Source { path: Some(path), stamp } = &mut *source else { return };
        let now = FileStamp::of(path);
        let changed = stamp.replace(now) != Some(now);
        if !changed && !self.failed() {
            return;
        }
        match List::read(path) {
            Ok(list) => {
                tracing::info!(path = %path.display(), entries = list.len(), "denied callers read");
                self.put_in_force(list);
            }
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

    /// Whether the file as it is now could not be used, so that an older list is in force.
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// How many entries the list in force has.
    pub fn entries(&self) -> usize {
        self.list.load().len()
    }

    /// Grows with each list that is put in force.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    fn put_in_force(&self, list: List) {
        self.list.store(Arc::new(list));
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.failed.store(false, Ordering::Relaxed);
    }
}

impl List {
    fn read(path: &Path) -> Result<Self, DeniedError> {
        let bytes = read_secret_file(path)?;
        let text = String::from_utf8_lossy(bytes.expose());
        if text.trim().is_empty() {
            return Err(DeniedError::Empty(path.to_owned()));
        }
        let mut list = Self::default();
        for (place, line) in text.lines().enumerate() {
            let entry = line.split('#').next().unwrap_or_default().trim();
            if !entry.is_empty() && !list.add(entry) {
                return Err(DeniedError::Line { path: path.to_owned(), line: place + 1 });
            }
        }
        Ok(list)
    }

    fn add(&mut self, entry: &str) -> bool {
        if let Some(uid) = entry.strip_prefix("uid:") {
            return uid.parse().map(|uid| self.uids.insert(uid)).is_ok();
        }
        if let Some(sha256) = parse_sha256(entry) {
            self.sha256.insert(sha256);
            return true;
        }
        let printable = entry.bytes().all(|c| c.is_ascii_graphic());
        if entry.contains("://") {
            // An ID in capitals would never match and would deny nobody.
            let spiffe = entry.to_ascii_lowercase().starts_with("spiffe:");
            self.uris.insert(entry.into());
            return printable && (!spiffe || is_spiffe_id(entry));
        }
        let name = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_' | b'*');
        self.dns.insert(entry.to_ascii_lowercase().into());
        // Only digits of a hash can be that long without a dot.
        let cut_hash = entry.len() > 32 && entry.bytes().all(|c| c.is_ascii_hexdigit());
        entry.bytes().all(name) && !cut_hash
    }

    fn denies(&self, peer: &Peer) -> bool {
        if let PeerAddress::Unix { uid, .. } = peer.address
            && self.uids.contains(&uid)
        {
            return true;
        }
        peer.certificate.as_ref().is_some_and(|certificate| {
            self.sha256.contains(&certificate.sha256)
                || certificate.uris.iter().any(|uri| self.uris.contains(uri))
                || certificate.dns.iter().any(|name| self.dns.contains(name))
        })
    }

    fn len(&self) -> usize {
        self.uris.len() + self.dns.len() + self.sha256.len() + self.uids.len()
    }
}

fn parse_sha256(entry: &str) -> Option<[u8; 32]> {
    let digits: String = entry.chars().filter(|c| *c != ':').collect();
    hex::decode(digits).ok()?.try_into().ok()
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
    fn each_kind_of_entry_is_read() {
        let plain = "ab".repeat(32);
        let colons = ["CD"; 32].join(":");
        let (_directory, path) = file(&format!(
            "# nobody yet\n\nspiffe://a/kc # gone\n KC.example.org\nuid:1000\n{plain}\n{colons}\n*.a\n"
        ));
        let denied = DeniedCallers::open(Some(&path)).unwrap();
        assert_eq!(denied.entries(), 6);
        assert!(denied.denies(&Peer::with_uid(1000, None)));
        assert!(!denied.denies(&Peer::with_uid(1001, None)));
        let list = denied.list.load();
        assert!(list.sha256.contains(&[0xab; 32]) && list.sha256.contains(&[0xcd; 32]));
        assert!(list.dns.contains("kc.example.org") && list.uris.contains("spiffe://a/kc"));
    }

    #[test]
    fn what_would_deny_nobody_is_refused_with_its_line() {
        let (short, plain) = ("ab:".repeat(31), "ab".repeat(31));
        let names = ["SPIFFE://a/kc", "spiffe://a", "two words"];
        for entry in [&["uid:x", "uid:-1", &short, &plain][..], &names].concat() {
            let (_directory, path) = file(&format!("# list\n{entry}\n"));
            let error = DeniedCallers::open(Some(&path)).unwrap_err().to_string();
            assert!(error.contains("line 2"), "{entry}: {error}");
        }
    }

    #[test]
    fn an_empty_list_is_a_comment_and_no_file_at_all_denies_nobody() {
        let (_directory, path) = file("# nobody\n");
        assert_eq!(DeniedCallers::open(Some(&path)).unwrap().entries(), 0);
        let (_directory, path) = file(" \n");
        let error = DeniedCallers::open(Some(&path)).unwrap_err();
        assert!(matches!(error, DeniedError::Empty(_)), "{error}");
        assert!(!DeniedCallers::open(None).unwrap().denies(&Peer::with_uid(1, None)));
    }

    #[test]
    fn a_file_that_others_may_write_is_refused() {
        let (_directory, path) = file("# nobody\n");
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
        for bad in ["", "uid:\n"] {
            write(&path, bad);
            denied.poll();
            assert!(denied.failed() && denied.denies(&peer));
        }
        std::fs::remove_file(&path).unwrap();
        denied.poll();
        assert!(denied.failed() && denied.denies(&peer));
        write(&path, "# nobody\n");
        denied.poll();
        assert!(!denied.failed() && !denied.denies(&peer));
        assert_eq!(denied.generation(), 1);
    }
}

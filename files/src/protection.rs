//! Who may read and write a file, judged on the opened file, so that what is checked is what is read.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use zeroize::Zeroizing;

/// How a file must be protected. In each case it is a regular file; in all but the first it is owned
/// by root or by the user of this process, and neither its group nor others can write it. Symbolic
/// links are followed: Kubernetes and systemd use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Any owner and mode: what is in it is held against something that is trusted, as a certificate
    /// is against its private key.
    Public,
    /// Any user may read it: configuration, certificates, revocation lists, denied callers.
    Trusted,
    /// Others cannot read it, and its group only if it is a group of this process: keys, PINs.
    Secret,
    /// A systemd credential: others cannot read it. systemd admits the unit's user by an access
    /// control list, which shows as a mode that the group may read.
    Credential,
}

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be opened or read.
    #[error("cannot read {path}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its kind, owner, mode or size, or those of a folder on the way to it.
    #[error("refused {path}: {reason}", path = path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
}

impl FileError {
    pub(crate) fn refused(path: &Path, reason: impl Into<String>) -> Self {
        Self::Refused { path: path.to_owned(), reason: reason.into() }
    }
}

/// Opens a file for reading and checks it. Never waits, not even for the writer of a FIFO.
pub fn open(path: &Path, protection: Protection) -> Result<(File, Metadata), FileError> {
    let io = |source| FileError::Io { path: path.to_owned(), source };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let descriptor =
        rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| io(errno.into()))?;
    let file = File::from(descriptor);
    let metadata = file.metadata().map_err(io)?;
    let reason = |reason| FileError::refused(path, reason);
    judge(&metadata, protection, private_mode(path)).map_err(reason)?;
    Ok((file, metadata))
}

/// Reads a whole file of at most `max` bytes, into one buffer of exactly its size, so that no copy
/// of a secret is left behind.
pub fn read(
    path: &Path,
    protection: Protection,
    max: u64,
) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let io = |source| FileError::Io { path: path.to_owned(), source };
    let (mut file, metadata) = open(path, protection)?;
    if metadata.len() > max {
        return Err(FileError::refused(path, format!("it is larger than {}", size(max))));
    }
    let mut bytes = Zeroizing::new(vec![0; metadata.len() as usize]);
    file.read_exact(&mut bytes).map_err(io)?;
    if file.read(&mut [0]).map_err(io)? != 0 {
        let reason = "it is being written; write a new file beside it and rename it over this one";
        return Err(FileError::refused(path, reason));
    }
    Ok(bytes)
}

/// How a file gets a mode for us alone. What Kubernetes mounts is a link into a folder that it writes
/// anew, with mode 0644 unless the volume says otherwise; changing it there does not last.
fn private_mode(path: &Path) -> &'static str {
    match std::fs::read_link(path) {
        Ok(to) if to.starts_with("..data") => {
            "set `defaultMode: 0400` on the volume, or 0440 with a group of ours"
        }
        _ => "chmod 600 it",
    }
}

fn judge(file: &Metadata, protection: Protection, private_mode: &str) -> Result<(), String> {
    if !file.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    if protection == Protection::Public {
        return Ok(());
    }
    let (own_uid, mode) = (rustix::process::geteuid().as_raw(), file.mode() & 0o777);
    if file.uid() != 0 && file.uid() != own_uid {
        return Err(format!(
            "it is owned by uid {}; chown it to root or to uid {own_uid}",
            file.uid()
        ));
    }
    if protection == Protection::Trusted {
        return match mode & 0o022 {
            0 => Ok(()),
            _ => Err(format!("mode {mode:o} lets others write it; chmod 644 it")),
        };
    }
    if mode & 0o007 != 0 {
        return Err(format!("mode {mode:o} lets others at it; {private_mode}"));
    }
    if mode & 0o020 != 0 {
        return Err(format!("mode {mode:o} lets its group write; {private_mode}"));
    }
    if protection == Protection::Secret && mode & 0o040 != 0 && !is_our_group(file.gid()) {
        return Err(format!(
            "mode {mode:o} lets group {} read, which is no group of ours; {private_mode}",
            file.gid()
        ));
    }
    Ok(())
}

fn is_our_group(gid: u32) -> bool {
    rustix::process::getegid().as_raw() == gid
        || rustix::process::getgroups()
            .is_ok_and(|groups| groups.iter().any(|group| group.as_raw() == gid))
}

fn size(bytes: u64) -> String {
    if bytes >= 1 << 20 { format!("{} MiB", bytes >> 20) } else { format!("{bytes} bytes") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn file(mode: u32, content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        (directory, path)
    }

    fn refusal(path: &Path, protection: Protection) -> String {
        read(path, protection, 4).unwrap_err().to_string()
    }

    #[test]
    fn a_secret_is_read_whole_and_through_a_link() {
        let (directory, path) = file(0o600, b"1234");
        let link = directory.path().join("link");
        symlink(&path, &link).unwrap();
        assert_eq!(**read(&link, Protection::Secret, 4).unwrap(), *b"1234");
    }

    #[test]
    fn modes_that_let_others_at_a_secret_are_refused_with_what_to_do() {
        for mode in [0o604, 0o602, 0o601, 0o620, 0o666] {
            let (_directory, path) = file(mode, b"1234");
            for protection in [Protection::Secret, Protection::Credential] {
                let said = refusal(&path, protection);
                assert!(said.contains("chmod 600"), "{mode:o}: {said}");
            }
        }
    }

    #[test]
    fn what_kubernetes_mounts_is_given_its_mode_by_the_volume() {
        let (directory, path) = file(0o644, b"1234");
        let data = directory.path().join("..2026_11_30");
        std::fs::create_dir(&data).unwrap();
        std::fs::rename(&path, data.join("pin")).unwrap();
        symlink("..2026_11_30", directory.path().join("..data")).unwrap();
        let mounted = directory.path().join("pin");
        symlink("..data/pin", &mounted).unwrap();
        let said = refusal(&mounted, Protection::Secret);
        assert!(said.contains("defaultMode: 0400") && !said.contains("chmod"), "{said}");
    }

    #[test]
    fn a_trusted_file_may_be_read_by_all_and_written_by_none() {
        let (_directory, path) = file(0o644, b"1234");
        read(&path, Protection::Trusted, 4).unwrap();
        for mode in [0o664, 0o646, 0o666] {
            let (_directory, path) = file(mode, b"1234");
            let said = refusal(&path, Protection::Trusted);
            assert!(said.ends_with("lets others write it; chmod 644 it"), "{mode:o}: {said}");
        }
    }

    #[test]
    fn what_is_too_large_or_no_file_is_refused_without_waiting() {
        let (directory, path) = file(0o600, b"12345");
        assert!(refusal(&path, Protection::Secret).ends_with("it is larger than 4 bytes"));
        let said = refusal(directory.path(), Protection::Trusted);
        assert!(said.ends_with("it is not a regular file"), "{said}");
        let fifo = directory.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();
        let said = refusal(&fifo, Protection::Trusted);
        assert!(said.ends_with("it is not a regular file"), "{said}");
    }
}

//! Opening the file: safely, locked for this process, repaired after a crash.

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, OFlags, accessat};

use super::AuditError;
use super::chain::Head;
use super::rotation::rotated_files;
use crate::daemon::records::creatable::check_creatable;

/// A line is far shorter: a file without a line end in its last megabyte is no audit log.
const LONGEST_TORN_LINE: u64 = 1 << 20;
const A_LINK: &str = "it is a symbolic link; name the file itself (directories may be links)";

/// An open log whose every line is whole.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) file: File,
    /// The same file, for what reads its lines later.
    pub(super) reader: Arc<File>,
    pub(super) identity: Identity,
    /// Up to here every line is whole and durable.
    pub(super) length: u64,
}

/// Who may read a file that is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Mode 0600.
    Owner,
    /// Mode 0640: what ships the log is in the file's group.
    Group,
}

impl Access {
    fn mode(self) -> u32 {
        match self {
            Self::Owner => 0o600,
            Self::Group => 0o640,
        }
    }
}

/// Device and inode.
pub(super) type Identity = (u64, u64);

impl Open {
    /// Opens the log; what lies behind the length of `cut`, if it is that file, was never durable.
    pub(super) fn at(
        path: &Path,
        access: Access,
        cut: Option<(Identity, u64)>,
    ) -> Result<Self, AuditError> {
        let refused = |reason: String| AuditError::open(path, reason);
        let file = open_locked(path)?;
        let found = file.metadata().map_err(|error| refused(error.to_string()))?;
        check(&found).map_err(refused)?;
        let reader = Arc::new(file.try_clone().map_err(|error| refused(error.to_string()))?);
        let mut open = Self { file, reader, identity: identity(&found), length: found.len() };
        match cut {
            Some((identity, length)) if identity == open.identity && length < open.length => {
                open.cut_to(length).map_err(|error| refused(error.to_string()))?;
            }
            _ => {}
        }
        open.repair(path)?;
        if open.length == 0 {
            open.let_read(access).map_err(|error| refused(error.to_string()))?;
            sync_directory(path)
                .map_err(|error| refused(format!("its directory cannot be synced: {error}")))?;
        }
        Ok(open)
    }

    /// Where the chain ends that this log goes on with: behind its last line, or, where it is empty,
    /// behind that of the newest rotated file beside it. A chain begins where there is none.
    pub(super) fn head_of_chain(&self, path: &Path) -> Result<Head, AuditError> {
        let refused = |error: io::Error| AuditError::open(path, error.to_string());
        if self.length > 0 {
            let line = last_line(&self.file, self.length).map_err(refused)?;
            return Ok(Head::behind(&line).unwrap_or(Head::START));
        }
        let rotated = rotated_files(path).pop().and_then(|rotated| {
            let file = File::open(rotated).ok()?;
            let length = file.metadata().ok()?.len();
            Head::behind(&last_line(&file, length).ok()?)
        });
        Ok(rotated.unwrap_or(Head::START))
    }

    /// Sets the mode of a file that has just been made, whatever the umask.
    fn let_read(&self, access: Access) -> io::Result<()> {
        let mode = self.file.metadata()?.mode() & 0o777;
        if mode == access.mode() || access == Access::Owner {
            return Ok(());
        }
        self.file.set_permissions(fs::Permissions::from_mode(access.mode()))
    }

    /// Gives the blocks back that were kept ready behind the end, where nothing else was written.
    pub(super) fn give_room_back(&self) {
        if self.file.metadata().is_ok_and(|found| found.len() == self.length) {
            let _ = self.file.set_len(self.length);
        }
    }

    /// Writes and syncs.
    pub(super) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        self.file.write_all(lines)?;
        self.file.sync_data()?;
        self.length += lines.len() as u64;
        Ok(())
    }

    fn cut_to(&mut self, length: u64) -> io::Result<()> {
        self.file.set_len(length)?;
        self.file.sync_data()?;
        self.length = length;
        Ok(())
    }

    /// A crash may leave half a line, which was not yet reported as durable. It is moved to a file beside
    /// the log.
    fn repair(&mut self, path: &Path) -> Result<(), AuditError> {
        let refused = |error: io::Error| AuditError::open(path, error.to_string());
        let Some(torn_at) = torn_at(&self.file, self.length, path)? else { return Ok(()) };
        let mut torn = vec![0; (self.length - torn_at) as usize];
        self.file.read_exact_at(&mut torn, torn_at).map_err(refused)?;
        let aside = keep_aside(path, &torn).map_err(refused)?;
        self.cut_to(torn_at).map_err(refused)?;
        tracing::warn!(
            path = %path.display(), bytes = torn.len(), kept = %aside.display(),
            "the audit log ended in half a line, as after a crash: repaired"
        );
        Ok(())
    }
}

impl Drop for Open {
    /// Closing is not enough: a process that is just being started holds a copy of the
    /// descriptor, and with it the lock, until its exec.
    fn drop(&mut self) {
        let _ = self.file.unlock();
    }
}

/// Sees that the log at `path` could be opened, or made: opens nothing for writing, and does not ask
/// whether another process has locked it.
pub(super) fn look_at(path: &Path) -> Result<(), AuditError> {
    let refused = |reason: String| AuditError::open(path, reason);
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return check_creatable(path).map_err(|error| refused(format!("it {error}")));
        }
        Err(error) => return Err(refused(error.to_string())),
    };
    if found.is_symlink() {
        return Err(refused(A_LINK.to_owned()));
    }
    check(&found).map_err(refused)?;
    accessat(
        CWD,
        path,
        rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK,
        AtFlags::empty(),
    )
    .map_err(|error| refused(error.to_string()))?;
    let file = File::open(path).map_err(|error| refused(error.to_string()))?;
    torn_at(&file, found.len(), path).map(|_| ())
}

/// Where half a line begins at the end of a log; none where every line is whole.
fn torn_at(file: &File, length: u64, path: &Path) -> Result<Option<u64>, AuditError> {
    let refused = |error: io::Error| AuditError::open(path, error.to_string());
    if length == 0 {
        return Ok(None);
    }
    if byte(file, 0).map_err(refused)? != b'{' {
        return Err(not_a_log(path));
    }
    if byte(file, length - 1).map_err(refused)? == b'\n' {
        return Ok(None);
    }
    let from = length.saturating_sub(LONGEST_TORN_LINE);
    let mut tail = vec![0; (length - from) as usize];
    file.read_exact_at(&mut tail, from).map_err(refused)?;
    match tail.iter().rposition(|byte| *byte == b'\n') {
        Some(line_end) => Ok(Some(from + line_end as u64 + 1)),
        None if from == 0 => Ok(Some(0)),
        None => Err(not_a_log(path)),
    }
}

/// The last line of a file of whole lines, without its line end.
fn last_line(file: &File, length: u64) -> io::Result<Vec<u8>> {
    let from = length.saturating_sub(LONGEST_TORN_LINE);
    let mut tail = vec![0; (length - from) as usize];
    file.read_exact_at(&mut tail, from)?;
    tail.pop_if(|byte| *byte == b'\n');
    Ok(tail.rsplit(|byte| *byte == b'\n').next().unwrap_or_default().to_vec())
}

fn byte(file: &File, at: u64) -> io::Result<u8> {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    Ok(byte[0])
}

/// Opens the file at `path`, not one that a symbolic link points to, and locks it.
fn open_locked(path: &Path) -> Result<File, AuditError> {
    // It may be rotated between the opening and the locking.
    for _ in 0..8 {
        let file = private().read(true).open(path).map_err(|error| {
            let reason = match rustix::io::Errno::from_io_error(&error) {
                Some(rustix::io::Errno::LOOP) => A_LINK.to_owned(),
                _ => error.to_string(),
            };
            AuditError::open(path, reason)
        })?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(AuditError::InUse { path: path.to_owned() });
            }
            Err(TryLockError::Error(error)) => {
                return Err(AuditError::open(path, format!("it cannot be locked: {error}")));
            }
        }
        let same = file.metadata().is_ok_and(|ours| {
            fs::symlink_metadata(path).is_ok_and(|there| identity(&there) == identity(&ours))
        });
        if same {
            return Ok(file);
        }
    }
    Err(AuditError::open(path, "it is being replaced all the time"))
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    options
}

/// A regular file of ours (or root's) that others cannot read or write.
fn check(found: &Metadata) -> Result<(), String> {
    let mode = found.mode() & 0o777;
    if !found.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    if found.uid() != 0 && found.uid() != rustix::process::geteuid().as_raw() {
        return Err(format!("it belongs to user {}, not to this one or root", found.uid()));
    }
    if mode & !0o640 != 0 {
        return Err(format!(
            "its mode is {mode:04o}: others could read or change it; run `chmod 0600` (0640 lets \
             its group read)"
        ));
    }
    Ok(())
}

fn not_a_log(path: &Path) -> AuditError {
    AuditError::open(path, "it holds something that is not an audit log; name another file")
}

fn keep_aside(path: &Path, torn: &[u8]) -> io::Result<PathBuf> {
    let mut name = path.as_os_str().to_owned();
    name.push(".torn");
    let aside = PathBuf::from(name);
    let mut file = private().open(&aside)?;
    file.write_all(torn)?;
    file.write_all(b"\n")?;
    file.sync_data()?;
    Ok(aside)
}

/// Without this a crash could lose the name of a new file, and the records with it.
fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

pub(super) fn identity(metadata: &Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

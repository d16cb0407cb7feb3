//! Files that are written whole: a reader finds the old content or the new one, after a power cut
//! too.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The mode and owner of a file's replacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewMode {
    /// This mode, whatever the umask, and the owner of this process.
    Exactly(u32),
    /// Mode, owner and group of the file that is replaced. A symbolic link stays, and the file that
    /// it leads to is replaced.
    AsBefore,
    /// What the umask leaves of 0666, as for any file that a command makes.
    ByUmask,
}

/// Makes a file that does not exist yet, durably.
///
/// # Errors
///
/// [`io::ErrorKind::AlreadyExists`] where it exists; nothing is written then.
pub fn create(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    write_and_sync(&mut file, content, Some(mode)).inspect_err(|_| {
        let _ = std::fs::remove_file(path);
    })?;
    sync_folder(path)
}

/// Replaces a file, or makes it, durably.
pub fn replace(path: &Path, content: &[u8], mode: NewMode) -> io::Result<()> {
    replace_unless(path, content, mode, |_| Ok(()))
}

/// As [`replace`], but asks `objection` with the path just before the rename; its error leaves the
/// old file.
pub fn replace_unless(
    path: &Path,
    content: &[u8],
    mode: NewMode,
    objection: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let path = match mode {
        NewMode::AsBefore => path.canonicalize()?,
        NewMode::Exactly(_) | NewMode::ByUmask => path.to_owned(),
    };
    let temporary = temporary(&path)?;
    // What a crash has left under the same process id.
    let _ = std::fs::remove_file(&temporary);
    let written = (|| {
        let at_first = if mode == NewMode::ByUmask { 0o666 } else { 0o600 };
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(at_first).open(&temporary)?;
        let mode = match mode {
            NewMode::Exactly(mode) => Some(mode),
            NewMode::AsBefore => Some(take_owner_of(&file, &path)?),
            NewMode::ByUmask => None,
        };
        write_and_sync(&mut file, content, mode)?;
        objection(&path)?;
        std::fs::rename(&temporary, &path)
    })();
    written.inspect_err(|_| {
        // It may never have come to be.
        let _ = std::fs::remove_file(&temporary);
    })?;
    sync_folder(&path)
}

/// Gives the file the owner and group of `path`; gives the mode that it is to have.
fn take_owner_of(file: &File, path: &Path) -> io::Result<u32> {
    let (before, now) = (std::fs::metadata(path)?, file.metadata()?);
    if (now.uid(), now.gid()) != (before.uid(), before.gid()) {
        std::os::unix::fs::fchown(file, Some(before.uid()), Some(before.gid()))?;
    }
    Ok(before.mode() & 0o7777)
}

fn write_and_sync(file: &mut File, content: &[u8], mode: Option<u32>) -> io::Result<()> {
    file.write_all(content)?;
    if let Some(mode) = mode {
        file.set_permissions(PermissionsExt::from_mode(mode))?;
    }
    file.sync_all()
}

/// A hidden name beside the file, this process's own.
fn temporary(path: &Path) -> io::Result<PathBuf> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().ok_or(io::ErrorKind::InvalidInput)?);
    name.push(format!(".{}.new", std::process::id()));
    Ok(path.with_file_name(name))
}

/// Without this a crash may bring the old file back, or lose the name of the new one.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_file_is_made_once_and_replaced_as_often_as_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        create(&path, b"one", 0o600).unwrap();
        let again = create(&path, b"two", 0o600).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        replace(&path, b"two", NewMode::Exactly(0o644)).unwrap();
        assert_eq!((std::fs::read(&path).unwrap(), mode(&path)), (b"two".to_vec(), 0o644));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn mode_and_link_stay_as_before() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("file"), folder.path().join("link"));
        create(&path, b"one", 0o640).unwrap();
        symlink(&path, &link).unwrap();
        replace(&link, b"two", NewMode::AsBefore).unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!((std::fs::read(&path).unwrap(), mode(&path)), (b"two".to_vec(), 0o640));
    }

    #[test]
    fn an_objection_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        create(&path, b"one", 0o600).unwrap();
        let objection = |_: &Path| Err(io::Error::other("changed meanwhile"));
        replace_unless(&path, b"two", NewMode::AsBefore, objection).unwrap_err();
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

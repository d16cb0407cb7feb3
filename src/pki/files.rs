//! Writing files: new ones, and whole ones in the place of old.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::PkiError;

/// Replaces a file as a whole: a reader finds the old content or the new one. Mode 0644.
pub fn write_replacing(path: &Path, content: &[u8]) -> Result<(), PkiError> {
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}.new", std::process::id()));
    let new = PathBuf::from(new);
    write_new(&new, 0o644, content)?;
    std::fs::rename(&new, path).map_err(io(path))
}

pub(super) fn write_new(path: &Path, mode: u32, content: &[u8]) -> Result<(), PkiError> {
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(content)?;
        File::sync_all(&file)
    };
    write().map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => PkiError::FileExists(path.to_owned()),
        _ => io(path)(error),
    })
}

pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> PkiError {
    move |source| PkiError::Io { path: path.to_owned(), source }
}

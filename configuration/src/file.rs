//! The file itself: who may write it, and its text.

use std::path::Path;

use claviger_files::{FileError, Protection};

use crate::error::ConfigErrors;

/// Reads a file of at most `max` bytes, as [`Protection::Trusted`] says, from folders that others
/// cannot write. `hint` says what to do where it cannot be read.
pub fn read_file(path: &Path, max: u64, hint: &str) -> Result<String, ConfigErrors> {
    let of_file = |message| ConfigErrors::of_file(path.to_owned(), message);
    let read = claviger_files::check_folders(path)
        .and_then(|()| claviger_files::read(path, Protection::Trusted, max));
    let bytes = read.map_err(|error| match error {
        FileError::Io { source, .. } => of_file(format!("cannot be read: {source}{hint}")),
        FileError::Refused { reason, .. } => of_file(format!("is refused: {reason}")),
    })?;
    String::from_utf8(bytes.to_vec()).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..=good].split(|b| *b == b'\n').count();
        of_file(format!("is not UTF-8 in line {line}; save it as UTF-8"))
    })
}

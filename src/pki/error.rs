//! What can go wrong.

use std::path::{Path, PathBuf};

use claviger_provider_api::secret::SecretError;

/// Why the CA could not do it.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The folder already holds a CA.
    #[error("{path} already holds a CA; a new one would make its certificates worthless", path = .0.display())]
    Exists(PathBuf),
    /// The folder belongs to something else: a CA without a database of ours, or no CA.
    #[error("{path} is no folder of `claviger pki init`: it has no issued.json", path = .0.display())]
    NotOurs(PathBuf),
    /// A file that is to be made is there already: a certificate or a key.
    #[error("{path} is there already, and is not written over; name another, or move it away", path = .0.display())]
    FileExists(PathBuf),
    /// A file cannot be read or written.
    #[error("{path}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of the CA's folder is damaged.
    #[error("{path} cannot be used: {reason}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A private key's file cannot be read, or others are let at it.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The request itself.
    #[error("{0}")]
    Invalid(String),
    /// rcgen, on valid input.
    #[error("the certificate cannot be made")]
    Generate(#[from] rcgen::Error),
}

/// Makes a file that does not exist yet.
pub(super) fn write_new(path: &Path, mode: u32, content: &[u8]) -> Result<(), PkiError> {
    claviger_files::create(path, content, mode).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => PkiError::FileExists(path.to_owned()),
        _ => io(path)(error),
    })
}

pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> PkiError {
    move |source| PkiError::Io { path: path.to_owned(), source }
}

impl PkiError {
    pub(super) fn damaged(path: &Path, reason: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), reason: reason.into() }
    }
}

//! Secrets (PINs, passphrases, key files) and where they come from: never an environment variable,
//! never a command.

mod vault;

use std::fmt;
use std::path::{Path, PathBuf};

use claviger_files::{FileError, Protection};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::cause::Cause;
use crate::error::{Error, ErrorKind};

pub use vault::{ReadSecret, SecretStore, VaultField};

/// The largest secret file that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// A secret: zeroed when dropped, never cloned, printed as `[redacted]`.
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes over a buffer that already zeroes itself.
    pub fn new(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }

    /// The bytes themselves. The code that copies them must zero the copy.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The secret without one line end (LF or CRLF) after it, as editors and `echo` leave it.
    #[must_use]
    pub fn without_line_end(mut self) -> Self {
        if self.0.last() == Some(&b'\n') {
            self.0.pop();
            if self.0.last() == Some(&b'\r') {
                self.0.pop();
            }
        }
        self
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Where a secret is read from, each time it is needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum SecretSource {
    /// A file: regular, owned by root or by us, not readable by others, not writable by the group.
    File(PathBuf),
    /// A systemd credential (`LoadCredential=`), by its name.
    Credential(String),
    /// A field of a secret in Vault or OpenBao.
    Vault(VaultField),
}

/// Why a secret was not read.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be opened or read.
    #[error("cannot read {path}{remedy}", path = path.display(), remedy = remedy(source))]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file's owner or mode is not safe.
    #[error("refused {path}: {reason}", path = path.display())]
    Unsafe {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A credential was named, but systemd passed none.
    #[error(
        "credential {0:?} is not there: systemd sets CREDENTIALS_DIRECTORY for a unit with LoadCredential="
    )]
    NoCredential(String),
    /// A field in Vault was not read.
    #[error("cannot read the field {field:?} of {path} through provider {provider}: {reason}")]
    Vault {
        /// The provider.
        provider: String,
        /// The secret.
        path: String,
        /// Its field.
        field: String,
        /// What to do about it.
        kind: ErrorKind,
        /// What went wrong, where the provider told.
        cause: Option<Cause>,
        /// What the provider said.
        reason: String,
    },
}

/// What to do where the system does not let this user read.
fn remedy(error: &std::io::Error) -> String {
    if error.kind() != std::io::ErrorKind::PermissionDenied {
        return String::new();
    }
    let uid = rustix::process::geteuid().as_raw();
    format!(
        " as uid {uid} (chown it to that user, or chgrp it to a group of that user and chmod 640 it; \
         its folders need x for that user)"
    )
}

impl SecretError {
    /// What to do about it: what may pass by itself is [`ErrorKind::Unavailable`].
    pub fn kind(&self) -> ErrorKind {
        use std::io::ErrorKind::{NotFound, PermissionDenied};
        match self {
            Self::Io { source, .. } if matches!(source.kind(), NotFound | PermissionDenied) => {
                ErrorKind::OperatorNeeded
            }
            Self::Unsafe { .. } | Self::NoCredential(_) => ErrorKind::OperatorNeeded,
            Self::Vault {
                kind: kind @ (ErrorKind::OperatorNeeded | ErrorKind::Internal), ..
            } => *kind,
            Self::Io { .. } | Self::Vault { .. } => ErrorKind::Unavailable,
        }
    }

    /// What went wrong: the file or field, unless the store itself could not be asked.
    pub fn cause(&self) -> Option<Cause> {
        match self {
            Self::Vault { cause, .. } if self.kind() == ErrorKind::Unavailable => *cause,
            _ => Some(Cause::SecretFile),
        }
    }
}

impl From<SecretError> for Error {
    fn from(error: SecretError) -> Self {
        let cause = error.cause();
        Self::new(error.kind(), error).with_cause(cause)
    }
}

impl SecretSource {
    /// Reads the secret, checking an opened file. For a task of the runtime.
    pub async fn read(&self) -> Result<Secret, SecretError> {
        match self {
            Self::Vault(vault) => {
                let store = vault.store()?;
                store.read(&vault.path, &vault.field).await.map_err(|error| vault.error(&error))
            }
            Self::File(_) | Self::Credential(_) => self.read_blocking(),
        }
    }

    /// Reads the secret as [`Self::read`] does, on a thread that may block; it must not be one of the
    /// runtime's.
    pub fn read_blocking(&self) -> Result<Secret, SecretError> {
        match self {
            Self::File(path) => {
                claviger_files::check_folders(path)?;
                read_secret_file(path)
            }
            Self::Credential(name) => {
                let missing = || SecretError::NoCredential(name.clone());
                let directory = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(missing)?;
                if name.is_empty() || name.contains('/') || name.starts_with('.') {
                    return Err(missing());
                }
                read(&Path::new(&directory).join(name), Protection::Credential)
            }
            Self::Vault(vault) => {
                let read = vault.store()?.read_blocking(&vault.path, &vault.field);
                read.map_err(|error| vault.error(&error))
            }
        }
    }
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Credential(name) => write!(f, "credential {name:?}"),
            Self::Vault(VaultField { provider, path, field, .. }) => {
                write!(f, "field {field:?} of {path} in provider {provider}")
            }
        }
    }
}

/// Reads a file of at most 1 MiB that is protected as [`Protection::Secret`] says. The folders on
/// the way to it are not looked at, as they are for a [`SecretSource`].
pub fn read_secret_file(path: &Path) -> Result<Secret, SecretError> {
    read(path, Protection::Secret)
}

fn read(path: &Path, protection: Protection) -> Result<Secret, SecretError> {
    Ok(Secret(claviger_files::read(path, protection, MAX_BYTES)?))
}

impl From<FileError> for SecretError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Io { path, source } => Self::Io { path, source },
            FileError::Refused { path, reason } => Self::Unsafe { path, reason },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn file(mode: u32, content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pin");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (directory, path)
    }

    #[test]
    fn a_private_file_is_read_through_a_link_and_its_line_end_is_cut_once() {
        let (directory, path) = file(0o600, b"1234\n\n");
        let link = directory.path().join("link");
        symlink(&path, &link).unwrap();
        let secret = SecretSource::File(link).read_blocking().unwrap().without_line_end();
        assert_eq!(secret.expose(), b"1234\n");
        assert_eq!(format!("{secret:?}"), "[redacted]");
    }

    #[test]
    fn a_secret_that_a_configuration_names_lies_in_safe_folders() {
        let (directory, path) = file(0o600, b"1234");
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o777)).unwrap();
        let error = SecretSource::File(path).read_blocking().unwrap_err();
        assert!(matches!(error, SecretError::Unsafe { .. }), "{error}");
        assert!(error.to_string().contains("chmod go-w"), "{error}");
    }

    #[test]
    fn a_file_that_this_user_may_not_read_comes_with_what_to_do() {
        let path = PathBuf::from("/etc/claviger/pin");
        let denied = std::io::ErrorKind::PermissionDenied.into();
        let said = SecretError::Io { path: path.clone(), source: denied }.to_string();
        let own = rustix::process::geteuid().as_raw();
        assert!(
            said.starts_with(&format!("cannot read /etc/claviger/pin as uid {own} (chown")),
            "{said}"
        );
        let missing = std::io::ErrorKind::NotFound.into();
        let said = SecretError::Io { path, source: missing }.to_string();
        assert_eq!(said, "cannot read /etc/claviger/pin");
    }
}

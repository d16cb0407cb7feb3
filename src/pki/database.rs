//! What a CA has issued and revoked: one JSON file, replaced as a whole under a lock.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use claviger_files::NewMode;
use serde::{Deserialize, Serialize};

use super::{PkiError, io};

/// One issued certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuedRecord {
    /// Its serial number: hexadecimal digits in lower case.
    pub serial: String,
    /// A name for people: the first DNS name, or the end of the SPIFFE ID.
    pub name: String,
    /// When it ends, in seconds since 1970.
    pub not_after: i64,
    /// When it was revoked, in seconds since 1970.
    pub revoked_at: Option<i64>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Database {
    pub(super) crl_number: u64,
    /// How long the last list lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) crl_seconds: Option<u64>,
    pub(super) issued: Vec<IssuedRecord>,
}

/// What the database is called in its CA's folder.
const FILE: &str = "issued.json";

/// Whether there is one in this folder.
pub(super) fn is_in(directory: &Path) -> bool {
    directory.join(FILE).is_file()
}

/// The database while no other process may touch it.
pub(super) struct Locked {
    path: PathBuf,
    _lock: File,
}

impl Locked {
    /// Waits for the lock.
    pub(super) fn open(directory: &Path) -> Result<Self, PkiError> {
        let lock_path = directory.join("lock");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let lock = options.open(&lock_path).map_err(io(&lock_path))?;
        lock.lock().map_err(io(&lock_path))?;
        Ok(Self { path: directory.join(FILE), _lock: lock })
    }

    pub(super) fn read(&self) -> Result<Database, PkiError> {
        let bytes = std::fs::read(&self.path).map_err(io(&self.path))?;
        serde_json::from_slice(&bytes).map_err(|error| PkiError::Damaged {
            path: self.path.clone(),
            reason: error.to_string(),
        })
    }

    pub(super) fn write(&self, database: &Database) -> Result<(), PkiError> {
        let bytes = serde_json::to_vec_pretty(database).expect("plain data becomes JSON");
        claviger_files::replace(&self.path, &bytes, NewMode::Exactly(0o600)).map_err(io(&self.path))
    }
}

//! Failed unwraps survive a restart: written to the state directory when they change.

use std::collections::HashMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::daemon::keyset::Keyset;

/// Failed unwraps by caller and key: milliseconds since 1970, oldest first.
pub type FailedUnwraps = HashMap<(String, String), Vec<u64>>;

/// The file in the state directory.
#[derive(Debug)]
pub struct SpentFile {
    path: PathBuf,
    written: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    caller: String,
    key: String,
    failed_at_ms: Vec<u64>,
}

impl SpentFile {
    /// Reads what was spent. A file that cannot be read is said and counts as nothing spent: it
    /// must not keep a company out of its keys.
    pub fn open(state_dir: &Path) -> (Self, FailedUnwraps) {
        let path = state_dir.join("failed-unwraps.json");
        let written: Vec<Entry> = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::error!(path = %path.display(), %error, "failed unwraps not read: counting from nothing");
                Vec::new()
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "failed unwraps not read: counting from nothing");
                Vec::new()
            }
        };
        let spent = written
            .iter()
            .map(|e| ((e.caller.clone(), e.key.clone()), e.failed_at_ms.clone()))
            .collect();
        (Self { path, written }, spent)
    }

    /// Writes what is spent now, if it changed: to a new file, synced, renamed over the old one.
    pub fn write(&mut self, keyset: &Keyset) -> std::io::Result<()> {
        let mut now: Vec<Entry> = keyset
            .budgets
            .iter()
            .map(|((caller, key), budget)| Entry {
                caller: caller.clone(),
                key: key.clone(),
                failed_at_ms: budget.failed_at(),
            })
            .filter(|entry| !entry.failed_at_ms.is_empty())
            .collect();
        now.sort_unstable_by(|a, b| (&a.caller, &a.key).cmp(&(&b.caller, &b.key)));
        if now == self.written {
            return Ok(());
        }
        let temporary = self.path.with_extension("json.new");
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&serde_json::to_vec(&now)?)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &self.path)?;
        self.written = now;
        Ok(())
    }
}

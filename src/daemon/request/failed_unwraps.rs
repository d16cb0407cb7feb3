//! Failed unwraps survive a restart: written to the state directory when they change.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use claviger_files::NewMode;
use serde::{Deserialize, Serialize};

use crate::daemon::request::active::ActiveConfig;

/// Failed unwraps by caller and key: milliseconds since 1970, oldest first.
pub type FailedUnwraps = HashMap<(String, String), Vec<u64>>;

/// The file in the state directory.
#[derive(Debug)]
pub struct FailedUnwrapsFile {
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

impl FailedUnwrapsFile {
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
        let file = Self { path, written };
        let spent = file.spent();
        (file, spent)
    }

    /// What was spent by all, those too that the configuration does not name at present.
    pub fn spent(&self) -> FailedUnwraps {
        let entries = self.written.iter();
        entries.map(|e| ((e.caller.clone(), e.key.clone()), e.failed_at_ms.clone())).collect()
    }

    /// Writes what is spent now, if it changed: to a new file, synced, renamed over the old one.
    pub fn write(&mut self, active: &ActiveConfig) -> std::io::Result<()> {
        let spent = active.budgets.iter().filter_map(|((caller, key), budget)| {
            let failed_at_ms = budget.failed_at();
            (!failed_at_ms.is_empty()).then(|| Entry {
                caller: caller.clone(),
                key: key.clone(),
                failed_at_ms,
            })
        });
        let mut now: Vec<Entry> = spent.collect();
        // A grant that is taken away and given back must not come with a new budget.
        now.extend(
            self.written.iter().filter(|entry| is_recent(entry) && !is_in(entry, active)).cloned(),
        );
        now.sort_unstable_by(|a, b| (&a.caller, &a.key).cmp(&(&b.caller, &b.key)));
        if now == self.written {
            return Ok(());
        }
        let bytes = serde_json::to_vec(&now)?;
        claviger_files::replace(&self.path, &bytes, NewMode::Exactly(0o600))?;
        self.written = now;
        Ok(())
    }
}

/// The longest window of a limit is a day.
fn is_recent(entry: &Entry) -> bool {
    let day_ago = SystemTime::now() - Duration::from_hours(24);
    let day_ago = day_ago.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    entry.failed_at_ms.last().is_some_and(|at| u128::from(*at) > day_ago)
}

fn is_in(entry: &Entry, active: &ActiveConfig) -> bool {
    active.budgets.contains_key(&(entry.caller.clone(), entry.key.clone()))
}

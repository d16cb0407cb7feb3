//! Providers that an operator has taken out of service, kept in the state directory: a restart must not
//! log in to an HSM that is under repair.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use claviger_files::NewMode;
use serde::{Deserialize, Serialize};

/// The file's name in the state directory.
const FILE: &str = "drained.json";

/// The providers that are out of service, and since when.
#[derive(Debug, Default)]
pub struct DrainedProviders {
    path: Option<PathBuf>,
    providers: Mutex<BTreeMap<String, Drained>>,
}

/// A provider that is out of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drained {
    /// Seconds since 1970.
    pub since: u64,
    /// The user who asked for it.
    pub uid: u32,
}

impl DrainedProviders {
    /// Reads which are out. A file that cannot be read is said and counts as none: it must not keep a
    /// company out of its keys.
    pub fn open(state_dir: Option<&Path>) -> Self {
        let path = state_dir.map(|folder| folder.join(FILE));
        let read = path.as_deref().map_or(Ok(BTreeMap::new()), read);
        let providers = read.unwrap_or_else(|error| {
            tracing::error!(%error, "{FILE} cannot be read: every provider is in service");
            BTreeMap::new()
        });
        Self { path, providers: Mutex::new(providers) }
    }

    /// Their names.
    pub fn names(&self) -> BTreeSet<String> {
        self.lock().keys().cloned().collect()
    }

    /// Those that are out, by name.
    pub fn all(&self) -> BTreeMap<String, Drained> {
        self.lock().clone()
    }

    /// Takes a provider out, durably.
    pub fn add(&self, provider: &str, uid: u32) -> io::Result<()> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.change(|all| {
            all.insert(provider.to_owned(), Drained { since: since.as_secs(), uid });
        })
    }

    /// Takes it into service again, durably.
    pub fn remove(&self, provider: &str) -> io::Result<()> {
        self.change(|all| {
            all.remove(provider);
        })
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Drained>)) -> io::Result<()> {
        let mut providers = self.lock();
        let mut changed = providers.clone();
        change(&mut changed);
        if let Some(path) = &self.path {
            claviger_files::replace(path, &serde_json::to_vec(&changed)?, NewMode::Exactly(0o600))?;
        }
        *providers = changed;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Drained>> {
        self.providers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(path: &Path) -> io::Result<BTreeMap<String, Drained>> {
    match std::fs::read(path) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drained_stays_so_over_a_restart_until_it_is_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let drained = DrainedProviders::open(Some(folder.path()));
        drained.add("hsm-a", 7).unwrap();
        drained.add("hsm-b", 8).unwrap();
        drained.remove("hsm-b").unwrap();
        let again = DrainedProviders::open(Some(folder.path()));
        assert_eq!(again.names(), BTreeSet::from(["hsm-a".to_owned()]));
        assert_eq!(again.all()["hsm-a"].uid, 7);
        again.remove("hsm-a").unwrap();
        assert!(DrainedProviders::open(Some(folder.path())).names().is_empty());
    }

    #[test]
    fn a_file_that_is_no_list_keeps_nothing_out_of_service() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), "{").unwrap();
        assert!(DrainedProviders::open(Some(folder.path())).names().is_empty());
    }
}

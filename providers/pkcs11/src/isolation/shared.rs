//! What a provider, its keys and its supervisor share.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use claviger_provider_api::{Error, Logins, Measure};
use tokio::sync::{RwLock, watch};

use super::link::Link;
use super::process_key::ProcessKey;
use super::running::Running;
use crate::breaker::Breaker;
use crate::config::Config;
use crate::fault::Fault;

/// How long a process may take to start before the calls that wait are told that there is none.
const START_LIMIT: Duration = Duration::from_secs(8);

/// What the provider, its keys and its supervisor share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) name: String,
    pub(super) config: Arc<Config>,
    pub(super) state_dir: Option<PathBuf>,
    pub(super) running: watch::Sender<Running>,
    pub(super) logins: Logins,
    /// Open keys, by number, to be opened again in a new process.
    keys: Mutex<BTreeMap<u32, Weak<ProcessKey>>>,
    /// Open while no process can use the token.
    pub(super) breaker: Breaker,
    /// Held by those who open and check keys in the process, and alone by the one who replaces it: it
    /// is never killed inside a login.
    pub(super) rungs: RwLock<()>,
    /// What confines the process that runs, or ran last.
    pub(super) measures: Mutex<Vec<Measure>>,
    /// Processes that were started.
    pub(super) starts: AtomicU64,
}

impl Shared {
    /// Without a process and without keys.
    pub(super) fn new(name: &str, config: Arc<Config>, state_dir: Option<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            config,
            state_dir,
            running: watch::Sender::new(Running::default()),
            logins: Logins::default(),
            keys: Mutex::default(),
            breaker: Breaker::default(),
            rungs: RwLock::default(),
            measures: Mutex::default(),
            starts: AtomicU64::new(0),
        }
    }

    /// The process that runs; waits for one that is being started.
    pub(super) async fn link(&self) -> Result<Arc<Link>, Fault> {
        self.wait_for(|link| !link.is_gone()).await
    }

    /// The process that comes after the one behind `link`; waits for it.
    pub(super) async fn link_after(&self, link: &Link) -> Result<Arc<Link>, Fault> {
        self.wait_for(|next| next.number != link.number).await
    }

    /// Waits for a process, but not for one that is not started yet and will not be soon.
    async fn wait_for(&self, is_meant: impl Fn(&Link) -> bool) -> Result<Arc<Link>, Fault> {
        let mut running = self.running.subscribe();
        let started = running.wait_for(|running| {
            running.link.as_deref().is_some_and(&is_meant) || running.is_pausing()
        });
        let started = tokio::time::timeout(START_LIMIT, started).await;
        let link = started.ok().and_then(Result::ok).and_then(|running| running.link.clone());
        link.ok_or_else(|| Fault::of_process(self.running.borrow().no_process()))
    }

    /// The process that runs now.
    pub(super) fn link_now(&self) -> Result<Arc<Link>, Error> {
        self.running.borrow().link()
    }

    /// The keys that are open.
    pub(super) fn open_keys(&self) -> Vec<Arc<ProcessKey>> {
        self.keys().values().filter_map(Weak::upgrade).collect()
    }

    /// A key was opened.
    pub(super) fn opened(&self, key: &Arc<ProcessKey>) {
        self.keys().insert(key.number(), Arc::downgrade(key));
    }

    /// A key was closed.
    pub(super) fn closed(&self, number: u32) {
        self.keys().remove(&number);
    }

    fn keys(&self) -> MutexGuard<'_, BTreeMap<u32, Weak<ProcessKey>>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

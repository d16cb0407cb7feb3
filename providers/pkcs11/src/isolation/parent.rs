//! A provider whose module runs in a process of its own, as the daemon sees it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Instant;

use claviger_provider_api::making::asked_once;
use claviger_provider_api::{Error, Logins, Measure, ProviderProcess, PublicKey};
use tokio::sync::oneshot;

use super::shared::Shared;
use super::supervisor;
use crate::config::Config;
use crate::here::OPEN_LIMIT;
use crate::making::NewPair;

/// The provider. Its process ends when it and all its keys are dropped.
#[derive(Debug)]
pub(crate) struct Parent {
    shared: Arc<Shared>,
    next_key: AtomicU32,
    /// Dropped with the provider, which tells the supervisor.
    alive: OnceLock<oneshot::Sender<()>>,
}

impl Parent {
    /// A provider whose process starts when the first key is opened.
    pub(crate) fn new(name: &str, config: Arc<Config>, state_dir: Option<PathBuf>) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::new(Shared::new(name, config, state_dir)),
            next_key: AtomicU32::new(0),
            alive: OnceLock::new(),
        })
    }

    /// The number of a key that is about to be opened.
    pub(super) fn next_key(&self) -> u32 {
        self.next_key.fetch_add(1, Ordering::Relaxed)
    }

    /// Where the process's logins are told.
    pub(crate) fn logins(&self) -> &Logins {
        &self.shared.logins
    }

    /// What confines the process; empty before it has started.
    pub(crate) fn measures(&self) -> Vec<Measure> {
        self.shared.measures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the process runs, and which it is.
    pub(crate) fn process(&self) -> ProviderProcess {
        ProviderProcess {
            is_running: self.shared.running.borrow().link.is_some(),
            starts: self.shared.starts.load(Ordering::Relaxed),
        }
    }

    /// Makes a key pair in the process, which is started if it was not; asked for once, whatever happens.
    /// Gives its public half.
    pub(crate) async fn make(&self, pair: &NewPair) -> Result<PublicKey, Error> {
        self.start();
        let link = self.shared.link().await.map_err(|fault| fault.error)?;
        link.note_attempt();
        let made = link.make(pair.into(), Instant::now() + OPEN_LIMIT).await;
        made.map_err(|fault| asked_once(fault.error, &pair.locator))
    }

    /// What is shared.
    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Starts the process unless it was started; it runs for as long as this lives.
    pub(super) fn start(&self) {
        self.alive.get_or_init(|| {
            let (alive, dropped) = oneshot::channel();
            tokio::spawn(supervisor::run(Arc::clone(&self.shared), dropped));
            alive
        });
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        // At once, and not when the supervisor has its turn: its runtime may be at its end.
        if let Some(link) = &self.shared.running.borrow().link {
            link.leave();
        }
    }
}

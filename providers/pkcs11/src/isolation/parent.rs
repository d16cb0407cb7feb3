//! A provider whose module runs in a process of its own, as the daemon sees it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use claviger_provider_api::{Error, ErrorKind, Logins, Measure, OpenKey};
use futures::future::BoxFuture;
use tokio::sync::{RwLock, oneshot, watch};

use super::link::Link;
use super::remote_key::{RemoteKey, request};
use super::supervisor;
use crate::breaker::Breaker;
use crate::config::Config;
use crate::facts::Facts;
use crate::fault::Fault;
use crate::here::OPEN_LIMIT;

/// How long a process may take to start before the calls that wait are told that there is none.
const START_LIMIT: Duration = Duration::from_secs(8);

/// The provider. Its process ends when it and all its keys are dropped.
#[derive(Debug)]
pub(crate) struct Parent {
    shared: Arc<Shared>,
    next_key: AtomicU32,
    /// Dropped with the provider, which tells the supervisor.
    alive: OnceLock<oneshot::Sender<()>>,
}

/// What the provider, its keys and its supervisor share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) name: String,
    pub(super) config: Arc<Config>,
    pub(super) state_dir: Option<PathBuf>,
    pub(super) running: watch::Sender<Running>,
    pub(super) logins: Logins,
    /// Open keys, by number, to be opened again in a new process.
    keys: Mutex<BTreeMap<u32, Weak<RemoteKey>>>,
    /// Open while no process can use the token.
    pub(super) breaker: Breaker,
    /// Held by those who open and check keys in the process, and alone by the one who replaces it: it
    /// is never killed inside a login.
    pub(super) rungs: RwLock<()>,
    /// What confines the process that runs, or ran last.
    pub(super) measures: Mutex<Vec<Measure>>,
}

/// The process that runs, or why there is none.
#[derive(Clone, Debug, Default)]
pub(super) struct Running {
    pub(super) link: Option<Arc<Link>>,
    pub(super) fault: Option<Arc<str>>,
}

impl Parent {
    /// A provider whose process starts when the first key is opened.
    pub(crate) fn new(name: &str, config: Arc<Config>, state_dir: Option<PathBuf>) -> Arc<Self> {
        let shared = Shared {
            name: name.to_owned(),
            config,
            state_dir,
            running: watch::Sender::new(Running::default()),
            logins: Logins::default(),
            keys: Mutex::default(),
            breaker: Breaker::default(),
            rungs: RwLock::default(),
            measures: Mutex::default(),
        };
        Arc::new(Self {
            shared: Arc::new(shared),
            next_key: AtomicU32::new(0),
            alive: OnceLock::new(),
        })
    }

    /// Opens a key in the process.
    pub(crate) async fn open(
        self: &Arc<Self>,
        open: &OpenKey<'_>,
    ) -> Result<(Arc<RemoteKey>, Facts), Error> {
        self.start();
        let number = self.next_key.fetch_add(1, Ordering::Relaxed);
        let request = request(number, open);
        let attempt = |link: Arc<Link>| -> BoxFuture<'_, _> {
            let request = request.clone();
            Box::pin(async move {
                let opened = link.open(request, Instant::now() + OPEN_LIMIT).await?;
                Ok((opened, link.number))
            })
        };
        let opened = self.shared.climb(number, attempt).await;
        let (opened, link) = opened.map_err(|fault| fault.error)?;
        let (key, facts) = RemoteKey::new(Arc::clone(self), request, opened, link)?;
        let key = Arc::new(key);
        self.shared.keys().insert(number, Arc::downgrade(&key));
        Ok((key, facts))
    }

    /// Where the process's logins are told.
    pub(crate) fn logins(&self) -> &Logins {
        &self.shared.logins
    }

    /// What confines the process; empty before it has started.
    pub(crate) fn measures(&self) -> Vec<Measure> {
        self.shared.measures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is shared.
    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    fn start(&self) {
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

impl Shared {
    /// The process that runs; waits for one that is being started.
    pub(super) async fn link(&self) -> Result<Arc<Link>, Fault> {
        self.wait_for(|link| !link.is_gone()).await
    }

    /// The process that comes after the one behind `link`; waits for it.
    pub(super) async fn link_after(&self, link: &Link) -> Result<Arc<Link>, Fault> {
        self.wait_for(|next| next.number != link.number).await
    }

    async fn wait_for(&self, is_meant: impl Fn(&Link) -> bool) -> Result<Arc<Link>, Fault> {
        let mut running = self.running.subscribe();
        let started = running.wait_for(|running| running.link.as_deref().is_some_and(&is_meant));
        let started = tokio::time::timeout(START_LIMIT, started).await;
        let link = started.ok().and_then(Result::ok).and_then(|running| running.link.clone());
        link.ok_or_else(|| Fault::of_process(self.no_process()))
    }

    /// The process that runs now.
    pub(super) fn link_now(&self) -> Result<Arc<Link>, Error> {
        self.running.borrow().link.clone().ok_or_else(|| self.no_process())
    }

    /// The keys that are open.
    pub(super) fn open_keys(&self) -> Vec<Arc<RemoteKey>> {
        self.keys().values().filter_map(Weak::upgrade).collect()
    }

    /// A key was closed.
    pub(super) fn closed(&self, number: u32) {
        self.keys().remove(&number);
    }

    fn no_process(&self) -> Error {
        let fault = self.running.borrow().fault.clone();
        let reason = fault.as_deref().unwrap_or("it is being started");
        let text = format!("the module's process does not run: {reason}");
        Error::new(ErrorKind::Unavailable, text)
    }

    fn keys(&self) -> MutexGuard<'_, BTreeMap<u32, Weak<RemoteKey>>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

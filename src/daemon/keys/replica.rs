//! One place where a version's private half lives: opened in the background, compared with its
//! pin, watched, and checked once for all who wait.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use claviger_provider_api::{Error, ErrorKind, OpenKey, Provider, PublicKey, WrappingKey};
use tokio::sync::watch;

use crate::daemon::config;
use crate::daemon::keys::backend_calls::BackendCalls;
use crate::daemon::records::audit::{Audit, Event};

/// A check that takes longer counts as failed.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// An open may wait for others on the same token, and proves several algorithms.
const OPEN_TIMEOUT: Duration = Duration::from_mins(2);

/// What a replica is made from. Two equal specifications are the same replica: a reload keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Specification {
    /// Provider and locator.
    pub place: config::Replica,
    /// The version's wrapping algorithms.
    pub algorithms: Vec<claviger_provider_api::Algorithm>,
    /// The version's signing algorithms.
    pub sign_algorithms: Vec<claviger_provider_api::SignAlgorithm>,
    /// The version's pin.
    pub public_key_sha256: [u8; 32],
}

/// Why a replica does not serve at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What to do about it.
    pub kind: ErrorKind,
    /// What happened, for log and audit.
    pub text: Arc<str>,
}

impl Fault {
    /// A fault from a provider's error.
    pub fn of(error: &Error) -> Self {
        Self { kind: error.kind(), text: error.to_string().into() }
    }
}

/// How a replica is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaHealth {
    /// Not opened yet and no attempt has ended.
    Opening,
    /// Its canary came back right.
    Serving,
    /// It cannot serve, for this reason.
    Failing(Fault),
}

impl ReplicaHealth {
    /// Each call asks for it: among many keys, those that serve all point to the same place, which
    /// stays in the processor's cache.
    fn shared(&self) -> Arc<Self> {
        static SERVING: LazyLock<Arc<ReplicaHealth>> =
            LazyLock::new(|| Arc::new(ReplicaHealth::Serving));
        match self {
            Self::Serving => Arc::clone(&SERVING),
            other => Arc::new(other.clone()),
        }
    }
}

/// One place where a version's private half lives.
pub struct Replica {
    /// What it is made from.
    pub specification: Specification,
    provider: Arc<dyn Provider>,
    key: OnceLock<Arc<dyn WrappingKey>>,
    health: ArcSwap<ReplicaHealth>,
    /// When a real private-key operation last went right, in milliseconds since `started`.
    proven_at: AtomicU64,
    /// When a canary of a key that served was last throttled, the same.
    throttled_at: AtomicU64,
    /// When it is looked at again after it failed, the same; until then no call asks the backend.
    next_look_at: AtomicU64,
    started: Instant,
    checks: Mutex<Checks>,
    checked: watch::Sender<Checked>,
    changed: watch::Sender<u64>,
    audit: Arc<Audit>,
    /// What callers asked of it.
    pub backend_calls: BackendCalls,
}

/// Numbers of checks: a check that started after a failure has a higher number than the last one
/// that had started before it.
#[derive(Debug, Default)]
struct Checks {
    started: u64,
    wanted: u64,
    running: bool,
}

#[derive(Clone, Debug, Default)]
struct Checked {
    number: u64,
    fault: Option<Fault>,
}

impl Replica {
    /// A replica that is not opened yet. `changed` and `audit` are told about each change of health.
    pub fn new(
        specification: Specification,
        provider: Arc<dyn Provider>,
        changed: watch::Sender<u64>,
        audit: Arc<Audit>,
    ) -> Self {
        Self {
            specification,
            provider,
            key: OnceLock::new(),
            health: ArcSwap::from_pointee(ReplicaHealth::Opening),
            proven_at: AtomicU64::new(0),
            throttled_at: AtomicU64::new(0),
            next_look_at: AtomicU64::new(0),
            started: Instant::now(),
            checks: Mutex::default(),
            checked: watch::Sender::new(Checked::default()),
            changed,
            audit,
            backend_calls: BackendCalls::default(),
        }
    }

    /// Takes a key that is open already, whatever its public half: benchmarks use it.
    pub fn adopt(&self, key: Arc<dyn WrappingKey>) {
        self.key.set(key).ok();
        self.health.store(ReplicaHealth::Serving.shared());
    }

    /// The open key, once it has been opened and matched its pin.
    pub fn key(&self) -> Option<&Arc<dyn WrappingKey>> {
        self.key.get()
    }

    /// The public key, once it has been opened and matched its pin.
    pub fn public_key(&self) -> Option<&PublicKey> {
        self.key.get().map(|key| key.public_key())
    }

    /// How it is.
    pub fn health(&self) -> Arc<ReplicaHealth> {
        self.health.load_full()
    }

    /// Whether its last private-key operation went right.
    pub fn is_serving(&self) -> bool {
        matches!(**self.health.load(), ReplicaHealth::Serving)
    }

    /// Notes that a private-key operation went right.
    pub fn proven(&self) {
        self.proven_at.store(self.now(), Ordering::Relaxed);
        if !self.is_serving() {
            self.next_look_at.store(0, Ordering::Relaxed);
            self.set_health(&ReplicaHealth::Serving);
        }
    }

    /// How long ago a private-key operation last went right.
    pub fn proven_ago(&self) -> Duration {
        self.ago(self.proven_at.load(Ordering::Relaxed))
    }

    /// How long ago a private-key operation last went right, or its canary was throttled: to ask a
    /// busy backend again at once would make it busier.
    pub fn had_its_turn_ago(&self) -> Duration {
        let proven_at = self.proven_at.load(Ordering::Relaxed);
        self.ago(proven_at.max(self.throttled_at.load(Ordering::Relaxed)))
    }

    /// Notes that calls are answered without asking the backend for so long.
    pub fn looks_again_after(&self, next_look: Duration) {
        let at = self.now().saturating_add(next_look.as_millis() as u64);
        self.next_look_at.store(at, Ordering::Relaxed);
    }

    /// How long calls are still answered without asking the backend; none while it serves, and where
    /// a call asks it or nothing is known.
    pub fn next_look(&self) -> Option<Duration> {
        let left = self.next_look_at.load(Ordering::Relaxed).saturating_sub(self.now());
        (left > 0 && !self.is_serving()).then(|| Duration::from_millis(left))
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn ago(&self, at: u64) -> Duration {
        self.started.elapsed().saturating_sub(Duration::from_millis(at))
    }

    /// Opens the key and compares it with its pin. A key that differs is never kept.
    pub async fn open(&self) -> Result<(), Fault> {
        if self.key.get().is_some() {
            return Ok(());
        }
        let Specification { place, algorithms, sign_algorithms, public_key_sha256 } =
            &self.specification;
        let open = OpenKey {
            locator: &place.locator,
            algorithms,
            sign_algorithms,
            public_key_sha256: Some(*public_key_sha256),
        };
        let fault = match tokio::time::timeout(OPEN_TIMEOUT, self.provider.open(&open)).await {
            Ok(Ok(key)) if key.public_key().sha256() == *public_key_sha256 => {
                self.key.set(key).ok();
                self.proven();
                return Ok(());
            }
            Ok(Ok(key)) => Fault {
                kind: ErrorKind::OperatorNeeded,
                text: format!(
                    "another key lies here: found public_key_sha256 {}, pinned is {}",
                    hex::encode(key.public_key().sha256()),
                    hex::encode(public_key_sha256),
                )
                .into(),
            },
            Ok(Err(error)) => Fault::of(&error),
            Err(_) => {
                Fault { kind: ErrorKind::Unavailable, text: "opening it took too long".into() }
            }
        };
        self.set_health(&ReplicaHealth::Failing(fault.clone()));
        Err(fault)
    }

    /// A check that starts after this call: all who wait share it. It runs to its end even if they
    /// leave, because it tells the daemon's health.
    pub async fn check(self: &Arc<Self>) -> Result<(), Fault> {
        let mine = {
            let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
            checks.wanted = checks.started + 1;
            if !checks.running {
                checks.running = true;
                tokio::spawn(Arc::clone(self).run_checks());
            }
            checks.wanted
        };
        let mut checked = self.checked.subscribe();
        let outcome = checked.wait_for(|checked| checked.number >= mine).await;
        match &outcome.expect("the sender lives in self").fault {
            None => Ok(()),
            Some(fault) => Err(fault.clone()),
        }
    }

    /// Starts [`Self::check`] in a task of its own and does not wait.
    pub fn check_in_background(self: &Arc<Self>) {
        let replica = Arc::clone(self);
        tokio::spawn(async move {
            let _ = replica.check().await;
        });
    }

    async fn run_checks(self: Arc<Self>) {
        loop {
            let number = {
                let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
                if checks.wanted <= checks.started {
                    checks.running = false;
                    return;
                }
                checks.started += 1;
                checks.started
            };
            let fault = self.check_now().await.err();
            self.checked.send_replace(Checked { number, fault });
        }
    }

    /// In a task of its own, so that a panic in a provider is a failed check and no hung caller.
    async fn check_now(self: &Arc<Self>) -> Result<(), Fault> {
        let Some(key) = self.key.get() else {
            let replica = Arc::clone(self);
            let opened = tokio::spawn(async move { replica.open().await }).await;
            return opened.unwrap_or_else(|_| {
                let fault = Fault { kind: ErrorKind::Internal, text: "opening it panicked".into() };
                self.set_health(&ReplicaHealth::Failing(fault.clone()));
                Err(fault)
            });
        };
        let key = Arc::clone(key);
        let check = tokio::spawn(async move { key.check().await });
        let fault = match tokio::time::timeout(CHECK_TIMEOUT, check).await {
            Ok(Ok(Ok(()))) => {
                self.proven();
                return Ok(());
            }
            Ok(Ok(Err(error))) => {
                error.next_look().inspect(|next_look| self.looks_again_after(*next_look));
                Fault::of(&error)
            }
            Ok(Err(_)) => Fault { kind: ErrorKind::Internal, text: "the check panicked".into() },
            Err(_) => {
                Fault { kind: ErrorKind::Unavailable, text: "the check took too long".into() }
            }
        };
        if matches!(fault.kind, ErrorKind::Throttled { .. }) && self.is_serving() {
            // A used-up quota says nothing about the key.
            self.throttled_at.store(self.now(), Ordering::Relaxed);
            let config::Replica { provider, locator } = &self.specification.place;
            tracing::debug!(provider, locator, "its canary was throttled: {}", fault.text);
            return Err(fault);
        }
        self.set_health(&ReplicaHealth::Failing(fault.clone()));
        Err(fault)
    }

    fn set_health(&self, health: &ReplicaHealth) {
        let old = self.health.swap(health.shared());
        if *old == *health {
            return;
        }
        let config::Replica { provider, locator } = &self.specification.place;
        match health {
            ReplicaHealth::Failing(fault) => {
                tracing::error!(
                    provider,
                    locator,
                    reason = fault.kind.reason(),
                    "replica fails: {}",
                    fault.text
                );
            }
            ReplicaHealth::Serving => tracing::info!(provider, locator, "replica serves"),
            ReplicaHealth::Opening => {}
        }
        let error = match health {
            ReplicaHealth::Failing(fault) => Some(&*fault.text),
            ReplicaHealth::Serving | ReplicaHealth::Opening => None,
        };
        let was_failing = matches!(*old, ReplicaHealth::Failing(_));
        if was_failing || error.is_some() {
            drop(self.audit.event(&Event::Replica { provider, locator, error }));
        }
        self.changed.send_modify(|changes| *changes += 1);
    }
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica")
            .field("place", &self.specification.place)
            .field("health", &self.health)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, feature = "software"))]
pub(super) mod tests;

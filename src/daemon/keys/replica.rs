//! One place where a version's private half lives: opened in the background, compared with its
//! pin, watched, and checked once for all who wait.

mod checks;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use claviger_provider_api::{Algorithms, Cause, Provider, PublicKey, WrappingKey};
use tokio::sync::watch;
use tokio::time::Instant;

use self::checks::{Checked, Checks};
use crate::daemon::config;
use crate::daemon::keys::backend_calls::BackendCalls;
use crate::daemon::keys::canaries::Canaries;
use crate::daemon::keys::diagnosis::Diagnosis;
use crate::daemon::keys::health::{Fault, ReplicaHealth};
use crate::daemon::keys::proof::Proof;
use crate::daemon::keys::specification::Specification;
use crate::daemon::records::audit::{Audit, Event};

/// The fault of a drained replica.
pub(super) const DRAINED: &str = "drained: `claviger undrain` takes it into service again";
/// How often a replica that serves unwraps the value of its version's [`Proof`].
const COMPARE_EVERY: Duration = Duration::from_mins(5);

/// One place where a version's private half lives.
pub struct Replica {
    /// What it is made from.
    pub specification: Specification,
    /// The word for its kind of backend, as `type` in the configuration.
    pub provider_type: &'static str,
    provider: Arc<dyn Provider>,
    key: OnceLock<Arc<dyn WrappingKey>>,
    health: ArcSwap<ReplicaHealth>,
    /// Beside `health`, for the order of a drain and the calls that are on their way.
    is_drained: AtomicBool,
    /// Shared by the replicas of one version.
    proof: Arc<Proof>,
    /// Where it was open before it was drained.
    known_labels: OnceLock<Algorithms>,
    /// Whether it answered nobody for as long as a call waited, and nothing came since.
    is_silent: AtomicBool,
    /// When it last answered a call, in milliseconds since `started`.
    answered_at: AtomicU64,
    /// When it last unwrapped the value of `proof`, the same.
    compared_at: AtomicU64,
    /// When a real private-key operation last went right, in milliseconds since `started`.
    proven_at: AtomicU64,
    /// When a canary of a key that served was last throttled, the same.
    throttled_at: AtomicU64,
    /// When its backend last had no room for a call or a canary, the same.
    no_room_at: AtomicU64,
    /// When it is looked at again after it failed, the same; until then no call asks the backend.
    next_look_at: AtomicU64,
    started: Instant,
    checks: Mutex<Checks>,
    checked: watch::Sender<Checked>,
    changed: watch::Sender<u64>,
    audit: Arc<Audit>,
    /// What callers asked of it.
    pub backend_calls: BackendCalls,
    /// How long its last canaries took.
    pub canaries: Canaries,
}

impl Replica {
    /// A replica that is not opened yet, in a backend of this type. `changed` and `audit` are told about each change of health.
    pub fn new(
        specification: Specification,
        (provider_type, provider): (&'static str, Arc<dyn Provider>),
        proof: Arc<Proof>,
        changed: watch::Sender<u64>,
        audit: Arc<Audit>,
    ) -> Self {
        Self {
            specification,
            provider_type,
            provider,
            key: OnceLock::new(),
            health: ArcSwap::from_pointee(ReplicaHealth::Opening),
            is_drained: AtomicBool::new(false),
            proof,
            known_labels: OnceLock::new(),
            is_silent: AtomicBool::new(false),
            answered_at: AtomicU64::new(0),
            compared_at: AtomicU64::new(0),
            proven_at: AtomicU64::new(0),
            throttled_at: AtomicU64::new(0),
            no_room_at: AtomicU64::new(0),
            next_look_at: AtomicU64::new(0),
            started: Instant::now(),
            checks: Mutex::default(),
            checked: watch::Sender::new(Checked::default()),
            changed,
            audit,
            backend_calls: BackendCalls::default(),
            canaries: Canaries::default(),
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

    /// How it is, for operators: fails too while its provider knows that it cannot be asked, which a call or
    /// a canary has yet to find out.
    pub fn shown_health(&self) -> Arc<ReplicaHealth> {
        let health = self.health();
        let away = self.key.get().filter(|_| self.is_serving()).and_then(|key| key.away());
        away.map_or(health, |error| ReplicaHealth::Failing(Fault::of(&error)).shared())
    }

    /// Why it is as it is: the word of its health, and where it serves `throttled` or `no-answer` if
    /// that is what the last call got.
    pub fn reason(&self) -> &'static str {
        let health = self.shown_health();
        let serves = matches!(*health, ReplicaHealth::Serving);
        let has_no_room =
            || self.no_room_at.load(Ordering::Relaxed) > self.proven_at.load(Ordering::Relaxed);
        if serves && self.is_silent() {
            Diagnosis::Of(Cause::NoAnswer).name()
        } else if serves && has_no_room() {
            Diagnosis::Throttled.name()
        } else {
            health.reason()
        }
    }

    /// Notes that its backend had no room for a call or a canary.
    pub fn had_no_room(&self) {
        self.no_room_at.store(self.now().max(1), Ordering::Relaxed);
    }

    /// Whether an operator has taken its provider out. Asked after an operation was counted in
    /// [`Self::backend_calls`]: then a drain either waits for it or keeps it from being asked.
    pub fn is_drained(&self) -> bool {
        self.is_drained.load(Ordering::SeqCst)
    }

    /// Takes it out, for good: nothing is asked of it any more. Who drains its provider records that.
    pub fn drain(&self) {
        self.is_drained.store(true, Ordering::SeqCst);
        self.health.store(ReplicaHealth::Drained.shared());
    }

    /// What it takes labels with, as far as is known: it is open, or was before it was drained.
    pub fn label_algorithms(&self) -> Option<Algorithms> {
        let of_key = self.key.get().map(|key| key.label_algorithms());
        of_key.or_else(|| self.known_labels.get().copied())
    }

    /// Takes over what is known from the replica that was in its place.
    pub fn follows(&self, before: &Self) {
        if let Some(labels) = before.label_algorithms() {
            self.known_labels.set(labels).ok();
        }
    }

    /// The proof that it shares with the other replicas of its version.
    pub fn proof(&self) -> &Arc<Proof> {
        &self.proof
    }

    /// The key's count of repairs.
    pub fn repairs(&self) -> u64 {
        self.key().map_or(0, |key| key.repairs())
    }

    /// Notes that a call's private-key operation went right. What was on its way when the replica was
    /// found to be another one proves nothing.
    pub fn proven(&self) {
        if self.is_serving() || !self.diverges() {
            self.well();
        } else {
            self.answered();
        }
    }

    /// Whether it was found not to be what the configuration says, and has not proven otherwise since.
    pub fn diverges(&self) -> bool {
        self.health().fault().is_some_and(Fault::is_divergence)
    }

    /// Notes that it has answered, well or not.
    pub fn answered(&self) {
        self.answered_at.store(self.now(), Ordering::Relaxed);
        if self.is_silent.load(Ordering::Relaxed) {
            self.is_silent.store(false, Ordering::Relaxed);
        }
    }

    /// Whether a call has found it silent, and nothing was heard of it since.
    pub fn is_silent(&self) -> bool {
        self.is_silent.load(Ordering::Relaxed)
    }

    /// Ends once it has answered nothing to any call for `patience`, from now on.
    pub(super) async fn falls_silent(&self, patience: Duration) {
        let mut heard = Instant::now();
        loop {
            tokio::time::sleep_until(heard + patience).await;
            let last =
                self.started + Duration::from_millis(self.answered_at.load(Ordering::Relaxed));
            if last <= heard {
                self.is_silent.store(true, Ordering::Relaxed);
                return;
            }
            heard = last;
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

    /// For how long the comparison with the other replicas has been due; none while it is not.
    pub(super) fn comparison_due_for(&self) -> Option<Duration> {
        let ago = self.ago(self.compared_at.load(Ordering::Relaxed));
        let is_needed = self.proof.is_needed(&self.specification);
        is_needed.then(|| ago.checked_sub(COMPARE_EVERY)).flatten()
    }

    /// A check, or an open, came back right.
    fn well(&self) {
        self.answered();
        self.proven_at.store(self.now(), Ordering::Relaxed);
        if !self.is_serving() {
            self.next_look_at.store(0, Ordering::Relaxed);
            self.set_health(&ReplicaHealth::Serving);
        }
    }

    pub(super) fn set_health(&self, health: &ReplicaHealth) {
        if self.is_drained() {
            return;
        }
        let old = self.health.swap(health.shared());
        if *old == *health {
            return;
        }
        let config::Replica { provider, locator } = &self.specification.place;
        let (state, fault) = (health.name(), health.fault());
        match fault {
            Some(fault) if fault.is_divergence() => {
                let text = &fault.text;
                tracing::error!(
                    provider,
                    locator,
                    "replica diverges, no call is given to it: {text}"
                );
            }
            Some(fault) => {
                let (reason, text) = (fault.kind.reason(), &fault.text);
                tracing::error!(provider, locator, reason, "replica fails: {text}");
            }
            None => tracing::info!(provider, locator, "replica {state}"),
        }
        if old.fault().is_some() || fault.is_some() {
            let error = fault.map(|fault| &*fault.text);
            drop(self.audit.event(&Event::Replica { provider, locator, state, error }));
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

#[cfg(test)]
mod tests;

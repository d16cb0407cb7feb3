//! Opening a replica's key and checking it: once for all who wait, in tasks of their own.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use claviger_provider_api::{Cause, ErrorKind, WrappingKey};
use std::sync::atomic::Ordering;
use tokio::time::Instant;

use super::{DRAINED, Replica};
use crate::daemon::config;
use crate::daemon::keys::health::{Fault, ReplicaHealth};

/// A check that takes longer counts as failed.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// An open may wait for others on the same token, and proves several algorithms.
const OPEN_TIMEOUT: Duration = Duration::from_mins(2);

/// Numbers of checks: a check that started after a failure has a higher number than the last one
/// that had started before it.
#[derive(Debug, Default)]
pub(super) struct Checks {
    started: u64,
    wanted: u64,
    running: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Checked {
    number: u64,
    fault: Option<Fault>,
}

impl Replica {
    /// Opens the key and compares it with its pin. A key that differs is never kept.
    pub async fn open(&self) -> Result<(), Fault> {
        if self.key.get().is_some() {
            return Ok(());
        }
        let opened = tokio::time::timeout(OPEN_TIMEOUT, self.open_proven()).await;
        let opened = opened.unwrap_or_else(|_| {
            Err(Fault::new(ErrorKind::Unavailable, "opening it took too long")
                .with_cause(Cause::NoAnswer))
        });
        match opened {
            Ok(key) => {
                self.key.set(key).ok();
                self.well();
                Ok(())
            }
            Err(fault) => {
                self.set_health(&ReplicaHealth::Failing(fault.clone()));
                Err(fault)
            }
        }
    }

    /// The key, once it was compared with its pin and with the other replicas of its version.
    async fn open_proven(&self) -> Result<Arc<dyn WrappingKey>, Fault> {
        let specification = &self.specification;
        let opened = self.provider.open(&specification.to_open()).await;
        let key = opened.map_err(|error| Fault::of(&error))?;
        let (found, pinned) = (key.public_key().sha256(), specification.public_key_sha256);
        if found != pinned {
            let (found, pinned) = (hex::encode(found), hex::encode(pinned));
            let text = format!(
                "another key lies here: found public_key_sha256 {found}, pinned is {pinned}"
            );
            let fault = Fault::new(ErrorKind::OperatorNeeded, text);
            return Err(fault.with_cause(Cause::AnotherKey));
        }
        if self.proof.compares() {
            self.compare(&*key).await?;
        }
        Ok(key)
    }

    /// Has the key unwrap what every replica of the version must.
    async fn compare(&self, key: &dyn WrappingKey) -> Result<(), Fault> {
        match self.proof.ask(key, &self.specification).await {
            Ok(()) => {
                self.compared_at.store(self.now(), Ordering::Relaxed);
                Ok(())
            }
            // A backend that went away in the middle says nothing about the key.
            Err(fault) if fault.is_divergence() => {
                Err(key.check().await.err().map_or(fault, |error| Fault::of(&error)))
            }
            Err(fault) => Err(fault),
        }
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
        if self.is_drained() {
            return Err(Fault::new(ErrorKind::Unavailable, DRAINED));
        }
        let Some(key) = self.key.get() else {
            let replica = Arc::clone(self);
            let opened = tokio::spawn(async move { replica.open().await }).await;
            return opened.unwrap_or_else(|_| {
                let fault = Fault::new(ErrorKind::Internal, "opening it panicked");
                self.set_health(&ReplicaHealth::Failing(fault.clone()));
                Err(fault)
            });
        };
        let (replica, key) = (Arc::clone(self), Arc::clone(key));
        let check = tokio::spawn(async move { replica.check_key(&*key).await });
        let fault = match tokio::time::timeout(CHECK_TIMEOUT, check).await {
            Ok(Ok(Ok(()))) => {
                self.well();
                return Ok(());
            }
            Ok(Ok(Err(fault))) => fault,
            Ok(Err(_)) => Fault::new(ErrorKind::Internal, "the check panicked"),
            Err(_) => Fault::new(ErrorKind::Unavailable, "the check took too long")
                .with_cause(Cause::NoAnswer),
        };
        if matches!(fault.kind, ErrorKind::Throttled { .. }) && self.is_serving() {
            self.had_no_room();
            // A used-up quota says nothing about the key.
            self.throttled_at.store(self.now(), Ordering::Relaxed);
            let config::Replica { provider, locator } = &self.specification.place;
            tracing::debug!(provider, locator, "its canary was throttled: {}", fault.text);
            return Err(fault);
        }
        self.set_health(&ReplicaHealth::Failing(fault.clone()));
        Err(fault)
    }

    /// A canary; and what every replica of the version must unwrap, when that is due. One that failed
    /// comes back with it.
    async fn check_key(&self, key: &dyn WrappingKey) -> Result<(), Fault> {
        let begun = Instant::now();
        key.check().await.map_err(|error| {
            error.next_look().inspect(|next_look| self.looks_again_after(*next_look));
            Fault::of(&error)
        })?;
        self.canaries.note(begun.elapsed());
        let comes_back = !self.is_serving() && self.proof.is_needed(&self.specification);
        if comes_back || self.comparison_due_for().is_some() {
            self.compare(key).await?;
        }
        Ok(())
    }
}

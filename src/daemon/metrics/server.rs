//! What is measured once per daemon.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::handles::Histogram;
use super::{add, set_time};

/// The server as a whole.
#[derive(Debug, Default)]
pub struct ServerMetrics {
    pub(super) calls_in_flight: AtomicI64,
    pub(super) connections: AtomicI64,
    pub(super) connections_accepted: AtomicU64,
    pub(super) refusals: Reasons,
    pub(super) handshakes_failed: Reasons,
    pub(super) reloads: AtomicU64,
    pub(super) reloads_refused: AtomicU64,
    pub(super) last_reload: AtomicI64,
    pub(super) last_reload_refused: AtomicBool,
    pub(super) certificate_not_after: AtomicI64,
    pub(super) crls: Mutex<BTreeMap<String, Crl>>,
    pub(super) denied_callers_stale: AtomicBool,
    pub(super) denied_callers_failures: AtomicU64,
}

/// Counts per word of a small closed set.
pub(super) type Reasons = Mutex<BTreeMap<&'static str, u64>>;

#[derive(Clone, Copy, Debug)]
pub(super) struct Crl {
    pub(super) next_update: SystemTime,
}

impl ServerMetrics {
    /// Counts a call as in flight until the value is dropped.
    pub fn call(&self) -> CallInFlight<'_> {
        self.calls_in_flight.fetch_add(1, Ordering::Relaxed);
        CallInFlight(self)
    }

    /// Counts a connection as open until the value is dropped.
    pub fn connection(&self) -> OpenConnection<'_> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        add(&self.connections_accepted, 1);
        OpenConnection(self)
    }

    /// Counts a call refused before a backend was reached.
    pub fn refused(&self, reason: &'static str) {
        count(&self.refusals, reason);
    }

    /// Counts a handshake that failed; `reason` is one of a small closed set, never a text.
    pub fn handshake_failed(&self, reason: &'static str) {
        count(&self.handshakes_failed, reason);
    }

    /// A configuration took effect, the first one too.
    pub fn reloaded(&self) {
        add(&self.reloads, 1);
        self.last_reload_refused.store(false, Ordering::Relaxed);
        set_time(&self.last_reload, SystemTime::now());
    }

    /// A reload was refused; the old configuration is in force.
    pub fn reload_refused(&self) {
        add(&self.reloads_refused, 1);
        self.last_reload_refused.store(true, Ordering::Relaxed);
    }

    /// When the server's certificate expires.
    pub fn set_certificate_not_after(&self, at: SystemTime) {
        set_time(&self.certificate_not_after, at);
    }

    /// The CRLs in force, by their file, and when each promised a successor.
    pub fn set_crls(&self, next_updates: impl IntoIterator<Item = (String, SystemTime)>) {
        let crls = next_updates.into_iter().map(|(file, next_update)| (file, Crl { next_update }));
        *self.crls.lock().unwrap_or_else(PoisonError::into_inner) = crls.collect();
    }

    /// Whether the list of denied callers could be read the last time; if not, the list before
    /// it stays in force.
    pub fn denied_callers_read(&self, success: bool) {
        self.denied_callers_stale.store(!success, Ordering::Relaxed);
        if !success {
            add(&self.denied_callers_failures, 1);
        }
    }
}

fn count(reasons: &Reasons, reason: &'static str) {
    *reasons.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += 1;
}

/// A call in flight.
#[derive(Debug)]
pub struct CallInFlight<'a>(&'a ServerMetrics);

impl Drop for CallInFlight<'_> {
    fn drop(&mut self) {
        self.0.calls_in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An open connection.
#[derive(Debug)]
pub struct OpenConnection<'a>(&'a ServerMetrics);

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The audit log.
#[derive(Debug, Default)]
pub struct AuditMetrics {
    pub(super) records: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) failing: AtomicBool,
    pub(super) refusals_counted: AtomicU64,
    pub(super) commit: Histogram,
}

impl AuditMetrics {
    /// So many records became durable at once, and it took so long.
    pub fn synced(&self, records: u64, took: Duration) {
        if records > 0 {
            add(&self.records, records);
            self.commit.observe(took);
        }
    }

    /// So many records could not be written.
    pub fn failed(&self, records: u64) {
        add(&self.failures, records);
    }

    /// Whether the last write failed.
    pub fn set_failing(&self, failing: bool) {
        self.failing.store(failing, Ordering::Relaxed);
    }

    /// A refusal was counted instead of getting a record of its own.
    pub fn refusal_counted(&self) {
        add(&self.refusals_counted, 1);
    }
}

#[cfg(test)]
impl AuditMetrics {
    pub(crate) fn syncs(&self) -> u64 {
        self.commit.counts().0.iter().map(|(_, count)| count).sum()
    }

    pub(crate) fn failures(&self) -> u64 {
        super::load(&self.failures)
    }
}

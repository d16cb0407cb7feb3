//! What is measured once per daemon.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::handles::Histogram;
use super::{add, seconds};

/// The server as a whole.
#[derive(Debug, Default)]
pub struct ServerMetrics {
    pub(in crate::daemon) refusals: Reasons,
    pub(in crate::daemon) reloads: AtomicU64,
    pub(in crate::daemon) reloads_refused: AtomicU64,
    pub(in crate::daemon) last_reload: AtomicI64,
    pub(in crate::daemon) last_reload_refused: AtomicBool,
    pub(in crate::daemon) clock_steps: AtomicU64,
}

/// Counts per word of a small closed set.
pub(in crate::daemon) type Reasons = Mutex<BTreeMap<&'static str, u64>>;

impl ServerMetrics {
    /// Counts a call refused before a backend was reached.
    pub fn refused(&self, reason: &'static str) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        *refusals.entry(reason).or_default() += 1;
    }

    /// A configuration took effect, the first one too.
    pub fn reloaded(&self) {
        add(&self.reloads, 1);
        self.last_reload_refused.store(false, Ordering::Relaxed);
        self.last_reload.store(seconds(SystemTime::now()), Ordering::Relaxed);
    }

    /// A reload was refused; the old configuration is in force.
    pub fn reload_refused(&self) {
        add(&self.reloads_refused, 1);
        self.last_reload_refused.store(true, Ordering::Relaxed);
    }

    /// The system's clock was set by more than five minutes.
    pub fn clock_stepped(&self) {
        add(&self.clock_steps, 1);
    }
}

/// The audit log.
#[derive(Debug, Default)]
pub struct AuditMetrics {
    pub(in crate::daemon) records: AtomicU64,
    pub(in crate::daemon) failures: AtomicU64,
    pub(in crate::daemon) failing: AtomicBool,
    pub(in crate::daemon) refusals_counted: AtomicU64,
    pub(in crate::daemon) successes_counted: AtomicU64,
    pub(in crate::daemon) commit: Histogram,
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

    /// A refusal, or a cheap success, was counted instead of getting a record of its own.
    pub fn counted(&self, is_refusal: bool) {
        let counter = if is_refusal { &self.refusals_counted } else { &self.successes_counted };
        add(counter, 1);
    }
}

/// The spans of traced calls.
#[derive(Debug, Default)]
pub struct TraceMetrics {
    pub(in crate::daemon) exported: AtomicU64,
    pub(in crate::daemon) dropped: AtomicU64,
    pub(in crate::daemon) rejected: AtomicU64,
    pub(in crate::daemon) failing: AtomicBool,
}

impl TraceMetrics {
    /// The collector took so many.
    pub fn exported(&self, spans: u64) {
        add(&self.exported, spans);
    }

    /// So many found no room while the collector took fewer than there were, or none.
    pub fn dropped(&self, spans: u64) {
        add(&self.dropped, spans);
    }

    /// The collector rejected so many for good.
    pub fn rejected(&self, spans: u64) {
        add(&self.rejected, spans);
    }

    /// Whether the last request to the collector failed.
    pub fn set_failing(&self, failing: bool) {
        self.failing.store(failing, Ordering::Relaxed);
    }

    /// How many were dropped since the start.
    pub fn all_dropped(&self) -> u64 {
        super::load(&self.dropped)
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

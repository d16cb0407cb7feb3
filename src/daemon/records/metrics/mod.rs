//! What Prometheus sees: small closed label sets, and a few atomics per call.
//!
//! Code on a call's path holds a handle ([`KeyMetrics`]) that was made once, when the
//! configuration was read. A handle's series exist while it is held: a key that a reload
//! removed disappears with its last call. What other parts know anyway is read at each scrape
//! (`operations::sources`). Callers are a label of two families alone, a hundred series each: there may be
//! 10,000 of them, and the audit log names them.

mod handles;
pub(crate) mod render;
mod server;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use tonic::Code;

pub use handles::{Histogram, KeyMetrics, Phase};
pub use server::{AuditMetrics, ServerMetrics, TraceMetrics};

/// Everything that is measured in one daemon.
#[derive(Debug)]
pub struct Metrics {
    /// The server as a whole: refusals and reloads.
    pub server: ServerMetrics,
    pub(in crate::daemon) audit: Arc<AuditMetrics>,
    pub(in crate::daemon) traces: Arc<TraceMetrics>,
    without_key: Arc<KeyMetrics>,
    pub(in crate::daemon) keys: Handles<String, KeyMetrics>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            server: ServerMetrics::default(),
            audit: Arc::default(),
            traces: Arc::default(),
            without_key: Arc::new(KeyMetrics::new("")),
            keys: Handles::default(),
        }
    }
}

impl Metrics {
    /// The audit log's own.
    pub fn audit(&self) -> Arc<AuditMetrics> {
        Arc::clone(&self.audit)
    }

    /// Those of traces.
    pub fn traces(&self) -> Arc<TraceMetrics> {
        Arc::clone(&self.traces)
    }

    /// The handle for calls that name no configured key; its label is empty.
    pub fn without_key(&self) -> Arc<KeyMetrics> {
        Arc::clone(&self.without_key)
    }

    /// The handle of a configured key; the one in use, if it is in use.
    pub fn key(&self, name: &str) -> Arc<KeyMetrics> {
        self.keys.obtain(name.to_owned(), || KeyMetrics::new(name))
    }
}

/// Handles that live as long as they are held.
#[derive(Debug)]
pub(in crate::daemon) struct Handles<K, V>(pub(in crate::daemon) Mutex<BTreeMap<K, Weak<V>>>);

impl<K: Ord, V> Handles<K, V> {
    fn obtain(&self, key: K, make: impl FnOnce() -> V) -> Arc<V> {
        let mut handles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = handles.get(&key).and_then(Weak::upgrade) {
            return handle;
        }
        let handle = Arc::new(make());
        handles.insert(key, Arc::downgrade(&handle));
        handle
    }

    /// Those that are held, in order; forgets the others.
    pub(in crate::daemon) fn held(&self) -> Vec<Arc<V>> {
        let mut handles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        handles.retain(|_, handle| handle.strong_count() > 0);
        handles.values().filter_map(Weak::upgrade).collect()
    }
}

impl<K, V> Default for Handles<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// A gRPC code's name: `ok`, else as gRPC writes it. The word in metrics, log and audit.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

pub(crate) fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Seconds since 1970.
pub(crate) fn seconds(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

//! What Prometheus sees: small closed label sets, and a few atomics per call.
//!
//! Whoever is on a call's path holds a handle ([`KeyMetrics`]) that was made once, when the
//! configuration was read. A handle's series exist while somebody holds it: a key that a reload
//! removed disappears with its last call. What somebody else knows anyway is read at each scrape
//! ([`Sources`]). Callers are never a label: there may be 10,000 of them, and the audit log names
//! them.

mod handles;
mod render;
mod server;
mod sources;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tonic::Code;

pub use handles::{Histogram, KeyMetrics};
pub use render::CONTENT_TYPE;
pub use server::{AuditMetrics, ServerMetrics};
pub use sources::Sources;

/// Everything that is measured in one daemon.
#[derive(Debug)]
pub struct Metrics {
    /// The server as a whole: refusals and reloads.
    pub server: ServerMetrics,
    audit: Arc<AuditMetrics>,
    without_key: Arc<KeyMetrics>,
    keys: Handles<String, KeyMetrics>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            server: ServerMetrics::default(),
            audit: Arc::default(),
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

    /// The handle for calls that name no configured key; its label is empty.
    pub fn without_key(&self) -> Arc<KeyMetrics> {
        Arc::clone(&self.without_key)
    }

    /// The handle of a configured key; the one in use, if it is in use.
    pub fn key(&self, name: &str) -> Arc<KeyMetrics> {
        self.keys.obtain(name.to_owned(), || KeyMetrics::new(name))
    }
}

/// Handles that live as long as somebody holds them.
#[derive(Debug)]
struct Handles<K, V>(Mutex<BTreeMap<K, Weak<V>>>);

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
    fn held(&self) -> Vec<Arc<V>> {
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

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use super::*;
    use crate::daemon::config::Operation;

    /// What is counted, of a daemon without keys.
    fn counted(metrics: &Arc<Metrics>) -> BTreeMap<String, f64> {
        let configuration = "[server]\nlisten = [\"unix:/run/c.sock\"]\n[audit]\noff = true\n";
        series(&metrics.render(&Arc::new(Sources::of(configuration, metrics).0)))
    }

    /// Value by name and labels.
    pub(crate) fn series(text: &str) -> BTreeMap<String, f64> {
        assert!(text.ends_with("# EOF\n"));
        let mut series = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with("claviger_"), "{name}");
            assert_eq!(series.insert(name.to_owned(), value.parse().unwrap()), None, "{name}");
        }
        series
    }

    #[test]
    fn a_call_is_counted_by_operation_key_and_outcome_and_timed() {
        let metrics = Arc::new(Metrics::default());
        let key = metrics.key("user-keys");
        key.observe(Operation::Unwrap, Code::Ok, Duration::from_micros(700));
        key.observe(Operation::Unwrap, Code::Ok, Duration::from_mins(1));
        key.observe(Operation::Unwrap, Code::InvalidArgument, Duration::from_micros(500));
        key.failed_unwrap();
        key.retried();
        key.unwraps_alarmed();
        metrics.without_key().observe(Operation::Read, Code::PermissionDenied, Duration::ZERO);

        let series = counted(&metrics);
        let unwrap = r#"operation="unwrap",key="user-keys""#;
        let expected = [
            (format!("calls_total{{{unwrap},outcome=\"ok\"}}"), 2.0),
            (format!("calls_total{{{unwrap},outcome=\"INVALID_ARGUMENT\"}}"), 1.0),
            (r#"calls_total{operation="read",key="",outcome="PERMISSION_DENIED"}"#.to_owned(), 1.0),
            (format!("call_duration_seconds_count{{{unwrap}}}"), 3.0),
            (format!("call_duration_seconds_sum{{{unwrap}}}"), 60.0012),
            (format!("call_duration_seconds_bucket{{le=\"0.0005\",{unwrap}}}"), 1.0),
            (format!("call_duration_seconds_bucket{{le=\"0.001\",{unwrap}}}"), 2.0),
            (format!("call_duration_seconds_bucket{{le=\"10.0\",{unwrap}}}"), 2.0),
            (format!("call_duration_seconds_bucket{{le=\"+Inf\",{unwrap}}}"), 3.0),
            (r#"failed_unwraps_total{key="user-keys"}"#.to_owned(), 1.0),
            (r#"retries_total{key="user-keys"}"#.to_owned(), 1.0),
            (r#"unwraps_alarms_total{key="user-keys"}"#.to_owned(), 1.0),
        ];
        for (name, value) in expected {
            assert_eq!(series.get(&format!("claviger_{name}")), Some(&value), "{name}");
        }
    }

    #[test]
    fn what_else_is_counted_is_there_under_its_name() {
        let metrics = Arc::new(Metrics::default());
        let server = &metrics.server;
        server.refused("rate");
        server.refused("rate");
        server.reloaded();
        server.reload_refused();
        let audit = metrics.audit();
        audit.synced(10, Duration::from_millis(4));
        audit.failed(2);
        audit.set_failing(true);
        audit.refusal_counted();

        let series = counted(&metrics);
        let expected = [
            (concat!("build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1.0),
            (r#"refusals_total{reason="rate"}"#, 2.0),
            (r#"config_reloads_total{outcome="ok"}"#, 1.0),
            (r#"config_reloads_total{outcome="refused"}"#, 1.0),
            ("config_last_reload_refused", 1.0),
            ("audit_records_total", 10.0),
            ("audit_failures_total", 2.0),
            ("audit_failing", 1.0),
            ("audit_refusals_counted_total", 1.0),
            ("audit_sync_seconds_count", 1.0),
            (r#"audit_sync_seconds_bucket{le="0.005"}"#, 1.0),
        ];
        for (name, value) in expected {
            assert_eq!(series.get(&format!("claviger_{name}")), Some(&value), "{name}");
        }
        assert!(series["claviger_config_last_reload_timestamp_seconds"] > 1.7e9);
    }

    #[test]
    fn a_key_that_nobody_holds_disappears_and_one_in_use_keeps_its_counts() {
        let metrics = Arc::new(Metrics::default());
        let (stays, goes) = (metrics.key("stays"), metrics.key("goes"));
        for key in [&stays, &goes] {
            key.observe(Operation::Wrap, Code::Ok, Duration::ZERO);
        }
        let after_reload = metrics.key("stays");
        drop((stays, goes));
        let series = counted(&metrics);
        let total = |key: &str| {
            let name =
                format!("claviger_calls_total{{operation=\"wrap\",key=\"{key}\",outcome=\"ok\"}}");
            series.get(&name).copied()
        };
        assert_eq!((total("stays"), total("goes")), (Some(1.0), None));
        drop(after_reload);
        assert_eq!(metrics.keys.held().len(), 0);
        assert!(metrics.keys.0.lock().unwrap().is_empty());
    }

    #[test]
    fn no_call_is_lost_when_many_threads_count_at_once() {
        let metrics = Arc::new(Metrics::default());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let key = metrics.key("user-keys");
                    for _ in 0..10_000 {
                        key.observe(Operation::Sign, Code::Ok, Duration::from_millis(3));
                    }
                    std::mem::forget(key);
                });
            }
        });
        let series = counted(&metrics);
        let sign = r#"operation="sign",key="user-keys""#;
        let calls = format!("claviger_calls_total{{{sign},outcome=\"ok\"}}");
        assert_eq!(series.get(&calls), Some(&40_000.0));
        let sum = format!("claviger_call_duration_seconds_sum{{{sign}}}");
        assert_eq!(series.get(&sum), Some(&120.0));
    }

    #[test]
    fn ten_thousand_keys_cost_little_until_they_are_called() {
        assert!(size_of::<KeyMetrics>() <= 136);
        let metrics = Arc::new(Metrics::default());
        let keys: Vec<_> = (0..10_000).map(|n| metrics.key(&format!("key-{n}"))).collect();
        assert!(keys.iter().all(|key| key.called().count() == 0));
        keys[5].observe(Operation::Unwrap, Code::Ok, Duration::ZERO);
        let names: HashSet<String> = counted(&metrics).into_keys().collect();
        let about_calls = names.iter().filter(|name| name.contains("claviger_call_duration"));
        assert_eq!(about_calls.count(), 13);
    }
}

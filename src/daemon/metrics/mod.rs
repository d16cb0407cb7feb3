//! What Prometheus sees: small closed label sets, and a few atomics per call.
//!
//! Whoever is on a call's path holds a handle ([`KeyMetrics`], [`ReplicaMetrics`],
//! [`ProviderMetrics`]) that was made once, when the configuration was read. A handle's series
//! exist while somebody holds it: a key that a reload removed disappears with its last call.
//! Callers are never a label: there may be 10,000 of them, and the audit log names them.

mod handles;
mod render;
mod server;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use tonic::Code;

pub use handles::{Histogram, KeyMetrics, ProviderMetrics, ReplicaMetrics};
pub use render::CONTENT_TYPE;
pub use server::{AuditMetrics, CallInFlight, OpenConnection, ServerMetrics};

/// Everything that is measured in one daemon.
#[derive(Debug)]
pub struct Metrics {
    /// The server as a whole: calls in flight, connections, refusals, reloads, certificates.
    pub server: ServerMetrics,
    audit: Arc<AuditMetrics>,
    without_key: Arc<KeyMetrics>,
    keys: Handles<String, KeyMetrics>,
    replicas: Handles<(String, u32, usize), ReplicaMetrics>,
    providers: Handles<String, ProviderMetrics>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            server: ServerMetrics::default(),
            audit: Arc::default(),
            without_key: Arc::new(KeyMetrics::new("")),
            keys: Handles::default(),
            replicas: Handles::default(),
            providers: Handles::default(),
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

    /// The handle of one replica: `place` is its place in the version's list, from 0.
    pub fn replica(
        &self,
        key: &str,
        version: u32,
        place: usize,
        provider: &str,
    ) -> Arc<ReplicaMetrics> {
        self.replicas.obtain((key.to_owned(), version, place), || {
            ReplicaMetrics::new(key, version, place, provider)
        })
    }

    /// The handle of a configured provider. `kind` is its `type`; `hardware` says whether its
    /// keys are in hardware.
    pub fn provider(&self, name: &str, kind: &str, hardware: bool) -> Arc<ProviderMetrics> {
        self.providers.obtain(name.to_owned(), || ProviderMetrics::new(name, kind, hardware))
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

fn set_time(gauge: &AtomicI64, at: SystemTime) {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    gauge.store(i64::try_from(seconds).unwrap_or(i64::MAX), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use super::*;
    use crate::daemon::config::Operation;

    /// Value by name and labels.
    fn series(metrics: &Arc<Metrics>) -> BTreeMap<String, f64> {
        let text = metrics.render();
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
        metrics.without_key().observe(Operation::Read, Code::PermissionDenied, Duration::ZERO);

        let series = series(&metrics);
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
        ];
        for (name, value) in expected {
            assert_eq!(series.get(&format!("claviger_{name}")), Some(&value), "{name}");
        }
    }

    #[test]
    fn everything_else_is_there_under_its_name() {
        let metrics = Arc::new(Metrics::default());
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let replica = metrics.replica("user-keys", 2, 0, "hsm-a");
        let _other = metrics.replica("user-keys", 2, 1, "hsm-a");
        replica.set_up(true);
        replica.checked();
        let provider = metrics.provider("hsm-a", "pkcs11", true);
        provider.repaired();
        provider.set_pin_latched(true);
        let server = &metrics.server;
        let (_call, connection) = (server.call(), server.connection());
        let _open = server.connection();
        drop(connection);
        server.refused("rate");
        server.refused("rate");
        server.handshake_failed("expired");
        server.reloaded();
        server.reload_refused();
        server.set_certificate_not_after(at(2_000_000_000));
        server.set_crls([("a.crl".to_owned(), at(1)), ("b.crl".to_owned(), at(4_000_000_000))]);
        server.denied_callers_read(false);
        let audit = metrics.audit();
        audit.synced(10, Duration::from_millis(4));
        audit.failed(2);
        audit.set_failing(true);
        audit.refusal_counted();

        let series = series(&metrics);
        let replica = r#"key="user-keys",version="2",provider="hsm-a",replica="0""#;
        let expected = [
            (&*format!("key_up{{{replica}}}"), 1.0),
            (r#"key_up{key="user-keys",version="2",provider="hsm-a",replica="1"}"#, 0.0),
            (r#"provider_info{provider="hsm-a",type="pkcs11",hardware="true"}"#, 1.0),
            (r#"repairs_total{provider="hsm-a"}"#, 1.0),
            (r#"pin_latched{provider="hsm-a"}"#, 1.0),
            (concat!("build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1.0),
            ("calls_in_flight", 1.0),
            ("connections", 1.0),
            ("connections_accepted_total", 2.0),
            (r#"refusals_total{reason="rate"}"#, 2.0),
            (r#"handshakes_failed_total{reason="expired"}"#, 1.0),
            (r#"config_reloads_total{outcome="ok"}"#, 1.0),
            (r#"config_reloads_total{outcome="refused"}"#, 1.0),
            ("config_last_reload_refused", 1.0),
            ("certificate_not_after_timestamp_seconds", 2_000_000_000.0),
            (r#"crl_next_update_timestamp_seconds{crl="a.crl"}"#, 1.0),
            (r#"crl_stale{crl="a.crl"}"#, 1.0),
            (r#"crl_stale{crl="b.crl"}"#, 0.0),
            ("denied_callers_stale", 1.0),
            ("denied_callers_read_failures_total", 1.0),
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
        let ages: Vec<_> = series.iter().filter(|(name, _)| name.contains("check_age")).collect();
        assert_eq!(ages.len(), 1, "a replica that was never checked has no age");
        assert!((0.0..60.0).contains(ages[0].1));
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
        let series = series(&metrics);
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
        let series = series(&metrics);
        let sign = r#"operation="sign",key="user-keys""#;
        let calls = format!("claviger_calls_total{{{sign},outcome=\"ok\"}}");
        assert_eq!(series.get(&calls), Some(&40_000.0));
        let sum = format!("claviger_call_duration_seconds_sum{{{sign}}}");
        assert_eq!(series.get(&sum), Some(&120.0));
    }

    #[test]
    fn ten_thousand_keys_cost_little_until_they_are_called() {
        assert!(size_of::<KeyMetrics>() <= 128);
        let metrics = Arc::new(Metrics::default());
        let keys: Vec<_> = (0..10_000).map(|n| metrics.key(&format!("key-{n}"))).collect();
        assert!(keys.iter().all(|key| key.called().count() == 0));
        keys[5].observe(Operation::Unwrap, Code::Ok, Duration::ZERO);
        let names: HashSet<String> = series(&metrics).into_keys().collect();
        let about_calls = names.iter().filter(|name| name.contains("claviger_call_duration"));
        assert_eq!(about_calls.count(), 13);
    }
}

//! What is counted appears under its name; what is not held disappears.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use tonic::Code;

use super::*;
use crate::daemon::config::Operation;
use crate::daemon::records::metrics::KeyMetrics;

/// What is counted, of a daemon without keys.
fn counted(metrics: &Arc<Metrics>) -> BTreeMap<String, f64> {
    let configuration = "[server]\nlisten = [\"unix:/run/c.sock\"]\n[audit]\noff = true\n";
    series(&render(&Arc::new(Sources::of(configuration, metrics).0)))
}

/// Value by name and labels.
pub(crate) fn series(text: &str) -> BTreeMap<String, f64> {
    assert!(text.ends_with("# EOF\n"));
    let mut series = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("claviger_") || name.starts_with("process_"), "{name}");
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
    server.clock_stepped();
    let audit = metrics.audit();
    audit.synced(10, Duration::from_millis(4));
    audit.failed(2);
    audit.set_failing(true);
    audit.counted(true);
    audit.counted(false);

    let series = counted(&metrics);
    let expected = [
        (concat!("build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1.0),
        (r#"refusals_total{reason="rate"}"#, 2.0),
        (r#"config_reloads_total{outcome="ok"}"#, 1.0),
        (r#"config_reloads_total{outcome="refused"}"#, 1.0),
        ("config_last_reload_successful", 0.0),
        ("clock_steps_total", 1.0),
        ("audit_records_total", 10.0),
        ("audit_failures_total", 2.0),
        ("audit_failing", 1.0),
        ("audit_refusals_counted_total", 1.0),
        ("audit_successes_counted_total", 1.0),
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
    assert!(size_of::<KeyMetrics>() <= 176);
    let metrics = Arc::new(Metrics::default());
    let keys: Vec<_> = (0..10_000).map(|n| metrics.key(&format!("key-{n}"))).collect();
    assert!(keys.iter().all(|key| key.called().count() == 0));
    keys[5].observe(Operation::Unwrap, Code::Ok, Duration::ZERO);
    let names: HashSet<String> = counted(&metrics).into_keys().collect();
    let about_calls = names.iter().filter(|name| name.contains("claviger_call_duration"));
    assert_eq!(about_calls.count(), 13);
}

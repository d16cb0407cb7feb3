//! The alert rules and the dashboard that are shipped ask only for metrics that a scrape has.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::scrape::render;
use super::sources::Sources;
use crate::daemon::records::metrics::Metrics;

/// The names of the metric families of a scrape; they are there whether or not they have samples.
fn families(text: &str) -> BTreeSet<&str> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.filter_map(|line| line.split(' ').next()).collect()
}

/// The metrics that a text names, without the endings of counters and histograms. What the rules
/// record has a colon in its name and is no metric of ours.
fn named(text: &str) -> BTreeSet<&str> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = text.split(|c| !is_name(c));
    let ours = words.filter(|word| word.starts_with("claviger_") && !word.contains(':'));
    ours.map(|word| {
        let endings = ["_total", "_bucket", "_count", "_sum", "_info"];
        endings.iter().find_map(|ending| word.strip_suffix(ending)).unwrap_or(word)
    })
    .collect()
}

/// Metrics of the TLS listener, of the audit log and of issuers, which a daemon on a Unix socket without a log
/// and without issuers does not have.
const OF_OTHERS: [&str; 12] = [
    "claviger_audit_chain_records",
    "claviger_audit_checkpoint_timestamp_seconds",
    "claviger_audit_unsigned_records",
    "claviger_audit_write_age_seconds",
    "claviger_audit_sink_behind_bytes",
    "claviger_audit_sink_failing",
    "claviger_issuer_ready",
    "claviger_audit_free_bytes",
    "claviger_tls_stale",
    "claviger_certificate_not_after_timestamp_seconds",
    "claviger_crl_stale",
    "claviger_crl_next_update_timestamp_seconds",
];

#[test]
fn the_shipped_rules_and_dashboard_name_only_metrics_that_exist() {
    let folder = tempfile::tempdir().unwrap();
    let configuration = format!(
        "[server]\nlisten = [\"unix:/run/c.sock\"]\nstate_dir = \"{}\"\n[audit]\noff = true\n",
        folder.path().display()
    );
    let metrics = Arc::new(Metrics::default());
    let scraped = render(&Arc::new(Sources::of(&configuration, &metrics).0));
    let families = families(&scraped);
    assert!(families.len() > 20, "{families:?}");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for shipped in [
        "deploy/prometheus/alerts.rules.yml",
        "deploy/prometheus/alerts.test.yml",
        "deploy/prometheus/recording.rules.yml",
        "deploy/grafana/claviger.json",
    ] {
        let text = std::fs::read_to_string(root.join(shipped)).unwrap();
        let named = named(&text);
        assert!(!named.is_empty(), "{shipped}");
        for metric in named {
            let exists = families.contains(metric) || OF_OTHERS.contains(&metric);
            assert!(exists, "{shipped}: no metric {metric}");
        }
    }
}

#[test]
fn a_query_for_a_metric_that_is_gone_is_found() {
    let named =
        named("rate(claviger_calls_total{a=\"b\"}[5m]) / claviger:calls:rate5m > claviger_gone");
    assert_eq!(named, BTreeSet::from(["claviger_calls", "claviger_gone"]));
}

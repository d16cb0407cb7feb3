//! The metrics as OpenMetrics text: names, help, labels.

use std::fmt;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::handles::Histogram;
use super::server::Reasons;
use super::{Metrics, code_name, load};

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

impl Metrics {
    /// Everything as OpenMetrics text. Takes a while with thousands of keys (about 2 KB each):
    /// not for a thread that answers calls.
    pub fn render(self: &std::sync::Arc<Self>) -> String {
        let mut registry = Registry::with_prefix("claviger");
        registry.register_collector(Box::new(Snapshot(std::sync::Arc::clone(self))));
        let mut text = String::new();
        text::encode(&mut text, &registry).expect("a String takes everything");
        text
    }
}

#[derive(Debug)]
struct Snapshot(std::sync::Arc<Metrics>);

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        self.keys(encoder)?;
        self.replicas(encoder)?;
        self.providers(encoder)?;
        self.server(encoder)?;
        self.trust(encoder)?;
        self.audit(encoder)
    }
}

impl Snapshot {
    fn keys(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut keys = self.0.keys.held();
        keys.push(self.0.without_key());

        let help = "Calls and batch items that ended, by outcome";
        let mut calls = counter(encoder, "calls", help)?;
        for key in &keys {
            for (operation, measured) in key.called() {
                for (code, count) in measured.outcomes() {
                    let labels = [
                        ("operation", operation.name()),
                        ("key", &key.name),
                        ("outcome", code_name(code)),
                    ];
                    sample_counter(&mut calls, &labels, count)?;
                }
            }
        }
        let help = "Time from the arrival of a call to its answer";
        let mut durations = encoder.encode_descriptor(
            "call_duration_seconds",
            help,
            None,
            MetricType::Histogram,
        )?;
        for key in &keys {
            for (operation, measured) in key.called() {
                let labels = [("operation", operation.name()), ("key", &*key.name)];
                sample_histogram(&mut durations, &labels, &measured.duration)?;
            }
        }
        keys.pop();
        let help = "Values that did not unwrap, the backend being sound";
        let mut failed = counter(encoder, "failed_unwraps", help)?;
        for key in &keys {
            sample_counter(&mut failed, &[("key", &*key.name)], load(&key.failed_unwraps))?;
        }
        let mut retries = counter(encoder, "retries", "Unwraps tried once more after a repair")?;
        for key in &keys {
            sample_counter(&mut retries, &[("key", &*key.name)], load(&key.retries))?;
        }
        Ok(())
    }

    fn replicas(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let replicas = self.0.replicas.held();
        let labels = |replica: &super::ReplicaMetrics| {
            [
                ("key", replica.key.to_string()),
                ("version", replica.version.to_string()),
                ("provider", replica.provider.to_string()),
                ("replica", replica.place.to_string()),
            ]
        };
        let mut up = gauge(encoder, "key_up", "Whether a replica serves (1) or not (0)")?;
        for replica in &replicas {
            sample_gauge(&mut up, &labels(replica), i64::from(replica.is_up()))?;
        }
        let help = "Seconds since a replica's private key last did its work";
        let mut age = gauge(encoder, "key_check_age_seconds", help)?;
        for replica in &replicas {
            if let Some(since) = replica.check_age() {
                age.encode_family(&labels(replica))?.encode_gauge(&since.as_secs_f64())?;
            }
        }
        Ok(())
    }

    fn providers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let providers = self.0.providers.held();
        let mut info = encoder.encode_descriptor(
            "provider",
            "Configured providers",
            None,
            MetricType::Info,
        )?;
        for provider in &providers {
            info.encode_info(&[
                ("provider", &*provider.name),
                ("type", &*provider.kind),
                ("hardware", if provider.hardware { "true" } else { "false" }),
            ])?;
        }
        let help = "Recoveries: new session, new login, new start of the module";
        let mut repairs = counter(encoder, "repairs", help)?;
        for provider in &providers {
            let labels = [("provider", &*provider.name)];
            sample_counter(&mut repairs, &labels, load(&provider.repairs))?;
        }
        let help = "Whether a refused PIN keeps a provider shut until `claviger pin clear`";
        let mut latched = gauge(encoder, "pin_latched", help)?;
        for provider in &providers {
            let labels = [("provider", &*provider.name)];
            sample_gauge(&mut latched, &labels, i64::from(provider.is_pin_latched()))?;
        }
        Ok(())
    }

    fn server(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let server = &self.0.server;
        encoder
            .encode_descriptor("build", "What is running", None, MetricType::Info)?
            .encode_info(&[("version", env!("CARGO_PKG_VERSION"))])?;
        plain_gauge(encoder, "calls_in_flight", "Calls in flight", &server.calls_in_flight)?;
        plain_gauge(encoder, "connections", "Open connections", &server.connections)?;
        let help = "Connections that were accepted";
        plain_counter(encoder, "connections_accepted", help, &server.connections_accepted)?;
        let help = "Calls refused before a backend was reached";
        by_reason(encoder, "refusals", help, &server.refusals)?;
        let help = "TLS handshakes that failed";
        by_reason(encoder, "handshakes_failed", help, &server.handshakes_failed)?;

        let mut reloads = counter(encoder, "config_reloads", "Configurations read, by outcome")?;
        sample_counter(&mut reloads, &[("outcome", "ok")], load(&server.reloads))?;
        sample_counter(&mut reloads, &[("outcome", "refused")], load(&server.reloads_refused))?;
        let help = "When the configuration in force was read";
        plain_gauge(encoder, "config_last_reload_timestamp_seconds", help, &server.last_reload)?;
        let help = "Whether the last reload was refused";
        flag(encoder, "config_last_reload_refused", help, &server.last_reload_refused)
    }

    fn trust(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let server = &self.0.server;
        if server.certificate_not_after.load(Ordering::Relaxed) != 0 {
            plain_gauge(
                encoder,
                "certificate_not_after_timestamp_seconds",
                "When the server's certificate expires",
                &server.certificate_not_after,
            )?;
        }
        let crls = server.crls.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let help = "When a CRL promised its successor";
        let mut next_update = gauge(encoder, "crl_next_update_timestamp_seconds", help)?;
        for (file, crl) in &crls {
            let at = crl.next_update.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let at = i64::try_from(at.as_secs()).unwrap_or(i64::MAX);
            sample_gauge(&mut next_update, &[("crl", file.as_str())], at)?;
        }
        let help = "Whether a CRL's successor is overdue; the door closes after crl_grace";
        let mut stale = gauge(encoder, "crl_stale", help)?;
        let now = SystemTime::now();
        for (file, crl) in &crls {
            let overdue = i64::from(crl.next_update < now);
            sample_gauge(&mut stale, &[("crl", file.as_str())], overdue)?;
        }
        let help = "Whether the list of denied callers could not be read; the last one is in force";
        flag(encoder, "denied_callers_stale", help, &server.denied_callers_stale)?;
        let help = "Times the list of denied callers could not be read";
        let failures = &server.denied_callers_failures;
        plain_counter(encoder, "denied_callers_read_failures", help, failures)
    }

    fn audit(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let audit = &self.0.audit;
        plain_counter(encoder, "audit_records", "Durable audit records", &audit.records)?;
        let help = "Audit records that could not be written; their calls failed";
        plain_counter(encoder, "audit_failures", help, &audit.failures)?;
        let help = "Whether the audit log cannot be written at present";
        flag(encoder, "audit_failing", help, &audit.failing)?;
        let help = "Refusals counted into a summary instead of an audit record of their own";
        plain_counter(encoder, "audit_refusals_counted", help, &audit.refusals_counted)?;
        let help = "Time to write and sync a group of audit records";
        let mut sync =
            encoder.encode_descriptor("audit_sync_seconds", help, None, MetricType::Histogram)?;
        let (buckets, sum) = audit.commit.counts();
        sync.encode_histogram::<NoLabelSet>(sum, total(&buckets), &buckets, None)
    }
}

fn counter<'s>(
    encoder: &'s mut DescriptorEncoder<'_>,
    name: &'s str,
    help: &str,
) -> Result<MetricEncoder<'s>, fmt::Error> {
    encoder.encode_descriptor(name, help, None, MetricType::Counter)
}

fn gauge<'s>(
    encoder: &'s mut DescriptorEncoder<'_>,
    name: &'s str,
    help: &str,
) -> Result<MetricEncoder<'s>, fmt::Error> {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)
}

fn plain_counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: &AtomicU64,
) -> fmt::Result {
    counter(encoder, name, help)?.encode_counter::<NoLabelSet, u64, u64>(&load(value), None)
}

fn plain_gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: &AtomicI64,
) -> fmt::Result {
    gauge(encoder, name, help)?.encode_gauge(&value.load(Ordering::Relaxed))
}

fn flag(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: &AtomicBool,
) -> fmt::Result {
    gauge(encoder, name, help)?.encode_gauge(&i64::from(value.load(Ordering::Relaxed)))
}

fn by_reason(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    reasons: &Reasons,
) -> fmt::Result {
    let reasons = reasons.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut family = counter(encoder, name, help)?;
    for (reason, count) in reasons {
        sample_counter(&mut family, &[("reason", reason)], count)?;
    }
    Ok(())
}

fn sample_counter(
    family: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    value: u64,
) -> fmt::Result {
    family.encode_family(labels)?.encode_counter::<NoLabelSet, u64, u64>(&value, None)
}

fn sample_gauge(
    family: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    value: i64,
) -> fmt::Result {
    family.encode_family(labels)?.encode_gauge(&value)
}

fn sample_histogram(
    family: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    histogram: &Histogram,
) -> fmt::Result {
    let (buckets, sum) = histogram.counts();
    family.encode_family(labels)?.encode_histogram::<NoLabelSet>(
        sum,
        total(&buckets),
        &buckets,
        None,
    )
}

/// Of the buckets themselves, so that count and buckets agree while calls go on.
fn total(buckets: &[(f64, u64)]) -> u64 {
    buckets.iter().map(|(_, count)| count).sum()
}

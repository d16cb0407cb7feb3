//! A scrape: what was counted, and what is read at this moment, as OpenMetrics text.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::process::Process;
use super::sources::Sources;
use crate::daemon::records::metrics::render::{
    counter, info, plain_counter, plain_gauge, sample_counter, sample_histogram, total,
};
use crate::daemon::records::metrics::{Metrics, Phase, code_name, load};

/// The content type of [`render`].
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything as OpenMetrics text. Takes a while with thousands of keys (about 2 KB each), and looks
/// at the state directory: not for a thread that answers calls.
pub(super) fn render(sources: &Arc<Sources>) -> String {
    let mut registry = Registry::default();
    let scrape = Scrape { metrics: Arc::clone(&sources.metrics), sources: Arc::clone(sources) };
    registry.sub_registry_with_prefix("claviger").register_collector(Box::new(scrape));
    registry.register_collector(Box::new(Process));
    let mut text = String::new();
    text::encode(&mut text, &registry).expect("a String takes everything");
    text
}

#[derive(Debug)]
struct Scrape {
    metrics: Arc<Metrics>,
    sources: Arc<Sources>,
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        self.keys(encoder)?;
        self.server(encoder)?;
        self.audit(encoder)?;
        self.traces(encoder)?;
        self.sources.encode(encoder)
    }
}

impl Scrape {
    fn keys(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut keys = self.metrics.keys.held();
        keys.push(self.metrics.without_key());

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
        let help = "Time that calls which asked a backend waited: for room and their turn (queue), for \
                    the backend's answer, for their audit record";
        let name = "call_phase_seconds";
        let mut phases = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for key in &keys {
            for (operation, measured) in key.called() {
                for (phase, histogram) in Phase::ALL.into_iter().zip(&measured.phases) {
                    // Reading and wrapping ask no backend.
                    if total(&histogram.counts().0) == 0 {
                        continue;
                    }
                    let labels = [
                        ("operation", operation.name()),
                        ("key", &*key.name),
                        ("phase", phase.name()),
                    ];
                    sample_histogram(&mut phases, &labels, histogram)?;
                }
            }
        }
        keys.pop();
        let help = "Values that did not unwrap, the backend being sound";
        let mut failed = counter(encoder, "failed_unwraps", help)?;
        for key in &keys {
            sample_counter(&mut failed, &[("key", &*key.name)], load(&key.failed_unwraps))?;
        }
        let mut retries = counter(encoder, "retries", "Unwraps and signatures tried once more")?;
        for key in &keys {
            sample_counter(&mut retries, &[("key", &*key.name)], load(&key.retries))?;
        }
        let help = "Calls that another replica answered than the first that was asked";
        let mut failovers = counter(encoder, "failovers", help)?;
        for key in &keys {
            sample_counter(&mut failovers, &[("key", &*key.name)], load(&key.failovers))?;
        }
        let help = "Times that a caller unwrapped more than its unwraps_alarm; the log names it";
        let mut alarms = counter(encoder, "unwraps_alarms", help)?;
        for key in &keys {
            sample_counter(&mut alarms, &[("key", &*key.name)], load(&key.unwraps_alarms))?;
        }
        let help = "Values that failed before and were answered from memory, at no cost";
        let mut repeated = counter(encoder, "repeated_failures", help)?;
        for key in &keys {
            sample_counter(&mut repeated, &[("key", &*key.name)], load(&key.repeated_failures))?;
        }
        let help = "Unwraps whose backend was asked and gave no verdict: failures until it does";
        let mut unanswered = counter(encoder, "unanswered_unwraps", help)?;
        for key in &keys {
            sample_counter(&mut unanswered, &[("key", &*key.name)], load(&key.unanswered_unwraps))?;
        }
        let help = "Values that no grant of their caller lists: no backend was asked";
        let mut unlisted = counter(encoder, "values_not_granted", help)?;
        for key in &keys {
            sample_counter(&mut unlisted, &[("key", &*key.name)], load(&key.values_not_granted))?;
        }
        let help = "Operations that ran to their end although their callers had left";
        let mut abandoned = counter(encoder, "abandoned", help)?;
        for key in &keys {
            sample_counter(&mut abandoned, &[("key", &*key.name)], load(&key.abandoned))?;
        }
        Ok(())
    }

    fn server(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let server = &self.metrics.server;
        info(encoder, "build", "What is running")?
            .encode_info(&[("version", env!("CARGO_PKG_VERSION"))])?;
        let refusals = server.refusals.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let help = "Calls refused before a backend was reached";
        let mut family = counter(encoder, "refusals", help)?;
        for (reason, count) in refusals {
            sample_counter(&mut family, &[("reason", reason)], count)?;
        }
        let help = "Configurations read, by outcome; the first one too";
        let mut reloads = counter(encoder, "config_reloads", help)?;
        sample_counter(&mut reloads, &[("outcome", "ok")], load(&server.reloads))?;
        sample_counter(&mut reloads, &[("outcome", "refused")], load(&server.reloads_refused))?;
        let help = "When the configuration in force was read";
        let at = server.last_reload.load(Ordering::Relaxed);
        plain_gauge(encoder, "config_last_reload_timestamp_seconds", help, at)?;
        let help = "Whether the last reload took effect (1) or was refused (0)";
        let refused = server.last_reload_refused.load(Ordering::Relaxed);
        plain_gauge(encoder, "config_last_reload_successful", help, !refused)?;
        let help = "Times that the system's clock was set by more than five minutes";
        plain_counter(encoder, "clock_steps", help, load(&server.clock_steps))
    }

    fn audit(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let audit = &self.metrics.audit;
        plain_counter(encoder, "audit_records", "Durable audit records", load(&audit.records))?;
        let help = "Audit records that could not be written; their calls failed";
        plain_counter(encoder, "audit_failures", help, load(&audit.failures))?;
        let help = "Whether the audit log cannot be written at present";
        plain_gauge(encoder, "audit_failing", help, audit.failing.load(Ordering::Relaxed))?;
        let help = "Refusals counted into a summary instead of an audit record of their own";
        plain_counter(encoder, "audit_refusals_counted", help, load(&audit.refusals_counted))?;
        let help =
            "Reads, verifies and wraps counted into a summary instead of records of their own";
        plain_counter(encoder, "audit_successes_counted", help, load(&audit.successes_counted))?;
        let help = "Time to write and sync a group of audit records";
        let mut sync =
            encoder.encode_descriptor("audit_sync_seconds", help, None, MetricType::Histogram)?;
        let (buckets, sum) = audit.commit.counts();
        sync.encode_histogram::<NoLabelSet>(sum, total(&buckets), &buckets, None)
    }

    fn traces(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let traces = &self.metrics.traces;
        let help = "Spans of traced calls by what became of them: the collector took them, rejected \
                    them, or took fewer than there were";
        let mut spans = counter(encoder, "trace_spans", help)?;
        for (outcome, count) in [
            ("exported", &traces.exported),
            ("rejected", &traces.rejected),
            ("dropped", &traces.dropped),
        ] {
            sample_counter(&mut spans, &[("outcome", outcome)], load(count))?;
        }
        let help = "Whether the collector of traces did not take the last spans (1)";
        plain_gauge(
            encoder,
            "trace_collector_failing",
            help,
            traces.failing.load(Ordering::Relaxed),
        )
    }
}

#[cfg(test)]
pub(crate) mod tests;

//! What is not counted for the metrics but read at each scrape, from those who know it.

mod callers;
mod replicas;
mod status;
mod transport;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use prometheus_client::encoding::DescriptorEncoder;
use tokio::sync::watch;

use crate::daemon::backends::{LatchedToken, latched_tokens};
use crate::daemon::config::Config;
use crate::daemon::records::audit::{Audit, AuditState, SinkState};
use crate::daemon::records::metrics::render::{
    counter, gauge, info, plain_gauge, sample_counter, sample_gauge,
};
use crate::daemon::records::metrics::{Metrics, seconds};
use crate::daemon::request::active::ActiveConfig;
use crate::daemon::request::health::Phase;
use crate::daemon::request::in_flight::InFlight;
use crate::daemon::transport::denied::DeniedCallers;
use crate::daemon::transport::listener::ConnectionStats;
use crate::daemon::transport::tls::TlsState;

/// Those who know how the daemon is at the moment of a scrape.
#[derive(Debug)]
pub struct Sources {
    /// Providers and replicas in force.
    pub active: Arc<ArcSwap<ActiveConfig>>,
    /// The configuration in force.
    pub config: Arc<ArcSwap<Config>>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// When the daemon started.
    pub started: Instant,
    /// Where the daemon is in its life.
    pub phase: watch::Receiver<Phase>,
    /// Calls in flight.
    pub in_flight: Arc<InFlight>,
    /// What happened to connections.
    pub connections: Arc<ConnectionStats>,
    /// Certificates and CRLs in force.
    pub tls: Option<Arc<TlsState>>,
    /// The list in force.
    pub denied: Arc<DeniedCallers>,
    /// The audit log, and the disk under it.
    pub audit: Arc<Audit>,
}

impl Sources {
    /// Where the daemon is in its life.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Whether the daemon accepts calls and can record unwrap, rewrap and sign, so that it may answer
    /// them.
    pub fn is_ready(&self) -> bool {
        self.phase() == Phase::Ready && !self.audit.is_failing()
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        self.phases(encoder)?;
        self.replicas(encoder)?;
        self.providers(encoder)?;
        self.pins(encoder)?;
        self.connections(encoder)?;
        self.tls(encoder)?;
        self.denied(encoder)?;
        self.issuers(encoder)?;
        self.callers(encoder)?;
        self.configuration(encoder)?;
        self.audit(encoder)
    }

    fn configuration(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "The SHA-256 of the configuration in force, as the audit log has it";
        let sha256 = hex::encode(self.config.load().sha256);
        info(encoder, "config", help)?.encode_info(&[("sha256", sha256)])
    }

    fn audit(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Whether there is an audit log (1) or `off = true` (0)";
        plain_gauge(encoder, "audit_enabled", help, self.audit.is_on())?;
        let help = "Bytes that are left for the audit log on its file system, its reserve included";
        if let Some(free) = self.audit.free_bytes() {
            plain_gauge(
                encoder,
                "audit_free_bytes",
                help,
                i64::try_from(free).unwrap_or(i64::MAX),
            )?;
        }
        let help = "Whether only the reserve is left: unwrap, rewrap and sign alone are answered";
        plain_gauge(encoder, "audit_in_reserve", help, self.audit.is_in_reserve())?;
        let Some(state) = self.audit.state() else { return Ok(()) };
        chain(&state, encoder)?;
        sinks(&state.sinks, encoder)
    }

    fn phases(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let phase = self.phase();
        let help = "Whether calls are accepted, as /readyz says";
        plain_gauge(encoder, "ready", help, phase == Phase::Ready)?;
        let help = "Whether the daemon ends and waits for its last calls";
        plain_gauge(encoder, "draining", help, phase == Phase::Draining)?;
        let help = "Calls whose answers have not left yet";
        plain_gauge(encoder, "calls_in_flight", help, self.in_flight.total())?;
        let help = "Calls that wait for room among the calls in flight";
        plain_gauge(encoder, "calls_waiting", help, self.in_flight.waiting())
    }

    fn providers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = info(encoder, "provider", "Configured providers")?;
        for (name, (config, _)) in &self.active.load().replicas.providers {
            family.encode_info(&[
                ("provider", name.as_str()),
                ("type", config.type_name()),
                ("hardware", if config.is_hardware() { "true" } else { "false" }),
            ])?;
        }
        let help =
            "Whether an operator has taken a provider out of service (1) with `claviger drain`";
        let mut drained = gauge(encoder, "provider_drained", help)?;
        let active = self.active.load();
        for name in active.replicas.providers.keys() {
            let is_drained = active.replicas.drained.contains(name);
            sample_gauge(&mut drained, &[("provider", name.clone())], is_drained)?;
        }
        let processes: Vec<_> = active
            .replicas
            .providers
            .iter()
            .filter_map(|(name, (_, provider))| Some(([("provider", name)], provider.process()?)))
            .collect();
        let help = "Whether the process of a provider's module runs (1)";
        let mut up = gauge(encoder, "provider_process_up", help)?;
        for (label, process) in &processes {
            sample_gauge(&mut up, label, process.is_running)?;
        }
        let help = "Processes that were started for a provider's module";
        let mut starts = counter(encoder, "provider_process_starts", help)?;
        for (label, process) in &processes {
            sample_counter(&mut starts, label, process.starts)?;
        }
        Ok(())
    }

    /// While the latches cannot be read no login is tried: that is shown as one without a serial number.
    fn pins(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let config = self.config.load();
        let Some(state_dir) = &config.server.state_dir else { return Ok(()) };
        let tokens = latched_tokens(state_dir).unwrap_or_else(|error| {
            tracing::error!(error, "PIN latches cannot be read");
            let [serial, label] = [const { String::new() }; 2];
            vec![LatchedToken { serial, label, is_shut: true, is_exhausted: true }]
        });
        let help = "Whether a refused PIN blocks logins to a token until an operator acts";
        let mut latched = gauge(encoder, "pin_latched", help)?;
        for LatchedToken { serial, label, is_shut, .. } in tokens {
            sample_gauge(&mut latched, &[("serial", serial), ("token", label)], is_shut)?;
        }
        Ok(())
    }
}

/// How far the log is, and how far what comes behind it lags.
fn chain(state: &AuditState, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let log = &state.log;
    let help = "Lines in the chain of the audit log, from its first one on";
    plain_gauge(encoder, "audit_chain_records", help, log.head.records)?;
    let help = "Lines of the audit log that no checkpoint covers; 0 where none are written";
    plain_gauge(encoder, "audit_unsigned_records", help, log.uncovered)?;
    let help = "When the last checkpoint of this run was written, in seconds since 1970";
    if let Some(covered) = log.checkpoint {
        plain_gauge(encoder, "audit_checkpoint_timestamp_seconds", help, seconds(covered.at))?;
    }
    let help = "Bytes of the audit log that wait for the write before them";
    plain_gauge(encoder, "audit_waiting_bytes", help, state.waiting_bytes)?;
    let help = "For how long the write of audit records that goes on has lasted";
    gauge(encoder, "audit_write_age_seconds", help)?.encode_gauge(&state.writing_for.as_secs_f64())
}

fn sinks(sinks: &[SinkState], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let help = "Whether an audit sink does not take records (1)";
    let mut failing = gauge(encoder, "audit_sink_failing", help)?;
    for sink in sinks {
        sample_gauge(&mut failing, &[("sink", &sink.name)], sink.is_failing)?;
    }
    let help = "Bytes of the audit log that a sink has not got";
    let mut behind = gauge(encoder, "audit_sink_behind_bytes", help)?;
    for sink in sinks {
        let bytes = i64::try_from(sink.behind).unwrap_or(i64::MAX);
        sample_gauge(&mut behind, &[("sink", &sink.name)], bytes)?;
    }
    Ok(())
}

#[cfg(test)]
impl Sources {
    /// Of a daemon that was configured so and has not opened any key; with what sets its phase.
    pub(crate) fn of(configuration: &str, metrics: &Arc<Metrics>) -> (Self, watch::Sender<Phase>) {
        use crate::daemon::request::active::Previous;
        use crate::daemon::request::failed_unwraps::FailedUnwraps;

        let config = Config::parse(std::path::Path::new("claviger.toml"), configuration).unwrap();
        let changed = watch::Sender::new(0);
        let audit = Arc::new(Audit::off());
        let previous = Previous {
            active: None,
            failed_unwraps: &FailedUnwraps::open(None),
            changed: &changed,
            audit: &audit,
            drained: &std::collections::BTreeSet::new(),
        };
        let active = ActiveConfig::build(&config, metrics, &previous).unwrap();
        let (phases, phase) = watch::channel(Phase::Starting);
        let sources = Self {
            active: Arc::new(ArcSwap::from_pointee(active)),
            metrics: Arc::clone(metrics),
            started: Instant::now(),
            phase,
            in_flight: Arc::new(InFlight::new(8)),
            connections: Arc::default(),
            tls: None,
            denied: DeniedCallers::open(config.server.denied_callers.as_deref()).unwrap(),
            config: Arc::new(ArcSwap::from_pointee(config)),
            audit,
        };
        (sources, phases)
    }
}

#[cfg(all(test, feature = "software", feature = "pkcs11"))]
mod tests;

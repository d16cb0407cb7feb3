//! The daemon at one moment, for `claviger status`, `/status` and `/readyz?verbose`.

use std::borrow::Cow;
use std::fmt::Write;
use std::sync::atomic::Ordering;

use super::Sources;
use crate::daemon::backends::{LatchedToken, latched_tokens};
use crate::daemon::config::State;
use crate::daemon::keys::health::OK;
use crate::daemon::keys::keyring::{Key, Version};
use crate::daemon::operations::status::{
    AuditStatus, BudgetStatus, CallerStatus, CrlStatus, KeyStatus, MeasureStatus, PinStatus,
    ProviderStatus, ReplicaStatus, SinkStatus, Status, TlsStatus, VersionStatus, unix,
};
use crate::daemon::records::audit::SinkState;
use crate::daemon::request::active::ActiveConfig;
use crate::daemon::request::health::Phase;
use crate::daemon::request::policy::Caller;

impl Sources {
    /// Everything at this moment. Looks at the state directory, and takes a while with thousands of keys:
    /// not for a thread that answers calls.
    pub(in crate::daemon) fn status(&self) -> Status {
        let active = self.active.load();
        let server = &self.metrics.server;
        Status {
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
            phase: phase(self.phase()).to_owned(),
            ready: self.is_ready(),
            uptime_s: self.started.elapsed().as_secs(),
            config_sha256: hex::encode(self.config.load().sha256),
            reload_refused: server.last_reload_refused.load(Ordering::Relaxed),
            calls_in_flight: self.in_flight.total(),
            connections: self.connections.open(),
            audit: self.audit_status(),
            keys: keys(&active),
            providers: providers(&active),
            callers: callers(&active),
            pins: self.latched().map(|tokens| tokens.into_iter().map(pin).collect()),
            tls: self.tls_status(),
            refusals: self.audit.recent().refusals(),
            events: self.audit.recent().events(),
        }
    }

    /// As Kubernetes writes it: a line for each part, `[+]` where it is well and `[-]` where it is not,
    /// and at the end what `/readyz` says. Replicas do not count for that.
    pub(in crate::daemon) fn readiness(&self) -> String {
        let status = self.status();
        let audit = match &status.audit {
            None => "off",
            Some(audit) if audit.failing => "failing",
            Some(audit) if audit.in_reserve => "in-reserve",
            Some(_) => OK,
        };
        let mut text = line("phase", if status.phase == "ready" { OK } else { &status.phase });
        text += &line("audit", audit);
        for key in &status.keys {
            for version in &key.versions {
                let name = format!("key {} version {}", key.key, version.version);
                text += &line(&name, &version.reason);
                for replica in &version.replicas {
                    text += &line(&format!("{name} {}", replica.provider), &replica.reason);
                }
            }
        }
        text + if status.ready { "up\n" } else { "down\n" }
    }

    fn audit_status(&self) -> Option<AuditStatus> {
        let state = self.audit.state()?;
        let log = state.log;
        Some(AuditStatus {
            file: state.path.display().to_string(),
            failing: state.is_failing,
            in_reserve: state.is_in_reserve,
            free_bytes: state.free_bytes,
            records: log.head.records,
            head: hex::encode(log.head.sha256),
            checkpoint_records: log.checkpoint.map(|covered| covered.records),
            checkpoint_at: log.checkpoint.map(|covered| unix(covered.at)),
            checkpoint_error: log.checkpoint_error.map(|error| error.to_string()),
            sinks: state.sinks.into_iter().map(sink_status).collect(),
        })
    }

    /// None: they cannot be read, so no login is tried.
    fn latched(&self) -> Option<Vec<LatchedToken>> {
        let config = self.config.load();
        let Some(state_dir) = &config.server.state_dir else { return Some(Vec::new()) };
        latched_tokens(state_dir).ok()
    }

    fn tls_status(&self) -> Option<TlsStatus> {
        let tls = self.tls.as_ref()?;
        let loaded = tls.load();
        let crls = loaded.trust().crls().into_iter();
        Some(TlsStatus {
            certificate_not_after: unix(loaded.not_after()),
            stale: tls.alarms().reload_failed,
            crls: crls.map(|(file, at)| CrlStatus { file, next_update: unix(at) }).collect(),
        })
    }
}

fn line(part: &str, reason: &str) -> String {
    // What was disabled on purpose, and a log that is off on purpose, are not wrong.
    let is_well = matches!(reason, OK | "disabled" | "off");
    let mut line = String::new();
    let _ = writeln!(line, "[{}]{part} {reason}", if is_well { '+' } else { '-' });
    line
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "starting",
        Phase::Ready => "ready",
        Phase::Draining => "draining",
    }
}

fn keys(active: &ActiveConfig) -> Vec<KeyStatus> {
    let mut keys: Vec<_> = active.snapshot.keyring.keys.values().map(|key| of_key(key)).collect();
    keys.sort_unstable_by(|one, other| one.key.cmp(&other.key));
    keys
}

fn of_key(key: &Key) -> KeyStatus {
    let version = |version: &Version| VersionStatus {
        version: version.number,
        state: state(version.state).to_owned(),
        reason: version.reason().to_owned(),
        replicas: version
            .replicas
            .iter()
            .map(|replica| ReplicaStatus::of(&key.name, version.number, replica))
            .collect(),
    };
    let versions = key.versions.iter().map(version).collect();
    KeyStatus { key: key.name.clone(), reason: key.reason().to_owned(), versions }
}

fn state(state: State) -> &'static str {
    match state {
        State::Active => "active",
        State::UnwrapOnly => "unwrap-only",
        State::Disabled => "disabled",
    }
}

fn providers(active: &ActiveConfig) -> Vec<ProviderStatus> {
    let replicas = &active.replicas;
    let providers = replicas.providers.iter().map(|(name, (config, provider))| {
        let measures = provider.measures().into_iter().map(|measure| MeasureStatus {
            name: measure.name,
            in_force: measure.in_force,
            text: measure.text,
        });
        ProviderStatus {
            provider: name.clone(),
            kind: config.type_name().to_owned(),
            hardware: config.is_hardware(),
            drained: replicas.drained.contains(name),
            measures: measures.collect(),
        }
    });
    providers.collect()
}

fn callers(active: &ActiveConfig) -> Vec<CallerStatus> {
    let callers = active.snapshot.callers();
    let mut callers: Vec<_> = callers.map(|caller| of_caller(caller)).collect();
    callers.sort_unstable_by(|one, other| one.caller.cmp(&other.caller));
    callers
}

fn of_caller(caller: &Caller) -> CallerStatus {
    let peer = caller.calls.seen.peer();
    let certificate = peer.as_ref().and_then(|peer| peer.certificate.as_ref());
    let mut budgets: Vec<_> = caller
        .grants
        .iter()
        .map(|(key, granted)| (key, granted.budget.spent()))
        .filter(|(_, spent)| spent.failed > 0)
        .map(|(key, spent)| BudgetStatus {
            key: key.clone(),
            failed: spent.failed,
            limit: spent.limit.map(|limit| limit.count),
        })
        .collect();
    budgets.sort_unstable_by(|one, other| one.key.cmp(&other.key));
    CallerStatus {
        caller: caller.name.to_string(),
        seen_at: caller.calls.seen.at().map(unix),
        identity: peer.as_ref().and_then(|peer| peer.identity().map(Cow::into_owned)),
        certificate_sha256: certificate.map(|certificate| hex::encode(certificate.sha256)),
        certificate_not_after: certificate.map(|certificate| unix(certificate.not_after)),
        calls_in_flight: caller.calls.in_flight(),
        budgets,
    }
}

fn pin(token: LatchedToken) -> PinStatus {
    PinStatus { serial: token.serial, token: token.label, latched: token.is_shut }
}

fn sink_status(sink: SinkState) -> SinkStatus {
    let SinkState { name, is_required, is_failing, behind } = sink;
    SinkStatus { sink: name, required: is_required, failing: is_failing, behind_bytes: behind }
}

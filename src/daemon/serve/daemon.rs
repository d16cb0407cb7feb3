//! The running daemon: its parts, made before any port opens, and what it does each second.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use claviger_tokens::Audiences;
use tokio::sync::watch;
use uuid::Uuid;

use crate::daemon::backends::latched_tokens;
use crate::daemon::config::Config;
use crate::daemon::keys::drained::DrainedProviders;
use crate::daemon::records::audit::{Alarm, Audit, AuditError, Event};
use crate::daemon::records::metrics::Metrics;
use crate::daemon::records::traces::Tracer;
use crate::daemon::request::active::{ActiveConfig, Previous, Snapshot};
use crate::daemon::request::failed_unwraps::FailedUnwraps;
use crate::daemon::request::guard::Guard;
use crate::daemon::request::health::Phase;
use crate::daemon::request::in_flight::InFlight;
use crate::daemon::serve::approval::{self, Approval};
use crate::daemon::serve::clock::{Clock, ClockStep};
use crate::daemon::serve::host::prepare_state_dir;
use crate::daemon::serve::trust_log::TrustLog;
use crate::daemon::serve::{Options, ServeError};
use crate::daemon::transport::denied::DeniedCallers;
use crate::daemon::transport::descriptors::Descriptors;
use crate::daemon::transport::listener::{ConnectionSettings, Transport};
use crate::daemon::transport::tls::TlsState;

/// How long a stop waits for operations whose callers have left.
const ABANDONED_WAIT: Duration = Duration::from_secs(2);

/// The running daemon; clones share everything.
#[derive(Clone)]
pub(super) struct Daemon {
    pub(super) config: Arc<ArcSwap<Config>>,
    pub(super) active: Arc<ArcSwap<ActiveConfig>>,
    pub(super) snapshot: Arc<ArcSwap<Snapshot>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) audit: Arc<Audit>,
    pub(super) tracer: Arc<Tracer>,
    pub(super) denied: Arc<DeniedCallers>,
    pub(super) tls: Option<Arc<TlsState>>,
    pub(super) transport: Transport,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) descriptors: Descriptors,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) changed: watch::Sender<u64>,
    pub(super) failed_unwraps: Arc<FailedUnwraps>,
    pub(super) drained: Arc<DrainedProviders>,
    pub(super) guard: Arc<Guard>,
    pub(super) config_path: PathBuf,
    pub(super) reloading: Arc<tokio::sync::Mutex<()>>,
    pub(super) started: Instant,
    /// Who has signed the configuration of the start.
    pub(super) approval: Arc<Approval>,
}

/// A token, by its serial number and its label.
type Token = (String, String);

impl Daemon {
    /// Makes everything that can refuse, before any port opens.
    pub(super) fn start(config: Config, options: &Options) -> Result<Self, ServeError> {
        let state_dir = config.server.state_dir.as_deref();
        state_dir.map(prepare_state_dir).transpose()?;
        let approval = Arc::new(approval::accept(&config)?);
        let failed_unwraps = FailedUnwraps::open(state_dir);
        let drained = DrainedProviders::open(state_dir);
        let metrics = Arc::new(Metrics::default());
        metrics.server.reloaded();
        let audit = Arc::new(Audit::open(&config.audit, metrics.audit())?);
        let instance = audit.instance().unwrap_or_else(Uuid::now_v7).to_string();
        let tracer = Tracer::start(config.telemetry.as_ref(), &instance, &metrics.traces())?;
        let denied = DeniedCallers::open(config.server.denied_callers.as_deref())?;
        let tls = config.server.tls.as_ref();
        let tls = tls.map(|tls| TlsState::open(tls, options.demo)).transpose()?;
        let providers = config.providers.len();
        let descriptors = Descriptors::raise(config.server.max_connections, providers)?;
        let settings = ConnectionSettings::new(&config.server, descriptors);
        let transport = Transport::new(tls.clone(), Arc::clone(&denied), settings)?;
        let changed = watch::Sender::new(0);
        let previous = Previous {
            active: None,
            failed_unwraps: &failed_unwraps,
            changed: &changed,
            audit: &audit,
            drained: &drained.names(),
        };
        let active = ActiveConfig::build(&config, &metrics, &previous)?;
        let guard = Arc::new(Guard::start(Arc::clone(&audit), &metrics)?);
        Ok(Self {
            snapshot: Arc::new(ArcSwap::new(Arc::clone(&active.snapshot))),
            active: Arc::new(ArcSwap::from_pointee(active)),
            in_flight: Arc::new(InFlight::new(config.server.max_concurrent_calls)),
            config: Arc::new(ArcSwap::from_pointee(config)),
            metrics,
            audit,
            tracer: Arc::new(tracer),
            denied,
            tls,
            transport,
            descriptors,
            phase: watch::Sender::new(Phase::Starting),
            changed,
            failed_unwraps,
            drained: Arc::new(drained),
            guard,
            config_path: options.config.clone(),
            reloading: Arc::default(),
            started: Instant::now(),
            approval,
        })
    }

    /// What an operator should not have to find out.
    pub(super) fn say_what_is_unusual(&self) {
        if !self.audit.is_on() {
            tracing::warn!("audit is off: no operation is recorded");
        }
        let config = self.config.load();
        for address in &config.server.without_certificate {
            tracing::warn!(
                %address,
                "client_certificate = \"optional\": any host that reaches this address may send calls, and a \
                 token alone says who it is"
            );
        }
        for (issuer, options) in &config.issuers {
            if options.rules.audiences == Audiences::Any {
                tracing::warn!(
                    issuer,
                    "audiences = \"any\": its tokens for other services are good here too"
                );
            }
        }
        if !self.failed_unwraps.is_kept() {
            tracing::warn!("no server.state_dir: failed unwraps are forgotten at a restart");
        }
        for provider in &self.active.load().replicas.drained {
            tracing::warn!(
                provider,
                "drained before this start, and still: `claviger undrain` takes it into service"
            );
        }
        for (provider, (config, _)) in &self.active.load().replicas.providers {
            if !config.is_hardware() {
                tracing::warn!(
                    provider,
                    "the keys of this provider are not in hardware, going by its type"
                );
            }
        }
    }

    /// Writes down which files decide who is trusted, as far as they are new since the last time.
    pub(super) fn record_trust(&self, trust: &mut TrustLog) {
        let config = self.config.load();
        let options = config.server.tls.as_ref();
        let snapshot = self.snapshot.load();
        let tokens = snapshot.tokens().map(Arc::as_ref);
        trust.record(options, self.tls.as_deref(), &self.denied, tokens, &self.audit);
    }

    /// Each second: what was taken back of failed unwraps is written, what is trusted now and a clock that
    /// was set are recorded, and the watchers of a key's health learn that the audit log began or ceased to fail.
    pub(super) async fn every_second(self, mut trust: TrustLog) {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        let mut audit_failed = false;
        let mut shut = HashSet::new();
        let mut clock = Clock::start();
        loop {
            tick.tick().await;
            if let Some(ClockStep { by, is_forward }) = clock.step() {
                let seconds = by.as_secs();
                tracing::error!(
                    seconds,
                    is_forward,
                    "the system's clock was set: certificates, budgets and records go by it"
                );
                self.metrics.server.clock_stepped();
                drop(self.audit.event(&Event::ClockStep { seconds, is_forward }));
                let alarm = Alarm::ClockStep;
                drop(self.audit.event(&Event::Alarm { alarm, caller: None, key: None }));
            }
            self.record_trust(&mut trust);
            if let Some(tokens) = self.snapshot.load().tokens() {
                tokens.refresh_when_due();
            }
            Arc::clone(&self.failed_unwraps).written().await;
            self.audit.look_at_room();
            shut = self.record_pin_latches(shut).await;
            if std::mem::replace(&mut audit_failed, self.audit.is_failing()) != audit_failed {
                self.changed.send_modify(|changes| *changes += 1);
            }
        }
    }

    /// Records which tokens failed logins began or ceased to keep shut; gives those that are.
    async fn record_pin_latches(&self, before: HashSet<Token>) -> HashSet<Token> {
        let Some(state_dir) = self.config.load().server.state_dir.clone() else { return before };
        let listed = tokio::task::spawn_blocking(move || latched_tokens(&state_dir)).await;
        // What cannot be read is in the metrics and the log already.
        let Ok(Ok(tokens)) = listed else { return before };
        let shut = tokens.into_iter().filter(|token| token.is_shut);
        let shut: HashSet<Token> = shut.map(|token| (token.serial, token.label)).collect();
        for changed in shut.symmetric_difference(&before) {
            let (is_shut, (token, label)) = (shut.contains(changed), changed);
            drop(self.audit.event(&Event::PinLatch { token, label, is_shut }));
        }
        shut
    }

    pub(super) async fn close(&self) -> Result<(), ServeError> {
        self.guard.end_abandoned(ABANDONED_WAIT).await;
        Arc::clone(&self.failed_unwraps).written().await;
        unless_in_the_file(self.audit.drain().await)?;
        unless_in_the_file(self.audit.event(&Event::Stop).await)?;
        self.audit.last_checkpoint().await;
        Ok(())
    }
}

/// An error of the audit log that keeps the daemon from starting, or from a good end. A sink that is away
/// does not: calls are refused until it is back.
pub(super) fn unless_in_the_file(written: Result<(), AuditError>) -> Result<(), AuditError> {
    match written {
        Err(error) if error.is_in_the_file() => {
            tracing::error!(%error, "an audit sink does not have each record of this start or stop");
            Ok(())
        }
        written => written,
    }
}

//! The running daemon: its parts, made before any port opens, and what it does each second.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::daemon::config::Config;
use crate::daemon::records::audit::{Audit, Event};
use crate::daemon::records::metrics::Metrics;
use crate::daemon::request::active::{ActiveConfig, Previous, Snapshot};
use crate::daemon::request::failed_unwraps::{FailedUnwraps, FailedUnwrapsFile};
use crate::daemon::request::health::Phase;
use crate::daemon::request::in_flight::InFlight;
use crate::daemon::serve::host::prepare_state_dir;
use crate::daemon::serve::{Options, ServeError};
use crate::daemon::transport::denied::DeniedCallers;
use crate::daemon::transport::descriptors::Descriptors;
use crate::daemon::transport::listener::{ConnectionSettings, Transport};
use crate::daemon::transport::tls::TlsState;

/// The running daemon; clones share everything.
#[derive(Clone)]
pub(super) struct Daemon {
    pub(super) config: Arc<ArcSwap<Config>>,
    pub(super) active: Arc<ArcSwap<ActiveConfig>>,
    pub(super) snapshot: Arc<ArcSwap<Snapshot>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) audit: Arc<Audit>,
    pub(super) denied: Arc<DeniedCallers>,
    pub(super) tls: Option<Arc<TlsState>>,
    pub(super) transport: Transport,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) descriptors: Descriptors,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) changed: watch::Sender<u64>,
    pub(super) spent: Option<Arc<tokio::sync::Mutex<FailedUnwrapsFile>>>,
    pub(super) config_path: PathBuf,
}

impl Daemon {
    /// Makes everything that can refuse, before any port opens.
    pub(super) fn start(config: Config, options: &Options) -> Result<Self, ServeError> {
        let (spent, failed_unwraps) = match &config.server.state_dir {
            Some(path) => {
                prepare_state_dir(path)?;
                let (file, spent) = FailedUnwrapsFile::open(path);
                (Some(Arc::new(tokio::sync::Mutex::new(file))), spent)
            }
            None => (None, FailedUnwraps::new()),
        };
        let metrics = Arc::new(Metrics::default());
        metrics.server.reloaded();
        let audit = Arc::new(Audit::open(&config.audit, metrics.audit())?);
        let denied = DeniedCallers::open(config.server.denied_callers.as_deref())?;
        let tls = config.server.tls.as_ref();
        let tls = tls.map(|tls| TlsState::open(tls, options.demo)).transpose()?;
        let providers = config.providers.len();
        let descriptors = Descriptors::raise(config.server.max_connections, providers)?;
        let settings = ConnectionSettings::new(&config.server, descriptors);
        let transport = Transport::new(tls.clone(), Arc::clone(&denied), settings);
        let changed = watch::Sender::new(0);
        let previous =
            Previous { active: None, failed_unwraps: &failed_unwraps, changed: &changed };
        let active = ActiveConfig::build(&config, &metrics, &previous)?;
        Ok(Self {
            snapshot: Arc::new(ArcSwap::new(Arc::clone(&active.snapshot))),
            active: Arc::new(ArcSwap::from_pointee(active)),
            in_flight: Arc::new(InFlight::new(config.server.max_concurrent_calls)),
            config: Arc::new(ArcSwap::from_pointee(config)),
            metrics,
            audit,
            denied,
            tls,
            transport,
            descriptors,
            phase: watch::Sender::new(Phase::Starting),
            changed,
            spent,
            config_path: options.config.clone(),
        })
    }

    /// What an operator should not have to find out.
    pub(super) fn say_what_is_unusual(&self) {
        if !self.audit.is_on() {
            tracing::warn!("audit is off: nothing will tell who unwrapped what");
        }
        if self.spent.is_none() {
            tracing::warn!("no server.state_dir: failed unwraps are forgotten at a restart");
        }
        for (provider, (config, _)) in &self.active.load().replicas.providers {
            if !config.is_hardware() {
                tracing::warn!(
                    provider,
                    "the keys of this provider are not in hardware, as far as its type tells"
                );
            }
        }
    }

    /// Each second: failed unwraps are written if they changed, and the watchers of a key's health
    /// learns that the audit log began or ceased to fail.
    pub(super) async fn every_second(self) {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        let mut audit_failed = false;
        loop {
            tick.tick().await;
            self.write_spent_now().await;
            if std::mem::replace(&mut audit_failed, self.audit.is_failing()) != audit_failed {
                self.changed.send_modify(|changes| *changes += 1);
            }
        }
    }

    async fn write_spent_now(&self) {
        let Some(spent) = self.spent.clone() else { return };
        let mut spent = spent.lock_owned().await;
        let active = self.active.load_full();
        let written = tokio::task::spawn_blocking(move || spent.write(&active)).await;
        if let Ok(Err(error)) = written {
            tracing::error!(%error, "failed unwraps were not written to the state directory");
        }
    }

    pub(super) async fn close(&self) -> Result<(), ServeError> {
        self.write_spent_now().await;
        self.audit.drain().await?;
        self.audit.event(&Event::Stop).await?;
        Ok(())
    }
}

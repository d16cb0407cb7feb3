//! From open ports to READY=1: every key opens once, then each SIGHUP reloads.

use std::sync::Arc;

use claviger_provider_api::ErrorKind;
use tokio::signal::unix::Signal;

use crate::daemon::keys::health::ReplicaHealth;
use crate::daemon::keys::keyring::{Key, Version};
use crate::daemon::keys::monitor;
use crate::daemon::request::active::ActiveConfig;
use crate::daemon::request::health::Phase;
use crate::daemon::serve::daemon::Daemon;
use crate::daemon::serve::{OPEN_WAIT, ServeError};

impl Daemon {
    /// Opens the keys and says READY=1, then reloads at each SIGHUP, for ever; ends only if it fails.
    pub(super) async fn get_ready_and_reload(&self, mut hangup: Signal) -> Result<(), ServeError> {
        self.open_keys().await?;
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        self.say_ready();
        loop {
            hangup.recv().await;
            // It has said in the log and in the audit log what came of it.
            let _ = self.reload().await;
        }
    }

    /// Where it listens, and how many keys serve; those that do not are named, the first of them.
    fn say_ready(&self) {
        const MOST: usize = 10;
        let config = self.config.load();
        let addresses: Vec<String> = config.server.listen.iter().map(ToString::to_string).collect();
        let active = self.active.load();
        let keys = &active.snapshot.keyring.keys;
        let is_up = |key: &Key| key.usable().all(Version::is_serving);
        let mut down: Vec<&str> =
            keys.iter().filter(|(_, key)| !is_up(key)).map(|(name, _)| &**name).collect();
        down.sort_unstable();
        let up = keys.len() - down.len();
        let more = down.len().saturating_sub(MOST);
        let first = down[..down.len().min(MOST)].join(", ");
        let named = if more > 0 { format!("{first} and {more} more") } else { first };
        let operations = config.operations.as_ref().map(|operations| operations.listen.to_string());
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            listen = addresses.join(", "),
            operations = operations.as_deref().unwrap_or("none"),
            keys_up = up,
            keys_down = down.len(),
            down = if named.is_empty() { "none" } else { &named },
            "ready"
        );
    }

    /// Opens every key once, for at most [`OPEN_WAIT`]; what is not open by then goes on opening.
    async fn open_keys(&self) -> Result<(), ServeError> {
        let active = self.active.load_full();
        let opening = {
            let active = Arc::clone(&active);
            tokio::spawn(async move { monitor::open_all(&active.replicas).await })
        };
        if tokio::time::timeout(OPEN_WAIT, opening).await.is_err() {
            tracing::warn!("some keys are still opening: ready without them");
        }
        self.check_required(&active)?;
        self.phase.send_if_modified(|phase| {
            let starting = *phase == Phase::Starting;
            *phase = if starting { Phase::Ready } else { *phase };
            starting
        });
        Ok(())
    }

    fn check_required(&self, active: &ActiveConfig) -> Result<(), ServeError> {
        let config = self.config.load();
        for (specification, replica) in &active.replicas.by_specification {
            let provider = &specification.place.provider;
            let reason = match &*replica.health() {
                _ if !config.providers[provider].required => continue,
                ReplicaHealth::Serving | ReplicaHealth::Drained => continue,
                // A refused PIN never ends the process: what restarts it would try again.
                ReplicaHealth::Failing(fault) if fault.kind == ErrorKind::OperatorNeeded => {
                    continue;
                }
                ReplicaHealth::Opening => "it did not open in time".to_owned(),
                ReplicaHealth::Failing(fault) => fault.text.to_string(),
            };
            return Err(ServeError::Required { provider: provider.clone(), reason });
        }
        Ok(())
    }
}

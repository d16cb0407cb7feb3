//! Reload: everything is read again, and refused as a whole if anything is wrong.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use claviger_provider_api::ErrorKind;

use crate::daemon::config::{self, Config, ConfigErrors};
use crate::daemon::keys::health::ReplicaHealth;
use crate::daemon::keys::keyring::Version;
use crate::daemon::keys::monitor;
use crate::daemon::records::audit::Event;
use crate::daemon::records::log;
use crate::daemon::request::active::{ActiveConfig, Previous};
use crate::daemon::serve::approval::{self, Approval};
use crate::daemon::serve::daemon::Daemon;
use crate::daemon::serve::{OPEN_WAIT, ServeError};
use crate::daemon::transport::denied::DeniedCallers;
use crate::daemon::transport::listener::ConnectionSettings;

impl Daemon {
    /// Reads everything again; refused as a whole if anything is wrong.
    pub(super) async fn reload(&self) -> Result<Vec<String>, ServeError> {
        // One at a time: SIGHUP and the control socket may ask for it together.
        let _alone = self.reloading.lock().await;
        if let Ok(now) = sd_notify::NotifyState::monotonic_usec_now() {
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Reloading, now]);
        }
        let outcome = self.try_reload().await;
        match &outcome {
            Ok((changed, approval)) => {
                let config_sha256 = self.config.load().sha256;
                drop(self.audit.event(&Event::Reload {
                    config_sha256: &config_sha256,
                    signers: &approval.signers,
                }));
                self.metrics.server.reloaded();
                tracing::info!(changed = in_words(changed), "configuration reloaded");
            }
            Err(error) => {
                drop(self.audit.event(&Event::ReloadRefused { error: &error.to_string() }));
                self.metrics.server.reload_refused();
                tracing::error!(%error, "reload refused: the old configuration stays in force");
            }
        }
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        outcome.map(|(changed, _)| changed)
    }

    /// Gives what changed, a phrase each, and who has signed it.
    async fn try_reload(&self) -> Result<(Vec<String>, Approval), ServeError> {
        let path = self.config_path.clone();
        let config = tokio::task::spawn_blocking(move || {
            let config = Config::load(&path)?;
            config.check_for_serve()?;
            Ok::<_, ConfigErrors>(config)
        })
        .await
        .map_err(io::Error::other)??;
        if let Some(option) = config::needs_restart(&self.config.load(), &config).first() {
            return Err(ServeError::NeedsRestart(option));
        }
        approval::check(&config)?;
        let tls = match (&self.tls, &config.server.tls) {
            (Some(state), Some(tls)) => Some((state, state.prepare(tls)?)),
            _ => None,
        };
        let denied = DeniedCallers::prepare(config.server.denied_callers.as_deref())?;
        let before = self.active.load_full();
        let previous = Previous {
            active: Some(&before),
            failed_unwraps: &self.failed_unwraps,
            changed: &self.changed,
            audit: &self.audit,
            drained: &self.drained.names(),
        };
        let active = Arc::new(ActiveConfig::build(&config, &self.metrics, &previous)?);
        let opening = Arc::clone(&active);
        let opening = tokio::spawn(async move { monitor::open_all(&opening.replicas).await });
        if tokio::time::timeout(OPEN_WAIT, opening).await.is_err() {
            tracing::warn!("some new keys are still opening: reloaded without them");
        }
        refuse_what_breaks_a_key(&before, &active)?;
        let changed = config::changes(&self.config.load(), &config);
        log::set_filter(&config.log)?;
        let approval = approval::accept(&config)?;
        // From here on nothing can fail.
        if let Some((state, prepared)) = tls {
            state.commit(prepared);
        }
        self.denied.commit(denied);
        self.transport.configure(ConnectionSettings::new(&config.server, self.descriptors));
        self.config.store(Arc::new(config));
        self.put_in_force(active);
        // A log that cannot be written fails the calls that need it, and says so; no reload.
        let _ = self.audit.reopen().await;
        Ok((changed, approval))
    }
}

impl Daemon {
    /// From here on calls go to these keys. Those in flight end with the old ones.
    pub(super) fn put_in_force(&self, active: Arc<ActiveConfig>) {
        active.put_limits_in_force();
        self.snapshot.store(Arc::clone(&active.snapshot));
        self.active.store(active);
        self.changed.send_modify(|changes| *changes += 1);
    }
}

/// What changed, for people: the first of it, and how much more.
fn in_words(changed: &[String]) -> String {
    const MOST: usize = 20;
    let first = changed.iter().take(MOST).cloned().collect::<Vec<_>>().join(", ");
    match changed.len() {
        0 => "nothing in the configuration; files were read again".to_owned(),
        all if all > MOST => format!("{first}, and {} more", all - MOST),
        _ => first,
    }
}

/// A mistyped pin or locator, a wrong option of a provider, or an algorithm that the key cannot do must
/// not take down what serves: neither a version that would be left without a replica, nor one of
/// several replicas that stays where it was. A backend that cannot be reached refuses no reload, and
/// neither does what is disabled or left out.
fn refuse_what_breaks_a_key(before: &ActiveConfig, after: &ActiveConfig) -> Result<(), ServeError> {
    let served_at: HashSet<&config::Replica> = before
        .replicas
        .by_specification
        .iter()
        .filter(|(_, replica)| replica.is_serving())
        .map(|(specification, _)| &specification.place)
        .collect();
    for (name, key) in &after.snapshot.keyring.keys {
        let key_before = before.snapshot.keyring.keys.get(name);
        for version in key.usable() {
            let version_before = key_before.and_then(|key| key.version(version.number).ok());
            let lost = version_before.is_some_and(Version::is_serving) && !version.is_serving();
            for replica in &version.replicas {
                let kept = before.replicas.by_specification.get(&replica.specification);
                if kept.is_some_and(|kept| Arc::ptr_eq(kept, replica)) {
                    continue;
                }
                let health = replica.health();
                let ReplicaHealth::Failing(fault) = &*health else { continue };
                let place = &replica.specification.place;
                if fault.kind == ErrorKind::OperatorNeeded && (lost || served_at.contains(place)) {
                    return Err(ServeError::BreaksKey {
                        key: name.clone(),
                        version: version.number,
                        provider: place.provider.clone(),
                        locator: place.locator.clone(),
                        reason: fault.text.to_string(),
                    });
                }
            }
        }
    }
    Ok(())
}

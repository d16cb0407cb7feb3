//! One provider out of service and into it again, while the others answer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::daemon::keys::keyring::Version;
use crate::daemon::keys::monitor;
use crate::daemon::keys::replica::Replica;
use crate::daemon::operations::control::Drained;
use crate::daemon::operations::status::ReplicaStatus;
use crate::daemon::records::audit::Event;
use crate::daemon::request::active::{ActiveConfig, Previous};
use crate::daemon::serve::daemon::Daemon;

/// How often a drain looks whether calls are still in flight.
const LOOK: Duration = Duration::from_millis(20);
/// How long the replicas of a provider may take to open and to prove every algorithm.
const PROVE_LIMIT: Duration = Duration::from_mins(2);

impl Daemon {
    /// Takes a provider out: no call, no canary and no login reaches it from here on, over reloads and
    /// restarts too. Waits at most so long for the operations in flight. Recorded before it is done.
    pub(super) async fn drain(
        &self,
        provider: &str,
        wait: Duration,
        force: bool,
        uid: u32,
    ) -> Result<Drained, String> {
        // Not beside a reload: both put a configuration in force.
        let alone = self.reloading.lock().await;
        let before = self.active.load_full();
        let was_drained = is_drained(&before, provider)?;
        let lost = unserved_without(&before, provider, Version::is_serving);
        if !force && !was_drained && !lost.is_empty() {
            return Err(format!(
                "no other replica serves {}: nothing was changed; see `claviger status`, or say --force",
                lost.join(", ")
            ));
        }
        if !was_drained {
            let mut drained = self.drained.names();
            drained.insert(provider.to_owned());
            let active = self.build_with(&before, &drained)?;
            self.record_drain(provider, true, uid).await?;
            self.drained.add(provider, uid).map_err(|error| not_durable(&error))?;
            self.put_in_force(active);
            tracing::warn!(
                provider,
                uid,
                "drained: `claviger undrain` takes it into service again"
            );
        }
        drop(alone);
        let replicas: Vec<Arc<Replica>> = of_provider(&before, provider).cloned().collect();
        // Calls that were on their way with the old keyring find them closed too.
        for replica in &replicas {
            replica.drain();
        }
        let unanswered = wait_for_calls(&replicas, wait).await;
        let unserved = unserved_without(&before, provider, |_| true);
        Ok(Drained { was_drained, replicas: replicas.len(), unanswered, unserved })
    }

    /// Takes it into service again. Its replicas are opened by a provider that is made anew, and serve
    /// once every algorithm has been proven; those that fail are tried again as any other. Where not
    /// one can be proven, it stays out.
    pub(super) async fn undrain(
        &self,
        provider: &str,
        uid: u32,
    ) -> Result<Vec<ReplicaStatus>, String> {
        let _alone = self.reloading.lock().await;
        let before = self.active.load_full();
        if !is_drained(&before, provider)? {
            return Ok(replicas(&before, provider));
        }
        let mut drained = self.drained.names();
        drained.remove(provider);
        let active = self.build_with(&before, &drained)?;
        let proving = monitor::open_provider(&active.replicas, provider);
        let in_time = tokio::time::timeout(PROVE_LIMIT, proving).await.is_ok();
        let proven = replicas(&active, provider);
        let serves = of_provider(&active, provider).any(|replica| replica.is_serving());
        if !serves && !proven.is_empty() {
            let why = proven.iter().map(|replica| {
                let late = if in_time { "not open" } else { "did not open in time" };
                let error = replica.error.as_deref().unwrap_or(late);
                format!("{} version {}: {error}", replica.key, replica.version)
            });
            let why = why.collect::<Vec<_>>().join("; ");
            return Err(format!("{provider} stays drained: not one replica was proven: {why}"));
        }
        self.record_drain(provider, false, uid).await?;
        self.drained.remove(provider).map_err(|error| not_durable(&error))?;
        self.put_in_force(active);
        tracing::info!(provider, uid, "in service again");
        Ok(proven)
    }

    fn build_with(
        &self,
        before: &Arc<ActiveConfig>,
        drained: &BTreeSet<String>,
    ) -> Result<Arc<ActiveConfig>, String> {
        let previous = Previous {
            active: Some(before),
            failed_unwraps: &self.failed_unwraps,
            changed: &self.changed,
            audit: &self.audit,
            drained,
        };
        let built = ActiveConfig::build(&self.config.load(), &self.metrics, &previous);
        built.map(Arc::new).map_err(|error| error.to_string())
    }

    async fn record_drain(&self, provider: &str, is_drained: bool, uid: u32) -> Result<(), String> {
        let event = Event::ProviderDrain { provider, is_drained, uid };
        self.audit.event(&event).await.map_err(|error| format!("it cannot be recorded: {error}"))
    }
}

/// Whether a configured provider is out.
fn is_drained(active: &ActiveConfig, provider: &str) -> Result<bool, String> {
    if active.replicas.providers.contains_key(provider) {
        return Ok(active.replicas.drained.contains(provider));
    }
    let names: Vec<&str> = active.replicas.providers.keys().map(String::as_str).collect();
    Err(format!("there is no provider {provider:?}; there are {}", names.join(", ")))
}

fn not_durable(error: &std::io::Error) -> String {
    format!("it cannot be written to the state directory, so nothing was changed: {error}")
}

/// How the replicas of a provider are, in the order of key names and versions.
fn replicas(active: &ActiveConfig, provider: &str) -> Vec<ReplicaStatus> {
    let mut keys: Vec<_> = active.snapshot.keyring.keys.values().collect();
    keys.sort_unstable_by_key(|key| &key.name);
    let mut found = Vec::new();
    for key in keys {
        for version in &key.versions {
            let its = version
                .replicas
                .iter()
                .filter(|replica| replica.specification.place.provider == provider);
            found.extend(its.map(|replica| ReplicaStatus::of(&key.name, version.number, replica)));
        }
    }
    found
}

fn of_provider<'a>(
    active: &'a ActiveConfig,
    provider: &'a str,
) -> impl Iterator<Item = &'a Arc<Replica>> {
    let all = active.replicas.by_specification.values();
    all.filter(move |replica| replica.specification.place.provider == provider)
}

/// The versions of a kind with a replica of this provider that no other replica serves.
fn unserved_without(
    active: &ActiveConfig,
    provider: &str,
    is_meant: fn(&Version) -> bool,
) -> Vec<String> {
    let is_its = |replica: &Arc<Replica>| replica.specification.place.provider == provider;
    let mut unserved = Vec::new();
    for key in active.snapshot.keyring.keys.values() {
        let its = key.usable().filter(|version| version.replicas.iter().any(is_its));
        let its = its.filter(|version| is_meant(version));
        let left = its.filter(|version| {
            !version.replicas.iter().any(|replica| !is_its(replica) && replica.is_serving())
        });
        unserved.extend(left.map(|version| format!("{} version {}", key.name, version.number)));
    }
    unserved.sort_unstable();
    unserved
}

/// Gives how many operations are still in flight at the end.
async fn wait_for_calls(replicas: &[Arc<Replica>], wait: Duration) -> u64 {
    let end = Instant::now() + wait;
    loop {
        let unanswered = replicas.iter().map(|replica| replica.backend_calls.unanswered()).sum();
        if unanswered == 0 || Instant::now() >= end {
            return unanswered;
        }
        tokio::time::sleep(LOOK).await;
    }
}

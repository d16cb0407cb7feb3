//! The series of each replica: whether it serves, when it was proven, how its backend answers.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::Sources;
use crate::daemon::keys::health::ReplicaHealth;
use crate::daemon::keys::replica::Replica;
use crate::daemon::records::metrics::render::{
    counter, gauge, sample_counter, sample_gauge, sample_histogram,
};
use crate::daemon::records::metrics::seconds;
use crate::daemon::request::active::ActiveConfig;

impl Sources {
    pub(super) fn replicas(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let active = self.active.load();
        let replicas = replicas(&active);
        let mut up = gauge(encoder, "key_up", "Whether a replica serves (1) or not (0)")?;
        for (labels, replica) in &replicas {
            let is_up = matches!(*replica.shown_health(), ReplicaHealth::Serving);
            sample_gauge(&mut up, labels, is_up)?;
        }
        let help = "Why a replica is as it is, in one word of the doctor's; always 1";
        let mut states = gauge(encoder, "key_state", help)?;
        for ([key, version, provider, place], replica) in &replicas {
            let reason = ("reason", replica.reason().to_owned());
            let labels = [key, version, provider, place, &reason].map(Clone::clone);
            sample_gauge(&mut states, &labels, 1)?;
        }
        let help =
            "Whether a replica is not what the configuration says (1); no call is given to it";
        let mut diverges = gauge(encoder, "key_diverges", help)?;
        for (labels, replica) in &replicas {
            sample_gauge(&mut diverges, labels, replica.diverges())?;
        }
        let help = "When a replica's private key last did its work, in seconds since 1970";
        let mut checked = gauge(encoder, "key_check_timestamp_seconds", help)?;
        let now = SystemTime::now();
        for (labels, replica) in replicas.iter().filter(|(_, replica)| replica.key().is_some()) {
            let at = now.checked_sub(replica.proven_ago()).unwrap_or(SystemTime::UNIX_EPOCH);
            sample_gauge(&mut checked, labels, seconds(at))?;
        }
        let help = "How long a replica's last canary took";
        let name = "key_check_duration_seconds";
        let mut canaries = gauge(encoder, name, help)?;
        for (labels, took) in
            replicas.iter().filter_map(|(labels, r)| Some((labels, r.canaries.last()?)))
        {
            canaries.encode_family(labels)?.encode_gauge(&took.as_secs_f64())?;
        }
        let help =
            "Whether calls to a replica that fails are answered without asking its backend (1)";
        let mut paused = gauge(encoder, "key_paused", help)?;
        for (labels, replica) in &replicas {
            sample_gauge(&mut paused, labels, replica.next_look().is_some())?;
        }
        let asked = || {
            replicas
                .iter()
                .filter_map(|(labels, replica)| Some((labels, replica.backend_calls.measured()?)))
        };
        let help = "Time that a replica's backend took for an operation, its queue included";
        let name = "backend_duration_seconds";
        let mut durations = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, measured) in asked() {
            sample_histogram(&mut durations, labels, &measured.duration)?;
        }
        let help = "Operations that a replica's backend has not answered: in its queue, or running";
        let mut unanswered = gauge(encoder, "backend_operations", help)?;
        for (labels, measured) in asked() {
            let count = i64::try_from(measured.unanswered()).unwrap_or(i64::MAX);
            sample_gauge(&mut unanswered, labels, count)?;
        }
        let help = "Repairs under a replica since it was opened: session, login, module";
        let mut repairs = counter(encoder, "repairs", help)?;
        for (labels, replica) in &replicas {
            let count = replica.key().map_or(0, |key| key.repairs());
            sample_counter(&mut repairs, labels, count)?;
        }
        Ok(())
    }
}

type Labels = [(&'static str, String); 4];

/// Every replica with its labels, in the order of key names.
fn replicas(active: &ActiveConfig) -> Vec<(Labels, &Arc<Replica>)> {
    let mut keys: Vec<_> = active.snapshot.keyring.keys.values().collect();
    keys.sort_unstable_by_key(|key| &key.name);
    let mut replicas = Vec::with_capacity(active.replicas.by_specification.len());
    for key in keys {
        for version in &key.versions {
            for (place, replica) in version.replicas.iter().enumerate() {
                let labels = [
                    ("key", key.name.clone()),
                    ("version", version.number.to_string()),
                    ("provider", replica.specification.place.provider.clone()),
                    ("replica", place.to_string()),
                ];
                replicas.push((labels, replica));
            }
        }
    }
    replicas
}

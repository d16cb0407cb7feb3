//! What `claviger status` shows: the whole daemon at one moment, as one JSON object.
//!
//! Times are Unix seconds, durations are whole seconds unless their names say otherwise.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::daemon::keys::replica::Replica;
use crate::daemon::records::audit::Noted;

/// The daemon at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The program's version.
    pub program_version: String,
    /// `starting`, `ready` or `draining`.
    pub phase: String,
    /// Whether `/readyz` says up.
    pub ready: bool,
    /// Since the start of the process.
    pub uptime_s: u64,
    /// Of the configuration in force.
    pub config_sha256: String,
    /// Whether the last reload was refused, so that the file says something else.
    pub reload_refused: bool,
    /// Calls whose answers have not left.
    pub calls_in_flight: u32,
    /// Connections that are open.
    pub connections: u64,
    /// None with `off = true`.
    pub audit: Option<AuditStatus>,
    /// By name.
    pub keys: Vec<KeyStatus>,
    /// By name.
    pub providers: Vec<ProviderStatus>,
    /// In the order of the configuration's names.
    pub callers: Vec<CallerStatus>,
    /// Tokens with logins that did not succeed; none: the latches cannot be read, so no login is tried.
    pub pins: Option<Vec<PinStatus>>,
    /// None where only Unix sockets listen.
    pub tls: Option<TlsStatus>,
    /// The last refusals since the start, the newest first.
    #[serde(default)]
    pub refusals: Vec<Noted>,
    /// The last alarms, changes of replicas, and acts of operators, the newest first.
    #[serde(default)]
    pub events: Vec<Noted>,
}

/// The audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditStatus {
    /// The file.
    pub file: String,
    /// Whether it cannot be written: calls fail.
    pub failing: bool,
    /// Whether only unwrap, rewrap and sign can be recorded.
    pub in_reserve: bool,
    /// Bytes that are left for it.
    pub free_bytes: Option<u64>,
    /// Lines since the chain began.
    pub records: u64,
    /// SHA-256 of the last line.
    pub head: String,
    /// How many lines the last checkpoint of this process covers.
    pub checkpoint_records: Option<u64>,
    /// When it was written.
    pub checkpoint_at: Option<u64>,
    /// Why the last checkpoint is not where it should be.
    pub checkpoint_error: Option<String>,
    /// Where records go beside the file.
    #[serde(default)]
    pub sinks: Vec<SinkStatus>,
}

/// A sink of the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkStatus {
    /// Its name.
    pub sink: String,
    /// Whether calls need it.
    pub required: bool,
    /// Whether it does not take records.
    pub failing: bool,
    /// Bytes of the log that it has not got.
    pub behind_bytes: u64,
}

/// A key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyStatus {
    /// Its name.
    pub key: String,
    /// `ok`, or the reason of the newest version that is not.
    pub reason: String,
    /// Newest first.
    pub versions: Vec<VersionStatus>,
}

/// A version of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionStatus {
    /// Its number.
    pub version: u32,
    /// `active`, `unwrap-only` or `disabled`.
    pub state: String,
    /// `ok` while a replica serves well, else why the best one does not.
    pub reason: String,
    /// In the order of the configuration; none if it is disabled.
    pub replicas: Vec<ReplicaStatus>,
}

/// How a replica is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// The key's name in the configuration.
    pub key: String,
    /// The version's number.
    pub version: u32,
    /// The provider's name in the configuration.
    pub provider: String,
    /// Where it lives, in the backend's own form.
    pub locator: String,
    /// `opening`, `serves`, `fails`, `diverges` or `drained`.
    pub state: String,
    /// `ok`, `opening`, `drained`, or the doctor's word for what is wrong. A replica that serves may have
    /// `throttled` or `no-answer`, if that is what the last call to it got.
    pub reason: String,
    /// What was said about it.
    pub error: Option<String>,
    /// Operations of callers that it has not answered.
    pub unanswered: u64,
    /// How many seconds ago its private key last did its work; none where it is not open.
    pub proven_ago_s: Option<u64>,
    /// When that was.
    #[serde(default)]
    pub proven_at: Option<u64>,
    /// How long its last canary took, in microseconds.
    pub canary_us: Option<u64>,
    /// How long its last canaries took, 30 at most, the oldest first.
    #[serde(default)]
    pub recent_canaries_us: Vec<u32>,
    /// For how many seconds calls are still answered without asking it.
    pub next_look_s: Option<u64>,
    /// Repairs under it since it was opened: session, login, module.
    pub repairs: u64,
}

/// A provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderStatus {
    /// Its name.
    pub provider: String,
    /// Its `type`.
    pub kind: String,
    /// Whether its keys are in hardware, going by its type.
    pub hardware: bool,
    /// Whether `claviger drain` has taken it out.
    pub drained: bool,
    /// What confines its process; none where it has no process, or none yet.
    pub measures: Vec<MeasureStatus>,
}

/// One measure that confines a provider's process, or does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeasureStatus {
    /// Such as `seccomp`.
    pub name: String,
    /// Whether it is in force.
    pub in_force: bool,
    /// What it does, or why it is not in force.
    pub text: String,
}

/// A caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallerStatus {
    /// Its name.
    pub caller: String,
    /// Its last call since the start.
    pub seen_at: Option<u64>,
    /// As whom it called: SAN, or `uid:N`.
    pub identity: Option<String>,
    /// SHA-256 of the certificate that it showed.
    pub certificate_sha256: Option<String>,
    /// From then on the chain of that certificate is not valid any more.
    pub certificate_not_after: Option<u64>,
    /// Calls in flight.
    pub calls_in_flight: u32,
    /// What it has spent of `failed_unwraps`, by key; keys on which nothing is spent are left out.
    pub budgets: Vec<BudgetStatus>,
}

/// What a caller has spent of `failed_unwraps` on a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetStatus {
    /// The key's name.
    pub key: String,
    /// Distinct values that count at the moment.
    pub failed: usize,
    /// How many may; none: the limit is off.
    pub limit: Option<u32>,
}

/// A token with logins that did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinStatus {
    /// Its serial number.
    pub serial: String,
    /// Its label.
    pub token: String,
    /// Whether no login is tried until an operator acts.
    pub latched: bool,
}

/// Certificates and CRLs in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsStatus {
    /// When the server's certificate ends.
    pub certificate_not_after: u64,
    /// Whether the files cannot be used as they are, so that older ones are in force.
    pub stale: bool,
    /// Each file of CRLs.
    pub crls: Vec<CrlStatus>,
}

/// A file of CRLs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrlStatus {
    /// The file.
    pub file: String,
    /// When it promised its successor.
    pub next_update: u64,
}

impl ReplicaStatus {
    /// How this replica is now.
    pub fn of(key: &str, version: u32, replica: &Replica) -> Self {
        let health = replica.shown_health();
        let place = &replica.specification.place;
        Self {
            key: key.to_owned(),
            version,
            provider: place.provider.clone(),
            locator: place.locator.clone(),
            state: health.name().to_owned(),
            reason: replica.reason().to_owned(),
            error: health.fault().map(|fault| fault.text.to_string()),
            unanswered: replica.backend_calls.unanswered(),
            proven_ago_s: replica.key().map(|_| replica.proven_ago().as_secs()),
            proven_at: replica.key().map(|_| unix(SystemTime::now() - replica.proven_ago())),
            canary_us: replica.canaries.last().map(|took| took.as_micros() as u64),
            recent_canaries_us: replica.canaries.recent_us(),
            next_look_s: replica.next_look().map(|next_look| next_look.as_secs()),
            repairs: replica.repairs(),
        }
    }
}

impl Status {
    /// Every replica.
    pub fn replicas(&self) -> impl Iterator<Item = &ReplicaStatus> {
        let versions = self.keys.iter().flat_map(|key| &key.versions);
        versions.flat_map(|version| &version.replicas)
    }
}

/// Seconds since 1970.
pub(super) fn unix(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

//! Between a parsed call and a key: grant, limits, attribution of failures, metrics, audit.
//!
//! Whatever reached a key has its own audit record, durable before key material leaves; a caller
//! that goes away in the middle does not take the record with it.

mod batch;
mod entry;
mod rewrap;
mod sign;
mod unwrap;

use std::sync::Arc;
use std::time::{Duration, Instant};

use claviger_provider_api::{
    Algorithm, Call, CallerSlot, KeyMaterial, Parameters, PublicKeyError, SignAlgorithm,
};
use tonic::Code;

pub use batch::Batch;
use batch::in_time;
use entry::Entry;
pub use rewrap::{Recipient, RewrapCall, Rewrapped};
pub use unwrap::UnwrapCall;

use crate::daemon::audit::{Audit, Record};
use crate::daemon::caller::Peer;
use crate::daemon::config::Operation;
use crate::daemon::keyring::{Candidate, Key, Version};
use crate::daemon::metrics::{KeyMetrics, Metrics};
use crate::daemon::policy::{Caller, Granted};
use crate::daemon::status::Failure;

/// What is left for the answer of a batch when its last item ends, at most.
const ANSWER_OF_BATCH: Duration = Duration::from_millis(500);

/// The longest OAEP label that is accepted, in bytes.
pub const MAX_LABEL_LEN: usize = 1024;

/// Who calls, under which request id, and until when it is worth working.
#[derive(Clone, Debug)]
pub struct CallContext {
    /// Ours; unique.
    pub request_id: Arc<str>,
    /// The caller's own `x-request-id`, recorded beside ours.
    pub caller_request_id: Option<String>,
    /// W3C trace context, if the caller sent one.
    pub traceparent: Option<String>,
    /// The other end of the connection.
    pub peer: Arc<Peer>,
    /// The configured caller that the peer is.
    pub caller: Arc<Caller>,
    /// After this nothing is started for this call.
    pub deadline: Instant,
}

impl CallContext {
    /// On whose behalf a key is used, and until when.
    pub fn call(&self) -> Call {
        Call { caller: self.caller.slot, deadline: self.deadline }
    }

    /// The same call for the items of a batch, which end a little before it: one that is late says
    /// so in its place of the answer, and the answer, with what the others gave, leaves in time.
    #[must_use]
    pub fn for_items(&self) -> Self {
        let now = Instant::now();
        let left = self.deadline.saturating_duration_since(now);
        let of_items = left.saturating_sub((left / 10).min(ANSWER_OF_BATCH));
        Self { deadline: now + of_items, ..self.clone() }
    }

    /// What any record of this call says.
    pub fn with_record<T>(&self, outcome: Code, write: impl FnOnce(Record<'_>) -> T) -> T {
        let (identity, address) = (self.peer.identity(), self.peer.address.to_string());
        write(Record {
            request_id: &self.request_id,
            caller_request_id: self.caller_request_id.as_deref(),
            traceparent: self.traceparent.as_deref(),
            caller: Some(&self.caller.name),
            identity: identity.as_deref(),
            certificate_sha256: self.peer.certificate.as_ref().map(|c| &c.sha256),
            peer: Some(&address),
            ..Record::new(outcome)
        })
    }
}

/// The guard of every operation.
#[derive(Debug)]
pub struct Guard {
    audit: Arc<Audit>,
    /// Counts calls that name no key of the caller's.
    without_key: Arc<KeyMetrics>,
}

impl Guard {
    /// A guard that writes to `audit`.
    pub fn new(audit: Arc<Audit>, metrics: &Metrics) -> Self {
        Self { audit, without_key: metrics.without_key() }
    }

    /// Wraps key material in software, with the newest active version's pinned public key.
    pub async fn wrap(
        &self,
        context: &CallContext,
        key: &str,
        material: &KeyMaterial,
        algorithm: Option<Algorithm>,
        label: &[u8],
    ) -> Result<(Vec<u8>, u32, Algorithm), Failure> {
        let mut entry = Entry::new(self, context, Operation::Wrap, key, None);
        let outcome = entry.grant().and_then(|granted| {
            check_label(algorithm, label)?;
            let Candidate { version, algorithm } =
                to_wrap(&mut entry, &granted.key, algorithm, label)?;
            entry.reached(version, algorithm.name());
            let wrapped = wrap_with(context, version, material, algorithm, label)?;
            entry.wrapped(&wrapped);
            Ok((wrapped, version.number, algorithm))
        });
        entry.finish(outcome).await
    }

    /// Verifies a signature in software; gives the version under which it is good.
    pub async fn verify(
        &self,
        context: &CallContext,
        key: &str,
        digest: &[u8],
        algorithm: SignAlgorithm,
        version: Option<u32>,
        signature: &[u8],
    ) -> Result<Option<u32>, Failure> {
        let mut entry = Entry::new(self, context, Operation::Verify, key, None);
        let outcome = entry.grant().and_then(|granted| {
            let versions = granted.key.for_verify(version, algorithm, signature.len())?;
            let digest = sign::parse_digest(digest, algorithm)?;
            let mut closed = None;
            for version in versions {
                let public_key = match version.opened_public_key() {
                    Ok(public_key) => public_key,
                    Err(fault) => {
                        // An older version may have signed; else the newest one's failure it is.
                        let failure = entry.out_of_order(&fault);
                        closed.get_or_insert(failure);
                        continue;
                    }
                };
                entry.reached(version, algorithm.name());
                if public_key.verify(&digest, algorithm, signature) {
                    entry.backend_error = None;
                    return Ok(Some(version.number));
                }
            }
            closed.map_or(Ok(None), Err)
        });
        entry.finish(outcome).await
    }

    /// Records a call that was refused before anything was looked up for it.
    pub fn refuse(
        &self,
        context: &CallContext,
        operation: Operation,
        key: &str,
        batch_item: Option<u32>,
        failure: Failure,
    ) -> Failure {
        let mut entry = Entry::new(self, context, operation, key, batch_item);
        drop(entry.close(failure.code(), Some(failure.reason())));
        failure
    }

    /// The grant to read one key, recorded.
    pub async fn read_key<'a>(
        &'a self,
        context: &'a CallContext,
        key: &'a str,
    ) -> Result<&'a Granted, Failure> {
        let mut entry = Entry::new(self, context, Operation::Read, key, None);
        let outcome = entry.grant();
        entry.finish(outcome).await
    }

    /// Lists keys: one call of the caller's rate, however many there are; recorded.
    pub async fn list<T>(
        &self,
        context: &CallContext,
        list: impl FnOnce(&Caller) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let entry = Entry::new(self, context, Operation::Read, "", None);
        let outcome = context.caller.listing.spend_call().and_then(|()| list(&context.caller));
        entry.finish(outcome).await
    }
}

/// A label must fit, and RSA1_5 has none.
fn check_label(algorithm: Option<Algorithm>, label: &[u8]) -> Result<(), Failure> {
    let allowed = if label.len() > MAX_LABEL_LEN {
        format!("must be at most {MAX_LABEL_LEN} bytes, not {}", label.len())
    } else if algorithm == Some(Algorithm::Rsa15) && !label.is_empty() {
        "must be empty: RSA1_5 has no label".into()
    } else {
        return Ok(());
    };
    Err(Failure::Field { field: "label", allowed })
}

/// The version that wraps, with the algorithm: only with what every replica of it has proven to
/// unwrap.
fn to_wrap<'a>(
    entry: &mut Entry<'_>,
    key: &'a Key,
    algorithm: Option<Algorithm>,
    label: &[u8],
) -> Result<Candidate<'a>, Failure> {
    let candidate = key.for_wrap(algorithm)?;
    candidate.has_proven().map_err(|fault| entry.out_of_order(&fault))?;
    candidate.takes_label(label)?;
    Ok(candidate)
}

fn wrap_with(
    context: &CallContext,
    version: &Version,
    material: &KeyMaterial,
    algorithm: Algorithm,
    label: &[u8],
) -> Result<Vec<u8>, Failure> {
    let public_key = version.public_key().ok_or(Failure::Unavailable)?;
    public_key.wrap(material, &Parameters { algorithm, label }).map_err(|error| match error {
        PublicKeyError::TooLong { .. } => {
            Failure::Field { field: "key_material", allowed: error.to_string() }
        }
        PublicKeyError::LabelNotAllowed => {
            Failure::Field { field: "label", allowed: error.to_string() }
        }
        PublicKeyError::NotRsaSpki
        | PublicKeyError::Unsupported { .. }
        | PublicKeyError::Refused => {
            let request_id = &*context.request_id;
            tracing::error!(request_id, %error, "wrapping failed");
            Failure::Internal
        }
    })
}

/// How long a call without a deadline may take.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);

/// The slot of the caller at `index` in the configuration; slot 0 is the daemon itself.
pub fn slot(index: usize) -> CallerSlot {
    CallerSlot(index as u32 + 1)
}

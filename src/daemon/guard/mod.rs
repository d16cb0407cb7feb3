//! Between a parsed call and a key: grant, limits, attribution of failures, metrics, audit.
//!
//! Whatever reached a key has its own audit record, durable before key material leaves; a caller
//! that goes away in the middle does not take the record with it.

mod rewrap;
mod sign;
mod unwrap;

use std::sync::Arc;
use std::time::{Duration, Instant};

use claviger_provider_api::{
    Algorithm, Call, CallerSlot, Error, KeyMaterial, Parameters, PublicKeyError, SignAlgorithm,
};
use tonic::Code;

pub use rewrap::{Recipient, RewrapCall, Rewrapped};
pub use unwrap::UnwrapCall;

use crate::daemon::audit::{Audit, AuditError, Record, RewrapTarget};
use crate::daemon::caller::Peer;
use crate::daemon::config::Operation;
use crate::daemon::keyring::{Candidate, Key, Version};
use crate::daemon::metrics::{KeyMetrics, Metrics};
use crate::daemon::policy::{Caller, Granted};
use crate::daemon::replica::Replica;
use crate::daemon::status::Failure;

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
    fn call(&self) -> Call {
        Call { caller: self.caller.slot, deadline: self.deadline }
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
            let Candidate { version, algorithm } = granted.key.for_wrap(algorithm, label)?;
            entry.reached(version, algorithm.name());
            let wrapped = wrap_with(version, material, algorithm, label)?;
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
            let versions = granted.key.for_verify(version, algorithm)?;
            let digest = sign::parse_digest(digest, algorithm)?;
            let mut good = None;
            for version in versions {
                entry.reached(version, algorithm.name());
                let public_key = version.public_key().ok_or(Failure::Unavailable)?;
                if public_key.verify(&digest, algorithm, signature) {
                    good = Some(version.number);
                    break;
                }
            }
            Ok(good)
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

fn wrap_with(
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
            tracing::error!(%error, "wrapping failed");
            Failure::Internal
        }
    })
}

/// One operation on its way: what will be recorded of it, whatever becomes of it.
struct Entry<'a> {
    guard: &'a Guard,
    context: &'a CallContext,
    operation: Operation,
    started: Instant,
    name: &'a str,
    batch_item: Option<u32>,
    key: Option<&'a Key>,
    version: Option<u32>,
    algorithm: Option<&'static str>,
    replica: Option<Arc<Replica>>,
    wrapped_sha256: Option<[u8; 32]>,
    /// Of a rewrap.
    target: RewrapTarget<'a>,
    /// What no caller may see about a value that failed.
    cause: Option<&'static str>,
    backend_error: Option<String>,
    backend_request_id: Option<String>,
    /// Whether a key was reached: then it has its own record; before, it is a refusal.
    reached: bool,
    finished: bool,
}

impl<'a> Entry<'a> {
    fn new(
        guard: &'a Guard,
        context: &'a CallContext,
        operation: Operation,
        name: &'a str,
        batch_item: Option<u32>,
    ) -> Self {
        Self {
            guard,
            context,
            operation,
            started: Instant::now(),
            name,
            batch_item,
            key: None,
            version: None,
            algorithm: None,
            replica: None,
            wrapped_sha256: None,
            target: RewrapTarget::default(),
            cause: None,
            backend_error: None,
            backend_request_id: None,
            reached: false,
            finished: false,
        }
    }

    /// The grant, if there is one, and one call of its rate spent.
    fn grant(&mut self) -> Result<&'a Granted, Failure> {
        let granted = self.context.caller.granted(self.name, self.operation)?;
        self.key = Some(&granted.key);
        granted.budget.spend_call()?;
        let unwraps = matches!(self.operation, Operation::Unwrap | Operation::Rewrap);
        if unwraps && granted.budget.count_unwrap() {
            let (caller, key) = (&self.context.caller.name, self.name);
            tracing::warn!(%caller, key, "more unwraps than unwraps_alarm: none is refused for it");
            granted.key.metrics.unwraps_alarmed();
        }
        Ok(granted)
    }

    /// From here on the operation has a record of its own.
    fn reached(&mut self, version: &Version, algorithm: &'static str) {
        self.reached = true;
        self.version = Some(version.number);
        self.algorithm = Some(algorithm);
    }

    fn wrapped(&mut self, wrapped: &[u8]) -> [u8; 32] {
        *self.wrapped_sha256.insert(claviger_provider_api::public_key::sha256(wrapped))
    }

    fn backend_failed(&mut self, error: &Error) {
        self.backend_error = Some(error.to_string());
        self.backend_request_id = error.backend_request_id().map(str::to_owned);
    }

    /// Records the outcome, durably, and only then lets it out.
    async fn finish<T>(mut self, outcome: Result<T, Failure>) -> Result<T, Failure> {
        let (code, reason) = match &outcome {
            Ok(_) => (Code::Ok, None),
            Err(failure) => (failure.code(), Some(failure.reason())),
        };
        self.log(code);
        let durable = self.close(code, reason);
        // Nothing secret leaves for reading and verifying: their records need not be waited for.
        if matches!(self.operation, Operation::Read | Operation::Verify) {
            return outcome;
        }
        let Some(durable) = durable else { return outcome };
        match durable.await {
            Ok(()) => outcome,
            Err(error) => {
                tracing::error!(%error, "refused to answer: the audit record is not durable");
                Err(Failure::NotRecorded)
            }
        }
    }

    /// What a backend said goes into the log under the call's request id. A value that does not
    /// unwrap is the caller's matter, and easy to cause: not by default.
    fn log(&self, code: Code) {
        let Some(error) = &self.backend_error else { return };
        let (request_id, caller) = (&*self.context.request_id, &*self.context.caller.name);
        let (operation, key) = (self.operation.name(), self.name);
        match code {
            Code::Ok | Code::InvalidArgument | Code::ResourceExhausted => {
                tracing::debug!(request_id, caller, operation, key, "backend: {error}");
            }
            _ => tracing::warn!(request_id, caller, operation, key, "backend: {error}"),
        }
    }

    /// Hands the record over; gives what to wait for, if the operation has a record of its own.
    fn close(
        &mut self,
        code: Code,
        reason: Option<&'static str>,
    ) -> Option<impl Future<Output = Result<(), AuditError>> + Send + use<>> {
        self.finished = true;
        let duration = self.started.elapsed();
        let metrics = self.key.map_or(&self.guard.without_key, |key| &key.metrics);
        metrics.observe(self.operation, code, duration);
        let audit = &self.guard.audit;
        if !audit.is_on() {
            return None;
        }
        self.context.with_record(code, |record| {
            let record = Record {
                operation: Some(self.operation),
                key: Some(self.name).filter(|name| !name.is_empty()),
                version: self.version,
                provider: self.replica.as_ref().map(|r| r.specification.place.provider.as_str()),
                algorithm: self.algorithm,
                wrapped_sha256: self.wrapped_sha256.as_ref(),
                target: self.target,
                batch_item: self.batch_item,
                reason,
                cause: self.cause.filter(|_| code != Code::Ok),
                backend_error: self.backend_error.as_deref(),
                backend_request_id: self.backend_request_id.as_deref(),
                duration,
                ..record
            };
            if code != Code::Ok && !self.reached {
                audit.refusal(&record);
                return None;
            }
            Some(audit.record(&record))
        })
    }
}

impl Drop for Entry<'_> {
    /// The caller went away, or its deadline passed, in the middle.
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let (code, reason) = if Instant::now() >= self.context.deadline {
            (Code::DeadlineExceeded, "deadline_exceeded")
        } else {
            (Code::Cancelled, "caller_gone")
        };
        drop(self.close(code, Some(reason)));
    }
}

/// How long a call without a deadline may take.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);

/// The slot of the caller at `index` in the configuration; slot 0 is the daemon itself.
pub fn slot(index: usize) -> CallerSlot {
    CallerSlot(index as u32 + 1)
}

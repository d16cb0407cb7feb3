//! One operation on its way, and its record.

use std::sync::Arc;
use std::time::Instant;

use claviger_provider_api::Error;
use tonic::Code;

use super::Guard;
use crate::daemon::config::Operation;
use crate::daemon::keys::keyring::{Key, Version};
use crate::daemon::keys::replica::{Fault, Replica};
use crate::daemon::records::audit::{AuditError, Record, RewrapTarget};
use crate::daemon::request::call::CallContext;
use crate::daemon::request::policy::Granted;
use crate::daemon::status::Failure;

/// One operation on its way: what will be recorded of it, whatever becomes of it.
pub(super) struct OperationRecord<'a> {
    guard: &'a Guard,
    pub(super) context: &'a CallContext,
    operation: Operation,
    started: Instant,
    name: &'a str,
    batch_item: Option<u32>,
    pub(super) key: Option<&'a Key>,
    version: Option<u32>,
    algorithm: Option<&'static str>,
    pub(super) replica: Option<Arc<Replica>>,
    wrapped_sha256: Option<[u8; 32]>,
    /// Of a rewrap.
    pub(super) target: RewrapTarget<'a>,
    /// What no caller may see about a value that failed.
    pub(super) cause: Option<&'static str>,
    pub(super) backend_error: Option<String>,
    pub(super) backend_request_id: Option<String>,
    /// Whether a key was reached, or a failed unwrap spent: then it has its own record; before, it is
    /// a refusal.
    pub(super) reached: bool,
    finished: bool,
}

impl<'a> OperationRecord<'a> {
    pub(super) fn new(
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
    pub(super) fn grant(&mut self) -> Result<&'a Granted, Failure> {
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

    /// The version that is to answer. That alone is no record yet.
    pub(super) fn set_version(&mut self, version: &Version, algorithm: &'static str) {
        self.version = Some(version.number);
        self.algorithm = Some(algorithm);
    }

    /// From here on the operation has a record of its own.
    pub(super) fn reached(&mut self, version: &Version, algorithm: &'static str) {
        self.set_version(version, algorithm);
        self.reached = true;
    }

    pub(super) fn wrapped(&mut self, wrapped: &[u8]) -> [u8; 32] {
        *self.wrapped_sha256.insert(claviger_provider_api::public_key::sha256(wrapped))
    }

    pub(super) fn backend_failed(&mut self, error: &Error) {
        self.backend_error = Some(error.to_string());
        self.backend_request_id = error.backend_request_id().map(str::to_owned);
    }

    /// No replica answers, for a reason that the log and the record have.
    pub(super) fn unavailable(&mut self, fault: &Fault) -> Failure {
        self.backend_error = Some(fault.text.to_string());
        Failure::of_backend(fault.kind)
    }

    /// Records the outcome, durably, and only then lets it out.
    pub(super) async fn finish<T>(mut self, outcome: Result<T, Failure>) -> Result<T, Failure> {
        let (code, reason) = match &outcome {
            Ok(_) => (Code::Ok, None),
            Err(failure) => (failure.code(), Some(failure.reason())),
        };
        self.log(code);
        let durable = self.close(code, reason);
        // Nothing secret leaves for reading and verifying, nor for who is late: their records need
        // not be waited for.
        let late = matches!(outcome, Err(Failure::DeadlineExceeded));
        if late || matches!(self.operation, Operation::Read | Operation::Verify) {
            return outcome;
        }
        let Some(durable) = durable else { return outcome };
        match durable.await {
            Ok(()) => outcome,
            Err(error) => {
                let request_id = &*self.context.request_id;
                tracing::error!(
                    request_id,
                    %error,
                    "refused to answer: the audit record is not durable"
                );
                Err(Failure::NotRecorded)
            }
        }
    }

    /// What a backend said goes into the log under the call's request id. A value that does not
    /// unwrap is the caller's matter, and easy to cause: not by default.
    fn log(&self, code: Code) {
        let backend_request_id = self.backend_request_id.as_deref();
        let error = match &self.backend_error {
            Some(error) => error.as_str(),
            None if backend_request_id.is_some() => "answered",
            None => return,
        };
        let (request_id, caller) = (&*self.context.request_id, &*self.context.caller.name);
        let (operation, key) = (self.operation.name(), self.name);
        match code {
            Code::Ok | Code::InvalidArgument | Code::ResourceExhausted => {
                tracing::debug!(
                    request_id,
                    caller,
                    operation,
                    key,
                    backend_request_id,
                    "backend: {error}"
                );
            }
            _ => tracing::warn!(
                request_id,
                caller,
                operation,
                key,
                backend_request_id,
                "backend: {error}"
            ),
        }
    }

    /// Hands the record over; gives what to wait for, if the operation has a record of its own.
    pub(super) fn close(
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

impl Drop for OperationRecord<'_> {
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

//! One operation on its way, and its record.

mod waits;

use std::sync::Arc;
use std::time::{Duration, Instant};

use claviger_provider_api::Error;
use futures::future::Either;
use tonic::Code;

use super::abandoned::{Left, Progress};
use super::{Batch, Guard};
use crate::daemon::config::Operation;
use crate::daemon::keys::health::Fault;
use crate::daemon::keys::keyring::{Key, Version};
use crate::daemon::keys::replica::Replica;
use crate::daemon::records::audit::{Alarm, AuditError, Event, Record, RewrapTarget};
use crate::daemon::records::metrics::Phase;
use crate::daemon::records::traces::OperationTrace;
use crate::daemon::request::call::CallContext;
use crate::daemon::request::policy::Granted;
use crate::daemon::status::{Exhausted, Failure};
use crate::daemon::transport::log_limit::LogLine;

/// One operation on its way: what will be recorded of it, whatever becomes of it. Each outcome of a
/// step has its method.
pub(super) struct OperationRecord<'a> {
    guard: &'a Guard,
    context: &'a CallContext,
    operation: Operation,
    started: Instant,
    name: &'a str,
    batch_item: Option<u32>,
    /// The batch whose item it is.
    batch: Option<&'a Batch>,
    /// Of an operation that may run on without its caller.
    progress: Option<Arc<Progress>>,
    key: Option<&'a Key>,
    version: Option<u32>,
    algorithm: Option<&'static str>,
    replica: Option<Arc<Replica>>,
    wrapped_sha256: Option<[u8; 32]>,
    /// Of a rewrap.
    target: RewrapTarget<'a>,
    cause: Option<&'static str>,
    backend_error: Option<String>,
    backend_request_id: Option<String>,
    /// Whether a key was reached, or a failed unwrap spent: then it has its own record; before, it is
    /// a refusal.
    reached: bool,
    finished: bool,
    /// By [`Phase`].
    waited: [Duration; Phase::ALL.len()],
    /// Where the call's trace is kept.
    trace: Option<OperationTrace>,
    /// How it ended, for its trace.
    ended: (Code, Option<&'static str>),
}

/// What is to be waited for before an answer leaves.
enum Written<F> {
    Nothing,
    Durable(F),
    NotTaken(AuditError),
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
            batch: None,
            progress: None,
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
            waited: [
                context.waited_for_room.get().copied().unwrap_or_default(),
                Duration::ZERO,
                Duration::ZERO,
            ],
            trace: context.trace.as_ref().map(|trace| trace.operation(batch_item)),
            ended: (Code::Cancelled, None),
        }
    }

    /// Tells `progress` when a key is reached, and asks it whether the caller has left.
    #[must_use]
    pub(super) fn with(mut self, progress: Arc<Progress>) -> Self {
        self.progress = Some(progress);
        self
    }

    /// An item of this batch: what fails alike in it is one line of the log.
    #[must_use]
    pub(super) fn of_batch(mut self, batch: Option<&'a Batch>) -> Self {
        self.batch = batch;
        self
    }

    pub(super) fn context(&self) -> &'a CallContext {
        self.context
    }

    /// Whether the caller has left.
    pub(super) fn is_abandoned(&self) -> bool {
        self.progress.as_ref().is_some_and(|progress| progress.left().is_some())
    }

    /// The grant, if there is one, and one call of its rate spent.
    pub(super) fn grant(&mut self) -> Result<&'a Granted, Failure> {
        let granted = self.context.caller.granted(self.name, self.operation)?;
        self.key = Some(&granted.key);
        granted.budget.spend_call()?;
        self.check_room()?;
        let unwraps = matches!(self.operation, Operation::Unwrap | Operation::Rewrap);
        if unwraps && granted.budget.count_unwrap() {
            let (caller, key) = (&self.context.caller.name, self.name);
            tracing::warn!(%caller, key, "more unwraps than unwraps_alarm: none is refused for it");
            granted.key.metrics.unwraps_alarmed();
            self.alarm(Alarm::MoreUnwrapsThanUsual);
        }
        Ok(granted)
    }

    /// The last room on the disk of the audit log belongs to what must be answered.
    pub(super) fn check_room(&self) -> Result<(), Failure> {
        let must_be_answered =
            matches!(self.operation, Operation::Unwrap | Operation::Rewrap | Operation::Sign);
        if must_be_answered || !self.guard.audit.is_in_reserve() {
            return Ok(());
        }
        let retry_after = Duration::from_secs(10);
        Err(Failure::Exhausted { what: Exhausted::AuditRoom, retry_after })
    }

    /// Tells an operator to look at this caller and this key.
    pub(super) fn alarm(&self, alarm: Alarm) {
        let (caller, key) = (Some(&*self.context.caller.name), Some(self.name));
        drop(self.guard.audit.event(&Event::Alarm { alarm, caller, key }));
    }

    /// The version that is to answer. The call still counts as a refusal until a key is asked.
    pub(super) fn set_version(&mut self, version: &Version, algorithm: &'static str) {
        self.version = Some(version.number);
        self.algorithm = Some(algorithm);
    }

    /// The public key of this version does the work.
    pub(super) fn uses_public_key(&mut self, version: &Version, algorithm: &'static str) {
        self.set_version(version, algorithm);
        self.reached = true;
    }

    /// The private key of this replica is asked: from here on the operation runs to its end. Whether
    /// another one was asked before.
    pub(super) fn asks(
        &mut self,
        version: &Version,
        algorithm: &'static str,
        replica: &Arc<Replica>,
    ) -> bool {
        self.uses_public_key(version, algorithm);
        if let Some(progress) = &self.progress {
            progress.reaches_a_key();
        }
        self.replica.replace(Arc::clone(replica)).is_some()
    }

    /// The backend answered with a result.
    pub(super) fn answered(&mut self, backend_request_id: Option<String>) {
        self.backend_request_id = backend_request_id;
    }

    /// A result came from an older version: what kept the newer ones from answering is of no interest.
    pub(super) fn answered_by_another(&mut self) {
        self.backend_error = None;
    }

    /// The backend answered with an error.
    pub(super) fn backend_failed(&mut self, error: &Error) {
        self.backend_error = Some(error.to_string());
        self.backend_request_id = error.backend_request_id().map(str::to_owned);
    }

    /// Throttled before the backend used the key: counted as a refusal, without a record of its own,
    /// unless an earlier replica was asked.
    pub(super) fn throttled(&mut self, was_another_asked: bool) {
        self.reached = was_another_asked;
    }

    /// No replica of `version` answers, for a reason that the log and the record have.
    pub(super) fn unavailable(&mut self, version: &Version, fault: &Fault) -> Failure {
        self.backend_error = Some(fault.text.to_string());
        match Failure::of_backend(fault.kind) {
            Failure::Unavailable { .. } => Failure::Unavailable { next_look: version.next_look() },
            failure => failure,
        }
    }

    /// The call has spent a failed unwrap, and so it has a record, whether a key was asked or not.
    pub(super) fn spent(&mut self) {
        self.reached = true;
    }

    /// What was wrong with the value, which no caller may see.
    pub(super) fn set_cause(&mut self, cause: &'static str) {
        self.cause = Some(cause);
    }

    pub(super) fn wrapped(&mut self, wrapped: &[u8]) -> [u8; 32] {
        *self.wrapped_sha256.insert(claviger_provider_api::public_key::sha256(wrapped))
    }

    /// For whom a rewrap wraps, as far as is known by now.
    pub(super) fn target(&mut self) -> &mut RewrapTarget<'a> {
        &mut self.target
    }

    /// The operation was tried once more and went right.
    pub(super) fn retried(&self) {
        if let Some(key) = self.key {
            key.metrics.retried();
        }
    }

    /// Another replica answered than the first that was asked.
    pub(super) fn failed_over(&self) {
        if let Some(key) = self.key {
            key.metrics.failed_over();
        }
    }

    /// Records the outcome, durably, and only then lets it out.
    pub(super) async fn finish<T>(mut self, outcome: Result<T, Failure>) -> Result<T, Failure> {
        let (code, reason) = match &outcome {
            Ok(_) => (Code::Ok, None),
            Err(failure) => (failure.code(), Some(failure.reason())),
        };
        self.log(code);
        let written = self.close(code, reason);
        // Nothing secret leaves for reading and verifying, nor for a caller that is late: their
        // records must be taken, and need not be waited for.
        let late = matches!(outcome, Err(Failure::DeadlineExceeded));
        let does_not_wait = late || matches!(self.operation, Operation::Read | Operation::Verify);
        let error = match written {
            Written::Nothing => return outcome,
            Written::Durable(_) if does_not_wait => return outcome,
            Written::Durable(durable) => match self.waits_for(durable).await {
                Ok(()) => return outcome,
                Err(error) => error,
            },
            Written::NotTaken(error) => error,
        };
        self.ended = (Failure::NotRecorded.code(), Some(Failure::NotRecorded.reason()));
        if self.may_log(Failure::NotRecorded.code()) {
            let request_id = &*self.context.request_id;
            tracing::error!(request_id, %error, "refused to answer: the audit record is not durable");
        }
        Err(Failure::NotRecorded)
    }

    /// What a backend said goes into the log under the call's request id, once for the items of a batch
    /// that fail alike. A value that does not unwrap is the caller's matter, and easy to cause: not by
    /// default.
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
            _ if !self.may_log(code) => {}
            _ => tracing::warn!(
                request_id,
                caller,
                operation,
                key,
                batch_item = self.batch_item,
                backend_request_id,
                "backend: {error}"
            ),
        }
    }

    /// Whether a failure gets a line of the log: not where an item of the same batch that failed alike
    /// has one, nor where the caller has had its lines for now.
    fn may_log(&self, code: Code) -> bool {
        let replica = self.replica.as_ref().map(|replica| &replica.specification.place);
        if self.batch.is_some_and(|batch| !batch.is_first_to_fail(self.name, replica, code)) {
            return false;
        }
        let caller = &self.context.caller;
        match caller.log_limit.count() {
            LogLine::Written => return true,
            LogLine::FirstLeftOut => tracing::warn!(
                caller = &*caller.name,
                "more lines about calls of this caller are left out for up to a minute; the audit log \
                 has or counts each call"
            ),
            LogLine::LeftOut => {}
        }
        false
    }

    /// Records a refusal that nothing was looked up for.
    pub(super) fn refuse(mut self, failure: &Failure) {
        drop(self.close(failure.code(), Some(failure.reason())));
    }

    /// Hands the record over; gives what to wait for, if the operation has a record of its own.
    fn close(
        &mut self,
        code: Code,
        reason: Option<&'static str>,
    ) -> Written<impl Future<Output = Result<(), AuditError>> + Send + use<>> {
        self.finished = true;
        let duration = self.started.elapsed();
        // Of a caller that has left, what it was told; what became of the operation stands beside it.
        let left = self.progress.as_ref().and_then(|progress| progress.left());
        let ended = left.map(|_| reason.unwrap_or("ok"));
        let (code, reason) = left.map(Left::outcome).map_or((code, reason), |(c, r)| (c, Some(r)));
        self.ended = (code, reason);
        let metrics = self.key.map_or(&self.guard.without_key, |key| &key.metrics);
        metrics.observe(self.operation, code, duration);
        if left.is_some() {
            metrics.abandoned();
        }
        let audit = &self.guard.audit;
        if !audit.is_on() {
            return Written::Nothing;
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
                ended,
                cause: self.cause.filter(|_| code != Code::Ok),
                backend_error: self.backend_error.as_deref(),
                backend_request_id: self.backend_request_id.as_deref(),
                duration,
                ..record
            };
            if code != Code::Ok && !self.reached {
                audit.refusal(&record);
                return Written::Nothing;
            }
            let is_cheap =
                matches!(self.operation, Operation::Read | Operation::Verify | Operation::Wrap);
            if code != Code::Ok || !is_cheap {
                return Written::Durable(Either::Left(audit.record(&record)));
            }
            match audit.cheap_success(&record) {
                Ok(None) => Written::Nothing,
                Ok(Some(durable)) => Written::Durable(Either::Right(durable)),
                Err(error) => Written::NotTaken(error),
            }
        })
    }
}

impl Drop for OperationRecord<'_> {
    /// The caller went away, or its deadline passed, before a key was reached; or the daemon ends.
    fn drop(&mut self) {
        if !self.finished {
            let (code, reason) = Left::at(self.context.deadline).outcome();
            drop(self.close(code, Some(reason)));
        }
        self.tell_time();
    }
}

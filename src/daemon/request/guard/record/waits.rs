//! What an operation waited for: in the metrics of its key, and in its trace where that is kept.

use std::time::{Duration, Instant};

use super::OperationRecord;
use crate::daemon::keys::replica::Replica;
use crate::daemon::records::audit::AuditError;
use crate::daemon::records::metrics::Phase;
use crate::daemon::records::traces::{Outcome, Waited};
use crate::daemon::status::Failure;

impl OperationRecord<'_> {
    /// Since then the backend of `replica` was asked, the first part of it `queued`, and it has answered
    /// now, with a `failure` or not.
    pub(in super::super) fn waited_for_backend(
        &mut self,
        since: Instant,
        queued: Duration,
        replica: &Replica,
        failure: Option<&'static str>,
    ) {
        let took = since.elapsed().saturating_sub(queued);
        self.waited[Phase::Queue as usize] += queued;
        self.waited[Phase::Backend as usize] += took;
        let Some(trace) = &self.trace else { return };
        if !queued.is_zero() {
            trace.waited(&Waited::new(Phase::Queue, since, queued));
        }
        let provider = (replica.specification.place.provider.as_str(), replica.provider_type);
        let backend = Waited::new(Phase::Backend, since + queued, took).failed(failure);
        trace.waited(&Waited { provider: Some(provider), version: self.version, ..backend });
    }

    /// Waits until the record is where it must be.
    pub(super) async fn waits_for(
        &mut self,
        durable: impl Future<Output = Result<(), AuditError>>,
    ) -> Result<(), AuditError> {
        let since = Instant::now();
        let written = durable.await;
        let took = since.elapsed();
        self.waited[Phase::Audit as usize] += took;
        if let Some(trace) = &self.trace {
            let failure = written.as_ref().err().map(|_| Failure::NotRecorded.reason());
            trace.waited(&Waited::new(Phase::Audit, since, took).failed(failure));
        }
        written
    }

    /// It has ended.
    pub(super) fn tell_time(&self) {
        if let (Some(key), Some(_)) = (self.key, &self.replica) {
            key.metrics.waited(self.operation, self.waited);
        }
        let Some(trace) = &self.trace else { return };
        let (code, reason) = self.ended;
        let replica = self.replica.as_ref().map(|replica| &replica.specification.place);
        trace.ended(&Outcome {
            operation: self.operation.name(),
            key: self.name,
            version: self.version,
            provider: replica.map(|place| place.provider.as_str()),
            algorithm: self.algorithm,
            code,
            reason,
        });
    }
}

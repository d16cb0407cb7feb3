//! One value at one replica: the call to its backend, and what it tells.

use std::sync::Arc;
use std::time::{Duration, Instant};

use claviger_provider_api::queue_time::with_queue_time;
use claviger_provider_api::{
    Algorithm, Call, Cause, Error, ErrorKind, KeyMaterial, Parameters, Unwrapped, WrappingKey,
};

use super::UnwrapCall;
use crate::daemon::keys::failover::{self, Work};
use crate::daemon::keys::keyring::Candidate;
use crate::daemon::keys::replica::Replica;
use crate::daemon::request::budget::StartedUnwrap;
use crate::daemon::request::guard::OperationRecord;

/// One value at the replicas of one version.
pub(super) struct Attempts<'w, 'r, 'b> {
    pub(super) record: &'w mut OperationRecord<'r>,
    pub(super) call: &'w UnwrapCall,
    pub(super) candidate: Candidate<'w>,
    pub(super) budget: &'w mut StartedUnwrap<'b>,
}

impl Work for Attempts<'_, '_, '_> {
    type Output = KeyMaterial;

    async fn on(
        &mut self,
        replica: &Arc<Replica>,
        patience: Option<Duration>,
    ) -> Result<KeyMaterial, ErrorKind> {
        let Self { record, call, candidate, budget } = self;
        attempt(record, call, *candidate, replica, budget, patience).await
    }

    fn may_be_at_fault(&self) -> bool {
        true
    }
}

/// Asks one replica once; none but [`failover`] asks another one.
pub(super) async fn attempt(
    record: &mut OperationRecord<'_>,
    call: &UnwrapCall,
    candidate: Candidate<'_>,
    replica: &Arc<Replica>,
    budget: &mut StartedUnwrap<'_>,
    patience: Option<Duration>,
) -> Result<KeyMaterial, ErrorKind> {
    let Some(key) = replica.key() else { return Err(ErrorKind::Unavailable) };
    let key_call = call_of_key(&**key, record.context().call())?;
    let Candidate { version, algorithm } = candidate;
    let backend_call = replica.backend_calls.start();
    if replica.is_drained() {
        return Err(ErrorKind::Unavailable);
    }
    let was_another_asked = record.asks(version, algorithm.name(), replica);
    let since = Instant::now();
    let unwrapped = async {
        match &call.batch {
            // An item whose caller has left is no longer driven with the others.
            Some((batch, _)) if key.batch_limit() > 1 && !record.is_abandoned() => {
                batch.unwrap_key(key, algorithm, &call.wrapped, &call.label, key_call).await
            }
            _ => {
                let parameters = Parameters { algorithm, label: &call.label };
                key.unwrap_key(&call.wrapped, &parameters, key_call).await
            }
        }
    };
    let unwrapped = failover::unless_silent(replica, patience, unwrapped);
    let (outcome, queued) = with_queue_time(unwrapped).await;
    drop(backend_call);
    record.waited_for_backend(since, queued, replica, reason_of(&outcome));
    match outcome {
        Ok(Unwrapped { material, backend_request_id }) => {
            // Under RSA1_5 some tokens answer any value with random bytes: that proves nothing.
            if algorithm == Algorithm::Rsa15 {
                replica.answered();
            } else {
                replica.proven();
            }
            record.answered(backend_request_id);
            Ok(material)
        }
        Err(error) => {
            if error.kind() == ErrorKind::UnwrapFailed {
                replica.answered();
                budget.missed();
            }
            record.backend_failed(&error);
            let is_late = error.kind() == ErrorKind::DeadlineExceeded;
            if error.cause() == Some(Cause::NoAnswer)
                || (is_late && record.context().call().is_unanswered())
            {
                budget.not_answered();
            }
            if matches!(error.kind(), ErrorKind::Throttled { .. }) {
                replica.had_no_room();
                record.throttled(was_another_asked);
            }
            Err(error.kind())
        }
    }
}

/// The word for the kind of an error.
pub(in crate::daemon::request::guard) fn reason_of<T>(
    outcome: &Result<T, Error>,
) -> Option<&'static str> {
    outcome.as_ref().err().map(|error| error.kind().reason())
}

/// What a key is told of a call: nothing is started after its deadline, here or in the key's queue.
pub(in crate::daemon::request::guard) fn call_of_key(
    key: &dyn WrappingKey,
    call: Call,
) -> Result<Call, ErrorKind> {
    if Instant::now() >= call.deadline {
        return Err(ErrorKind::DeadlineExceeded);
    }
    let deadline = if key.queues() { call.deadline } else { call.answer_by() };
    Ok(Call { deadline, ..call })
}

//! Unwrapping: candidates, newest first; whose fault a failure was; the next replica, or at most one
//! silent retry.

mod attempt;

use std::sync::Arc;

use bytes::Bytes;
use claviger_provider_api::{Algorithm, ErrorKind, KeyMaterial};

use self::attempt::{Attempts, attempt};
pub(super) use self::attempt::{call_of_key, reason_of};
use super::abandoned::Progress;
use super::value_id::value_id;
use super::{Batch, Guard, OperationRecord, check_label, in_time};
use crate::daemon::config::Operation;
use crate::daemon::keys::choice::{Need, Turns};
use crate::daemon::keys::failover::{self, Asked, Ended};
use crate::daemon::keys::health::Fault;
use crate::daemon::keys::keyring::Candidate;
use crate::daemon::records::audit::Alarm;
use crate::daemon::request::budget::{Start, StartedUnwrap};
use crate::daemon::request::call::CallContext;
use crate::daemon::request::policy::Granted;
use crate::daemon::status::Failure;

/// One parsed unwrap.
#[derive(Debug)]
pub struct UnwrapCall {
    /// The key's name.
    pub key: String,
    /// The wrapped value.
    pub wrapped: Bytes,
    /// The version, if the caller knows it.
    pub version: Option<u32>,
    /// The algorithm, if the caller names one.
    pub algorithm: Option<Algorithm>,
    /// The OAEP label.
    pub label: Bytes,
    /// Its batch, and its place in it.
    pub batch: Option<(Arc<Batch>, u32)>,
}

/// A candidate that did not unwrap the value, for one reason or another.
struct Miss<'a> {
    candidate: Candidate<'a>,
    turns: Turns<'a>,
    ended: Ended<'a>,
}

impl Guard {
    /// Unwraps with the private key in its backend; gives the material and the version.
    pub async fn unwrap(
        self: &Arc<Self>,
        context: &Arc<CallContext>,
        call: UnwrapCall,
    ) -> Result<(KeyMaterial, u32), Failure> {
        let batch_item = call.batch.as_ref().map(|(_, item)| *item);
        let progress = Arc::<Progress>::default();
        let (guard, owned) = (Arc::clone(self), Arc::clone(context));
        let work = self.abandoned.run_on(Arc::clone(&progress), context.deadline, async move {
            let record =
                OperationRecord::new(&guard, &owned, Operation::Unwrap, &call.key, batch_item);
            let batch = call.batch.as_ref().map(|(batch, _)| &**batch);
            let mut record = record.with(progress).of_batch(batch);
            let outcome = try_unwrap(&mut record, &call).await;
            record.finish(outcome).await
        });
        in_time(context, batch_item, work).await
    }
}

async fn try_unwrap(
    record: &mut OperationRecord<'_>,
    call: &UnwrapCall,
) -> Result<(KeyMaterial, u32), Failure> {
    let granted = record.grant()?;
    check_label(call.algorithm, &call.label)?;
    let candidates =
        granted.key.for_unwrap(call.wrapped.len(), call.version, call.algorithm, &call.label)?;
    let may = |sha256: &_| granted.unwraps().contains(sha256);
    let (budget, outcome) = ask(record, granted, call, candidates, may, None).await?;
    conclude(record, granted, budget, outcome).await
}

/// Asks for one unwrap out of the budget: `may` judges the SHA-256 of the value before a backend is
/// asked. What depends on the value fails alike, here or in [`conclude`], which comes next in any case.
pub(super) async fn ask<'b>(
    record: &mut OperationRecord<'_>,
    granted: &'b Granted,
    call: &UnwrapCall,
    candidates: Vec<Candidate<'_>>,
    may: impl Fn(&[u8; 32]) -> bool,
    longest: Option<usize>,
) -> Result<(StartedUnwrap<'b>, Result<(KeyMaterial, u32), Failure>), Failure> {
    record.set_version(candidates[0].version, candidates[0].algorithm.name());
    let sha256 = record.wrapped(&call.wrapped);
    if !may(&sha256) {
        return Err(not_granted(record, granted));
    }
    let mut budget = match granted.budget.start_unwrap(value_id(&sha256, call, longest)).await? {
        Start::Begun(budget) => budget,
        Start::FailedBefore { alarm } => return Err(failed_before(record, granted, alarm)),
    };
    let in_range = candidates.into_iter().filter(|candidate| {
        candidate.version.public_key().is_none_or(|key| key.value_in_range(&call.wrapped))
    });
    let outcome = over_candidates(record, call, in_range, &mut budget).await;
    Ok((budget, outcome))
}

/// Spends what the outcome costs.
pub(super) async fn conclude<T>(
    record: &mut OperationRecord<'_>,
    granted: &Granted,
    budget: StartedUnwrap<'_>,
    outcome: Result<T, Failure>,
) -> Result<T, Failure> {
    let used_up = match &outcome {
        Ok(_) => {
            budget.succeeded();
            false
        }
        Err(Failure::UnwrapFailed) => {
            record.spent();
            granted.key.metrics.failed_unwrap();
            budget.failed().await
        }
        Err(failure) if is_undecided(failure, &budget) => {
            record.spent();
            granted.key.metrics.unanswered_unwrap();
            budget.unanswered().await
        }
        Err(_) => {
            budget.spared();
            false
        }
    };
    if used_up {
        let context = record.context();
        let (caller, key) = (&context.caller.name, &granted.key.name);
        tracing::error!(%caller, key, "failed_unwraps is used up: this caller is refused on this key");
        record.alarm(Alarm::FailedUnwrapsUsedUp);
    }
    outcome
}

/// Whether it is still open what the value is. A backend that was asked and never answered may have
/// been given one that a success would have cost nothing; and what has missed by now is not known to
/// be the backend's fault.
fn is_undecided(failure: &Failure, budget: &StartedUnwrap<'_>) -> bool {
    let was_cut_short = matches!(failure, Failure::DeadlineExceeded | Failure::Exhausted { .. });
    budget.is_unanswered() || (budget.has_missed() && was_cut_short)
}

/// It reaches no backend, tells nothing, and costs nothing: only an operator learns of it.
fn not_granted(record: &mut OperationRecord<'_>, granted: &Granted) -> Failure {
    record.set_cause("value_not_granted");
    granted.key.metrics.value_not_granted();
    if granted.budget.alarm_not_granted() {
        let caller = &record.context().caller.name;
        let key = &granted.key.name;
        tracing::error!(%caller, key, "a value that the caller's grant does not list: is this another program with its certificate?");
        record.alarm(Alarm::ValueNotGranted);
    }
    Failure::UnwrapFailed
}

/// Answered as before, without the backend.
fn failed_before(record: &mut OperationRecord<'_>, granted: &Granted, alarm: bool) -> Failure {
    record.set_cause("failed_before");
    granted.key.metrics.failed_again();
    if alarm {
        let caller = &record.context().caller.name;
        let key = &granted.key.name;
        tracing::error!(%caller, key, "the same value keeps failing: was the caller's database restored from an older backup?");
        record.alarm(Alarm::SameValueAgain);
    }
    Failure::UnwrapFailed
}

async fn over_candidates<'a>(
    record: &mut OperationRecord<'_>,
    call: &UnwrapCall,
    candidates: impl Iterator<Item = Candidate<'a>>,
    budget: &mut StartedUnwrap<'_>,
) -> Result<(KeyMaterial, u32), Failure> {
    let mut misses = Vec::new();
    let mut unreachable = None;
    let mut tried = 0;
    for candidate in candidates {
        tried += 1;
        let has_label = !call.label.is_empty();
        let need = Need { algorithm: Some(candidate.algorithm), has_label };
        let mut turns = Turns::new(candidate.version, need);
        let ended = match over_replicas(record, call, candidate, &mut turns, budget).await {
            Ok(material) => return Ok((material, candidate.version.number)),
            Err(ended) => ended,
        };
        match &ended {
            Ended::Missed(_) => misses.push(Miss { candidate, turns, ended }),
            Ended::Late => return Err(Failure::DeadlineExceeded),
            Ended::Lost(lost) if lost.is_empty() => {
                unreachable =
                    Some(record.unavailable(candidate.version, &candidate.version.fault()));
            }
            Ended::Lost(lost) => match what_keeps(lost) {
                ErrorKind::Unavailable => misses.push(Miss { candidate, turns, ended }),
                kind @ ErrorKind::Throttled { .. } => return Err(Failure::of(kind)),
                kind => unreachable = Some(Failure::of_backend(kind)),
            },
        }
    }
    let mut may_retry = true;
    for miss in misses {
        let version = miss.candidate.version.number;
        match attribute(record, call, miss, budget, &mut may_retry).await {
            Ok(material) => return Ok((material, version)),
            Err(Failure::UnwrapFailed) => {}
            Err(failure) => unreachable = Some(failure),
        }
    }
    match unreachable {
        None => Err(Failure::UnwrapFailed),
        Some(failure @ Failure::Unavailable { .. }) => Err(failure),
        Some(failure) if tried == 1 => Err(failure),
        // Whatever keeps one of several versions from answering, another attempt may find it well.
        Some(_) => Err(Failure::unavailable()),
    }
}

/// Of several replicas that gave nothing for their own sakes: what may pass soonest.
fn what_keeps(lost: &[Asked<'_>]) -> ErrorKind {
    let said = |wanted: fn(ErrorKind) -> bool| {
        lost.iter().map(|asked| asked.kind).find(|kind| wanted(*kind))
    };
    said(|kind| kind == ErrorKind::Unavailable)
        .or_else(|| said(|kind| matches!(kind, ErrorKind::Throttled { .. })))
        .unwrap_or(lost[0].kind)
}

/// Asks the replicas of a version that were not asked yet, as long as they fail for their own sakes.
async fn over_replicas<'a>(
    record: &mut OperationRecord<'_>,
    call: &UnwrapCall,
    candidate: Candidate<'a>,
    turns: &mut Turns<'a>,
    budget: &mut StartedUnwrap<'_>,
) -> Result<KeyMaterial, Ended<'a>> {
    let deadline = record.context().deadline;
    let mut attempts = Attempts { record, call, candidate, budget };
    let outcome = failover::ask(turns, deadline, &mut attempts).await;
    if outcome.is_ok() && turns.count() > 1 {
        record.failed_over();
    }
    outcome
}

/// Finds out whose fault a miss was, and goes on where it was not the value's: with a replica that was
/// not asked yet, else with the one silent retry of the call, after a repair.
async fn attribute(
    record: &mut OperationRecord<'_>,
    call: &UnwrapCall,
    miss: Miss<'_>,
    budget: &mut StartedUnwrap<'_>,
    may_retry: &mut bool,
) -> Result<KeyMaterial, Failure> {
    let Miss { candidate, mut turns, mut ended } = miss;
    loop {
        let (failure, repaired) = match ended {
            Ended::Late => return Err(Failure::DeadlineExceeded),
            Ended::Missed(asked) => match is_the_values_fault(record, &asked, &turns).await {
                Ok(true) => return Err(Failure::UnwrapFailed),
                Ok(false) => (Failure::unavailable(), Some(asked)),
                Err(fault) => (record.unavailable(candidate.version, &fault), None),
            },
            Ended::Lost(lost) if lost.is_empty() => (Failure::unavailable(), None),
            Ended::Lost(lost) => match what_keeps(&lost) {
                ErrorKind::Unavailable if *may_retry && !turns.has_next() => {
                    match failover::first_back(&lost).await {
                        Ok(asked) => (Failure::unavailable(), Some(*asked)),
                        Err(fault) => (record.unavailable(candidate.version, &fault), None),
                    }
                }
                kind => (Failure::of_backend(kind), None),
            },
        };
        if turns.has_next() {
            ended = match over_replicas(record, call, candidate, &mut turns, budget).await {
                Ok(material) => return Ok(material),
                Err(ended) => ended,
            };
            continue;
        }
        let Some(asked) = repaired.filter(|_| *may_retry) else { return Err(failure) };
        *may_retry = false;
        let repairs = asked.replica.repairs();
        ended = match attempt(record, call, candidate, asked.replica, budget, None).await {
            Ok(material) => {
                record.retried();
                return Ok(material);
            }
            Err(ErrorKind::DeadlineExceeded) => Ended::Late,
            Err(kind @ ErrorKind::UnwrapFailed) => Ended::Missed(Asked { kind, repairs, ..asked }),
            Err(kind) => Ended::Lost(vec![Asked { kind, repairs, ..asked }]),
        };
    }
}

/// A check that started after the miss tells, where the key says that one is needed. False: something
/// was repaired since the attempt, so that nothing is known of the value.
async fn is_the_values_fault(
    record: &OperationRecord<'_>,
    asked: &Asked<'_>,
    turns: &Turns<'_>,
) -> Result<bool, Fault> {
    if !asked.replica.key().is_some_and(|key| key.failure_needs_check()) {
        return Ok(true);
    }
    let patience = failover::patience(turns, record.context().deadline);
    failover::check(asked.replica, patience).await?;
    Ok(asked.replica.repairs() == asked.repairs)
}

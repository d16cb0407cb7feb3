//! Unwrapping: candidates, newest first; whose fault a failure was; at most one silent retry.

use std::sync::Arc;

use bytes::Bytes;
use claviger_provider_api::{Algorithm, ErrorKind, KeyMaterial, Parameters, Unwrapped};

use super::{Batch, Guard, OperationRecord, check_label, in_time};
use crate::daemon::config::Operation;
use crate::daemon::keys::keyring::Candidate;
use crate::daemon::keys::replica::Replica;
use crate::daemon::request::budget::StartedUnwrap;
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

/// A candidate that did not unwrap the value.
struct Miss<'a> {
    candidate: Candidate<'a>,
    replica: &'a Arc<Replica>,
    kind: ErrorKind,
    /// The key's count of repairs before the attempt.
    repairs: u64,
}

impl Guard {
    /// Unwraps with the private key in its backend; gives the material and the version.
    pub async fn unwrap(
        &self,
        context: &CallContext,
        call: &UnwrapCall,
    ) -> Result<(KeyMaterial, u32), Failure> {
        let batch_item = call.batch.as_ref().map(|(_, item)| *item);
        let mut record =
            OperationRecord::new(self, context, Operation::Unwrap, &call.key, batch_item);
        let outcome = in_time(context, batch_item, try_unwrap(&mut record, call)).await;
        record.finish(outcome).await
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
    spend_unwrap(record, granted, call, candidates, may, |_, material| Ok(material)).await
}

/// One unwrap out of the budget: `may` judges the SHA-256 of the value before a backend is asked,
/// `take` makes the result of the material. Whatever of it depends on the value fails alike.
pub(super) async fn spend_unwrap<T>(
    record: &mut OperationRecord<'_>,
    granted: &Granted,
    call: &UnwrapCall,
    candidates: Vec<Candidate<'_>>,
    may: impl Fn(&[u8; 32]) -> bool,
    take: impl FnOnce(&mut OperationRecord<'_>, KeyMaterial) -> Result<T, Failure>,
) -> Result<(T, u32), Failure> {
    let mut budget = granted.budget.start_unwrap().await?;
    record.set_version(candidates[0].version, candidates[0].algorithm.name());
    let outcome = if may(&record.wrapped(&call.wrapped)) {
        let in_range = candidates.into_iter().filter(|candidate| {
            candidate.version.public_key().is_none_or(|key| key.value_in_range(&call.wrapped))
        });
        let unwrapped = over_candidates(record, call, in_range, &mut budget).await;
        unwrapped.and_then(|(material, version)| Ok((take(record, material)?, version)))
    } else {
        record.cause = Some("value_not_granted");
        Err(Failure::UnwrapFailed)
    };
    match outcome {
        Err(Failure::UnwrapFailed) => {
            // Also where the value was refused unasked: what spends a failed unwrap is on record.
            record.reached = true;
            if budget.failed() {
                let (caller, key) = (&record.context.caller.name, &call.key);
                tracing::error!(%caller, key, "failed_unwraps is used up: this caller is refused on this key");
            }
            granted.key.metrics.failed_unwrap();
            Err(Failure::UnwrapFailed)
        }
        // What has missed by now is not known to be the backend's fault.
        outcome @ Err(Failure::DeadlineExceeded | Failure::Exhausted { .. }) => outcome,
        outcome => {
            budget.spared();
            outcome
        }
    }
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
        let replica = match candidate.version.replica() {
            Ok(replica) => replica,
            Err(fault) => {
                unreachable = Some(record.unavailable(&fault));
                continue;
            }
        };
        let repairs = replica.key().map_or(0, |key| key.repairs());
        match attempt(record, call, candidate, replica).await {
            Ok(material) => return Ok((material, candidate.version.number)),
            Err(kind @ (ErrorKind::UnwrapFailed | ErrorKind::Unavailable)) => {
                if kind == ErrorKind::UnwrapFailed {
                    budget.missed();
                }
                misses.push(Miss { candidate, replica, kind, repairs });
            }
            Err(kind @ (ErrorKind::OperatorNeeded | ErrorKind::Internal)) => {
                // Nobody waits for it, but the key's health should not wait for the next canary.
                if replica.is_serving() {
                    replica.check_in_background();
                }
                unreachable = Some(Failure::of(kind));
            }
            Err(kind @ (ErrorKind::Throttled { .. } | ErrorKind::DeadlineExceeded)) => {
                return Err(Failure::of(kind));
            }
        }
    }
    let mut may_retry = true;
    for miss in misses {
        match attribute(record, call, &miss, &mut may_retry).await {
            Ok(material) => return Ok((material, miss.candidate.version.number)),
            Err(Failure::UnwrapFailed) => {}
            Err(failure) => unreachable = Some(failure),
        }
    }
    match unreachable {
        None => Err(Failure::UnwrapFailed),
        Some(failure) if tried == 1 => Err(failure),
        // Whatever keeps one of several versions from answering, another attempt may find it well.
        Some(_) => Err(Failure::Unavailable),
    }
}

/// Finds out whose fault a miss was. A check that started after it tells, where the key says that
/// one is needed; if something was repaired since the attempt, the value gets its one silent retry.
async fn attribute(
    record: &mut OperationRecord<'_>,
    call: &UnwrapCall,
    miss: &Miss<'_>,
    may_retry: &mut bool,
) -> Result<KeyMaterial, Failure> {
    let Some(key) = miss.replica.key() else { return Err(Failure::Unavailable) };
    let lost = miss.kind == ErrorKind::Unavailable;
    if !lost && !key.failure_needs_check() {
        return Err(Failure::UnwrapFailed);
    }
    if let Err(fault) = miss.replica.check().await {
        return Err(record.unavailable(&fault));
    }
    let repaired = key.repairs() != miss.repairs;
    if !lost && !repaired {
        return Err(Failure::UnwrapFailed);
    }
    if !*may_retry || !miss.kind.may_retry_after_repair() {
        return Err(Failure::Unavailable);
    }
    *may_retry = false;
    let repairs = key.repairs();
    match attempt(record, call, miss.candidate, miss.replica).await {
        Ok(material) => {
            if let Some(key) = &record.key {
                key.metrics.retried();
            }
            Ok(material)
        }
        // Only a failure that nothing under it can explain is the value's.
        Err(ErrorKind::UnwrapFailed)
            if miss.replica.check().await.is_ok() && key.repairs() == repairs =>
        {
            Err(Failure::UnwrapFailed)
        }
        Err(kind) => Err(Failure::of_backend(kind)),
    }
}

async fn attempt(
    record: &mut OperationRecord<'_>,
    call: &UnwrapCall,
    candidate: Candidate<'_>,
    replica: &Arc<Replica>,
) -> Result<KeyMaterial, ErrorKind> {
    let Some(key) = replica.key() else { return Err(ErrorKind::Unavailable) };
    let Candidate { version, algorithm } = candidate;
    let asked_before = record.replica.is_some();
    record.reached(version, algorithm.name());
    record.replica = Some(Arc::clone(replica));
    let backend_call = replica.backend_calls.start();
    let outcome = match &call.batch {
        Some((batch, _)) if key.batch_limit() > 1 => batch.unwrap_key(key, algorithm, call).await,
        _ => {
            let parameters = Parameters { algorithm, label: &call.label };
            key.unwrap_key(&call.wrapped, &parameters, record.context.call()).await
        }
    };
    drop(backend_call);
    match outcome {
        Ok(Unwrapped { material, backend_request_id }) => {
            // Under RSA1_5 some tokens answer any value with random bytes: that proves nothing.
            if algorithm != Algorithm::Rsa15 {
                replica.proven();
            }
            record.backend_request_id = backend_request_id;
            Ok(material)
        }
        Err(error) => {
            record.backend_failed(&error);
            // Turned away at the door: cheap to cause, and no key was used, unless one was before.
            record.reached = asked_before || !matches!(error.kind(), ErrorKind::Throttled { .. });
            Err(error.kind())
        }
    }
}

//! Signing: one version, the next replica or at most one silent retry, on the terms of an unwrap's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use claviger_provider_api::queue_time::with_queue_time;
use claviger_provider_api::{Digest, ErrorKind, SignAlgorithm, Signature};

use super::abandoned::Progress;
use super::unwrap::{call_of_key, reason_of};
use super::{Guard, OperationRecord};
use crate::daemon::config::Operation;
use crate::daemon::keys::choice::{Need, Turns};
use crate::daemon::keys::failover::{self, Ended, Work};
use crate::daemon::keys::keyring::Version;
use crate::daemon::keys::replica::Replica;
use crate::daemon::request::call::CallContext;
use crate::daemon::status::Failure;

/// One parsed sign.
#[derive(Debug)]
pub struct SignCall {
    /// The key's name.
    pub key: String,
    /// The digest to sign.
    pub digest: Bytes,
    /// The algorithm that signs.
    pub algorithm: SignAlgorithm,
    /// The version, if the caller names one.
    pub version: Option<u32>,
}

impl Guard {
    /// Signs a digest with the private key in its backend; gives the signature and the version.
    pub async fn sign(
        self: &Arc<Self>,
        context: &Arc<CallContext>,
        call: SignCall,
    ) -> Result<(Signature, u32), Failure> {
        let progress = Arc::<Progress>::default();
        let (guard, owned) = (Arc::clone(self), Arc::clone(context));
        let work = self.abandoned.run_on(Arc::clone(&progress), context.deadline, async move {
            let record = OperationRecord::new(&guard, &owned, Operation::Sign, &call.key, None);
            let mut record = record.with(progress);
            let outcome = sign(&mut record, &call).await;
            record.finish(outcome).await
        });
        work.await
    }
}

async fn sign(
    record: &mut OperationRecord<'_>,
    call: &SignCall,
) -> Result<(Signature, u32), Failure> {
    let SignCall { digest, algorithm, version, .. } = call;
    let version = record.grant()?.key.for_sign(*version, *algorithm)?;
    let digest = parse_digest(digest, *algorithm)?;
    let signature = try_sign(record, version, &digest, *algorithm).await?;
    Ok((signature, version.number))
}

/// A digest of exactly the length that the algorithm's hash gives.
pub(super) fn parse_digest(digest: &[u8], algorithm: SignAlgorithm) -> Result<Digest, Failure> {
    let hash = algorithm.hash();
    Digest::new(hash, digest).ok_or_else(|| Failure::Field {
        field: "digest",
        allowed: format!(
            "must be exactly {} bytes for {algorithm}, not {}",
            hash.len(),
            digest.len()
        ),
    })
}

async fn try_sign(
    record: &mut OperationRecord<'_>,
    version: &Version,
    digest: &Digest,
    algorithm: SignAlgorithm,
) -> Result<Signature, Failure> {
    let mut turns = Turns::new(version, Need::default());
    let deadline = record.context().deadline;
    let mut attempts = Signing { record, version, digest, algorithm };
    let lost = match failover::ask(&mut turns, deadline, &mut attempts).await {
        Ok(signature) => {
            if turns.count() > 1 {
                record.failed_over();
            }
            return Ok(signature);
        }
        Err(Ended::Late) => return Err(Failure::DeadlineExceeded),
        Err(Ended::Missed(asked)) => vec![asked],
        Err(Ended::Lost(lost)) => lost,
    };
    let Some(asked) = lost.last() else {
        return Err(record.unavailable(version, &version.fault()));
    };
    if !lost.iter().any(|asked| asked.kind.may_retry_after_repair()) {
        return Err(Failure::of_backend(asked.kind));
    }
    let back =
        failover::first_back(&lost).await.map_err(|fault| record.unavailable(version, &fault))?;
    // As of an unwrap: a request that was lost may go again once the backend answers; any other only
    // if something was repaired since.
    if back.kind != ErrorKind::Unavailable && back.replica.repairs() == back.repairs {
        return Err(Failure::of_backend(back.kind));
    }
    let mut attempts = Signing { record, version, digest, algorithm };
    let signature = attempts.on(back.replica, None).await.map_err(Failure::of_backend)?;
    record.retried();
    Ok(signature)
}

/// One digest at the replicas of one version.
struct Signing<'w, 'r> {
    record: &'w mut OperationRecord<'r>,
    version: &'w Version,
    digest: &'w Digest,
    algorithm: SignAlgorithm,
}

impl Work for Signing<'_, '_> {
    type Output = Signature;

    async fn on(
        &mut self,
        replica: &Arc<Replica>,
        patience: Option<Duration>,
    ) -> Result<Signature, ErrorKind> {
        let Self { record, version, digest, algorithm } = self;
        let Some(key) = replica.key() else { return Err(ErrorKind::Unavailable) };
        let call = call_of_key(&**key, record.context().call())?;
        let backend_call = replica.backend_calls.start();
        if replica.is_drained() {
            return Err(ErrorKind::Unavailable);
        }
        record.asks(version, algorithm.name(), replica);
        let since = Instant::now();
        let signed = key.sign(digest, *algorithm, call);
        let signed = failover::unless_silent(replica, patience, signed);
        let (outcome, queued) = with_queue_time(signed).await;
        drop(backend_call);
        record.waited_for_backend(since, queued, replica, reason_of(&outcome));
        match outcome {
            Ok(signature) => {
                replica.proven();
                record.answered(signature.backend_request_id.clone());
                Ok(signature)
            }
            Err(error) => {
                if matches!(error.kind(), ErrorKind::Throttled { .. }) {
                    replica.had_no_room();
                }
                record.backend_failed(&error);
                Err(error.kind())
            }
        }
    }

    /// Any digest can be signed.
    fn may_be_at_fault(&self) -> bool {
        false
    }
}

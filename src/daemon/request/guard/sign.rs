//! Signing: one version, one replica, at most one silent retry, on the terms of an unwrap's.

use std::sync::Arc;

use bytes::Bytes;
use claviger_provider_api::{Digest, ErrorKind, SignAlgorithm, Signature};

use super::abandoned::Progress;
use super::unwrap::call_of_key;
use super::{Guard, OperationRecord};
use crate::daemon::config::Operation;
use crate::daemon::keys::keyring::Version;
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
    let replica = version.replica().map_err(|fault| record.unavailable(version, &fault))?;
    let key = replica.key().ok_or_else(Failure::unavailable)?;
    record.asks(version, algorithm.name(), replica);
    let mut retried = false;
    loop {
        let repairs = key.repairs();
        let call = call_of_key(&**key, record.context().call()).map_err(Failure::of)?;
        let backend_call = replica.backend_calls.start();
        let signed = key.sign(digest, algorithm, call).await;
        drop(backend_call);
        let error = match signed {
            Ok(signature) => {
                replica.proven();
                record.answered(signature.backend_request_id.clone());
                if retried {
                    record.retried();
                }
                return Ok(signature);
            }
            Err(error) => error,
        };
        record.backend_failed(&error);
        let kind = error.kind();
        if !kind.may_retry_after_repair() {
            // In a task of its own: the key's health should not wait for the next canary.
            let failing = matches!(kind, ErrorKind::OperatorNeeded | ErrorKind::Internal);
            if failing && replica.is_serving() {
                replica.check_in_background();
            }
            return Err(Failure::of_backend(kind));
        }
        if retried {
            return Err(Failure::of_backend(kind));
        }
        replica.check().await.map_err(|fault| record.unavailable(version, &fault))?;
        // As of an unwrap: a request that was lost may go again once the backend answers; any other
        // only if something was repaired since.
        if kind != ErrorKind::Unavailable && key.repairs() == repairs {
            return Err(Failure::of_backend(kind));
        }
        retried = true;
    }
}

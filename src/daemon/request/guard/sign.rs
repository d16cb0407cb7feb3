//! Signing: one version, one replica, at most one silent retry, on the terms of an unwrap's.

use std::sync::Arc;

use claviger_provider_api::{Digest, ErrorKind, SignAlgorithm, Signature};

use super::{Guard, OperationRecord};
use crate::daemon::config::Operation;
use crate::daemon::keys::keyring::Version;
use crate::daemon::request::call::CallContext;
use crate::daemon::status::Failure;

impl Guard {
    /// Signs a digest with the private key in its backend; gives the signature and the version.
    pub async fn sign(
        &self,
        context: &CallContext,
        key: &str,
        digest: &[u8],
        algorithm: SignAlgorithm,
        version: Option<u32>,
    ) -> Result<(Signature, u32), Failure> {
        let mut record = OperationRecord::new(self, context, Operation::Sign, key, None);
        let outcome = match record.grant().and_then(|granted| {
            let version = granted.key.for_sign(version, algorithm)?;
            Ok((version, parse_digest(digest, algorithm)?))
        }) {
            Ok((version, digest)) => try_sign(&mut record, version, &digest, algorithm)
                .await
                .map(|signature| (signature, version.number)),
            Err(failure) => Err(failure),
        };
        record.finish(outcome).await
    }
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
    let replica = version.replica().map_err(|fault| record.unavailable(&fault))?;
    let key = replica.key().ok_or(Failure::Unavailable)?;
    record.reached(version, algorithm.name());
    record.replica = Some(Arc::clone(replica));
    let mut retried = false;
    loop {
        let repairs = key.repairs();
        let backend_call = replica.backend_calls.start();
        let signed = key.sign(digest, algorithm, record.context.call()).await;
        drop(backend_call);
        let error = match signed {
            Ok(signature) => {
                replica.proven();
                record.backend_request_id.clone_from(&signature.backend_request_id);
                if let (true, Some(key)) = (retried, &record.key) {
                    key.metrics.retried();
                }
                return Ok(signature);
            }
            Err(error) => error,
        };
        record.backend_failed(&error);
        let kind = error.kind();
        if !kind.may_retry_after_repair() {
            // Nobody waits for it, but the key's health should not wait for the next canary.
            let failing = matches!(kind, ErrorKind::OperatorNeeded | ErrorKind::Internal);
            if failing && replica.is_serving() {
                replica.check_in_background();
            }
            return Err(Failure::of_backend(kind));
        }
        if retried {
            return Err(Failure::of_backend(kind));
        }
        replica.check().await.map_err(|fault| record.unavailable(&fault))?;
        // As of an unwrap: a request that was lost may go again once the backend answers; any other
        // only if something was repaired since.
        if kind != ErrorKind::Unavailable && key.repairs() == repairs {
            return Err(Failure::of_backend(kind));
        }
        retried = true;
    }
}

//! Verify: in software, over the versions that may have signed.

use std::sync::Arc;

use bytes::Bytes;
use claviger_provider_api::SignAlgorithm;

use super::{Guard, OperationRecord, sign};
use crate::daemon::config::Operation;
use crate::daemon::request::call::CallContext;
use crate::daemon::status::Failure;

/// One parsed verify.
#[derive(Debug)]
pub struct VerifyCall {
    /// The key's name.
    pub key: String,
    /// The digest that was signed.
    pub digest: Bytes,
    /// The algorithm that signed.
    pub algorithm: SignAlgorithm,
    /// The version, if the caller knows it.
    pub version: Option<u32>,
    /// The signature.
    pub signature: Bytes,
}

impl Guard {
    /// Verifies a signature in software; gives the version under which it is good.
    pub async fn verify(
        &self,
        context: &CallContext,
        call: &VerifyCall,
    ) -> Result<Option<u32>, Failure> {
        let mut record = OperationRecord::new(self, context, Operation::Verify, &call.key, None);
        let outcome = self.try_verify(&mut record, call).await;
        record.finish(outcome).await
    }

    async fn try_verify(
        &self,
        record: &mut OperationRecord<'_>,
        call: &VerifyCall,
    ) -> Result<Option<u32>, Failure> {
        let VerifyCall { digest, algorithm, version, signature, .. } = call;
        let (algorithm, key) = (*algorithm, &record.grant()?.key);
        let versions = key.for_verify(*version, algorithm, signature.len())?;
        let digest = Arc::new(sign::parse_digest(digest, algorithm)?);
        let mut closed = None;
        for version in versions {
            let Some(key) = version.opened_key().map(Arc::clone) else {
                // An older version may have signed; else the newest one's failure it is.
                let failure = record.unavailable(version, &version.fault());
                closed.get_or_insert(failure);
                continue;
            };
            record.uses_public_key(version, algorithm.name());
            let (digest, signature) = (Arc::clone(&digest), signature.clone());
            let verify = move || key.public_key().verify(&digest, algorithm, &signature);
            if self.public_work.run(record.context().call(), verify).await? {
                record.answered_by_another();
                return Ok(Some(version.number));
            }
        }
        closed.map_or(Ok(None), Err)
    }
}

//! Verify: in software, over the versions that may have signed.

use claviger_provider_api::SignAlgorithm;

use super::{Guard, OperationRecord, sign};
use crate::daemon::config::Operation;
use crate::daemon::request::call::CallContext;
use crate::daemon::status::Failure;

impl Guard {
    /// Verifies a signature in software; gives the version under which it is good.
    pub async fn verify(
        &self,
        context: &CallContext,
        key: &str,
        digest: &[u8],
        algorithm: SignAlgorithm,
        version: Option<u32>,
        signature: &[u8],
    ) -> Result<Option<u32>, Failure> {
        let mut record = OperationRecord::new(self, context, Operation::Verify, key, None);
        let outcome = record.grant().and_then(|granted| {
            let versions = granted.key.for_verify(version, algorithm, signature.len())?;
            let digest = sign::parse_digest(digest, algorithm)?;
            let mut closed = None;
            for version in versions {
                let public_key = match version.opened_public_key() {
                    Ok(public_key) => public_key,
                    Err(fault) => {
                        // An older version may have signed; else the newest one's failure it is.
                        let failure = record.unavailable(&fault);
                        closed.get_or_insert(failure);
                        continue;
                    }
                };
                record.reached(version, algorithm.name());
                if public_key.verify(&digest, algorithm, signature) {
                    record.backend_error = None;
                    return Ok(Some(version.number));
                }
            }
            closed.map_or(Ok(None), Err)
        });
        record.finish(outcome).await
    }
}

//! Wrap: in software, with the newest active version's pinned public key.

use std::sync::Arc;

use bytes::Bytes;
use claviger_provider_api::{Algorithm, KeyMaterial, Parameters, PublicKeyError};

use super::{Guard, OperationRecord, check_label};
use crate::daemon::config::Operation;
use crate::daemon::keys::keyring::{Candidate, Key};
use crate::daemon::request::call::CallContext;
use crate::daemon::status::Failure;

/// One parsed wrap.
#[derive(Debug)]
pub struct WrapCall {
    /// The key's name.
    pub key: String,
    /// What to wrap.
    pub material: KeyMaterial,
    /// The algorithm, if the caller names one.
    pub algorithm: Option<Algorithm>,
    /// The OAEP label.
    pub label: Bytes,
}

/// What came out of a wrap.
#[derive(Clone, Debug)]
pub struct Wrapped {
    /// The wrapped value.
    pub wrapped: Vec<u8>,
    /// The version that wrapped.
    pub version: u32,
    /// The algorithm that wrapped.
    pub algorithm: Algorithm,
}

impl Guard {
    /// Wraps key material in software, with the newest active version's pinned public key.
    pub async fn wrap(&self, context: &CallContext, call: WrapCall) -> Result<Wrapped, Failure> {
        let WrapCall { key, material, algorithm, label } = call;
        let mut record = OperationRecord::new(self, context, Operation::Wrap, &key, None);
        let outcome = self.try_wrap(&mut record, material, algorithm, label).await;
        record.finish(outcome).await
    }

    async fn try_wrap(
        &self,
        record: &mut OperationRecord<'_>,
        material: KeyMaterial,
        algorithm: Option<Algorithm>,
        label: Bytes,
    ) -> Result<Wrapped, Failure> {
        let granted = record.grant()?;
        check_label(algorithm, &label)?;
        let Candidate { version, algorithm } = to_wrap(record, &granted.key, algorithm, &label)?;
        record.uses_public_key(version, algorithm.name());
        let key = Arc::clone(version.opened_key().ok_or_else(Failure::unavailable)?);
        let wrap =
            move || key.public_key().wrap(&material, &Parameters { algorithm, label: &label });
        let context = record.context();
        let wrapped = self.public_work.run(context.call(), wrap).await?;
        let wrapped = wrapped.map_err(|error| refused(context, &error))?;
        record.wrapped(&wrapped);
        Ok(Wrapped { wrapped, version: version.number, algorithm })
    }
}

/// The version that wraps, with the algorithm: only with what a replica of it has proven to unwrap.
pub(super) fn to_wrap<'a>(
    record: &mut OperationRecord<'_>,
    key: &'a Key,
    algorithm: Option<Algorithm>,
    label: &[u8],
) -> Result<Candidate<'a>, Failure> {
    let candidate = key.for_wrap(algorithm)?;
    candidate.has_proven(label).map_err(|fault| record.unavailable(candidate.version, &fault))?;
    candidate.takes_label(label)?;
    Ok(candidate)
}

fn refused(context: &CallContext, error: &PublicKeyError) -> Failure {
    match error {
        PublicKeyError::TooLong { .. } => {
            Failure::Field { field: "key_material", allowed: error.to_string() }
        }
        PublicKeyError::LabelNotAllowed => {
            Failure::Field { field: "label", allowed: error.to_string() }
        }
        PublicKeyError::NotRsaSpki
        | PublicKeyError::Size { .. }
        | PublicKeyError::Exponent { .. }
        | PublicKeyError::Modulus
        | PublicKeyError::Refused => {
            let request_id = &*context.request_id;
            tracing::error!(request_id, %error, "wrapping failed");
            Failure::Internal
        }
    }
}

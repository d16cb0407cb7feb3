//! Wrap: in software, with the newest active version's pinned public key.

use claviger_provider_api::{Algorithm, KeyMaterial, Parameters, PublicKeyError};

use super::{Guard, OperationRecord, check_label};
use crate::daemon::config::Operation;
use crate::daemon::keys::keyring::{Candidate, Key, Version};
use crate::daemon::request::call::CallContext;
use crate::daemon::status::Failure;

impl Guard {
    /// Wraps key material in software, with the newest active version's pinned public key.
    pub async fn wrap(
        &self,
        context: &CallContext,
        key: &str,
        material: &KeyMaterial,
        algorithm: Option<Algorithm>,
        label: &[u8],
    ) -> Result<(Vec<u8>, u32, Algorithm), Failure> {
        let mut record = OperationRecord::new(self, context, Operation::Wrap, key, None);
        let outcome = record.grant().and_then(|granted| {
            check_label(algorithm, label)?;
            let Candidate { version, algorithm } =
                to_wrap(&mut record, &granted.key, algorithm, label)?;
            record.reached(version, algorithm.name());
            let wrapped = wrap_with(context, version, material, algorithm, label)?;
            record.wrapped(&wrapped);
            Ok((wrapped, version.number, algorithm))
        });
        record.finish(outcome).await
    }
}

/// The version that wraps, with the algorithm: only with what every replica of it has proven to
/// unwrap.
pub(super) fn to_wrap<'a>(
    record: &mut OperationRecord<'_>,
    key: &'a Key,
    algorithm: Option<Algorithm>,
    label: &[u8],
) -> Result<Candidate<'a>, Failure> {
    let candidate = key.for_wrap(algorithm)?;
    candidate.has_proven().map_err(|fault| record.unavailable(&fault))?;
    candidate.takes_label(label)?;
    Ok(candidate)
}

pub(super) fn wrap_with(
    context: &CallContext,
    version: &Version,
    material: &KeyMaterial,
    algorithm: Algorithm,
    label: &[u8],
) -> Result<Vec<u8>, Failure> {
    let public_key = version.public_key().ok_or(Failure::Unavailable)?;
    public_key.wrap(material, &Parameters { algorithm, label }).map_err(|error| match error {
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
    })
}

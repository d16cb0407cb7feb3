//! An opened key: one version in the vault, its public half, and what its canaries proved.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use azure_core::http::Response;
use azure_security_keyvault_keys::models::{
    EncryptionAlgorithm, KeyClientSignOptions, KeyOperationParameters, KeyOperationResult,
    SignParameters, SignatureAlgorithm,
};
use claviger_provider_api::{
    Algorithm, BackendKey, Call, Cause, Digest, Error, ErrorKind, KeyMaterial, OpenKey, OpenedKey,
    Parameters, SignAlgorithm, Signature, Unwrapped,
};
use zeroize::Zeroizing;

use crate::client::Backend;
use crate::error::{Operation, request_id};
use crate::locator::Locator;
use crate::versions;

/// One version of a key, always called by that version: a rotation in Azure changes nothing here.
pub(crate) struct AzureKey {
    backend: Arc<Backend>,
    locator: Locator,
    exportable: bool,
}

impl AzureKey {
    /// Takes a key into service once every listed algorithm gave its canary back.
    pub(crate) async fn open(
        backend: Arc<Backend>,
        locator: &Locator,
        open: &OpenKey<'_>,
    ) -> Result<OpenedKey<Self>, Error> {
        check_algorithms(open)?;
        let found = versions::find(&backend, locator, open).await?;
        found.check_use(open)?;
        if !found.in_hardware {
            tracing::info!(
                locator = %found.locator,
                "Azure protects this key in software (type RSA); keys in hardware have the type RSA-HSM"
            );
        }
        if found.exportable {
            tracing::warn!(
                locator = %found.locator,
                "AZURE WOULD HAND THIS KEY OUT: it was made exportable, which cannot be undone; look \
                 at its release policy"
            );
        }
        let name = found.locator.to_string();
        let key = Self { backend, locator: found.locator, exportable: found.exportable };
        OpenedKey::prove(key, name, found.public_key, open).await
    }

    /// With its version.
    pub(crate) fn locator(&self) -> &Locator {
        &self.locator
    }

    /// The value that the vault answered with, if it answered for this very version.
    async fn answer(
        &self,
        operation: Operation,
        deadline: Instant,
        asking: impl Future<Output = azure_core::Result<Answer>>,
    ) -> Result<(Zeroizing<Vec<u8>>, Option<String>), Error> {
        let Answer { kid, value, id } = self.backend.ask(operation, deadline, asking).await?;
        let version = kid.as_deref().and_then(|kid| self.locator.version_of(kid));
        let broken = if version != self.locator.version.as_deref() {
            format!("{operation}: the vault answered for the key {kid:?}")
        } else if let Some(value) = value {
            return Ok((value, id));
        } else {
            format!("{operation}: the vault answered without a value")
        };
        Err(Error::new(ErrorKind::Internal, broken)
            .with_cause(Cause::WrongAnswer)
            .with_backend_request_id(id))
    }

    fn named(&self) -> (&str, &str) {
        let version = self.locator.version.as_deref();
        (&self.locator.name, version.expect("an opened key has a version"))
    }
}

/// What Azure can never do, said before it is asked.
pub(crate) fn check_algorithms(open: &OpenKey<'_>) -> Result<(), Error> {
    let mut listed = open.algorithms.iter().copied();
    listed.find(|algorithm| encryption_algorithm(*algorithm).is_none()).map_or(Ok(()), |algorithm| {
        let reason = format!(
            "Azure cannot unwrap {algorithm}, only RSA-OAEP, RSA-OAEP-256 and RSA1_5; take it off \
             the list"
        );
        Err(Error::needs_operator(Cause::AlgorithmNotOffered, reason))
    })
}

/// What an operation gave.
struct Answer {
    kid: Option<String>,
    value: Option<Zeroizing<Vec<u8>>>,
    id: Option<String>,
}

/// The SDK's own buffer is taken over and zeroes itself from here on.
fn read(response: Response<KeyOperationResult>) -> azure_core::Result<Answer> {
    let id = request_id(response.headers());
    let result = response.into_model()?;
    Ok(Answer { kid: result.kid, value: result.result.map(Zeroizing::new), id })
}

#[async_trait]
impl BackendKey for AzureKey {
    async fn decrypt(
        &self,
        wrapped: &[u8],
        parameters: &Parameters<'_>,
        call: Call,
    ) -> Result<Unwrapped, Error> {
        let parameters = KeyOperationParameters {
            algorithm: encryption_algorithm(parameters.algorithm),
            value: Some(wrapped.to_vec()),
            ..KeyOperationParameters::default()
        };
        let (name, version) = self.named();
        let asking = async {
            let parameters = parameters.try_into()?;
            read(self.backend.keys().unwrap_key(name, version, parameters, None).await?)
        };
        let (value, id) = self.answer(Operation::Unwrap, call.deadline, asking).await?;
        Ok(Unwrapped { material: KeyMaterial::new(value), backend_request_id: id })
    }

    async fn sign(
        &self,
        digest: &Digest,
        algorithm: SignAlgorithm,
        call: Call,
    ) -> Result<Signature, Error> {
        let parameters = SignParameters {
            algorithm: Some(signature_algorithm(algorithm)),
            value: Some(digest.as_bytes().to_vec()),
        };
        let (name, version) = self.named();
        let options = KeyClientSignOptions {
            key_version: Some(version.to_owned()),
            ..KeyClientSignOptions::default()
        };
        let asking = async {
            let parameters = parameters.try_into()?;
            read(self.backend.keys().sign(name, parameters, Some(options)).await?)
        };
        let (mut value, id) = self.answer(Operation::Sign, call.deadline, asking).await?;
        Ok(Signature { bytes: std::mem::take(&mut value), backend_request_id: id })
    }

    /// A bad value is `BadParameter`, and so is much else that Azure does not like. What it says to
    /// values that are bad in other ways than their padding is documented nowhere.
    fn failure_needs_check(&self) -> bool {
        true
    }

    /// As the vault says: only a key that was made exportable is ever released, to those that its
    /// release policy names. A backup opens in Azure alone.
    fn extractable(&self) -> Option<bool> {
        Some(self.exportable)
    }

    fn repairs(&self) -> u64 {
        self.backend.repairs()
    }
}

fn encryption_algorithm(algorithm: Algorithm) -> Option<EncryptionAlgorithm> {
    match algorithm {
        Algorithm::RsaOaep => Some(EncryptionAlgorithm::RsaOaep),
        Algorithm::RsaOaep256 => Some(EncryptionAlgorithm::RsaOaep256),
        Algorithm::Rsa15 => Some(EncryptionAlgorithm::Rsa1_5),
        Algorithm::RsaOaep384 | Algorithm::RsaOaep512 => None,
    }
}

fn signature_algorithm(algorithm: SignAlgorithm) -> SignatureAlgorithm {
    match algorithm {
        SignAlgorithm::Rs256 => SignatureAlgorithm::Rs256,
        SignAlgorithm::Rs384 => SignatureAlgorithm::Rs384,
        SignAlgorithm::Rs512 => SignatureAlgorithm::Rs512,
        SignAlgorithm::Ps256 => SignatureAlgorithm::Ps256,
        SignAlgorithm::Ps384 => SignatureAlgorithm::Ps384,
        SignAlgorithm::Ps512 => SignatureAlgorithm::Ps512,
    }
}

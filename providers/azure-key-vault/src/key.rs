//! An opened key: one version in the vault, its public half, and what its canaries proved.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use azure_core::http::Response;
use azure_security_keyvault_keys::models::{
    EncryptionAlgorithm, KeyClientSignOptions, KeyOperationParameters, KeyOperationResult,
    SignParameters, SignatureAlgorithm,
};
use claviger_provider_api::{
    Algorithm, Algorithms, Call, Canary, Digest, Error, ErrorKind, KeyMaterial, OpenKey,
    Parameters, PublicKey, SignAlgorithm, SignAlgorithms, Signature, Unwrapped, WrappingKey,
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
    public_key: PublicKey,
    exportable: bool,
    canary: Canary,
    algorithms: Algorithms,
    sign_algorithms: SignAlgorithms,
}

impl AzureKey {
    /// Takes a key into service once every listed algorithm gave its canary back.
    pub(crate) async fn open(
        backend: Arc<Backend>,
        locator: &Locator,
        open: &OpenKey<'_>,
    ) -> Result<Self, Error> {
        let listed = open.algorithms.iter();
        if let Some(algorithm) = listed.copied().find(|a| encryption_algorithm(*a).is_none()) {
            let reason = format!(
                "Azure cannot unwrap {algorithm}, only RSA-OAEP, RSA-OAEP-256 and RSA1_5; take it \
                 off the list"
            );
            return Err(Error::new(ErrorKind::OperatorNeeded, reason));
        }
        let found = versions::find(&backend, locator, open).await?;
        found.check_use(open)?;
        if !found.in_hardware {
            tracing::info!(
                locator = %found.locator,
                "Azure protects this key by software (type RSA); RSA-HSM is what it keeps in hardware"
            );
        }
        if found.exportable {
            tracing::warn!(
                locator = %found.locator,
                "AZURE WOULD HAND THIS KEY OUT: it was made exportable, which cannot be undone; look \
                 at its release policy"
            );
        }
        let key = Self {
            canary: Canary::new(&found.public_key, open)?,
            backend,
            locator: found.locator,
            public_key: found.public_key,
            exportable: found.exportable,
            algorithms: open.algorithms.iter().copied().collect(),
            sign_algorithms: open.sign_algorithms.iter().copied().collect(),
        };
        for (algorithm, wrapped) in key.canary.wrapped() {
            let proof = key.prove_unwrap(algorithm, wrapped).await;
            proof.map_err(|error| key.cannot_work(algorithm, error))?;
        }
        for algorithm in key.canary.sign_algorithms() {
            let proof = key.prove_sign(algorithm).await;
            proof.map_err(|error| key.cannot_work(algorithm, error))?;
        }
        Ok(key)
    }

    /// With its version.
    pub(crate) fn locator(&self) -> &Locator {
        &self.locator
    }

    async fn prove_unwrap(&self, algorithm: Algorithm, wrapped: &[u8]) -> Result<(), Error> {
        let unwrapped = self.ask_to_unwrap(wrapped, algorithm, None).await?;
        let id = unwrapped.backend_request_id;
        let accepted = self.canary.accept(&unwrapped.material);
        accepted.map_err(|error| error.with_backend_request_id(id))
    }

    async fn prove_sign(&self, algorithm: SignAlgorithm) -> Result<(), Error> {
        self.ask_to_sign(&self.canary.digest(algorithm), algorithm, None).await.map(drop)
    }

    async fn ask_to_unwrap(
        &self,
        wrapped: &[u8],
        algorithm: Algorithm,
        deadline: Option<Instant>,
    ) -> Result<Unwrapped, Error> {
        let parameters = KeyOperationParameters {
            algorithm: encryption_algorithm(algorithm),
            value: Some(wrapped.to_vec()),
            ..KeyOperationParameters::default()
        };
        let (name, version) = self.named();
        let asking = async {
            let parameters = parameters.try_into()?;
            read(self.backend.keys().unwrap_key(name, version, parameters, None).await?)
        };
        let (value, id) = self.answer(Operation::Unwrap, deadline, asking).await?;
        Ok(Unwrapped { material: KeyMaterial::new(value), backend_request_id: id })
    }

    async fn ask_to_sign(
        &self,
        digest: &Digest,
        algorithm: SignAlgorithm,
        deadline: Option<Instant>,
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
        let (mut value, id) = self.answer(Operation::Sign, deadline, asking).await?;
        if !self.public_key.verify(digest, algorithm, &value) {
            let reason = format!("Azure gave a {algorithm} signature that does not verify");
            return Err(Error::new(ErrorKind::Internal, reason).with_backend_request_id(id));
        }
        Ok(Signature { bytes: std::mem::take(&mut value), backend_request_id: id })
    }

    /// The value that the vault answered with, if it answered for this very version.
    async fn answer(
        &self,
        operation: Operation,
        deadline: Option<Instant>,
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
        Err(Error::new(ErrorKind::Internal, broken).with_backend_request_id(id))
    }

    fn named(&self) -> (&str, &str) {
        let version = self.locator.version.as_deref();
        (&self.locator.name, version.expect("an opened key has a version"))
    }

    /// A canary that failed on its value says that the algorithm does not work; what failed before it
    /// says nothing, and may work the next time.
    fn cannot_work(&self, algorithm: impl fmt::Display, error: Error) -> Error {
        match error.kind() {
            ErrorKind::UnwrapFailed | ErrorKind::Internal => {
                let id = error.backend_request_id().map(str::to_owned);
                let locator = &self.locator;
                let reason = format!(
                    "{locator}: {algorithm} does not work with this key ({error}); take it off the \
                     list"
                );
                Error::new(ErrorKind::OperatorNeeded, reason).with_backend_request_id(id)
            }
            ErrorKind::Unavailable
            | ErrorKind::Throttled { .. }
            | ErrorKind::DeadlineExceeded
            | ErrorKind::OperatorNeeded => error,
        }
    }
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
impl WrappingKey for AzureKey {
    fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    fn algorithms(&self) -> Algorithms {
        self.algorithms
    }

    /// None: Azure has no parameter for an OAEP label.
    fn label_algorithms(&self) -> Algorithms {
        Algorithms::EMPTY
    }

    fn sign_algorithms(&self) -> SignAlgorithms {
        self.sign_algorithms
    }

    /// A bad value is `BadParameter`, and so is much else that Azure does not like. What it says to
    /// values that are bad in other ways than their padding is documented nowhere.
    fn failure_needs_check(&self) -> bool {
        true
    }

    /// As the vault says: only a key that was made exportable is ever released, to whom its release
    /// policy names. A backup opens in Azure alone.
    fn extractable(&self) -> Option<bool> {
        Some(self.exportable)
    }

    fn repairs(&self) -> u64 {
        self.backend.repairs()
    }

    async fn unwrap_key(
        &self,
        wrapped: &[u8],
        parameters: &Parameters<'_>,
        call: Call,
    ) -> Result<Unwrapped, Error> {
        let Parameters { algorithm, label } = *parameters;
        if !self.algorithms.contains(algorithm) {
            return Err(not_opened(algorithm));
        }
        if !label.is_empty() {
            let reason = "Azure has no OAEP labels; wrap without one, or use another backend";
            return Err(Error::new(ErrorKind::OperatorNeeded, reason));
        }
        if !self.public_key.value_in_range(wrapped) {
            let reason = "the value is no result of wrapping under this key";
            return Err(Error::new(ErrorKind::UnwrapFailed, reason));
        }
        self.ask_to_unwrap(wrapped, algorithm, Some(call.deadline)).await
    }

    async fn sign(
        &self,
        digest: &Digest,
        algorithm: SignAlgorithm,
        call: Call,
    ) -> Result<Signature, Error> {
        if !self.sign_algorithms.contains(algorithm) {
            return Err(not_opened(algorithm));
        }
        self.ask_to_sign(digest, algorithm, Some(call.deadline)).await
    }

    async fn check(&self) -> Result<(), Error> {
        let outcome = if let Some((algorithm, wrapped)) = self.canary.wrapped().next() {
            self.prove_unwrap(algorithm, wrapped).await
        } else if let Some(algorithm) = self.canary.sign_algorithms().next() {
            self.prove_sign(algorithm).await
        } else {
            Ok(())
        };
        match outcome {
            // It unwrapped when the key was opened, so it is not the value's fault.
            Err(error) if error.kind() == ErrorKind::UnwrapFailed => {
                let id = error.backend_request_id().map(str::to_owned);
                let reason = format!("{}: the canary does not unwrap: {error}", self.locator);
                Err(Error::new(ErrorKind::Unavailable, reason).with_backend_request_id(id))
            }
            outcome => outcome,
        }
    }
}

impl fmt::Debug for AzureKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AzureKey({}, {:?})", self.locator, self.public_key)
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

fn not_opened(algorithm: impl fmt::Display) -> Error {
    let reason = format!("{algorithm} was not listed when the key was opened");
    Error::new(ErrorKind::Internal, reason)
}

//! An opened key: its ARN, its public half, and what its canaries proved.

use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_kms::Client;
use aws_sdk_kms::operation::RequestId;
use aws_sdk_kms::operation::get_public_key::GetPublicKeyOutput;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{
    EncryptionAlgorithmSpec, KeyUsageType, MessageType, SigningAlgorithmSpec,
};
use claviger_provider_api::{
    Algorithm, AnotherKey, BackendKey, Call, CallerSlot, Cause, Digest, Error, ErrorKind,
    KeyMaterial, OpenKey, OpenedKey, Parameters, PublicKey, SignAlgorithm, Signature, Unwrapped,
};
use zeroize::Zeroizing;

use crate::client::Backend;
use crate::error::Failure;
use crate::locator::{Locator, is_key_arn};

/// A key in KMS, always called by its ARN: an alias that is pointed elsewhere changes nothing here.
pub(crate) struct KmsKey {
    backend: Arc<Backend>,
    arn: String,
}

impl KmsKey {
    /// Takes a key into service once every listed algorithm gave its canary back. `kind` is of the
    /// locator.
    pub(crate) async fn open(
        backend: Arc<Backend>,
        open: &OpenKey<'_>,
        kind: Locator,
    ) -> Result<OpenedKey<Self>, Error> {
        check_algorithms(open)?;
        let found = backend
            .call_renewing(|client| async move { describe(&client, open.locator).await })
            .await?;
        let id = found.request_id().map(str::to_owned);
        let (arn, public_key) =
            judge(&found, open, kind).map_err(|error| error.with_backend_request_id(id))?;
        let key = Self { backend, arn: arn.clone() };
        OpenedKey::prove(key, arn, public_key, open).await
    }

    pub(crate) fn arn(&self) -> &str {
        &self.arn
    }

    /// Asks for a caller until its deadline; for the daemon itself with credentials that are asked
    /// for anew if AWS refused those it had. A request that was sent before the deadline cannot be
    /// taken back; its answer is dropped with its connection.
    async fn ask<T, F>(&self, call: Call, asking: impl Fn(Client) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let until = call.deadline.into();
        let outcome = if call.caller == CallerSlot::DAEMON {
            tokio::time::timeout_at(until, self.backend.call_renewing(asking)).await
        } else {
            let once = asking(self.backend.client());
            let outcome = tokio::time::timeout_at(until, once).await;
            outcome.map(|outcome| outcome.map_err(Failure::into_error))
        };
        outcome.unwrap_or_else(|_| {
            let text = "the deadline passed before KMS answered";
            Err(Error::new(ErrorKind::DeadlineExceeded, text))
        })
    }

    async fn decrypted(
        &self,
        client: &Client,
        wrapped: &[u8],
        algorithm: Algorithm,
    ) -> Result<Unwrapped, Failure> {
        let output = client
            .decrypt()
            .key_id(&self.arn)
            .set_encryption_algorithm(encryption_algorithm(algorithm))
            .ciphertext_blob(Blob::new(wrapped))
            .send()
            .await
            .map_err(|error| Failure::of_call("Decrypt", &error))?;
        let backend_request_id = output.request_id().map(str::to_owned);
        // The SDK's own buffer is taken over and zeroes itself from here on.
        let plaintext = output.plaintext.map(|blob| Zeroizing::new(blob.into_inner()));
        let broken = match plaintext {
            _ if output.key_id.as_deref() != Some(self.arn.as_str()) => {
                format!("kms:Decrypt answered for the key {:?}", output.key_id)
            }
            None => "kms:Decrypt answered without a plaintext".to_owned(),
            Some(plaintext) => {
                let material = KeyMaterial::new(plaintext);
                return Ok(Unwrapped { material, backend_request_id });
            }
        };
        Err(Failure::of(broken_promise(broken).with_backend_request_id(backend_request_id)))
    }

    async fn signature(
        &self,
        client: &Client,
        digest: &Digest,
        algorithm: SignAlgorithm,
    ) -> Result<Signature, Failure> {
        let output = client
            .sign()
            .key_id(&self.arn)
            .message_type(MessageType::Digest)
            .message(Blob::new(digest.as_bytes()))
            .signing_algorithm(signing_algorithm(algorithm))
            .send()
            .await
            .map_err(|error| Failure::of_call("Sign", &error))?;
        let backend_request_id = output.request_id().map(str::to_owned);
        let bytes = output.signature.map(Blob::into_inner).unwrap_or_default();
        Ok(Signature { bytes, backend_request_id })
    }
}

#[async_trait]
impl BackendKey for KmsKey {
    async fn decrypt(
        &self,
        wrapped: &[u8],
        parameters: &Parameters<'_>,
        call: Call,
    ) -> Result<Unwrapped, Error> {
        let algorithm = parameters.algorithm;
        self.ask(call, |client| async move { self.decrypted(&client, wrapped, algorithm).await })
            .await
    }

    async fn sign(
        &self,
        digest: &Digest,
        algorithm: SignAlgorithm,
        call: Call,
    ) -> Result<Signature, Error> {
        self.ask(call, |client| async move { self.signature(&client, digest, algorithm).await })
            .await
    }

    /// No: KMS has a code for values alone, InvalidCiphertextException, and other codes for
    /// everything that is wrong with the key, the credentials or the service.
    fn failure_needs_check(&self) -> bool {
        false
    }

    /// KMS has no call that gives a private key away.
    fn extractable(&self) -> Option<bool> {
        Some(false)
    }

    fn repairs(&self) -> u64 {
        self.backend.repairs()
    }
}

/// The public half of a key, and what it was made for.
pub(crate) async fn describe(
    client: &Client,
    locator: &str,
) -> Result<GetPublicKeyOutput, Failure> {
    let asked = client.get_public_key().key_id(locator).send().await;
    asked.map_err(|error| Failure::of_call("GetPublicKey", &error))
}

/// What KMS can never do, said before it is asked.
pub(crate) fn check_algorithms(open: &OpenKey<'_>) -> Result<(), Error> {
    let refuse = |text: String| Err(Error::needs_operator(Cause::AlgorithmNotOffered, text));
    if let Some(algorithm) = open.algorithms.iter().find(|a| encryption_algorithm(**a).is_none()) {
        return refuse(format!(
            "KMS cannot unwrap {algorithm}, only RSA-OAEP and RSA-OAEP-256; take it off the list"
        ));
    }
    if !open.algorithms.is_empty() && !open.sign_algorithms.is_empty() {
        return refuse(
            "a KMS key either decrypts or signs, for ever; list algorithms or sign_algorithms, not \
             both"
                .to_owned(),
        );
    }
    Ok(())
}

/// The ARN and the public key, if the key is of the right kind.
pub(crate) fn judge(
    found: &GetPublicKeyOutput,
    open: &OpenKey<'_>,
    kind: Locator,
) -> Result<(String, PublicKey), Error> {
    let refuse = |text: String| Error::needs_operator(Cause::KeyUnfit, text);
    let internal = broken_promise::<&str>;
    let arn = found.key_id().filter(|id| is_key_arn(id));
    let arn = arn.ok_or_else(|| internal("kms:GetPublicKey answered without the key's ARN"))?;
    let spki = found.public_key().ok_or_else(|| internal("kms:GetPublicKey gave no public key"))?;
    let spec = found.key_spec().map_or("of no known kind", |spec| spec.as_str());
    let public_key = PublicKey::from_spki(spki.as_ref())
        .map_err(|error| refuse(format!("{arn} ({spec}) cannot be used: {error}")))?;
    if kind.is_alias() {
        check_alias(open, arn, &public_key)?;
    }
    let (needed, purpose) = match (open.algorithms, open.sign_algorithms) {
        ([_, ..], _) => (KeyUsageType::EncryptDecrypt, "unwraps"),
        (_, [_, ..]) => (KeyUsageType::SignVerify, "signs"),
        _ => return Ok((arn.to_owned(), public_key)),
    };
    let usage = found.key_usage().ok_or_else(|| internal("kms:GetPublicKey gave no key usage"))?;
    if *usage != needed {
        return Err(refuse(format!(
            "{arn} was made for {usage}, and a key that {purpose} needs {needed}; that cannot be \
             changed: make another key"
        )));
    }
    Ok((arn.to_owned(), public_key))
}

/// Whether an alias still points to the pinned key. The daemon would find out too, and could not say
/// where the alias points now.
fn check_alias(open: &OpenKey<'_>, arn: &str, public_key: &PublicKey) -> Result<(), Error> {
    let (found, locator) = (public_key.sha256(), open.locator);
    match open.public_key_sha256 {
        Some(pinned) if pinned != found => {
            let reason = format!(
                "{locator} points to {arn} now; if that was not intended, write the pinned \
                 key's own ARN as the locator; if it is meant, write this one as the locator of a \
                 new version"
            );
            Err(Error::new(ErrorKind::OperatorNeeded, AnotherKey { found, pinned, reason }))
        }
        _ => Ok(()),
    }
}

fn encryption_algorithm(algorithm: Algorithm) -> Option<EncryptionAlgorithmSpec> {
    match algorithm {
        Algorithm::RsaOaep => Some(EncryptionAlgorithmSpec::RsaesOaepSha1),
        Algorithm::RsaOaep256 => Some(EncryptionAlgorithmSpec::RsaesOaepSha256),
        Algorithm::RsaOaep384 | Algorithm::RsaOaep512 | Algorithm::Rsa15 => None,
    }
}

fn signing_algorithm(algorithm: SignAlgorithm) -> SigningAlgorithmSpec {
    match algorithm {
        SignAlgorithm::Rs256 => SigningAlgorithmSpec::RsassaPkcs1V15Sha256,
        SignAlgorithm::Rs384 => SigningAlgorithmSpec::RsassaPkcs1V15Sha384,
        SignAlgorithm::Rs512 => SigningAlgorithmSpec::RsassaPkcs1V15Sha512,
        SignAlgorithm::Ps256 => SigningAlgorithmSpec::RsassaPssSha256,
        SignAlgorithm::Ps384 => SigningAlgorithmSpec::RsassaPssSha384,
        SignAlgorithm::Ps512 => SigningAlgorithmSpec::RsassaPssSha512,
    }
}

fn broken_promise<T: Into<String>>(text: T) -> Error {
    Error::new(ErrorKind::Internal, text.into()).with_cause(Cause::WrongAnswer)
}

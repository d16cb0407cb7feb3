//! An opened key: its ARN, its public half, and what its canaries proved.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use aws_sdk_kms::Client;
use aws_sdk_kms::operation::RequestId;
use aws_sdk_kms::operation::get_public_key::GetPublicKeyOutput;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{
    EncryptionAlgorithmSpec, KeyUsageType, MessageType, SigningAlgorithmSpec,
};
use claviger_provider_api::{
    Algorithm, Algorithms, AnotherKey, Call, Canary, Digest, Error, ErrorKind, KeyMaterial,
    OpenKey, Parameters, PublicKey, SignAlgorithm, SignAlgorithms, Signature, Unwrapped,
    WrappingKey,
};
use zeroize::Zeroizing;

use crate::client::Backend;
use crate::error::Failure;
use crate::locator::{Locator, is_key_arn};

/// A key in KMS, always called by its ARN: an alias that is pointed elsewhere changes nothing here.
pub(crate) struct KmsKey {
    backend: Arc<Backend>,
    arn: String,
    public_key: PublicKey,
    canary: Canary,
    algorithms: Algorithms,
    sign_algorithms: SignAlgorithms,
}

impl KmsKey {
    /// Takes a key into service once every listed algorithm gave its canary back. `kind` is of the
    /// locator.
    pub(crate) async fn open(
        backend: Arc<Backend>,
        open: &OpenKey<'_>,
        kind: Locator,
    ) -> Result<Self, Error> {
        check_algorithms(open)?;
        let found = backend
            .call_renewing(|client| async move { describe(&client, open.locator).await })
            .await?;
        let id = found.request_id().map(str::to_owned);
        let (arn, public_key) =
            judge(&found, open, kind).map_err(|error| error.with_backend_request_id(id))?;
        let key = Self {
            canary: Canary::new(&public_key, open)?,
            backend,
            arn,
            public_key,
            algorithms: open.algorithms.iter().copied().collect(),
            sign_algorithms: open.sign_algorithms.iter().copied().collect(),
        };
        for (algorithm, wrapped) in key.canary.wrapped() {
            key.prove_unwrap(algorithm, wrapped)
                .await
                .map_err(|error| cannot_work(algorithm, error))?;
        }
        for algorithm in key.canary.sign_algorithms() {
            key.prove_sign(algorithm).await.map_err(|error| cannot_work(algorithm, error))?;
        }
        Ok(key)
    }

    pub(crate) fn arn(&self) -> &str {
        &self.arn
    }

    async fn prove_unwrap(&self, algorithm: Algorithm, wrapped: &[u8]) -> Result<(), Error> {
        let unwrap = |client| async move { self.decrypt(&client, wrapped, algorithm).await };
        let unwrapped = self.backend.call_renewing(unwrap).await?;
        let id = unwrapped.backend_request_id;
        let accepted = self.canary.accept(&unwrapped.material);
        accepted.map_err(|error| error.with_backend_request_id(id))
    }

    async fn prove_sign(&self, algorithm: SignAlgorithm) -> Result<(), Error> {
        let digest = &self.canary.digest(algorithm);
        let sign = |client| async move { self.signature(&client, digest, algorithm).await };
        self.backend.call_renewing(sign).await.map(|_| ())
    }

    async fn decrypt(
        &self,
        client: &Client,
        wrapped: &[u8],
        algorithm: Algorithm,
    ) -> Result<Unwrapped, Failure> {
        let output = client
            .decrypt()
            .key_id(&self.arn)
            .encryption_algorithm(
                encryption_algorithm(algorithm)
                    .ok_or_else(|| Failure::of(not_opened(algorithm)))?,
            )
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
        Err(broken_promise(broken, backend_request_id))
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
        let id = output.request_id().map(str::to_owned);
        let signature = output.signature.map(Blob::into_inner).unwrap_or_default();
        if !self.public_key.verify(digest, algorithm, &signature) {
            let text = format!("kms:Sign gave a {algorithm} signature that does not verify");
            return Err(broken_promise(text, id));
        }
        Ok(Signature { bytes: signature, backend_request_id: id })
    }
}

#[async_trait]
impl WrappingKey for KmsKey {
    fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    fn algorithms(&self) -> Algorithms {
        self.algorithms
    }

    /// None: KMS has no parameter for an OAEP label.
    fn label_algorithms(&self) -> Algorithms {
        Algorithms::EMPTY
    }

    fn sign_algorithms(&self) -> SignAlgorithms {
        self.sign_algorithms
    }

    /// KMS has a code for values alone, InvalidCiphertextException, and other codes for everything
    /// that is wrong with the key, the credentials or the service.
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
            let text = "KMS has no OAEP labels; wrap without one, or use another backend";
            return Err(Error::new(ErrorKind::OperatorNeeded, text));
        }
        if !self.public_key.value_in_range(wrapped) {
            let text = "the value is no result of wrapping under this key";
            return Err(Error::new(ErrorKind::UnwrapFailed, text));
        }
        let client = self.backend.client();
        within(call, self.decrypt(&client, wrapped, algorithm)).await
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
        let client = self.backend.client();
        within(call, self.signature(&client, digest, algorithm)).await
    }

    async fn check(&self) -> Result<(), Error> {
        if let Some((algorithm, wrapped)) = self.canary.wrapped().next() {
            return self.prove_unwrap(algorithm, wrapped).await;
        }
        match self.canary.sign_algorithms().next() {
            Some(algorithm) => self.prove_sign(algorithm).await,
            None => Ok(()),
        }
    }
}

impl fmt::Debug for KmsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KmsKey({}, {:?})", self.arn, self.public_key)
    }
}

/// Asks until the caller's deadline. A request that was sent before it cannot be taken back; its
/// answer is dropped with its connection.
async fn within<T>(
    call: Call,
    asking: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Error> {
    let late = |text| Error::new(ErrorKind::DeadlineExceeded, text);
    if Instant::now() >= call.deadline {
        return Err(late("the deadline passed before KMS was asked"));
    }
    match tokio::time::timeout_at(call.deadline.into(), asking).await {
        Ok(outcome) => outcome.map_err(Failure::into_error),
        Err(_) => Err(late("the deadline passed before KMS answered")),
    }
}

async fn describe(client: &Client, locator: &str) -> Result<GetPublicKeyOutput, Failure> {
    let asked = client.get_public_key().key_id(locator).send().await;
    asked.map_err(|error| Failure::of_call("GetPublicKey", &error))
}

/// What KMS can never do, said before it is asked.
fn check_algorithms(open: &OpenKey<'_>) -> Result<(), Error> {
    let refuse = |text: String| Err(Error::new(ErrorKind::OperatorNeeded, text));
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
fn judge(
    found: &GetPublicKeyOutput,
    open: &OpenKey<'_>,
    kind: Locator,
) -> Result<(String, PublicKey), Error> {
    let refuse = |text: String| Error::new(ErrorKind::OperatorNeeded, text);
    let internal = |text: &str| Error::new(ErrorKind::Internal, text.to_owned());
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
                "{locator} points to {arn} now; if nobody meant that, write the pinned \
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

fn not_opened(algorithm: impl fmt::Display) -> Error {
    let text = format!("{algorithm} was not listed when the key was opened");
    Error::new(ErrorKind::Internal, text)
}

fn broken_promise(text: String, backend_request_id: Option<String>) -> Failure {
    let error = Error::new(ErrorKind::Internal, text);
    Failure::of(error.with_backend_request_id(backend_request_id))
}

/// A canary that failed on its value says that the algorithm does not work; what failed before it
/// says nothing, and may work the next time.
fn cannot_work(algorithm: impl fmt::Display, error: Error) -> Error {
    match error.kind() {
        ErrorKind::UnwrapFailed | ErrorKind::Internal => {
            let id = error.backend_request_id().map(str::to_owned);
            let text =
                format!("{algorithm} does not work with this key ({error}); take it off the list");
            Error::new(ErrorKind::OperatorNeeded, text).with_backend_request_id(id)
        }
        ErrorKind::Unavailable
        | ErrorKind::Throttled { .. }
        | ErrorKind::DeadlineExceeded
        | ErrorKind::OperatorNeeded => error,
    }
}

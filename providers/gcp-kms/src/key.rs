//! An opened key: KMS does the private-key work, one request each, with checksums both ways.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use claviger_provider_api::{
    Algorithm, Algorithms, Call, CallerSlot, Canary, Digest, Error, ErrorKind, Hash, KeyMaterial,
    OpenKey, Parameters, PublicKey, SignAlgorithm, SignAlgorithms, Signature, Unwrapped,
    WrappingKey,
};
use serde::Deserialize;
use serde_json::json;
use zeroize::Zeroizing;

use crate::client::{Answer, Request};
use crate::description::{self, Crc32c};
use crate::error::{Failure, Operation};
use crate::locator::Locator;
use crate::session::Session;

/// How long opening or checking a key may wait for one answer.
const CHECK_LIMIT: Duration = Duration::from_secs(10);

/// One crypto key version.
pub(crate) struct KmsKey {
    session: Arc<Session>,
    locator: Locator,
    /// Where the version is, without a verb.
    url: String,
    public_key: PublicKey,
    canary: Canary,
    algorithms: Algorithms,
    sign_algorithms: SignAlgorithms,
}

/// `AsymmetricDecryptResponse`. What is empty or false is left out by KMS.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct UnwrapAnswer<'a> {
    #[serde(borrow, default)]
    plaintext: Cow<'a, str>,
    plaintext_crc32c: Crc32c,
    #[serde(default)]
    verified_ciphertext_crc32c: bool,
}

/// `AsymmetricSignResponse`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SignAnswer {
    name: String,
    #[serde(default)]
    signature: String,
    signature_crc32c: Crc32c,
    #[serde(default)]
    verified_digest_crc32c: bool,
}

impl KmsKey {
    /// Reads the version, and takes it into service once every listed algorithm gave its canary back.
    pub(crate) async fn open(
        session: Arc<Session>,
        locator: Locator,
        open: &OpenKey<'_>,
    ) -> Result<Self, Error> {
        let url = format!("{}/v1/{locator}", session.origin()?);
        let version = described(&session, &locator, &url).await?;
        description::check(&version, &locator, open)?;
        let key = Self {
            canary: Canary::new(&version.public_key, open)?,
            public_key: version.public_key,
            session,
            locator,
            url,
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
        tracing::info!(
            provider = key.session.provider(),
            locator = %key.locator,
            protection_level = version.protection_level,
            algorithm = version.algorithm,
            key = ?key.public_key,
            "opened"
        );
        Ok(key)
    }

    async fn prove_unwrap(&self, algorithm: Algorithm, wrapped: &[u8]) -> Result<(), Error> {
        let unwrapped = self.unwrap_key(wrapped, &Parameters::of(algorithm), daemon_call()).await?;
        let id = unwrapped.backend_request_id;
        let accepted = self.canary.accept(&unwrapped.material);
        accepted.map_err(|error| error.with_backend_request_id(id))
    }

    async fn prove_sign(&self, algorithm: SignAlgorithm) -> Result<(), Error> {
        let signature = self.sign(&self.canary.digest(algorithm), algorithm, daemon_call()).await?;
        self.canary.accept_signature(&self.public_key, algorithm, &signature)
    }

    async fn prove(&self) -> Result<(), Error> {
        if let Some((algorithm, wrapped)) = self.canary.wrapped().next() {
            return self.prove_unwrap(algorithm, wrapped).await;
        }
        match self.canary.sign_algorithms().next() {
            Some(algorithm) => self.prove_sign(algorithm).await,
            None => Ok(()),
        }
    }

    /// A canary that does not unwrap: says whether the key is another one now, which KMS rules out.
    async fn lost_canary(&self, error: Error) -> Error {
        match described(&self.session, &self.locator, &self.url).await {
            Ok(version) if version.public_key.sha256() != self.public_key.sha256() => {
                let (found, opened) = (&version.public_key, &self.public_key);
                let locator = &self.locator;
                let reason = format!(
                    "{locator}: KMS has another key there now, {found:?}; it was {opened:?}"
                );
                Error::new(ErrorKind::OperatorNeeded, reason)
            }
            Ok(_) => {
                let id = error.backend_request_id().map(str::to_owned);
                let reason = format!("{}: the canary does not unwrap ({error})", self.locator);
                Error::new(ErrorKind::Unavailable, reason).with_backend_request_id(id)
            }
            Err(error) => error,
        }
    }

    /// What KMS refused of a canary says that the algorithm does not work; what failed before that says
    /// nothing and may work the next time.
    fn cannot_work(&self, algorithm: impl fmt::Display, error: Error) -> Error {
        match error.kind() {
            ErrorKind::UnwrapFailed | ErrorKind::Internal => {
                let id = error.backend_request_id().map(str::to_owned);
                let reason =
                    format!("{}: {algorithm} does not work with this key: {error}", self.locator);
                Error::new(ErrorKind::OperatorNeeded, reason).with_backend_request_id(id)
            }
            ErrorKind::DeadlineExceeded => Error::new(ErrorKind::Unavailable, error),
            ErrorKind::OperatorNeeded | ErrorKind::Unavailable | ErrorKind::Throttled { .. } => {
                error
            }
        }
    }

    /// Reads an answer; nothing of one whose checksums do not fit is used.
    fn unwrapped(answer: &Answer) -> Result<KeyMaterial, Failure> {
        let body: UnwrapAnswer<'_> = answer.json()?;
        if !body.verified_ciphertext_crc32c {
            return Err(broken(answer, "asymmetricDecrypt did not check the value's checksum"));
        }
        let plaintext = decoded(&body.plaintext)
            .ok_or_else(|| broken(answer, "asymmetricDecrypt gave what is no base64"))?;
        if !body.plaintext_crc32c.fits(&plaintext) {
            let what = "asymmetricDecrypt gave a plaintext with a checksum that does not fit";
            return Err(broken(answer, what));
        }
        Ok(KeyMaterial::new(plaintext))
    }

    fn signature(
        &self,
        answer: &Answer,
        digest: &Digest,
        algorithm: SignAlgorithm,
    ) -> Result<Signature, Failure> {
        let body: SignAnswer = answer.json()?;
        if body.name != self.locator.as_str() {
            return Err(broken(answer, "asymmetricSign answered for another version"));
        }
        if !body.verified_digest_crc32c {
            return Err(broken(answer, "asymmetricSign did not check the digest's checksum"));
        }
        let signature = STANDARD
            .decode(&body.signature)
            .ok()
            .filter(|signature| body.signature_crc32c.fits(signature))
            .ok_or_else(|| {
                broken(answer, "asymmetricSign gave a signature with a checksum that does not fit")
            })?;
        if !self.public_key.verify(digest, algorithm, &signature) {
            return Err(broken(answer, "asymmetricSign gave a signature that does not verify"));
        }
        Ok(Signature { bytes: signature, backend_request_id: Some(answer.request_id.clone()) })
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

    /// INVALID_ARGUMENT is said of a bad ciphertext and of one that did not arrive as it was sent.
    fn failure_needs_check(&self) -> bool {
        true
    }

    /// KMS has no call that gives a private key away, not of a key that was imported either.
    fn extractable(&self) -> Option<bool> {
        Some(false)
    }

    fn repairs(&self) -> u64 {
        self.session.repairs()
    }

    async fn unwrap_key(
        &self,
        wrapped: &[u8],
        parameters: &Parameters<'_>,
        call: Call,
    ) -> Result<Unwrapped, Error> {
        let Parameters { algorithm, label } = *parameters;
        if !self.algorithms.contains(algorithm) {
            return Err(not_listed(algorithm));
        }
        if !label.is_empty() {
            let reason = "Cloud KMS has no OAEP labels; wrap without one, or use another backend";
            return Err(Error::new(ErrorKind::OperatorNeeded, reason));
        }
        if !self.public_key.value_in_range(wrapped) {
            let reason = "the value is not as long as the modulus, or not below it";
            return Err(Error::new(ErrorKind::UnwrapFailed, reason));
        }
        let request = || {
            let body = json!({
                "ciphertext": STANDARD.encode(wrapped),
                "ciphertextCrc32c": crc32c::crc32c(wrapped).to_string(),
            });
            Request::post(Operation::Unwrap, format!("{}:asymmetricDecrypt", self.url), &body)
        };
        let answer = self.session.send(request, call.deadline).await?;
        let material = Self::unwrapped(&answer)?;
        Ok(Unwrapped { material, backend_request_id: Some(answer.request_id) })
    }

    async fn sign(
        &self,
        digest: &Digest,
        algorithm: SignAlgorithm,
        call: Call,
    ) -> Result<Signature, Error> {
        if !self.sign_algorithms.contains(algorithm) {
            return Err(not_listed(algorithm));
        }
        if digest.hash() != algorithm.hash() {
            let reason = format!("a {:?} digest for {algorithm}", digest.hash());
            return Err(Error::new(ErrorKind::Internal, reason));
        }
        let request = || {
            let bytes = digest.as_bytes();
            let body = json!({
                "digest": { hash_name(digest.hash()): STANDARD.encode(bytes) },
                "digestCrc32c": crc32c::crc32c(bytes).to_string(),
            });
            Request::post(Operation::Sign, format!("{}:asymmetricSign", self.url), &body)
        };
        let answer = self.session.send(request, call.deadline).await?;
        Ok(self.signature(&answer, digest, algorithm)?)
    }

    async fn check(&self) -> Result<(), Error> {
        let had_a_token = self.session.has_a_token();
        let mut outcome = self.prove().await;
        if outcome.is_err() && had_a_token && !self.session.has_a_token() {
            outcome = self.prove().await;
        }
        match outcome {
            Err(error) if error.kind() == ErrorKind::UnwrapFailed => {
                Err(self.lost_canary(error).await)
            }
            // It was the daemon's own deadline, not a caller's.
            Err(error) if error.kind() == ErrorKind::DeadlineExceeded => {
                Err(Error::new(ErrorKind::Unavailable, error))
            }
            outcome => outcome,
        }
    }
}

impl fmt::Debug for KmsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KmsKey({}, {:?})", self.locator, self.public_key)
    }
}

async fn described(
    session: &Session,
    locator: &Locator,
    url: &str,
) -> Result<description::Version, Error> {
    let deadline = Instant::now() + CHECK_LIMIT;
    let request = || Request::get(Operation::ReadKey, format!("{url}/publicKey"));
    let answer = session.send(request, deadline).await.map_err(|error| {
        let id = error.backend_request_id().map(str::to_owned);
        // It was the daemon's own deadline, not a caller's.
        let kind = match error.kind() {
            ErrorKind::DeadlineExceeded => ErrorKind::Unavailable,
            kind => kind,
        };
        Error::new(kind, format!("{locator} cannot be read: {error}")).with_backend_request_id(id)
    })?;
    description::read(&answer, locator)
}

/// Decodes into a buffer that zeroes itself.
fn decoded(plaintext: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(vec![0; base64::decoded_len_estimate(plaintext.len())]);
    let len = STANDARD.decode_slice(plaintext, &mut bytes).ok()?;
    bytes.truncate(len);
    Some(bytes)
}

/// The field of the interface's `Digest`.
fn hash_name(hash: Hash) -> &'static str {
    match hash {
        Hash::Sha1 => "sha1",
        Hash::Sha256 => "sha256",
        Hash::Sha384 => "sha384",
        Hash::Sha512 => "sha512",
    }
}

fn broken(answer: &Answer, what: &str) -> Failure {
    Failure::BrokenPromise { what: what.to_owned(), request_id: answer.request_id.clone() }
}

fn daemon_call() -> Call {
    Call { caller: CallerSlot::DAEMON, deadline: Instant::now() + CHECK_LIMIT }
}

fn not_listed(algorithm: impl fmt::Display) -> Error {
    let reason = format!("{algorithm} was not listed when the key was opened");
    Error::new(ErrorKind::Internal, reason)
}

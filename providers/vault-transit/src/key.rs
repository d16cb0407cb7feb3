//! An opened key: Transit does the private-key work, one request each.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use claviger_provider_api::{
    Algorithm, Algorithms, BatchItem, Call, CallerSlot, Canary, Digest, Error, ErrorKind, Hash,
    KeyMaterial, OpenKey, Parameters, PublicKey, SignAlgorithm, SignAlgorithms, Signature,
    Unwrapped, WrappingKey,
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::auth::Session;
use crate::batch;
use crate::client::Request;
use crate::description;
use crate::error::{Failure, Operation};
use crate::locator::Locator;

/// How long opening or checking a key may wait for one answer.
const CHECK_LIMIT: Duration = Duration::from_secs(10);

/// One version of a Transit key.
pub(crate) struct TransitKey {
    session: Arc<Session>,
    locator: Locator,
    public_key: PublicKey,
    exportable: bool,
    canary: Canary,
    algorithms: Algorithms,
    sign_algorithms: SignAlgorithms,
}

/// One value for the server.
#[derive(Serialize)]
pub(crate) struct UnwrapRequest {
    ciphertext: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    padding_scheme: Option<&'static str>,
}

#[derive(Deserialize)]
struct UnwrapAnswer<'a> {
    request_id: Option<String>,
    #[serde(borrow)]
    data: UnwrapData<'a>,
}

#[derive(Deserialize)]
struct UnwrapData<'a> {
    #[serde(borrow)]
    plaintext: Cow<'a, str>,
}

#[derive(Serialize)]
struct SignRequest {
    input: String,
    prehashed: bool,
    key_version: u32,
    signature_algorithm: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    salt_length: Option<&'static str>,
}

#[derive(Deserialize)]
struct SignAnswer {
    request_id: Option<String>,
    data: SignData,
}

#[derive(Deserialize)]
struct SignData {
    signature: String,
}

impl TransitKey {
    /// Looks the version up, and takes it into service once every listed algorithm gave its canary
    /// back.
    pub(crate) async fn open(
        session: Arc<Session>,
        locator: Locator,
        open: &OpenKey<'_>,
    ) -> Result<Self, Error> {
        for &algorithm in open.algorithms {
            if !matches!(algorithm, Algorithm::RsaOaep256 | Algorithm::Rsa15) {
                let reason = format!(
                    "{locator}: Transit does OAEP with SHA-256 only, so {algorithm} cannot work; \
                     take it off the key's list, or keep the key in another backend"
                );
                return Err(Error::new(ErrorKind::OperatorNeeded, reason));
            }
        }
        let version = described(&session, &locator).await?;
        if version.exportable {
            tracing::warn!(
                provider = session.provider(),
                %locator,
                "THE SERVER WOULD HAND THIS KEY OUT: it was made exportable or open to plaintext \
                 backups, which cannot be undone; keep export/ and backup/ out of every policy"
            );
        }
        let key = Self {
            canary: Canary::new(&version.public_key, open)?,
            public_key: version.public_key,
            exportable: version.exportable,
            session,
            locator,
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

    /// The request for one value, if it is one that the server should see.
    fn checked(&self, wrapped: &[u8], parameters: &Parameters<'_>) -> Result<UnwrapRequest, Error> {
        let Parameters { algorithm, label } = *parameters;
        if !self.algorithms.contains(algorithm) {
            return Err(not_listed(algorithm));
        }
        if !label.is_empty() {
            return Err(Error::new(ErrorKind::OperatorNeeded, "Transit's OAEP takes no label"));
        }
        if !self.public_key.value_in_range(wrapped) {
            let reason = "wrapped is not as long as the modulus, or not below it";
            return Err(Error::new(ErrorKind::UnwrapFailed, reason));
        }
        Ok(UnwrapRequest {
            ciphertext: format!("vault:v{}:{}", self.locator.version, STANDARD.encode(wrapped)),
            padding_scheme: algorithm.hash().is_none().then_some("pkcs1v15"),
        })
    }

    fn decrypt_path(&self) -> String {
        format!("{}/decrypt/{}", self.locator.mount, self.locator.key)
    }

    async fn prove_unwrap(&self, algorithm: Algorithm, wrapped: &[u8]) -> Result<(), Error> {
        let parameters = Parameters::of(algorithm);
        let unwrapped = self.unwrap_key(wrapped, &parameters, daemon_call()).await?;
        self.canary.accept(&unwrapped.material)
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

    /// A canary that does not unwrap: says whether the key is another one now.
    async fn lost_canary(&self, error: Error) -> Error {
        match described(&self.session, &self.locator).await {
            Ok(version) if version.public_key.sha256() != self.public_key.sha256() => {
                let (found, opened) = (&version.public_key, &self.public_key);
                let reason = format!(
                    "{}: the server has another key there now, {found:?}; it was {opened:?}",
                    self.locator
                );
                Error::new(ErrorKind::OperatorNeeded, reason)
            }
            Ok(_) => {
                let reason = format!("{}: the canary does not unwrap ({error})", self.locator);
                Error::new(ErrorKind::Unavailable, reason)
            }
            Err(error) => error,
        }
    }

    /// What the server refused of a canary says that the algorithm does not work; what failed before
    /// that says nothing and may work the next time.
    fn cannot_work(&self, algorithm: impl fmt::Display, error: Error) -> Error {
        let hint = if algorithm.to_string() == Algorithm::Rsa15.name() {
            " (OpenBao, and Vault before 1.19, ignore `padding_scheme`)"
        } else {
            ""
        };
        match error.kind() {
            ErrorKind::UnwrapFailed | ErrorKind::Internal => {
                let reason = format!(
                    "{}: {algorithm} does not work with this key{hint}: {error}; take it off the list",
                    self.locator
                );
                Error::new(ErrorKind::OperatorNeeded, reason)
            }
            ErrorKind::DeadlineExceeded => Error::new(ErrorKind::Unavailable, error),
            ErrorKind::OperatorNeeded | ErrorKind::Unavailable | ErrorKind::Throttled { .. } => {
                error
            }
        }
    }
}

#[async_trait]
impl WrappingKey for TransitKey {
    fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    fn algorithms(&self) -> Algorithms {
        self.algorithms
    }

    /// Transit has no parameter for a label of OAEP.
    fn label_algorithms(&self) -> Algorithms {
        Algorithms::EMPTY
    }

    fn sign_algorithms(&self) -> SignAlgorithms {
        self.sign_algorithms
    }

    /// A bad ciphertext is HTTP 500, as is a server that fails.
    fn failure_needs_check(&self) -> bool {
        true
    }

    fn extractable(&self) -> Option<bool> {
        Some(self.exportable)
    }

    fn repairs(&self) -> u64 {
        self.session.repairs()
    }

    fn batch_limit(&self) -> usize {
        batch::LIMIT
    }

    async fn unwrap_batch(
        &self,
        items: &[BatchItem<'_>],
        call: Call,
    ) -> Vec<Result<Unwrapped, Error>> {
        if let [BatchItem { wrapped, parameters }] = items {
            return vec![self.unwrap_key(wrapped, parameters, call).await];
        }
        let mut good = Vec::with_capacity(items.len());
        let checked: Vec<Result<(), Error>> = items
            .iter()
            .map(|item| {
                self.checked(item.wrapped, &item.parameters).map(|request| good.push(request))
            })
            .collect();
        let sent = batch::send(&self.session, self.decrypt_path(), good, call.deadline).await;
        let mut sent = sent.into_iter();
        let result = |checked: Result<(), Error>| {
            checked.and_then(|()| sent.next().expect("one result for each value that was sent"))
        };
        checked.into_iter().map(result).collect()
    }

    async fn unwrap_key(
        &self,
        wrapped: &[u8],
        parameters: &Parameters<'_>,
        call: Call,
    ) -> Result<Unwrapped, Error> {
        let body = self.checked(wrapped, parameters)?;
        let request = Request::post(Operation::Unwrap, self.decrypt_path(), &body);
        let answer = self.session.send(&request, call.deadline).await?;
        let UnwrapAnswer { request_id, data } = answer.json()?;
        let material = decoded(&data.plaintext)
            .map_err(|error| Error::from(error).with_backend_request_id(request_id.clone()))?;
        Ok(Unwrapped { material, backend_request_id: request_id })
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
        let Locator { mount, key, version } = &self.locator;
        let body = SignRequest {
            input: STANDARD.encode(digest.as_bytes()),
            prehashed: true,
            key_version: *version,
            signature_algorithm: if algorithm.is_pss() { "pss" } else { "pkcs1v15" },
            salt_length: algorithm.is_pss().then_some("hash"),
        };
        let path = format!("{mount}/sign/{key}/{}", hash_name(algorithm.hash()));
        let request = Request::post(Operation::Sign, path, &body);
        let answer = self.session.send(&request, call.deadline).await?;
        let SignAnswer { request_id, data } = answer.json()?;
        let signature = data
            .signature
            .strip_prefix(&format!("vault:v{version}:"))
            .and_then(|signature| STANDARD.decode(signature).ok())
            .filter(|signature| self.public_key.verify(digest, algorithm, signature));
        let Some(bytes) = signature else {
            let reason = format!("the server's {algorithm} signature does not verify");
            return Err(Error::new(ErrorKind::Internal, reason).with_backend_request_id(request_id));
        };
        Ok(Signature { bytes, backend_request_id: request_id })
    }

    async fn check(&self) -> Result<(), Error> {
        let repairs = self.repairs();
        let mut outcome = self.prove().await;
        let lost = |error: &Error| error.kind() == ErrorKind::Unavailable;
        if outcome.as_ref().is_err_and(lost) && self.repairs() != repairs {
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

impl fmt::Debug for TransitKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TransitKey({}, {:?})", self.locator, self.public_key)
    }
}

async fn described(
    session: &Arc<Session>,
    locator: &Locator,
) -> Result<description::Version, Error> {
    let deadline = Instant::now() + CHECK_LIMIT;
    let answer = session.send(&description::request(locator), deadline).await.map_err(|error| {
        let id = error.backend_request_id().map(str::to_owned);
        let reason = format!("{locator} cannot be read: {error}");
        Error::new(error.kind(), reason).with_backend_request_id(id)
    })?;
    description::read(&answer, locator)
}

/// Decodes into a buffer that zeroes itself.
pub(crate) fn decoded(plaintext: &str) -> Result<KeyMaterial, Failure> {
    let mut bytes = Zeroizing::new(vec![0; base64::decoded_len_estimate(plaintext.len())]);
    let len = STANDARD
        .decode_slice(plaintext, &mut bytes)
        .map_err(|_| Failure::Malformed("a plaintext that is no base64".into()))?;
    bytes.truncate(len);
    Ok(KeyMaterial::new(bytes))
}

fn hash_name(hash: Hash) -> &'static str {
    match hash {
        Hash::Sha1 => "sha1",
        Hash::Sha256 => "sha2-256",
        Hash::Sha384 => "sha2-384",
        Hash::Sha512 => "sha2-512",
    }
}

fn daemon_call() -> Call {
    Call { caller: CallerSlot::DAEMON, deadline: Instant::now() + CHECK_LIMIT }
}

fn not_listed(algorithm: impl fmt::Display) -> Error {
    let reason = format!("{algorithm} was not listed when the key was opened");
    Error::new(ErrorKind::Internal, reason)
}

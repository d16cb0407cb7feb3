//! An opened key: aws-lc does the private-key work, on the provider's threads.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use aws_lc_rs::digest;
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{OaepPrivateDecryptingKey, Pkcs1PrivateDecryptingKey, PrivateDecryptingKey};
use aws_lc_rs::signature::{
    RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384,
    RSA_PSS_SHA512, RsaEncoding, RsaKeyPair,
};
use claviger_provider_api::public_key::{aws_lc_digest, oaep};
use claviger_provider_api::{
    Algorithm, Algorithms, Call, CallerSlot, Canary, Digest, Error, ErrorKind, KeyMaterial,
    OpenKey, Parameters, PublicKey, SignAlgorithm, SignAlgorithms, Signature, Unwrapped,
    WrappingKey,
};
use pkcs8::PrivateKeyInfoRef;
use pkcs8::der::asn1::{AnyRef, UintRef};
use pkcs8::der::{Decode, SliceReader};
use zeroize::Zeroizing;

use crate::error::{FileError, unwrap_failed};
use crate::workers::Workers;

/// How long a canary may wait for a thread.
const CHECK_LIMIT: Duration = Duration::from_secs(10);

/// A key from a file.
pub(crate) struct SoftwareKey {
    private: Arc<Private>,
    workers: Arc<Workers>,
    canary: Canary,
    algorithms: Algorithms,
    sign_algorithms: SignAlgorithms,
}

impl SoftwareKey {
    /// Takes a key into service once every listed algorithm gave its canary back.
    pub(crate) async fn open(
        private: Private,
        open: &OpenKey<'_>,
        workers: Arc<Workers>,
    ) -> Result<Self, Error> {
        let key = Self {
            canary: Canary::new(&private.public_key, open)?,
            private: Arc::new(private),
            workers,
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

    async fn prove_unwrap(&self, algorithm: Algorithm, wrapped: &[u8]) -> Result<(), Error> {
        let parameters = Parameters::of(algorithm);
        let unwrapped = self.unwrap_key(wrapped, &parameters, daemon_call()).await?;
        self.canary.accept(&unwrapped.material)
    }

    async fn prove_sign(&self, algorithm: SignAlgorithm) -> Result<(), Error> {
        let signature = self.sign(&self.canary.digest(algorithm), algorithm, daemon_call()).await?;
        self.canary.accept_signature(self.public_key(), algorithm, &signature)
    }
}

#[async_trait]
impl WrappingKey for SoftwareKey {
    fn public_key(&self) -> &PublicKey {
        &self.private.public_key
    }

    fn algorithms(&self) -> Algorithms {
        self.algorithms
    }

    fn label_algorithms(&self) -> Algorithms {
        self.algorithms.iter().filter(|algorithm| algorithm.hash().is_some()).collect()
    }

    fn sign_algorithms(&self) -> SignAlgorithms {
        self.sign_algorithms
    }

    /// aws-lc fails on the value alone.
    fn failure_needs_check(&self) -> bool {
        false
    }

    /// It is a file.
    fn extractable(&self) -> Option<bool> {
        Some(true)
    }

    fn repairs(&self) -> u64 {
        0
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
        let private = self.private.clone();
        let (wrapped, label) = (wrapped.to_vec(), label.to_vec());
        let material =
            self.workers.run(call, move || private.unwrap(&wrapped, algorithm, &label)).await?;
        Ok(Unwrapped { material, backend_request_id: None })
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
        let (private, digest) = (self.private.clone(), *digest);
        self.workers.run(call, move || private.sign(&digest, algorithm)).await
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

impl fmt::Debug for SoftwareKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SoftwareKey({:?})", self.public_key())
    }
}

/// The private half, ready for each padding.
pub(crate) struct Private {
    public_key: PublicKey,
    oaep: OaepPrivateDecryptingKey,
    pkcs1: Pkcs1PrivateDecryptingKey,
    signing: RsaKeyPair,
}

impl Private {
    /// Takes PKCS#8, DER.
    pub(crate) fn new(pkcs8: &[u8]) -> Result<Self, FileError> {
        let refused = |reason: &dyn ToString| FileError::Refused(reason.to_string());
        let key = PrivateDecryptingKey::from_pkcs8(pkcs8).map_err(|error| {
            // aws-lc does not say why.
            unsupported(pkcs8).unwrap_or_else(|| refused(&error))
        })?;
        let spki = key.public_key().as_der().map_err(|error| refused(&error))?;
        Ok(Self {
            public_key: PublicKey::from_spki(spki.as_ref()).map_err(|error| refused(&error))?,
            oaep: OaepPrivateDecryptingKey::new(key.clone()).map_err(|error| refused(&error))?,
            pkcs1: Pkcs1PrivateDecryptingKey::new(key).map_err(|error| refused(&error))?,
            signing: RsaKeyPair::from_pkcs8(pkcs8).map_err(|error| refused(&error))?,
        })
    }

    fn unwrap(
        &self,
        wrapped: &[u8],
        algorithm: Algorithm,
        label: &[u8],
    ) -> Result<KeyMaterial, Error> {
        if !self.public_key.value_in_range(wrapped) {
            return Err(unwrap_failed());
        }
        let mut buffer = Zeroizing::new([0; MAX_MODULUS]);
        let material = match oaep(algorithm) {
            Some(oaep) => self.oaep.decrypt(oaep, wrapped, &mut buffer[..], Some(label)),
            None => self.pkcs1.decrypt(wrapped, &mut buffer[..]),
        };
        material.map(|material| KeyMaterial::copied_from(material)).map_err(|_| unwrap_failed())
    }

    fn sign(&self, digest: &Digest, algorithm: SignAlgorithm) -> Result<Signature, Error> {
        let failed = |_| {
            let hash = digest.hash();
            let reason = format!("aws-lc refused a {hash:?} digest under {algorithm}");
            Error::new(ErrorKind::Internal, reason)
        };
        let hash = aws_lc_digest(digest.hash());
        let digest = digest::Digest::import_less_safe(digest.as_bytes(), hash).map_err(failed)?;
        let mut signature = vec![0; self.public_key.modulus_len()];
        self.signing.sign_digest(encoding(algorithm), &digest, &mut signature).map_err(failed)?;
        Ok(Signature::without_request_id(signature))
    }
}

/// Why an RSA key is not supported, by what is in it: more than two primes (RFC 8017 appendix A.1.2),
/// its size, its public exponent. None if none of these is it.
fn unsupported(pkcs8: &[u8]) -> Option<FileError> {
    let info = PrivateKeyInfoRef::try_from(pkcs8).ok()?;
    let sequence = AnyRef::from_der(info.private_key.as_bytes()).ok()?;
    let mut fields = SliceReader::new(sequence.value()).ok()?;
    let version = u8::decode(&mut fields).ok()?;
    if version == 1 {
        return Some(FileError::Refused("it has more than two primes".to_owned()));
    }
    let modulus = UintRef::decode(&mut fields).ok()?;
    let exponent = UintRef::decode(&mut fields).ok()?;
    let error = PublicKey::from_components(modulus.as_bytes(), exponent.as_bytes()).err()?;
    Some(FileError::Refused(error.to_string()))
}

/// The longest modulus that aws-lc and [`PublicKey`] take, in bytes.
const MAX_MODULUS: usize = 1024;

fn encoding(algorithm: SignAlgorithm) -> &'static dyn RsaEncoding {
    match algorithm {
        SignAlgorithm::Rs256 => &RSA_PKCS1_SHA256,
        SignAlgorithm::Rs384 => &RSA_PKCS1_SHA384,
        SignAlgorithm::Rs512 => &RSA_PKCS1_SHA512,
        SignAlgorithm::Ps256 => &RSA_PSS_SHA256,
        SignAlgorithm::Ps384 => &RSA_PSS_SHA384,
        SignAlgorithm::Ps512 => &RSA_PSS_SHA512,
    }
}

fn daemon_call() -> Call {
    Call { caller: CallerSlot::DAEMON, deadline: Instant::now() + CHECK_LIMIT }
}

fn not_listed(algorithm: impl fmt::Display) -> Error {
    let reason = format!("{algorithm} was not listed when the key was opened");
    Error::new(ErrorKind::Internal, reason)
}

/// What failed on the value says that the algorithm does not work; what failed before it, for want of
/// a thread, says nothing and may work the next time.
fn cannot_work(algorithm: impl fmt::Display, error: Error) -> Error {
    match error.kind() {
        ErrorKind::UnwrapFailed | ErrorKind::Internal | ErrorKind::OperatorNeeded => {
            let reason =
                format!("{algorithm} does not work with this key ({error}); take it off the list");
            Error::new(ErrorKind::OperatorNeeded, reason)
        }
        ErrorKind::DeadlineExceeded => {
            Error::new(ErrorKind::Unavailable, "no thread was free to prove the key in time")
        }
        ErrorKind::Unavailable | ErrorKind::Throttled { .. } => error,
    }
}

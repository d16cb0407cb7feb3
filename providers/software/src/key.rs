//! An opened key: aws-lc does the private-key work, on the provider's threads.

use std::sync::Arc;

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
    Algorithm, BackendKey, Call, Digest, Error, ErrorKind, KeyMaterial, OpenKey, OpenedKey,
    Parameters, PublicKey, SignAlgorithm, Signature, Unwrapped,
};
use pkcs8::PrivateKeyInfoRef;
use pkcs8::der::asn1::{AnyRef, UintRef};
use pkcs8::der::{Decode, SliceReader};
use zeroize::Zeroizing;

use crate::error::{FileError, unwrap_failed};
use crate::workers::Workers;

/// A key from a file.
pub(crate) struct SoftwareKey {
    private: Arc<Private>,
    workers: Arc<Workers>,
}

impl SoftwareKey {
    /// Takes a key into service once every listed algorithm gave its canary back. `name` stands in
    /// errors.
    pub(crate) async fn open(
        (private, public_key): (Private, PublicKey),
        name: String,
        open: &OpenKey<'_>,
        workers: Arc<Workers>,
    ) -> Result<OpenedKey<Self>, Error> {
        let key = Self { private: Arc::new(private), workers };
        OpenedKey::prove(key, name, public_key, open).await
    }
}

#[async_trait]
impl BackendKey for SoftwareKey {
    async fn decrypt(
        &self,
        wrapped: &[u8],
        parameters: &Parameters<'_>,
        call: Call,
    ) -> Result<Unwrapped, Error> {
        let Parameters { algorithm, label } = *parameters;
        let private = self.private.clone();
        let (wrapped, label) = (wrapped.to_vec(), label.to_vec());
        let unwrap = move || private.unwrap(&wrapped, algorithm, &label);
        let material = self.workers.run(call, unwrap).await?;
        Ok(Unwrapped { material, backend_request_id: None })
    }

    async fn sign(
        &self,
        digest: &Digest,
        algorithm: SignAlgorithm,
        call: Call,
    ) -> Result<Signature, Error> {
        let (private, digest) = (self.private.clone(), *digest);
        self.workers.run(call, move || private.sign(&digest, algorithm)).await
    }

    fn takes_labels(&self) -> bool {
        true
    }

    fn queues(&self) -> bool {
        true
    }

    /// No: aws-lc fails on the value alone.
    fn failure_needs_check(&self) -> bool {
        false
    }

    /// It is a file.
    fn extractable(&self) -> Option<bool> {
        Some(true)
    }

    /// There is nothing under it that can break.
    fn repairs(&self) -> u64 {
        0
    }
}

/// The private half, ready for each padding.
pub(crate) struct Private {
    modulus_len: usize,
    oaep: OaepPrivateDecryptingKey,
    pkcs1: Pkcs1PrivateDecryptingKey,
    signing: RsaKeyPair,
}

impl Private {
    /// Both halves of a key in PKCS#8, DER.
    pub(crate) fn pair(pkcs8: &[u8]) -> Result<(Self, PublicKey), FileError> {
        let refused = |reason: &dyn ToString| FileError::Refused(reason.to_string());
        let key = PrivateDecryptingKey::from_pkcs8(pkcs8).map_err(|error| {
            // aws-lc does not say why.
            unsupported(pkcs8).unwrap_or_else(|| refused(&error))
        })?;
        let spki = key.public_key().as_der().map_err(|error| refused(&error))?;
        let public_key = PublicKey::from_spki(spki.as_ref()).map_err(|error| refused(&error))?;
        let private = Self {
            modulus_len: public_key.modulus_len(),
            oaep: OaepPrivateDecryptingKey::new(key.clone()).map_err(|error| refused(&error))?,
            pkcs1: Pkcs1PrivateDecryptingKey::new(key).map_err(|error| refused(&error))?,
            signing: RsaKeyPair::from_pkcs8(pkcs8).map_err(|error| refused(&error))?,
        };
        Ok((private, public_key))
    }

    fn unwrap(
        &self,
        wrapped: &[u8],
        algorithm: Algorithm,
        label: &[u8],
    ) -> Result<KeyMaterial, Error> {
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
        let mut signature = vec![0; self.modulus_len];
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

//! Real RSA over aws-lc: one key pair, from the forms it comes in to what a vault does with it.

use aws_lc_rs::digest;
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{
    KeySize, OaepPrivateDecryptingKey, Pkcs1PrivateDecryptingKey, PrivateDecryptingKey,
};
use aws_lc_rs::signature::{
    RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384,
    RSA_PSS_SHA512, RsaEncoding, RsaKeyPair,
};
use claviger_provider_api::public_key::{aws_lc_digest, oaep};
use claviger_provider_api::{Algorithm, Digest, KeyMaterial, Parameters, PublicKey, SignAlgorithm};

/// The longest modulus that aws-lc takes, in bytes.
const MAX_MODULUS: usize = 1024;

/// An RSA key pair.
pub(crate) struct KeyPair {
    public: PublicKey,
    oaep: OaepPrivateDecryptingKey,
    pkcs1: Pkcs1PrivateDecryptingKey,
    signing: RsaKeyPair,
}

/// The numbers of a private key (RFC 8017 section 3.2), big-endian: n, e, d, p, q, dp, dq, qi.
pub(crate) type Numbers = [Vec<u8>; 8];

impl KeyPair {
    /// A fresh key of 2048, 3072 or 4096 bits, which are the sizes of Azure.
    pub(crate) fn generate(bits: usize) -> Option<Self> {
        let size = match bits {
            2048 => KeySize::Rsa2048,
            3072 => KeySize::Rsa3072,
            4096 => KeySize::Rsa4096,
            _ => return None,
        };
        let key = PrivateDecryptingKey::generate(size).expect("aws-lc generates keys");
        let der: Pkcs8V1Der<'_> = key.as_der().expect("a key has a PKCS#8 form");
        Self::from_pkcs8(der.as_ref())
    }

    /// A key in PKCS#8, DER.
    pub(crate) fn from_pkcs8(der: &[u8]) -> Option<Self> {
        let key = PrivateDecryptingKey::from_pkcs8(der).ok()?;
        let spki = key.public_key().as_der().ok()?;
        Some(Self {
            public: PublicKey::from_spki(spki.as_ref()).ok()?,
            oaep: OaepPrivateDecryptingKey::new(key.clone()).ok()?,
            pkcs1: Pkcs1PrivateDecryptingKey::new(key).ok()?,
            signing: RsaKeyPair::from_pkcs8(der).ok()?,
        })
    }

    /// A key from its numbers, as a JWK has them.
    pub(crate) fn from_numbers(numbers: &Numbers) -> Option<Self> {
        Self::from_pkcs8(&pkcs8(numbers))
    }

    pub(crate) fn public(&self) -> &PublicKey {
        &self.public
    }

    pub(crate) fn encrypt(&self, plaintext: &[u8], algorithm: Algorithm) -> Option<Vec<u8>> {
        let material = KeyMaterial::copied_from(plaintext);
        self.public.wrap(&material, &Parameters::of(algorithm)).ok()
    }

    pub(crate) fn decrypt(&self, value: &[u8], algorithm: Algorithm) -> Option<Vec<u8>> {
        let mut buffer = [0; MAX_MODULUS];
        let plaintext = match oaep(algorithm) {
            Some(oaep) => self.oaep.decrypt(oaep, value, &mut buffer, None),
            None => self.pkcs1.decrypt(value, &mut buffer),
        };
        plaintext.ok().map(|plaintext| plaintext.to_vec())
    }

    pub(crate) fn sign(&self, digest: &[u8], algorithm: SignAlgorithm) -> Option<Vec<u8>> {
        let hash = aws_lc_digest(algorithm.hash());
        let digest = digest::Digest::import_less_safe(digest, hash).ok()?;
        let mut signature = vec![0; self.public.modulus_len()];
        self.signing.sign_digest(encoding(algorithm), &digest, &mut signature).ok()?;
        Some(signature)
    }

    pub(crate) fn verify(&self, digest: &[u8], algorithm: SignAlgorithm, value: &[u8]) -> bool {
        Digest::new(algorithm.hash(), digest)
            .is_some_and(|digest| self.public.verify(&digest, algorithm, value))
    }
}

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

/// PrivateKeyInfo (RFC 5208 section 5) of rsaEncryption.
fn pkcs8(numbers: &Numbers) -> Vec<u8> {
    const RSA_ENCRYPTION: [u8; 13] =
        [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
    let mut key = integer(&[]);
    key.extend(numbers.iter().flat_map(|number| integer(number)));
    let mut info = integer(&[]);
    info.extend(der(0x30, &RSA_ENCRYPTION));
    info.extend(der(0x04, &der(0x30, &key)));
    der(0x30, &info)
}

/// INTEGER of a number that is not negative.
fn integer(big_endian: &[u8]) -> Vec<u8> {
    let zeros = big_endian.iter().take_while(|byte| **byte == 0).count();
    let mut content = big_endian[zeros..].to_vec();
    if content.first().is_none_or(|top| *top >= 0x80) {
        content.insert(0, 0);
    }
    der(0x02, &content)
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let len = content.len();
    match len {
        0..0x80 => out.push(len as u8),
        0x80..0x100 => out.extend([0x81, len as u8]),
        _ => out.extend([0x82, (len >> 8) as u8, len as u8]),
    }
    out.extend_from_slice(content);
    out
}

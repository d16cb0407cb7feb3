//! Real RSA: the private keys of versions, of import jobs and of the fake's service account.

use aws_lc_rs::digest::Digest;
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrapPadded};
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA256_MGF1SHA256, OaepAlgorithm, OaepPrivateDecryptingKey, PrivateDecryptingKey,
};
use aws_lc_rs::signature::{RsaEncoding, RsaKeyPair};
use pem_rfc7468::LineEnding;

/// The longest modulus, in bytes.
const MAX_MODULUS: usize = 512;

/// A private key.
pub(crate) struct RsaKey {
    bits: usize,
    pkcs8: Vec<u8>,
    spki: Vec<u8>,
    oaep: OaepPrivateDecryptingKey,
    signing: RsaKeyPair,
}

impl RsaKey {
    pub(crate) fn generate(bits: usize) -> Self {
        let size = match bits {
            2048 => KeySize::Rsa2048,
            3072 => KeySize::Rsa3072,
            _ => KeySize::Rsa4096,
        };
        let key = PrivateDecryptingKey::generate(size).expect("an RSA key");
        let der: Pkcs8V1Der<'_> = key.as_der().expect("a key has a PKCS#8 form");
        Self::from_pkcs8(der.as_ref()).expect("a key of our own")
    }

    /// Takes PKCS#8, DER.
    pub(crate) fn from_pkcs8(pkcs8: &[u8]) -> Option<Self> {
        let key = PrivateDecryptingKey::from_pkcs8(pkcs8).ok()?;
        Some(Self {
            bits: key.key_size_bits(),
            pkcs8: pkcs8.to_vec(),
            spki: key.public_key().as_der().ok()?.as_ref().to_vec(),
            oaep: OaepPrivateDecryptingKey::new(key).ok()?,
            signing: RsaKeyPair::from_pkcs8(pkcs8).ok()?,
        })
    }

    pub(crate) fn bits(&self) -> usize {
        self.bits
    }

    /// SubjectPublicKeyInfo, DER.
    pub(crate) fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// SubjectPublicKeyInfo, PEM.
    pub(crate) fn public_pem(&self) -> String {
        pem("PUBLIC KEY", &self.spki)
    }

    /// PKCS#8, PEM.
    pub(crate) fn private_pem(&self) -> String {
        pem("PRIVATE KEY", &self.pkcs8)
    }

    pub(crate) fn decrypt(&self, oaep: &'static OaepAlgorithm, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut out = [0; MAX_MODULUS];
        self.oaep.decrypt(oaep, bytes, &mut out, None).ok().map(|plaintext| plaintext.to_vec())
    }

    pub(crate) fn sign(&self, encoding: &'static dyn RsaEncoding, digest: &Digest) -> Vec<u8> {
        let mut signature = vec![0; self.signing.public_modulus_len()];
        let signed = self.signing.sign_digest(encoding, digest, &mut signature);
        signed.expect("a digest of the encoding's hash");
        signature
    }

    /// Takes a key in that was wrapped for an import job: an AES-256 key under RSA-OAEP with SHA-256,
    /// and the PKCS#8 key under that (RFC 5649).
    pub(crate) fn unwrap_imported(&self, wrapped: &[u8]) -> Option<Self> {
        let (aes, key) = wrapped.split_at_checked(self.bits / 8)?;
        let aes = self.decrypt(&OAEP_SHA256_MGF1SHA256, aes)?;
        let mut pkcs8 = vec![0; key.len()];
        let kek = AesKek::new(&AES_256, &aes).ok()?;
        Self::from_pkcs8(kek.unwrap_with_padding(key, &mut pkcs8).ok()?)
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    pem_rfc7468::encode_string(label, LineEnding::LF, der).expect("a label of capital letters")
}

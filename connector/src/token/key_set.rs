//! An issuer's public keys: a key set (JWKS, RFC 7517) or one public key in PEM.

use claviger_files::pem;
use jsonwebtoken::jwk::{JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{AlgorithmFamily, DecodingKey, crypto};
use serde_json::Value;

use super::Refusal;
use super::header::Parts;

/// Public keys, none of them symmetric.
#[derive(Debug, Default)]
pub struct KeySet(Vec<Key>);

#[derive(Debug)]
struct Key {
    kid: Option<String>,
    public: DecodingKey,
    /// The one algorithm that the set names for it.
    algorithm: Option<String>,
}

/// Why there is no key set.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct KeySetError(String);

impl KeySet {
    /// Reads a PEM file or a JWKS document. Keys that are for encryption, symmetric or of an unknown
    /// kind are left out; a set without any other one is an error.
    pub fn parse(bytes: &[u8]) -> Result<Self, KeySetError> {
        let keys = if pem::is_pem(bytes) { vec![of_pem(bytes)?] } else { of_jwks(bytes)? };
        if keys.is_empty() {
            return Err(KeySetError("it has no public key for signatures".to_owned()));
        }
        Ok(Self(keys))
    }

    /// Whether a token is signed by one of the keys: the one that it names, where the set has names.
    pub(super) fn verify(&self, parts: &Parts<'_>) -> Result<(), Refusal> {
        let (algorithm, kid) = (parts.header.algorithm, parts.header.kid.as_ref());
        let named = |key: &&Key| kid.is_none() || key.kid.is_none() || key.kid.as_ref() == kid;
        let fits = |key: &&Key| {
            let name = format!("{algorithm:?}");
            key.public.family() == algorithm.family()
                && key.algorithm.as_ref().is_none_or(|only| *only == name)
        };
        let mut candidates = self.0.iter().filter(named).filter(fits).peekable();
        if candidates.peek().is_none() {
            return Err(Refusal::Invalid("its issuer has no such key"));
        }
        let good = candidates.any(|key| {
            let signed = parts.signed.as_bytes();
            crypto::verify(parts.signature, signed, &key.public, algorithm).unwrap_or(false)
        });
        if good { Ok(()) } else { Err(Refusal::Invalid("its signature is wrong")) }
    }
}

fn of_pem(bytes: &[u8]) -> Result<Key, KeySetError> {
    let spki = pem::public_key(bytes).map_err(|error| KeySetError(error.to_string()))?;
    let is_rsa = aws_lc_rs::rsa::PublicEncryptingKey::from_der(&spki).is_ok();
    if !is_rsa {
        return Err(KeySetError("it is no RSA key of 2048 to 8192 bits".to_owned()));
    }
    Ok(Key { kid: None, public: DecodingKey::from_rsa_der(&spki), algorithm: None })
}

fn of_jwks(bytes: &[u8]) -> Result<Vec<Key>, KeySetError> {
    let no_set = |error: serde_json::Error| KeySetError(format!("it is no JWKS document: {error}"));
    let document: Value = serde_json::from_slice(bytes).map_err(no_set)?;
    let set: JwkSet = serde_json::from_value(document).map_err(no_set)?;
    let keys = set.keys.iter().filter_map(|jwk| {
        if jwk.common.public_key_use.as_ref().is_some_and(|u| *u != PublicKeyUse::Signature) {
            return None;
        }
        let public = DecodingKey::from_jwk(jwk).ok()?;
        let algorithm = jwk.common.key_algorithm.as_ref();
        let algorithm = algorithm.filter(|a| **a != KeyAlgorithm::UNKNOWN_ALGORITHM);
        let algorithm = algorithm.map(|algorithm| format!("{algorithm:?}"));
        let kid = jwk.common.key_id.clone();
        (public.family() != AlgorithmFamily::Hmac).then_some(Key { kid, public, algorithm })
    });
    Ok(keys.collect())
}

//! An issuer's public keys: a key set (JWKS, RFC 7517) or one public key in PEM.

use aws_lc_rs::digest::{Digest, SHA256, digest};
use claviger_files::pem;
use jsonwebtoken::jwk::{Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{AlgorithmFamily, DecodingKey, crypto};
use serde::Deserialize;
use serde_json::Value;

use crate::{Fault, Token};

/// Public keys, none of them symmetric.
#[derive(Debug)]
pub struct KeySet {
    keys: Vec<Key>,
    /// Of the document.
    sha256: Digest,
}

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
        Ok(Self { keys, sha256: digest(&SHA256, bytes) })
    }

    /// How many keys there are.
    pub fn count(&self) -> usize {
        self.keys.len()
    }

    /// SHA-256 of the document.
    pub fn sha256(&self) -> [u8; 32] {
        self.sha256.as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    /// Whether both were read from the same document.
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.sha256.as_ref() == other.sha256.as_ref()
    }

    /// Whether a token is signed by one of the keys: the one that it names, where the set has names.
    pub fn verify(&self, token: &Token<'_>) -> Result<(), Fault> {
        let (algorithm, kid) = (token.algorithm, token.kid.as_ref());
        let named = |key: &&Key| kid.is_none() || key.kid.is_none() || key.kid.as_ref() == kid;
        let fits = |key: &&Key| {
            let name = format!("{algorithm:?}");
            key.public.family() == algorithm.family()
                && key.algorithm.as_ref().is_none_or(|only| *only == name)
        };
        let mut candidates = self.keys.iter().filter(named).filter(fits).peekable();
        if candidates.peek().is_none() {
            return Err(Fault::NoSuchKey);
        }
        let good = candidates.any(|key| {
            let signed = token.signed.as_bytes();
            crypto::verify(token.signature, signed, &key.public, algorithm).unwrap_or(false)
        });
        if good { Ok(()) } else { Err(Fault::Signature) }
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
    let document: Document = serde_json::from_slice(bytes).map_err(no_set)?;
    // What is not understood is left out (RFC 7517 section 5).
    Ok(document.keys.into_iter().filter_map(of_jwk).collect())
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

fn of_jwk(jwk: Value) -> Option<Key> {
    let jwk: Jwk = serde_json::from_value(jwk).ok()?;
    let is_for_signatures = match &jwk.common.public_key_use {
        None | Some(PublicKeyUse::Signature) => true,
        // SPIFFE Trust Domain and Bundle, section 4.2.2.
        Some(PublicKeyUse::Other(other)) => other == "jwt-svid",
        Some(PublicKeyUse::Encryption) => false,
    };
    let public = DecodingKey::from_jwk(&jwk).ok()?;
    if !is_for_signatures || public.family() == AlgorithmFamily::Hmac {
        return None;
    }
    let algorithm = jwk.common.key_algorithm.filter(|a| *a != KeyAlgorithm::UNKNOWN_ALGORITHM);
    let algorithm = algorithm.map(|algorithm| format!("{algorithm:?}"));
    Some(Key { kid: jwk.common.key_id, public, algorithm })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_not_for_signatures_or_not_understood_are_left_out() {
        let rsa = r#""kty":"RSA","n":"sXchDaQebHnPiGvyDOAT4saGEUetSyo9MKLOoWFsueri23bOdgWp4Dy1WlUzewbgBHod5pcM9H95GQRV3JDXboIRROSBigeC5yjU1hGzHHyXss8UDprecbAYxknTcQkhslANGRUZmdTOQ5qTRsLAt6BTYuyvVRdhS8exSZEy_c4gs_7svlJJQ4H9_NxsiIoLwAEk7-Q3UXERGYw_75IDrGA84-lA_-Ct4eTlXHBIY2EaV7t7LjJaynVJCpkv4LKjTTAumiGUIuQhrNhZLuF_RJLqHpM2kgWFLU7-VTdL1VbC2tejvcI2BlMkEpk1BzBZI0KQB0GaDWFLN-aEAw3vRw","e":"AQAB""#;
        let set = |keys: &str| KeySet::parse(format!(r#"{{"keys":[{keys}]}}"#).as_bytes());
        let good = [
            format!(r#"{{{rsa},"use":"sig","kid":"a"}}"#),
            format!(r#"{{{rsa},"use":"jwt-svid","kid":"b"}}"#),
            format!("{{{rsa}}}"),
        ];
        for key in &good {
            assert_eq!(set(key).unwrap().keys.len(), 1, "{key}");
        }
        let bad = [
            format!(r#"{{{rsa},"use":"enc"}}"#),
            format!(r#"{{{rsa},"use":"x509-svid"}}"#),
            r#"{"kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T"}"#.to_owned(),
            r#"{"kty":"AKP","alg":"ML-DSA-44","pub":"AAAA"}"#.to_owned(),
        ];
        for key in &bad {
            assert!(set(key).is_err(), "{key}");
        }
        assert_eq!(
            set(&[&good[0], &bad[3], &good[1]].map(String::as_str).join(",")).unwrap().keys.len(),
            2
        );
    }
}

//! The way in for a key that exists already, which AWS, Google and Transit have in common.

use claviger_provider_api::{Algorithm, PrivateKey, PublicKey};

/// What such a service imports: `pkcs8` (DER) under its wrapping key.
pub fn wrapped_for_import(wrapping_key: &PublicKey, pkcs8: &[u8]) -> Vec<u8> {
    let key = PrivateKey::from_pkcs8(pkcs8.to_vec().into()).expect("an RSA key in PKCS#8");
    key.wrapped_under(wrapping_key, Algorithm::RsaOaep256).expect("a key under any RSA key")
}

/// The size of a key (PKCS#8, DER).
pub(crate) fn modulus_bits(pkcs8: &[u8]) -> usize {
    let key = PrivateKey::from_pkcs8(pkcs8.to_vec().into()).expect("an RSA key in PKCS#8");
    key.public_key().modulus_bits()
}

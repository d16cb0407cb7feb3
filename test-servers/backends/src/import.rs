//! The way in for a key that exists already, which AWS, Google and Transit have in common: an AES-256
//! key under their RSA key (OAEP, SHA-256), followed by the PKCS#8 key under the AES key (RFC 5649).

use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrapPadded};
use aws_lc_rs::rand;
use claviger_provider_api::{Algorithm, KeyMaterial, Parameters, PublicKey};

/// What such a service imports: `pkcs8` (DER) under its wrapping key.
pub fn wrapped_for_import(wrapping_key: &PublicKey, pkcs8: &[u8]) -> Vec<u8> {
    let mut aes = [0; 32];
    rand::fill(&mut aes).expect("random bytes");
    let under = Parameters::of(Algorithm::RsaOaep256);
    let mut wrapped = wrapping_key
        .wrap(&KeyMaterial::copied_from(&aes), &under)
        .expect("32 bytes fit under any RSA key");
    let mut padded = vec![0; pkcs8.len() + 16];
    let kek = AesKek::new(&AES_256, &aes).expect("32 bytes are an AES-256 key");
    let padded = kek.wrap_with_padding(pkcs8, &mut padded).expect("the buffer is long enough");
    wrapped.extend_from_slice(padded);
    wrapped
}

/// The size of a key (PKCS#8, DER).
pub(crate) fn modulus_bits(pkcs8: &[u8]) -> usize {
    let key =
        aws_lc_rs::rsa::PrivateDecryptingKey::from_pkcs8(pkcs8).expect("an RSA key in PKCS#8");
    key.key_size_bytes() * 8
}

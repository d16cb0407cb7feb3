//! What a person approves: that one wrapped value goes to one public key until a time.

use aws_lc_rs::digest::{Context, SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// What is hashed first, so that no other protocol's nonce is one of an approval.
pub const APPROVAL_PREFIX: &[u8; 20] = b"claviger-approval-v1";

/// The `nonce` of an ID token that approves one rewrap: base64url without padding of SHA-256 over
/// [`APPROVAL_PREFIX`] (20 bytes), SHA-256 of the wrapped value (32), SHA-256 of the target's public key
/// (SubjectPublicKeyInfo, DER; 32), and `expires`, seconds since 1970, as 8 bytes, big-endian. 43
/// characters.
pub fn approval_nonce(wrapped: &[u8], public_key_sha256: &[u8; 32], expires: u64) -> String {
    let wrapped = digest(&SHA256, wrapped);
    approval_nonce_of_hash(
        wrapped.as_ref().try_into().expect("SHA-256 has 32 bytes"),
        public_key_sha256,
        expires,
    )
}

/// The same, of the SHA-256 of the wrapped value.
pub fn approval_nonce_of_hash(
    wrapped_sha256: &[u8; 32],
    public_key_sha256: &[u8; 32],
    expires: u64,
) -> String {
    let mut hash = Context::new(&SHA256);
    hash.update(APPROVAL_PREFIX);
    hash.update(wrapped_sha256);
    hash.update(public_key_sha256);
    hash.update(&expires.to_be_bytes());
    URL_SAFE_NO_PAD.encode(hash.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nonce_is_the_one_that_the_documentation_computes() {
        // printf claviger-approval-v1; printf value | openssl dgst -sha256 -binary; 32 zeros; 8 bytes.
        let nonce = approval_nonce(b"value", &[0; 32], 1_800_000_000);
        assert_eq!(nonce, "U7Yaau-k_wuUZIFhjDQYK-l5ETh90WQ3XzBbFZndU7s");
        for other in [
            approval_nonce(b"valve", &[0; 32], 1_800_000_000),
            approval_nonce(b"value", &[1; 32], 1_800_000_000),
            approval_nonce(b"value", &[0; 32], 1_800_000_001),
        ] {
            assert_ne!(nonce, other);
        }
    }
}

//! What goes into a key and what comes out: key material, digests, signatures.

use std::fmt;

use zeroize::Zeroizing;

use crate::algorithm::Hash;

/// Key material: the bytes that are wrapped. Zeroed when dropped, never cloned, printed as
/// `[redacted]`.
pub struct KeyMaterial(Zeroizing<Vec<u8>>);

impl KeyMaterial {
    /// Takes over a buffer that already zeroes itself.
    pub fn new(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }

    /// Copies `bytes` into a buffer of exactly their length.
    pub fn copied_from(bytes: &[u8]) -> Self {
        Self(Zeroizing::new(bytes.to_vec()))
    }

    /// The bytes themselves. The code that copies them must zero the copy.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The buffer itself, still zeroed when dropped.
    pub fn into_zeroizing(self) -> Zeroizing<Vec<u8>> {
        self.0
    }
}

impl fmt::Debug for KeyMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A digest of exactly its hash's length, at most 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    hash: Hash,
    bytes: [u8; 64],
}

impl Digest {
    /// A digest made by `hash`; none if `bytes` has another length.
    pub fn new(hash: Hash, bytes: &[u8]) -> Option<Self> {
        let mut padded = [0; 64];
        padded.get_mut(..bytes.len())?.copy_from_slice(bytes);
        (bytes.len() == hash.len()).then_some(Self { hash, bytes: padded })
    }

    /// The hash that made it.
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// The digest's bytes, exactly as many as the hash gives.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.hash.len()]
    }
}

/// What signing gave.
#[derive(Clone, Debug)]
pub struct Signature {
    /// The signature, exactly as long as the modulus.
    pub bytes: Vec<u8>,
    /// The id under which the backend logged the request, if it gives one.
    pub backend_request_id: Option<String>,
}

impl Signature {
    /// A signature of a backend that gives no ids.
    pub fn without_request_id(bytes: Vec<u8>) -> Self {
        Self { bytes, backend_request_id: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_material_is_not_printed() {
        let material = KeyMaterial::copied_from(b"marker");
        assert_eq!(format!("{material:?}"), "[redacted]");
    }

    #[test]
    fn a_digest_has_exactly_its_hashs_length() {
        assert!(Digest::new(Hash::Sha256, &[1; 31]).is_none());
        assert!(Digest::new(Hash::Sha256, &[1; 33]).is_none());
        assert!(Digest::new(Hash::Sha512, &[1; 65]).is_none());
        assert_eq!(Digest::new(Hash::Sha384, &[1; 48]).unwrap().as_bytes(), [1; 48]);
    }
}

//! Wrapped values that no honest client makes: an encoded message of the test's own, raised to the
//! public exponent.

use aws_lc_rs::digest::{self, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use aws_lc_rs::rand;
use num_bigint::BigUint;

use crate::rsa_key::RsaKey;

/// The OAEP hash of an encoded message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// As in `RSA-OAEP`.
    Sha1,
    /// As in `RSA-OAEP-256`.
    Sha256,
}

/// What an OAEP encoding (RFC 8017 section 7.1.1) is made of; each part can be wrong.
#[derive(Clone, Debug)]
pub struct OaepParts {
    /// The OAEP hash.
    pub hash: Hash,
    /// The hash in the mask generation.
    pub mgf1_hash: Hash,
    /// The first byte of the encoded message: 0.
    pub first: u8,
    /// Flipped bits in the label's hash: 0.
    pub label_hash_flip: u8,
    /// The label.
    pub label: Vec<u8>,
    /// A byte of the zeros between the label's hash and the separator: 0.
    pub padding: u8,
    /// The byte in front of the message: 1.
    pub separator: u8,
    /// The message.
    pub message: Vec<u8>,
}

impl OaepParts {
    /// A right encoding of `message` without a label.
    pub fn right(hash: Hash, message: &[u8]) -> Self {
        Self {
            hash,
            mgf1_hash: hash,
            first: 0,
            label_hash_flip: 0,
            label: Vec::new(),
            padding: 0,
            separator: 1,
            message: message.to_vec(),
        }
    }

    /// The encoded message, `k` bytes.
    pub fn encode(&self, k: usize) -> Vec<u8> {
        let mut label_hash = self.hash.of(&self.label);
        label_hash[0] ^= self.label_hash_flip;
        let h = label_hash.len();
        let mut data = label_hash;
        let zeros = k - 2 * h - 2 - self.message.len();
        data.extend(vec![0; zeros]);
        if let Some(last) = data[h..].last_mut() {
            *last = self.padding;
        }
        data.push(self.separator);
        data.extend(&self.message);
        let mut seed = random(h);
        xor(&mut data, &self.mgf1_hash.mask(&seed, k - h - 1));
        xor(&mut seed, &self.mgf1_hash.mask(&data, h));
        [vec![self.first], seed, data].concat()
    }
}

impl Hash {
    fn of(self, bytes: &[u8]) -> Vec<u8> {
        let algorithm = match self {
            Self::Sha1 => &SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => &SHA256,
        };
        digest::digest(algorithm, bytes).as_ref().to_vec()
    }

    /// MGF1 (RFC 8017 appendix B.2.1).
    fn mask(self, seed: &[u8], len: usize) -> Vec<u8> {
        let blocks = (0u32..).flat_map(|counter| self.of(&[seed, &counter.to_be_bytes()].concat()));
        blocks.take(len).collect()
    }
}

/// An encoding for RSA1_5 (RFC 8017 section 7.2.1) with a block type and so many bytes of padding;
/// without the final zero where there is no room for it.
pub fn pkcs1(k: usize, first: u8, block_type: u8, padding: &[u8], message: &[u8]) -> Vec<u8> {
    let mut encoded = vec![first, block_type];
    encoded.extend(padding);
    encoded.push(0);
    encoded.extend(message);
    assert_eq!(encoded.len(), k, "the parts fill the modulus");
    encoded
}

/// The encoded message to the power of the public exponent: `k` bytes.
pub fn raise(key: &RsaKey, encoded: &[u8]) -> Vec<u8> {
    let number = |bytes: &[u8]| BigUint::from_bytes_be(bytes);
    let public_key = key.public_key();
    let wrapped =
        number(encoded).modpow(&number(public_key.exponent()), &number(public_key.modulus()));
    let bytes = wrapped.to_bytes_be();
    [vec![0; public_key.modulus_len() - bytes.len()], bytes].concat()
}

/// Random bytes, none of them zero.
pub fn nonzero(len: usize) -> Vec<u8> {
    random(len).into_iter().map(|byte| byte.max(1)).collect()
}

/// Random bytes.
pub fn random(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rand::fill(&mut bytes).expect("random bytes");
    bytes
}

fn xor(bytes: &mut [u8], mask: &[u8]) {
    bytes.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
}

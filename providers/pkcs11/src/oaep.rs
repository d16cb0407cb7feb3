//! EME-OAEP decoding (RFC 8017 section 7.1.2 step 3) in constant time, for tokens that only give raw RSA.
//!
//! Which step fails must not be seen, not even in the time it takes (Manger 2001): every step runs
//! over the whole block, choices are masks, and the first branch is on the outcome itself.

use aws_lc_rs::digest;
use claviger_provider_api::{Hash, KeyMaterial};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use zeroize::Zeroizing;

#[cfg(test)]
pub(crate) mod reference;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod timing;

/// A hash of OAEP or of its MGF1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OaepHash {
    /// SHA-1, 20 bytes.
    Sha1,
    /// SHA-224, 28 bytes.
    Sha224,
    /// SHA-256, 32 bytes.
    Sha256,
    /// SHA-384, 48 bytes.
    Sha384,
    /// SHA-512, 64 bytes.
    Sha512,
    /// SHA-512/256, 32 bytes.
    Sha512_256,
    /// SHA-512/224, 28 bytes: aws-lc-rs does not have it and no algorithm of ours uses it, but
    /// Wycheproof's vectors do.
    #[cfg(test)]
    Sha512_224,
}

impl From<Hash> for OaepHash {
    fn from(hash: Hash) -> Self {
        match hash {
            Hash::Sha1 => Self::Sha1,
            Hash::Sha256 => Self::Sha256,
            Hash::Sha384 => Self::Sha384,
            Hash::Sha512 => Self::Sha512,
        }
    }
}

/// Recovers the message of an encoded message `em`: all k bytes that raw RSA gave, leading zeros
/// included (see [`left_pad`]).
///
/// None, without a hint at the cause, if it was not encoded with these hashes and this label. The
/// time depends on the lengths of `em` and `label` and on the hashes, and on nothing else until the
/// outcome is known; the length of the message shows only in a success.
pub fn unpad(em: &[u8], hash: OaepHash, mgf1_hash: OaepHash, label: &[u8]) -> Option<KeyMaterial> {
    let Decoded { mut message, len, valid } = decode(em, hash, mgf1_hash, label)?;
    if !bool::from(valid) {
        return None;
    }
    message.truncate(len as usize);
    Some(KeyMaterial::new(message))
}

/// Moves the first `len` bytes of `buffer` to its end and puts zeros before them, as a big-endian
/// number needs it when a token left out its leading zeros. The time does not depend on `len`,
/// which tells about the decrypted value: hand over the whole buffer that the token wrote to.
///
/// False, and `buffer` is as it was, if `len` is more than the buffer holds.
#[must_use]
pub fn left_pad(buffer: &mut [u8], len: usize) -> bool {
    let Some(shift) = buffer.len().checked_sub(len) else { return false };
    each_power_of_two(buffer.len(), shift as u32, |step, chosen| {
        for index in (0..buffer.len()).rev() {
            let moved = if index >= step { buffer[index - step] } else { 0 };
            buffer[index].conditional_assign(&moved, chosen);
        }
    });
    true
}

/// The result of decoding before its outcome is looked at.
struct Decoded {
    /// The message at the front of a buffer of the largest message's length.
    message: Zeroizing<Vec<u8>>,
    /// The message's length.
    len: u32,
    valid: Choice,
}

/// None only if a modulus of `em`'s length is too short for the hash, which is no secret.
fn decode(em: &[u8], hash: OaepHash, mgf1_hash: OaepHash, label: &[u8]) -> Option<Decoded> {
    let hash_len = hash.len();
    if em.len() < 2 * hash_len + 2 {
        return None;
    }
    let mut block = Zeroizing::new(em[1..].to_vec());
    let (seed, data) = block.split_at_mut(hash_len);
    xor_mgf1(mgf1_hash, data, seed);
    xor_mgf1(mgf1_hash, seed, data);

    let (label_hash, rest) = data.split_at(hash_len);
    let mut expected = [0; 64];
    hash.digest(&[label], &mut expected[..hash_len]);
    let mut valid = em[0].ct_eq(&0) & label_hash.ct_eq(&expected[..hash_len]);

    // PS || 0x01 || M: only zeros may come before the first 0x01.
    let mut start = 0_u32;
    let mut in_padding = Choice::from(1);
    for (index, byte) in rest.iter().enumerate() {
        let is_one = byte.ct_eq(&1);
        start.conditional_assign(&(index as u32 + 1), in_padding & is_one);
        valid &= !in_padding | is_one | byte.ct_eq(&0);
        in_padding &= !is_one;
    }
    valid &= !in_padding;

    let mut message = Zeroizing::new(rest.to_vec());
    each_power_of_two(message.len(), start, |step, chosen| {
        for index in 0..message.len() {
            let moved = if index + step < message.len() { message[index + step] } else { 0 };
            message[index].conditional_assign(&moved, chosen);
        }
    });
    Some(Decoded { len: rest.len() as u32 - start, message, valid })
}

/// Makes a shift by `shift`, at most `largest`, out of shifts by powers of two, each of which is
/// always run and told whether it counts.
fn each_power_of_two(largest: usize, shift: u32, mut run: impl FnMut(usize, Choice)) {
    for bit in 0..=largest.checked_ilog2().unwrap_or(0) {
        run(1 << bit, Choice::from((shift >> bit & 1) as u8));
    }
}

/// `target` XOR MGF1(`seed`) (RFC 8017 appendix B.2.1).
fn xor_mgf1(hash: OaepHash, seed: &[u8], target: &mut [u8]) {
    let mut mask = Zeroizing::new([0_u8; 64]);
    let mask = &mut mask[..hash.len()];
    for (counter, chunk) in (0_u32..).zip(target.chunks_mut(hash.len())) {
        hash.digest(&[seed, &counter.to_be_bytes()], mask);
        chunk.iter_mut().zip(mask.iter()).for_each(|(byte, mask)| *byte ^= mask);
    }
}

impl OaepHash {
    fn len(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha224 => 28,
            Self::Sha256 | Self::Sha512_256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
            #[cfg(test)]
            Self::Sha512_224 => 28,
        }
    }

    /// Hashes `parts` one after the other into `output`, which has the hash's length.
    fn digest(self, parts: &[&[u8]], output: &mut [u8]) {
        let algorithm = match self {
            Self::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha224 => &digest::SHA224,
            Self::Sha256 => &digest::SHA256,
            Self::Sha384 => &digest::SHA384,
            Self::Sha512 => &digest::SHA512,
            Self::Sha512_256 => &digest::SHA512_256,
            #[cfg(test)]
            Self::Sha512_224 => {
                let hash = parts.iter().fold(sha2::Sha512_224::default(), |hash, part| {
                    sha2::Digest::chain_update(hash, part)
                });
                return output.copy_from_slice(&sha2::Digest::finalize(hash));
            }
        };
        let mut context = digest::Context::new(algorithm);
        for part in parts {
            context.update(part);
        }
        output.copy_from_slice(context.finish().as_ref());
    }
}

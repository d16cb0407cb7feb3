//! OAEP as RFC 8017 section 7.1 writes it, with a branch for each step: for comparison, and for nothing
//! that is secret.

use super::{OaepHash, xor_mgf1};

/// Which step of section 7.1.2 refused a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Refused {
    Length,
    FirstByte,
    LabelHash,
    NoSeparator,
    Padding,
}

/// The message of an encoded message, or the step that refuses it.
pub(crate) fn unpad(
    em: &[u8],
    hash: OaepHash,
    mgf1_hash: OaepHash,
    label: &[u8],
) -> Result<Vec<u8>, Refused> {
    let hash_len = hash.len();
    if em.len() < 2 * hash_len + 2 {
        return Err(Refused::Length);
    }
    let unmasked = masks_removed(em, hash, mgf1_hash);
    if unmasked[0] != 0 {
        return Err(Refused::FirstByte);
    }
    let data = &unmasked[1 + hash_len..];
    if data[..hash_len] != label_hash(hash, label) {
        return Err(Refused::LabelHash);
    }
    let rest = &data[hash_len..];
    match rest.iter().position(|byte| *byte != 0) {
        None => Err(Refused::NoSeparator),
        Some(at) if rest[at] == 1 => Ok(rest[at + 1..].to_vec()),
        Some(_) => Err(Refused::Padding),
    }
}

/// A block before it is masked: zero, seed, hash of the label, so many zeros, one, message.
pub(crate) fn block(hash: OaepHash, label: &[u8], zeros: usize, message: &[u8]) -> Vec<u8> {
    let seed = vec![0x5a; hash.len()];
    [&[0][..], &seed, &label_hash(hash, label), &vec![0; zeros], &[1], message].concat()
}

/// Masks a block: its seed masks the data, and the masked data the seed. One that is too short stays.
pub(crate) fn masked(block: &[u8], hash: OaepHash, mgf1_hash: OaepHash) -> Vec<u8> {
    let mut em = block.to_vec();
    if em.len() < 2 * hash.len() + 2 {
        return em;
    }
    let (seed, data) = em[1..].split_at_mut(hash.len());
    xor_mgf1(mgf1_hash, seed, data);
    xor_mgf1(mgf1_hash, data, seed);
    em
}

fn masks_removed(em: &[u8], hash: OaepHash, mgf1_hash: OaepHash) -> Vec<u8> {
    let mut block = em.to_vec();
    let (seed, data) = block[1..].split_at_mut(hash.len());
    xor_mgf1(mgf1_hash, data, seed);
    xor_mgf1(mgf1_hash, seed, data);
    block
}

fn label_hash(hash: OaepHash, label: &[u8]) -> Vec<u8> {
    let mut output = vec![0; hash.len()];
    hash.digest(&[label], &mut output);
    output
}

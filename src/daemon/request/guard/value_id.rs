//! What makes two unwraps the same for a budget.

use aws_lc_rs::digest;
use claviger_provider_api::Algorithm;
use claviger_provider_api::public_key::sha256;

use super::UnwrapCall;
use crate::daemon::request::budget::ValueId;

/// What most labels are: SHA-256 of no bytes at all (FIPS 180-4).
const SHA256_OF_NOTHING: [u8; 32] = [
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24,
    0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
];

/// All that decides what an unwrap gives: the same again gives the same again.
pub(super) fn value_id(
    wrapped_sha256: &[u8; 32],
    call: &UnwrapCall,
    longest: Option<usize>,
) -> ValueId {
    let algorithm = call.algorithm.map_or("", Algorithm::name);
    let version = call.version.unwrap_or(0).to_be_bytes();
    let longest = longest.map_or(u64::MAX, |longest| longest as u64).to_be_bytes();
    let label = if call.label.is_empty() { SHA256_OF_NOTHING } else { sha256(&call.label) };
    let mut id = digest::Context::new(&digest::SHA256);
    for part in [&wrapped_sha256[..], &version, &longest, &label, algorithm.as_bytes()] {
        id.update(part);
    }
    id.finish().as_ref().try_into().expect("SHA-256 gives 32 bytes")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_value_has_the_same_id_as_in_the_files_of_earlier_versions() {
        assert_eq!(SHA256_OF_NOTHING, sha256(b""));
        let call = |label: &'static [u8]| UnwrapCall {
            key: "k".to_owned(),
            wrapped: Bytes::new(),
            version: Some(2),
            algorithm: Some(Algorithm::RsaOaep),
            label: Bytes::from_static(label),
            batch: None,
        };
        for label in [&b""[..], b"label"] {
            let parts =
                [&[7; 32][..], &[0, 0, 0, 2], &[0xff; 8], &sha256(label), b"RSA-OAEP"].concat();
            assert_eq!(value_id(&[7; 32], &call(label), None), sha256(&parts));
        }
    }
}

//! The fingerprint phrase: what two people compare before one of them approves the other's device.

use aws_lc_rs::digest::{Context, SHA256, digest};
use bip39::Language;

/// What is hashed first, so that no other protocol's hash is a fingerprint.
const PREFIX: &[u8] = b"claviger-fingerprint-v1";
/// Eleven bits each.
const WORDS: usize = 6;

/// Six words for an e-mail and a public key (SubjectPublicKeyInfo, DER): the first 66 bits of SHA-256
/// over [`PREFIX`], SHA-256 of the e-mail as [`email`] spells it, and SHA-256 of the key, as words of the
/// English list of BIP-39.
pub fn phrase(email: &str, public_key: &[u8]) -> String {
    let mut hash = Context::new(&SHA256);
    hash.update(PREFIX);
    hash.update(digest(&SHA256, email.as_bytes()).as_ref());
    hash.update(digest(&SHA256, public_key).as_ref());
    let hash = hash.finish();
    let first: [u8; 16] = hash.as_ref()[..16].try_into().expect("SHA-256 has 32 bytes");
    let bits = u128::from_be_bytes(first);
    let word = |place: usize| {
        let index = (bits >> (128 - 11 * (place + 1))) & 0x7ff;
        words()[usize::try_from(index).expect("eleven bits")]
    };
    (0..WORDS).map(word).collect::<Vec<_>>().join("-")
}

/// The 2048 words.
pub fn words() -> &'static [&'static str; 2048] {
    Language::English.word_list()
}

/// One spelling of an e-mail: without spaces around, in lower case. None where it is none, or has more
/// than 254 bytes (RFC 5321 section 4.5.3.1.3).
pub fn email(text: &str) -> Option<String> {
    let text = text.trim().to_lowercase();
    let (name, host) = text.rsplit_once('@')?;
    let good = !name.is_empty() && !host.is_empty() && text.len() <= 254;
    (good && !text.chars().any(|c| c.is_control() || c.is_whitespace())).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_phrase_is_of_the_email_and_the_key_alone() {
        // Computed beside with Python's hashlib and the words of /approvals/words.
        let spelled = email(" Ada@Example.org ").unwrap();
        assert_eq!(phrase(&spelled, b"key"), "clay-fruit-husband-egg-parrot-two");
        assert_ne!(phrase(&spelled, b"kez"), phrase(&spelled, b"key"));
        assert_ne!(phrase("eda@example.org", b"key"), phrase(&spelled, b"key"));
    }

    #[test]
    fn an_email_has_a_name_a_host_and_a_bound() {
        for bad in
            ["", "ada", "@b", "a@", "a b@c", "a@b\n c", &format!("{}@b.org", "a".repeat(260))]
        {
            assert_eq!(email(bad), None, "{bad:?}");
        }
    }
}

//! The one AES key of shared-key mode, and the form in which users' keys are stored under it.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// Bytes of the key.
pub const KEY_LEN: usize = 32;

/// AES-256-GCM. A stored value is Base64 of ciphertext ‖ tag (16 bytes) ‖ nonce (12 bytes), without
/// associated data: the form of Bitwarden's Key Connector 2025.11.
pub struct SymmetricKey(LessSafeKey);

/// A stored value was changed, or is under another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stored value does not open under the symmetric key")]
pub struct DoesNotOpen;

impl SymmetricKey {
    /// From its 32 bytes; none for any other number.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let key = UnboundKey::new(&AES_256_GCM, bytes).ok()?;
        Some(Self(LessSafeKey::new(key)))
    }

    /// 32 random bytes.
    pub fn random_bytes() -> Zeroizing<[u8; KEY_LEN]> {
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        rand::fill(&mut *bytes).expect("the system has random bytes");
        bytes
    }

    /// Encrypts a user's key under a random nonce.
    pub fn seal(&self, key: &[u8]) -> String {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).expect("the system has random bytes");
        // Overwritten in its place: no copy of the key is left.
        let mut sealed = key.to_vec();
        let tag = self.0.seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::empty(),
            &mut sealed,
        );
        sealed.extend(tag.expect("far below the limit of GCM").as_ref());
        sealed.extend(nonce);
        STANDARD.encode(sealed)
    }

    /// Recovers a user's key.
    pub fn open(&self, stored: &str) -> Result<Zeroizing<Vec<u8>>, DoesNotOpen> {
        let stored = STANDARD.decode(stored).map_err(|_| DoesNotOpen)?;
        let (sealed, nonce) = stored.split_last_chunk::<NONCE_LEN>().ok_or(DoesNotOpen)?;
        let mut opened = Zeroizing::new(sealed.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let len =
            self.0.open_in_place(nonce, Aad::empty(), &mut opened).map_err(|_| DoesNotOpen)?.len();
        opened.truncate(len);
        Ok(opened)
    }
}

impl fmt::Debug for SymmetricKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SymmetricKey([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_opens_and_nothing_else_does() {
        let key = SymmetricKey::from_bytes(&[7; 32]).unwrap();
        let stored = key.seal(b"a user's key");
        assert_eq!(STANDARD.decode(&stored).unwrap().len(), 12 + 16 + 12);
        assert_ne!(stored, key.seal(b"a user's key"), "a nonce of its own");
        assert_eq!(**key.open(&stored).unwrap(), *b"a user's key");
        let other = SymmetricKey::from_bytes(&[8; 32]).unwrap();
        assert_eq!(other.open(&stored).unwrap_err(), DoesNotOpen);
        for bad in ["", "AAAA", "no base64", &stored[4..]] {
            assert_eq!(key.open(bad).unwrap_err(), DoesNotOpen, "{bad}");
        }
        assert!(SymmetricKey::from_bytes(&[7; 31]).is_none());
    }
}

//! C_Decrypt: an unwrap by the daemon.

use std::sync::Arc;

use claviger_provider_api::Algorithm;
use cryptoki_sys::{CKR_BUFFER_TOO_SMALL, CKR_ENCRYPTED_DATA_LEN_RANGE};
use zeroize::Zeroizing;

use crate::ffi::{Mechanism, Output};
use crate::key::Key;
use crate::mechanism;
use crate::rv::Result;
use crate::slot::{Object, Slot};

/// A decryption that was begun.
pub(crate) struct Decrypt {
    key: Arc<Key>,
    algorithm: Algorithm,
    label: Vec<u8>,
    /// What was unwrapped and did not fit into the host's buffer.
    kept: Option<Previous>,
}

struct Previous {
    wrapped: Vec<u8>,
    material: Zeroizing<Vec<u8>>,
}

impl Decrypt {
    /// With a private key and a mechanism that it allows.
    pub(crate) fn new(object: Object, mechanism: &Mechanism<'_>) -> Result<Self> {
        let key = object.key;
        let (algorithm, label) = mechanism::wrapping(mechanism, key.unwraps)?;
        Ok(Self { key, algorithm, label, kept: None })
    }

    /// Unwraps. The length that is told without asking the daemon is the modulus's: no key material
    /// is longer, and the host learns no more than that from it.
    pub(crate) fn run(&mut self, slot: &Slot, wrapped: &[u8], output: &mut Output<u8>) -> Result {
        let kept = self.kept.take().filter(|kept| kept.wrapped == wrapped);
        if kept.is_none() && (output.asks_for_length() || output.room() == 0) {
            output.tell_length(self.key.max_length());
            return if output.asks_for_length() { Ok(()) } else { Err(CKR_BUFFER_TOO_SMALL) };
        }
        let material = match kept {
            Some(kept) => kept.material,
            None if self.key.has_length(wrapped.len()) => {
                slot.unwrap_key(&self.key, wrapped, self.algorithm, &self.label)?
            }
            None => {
                // It may belong to a version that came after the key was described.
                slot.forget();
                return Err(CKR_ENCRYPTED_DATA_LEN_RANGE);
            }
        };
        let outcome = output.fill(&material);
        if output.asks_for_length() || outcome.is_err() {
            self.kept = Some(Previous { wrapped: wrapped.to_vec(), material });
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::Parameter;
    use crate::key::tests::key;
    use cryptoki_sys::{
        CK_ULONG, CKG_MGF1_SHA1, CKG_MGF1_SHA256, CKM_RSA_PKCS, CKM_RSA_PKCS_OAEP, CKM_SHA_1,
        CKM_SHA256, CKO_PRIVATE_KEY, CKR_KEY_FUNCTION_NOT_PERMITTED, CKR_MECHANISM_INVALID,
        CKR_MECHANISM_PARAM_INVALID,
    };

    fn begin(algorithms: &[&str], mechanism: &Mechanism<'_>) -> Option<CK_ULONG> {
        let object = Object { key: Arc::new(key(algorithms, &[])), class: CKO_PRIVATE_KEY };
        Decrypt::new(object, mechanism).err()
    }

    #[test]
    fn only_what_the_key_allows_begins() {
        let oaep = |hash, mgf| {
            let parameter = Parameter::Oaep { hash, mgf, source: 1, label: b"" };
            Mechanism { kind: CKM_RSA_PKCS_OAEP, parameter }
        };
        let sha1 = oaep(CKM_SHA_1, CKG_MGF1_SHA1);
        let sha256 = oaep(CKM_SHA256, CKG_MGF1_SHA256);
        let pkcs1 = Mechanism { kind: CKM_RSA_PKCS, parameter: Parameter::None };
        assert_eq!(begin(&["RSA-OAEP"], &sha1), None);
        assert_eq!(begin(&["RSA-OAEP"], &sha256), Some(CKR_MECHANISM_PARAM_INVALID));
        assert_eq!(begin(&["RSA-OAEP"], &pkcs1), Some(CKR_MECHANISM_INVALID));
        assert_eq!(begin(&["RSA1_5"], &pkcs1), None);
        assert_eq!(begin(&["RSA1_5"], &sha1), Some(CKR_MECHANISM_INVALID));
        assert_eq!(begin(&[], &sha1), Some(CKR_KEY_FUNCTION_NOT_PERMITTED));
    }
}

//! C_Encrypt and C_Verify: with the public key, in this process, without the daemon.

use std::sync::Arc;

use claviger_provider_api::{Algorithm, KeyMaterial, Parameters, PublicKeyError};
use cryptoki_sys::{
    CKR_BUFFER_TOO_SMALL, CKR_DATA_LEN_RANGE, CKR_FUNCTION_FAILED, CKR_SIGNATURE_INVALID,
    CKR_SIGNATURE_LEN_RANGE,
};

use crate::ffi::{Mechanism, Output};
use crate::key::Key;
use crate::mechanism;
use crate::rv::Result;
use crate::sign::Message;
use crate::slot::Object;

/// An encryption that was begun.
pub(crate) struct Encrypt {
    key: Arc<Key>,
    algorithm: Algorithm,
    label: Vec<u8>,
}

/// A verification that was begun.
pub(crate) struct Verify {
    key: Arc<Key>,
    message: Message,
}

impl Encrypt {
    /// With a public key and a mechanism that it allows.
    pub(crate) fn new(object: Object, mechanism: &Mechanism<'_>) -> Result<Self> {
        let key = object.key;
        let (algorithm, label) = mechanism::wrapping(mechanism, key.wraps)?;
        Ok(Self { key, algorithm, label })
    }

    /// Gives exactly as many bytes as the modulus has.
    pub(crate) fn run(&mut self, data: &[u8], output: &mut Output<u8>) -> Result {
        let length = self.key.public_key.modulus_len();
        if output.asks_for_length() || output.room() < length {
            output.tell_length(length);
            return if output.asks_for_length() { Ok(()) } else { Err(CKR_BUFFER_TOO_SMALL) };
        }
        let parameters = Parameters { algorithm: self.algorithm, label: &self.label };
        let wrapped = self.key.public_key.wrap(&KeyMaterial::copied_from(data), &parameters);
        output.fill(&wrapped.map_err(|error| match error {
            PublicKeyError::TooLong { .. } => CKR_DATA_LEN_RANGE,
            _ => CKR_FUNCTION_FAILED,
        })?)
    }
}

impl Verify {
    /// With a public key and a mechanism that it allows.
    pub(crate) fn new(object: Object, mechanism: &Mechanism<'_>) -> Result<Self> {
        let message = Message::new(mechanism, object.key.verifies)?;
        Ok(Self { key: object.key, message })
    }

    /// C_VerifyUpdate.
    pub(crate) fn update(&mut self, part: &[u8]) -> Result {
        self.message.update(part)
    }

    /// C_Verify, or C_VerifyFinal without data.
    pub(crate) fn run(&mut self, data: Option<&[u8]>, signature: &[u8]) -> Result {
        let (algorithm, digest) = self.message.digest(data)?;
        if signature.len() != self.key.public_key.modulus_len() {
            return Err(CKR_SIGNATURE_LEN_RANGE);
        }
        let good = self.key.public_key.verify(&digest, algorithm, signature);
        if good { Ok(()) } else { Err(CKR_SIGNATURE_INVALID) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::Parameter;
    use crate::key::tests::key;
    use cryptoki_sys::{CK_ULONG, CKM_RSA_PKCS, CKM_SHA256_RSA_PKCS, CKO_PUBLIC_KEY};

    fn object() -> Object {
        Object { key: Arc::new(key(&["RSA1_5"], &["RS256"])), class: CKO_PUBLIC_KEY }
    }

    #[test]
    fn an_encryption_has_the_moduluss_length_and_a_limit() {
        let mechanism = Mechanism { kind: CKM_RSA_PKCS, parameter: Parameter::None };
        let mut encrypt = Encrypt::new(object(), &mechanism).unwrap();
        let mut buffer = [0_u8; 256];
        let mut count: CK_ULONG = 256;
        // SAFETY: the buffer has 256 bytes, and `count` never says more.
        let mut output = unsafe { Output::new(buffer.as_mut_ptr(), &raw mut count) }.unwrap();
        assert_eq!(encrypt.run(&[1; 246], &mut output), Err(CKR_DATA_LEN_RANGE));
        assert_eq!(encrypt.run(&[1; 245], &mut output), Ok(()));
        assert!(count == 256 && buffer != [0; 256]);
    }

    #[test]
    fn a_bad_signature_and_one_of_another_length_are_told_apart() {
        let mechanism = Mechanism { kind: CKM_SHA256_RSA_PKCS, parameter: Parameter::None };
        let mut verify = Verify::new(object(), &mechanism).unwrap();
        assert_eq!(verify.run(Some(b"data"), &[1; 256]), Err(CKR_SIGNATURE_INVALID));
        assert_eq!(verify.run(Some(b"data"), &[1; 255]), Err(CKR_SIGNATURE_LEN_RANGE));
    }
}

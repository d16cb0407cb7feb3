//! C_Sign: a signature by the daemon over a digest that is made, or taken out of a DigestInfo, here.

use std::sync::Arc;

use aws_lc_rs::digest::Context;
use claviger_provider_api::{Digest, SignAlgorithm, SignAlgorithms};
use cryptoki_sys::{
    CKR_BUFFER_TOO_SMALL, CKR_DATA_INVALID, CKR_DATA_LEN_RANGE, CKR_FUNCTION_NOT_SUPPORTED,
    CKR_KEY_FUNCTION_NOT_PERMITTED, CKR_MECHANISM_INVALID, CKR_OPERATION_ACTIVE,
};

use crate::ffi::{Mechanism, Output};
use crate::key::Key;
use crate::mechanism::{self, Input};
use crate::rv::Result;
use crate::slot::{Object, Slot};

/// A signature that was begun.
pub(crate) struct Sign {
    key: Arc<Key>,
    message: Message,
}

/// What is signed or verified, in one part or in several where the mechanism hashes.
pub(crate) struct Message {
    input: Input,
    allowed: SignAlgorithms,
    parts: Option<Context>,
}

impl Sign {
    /// With a private key and a mechanism that it allows.
    pub(crate) fn new(object: Object, mechanism: &Mechanism<'_>) -> Result<Self> {
        let message = Message::new(mechanism, object.key.signs)?;
        Ok(Self { key: object.key, message })
    }

    /// C_SignUpdate.
    pub(crate) fn update(&mut self, part: &[u8]) -> Result {
        self.message.update(part)
    }

    /// C_Sign, or C_SignFinal without data. The length is known without asking the daemon.
    pub(crate) fn run(
        &mut self,
        slot: &Slot,
        data: Option<&[u8]>,
        output: &mut Output<u8>,
    ) -> Result {
        let length = self.key.public_key.modulus_len();
        if output.asks_for_length() || output.room() < length {
            output.tell_length(length);
            return if output.asks_for_length() { Ok(()) } else { Err(CKR_BUFFER_TOO_SMALL) };
        }
        let (algorithm, digest) = self.message.digest(data)?;
        output.fill(&slot.sign(&self.key, &digest, algorithm)?)
    }
}

impl Message {
    pub(crate) fn new(mechanism: &Mechanism<'_>, allowed: SignAlgorithms) -> Result<Self> {
        let input = mechanism::signing(mechanism)?;
        if allowed.is_empty() {
            return Err(CKR_KEY_FUNCTION_NOT_PERMITTED);
        }
        let fits = match input {
            Input::DigestInfo => allowed.iter().any(|algorithm| !algorithm.is_pss()),
            Input::Digest(algorithm) | Input::Message(algorithm) => allowed.contains(algorithm),
        };
        if fits { Ok(Self { input, allowed, parts: None }) } else { Err(CKR_MECHANISM_INVALID) }
    }

    /// One part more; only a mechanism that hashes takes a message in parts.
    pub(crate) fn update(&mut self, part: &[u8]) -> Result {
        let Input::Message(algorithm) = self.input else { return Err(CKR_FUNCTION_NOT_SUPPORTED) };
        self.parts.get_or_insert_with(|| mechanism::hasher(algorithm.hash())).update(part);
        Ok(())
    }

    /// The digest to sign or verify: of all parts, or of the data that came at once.
    pub(crate) fn digest(&mut self, data: Option<&[u8]>) -> Result<(SignAlgorithm, Digest)> {
        match (self.input, data, self.parts.take()) {
            (_, Some(_), Some(_)) => Err(CKR_OPERATION_ACTIVE),
            (Input::Message(algorithm), data, parts) => {
                let mut hasher = parts.unwrap_or_else(|| mechanism::hasher(algorithm.hash()));
                hasher.update(data.unwrap_or_default());
                let digest = Digest::new(algorithm.hash(), hasher.finish().as_ref());
                Ok((algorithm, digest.expect("a hash gives as many bytes as it has")))
            }
            (_, None, _) => Err(CKR_FUNCTION_NOT_SUPPORTED),
            (Input::Digest(algorithm), Some(data), _) => {
                let digest = Digest::new(algorithm.hash(), data).ok_or(CKR_DATA_LEN_RANGE)?;
                Ok((algorithm, digest))
            }
            (Input::DigestInfo, Some(data), _) => mechanism::digest_info(data)
                .filter(|(algorithm, _)| self.allowed.contains(*algorithm))
                .ok_or(CKR_DATA_INVALID),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::Parameter;
    use aws_lc_rs::digest::{SHA256, digest};
    use cryptoki_sys::{
        CK_ULONG, CKG_MGF1_SHA256, CKM_RSA_PKCS, CKM_RSA_PKCS_PSS, CKM_SHA256, CKM_SHA256_RSA_PKCS,
    };

    fn message(
        kind: CK_ULONG,
        parameter: Parameter<'_>,
        allowed: &[SignAlgorithm],
    ) -> Result<Message> {
        Message::new(&Mechanism { kind, parameter }, allowed.iter().copied().collect())
    }

    #[test]
    fn a_message_in_parts_is_the_message_at_once() {
        let new =
            || message(CKM_SHA256_RSA_PKCS, Parameter::None, &[SignAlgorithm::Rs256]).unwrap();
        let mut parts = new();
        parts.update(b"one ").unwrap();
        parts.update(b"message").unwrap();
        let (algorithm, digested) = parts.digest(None).unwrap();
        assert_eq!(algorithm, SignAlgorithm::Rs256);
        assert_eq!(digested.as_bytes(), digest(&SHA256, b"one message").as_ref());
        assert_eq!(new().digest(Some(b"one message")).unwrap().1, digested);
        assert_eq!(new().digest(None).unwrap().1.as_bytes(), digest(&SHA256, b"").as_ref());
        let mut mixed = new();
        mixed.update(b"one ").unwrap();
        assert_eq!(mixed.digest(Some(b"message")).unwrap_err(), CKR_OPERATION_ACTIVE);
    }

    #[test]
    fn a_digest_comes_in_one_part_of_exactly_its_length() {
        let pss = Parameter::Pss { hash: CKM_SHA256, mgf: CKG_MGF1_SHA256, salt_len: 32 };
        let new = || message(CKM_RSA_PKCS_PSS, pss, &[SignAlgorithm::Ps256]).unwrap();
        assert_eq!(new().digest(Some(&[1; 32])).unwrap().1.as_bytes(), [1; 32]);
        assert_eq!(new().digest(Some(&[1; 31])).unwrap_err(), CKR_DATA_LEN_RANGE);
        assert_eq!(new().update(&[1; 32]), Err(CKR_FUNCTION_NOT_SUPPORTED));
        assert_eq!(new().digest(None).unwrap_err(), CKR_FUNCTION_NOT_SUPPORTED);
    }

    #[test]
    fn a_digest_info_needs_its_own_algorithm() {
        let data = [&hex::decode("3031300d060960864801650304020105000420").unwrap()[..], &[7; 32]]
            .concat();
        let new = |allowed: &[_]| message(CKM_RSA_PKCS, Parameter::None, allowed);
        assert!(new(&[SignAlgorithm::Rs256]).unwrap().digest(Some(&data)).is_ok());
        let other = new(&[SignAlgorithm::Rs512]).unwrap().digest(Some(&data));
        assert_eq!(other.unwrap_err(), CKR_DATA_INVALID);
        let raw = new(&[SignAlgorithm::Rs256]).unwrap().digest(Some(&[7; 32]));
        assert_eq!(raw.unwrap_err(), CKR_DATA_INVALID);
        assert_eq!(new(&[SignAlgorithm::Ps256]).err(), Some(CKR_MECHANISM_INVALID));
        assert_eq!(new(&[]).err(), Some(CKR_KEY_FUNCTION_NOT_PERMITTED));
    }
}

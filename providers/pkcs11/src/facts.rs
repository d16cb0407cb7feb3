//! What is known of an open key, and what is checked before and after its token is asked.

use claviger_provider_api::checks::{
    check_algorithm, check_digest, check_signature, label_not_taken,
};
use claviger_provider_api::{
    Algorithm, Algorithms, Digest, Error, ErrorKind, Parameters, PublicKey, SignAlgorithm,
    SignAlgorithms, Signature,
};

use crate::config::Oaep;

/// What was found when the key was opened.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) public_key: PublicKey,
    pub(crate) algorithms: Algorithms,
    pub(crate) sign_algorithms: SignAlgorithms,
    /// The algorithms with which the token takes a label.
    pub(crate) labels: Algorithms,
    /// As the token told.
    pub(crate) extractable: Option<bool>,
    /// As the token told.
    pub(crate) unneeded_rights: Vec<String>,
    /// Who removes the OAEP padding.
    pub(crate) oaep: Oaep,
}

impl Facts {
    /// Whether only a canary tells whose fault a failed unwrap was: no return value of a token that
    /// removes the padding means "bad ciphertext" and nothing else; one that does raw RSA never sees
    /// the padding.
    pub(crate) fn failure_needs_check(&self) -> bool {
        self.oaep == Oaep::Native || self.algorithms.contains(Algorithm::Rsa15)
    }

    /// Refuses what the key was not opened for, and values that no token may see.
    pub(crate) fn check_unwrap(
        &self,
        wrapped: &[u8],
        parameters: &Parameters<'_>,
    ) -> Result<(), Error> {
        let Parameters { algorithm, label } = *parameters;
        check_algorithm(self.algorithms.contains(algorithm), algorithm)?;
        if !label.is_empty() && !self.labels.contains(algorithm) {
            return Err(label_not_taken(algorithm).in_context("see oaep = \"software\""));
        }
        if self.may_be_sent(wrapped) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::UnwrapFailed, "the value is out of range"))
    }

    /// Refuses what the key was not opened for.
    pub(crate) fn check_sign(
        &self,
        digest: &Digest,
        algorithm: SignAlgorithm,
    ) -> Result<(), Error> {
        check_algorithm(self.sign_algorithms.contains(algorithm), algorithm)?;
        check_digest(digest, algorithm)
    }

    /// The signature, if it verifies.
    pub(crate) fn accept_signature(
        &self,
        digest: &Digest,
        algorithm: SignAlgorithm,
        signature: &[u8],
    ) -> Result<Signature, Error> {
        let signature = Signature::without_request_id(signature.to_vec());
        check_signature(&self.public_key, digest, algorithm, signature)
    }

    /// Whether a token may see the value: as long as the modulus and in 2..n-1. 0, 1 and n-1 are
    /// their own results, and no encoding.
    fn may_be_sent(&self, wrapped: &[u8]) -> bool {
        let Some((last, rest)) = wrapped.split_last() else { return false };
        let tiny = *last <= 1 && rest.iter().all(|byte| *byte == 0);
        // The modulus is odd, so that it and n-1 differ in the last byte only.
        let (modulus_last, modulus_rest) =
            self.public_key.modulus().split_last().expect("a modulus has 256 bytes or more");
        let largest = rest == modulus_rest && *last == modulus_last.wrapping_sub(1);
        self.public_key.value_in_range(wrapped) && !tiny && !largest
    }
}

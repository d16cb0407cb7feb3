//! The key under test, and the daemon's checks in front of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::rand;
use claviger_provider_api::{
    Algorithm, Call, CallerSlot, Digest, Error, ErrorKind, KeyMaterial, Parameters, PublicKey,
    SignAlgorithm, WrappingKey,
};

/// What a case says: nothing, or what was wrong.
pub(crate) type Outcome = Result<(), String>;

/// A key under test.
#[derive(Debug)]
pub struct Subject {
    name: String,
    key: Arc<dyn WrappingKey>,
    labels: bool,
}

impl Subject {
    /// A key under the name that reports give it, such as `software/rsa-2048`.
    pub fn new(name: impl Into<String>, key: Arc<dyn WrappingKey>) -> Self {
        Self { name: name.into(), key, labels: true }
    }

    /// Says that this key's OAEP takes no label (SoftHSM): the suite then asks for a clear error
    /// where a label is given, instead of for the plaintext.
    #[must_use]
    pub fn without_labels(self) -> Self {
        Self { labels: false, ..self }
    }

    /// The name in reports.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn key(&self) -> &Arc<dyn WrappingKey> {
        &self.key
    }

    pub(crate) fn public_key(&self) -> &PublicKey {
        self.key.public_key()
    }

    pub(crate) fn labels(&self) -> bool {
        self.labels
    }

    /// The modulus's length in bytes.
    pub(crate) fn k(&self) -> usize {
        self.public_key().modulus_len()
    }

    pub(crate) fn algorithms(&self) -> Vec<Algorithm> {
        self.key.algorithms().iter().collect()
    }

    pub(crate) fn sign_algorithms(&self) -> Vec<SignAlgorithm> {
        self.key.sign_algorithms().iter().collect()
    }

    /// Wraps in software under the key's public half, as the daemon does.
    pub(crate) fn wrap(
        &self,
        material: &[u8],
        parameters: &Parameters<'_>,
    ) -> Result<Vec<u8>, String> {
        self.public_key()
            .wrap(&KeyMaterial::copied_from(material), parameters)
            .map_err(|error| format!("cannot wrap for the test: {error}"))
    }

    /// Unwraps without any check before the key.
    pub(crate) async fn unwrap(
        &self,
        wrapped: &[u8],
        parameters: &Parameters<'_>,
    ) -> Result<KeyMaterial, Error> {
        let call = call(CallerSlot(1));
        self.key.unwrap_key(wrapped, parameters, call).await.map(|unwrapped| unwrapped.material)
    }

    /// Unwraps as the daemon does: the length and the range of the value are checked first.
    pub(crate) async fn checked_unwrap(
        &self,
        wrapped: &[u8],
        parameters: &Parameters<'_>,
    ) -> Result<KeyMaterial, Error> {
        if !self.public_key().value_in_range(wrapped) {
            return Err(Error::new(ErrorKind::UnwrapFailed, "refused before the key"));
        }
        self.unwrap(wrapped, parameters).await
    }

    /// Asks for the plaintext.
    pub(crate) async fn expect(
        &self,
        wrapped: &[u8],
        parameters: &Parameters<'_>,
        plaintext: &[u8],
    ) -> Outcome {
        match self.checked_unwrap(wrapped, parameters).await {
            Ok(material) if material.expose() == plaintext => Ok(()),
            Ok(material) => Err(format!(
                "{} gave {} other bytes for {} bytes of key material",
                parameters.algorithm,
                material.expose().len(),
                plaintext.len()
            )),
            Err(error) => Err(format!(
                "{} failed on a good value: {:?}: {error}",
                parameters.algorithm,
                error.kind()
            )),
        }
    }

    /// Asks for [`ErrorKind::UnwrapFailed`] and, where a failure needs a check, for a key that is
    /// well after it. RSA1_5 may give random bytes with success (implicit rejection, as OpenSSL
    /// does since 3.2), but never those that were wrapped.
    pub(crate) async fn expect_failure(
        &self,
        wrapped: &[u8],
        parameters: &Parameters<'_>,
        not: Option<&[u8]>,
    ) -> Outcome {
        let algorithm = parameters.algorithm;
        match self.checked_unwrap(wrapped, parameters).await {
            Ok(material) if algorithm == Algorithm::Rsa15 && Some(material.expose()) != not => {
                return Ok(());
            }
            Ok(_) => return Err(format!("{algorithm} unwrapped a bad value")),
            Err(error) if error.kind() == ErrorKind::UnwrapFailed => {}
            Err(error) => {
                let kind = error.kind();
                return Err(format!("{algorithm} gave {kind:?} for a bad value: {error}"));
            }
        }
        if self.key.failure_needs_check() {
            self.expect_well("after a bad value").await?;
        }
        Ok(())
    }

    /// Asks for a check that succeeds.
    pub(crate) async fn expect_well(&self, when: &str) -> Outcome {
        let outcome = self.key.check().await;
        outcome.map_err(|error| format!("check failed {when}: {:?}: {error}", error.kind()))
    }

    /// Does one fresh good operation: an unwrap, or a signature for keys that only sign.
    pub(crate) async fn expect_service(&self) -> Outcome {
        if let Some(&algorithm) = self.algorithms().first() {
            let plaintext = random(32);
            let parameters = Parameters::of(algorithm);
            let wrapped = self.wrap(&plaintext, &parameters)?;
            return self.expect(&wrapped, &parameters, &plaintext).await;
        }
        let Some(&algorithm) = self.sign_algorithms().first() else {
            return Err("the key declares no algorithm at all".to_owned());
        };
        let outcome = self.key.sign(&digest(algorithm), algorithm, call(CallerSlot(1))).await;
        outcome.map(|_| ()).map_err(|error| format!("{algorithm} failed: {error}"))
    }
}

/// A call with a deadline that no healthy key misses.
pub(crate) fn call(caller: CallerSlot) -> Call {
    Call { caller, deadline: Instant::now() + Duration::from_mins(1) }
}

/// A random digest of an algorithm's hash.
pub(crate) fn digest(algorithm: SignAlgorithm) -> Digest {
    let hash = algorithm.hash();
    Digest::new(hash, &random(hash.len())).expect("made with the hash's length")
}

/// Random bytes.
pub(crate) fn random(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rand::fill(&mut bytes).expect("the system gives random bytes");
    bytes
}

//! A key in a token, open: what the daemon calls.

use std::sync::Arc;
use std::sync::mpsc::TrySendError;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use claviger_provider_api::opened_key::{
    check_algorithm, check_deadline, check_digest, check_signature, label_not_taken,
};
use claviger_provider_api::{
    Algorithm, Algorithms, Call, Cause, Digest, Error, ErrorKind, KeyMaterial, Parameters,
    PublicKey, SignAlgorithm, SignAlgorithms, Signature, Unwrapped, WrappingKey,
};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use crate::check_request::CheckRequest;
use crate::config::Oaep;
use crate::job::Job;
use crate::operation::Operation;
use crate::token::TokenHandle;
use crate::token_key::TokenKey;

/// How long a check may take: a module that hangs must not hold up its caller.
const CHECK_LIMIT: Duration = Duration::from_secs(30);

/// An open key. Its token stays logged in until the last key on it is dropped.
#[derive(Debug)]
pub(crate) struct Key {
    on_token: Arc<TokenKey>,
    token: TokenHandle,
    algorithms: Algorithms,
    sign_algorithms: SignAlgorithms,
    /// The algorithms with which the token takes a label.
    labels: Algorithms,
    /// As the token told when the key was opened.
    extractable: Option<bool>,
    /// As the token told then.
    unneeded_rights: Vec<String>,
}

impl Key {
    /// A key that was found and proven.
    pub(crate) fn new(
        on_token: Arc<TokenKey>,
        token: TokenHandle,
        algorithms: Algorithms,
        sign_algorithms: SignAlgorithms,
        labels: Algorithms,
        extractable: Option<bool>,
        unneeded_rights: Vec<String>,
    ) -> Self {
        Self { on_token, token, algorithms, sign_algorithms, labels, extractable, unneeded_rights }
    }

    async fn submit(&self, operation: Operation, call: Call) -> Result<Zeroizing<Vec<u8>>, Error> {
        let late = || Error::new(ErrorKind::DeadlineExceeded, "the deadline passed");
        check_deadline(call)?;
        if let Some(error) = self.on_token.breaker.refusal() {
            return Err(error);
        }
        let (reply, answer) = oneshot::channel();
        let job = Job { key: self.on_token.index, operation, deadline: call.deadline, reply };
        self.token.state().queue.push(call.caller, job)?;
        match tokio::time::timeout_at(call.answer_by().into(), answer).await {
            Ok(Ok(outcome)) => outcome,
            // A session thread drops a job, unanswered, only after its deadline.
            Ok(Err(_)) | Err(_) => Err(late()),
        }
    }

    fn check_parameters(&self, parameters: &Parameters<'_>) -> Result<(), Error> {
        let Parameters { algorithm, label } = *parameters;
        check_algorithm(self.algorithms.contains(algorithm), algorithm)?;
        if label.is_empty() || self.labels.contains(algorithm) {
            return Ok(());
        }
        Err(label_not_taken(algorithm).in_context("see oaep = \"software\""))
    }

    /// Whether a token may see the value: as long as the modulus and in 2..n-1. 0, 1 and n-1 are
    /// their own results, and no encoding.
    fn may_be_sent(&self, wrapped: &[u8]) -> bool {
        let public_key = &self.on_token.public_key;
        let Some((last, rest)) = wrapped.split_last() else { return false };
        let tiny = *last <= 1 && rest.iter().all(|byte| *byte == 0);
        // The modulus is odd, so that it and n-1 differ in the last byte only.
        let (modulus_last, modulus_rest) =
            public_key.modulus().split_last().expect("a modulus has 256 bytes or more");
        let largest = rest == modulus_rest && *last == modulus_last.wrapping_sub(1);
        public_key.value_in_range(wrapped) && !tiny && !largest
    }
}

#[async_trait]
impl WrappingKey for Key {
    fn public_key(&self) -> &PublicKey {
        &self.on_token.public_key
    }

    fn algorithms(&self) -> Algorithms {
        self.algorithms
    }

    fn label_algorithms(&self) -> Algorithms {
        self.labels
    }

    fn sign_algorithms(&self) -> SignAlgorithms {
        self.sign_algorithms
    }

    fn queues(&self) -> bool {
        true
    }

    fn failure_needs_check(&self) -> bool {
        // No return value of a token that removes the padding means "bad ciphertext" and nothing
        // else; one that does raw RSA never sees the padding.
        self.on_token.oaep == Oaep::Native || self.algorithms.contains(Algorithm::Rsa15)
    }

    fn extractable(&self) -> Option<bool> {
        self.extractable
    }

    fn unneeded_rights(&self) -> &[String] {
        &self.unneeded_rights
    }

    fn repairs(&self) -> u64 {
        self.token.state().repairs()
    }

    async fn unwrap_key(
        &self,
        wrapped: &[u8],
        parameters: &Parameters<'_>,
        call: Call,
    ) -> Result<Unwrapped, Error> {
        self.check_parameters(parameters)?;
        if !self.may_be_sent(wrapped) {
            return Err(Error::new(ErrorKind::UnwrapFailed, "the value is out of range"));
        }
        let operation = Operation::unwrap(wrapped, parameters, self.on_token.oaep);
        let material = KeyMaterial::new(self.submit(operation, call).await?);
        Ok(Unwrapped { material, backend_request_id: None })
    }

    async fn sign(
        &self,
        digest: &Digest,
        algorithm: SignAlgorithm,
        call: Call,
    ) -> Result<Signature, Error> {
        check_algorithm(self.sign_algorithms.contains(algorithm), algorithm)?;
        check_digest(digest, algorithm)?;
        let operation = Operation::sign(digest, algorithm);
        let signature = self.submit(operation, call).await?.to_vec();
        let signature = Signature::without_request_id(signature);
        check_signature(self.public_key(), digest, algorithm, signature)
    }

    async fn check(&self) -> Result<(), Error> {
        if let Some(error) = self.on_token.breaker.too_early(Instant::now()) {
            return Err(error);
        }
        let silent =
            |text| Err(Error::new(ErrorKind::Unavailable, text).with_cause(Cause::NoAnswer));
        let (reply, answer) = oneshot::channel();
        match self.token.checks().try_send(CheckRequest::Key(self.on_token.index, reply)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return silent("too many checks wait for the token"),
            Err(TrySendError::Disconnected(_)) => return silent("the token's checks have ended"),
        }
        match tokio::time::timeout(CHECK_LIMIT, answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => silent("the key was closed"),
            Err(_) => silent("the module did not answer a canary for 30 s"),
        }
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.token.state().remove(self.on_token.index);
    }
}

//! A key in a token, open: what the daemon calls.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::TrySendError;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use claviger_provider_api::checks::check_deadline;
use claviger_provider_api::{
    Algorithms, Call, CallerSlot, Cause, Digest, Error, ErrorKind, KeyMaterial, Parameters,
    PublicKey, SignAlgorithm, SignAlgorithms, Signature, Unwrapped, WrappingKey,
};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use crate::check_request::CheckRequest;
use crate::config::Oaep;
use crate::facts::Facts;
use crate::job::Job;
use crate::operation::Operation;
use crate::reply::{Local, Reply};
use crate::token::TokenHandle;
use crate::token_key::TokenKey;

/// How long a check may take: a module that hangs must not hold up its caller.
const CHECK_LIMIT: Duration = Duration::from_secs(30);

/// An open key. Its token stays logged in until the last key on it is dropped.
pub(crate) struct Key {
    on_token: Arc<TokenKey>,
    token: TokenHandle,
    facts: Facts,
}

impl Key {
    /// A key that was found and proven.
    pub(crate) fn new(on_token: Arc<TokenKey>, token: TokenHandle, facts: Facts) -> Self {
        Self { on_token, token, facts }
    }

    /// Who removes the OAEP padding.
    pub(crate) fn oaep(&self) -> Oaep {
        self.facts.oaep
    }

    /// Puts an operation into its caller's queue; a session thread answers to `reply`, or drops it
    /// where the deadline has passed.
    pub(crate) fn submit(
        &self,
        operation: Operation,
        caller: CallerSlot,
        deadline: Instant,
        reply: Box<dyn Reply>,
    ) -> Result<(), Error> {
        if let Some(error) = self.on_token.breaker.refusal() {
            reply.send(Err(error));
            return Ok(());
        }
        let job = Job { key: self.on_token.index, operation, deadline, reply };
        self.token.state().queue.push(caller, job)
    }

    async fn run(&self, operation: Operation, call: Call) -> Result<Zeroizing<Vec<u8>>, Error> {
        let late = || Error::new(ErrorKind::DeadlineExceeded, "the deadline passed");
        check_deadline(call)?;
        let (reply, answer) = Local::new();
        self.submit(operation, call.caller, call.deadline, Box::new(reply))?;
        match tokio::time::timeout_at(call.answer_by().into(), answer).await {
            Ok(Ok(outcome)) => outcome,
            // A session thread drops a job, unanswered, only after its deadline.
            Ok(Err(_)) | Err(_) => Err(late()),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?})", self.facts.public_key)
    }
}

#[async_trait]
impl WrappingKey for Key {
    fn public_key(&self) -> &PublicKey {
        &self.facts.public_key
    }

    fn algorithms(&self) -> Algorithms {
        self.facts.algorithms
    }

    fn label_algorithms(&self) -> Algorithms {
        self.facts.labels
    }

    fn sign_algorithms(&self) -> SignAlgorithms {
        self.facts.sign_algorithms
    }

    fn queues(&self) -> bool {
        true
    }

    fn failure_needs_check(&self) -> bool {
        self.facts.failure_needs_check()
    }

    fn extractable(&self) -> Option<bool> {
        self.facts.extractable
    }

    fn unneeded_rights(&self) -> &[String] {
        &self.facts.unneeded_rights
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
        self.facts.check_unwrap(wrapped, parameters)?;
        let operation = Operation::unwrap(wrapped, parameters, self.facts.oaep);
        let material = KeyMaterial::new(self.run(operation, call).await?);
        Ok(Unwrapped { material, backend_request_id: None })
    }

    async fn sign(
        &self,
        digest: &Digest,
        algorithm: SignAlgorithm,
        call: Call,
    ) -> Result<Signature, Error> {
        self.facts.check_sign(digest, algorithm)?;
        let signature = self.run(Operation::sign(digest, algorithm), call).await?;
        self.facts.accept_signature(digest, algorithm, &signature)
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

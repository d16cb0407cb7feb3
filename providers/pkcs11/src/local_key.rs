//! An open key whose module runs in this process: operations and checks go to its token's threads.

use std::sync::Arc;
use std::sync::mpsc::TrySendError;
use std::time::{Duration, Instant};

use claviger_provider_api::queue_time::waited_in_queue;
use claviger_provider_api::{Call, CallerSlot, Cause, Error, ErrorKind};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use crate::check_request::CheckRequest;
use crate::fault::Fault;
use crate::job::Job;
use crate::operation::Operation;
use crate::reply::{Local, Reply};
use crate::token::Token;
use crate::token_key::TokenKey;

/// How long a check may take: a module that hangs must not hold up its caller.
const CHECK_LIMIT: Duration = Duration::from_secs(30);

/// The key. Its token stays logged in until the last key on it is dropped.
#[derive(Debug)]
pub(crate) struct LocalKey {
    on_token: Arc<TokenKey>,
    token: Arc<Token>,
}

impl LocalKey {
    /// A key that was found and proven.
    pub(crate) fn new(on_token: Arc<TokenKey>, token: Arc<Token>) -> Self {
        Self { on_token, token }
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
        let since = Instant::now();
        let job = Job { key: self.on_token.index, operation, deadline, since, reply };
        self.token.state().queue.push(caller, job)
    }

    /// The bytes that an operation gives.
    pub(crate) async fn run(
        &self,
        operation: Operation,
        call: Call,
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        let (reply, answer) = Local::new();
        self.submit(operation, call.caller, call.deadline, Box::new(reply))?;
        match tokio::time::timeout_at(call.answer_by().into(), answer).await {
            Ok(Ok((outcome, queued))) => {
                waited_in_queue(queued);
                outcome
            }
            // A session thread drops a job, unanswered, only after its deadline.
            Ok(Err(_)) | Err(_) => {
                Err(Error::new(ErrorKind::DeadlineExceeded, "the deadline passed"))
            }
        }
    }

    /// A canary, and repairs if it fails.
    pub(crate) async fn check(&self) -> Result<(), Fault> {
        let silent = |text| {
            let error = Error::new(ErrorKind::Unavailable, text).with_cause(Cause::NoAnswer);
            Err(Fault::of_process(error))
        };
        let (reply, answer) = oneshot::channel();
        let request = CheckRequest { key: self.on_token.index, reply };
        match self.token.checks().try_send(request) {
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

    /// How often something under it was repaired.
    pub(crate) fn repairs(&self) -> u64 {
        self.token.state().repairs()
    }
}

impl Drop for LocalKey {
    fn drop(&mut self) {
        self.token.state().remove(self.on_token.index);
    }
}

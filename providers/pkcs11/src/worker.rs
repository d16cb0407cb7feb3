//! Session threads: one session each, fed from one queue in which every caller has its turn.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use claviger_provider_api::{Error, ErrorKind};
use zeroize::Zeroizing;

use crate::job::Job;
use crate::login_epoch::LoginEpoch;
use crate::module::OpenSession;
use crate::operation::{Failure, Operation};
use crate::token_state::TokenState;

/// How long a thread that gets no session leaves the jobs to those that have one.
const NO_SESSION_PAUSE: Duration = Duration::from_millis(100);

/// A thread's session, of one login.
struct Held {
    epoch: LoginEpoch,
    session: OpenSession,
    /// After an error it may be stuck in an operation, and after any outcome of an operation without its
    /// caller it would tell which: it closes once the answer was sent.
    spent: bool,
}

/// Starts the threads; they end once the queue is closed and empty.
pub(crate) fn start(state: &Arc<TokenState>, count: usize) -> Result<Vec<JoinHandle<()>>, Error> {
    let threads = (0..count).map(|_| {
        let state = Arc::clone(state);
        thread::Builder::new().name("pkcs11-session".to_owned()).spawn(move || serve(&state))
    });
    threads.collect::<Result<_, _>>().map_err(|error| {
        state.queue.close();
        Error::new(ErrorKind::Unavailable, format!("cannot start a session thread: {error}"))
    })
}

fn serve(state: &TokenState) {
    let mut held = None;
    while let Some(Job { key, operation, deadline, since, reply }) = state.queue.pop() {
        let queued = since.elapsed();
        // The caller is gone, or would be before the token answers.
        if reply.is_gone() || Instant::now() >= deadline {
            continue;
        }
        let run = AssertUnwindSafe(|| run(state, &mut held, key, operation));
        let outcome = catch_unwind(run).unwrap_or_else(|_| {
            held = None;
            Err(Error::new(ErrorKind::Internal, "a session thread panicked"))
        });
        let throttled =
            matches!(&outcome, Err(error) if matches!(error.kind(), ErrorKind::Throttled { .. }));
        // Of a caller that has left, the time of the next call must not tell how this one ended.
        let is_abandoned = reply.caller_has_left() || Instant::now() >= deadline;
        if let Some(held) = &mut held {
            held.spent |= is_abandoned;
        }
        // The caller may have gone meanwhile; then the result is zeroed here.
        reply.send(outcome, queued);
        // Closing a session is another call over the network: before the answer, it would make a
        // failure known later than a success.
        if held.as_ref().is_some_and(|held| held.spent) {
            held = None;
        }
        if throttled && held.is_none() {
            thread::sleep(NO_SESSION_PAUSE);
        }
    }
}

fn run(
    state: &TokenState,
    held: &mut Option<Held>,
    key: u32,
    operation: Operation,
) -> Result<Zeroizing<Vec<u8>>, Error> {
    let key = state.key(key).ok_or_else(|| {
        Error::new(ErrorKind::Unavailable, "the key was closed while the job waited")
    })?;
    if held.as_ref().is_some_and(|held| held.epoch != state.epoch()) {
        *held = None;
    }
    let held = match held {
        Some(held) => held,
        None => held.insert(open(state)?),
    };
    // By the session's own login: the token may have been logged in to again just now.
    let object = key.handle(held.epoch)?;
    match operation.run(&held.session, object, key.public_key.modulus_len()) {
        Ok(bytes) => Ok(bytes),
        Err(Failure::Value(error)) => Err(error),
        Err(Failure::Token(error)) => {
            held.spent = true;
            // No value makes a token say this, and the caller tries again if it helped.
            if error.kind() == ErrorKind::Unavailable
                && let Ok(fresh) = open(state)
            {
                *held = fresh;
                state.repaired();
            }
            Err(error)
        }
    }
}

fn open(state: &TokenState) -> Result<Held, Error> {
    let (epoch, session) = state.open_session()?;
    Ok(Held { epoch, session, spent: false })
}

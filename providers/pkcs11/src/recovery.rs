//! Checks and repairs of a token: a canary says whether anything is broken, and then one rung after
//! the other is tried: a new session and a new search for the key, then one login. What these do not
//! mend, a new process of the module may.
//!
//! One thread per token does this, so that there is one run at a time; a check that is asked for
//! meanwhile shares the next run. Only a canary that failed makes it do anything: what a caller sent
//! never does.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use claviger_provider_api::{Error, ErrorKind};

use crate::check_request::CheckRequest;
use crate::fault::Fault;
use crate::login::LoginFault;
use crate::token_key::TokenKey;
use crate::token_state::TokenState;

/// How many checks may wait.
const WAITING: usize = 4096;

/// Starts the thread. It ends when no check can be asked for any more, waits for the session threads, and lets
/// go of the token.
pub(crate) fn start(
    state: &Arc<TokenState>,
    workers: Vec<JoinHandle<()>>,
) -> Result<SyncSender<CheckRequest>, Error> {
    let (checks, requests) = sync_channel(WAITING);
    let theirs = Arc::clone(state);
    let thread = thread::Builder::new().name("pkcs11-recovery".to_owned());
    let spawned = thread.spawn(move || {
        serve(&theirs, &requests);
        for worker in workers {
            // Its panics were caught and answered.
            let _ = worker.join();
        }
    });
    match spawned {
        Ok(_) => Ok(checks),
        Err(error) => {
            state.queue.close();
            let text = format!("cannot start the thread that checks the token: {error}");
            Err(Error::new(ErrorKind::Unavailable, text))
        }
    }
}

fn serve(state: &TokenState, requests: &Receiver<CheckRequest>) {
    while let Ok(first) = requests.recv() {
        let mut waiting: BTreeMap<u32, Vec<_>> = BTreeMap::new();
        for CheckRequest { key, reply } in std::iter::once(first).chain(requests.try_iter()) {
            waiting.entry(key).or_default().push(reply);
        }
        for (key, replies) in waiting {
            let Some(key) = state.key(key) else { continue };
            let check = AssertUnwindSafe(|| check(state, &key));
            let outcome = catch_unwind(check).unwrap_or_else(|_| {
                let error = Error::new(ErrorKind::Internal, "a check of the token panicked");
                Err(Fault::of_process(error))
            });
            for reply in replies {
                // The caller may have gone.
                drop(reply.send(outcome.as_ref().copied().map_err(Fault::repeated)));
            }
        }
    }
}

/// Runs the key's canary; if that fails, climbs until it succeeds.
fn check(state: &TokenState, key: &TokenKey) -> Result<(), Fault> {
    if let Err(error) = prove(state, key) {
        if matches!(error.kind(), ErrorKind::Throttled { .. }) {
            return Err(Fault::of_key(error));
        }
        let locator = &key.wanted.locator;
        tracing::debug!(%locator, %error, "the canary failed; repairing");
        let rung = repair(state, key)?;
        tracing::warn!(%locator, rung, %error, "repaired");
        state.repaired();
    }
    state.a_key_is_well();
    Ok(())
}

/// Climbs the rungs inside this process, and names the one that helped.
fn repair(state: &TokenState, key: &TokenKey) -> Result<&'static str, Fault> {
    let error = match renew(state, key) {
        Ok(()) => return Ok("a new session"),
        Err(error) => error,
    };
    if error.kind() == ErrorKind::OperatorNeeded || is_logged_in(state) {
        return Err(state.judge_missed(error));
    }
    match state.log_in() {
        Ok(()) => {}
        // No second login in one run: the token may have counted this one.
        Err(LoginFault::Made(error)) => return Err(Fault::of_key(error)),
        Err(LoginFault::NotMade(error)) => return Err(state.judge(error)),
    }
    let renewed = renew_all(state).and_then(|()| renew(state, key));
    renewed.map(|()| "a login").map_err(|error| state.judge_missed(error))
}

/// Whether private objects are seen now.
fn is_logged_in(state: &TokenState) -> bool {
    let session = state.open_session();
    let sees = session.and_then(|(_, session)| Ok(!state.needs_login() || session.is_logged_in()?));
    sees.unwrap_or(false)
}

/// A canary through a new session.
fn prove(state: &TokenState, key: &TokenKey) -> Result<(), Error> {
    let (epoch, session) = state.open_session()?;
    key.prove(epoch, &session, state.needs_login())
}

/// A new session, a new handle, a canary.
fn renew(state: &TokenState, key: &TokenKey) -> Result<(), Error> {
    let (epoch, session) = state.open_session()?;
    key.find_again(epoch, &session, state.needs_login())?;
    drop(session);
    prove(state, key)
}

/// New handles for all keys after a login. A key that is not found shows in its own check.
fn renew_all(state: &TokenState) -> Result<(), Error> {
    let (epoch, session) = state.open_session()?;
    for key in state.keys() {
        if let Err(error) = key.find_again(epoch, &session, state.needs_login()) {
            tracing::error!(locator = %key.wanted.locator, %error, "not found again");
        }
    }
    Ok(())
}

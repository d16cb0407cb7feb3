//! Checks and repairs of a token: a canary says whether anything is broken, and then one rung after
//! the other is tried: a new session, a login, a new start of the module.
//!
//! One thread per token does this, so that there is one run at a time; a check that is asked for
//! meanwhile shares the next run. Only a canary that failed makes it do anything: what a caller sent
//! never does.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use claviger_provider_api::{Error, ErrorKind};
use tokio::sync::oneshot;

use crate::check_request::CheckRequest;
use crate::login::LoginFault;
use crate::token::tokens_in_use;
use crate::token_key::{KeyFault, TokenKey};
use crate::token_state::TokenState;

/// How many checks may wait.
const WAITING: usize = 4096;

/// How long other keys are asked whether they still serve. Where all are dead, all say so at once.
const WITNESSES_LIMIT: Duration = Duration::from_secs(10);

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

fn serve(state: &Arc<TokenState>, requests: &Receiver<CheckRequest>) {
    while let Ok(first) = requests.recv() {
        let generation = state.module().generation();
        let mut waiting: BTreeMap<u32, Vec<oneshot::Sender<_>>> = BTreeMap::new();
        for ask in std::iter::once(first).chain(requests.try_iter()) {
            match ask {
                CheckRequest::Key(key, reply) => waiting.entry(key).or_default().push(reply),
                CheckRequest::All => {
                    for key in state.keys() {
                        waiting.entry(key.index).or_default();
                    }
                }
            }
        }
        for (key, replies) in waiting {
            let Some(key) = state.key(key) else { continue };
            let check = AssertUnwindSafe(|| check(state, &key));
            let outcome = catch_unwind(check).unwrap_or_else(|_| {
                Err(Error::new(ErrorKind::Internal, "a check of the token panicked"))
            });
            for reply in replies {
                let copy = outcome.as_ref().copied().map_err(Error::repeated);
                // The caller may have gone.
                drop(reply.send(copy));
            }
        }
        if state.module().generation() != generation {
            wake_neighbours(state);
        }
    }
}

/// Runs the key's canary; if that fails, climbs until it succeeds.
fn check(state: &TokenState, key: &TokenKey) -> Result<(), Error> {
    if let Some(error) = key.breaker.too_early(Instant::now()) {
        return Err(error);
    }
    let cause = match prove(state, key) {
        Ok(()) => {
            state.a_key_is_well();
            if key.breaker.close() {
                state.repaired();
            }
            return Ok(());
        }
        Err(cause) => cause,
    };
    if matches!(cause.kind(), ErrorKind::Throttled { .. }) {
        return Err(cause);
    }
    let locator = &key.wanted.locator;
    // While its breaker is open, each cause is said once.
    let known = key.breaker.refusal();
    if known.is_none() {
        tracing::warn!(%locator, error = %cause, "the canary failed; repairing");
    }
    match repair(state, key) {
        Ok(rung) => {
            tracing::warn!(%locator, rung, "repaired");
            state.a_key_is_well();
            key.breaker.close();
            state.repaired();
            Ok(())
        }
        Err(error) => {
            if known.is_some_and(|known| known.to_string() == error.to_string()) {
                tracing::debug!(%locator, %error, "still not repaired");
            } else {
                tracing::error!(%locator, %error, "not repaired");
            }
            key.breaker.open(Instant::now(), &error);
            Err(error)
        }
    }
}

/// Climbs the ladder, and names the rung that helped.
fn repair(state: &TokenState, key: &TokenKey) -> Result<&'static str, Error> {
    let module = state.module();
    let generation = module.generation();
    let mut fault = match renew(state, key) {
        Ok(()) => return Ok("a new session"),
        Err(KeyFault::Final(error)) => return Err(error),
        Err(fault) => fault,
    };
    let logged_in = state
        .open_session()
        .and_then(|(_, session)| state.sees_private_objects(&session))
        .unwrap_or(false);
    if !logged_in {
        fault = match state.log_in() {
            Ok(()) => {
                match renew_all(state).map_err(KeyFault::Broken).and_then(|()| renew(state, key)) {
                    Ok(()) => return Ok("a login"),
                    Err(KeyFault::Final(error)) => return Err(error),
                    Err(fault) => fault,
                }
            }
            // No second login in one run: the token may have counted this one.
            Err(LoginFault::Made(error)) => return Err(error),
            // There is no PIN, or none that may be sent: a new start of the module changes nothing.
            Err(LoginFault::NotMade(error)) if error.kind() == ErrorKind::OperatorNeeded => {
                return Err(error);
            }
            Err(LoginFault::NotMade(error)) => KeyFault::Broken(error),
        };
    }
    // Where another key answers, on whatever token, a new start of the module would only end its
    // session and its login.
    if another_key_serves(state, key) {
        return Err(fault.into_error());
    }
    // A key that a login does not see was deleted, if its token is still the one that was logged in
    // to. If not, its files went away or came back, which a module may notice only when it starts.
    let deleted = matches!(fault, KeyFault::Missing(_)) && state.is_in_its_slot();
    if !state.may_restart(deleted) {
        return Err(fault.into_error());
    }
    module.reinitialise(generation)?;
    state.log_in()?;
    renew_all(state)?;
    match renew(state, key) {
        Ok(()) => Ok("a new start of the module"),
        Err(fault) => Err(fault.into_error()),
    }
}

/// Whether any other key of the module proves itself, those that should be well first. A token that
/// only has no room serves.
fn another_key_serves(state: &TokenState, key: &TokenKey) -> bool {
    let mut witnesses = Vec::new();
    for token in tokens_in_use(state.module()) {
        let is_ours = std::ptr::eq(&raw const **token.state(), state);
        let mut keys = token.state().keys();
        keys.retain(|other| !is_ours || other.index != key.index);
        witnesses.extend(keys.into_iter().map(|key| (Arc::clone(&token), key)));
    }
    witnesses.sort_by_key(|(_, key)| key.breaker.refusal().is_some());
    let until = Instant::now() + WITNESSES_LIMIT;
    let mut asked = witnesses.iter().take_while(|_| Instant::now() < until);
    asked.any(|(token, key)| match prove(token.state(), key) {
        Ok(()) => true,
        Err(error) => matches!(error.kind(), ErrorKind::Throttled { .. }),
    })
}

/// A canary through a new session.
fn prove(state: &TokenState, key: &TokenKey) -> Result<(), Error> {
    let (epoch, session) = state.open_session()?;
    key.prove(epoch, &session, state.needs_login())
}

/// A new session, a new handle, a canary.
fn renew(state: &TokenState, key: &TokenKey) -> Result<(), KeyFault> {
    let (epoch, session) = state.open_session().map_err(KeyFault::Broken)?;
    key.find_again(epoch, &session, state.needs_login())?;
    drop(session);
    prove(state, key).map_err(KeyFault::Broken)
}

/// New handles for all keys after a login. A key that is not found shows in its own check.
fn renew_all(state: &TokenState) -> Result<(), Error> {
    let (epoch, session) = state.open_session()?;
    for key in state.keys() {
        if let Err(fault) = key.find_again(epoch, &session, state.needs_login()) {
            let error = fault.into_error();
            tracing::error!(locator = %key.wanted.locator, %error, "not found again");
        }
    }
    Ok(())
}

/// The other tokens of the module lost their sessions and logins when it was initialised again.
fn wake_neighbours(state: &Arc<TokenState>) {
    for token in tokens_in_use(state.module()) {
        if !Arc::ptr_eq(token.state(), state) && token.checks().try_send(CheckRequest::All).is_err()
        {
            tracing::debug!("a neighbour's checks are full; its next one finds out by itself");
        }
    }
}

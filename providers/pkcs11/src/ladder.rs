//! Checks and repairs of a token: a canary says whether anything is broken, and then one rung after
//! the other is tried: a new session, a login, a new start of the module.
//!
//! One thread per token does this, so that there is one run at a time; whoever asks while it runs
//! shares the next one. Only a canary that failed makes it do anything: what a caller sent never does.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use claviger_provider_api::{Error, ErrorKind};
use tokio::sync::oneshot;

use crate::entry::{Entry, Trouble};
use crate::token::Shared;

/// How many checks may wait.
const WAITING: usize = 4096;

/// How long other keys are asked whether they still serve. Where all are dead, all say so at once.
const WITNESSES_LIMIT: Duration = Duration::from_secs(10);

/// What the ladder is asked for.
#[derive(Debug)]
pub(crate) enum Ask {
    /// Check this key, and repair what is under it.
    Key(u32, oneshot::Sender<Result<(), Error>>),
    /// Check all keys: somebody else initialised the module again.
    All,
}

/// Starts the thread. It ends when nobody can ask any more, waits for the session threads, and lets
/// go of the token.
pub(crate) fn start(
    shared: &Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
) -> Result<SyncSender<Ask>, Error> {
    let (asks, asked) = sync_channel(WAITING);
    let theirs = Arc::clone(shared);
    let thread = thread::Builder::new().name("pkcs11-ladder".to_owned());
    let spawned = thread.spawn(move || {
        serve(&theirs, &asked);
        for worker in workers {
            // Its panics were caught and answered.
            let _ = worker.join();
        }
    });
    match spawned {
        Ok(_) => Ok(asks),
        Err(error) => {
            shared.queue.close();
            let text = format!("cannot start the thread that checks the token: {error}");
            Err(Error::new(ErrorKind::Unavailable, text))
        }
    }
}

fn serve(shared: &Arc<Shared>, asked: &Receiver<Ask>) {
    while let Ok(first) = asked.recv() {
        let generation = shared.module().generation();
        let mut waiting: BTreeMap<u32, Vec<oneshot::Sender<_>>> = BTreeMap::new();
        for ask in std::iter::once(first).chain(asked.try_iter()) {
            match ask {
                Ask::Key(key, reply) => waiting.entry(key).or_default().push(reply),
                Ask::All => {
                    for entry in shared.keys() {
                        waiting.entry(entry.index).or_default();
                    }
                }
            }
        }
        for (key, replies) in waiting {
            let Some(entry) = shared.key(key) else { continue };
            let check = AssertUnwindSafe(|| check(shared, &entry));
            let outcome = catch_unwind(check).unwrap_or_else(|_| {
                Err(Error::new(ErrorKind::Internal, "a check of the token panicked"))
            });
            for reply in replies {
                let copy = outcome.as_ref().copied().map_err(copy);
                // Whoever asked may have gone.
                drop(reply.send(copy));
            }
        }
        if shared.module().generation() != generation {
            wake_neighbours(shared);
        }
    }
}

/// Runs the key's canary; if that fails, climbs until it succeeds.
fn check(shared: &Shared, entry: &Entry) -> Result<(), Error> {
    if let Some(error) = entry.breaker.too_early(Instant::now()) {
        return Err(error);
    }
    let cause = match entry.prove(shared) {
        Ok(()) => {
            shared.restarted_for_missing(false);
            if entry.breaker.close() {
                shared.repaired();
            }
            return Ok(());
        }
        Err(cause) => cause,
    };
    if matches!(cause.kind(), ErrorKind::Throttled { .. }) {
        return Err(cause);
    }
    let locator = &entry.wanted.locator;
    // While its breaker is open, each cause is said once.
    let known = entry.breaker.refusal();
    if known.is_none() {
        tracing::warn!(%locator, error = %cause, "the canary failed; repairing");
    }
    match repair(shared, entry) {
        Ok(rung) => {
            tracing::warn!(%locator, rung, "repaired");
            shared.restarted_for_missing(false);
            entry.breaker.close();
            shared.repaired();
            Ok(())
        }
        Err(error) => {
            if known.is_some_and(|known| known.to_string() == error.to_string()) {
                tracing::debug!(%locator, %error, "still not repaired");
            } else {
                tracing::error!(%locator, %error, "not repaired");
            }
            entry.breaker.open(Instant::now(), &error);
            Err(error)
        }
    }
}

/// Climbs the ladder, and names the rung that helped.
fn repair(shared: &Shared, entry: &Entry) -> Result<&'static str, Error> {
    let module = shared.module();
    let generation = module.generation();
    let mut trouble = match renew(shared, entry) {
        Ok(()) => return Ok("a new session"),
        Err(Trouble::Final(error)) => return Err(error),
        Err(trouble) => trouble,
    };
    let logged_in = shared
        .open_session()
        .and_then(|(_, session)| shared.sees_private_objects(&session))
        .unwrap_or(false);
    if !logged_in {
        trouble = match shared.log_in().and_then(|()| renew_all(shared)) {
            Ok(()) => match renew(shared, entry) {
                Ok(()) => return Ok("a login"),
                Err(Trouble::Final(error)) => return Err(error),
                Err(trouble) => trouble,
            },
            // The PIN was refused, or there is none: a new start of the module changes nothing.
            Err(error) if error.kind() == ErrorKind::OperatorNeeded => return Err(error),
            Err(error) => Trouble::Broken(error),
        };
    }
    // Where another key answers, on whatever token, a new start of the module would only end its
    // session and its login.
    if somebody_serves(shared, entry) {
        return Err(trouble.into_error(entry));
    }
    // A key that a login does not see was deleted; or its token's files went away, which a module
    // may notice only when it starts. So one new start, and no more until a key is well again.
    if matches!(trouble, Trouble::Missing { logged_in: true }) && shared.restarted_for_missing(true)
    {
        return Err(trouble.into_error(entry));
    }
    module.reinitialise(generation)?;
    shared.log_in()?;
    renew_all(shared)?;
    match renew(shared, entry) {
        Ok(()) => Ok("a new start of the module"),
        Err(trouble) => Err(trouble.into_error(entry)),
    }
}

/// Whether any other key of the module proves itself, those that should be well first. A token that
/// only has no room serves.
fn somebody_serves(shared: &Shared, entry: &Entry) -> bool {
    let mut witnesses = Vec::new();
    for token in shared.module().in_use() {
        let is_ours = std::ptr::eq(&raw const *token, shared);
        let mut keys = token.keys();
        keys.retain(|key| !is_ours || key.index != entry.index);
        witnesses.extend(keys.into_iter().map(|key| (Arc::clone(&token), key)));
    }
    witnesses.sort_by_key(|(_, key)| key.breaker.refusal().is_some());
    let until = Instant::now() + WITNESSES_LIMIT;
    let mut asked = witnesses.iter().take_while(|_| Instant::now() < until);
    asked.any(|(token, key)| match key.prove(token) {
        Ok(()) => true,
        Err(error) => matches!(error.kind(), ErrorKind::Throttled { .. }),
    })
}

/// A new session, a new handle, a canary.
fn renew(shared: &Shared, entry: &Entry) -> Result<(), Trouble> {
    let (place, session) = shared.open_session().map_err(Trouble::Broken)?;
    entry.find_again(shared, place, &session)?;
    drop(session);
    entry.prove(shared).map_err(Trouble::Broken)
}

/// New handles for all keys after a login. A key that is not found shows in its own check.
fn renew_all(shared: &Shared) -> Result<(), Error> {
    let (place, session) = shared.open_session()?;
    for entry in shared.keys() {
        if let Err(trouble) = entry.find_again(shared, place, &session) {
            let error = trouble.into_error(&entry);
            tracing::error!(locator = %entry.wanted.locator, %error, "not found again");
        }
    }
    Ok(())
}

/// The other tokens of the module lost their sessions and logins when it was initialised again.
fn wake_neighbours(shared: &Arc<Shared>) {
    for token in shared.module().tokens().values().filter_map(std::sync::Weak::upgrade) {
        if !Arc::ptr_eq(token.shared(), shared) && token.asks().try_send(Ask::All).is_err() {
            tracing::debug!("a neighbour's checks are full; its next one finds out by itself");
        }
    }
}

fn copy(error: &Error) -> Error {
    Error::new(error.kind(), error.to_string())
}

//! What the keys, session threads and checks of one token share: where it is, who is logged in.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use claviger_provider_api::queue::FairQueue;
use claviger_provider_api::{self as api, Error, ErrorKind, Logins};

use crate::config::{Config, Login, TokenName, User};
use crate::find_token::{FoundToken, find_token};
use crate::job::Job;
use crate::login::{Credentials, LoginFault, log_in, remember};
use crate::login_epoch::LoginEpoch;
use crate::module::{Lease, Module, OpenSession};
use crate::token_info::TokenIdentity;
use crate::token_key::TokenKey;

/// How long after a start of the module that helped no key the next one waits.
const RESTART_PAUSE: Duration = Duration::from_millis(1500);

/// What keys, session threads and checks of a token share.
#[derive(Debug)]
pub(crate) struct TokenState {
    /// The session that keeps the login; locked during a login. Declared before `lease`, so dropped
    /// before it: the session must close while the module is still loaded.
    anchor: Mutex<Option<OpenSession>>,
    found: Mutex<Found>,
    /// Of all that joined, in that order; the first one that is still held is in force.
    settings: Mutex<Vec<Arc<Settings>>>,
    keys: Mutex<BTreeMap<u32, Arc<TokenKey>>>,
    next_key: AtomicU32,
    repairs: AtomicU64,
    /// When the module was last started again, unless a key of the token was well since.
    last_restart: Mutex<Option<Instant>>,
    /// As first configured; they hold for as long as the token is in use.
    limits: Limits,
    /// Of the provider that connected to the token.
    logins: Arc<Logins>,
    /// The jobs of all keys.
    pub(crate) queue: FairQueue<Job>,
    lease: Lease,
}

/// Which token was found at the last login, and where.
#[derive(Clone, Debug)]
struct Found {
    epoch: LoginEpoch,
    identity: TokenIdentity,
}

/// How many session threads, and how many jobs may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    sessions: usize,
    queue: usize,
}

/// How to find the token and log in to it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) name: TokenName,
    pub(crate) credentials: Credentials,
}

impl TokenState {
    /// A token that was found, before its login.
    pub(crate) fn new(
        lease: Lease,
        found: &FoundToken,
        settings: Arc<Settings>,
        config: &Config,
        logins: Arc<Logins>,
    ) -> Self {
        let epoch = LoginEpoch { number: 0, slot: found.slot, generation: lease.generation() };
        Self {
            anchor: Mutex::new(None),
            found: Mutex::new(Found { epoch, identity: found.info.identity.clone() }),
            settings: Mutex::new(vec![settings]),
            keys: Mutex::new(BTreeMap::new()),
            next_key: AtomicU32::new(0),
            repairs: AtomicU64::new(0),
            last_restart: Mutex::new(None),
            limits: Limits::of(config),
            logins,
            queue: FairQueue::new(config.queue()),
            lease,
        }
    }

    /// Whether this is the token that was found: the same in all that it says of itself, in the same
    /// slot. One that says what no other token says may have changed its slot.
    pub(crate) fn is(&self, found: &FoundToken) -> bool {
        let own = lock(&self.found);
        own.identity == found.info.identity && (own.epoch.slot == found.slot || !found.has_twin)
    }

    /// Whether the token's slot still holds the token that was logged in to.
    pub(crate) fn is_in_its_slot(&self) -> bool {
        let Found { epoch, identity } = lock(&self.found).clone();
        self.module().token_info(epoch.slot).is_ok_and(|info| info.identity == identity)
    }

    /// Notes that a key of the token is well: the next start of the module need not wait.
    pub(crate) fn a_key_is_well(&self) {
        *lock(&self.last_restart) = None;
    }

    /// Whether the module may be started again for this token now, and notes that it is. If the last
    /// start helped no key, not at once, and for a key that was deleted not at all.
    pub(crate) fn may_restart(&self, deleted: bool) -> bool {
        let mut last = lock(&self.last_restart);
        let may = last.is_none_or(|last| !deleted && last.elapsed() >= RESTART_PAUSE);
        if may {
            *last = Some(Instant::now());
        }
        may
    }

    /// The module it is in.
    pub(crate) fn module(&self) -> &'static Module {
        *self.lease
    }

    /// The login in force.
    pub(crate) fn epoch(&self) -> LoginEpoch {
        lock(&self.found).epoch
    }

    /// How often something was repaired.
    pub(crate) fn repairs(&self) -> u64 {
        self.repairs.load(Ordering::Acquire)
    }

    /// Notes that something was repaired.
    pub(crate) fn repaired(&self) {
        self.repairs.fetch_add(1, Ordering::AcqRel);
    }

    /// Adds a key and gives its index.
    pub(crate) fn add(&self, key: impl FnOnce(u32) -> TokenKey) -> Arc<TokenKey> {
        let index = self.next_key.fetch_add(1, Ordering::Relaxed);
        let key = Arc::new(key(index));
        lock(&self.keys).insert(index, Arc::clone(&key));
        key
    }

    /// Forgets a key.
    pub(crate) fn remove(&self, index: u32) {
        lock(&self.keys).remove(&index);
    }

    /// The key with this index.
    pub(crate) fn key(&self, index: u32) -> Option<Arc<TokenKey>> {
        lock(&self.keys).get(&index).cloned()
    }

    /// All keys.
    pub(crate) fn keys(&self) -> Vec<Arc<TokenKey>> {
        lock(&self.keys).values().cloned().collect()
    }

    /// A new session where the token is now.
    pub(crate) fn open_session(&self) -> Result<(LoginEpoch, OpenSession), Error> {
        let epoch = self.epoch();
        let writable = self.settings().credentials.user == User::So;
        let session = OpenSession::open(self.module(), epoch.slot, writable)?;
        if session.generation() != epoch.generation {
            let text = "the module was initialised again and the token not found again yet";
            return Err(Error::new(ErrorKind::Unavailable, text));
        }
        if self.epoch() != epoch {
            let text = "the token was logged in to again while a session was opened";
            return Err(Error::new(ErrorKind::Unavailable, text));
        }
        Ok((epoch, session))
    }

    /// Whether private objects are seen only after a login.
    pub(crate) fn needs_login(&self) -> bool {
        self.settings().credentials.login != Login::None
    }

    /// Whether `session` may see private objects: logged in, or on a token without a login.
    pub(crate) fn sees_private_objects(&self, session: &OpenSession) -> Result<bool, Error> {
        if self.needs_login() { session.is_logged_in() } else { Ok(true) }
    }

    /// Finds the token again, opens a new anchor session and logs in if there is no login. All handles are
    /// dead afterwards.
    pub(crate) fn log_in(&self) -> Result<(), LoginFault> {
        let mut anchor = lock(&self.anchor);
        self.log_in_holding(&mut anchor)
    }

    /// The same, unless there is a login.
    pub(crate) fn log_in_again_if_needed(&self) -> Result<(), LoginFault> {
        let mut anchor = lock(&self.anchor);
        let logged_in = match &*anchor {
            Some(session) => self.sees_private_objects(session).unwrap_or(false),
            None => false,
        };
        if logged_in { Ok(()) } else { self.log_in_holding(&mut anchor) }
    }

    fn log_in_holding(&self, anchor: &mut Option<OpenSession>) -> Result<(), LoginFault> {
        let settings = self.settings();
        let Settings { name, credentials } = &*settings;
        let token = find_token(self.module(), name, credentials.login)?;
        let (slot, identity) = (token.slot, &token.info.identity);
        let session = OpenSession::open(self.module(), slot, credentials.user == User::So)?;
        if credentials.login != Login::None && !session.is_logged_in()? {
            let outcome = log_in(&session, &token.info, credentials);
            self.tell(identity, &outcome);
            outcome.inspect_err(|_| remember(self.module().path(), name, identity))?;
        }
        let mut found = lock(&self.found);
        let generation = session.generation();
        found.epoch = LoginEpoch { number: found.epoch.number + 1, slot, generation };
        found.identity = identity.clone();
        drop(found);
        *anchor = Some(session);
        Ok(())
    }

    /// Tells of a login that the token was asked for.
    fn tell(&self, token: &TokenIdentity, outcome: &Result<(), LoginFault>) {
        let error = match outcome {
            Ok(()) => None,
            Err(LoginFault::Made(error)) => Some(error.to_string()),
            Err(LoginFault::NotMade(_)) => return,
        };
        let (token, serial) = (token.label.clone(), token.serial.clone());
        self.logins.tell(&api::Login { token, serial, error });
    }

    /// The settings in force: the oldest that is held. A configuration that is refused later
    /// lets go of its own, and no key ever depended on them.
    fn settings(&self) -> Arc<Settings> {
        let mut all = lock(&self.settings);
        let held = |settings: &Arc<Settings>| Arc::strong_count(settings) > 1;
        if all.iter().any(held) {
            all.retain(held);
        }
        Arc::clone(&all[0])
    }

    /// Takes in how another provider, or a newer configuration, finds the token and its PIN.
    pub(crate) fn join(&self, newer: Settings, limits: Limits) -> Result<Arc<Settings>, Error> {
        let in_force = self.settings();
        let (ours, theirs) = (&in_force.credentials, &newer.credentials);
        if (ours.user, ours.login) != (theirs.user, theirs.login) {
            let text = "the token is in use with another `user` or `login`: a process has one login \
                        per token, so all providers on it must say the same";
            return Err(Error::new(ErrorKind::OperatorNeeded, text));
        }
        if ours.pin != theirs.pin {
            tracing::warn!(
                token = %newer.name,
                "the token is in use with another `pin`, which stays in force until the last key \
                 opened with it is closed; all providers on a token should say the same"
            );
        }
        if let Some(text) = self.limits.ignored(limits) {
            tracing::warn!(token = %newer.name, "{text}");
        }
        let mut all = lock(&self.settings);
        if let Some(same) = all.iter().find(|settings| ***settings == newer) {
            return Ok(Arc::clone(same));
        }
        let newer = Arc::new(newer);
        all.push(Arc::clone(&newer));
        Ok(newer)
    }
}

impl Limits {
    /// As configured.
    pub(crate) fn of(config: &Config) -> Self {
        Self { sessions: config.sessions(), queue: config.queue() }
    }

    /// The warning for a provider that joins with other settings.
    fn ignored(self, wanted: Self) -> Option<String> {
        (wanted != self).then(|| {
            format!(
                "the token is in use with sessions = {} and queue = {}: other values (sessions = {}, \
                 queue = {}) act after all its keys were closed, as by a restart; all providers on \
                 it should say the same",
                self.sessions, self.queue, wanted.sessions, wanted.queue
            )
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_and_a_queue_that_do_not_act_are_named() {
        let ours = Limits { sessions: 4, queue: 1024 };
        assert_eq!(ours.ignored(ours), None);
        let text = ours.ignored(Limits { sessions: 8, ..ours }).unwrap();
        assert!(text.contains("sessions = 4") && text.contains("sessions = 8"), "{text}");
        assert!(ours.ignored(Limits { queue: 1, ..ours }).unwrap().contains("queue = 1)"));
    }
}

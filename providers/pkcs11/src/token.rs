//! A token that is logged in to, shared by all keys on it: where it is, who is logged in, its keys.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use claviger_provider_api::queue::FairQueue;
use claviger_provider_api::{Cause, Error, ErrorKind};
use cryptoki::slot::{Limit, Slot, TokenInfo};

use crate::config::{Config, Login, TokenName, User};
use crate::login::{Credentials, LoginFault, log_in, refused_again, remember_serial};
use crate::module::{Lease, Module, OpenSession};
use crate::token_key::TokenKey;
use crate::worker::{self, Job};
use crate::{recovery, recovery::CheckRequest};

/// The handle that keys hold. When the last one drops, the threads end, the sessions close and the
/// module is left.
#[derive(Debug)]
pub(crate) struct Token {
    state: Arc<TokenState>,
    checks: SyncSender<CheckRequest>,
}

/// A token, held, and the settings that it was joined with: they count for as long as this lives.
#[derive(Debug)]
pub(crate) struct TokenHandle {
    token: Arc<Token>,
    _settings: Arc<Settings>,
}

/// What keys, session threads and the ladder share.
#[derive(Debug)]
pub(crate) struct TokenState {
    /// The session that keeps the login; locked during a login. Declared before `lease`, so dropped before it: the session must close while
    /// the module is still loaded.
    anchor: Mutex<Option<OpenSession>>,
    epoch: Mutex<LoginEpoch>,
    /// Of all that joined, in that order; the first one that is still held is in force.
    settings: Mutex<Vec<Arc<Settings>>>,
    keys: Mutex<BTreeMap<u32, Arc<TokenKey>>>,
    next_key: AtomicU32,
    repairs: AtomicU64,
    restarted_for_missing: AtomicBool,
    /// As first configured; they hold for as long as the token is in use.
    limits: Limits,
    /// The jobs of all keys.
    pub(crate) queue: FairQueue<Job>,
    lease: Lease,
}

/// Where the token is and since which login; handles of another epoch are dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LoginEpoch {
    pub(crate) number: u64,
    slot: Slot,
    /// The module's generation: in another one, the same handle may be another key.
    generation: u64,
}

/// How many session threads, and how many jobs may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    sessions: usize,
    queue: usize,
}

/// How to find the token and log in to it.
#[derive(Debug, PartialEq, Eq)]
struct Settings {
    name: TokenName,
    credentials: Credentials,
}

impl Token {
    /// Joins the token that `config` names, or connects to it: finds its slot, logs in, starts its
    /// threads.
    pub(crate) fn connect(
        config: &Config,
        state_dir: Option<PathBuf>,
    ) -> Result<TokenHandle, Error> {
        let settings = Settings {
            name: config.token.clone(),
            credentials: Credentials {
                login: config.login,
                user: config.user,
                pin: config.pin.clone(),
                state_dir,
            },
        };
        if let Some(error) = refused_again(&config.module, &settings.name, &settings.credentials) {
            return Err(error);
        }
        let lease = Module::acquire(&config.module)?;
        let module = *lease;
        let mut tokens = module.tokens();
        let (slot, info) = find_slot(module, &settings.name)?;
        let serial = info.serial_number().to_owned();
        tokens.retain(|_, token| token.strong_count() > 0);
        if let Some(token) = tokens.get(&serial).and_then(std::sync::Weak::upgrade) {
            let settings = token.state.join(settings, Limits::of(config))?;
            token.state.log_in_again_if_needed()?;
            return Ok(TokenHandle { token, _settings: settings });
        }
        let epoch = LoginEpoch { number: 0, slot, generation: module.generation() };
        let settings = Arc::new(settings);
        let state = Arc::new(TokenState {
            anchor: Mutex::new(None),
            epoch: Mutex::new(epoch),
            settings: Mutex::new(vec![Arc::clone(&settings)]),
            keys: Mutex::new(BTreeMap::new()),
            next_key: AtomicU32::new(0),
            repairs: AtomicU64::new(0),
            restarted_for_missing: AtomicBool::new(false),
            limits: Limits::of(config),
            queue: FairQueue::new(config.queue()),
            lease,
        });
        state.log_in()?;
        let workers = worker::start(&state, sessions(config, &info))?;
        let checks = recovery::start(&state, workers)?;
        let token = Arc::new(Self { state, checks });
        tokens.insert(serial, Arc::downgrade(&token));
        Ok(TokenHandle { token, _settings: settings })
    }

    /// What its keys, session threads and recovery share.
    pub(crate) fn state(&self) -> &Arc<TokenState> {
        &self.state
    }

    /// Where checks are asked for.
    pub(crate) fn checks(&self) -> &SyncSender<CheckRequest> {
        &self.checks
    }
}

impl std::ops::Deref for TokenHandle {
    type Target = Token;
    fn deref(&self) -> &Token {
        &self.token
    }
}

impl Limits {
    fn of(config: &Config) -> Self {
        Self { sessions: config.sessions(), queue: config.queue() }
    }

    /// The error for a provider that joins with other settings.
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

impl Drop for Token {
    fn drop(&mut self) {
        self.state.queue.close();
    }
}

impl TokenState {
    /// The module it is in.
    pub(crate) fn module(&self) -> &'static Module {
        *self.lease
    }

    /// Where the token is now.
    pub(crate) fn epoch(&self) -> LoginEpoch {
        *lock(&self.epoch)
    }

    /// How often something was repaired.
    pub(crate) fn repairs(&self) -> u64 {
        self.repairs.load(Ordering::Acquire)
    }

    /// Notes that something was repaired.
    pub(crate) fn repaired(&self) {
        self.repairs.fetch_add(1, Ordering::AcqRel);
    }

    /// Notes whether the module was started again because a key was missing, since a key was last
    /// well. Gives what was noted before.
    pub(crate) fn restarted_for_missing(&self, restarted: bool) -> bool {
        self.restarted_for_missing.swap(restarted, Ordering::AcqRel)
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

    /// Whether `session` may see private objects: logged in, or on a token without a login.
    pub(crate) fn sees_private_objects(&self, session: &OpenSession) -> Result<bool, Error> {
        if self.settings().credentials.login == Login::None {
            return Ok(true);
        }
        session.is_logged_in()
    }

    /// Finds the token again, opens a new anchor session and logs in if nobody is. All handles are
    /// dead afterwards.
    pub(crate) fn log_in(&self) -> Result<(), LoginFault> {
        let mut anchor = lock(&self.anchor);
        self.log_in_holding(&mut anchor)
    }

    fn log_in_again_if_needed(&self) -> Result<(), LoginFault> {
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
        let (slot, info) = find_slot(self.module(), name)?;
        let session = OpenSession::open(self.module(), slot, credentials.user == User::So)?;
        if credentials.login != Login::None && !session.is_logged_in()? {
            log_in(&session, &info, credentials).inspect_err(|_| {
                remember_serial(self.module().path(), name, info.serial_number());
            })?;
        }
        let mut epoch = lock(&self.epoch);
        *epoch = LoginEpoch { number: epoch.number + 1, slot, generation: session.generation() };
        drop(epoch);
        *anchor = Some(session);
        Ok(())
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
    fn join(&self, newer: Settings, limits: Limits) -> Result<Arc<Settings>, Error> {
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

fn find_slot(module: &'static Module, name: &TokenName) -> Result<(Slot, TokenInfo), Error> {
    let mut tokens = module.tokens_in_slots()?;
    let present = tokens
        .iter()
        .map(|(_, info)| format!("{:?} (serial number {})", info.label(), info.serial_number()))
        .collect::<Vec<_>>()
        .join(", ");
    tokens.retain(|(_, info)| match name {
        TokenName::Label(label) => info.label() == label,
        // Modules pad and write hexadecimal digits as they like.
        TokenName::Serial(serial) => info.serial_number().eq_ignore_ascii_case(serial.trim()),
    });
    match tokens.len() {
        1 => Ok(tokens.remove(0)),
        0 => {
            let present = if present.is_empty() {
                "none; what it shows depends on `environment` and on who asks".to_owned()
            } else {
                present
            };
            let path = module.path().display();
            let text = format!("no token with {name} in {path}; present: {present}");
            Err(Error::new(ErrorKind::Unavailable, text).with_cause(Cause::TokenAbsent))
        }
        many => {
            let text =
                format!("{many} tokens have {name}; write token = {{ serial = \"…\" }}: {present}");
            Err(Error::new(ErrorKind::OperatorNeeded, text))
        }
    }
}

/// What the token allows beside the anchor and a check's own session.
fn sessions(config: &Config, info: &TokenInfo) -> usize {
    let wanted = config.sessions();
    let Limit::Max(most) = info.max_session_count() else { return wanted };
    let most = usize::try_from(most.saturating_sub(2)).unwrap_or(usize::MAX).max(1);
    if wanted > most {
        tracing::warn!(wanted, most, token = info.label(), "the token allows fewer sessions");
    }
    wanted.min(most)
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

//! What the keys, session threads and checks of one token share: where it is, who is logged in.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use claviger_provider_api::queue::FairQueue;
use claviger_provider_api::{self as api, Cause, Error, ErrorKind, Logins};

use crate::config::{Config, Login, TokenName, User};
use crate::fault::Fault;
use crate::find_token::find_token;
use crate::job::Job;
use crate::login::{Credentials, LoginFault, log_in};
use crate::login_epoch::LoginEpoch;
use crate::module::{Lease, Module, OpenSession};
use crate::token_info::{TokenIdentity, TokenInfo};
use crate::token_key::TokenKey;

/// What keys, session threads and checks of a token share.
#[derive(Debug)]
pub(crate) struct TokenState {
    /// The session that keeps the login; locked during a login. Declared before `lease`, so dropped
    /// before it: the session must close while the module is initialised.
    anchor: Mutex<OpenSession>,
    found: Mutex<Found>,
    settings: Settings,
    keys: Mutex<BTreeMap<u32, Arc<TokenKey>>>,
    next_key: AtomicU32,
    repairs: AtomicU64,
    /// Whether a key was well since a key was last missed.
    a_key_was_well: AtomicBool,
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

/// How to find the token and log in to it.
#[derive(Debug)]
pub(crate) struct Settings {
    name: TokenName,
    credentials: Credentials,
    logins: Arc<Logins>,
}

impl Settings {
    /// As configured.
    pub(crate) fn of(config: &Config, state_dir: Option<&Path>, logins: Arc<Logins>) -> Self {
        let credentials = Credentials {
            login: config.login,
            user: config.user,
            pin: config.pin.clone(),
            state_dir: state_dir.map(Path::to_owned),
        };
        Self { name: config.token.clone(), credentials, logins }
    }

    /// Finds the token, and opens the session that keeps its login; logs in if there is no login.
    fn enter(
        &self,
        module: &'static Module,
    ) -> Result<(LoginEpoch, TokenInfo, OpenSession), LoginFault> {
        let Self { name, credentials, .. } = self;
        let (slot, info) = find_token(module, name, credentials.login)?;
        let session = OpenSession::open(module, slot, credentials.user == User::So)?;
        if credentials.login != Login::None && !session.is_logged_in_as(credentials.user)? {
            let outcome = log_in(&session, &info, credentials);
            self.tell(&info.identity, &outcome);
            outcome?;
        }
        Ok((LoginEpoch { number: 1, slot }, info, session))
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
}

impl TokenState {
    /// A token that was found and logged in to, and what it says of itself.
    pub(crate) fn enter(
        lease: Lease,
        settings: Settings,
        queue: usize,
    ) -> Result<(Self, TokenInfo), LoginFault> {
        let (epoch, info, anchor) = settings.enter(*lease)?;
        let state = Self {
            anchor: Mutex::new(anchor),
            found: Mutex::new(Found { epoch, identity: info.identity.clone() }),
            settings,
            keys: Mutex::default(),
            next_key: AtomicU32::new(0),
            repairs: AtomicU64::new(0),
            a_key_was_well: AtomicBool::new(false),
            queue: FairQueue::new(queue),
            lease,
        };
        Ok((state, info))
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
        let logged_in = !self.needs_login() || anchor.is_logged_in().unwrap_or(false);
        if logged_in { Ok(()) } else { self.log_in_holding(&mut anchor) }
    }

    fn log_in_holding(&self, anchor: &mut OpenSession) -> Result<(), LoginFault> {
        let (epoch, info, session) = self.settings.enter(self.module())?;
        let mut found = lock(&self.found);
        found.epoch = LoginEpoch { number: found.epoch.number + 1, ..epoch };
        found.identity = info.identity;
        drop(found);
        *anchor = session;
        Ok(())
    }

    /// Whose fault it is that a key cannot be used: what only an operator can mend is the key's, or its
    /// login's, as long as the token that was logged in to is in its slot. If not, its files went away or
    /// came back, which a module may notice only in a new process.
    pub(crate) fn judge(&self, error: Error) -> Fault {
        match error.kind() {
            ErrorKind::Throttled { .. } => Fault::of_key(error),
            ErrorKind::OperatorNeeded if self.is_in_its_slot() => Fault::of_key(error),
            ErrorKind::OperatorNeeded => {
                let text = format!("the token is not in its slot any more: {error}");
                let error = error.retold(ErrorKind::Unavailable, text);
                Fault::of_process(error.with_cause(Cause::TokenAbsent))
            }
            _ => Fault::of_process(error),
        }
    }

    /// The same for a key that was looked for. Where one was well before, the module may hold an old
    /// list of its objects: that is believed of it once.
    pub(crate) fn judge_missed(&self, error: Error) -> Fault {
        let fault = self.judge(error);
        let may_be_old = fault.error.kind() == ErrorKind::OperatorNeeded
            && self.a_key_was_well.swap(false, Ordering::Relaxed);
        Fault { is_of_process: fault.is_of_process || may_be_old, ..fault }
    }

    /// Notes that a key of the token is well.
    pub(crate) fn a_key_is_well(&self) {
        self.a_key_was_well.store(true, Ordering::Relaxed);
    }

    fn is_in_its_slot(&self) -> bool {
        let Found { epoch, identity } = lock(&self.found).clone();
        self.module().token_info(epoch.slot).is_ok_and(|info| info.identity == identity)
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
        self.a_key_is_well();
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
        self.open(self.settings.credentials.user == User::So)
    }

    /// The same, in which objects can be made.
    pub(crate) fn open_writable_session(&self) -> Result<OpenSession, Error> {
        self.open(true).map(|(_, session)| session)
    }

    fn open(&self, writable: bool) -> Result<(LoginEpoch, OpenSession), Error> {
        let epoch = self.epoch();
        let session = OpenSession::open(self.module(), epoch.slot, writable)?;
        if self.epoch() != epoch {
            let text = "the token was logged in to again while a session was opened";
            return Err(Error::new(ErrorKind::Unavailable, text));
        }
        Ok((epoch, session))
    }

    /// Whether private objects are seen only after a login.
    pub(crate) fn needs_login(&self) -> bool {
        self.settings.credentials.login != Login::None
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! The one process-wide table: modules by canonical path, each initialised once for all its users.
//!
//! `C_Initialize`, `C_Finalize` and the login belong to the process, not to the code that calls
//! them.
//! Libraries are never unloaded: vendors' modules leave threads behind that would run on into
//! nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use claviger_provider_api::{Cause, Error, ErrorKind};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error as CryptokiError, RvError};
use cryptoki::session::{Session, SessionState};
use cryptoki::slot::Slot;

use crate::error::from_cryptoki;
use crate::functions::Functions;
use crate::token_info::TokenInfo;

/// How long `C_Finalize` waits for calls that are inside the module.
const DRAIN: Duration = Duration::from_secs(5);

static MODULES: Mutex<BTreeMap<PathBuf, &'static Module>> = Mutex::new(BTreeMap::new());

/// Leases of all modules and threads that open keys, and who waits for the last one to end.
static LEASES: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

/// Waits until no module is in use and all are finalised: a process that ends while a thread is
/// still inside a module may crash in the module's own exit handlers. Drop all keys first. False if
/// `limit` passes, as it does when a module hangs.
pub fn wait_until_left(limit: Duration) -> bool {
    let (leases, changed) = (lock(&LEASES.0), &LEASES.1);
    let waited = changed.wait_timeout_while(leases, limit, |leases| *leases > 0);
    *waited.unwrap_or_else(PoisonError::into_inner).0 == 0
}

/// A thread that may go into a module. Made before the thread, so that no wait misses it.
#[derive(Debug)]
pub(crate) struct InUse(());

impl InUse {
    /// One more to wait for.
    pub(crate) fn announce() -> Self {
        *lock(&LEASES.0) += 1;
        Self(())
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        *lock(&LEASES.0) -= 1;
        LEASES.1.notify_all();
    }
}

/// A loaded module.
#[derive(Debug)]
pub(crate) struct Module {
    path: PathBuf,
    pkcs11: Pkcs11,
    functions: Functions,
    gate: Mutex<Gate>,
    changed: Condvar,
}

/// Who is inside the module: `C_Finalize` under a running call is undefined.
#[derive(Debug, Default)]
struct Gate {
    users: usize,
    inside: usize,
    closing: bool,
    initialised: bool,
    /// Whether it was us who initialised it, so that we finalise it.
    ours: bool,
    generation: u64,
}

/// One user of a module; the last one to leave finalises it.
#[derive(Debug)]
pub(crate) struct Lease(&'static Module, InUse);

/// A call that is inside the module.
struct Inside(&'static Module, u64);

impl Module {
    /// Loads and initialises the module at `path`, or joins those who use it already.
    pub(crate) fn acquire(path: &Path) -> Result<Lease, Error> {
        let canonical = path.canonicalize().map_err(|error| {
            let text = format!("cannot find the module {}: {error}", path.display());
            Error::needs_operator(Cause::ModuleUnusable, text)
        })?;
        let known = lock(&MODULES).get(&canonical).copied();
        let module = if let Some(module) = known {
            module
        } else {
            let loaded = Self::load(canonical.clone()).map_err(|error| {
                let what = format_args!("cannot load the module {}", canonical.display());
                error.in_context(what).with_cause(Cause::ModuleUnusable)
            })?;
            *lock(&MODULES).entry(canonical).or_insert_with(|| Box::leak(Box::new(loaded)))
        };
        let mut gate = module.open_gate();
        if gate.users == 0 {
            module.initialise(&mut gate)?;
        }
        gate.users += 1;
        Ok(Lease(module, InUse::announce()))
    }

    fn load(path: PathBuf) -> Result<Self, Error> {
        let functions = Functions::load(&path)?;
        let pkcs11 = Pkcs11::new(&path).map_err(from_cryptoki)?;
        let gate = Mutex::new(Gate::default());
        Ok(Self { path, pkcs11, functions, gate, changed: Condvar::new() })
    }

    /// The canonical path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The functions that are called directly.
    pub(crate) fn functions(&self) -> &Functions {
        &self.functions
    }

    /// Which `C_Initialize` is in force. Sessions and handles of an earlier one are dead.
    pub(crate) fn generation(&self) -> u64 {
        lock(&self.gate).generation
    }

    /// The slots with a token. Slots that cannot be read are left out, unless all are.
    pub(crate) fn tokens_in_slots(&'static self) -> Result<Vec<(Slot, TokenInfo)>, Error> {
        let _inside = self.enter()?;
        let mut found = Vec::new();
        let mut unreadable = None;
        for slot in self.pkcs11.get_slots_with_token().map_err(from_cryptoki)? {
            match self.functions.token_info(slot) {
                Ok(info) => found.push((slot, TokenInfo::from(info))),
                Err(error) => unreadable = Some(error),
            }
        }
        match unreadable {
            Some(error) if found.is_empty() => Err(error),
            _ => Ok(found),
        }
    }

    /// What the token in a slot says of itself now.
    pub(crate) fn token_info(&'static self, slot: Slot) -> Result<TokenInfo, Error> {
        let _inside = self.enter()?;
        self.functions.token_info(slot).map(TokenInfo::from)
    }

    /// `C_Finalize` and `C_Initialize`, once for all who saw `generation`. Every session and handle
    /// of the module dies, of every token in it.
    pub(crate) fn reinitialise(&'static self, generation: u64) -> Result<(), Error> {
        let mut gate = self.open_gate();
        if gate.generation != generation {
            return Ok(());
        }
        gate.closing = true;
        let until = Instant::now() + DRAIN;
        while gate.inside > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                gate.closing = false;
                self.changed.notify_all();
                let text = "a call into the module does not return, so it cannot be initialised \
                            again; restart the daemon";
                return Err(Error::new(ErrorKind::Unavailable, text));
            }
            let waited = self.changed.wait_timeout(gate, left);
            gate = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        gate.initialised = false;
        // No call is inside and none enters; the lock itself is free for calls that only look.
        drop(gate);
        self.finalise();
        let mut gate = lock(&self.gate);
        let outcome = self.initialise(&mut gate);
        gate.closing = false;
        self.changed.notify_all();
        outcome
    }

    fn initialise(&self, gate: &mut Gate) -> Result<(), Error> {
        let arguments = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
        gate.generation += 1;
        match self.pkcs11.initialize(arguments) {
            Ok(()) => gate.ours = true,
            Err(CryptokiError::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => gate.ours = false,
            Err(error) => {
                let what = format_args!("cannot initialise {}", self.path.display());
                let error = from_cryptoki(error).in_context(what);
                return Err(error.with_cause(Cause::ModuleUnusable));
            }
        }
        gate.initialised = true;
        Ok(())
    }

    /// Closes all sessions first: some modules take it amiss otherwise.
    fn finalise(&self) {
        for slot in self.pkcs11.get_slots_with_token().unwrap_or_default() {
            if let Err(error) = self.functions.close_all_sessions(slot) {
                tracing::debug!(%error, "C_CloseAllSessions before C_Finalize");
            }
        }
        if let Err(error) = self.pkcs11.clone().finalize() {
            tracing::debug!(%error, "C_Finalize");
        }
    }

    fn enter(&'static self) -> Result<Inside, Error> {
        let mut gate = self.open_gate();
        if !gate.initialised {
            return Err(Error::new(ErrorKind::Unavailable, "the module is not initialised"));
        }
        gate.inside += 1;
        Ok(Inside(self, gate.generation))
    }

    /// The gate, once it is not being closed.
    fn open_gate(&self) -> MutexGuard<'_, Gate> {
        let mut gate = lock(&self.gate);
        while gate.closing {
            gate = self.changed.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        gate
    }
}

impl std::ops::Deref for Lease {
    type Target = &'static Module;
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut gate = self.0.open_gate();
        gate.users -= 1;
        if gate.users == 0 && gate.initialised {
            gate.initialised = false;
            if gate.ours {
                self.0.finalise();
            }
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let mut gate = lock(&self.0.gate);
        gate.inside -= 1;
        if gate.closing && gate.inside == 0 {
            self.0.changed.notify_all();
        }
    }
}

/// A session that closes when dropped, unless the module was initialised again meanwhile: its
/// number may then be another session's.
#[derive(Debug)]
pub(crate) struct OpenSession {
    module: &'static Module,
    slot: Slot,
    generation: u64,
    session: Option<Session>,
}

impl OpenSession {
    /// `C_OpenSession`.
    pub(crate) fn open(module: &'static Module, slot: Slot, writable: bool) -> Result<Self, Error> {
        let inside = module.enter()?;
        let session = if writable {
            module.pkcs11.open_rw_session_no_drop(slot)
        } else {
            module.pkcs11.open_ro_session_no_drop(slot)
        };
        let session = Some(session.map_err(from_cryptoki)?);
        Ok(Self { module, slot, generation: inside.1, session })
    }

    /// Which `C_Initialize` it was opened under.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// The module that it belongs to.
    pub(crate) fn module(&self) -> &'static Module {
        self.module
    }

    /// What the token in its slot says of itself now.
    pub(crate) fn token_info(&self) -> Result<TokenInfo, Error> {
        self.module.token_info(self.slot)
    }

    /// Whether a user is logged in to its token, as the session itself says.
    pub(crate) fn is_logged_in(&self) -> Result<bool, Error> {
        self.run(|session| match session.get_session_info() {
            Ok(info) => {
                Ok(!matches!(info.session_state(), SessionState::RoPublic | SessionState::RwPublic))
            }
            // A state of the vendor's own, for a user of the vendor's own.
            Err(CryptokiError::InvalidValue) => Ok(true),
            Err(error) => Err(from_cryptoki(error)),
        })
    }

    /// Runs calls on the session. They must not open or run another session: a thread that waits
    /// to finalise the module would wait for ever.
    pub(crate) fn run<T>(
        &self,
        calls: impl FnOnce(&Session) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let inside = self.module.enter()?;
        match &self.session {
            Some(session) if inside.1 == self.generation => calls(session),
            _ => Err(Error::new(
                ErrorKind::Unavailable,
                "the session ended when the module was initialised again",
            )),
        }
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        let Ok(inside) = self.module.enter() else { return };
        if let Some(session) = self.session.take()
            && inside.1 == self.generation
            && let Err(error) = session.close()
        {
            tracing::debug!(%error, "C_CloseSession");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_that_is_not_there_needs_an_operator_and_is_named() {
        let error = Module::acquire(Path::new("/nonexistent/module.so")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded);
        assert!(error.to_string().contains("/nonexistent/module.so"), "{error}");
    }

    #[test]
    fn a_library_that_is_no_module_needs_an_operator_and_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Module::acquire(file.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded);
        assert_eq!(error.cause(), Some(Cause::ModuleUnusable));
        assert!(error.to_string().contains("cannot load the module"), "{error}");
    }
}

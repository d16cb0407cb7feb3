//! The one process-wide table: modules by canonical path, each initialised once for all its users.
//!
//! `C_Initialize`, `C_Finalize` and the login belong to the process, not to the code that calls
//! them.
//! Libraries are never unloaded: vendors' modules leave threads behind that would run on into
//! nothing.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use claviger_provider_api::{Cause, Error, ErrorKind};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error as CryptokiError, RvError};
use cryptoki::session::{Session, SessionState};
use cryptoki::slot::Slot;

use crate::config::User;
use crate::error::from_cryptoki;
use crate::functions::Functions;
use crate::token_info::TokenInfo;

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
    users: Mutex<Users>,
}

/// Who uses a module.
#[derive(Debug, Default)]
struct Users {
    count: usize,
    /// Whether it was us who initialised it, so that we finalise it.
    ours: bool,
}

/// One user of a module; the last one to leave finalises it. Its sessions are closed by then: `C_Finalize`
/// under a running call is undefined.
#[derive(Debug)]
pub(crate) struct Lease(&'static Module, InUse);

impl Module {
    /// Loads and initialises the module at `path`, or joins those who use it already. What `C_Initialize`
    /// gets in `pReserved` is `reserved`: some modules read a string there.
    pub(crate) fn acquire(path: &Path, reserved: Option<&str>) -> Result<Lease, Error> {
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
        let mut users = lock(&module.users);
        if users.count == 0 {
            users.ours = module.initialise(reserved)?;
        }
        users.count += 1;
        Ok(Lease(module, InUse::announce()))
    }

    fn load(path: PathBuf) -> Result<Self, Error> {
        let functions = Functions::load(&path)?;
        let pkcs11 = Pkcs11::new(&path).map_err(from_cryptoki)?;
        Ok(Self { path, pkcs11, functions, users: Mutex::default() })
    }

    /// The canonical path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The functions that are called directly.
    pub(crate) fn functions(&self) -> &Functions {
        &self.functions
    }

    /// The slots with a token. Slots that cannot be read are left out, unless all are.
    pub(crate) fn tokens_in_slots(&self) -> Result<Vec<(Slot, TokenInfo)>, Error> {
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
    pub(crate) fn token_info(&self, slot: Slot) -> Result<TokenInfo, Error> {
        self.functions.token_info(slot).map(TokenInfo::from)
    }

    /// `C_Initialize`; false if another part of the process has called it.
    #[expect(unsafe_code, reason = "cryptoki cannot know what a module reads in pReserved")]
    fn initialise(&self, reserved: Option<&str>) -> Result<bool, Error> {
        let flags = CInitializeFlags::OS_LOCKING_OK;
        // A configuration with a zero byte in it was refused.
        let reserved = reserved.and_then(|text| CString::new(text).ok());
        let arguments =
            match reserved.as_ref().and_then(|text| NonNull::new(text.as_ptr().cast_mut())) {
                None => CInitializeArgs::new(flags),
                // SAFETY: the string ends with a zero byte and lives until `C_Initialize` has returned, which
                // is as long as the module may read it; only a module whose operator says so gets one.
                Some(text) => unsafe { CInitializeArgs::new_with_reserved(flags, text.cast()) },
            };
        match self.pkcs11.initialize(arguments) {
            Ok(()) => Ok(true),
            Err(CryptokiError::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(false),
            Err(error) => {
                let what = format_args!("cannot initialise {}", self.path.display());
                let error = from_cryptoki(error).in_context(what);
                Err(error.with_cause(Cause::ModuleUnusable))
            }
        }
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
}

impl std::ops::Deref for Lease {
    type Target = &'static Module;
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut users = lock(&self.0.users);
        users.count -= 1;
        if users.count == 0 && users.ours {
            self.0.finalise();
        }
    }
}

/// A session that closes when dropped.
#[derive(Debug)]
pub(crate) struct OpenSession {
    module: &'static Module,
    slot: Slot,
    session: Session,
}

impl OpenSession {
    /// `C_OpenSession`.
    pub(crate) fn open(module: &'static Module, slot: Slot, writable: bool) -> Result<Self, Error> {
        let session = if writable {
            module.pkcs11.open_rw_session(slot)
        } else {
            module.pkcs11.open_ro_session(slot)
        };
        Ok(Self { module, slot, session: session.map_err(from_cryptoki)? })
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
        let public = [SessionState::RoPublic, SessionState::RwPublic];
        Ok(!self.state()?.is_some_and(|state| public.contains(&state)))
    }

    /// The same; an error if it is another user than this one.
    pub(crate) fn is_logged_in_as(&self, user: User) -> Result<bool, Error> {
        match (self.state()?, user) {
            (Some(SessionState::RoPublic | SessionState::RwPublic), _) => Ok(false),
            (Some(SessionState::RwSecurityOfficer), User::User)
            | (Some(SessionState::RoUser | SessionState::RwUser), User::So) => {
                let text = "another user is logged in to the token: a process has one login per token, \
                            so all providers on it must say the same `user`";
                Err(Error::new(ErrorKind::OperatorNeeded, text))
            }
            _ => Ok(true),
        }
    }

    /// None is a state of the vendor's own, for a user of the vendor's own.
    fn state(&self) -> Result<Option<SessionState>, Error> {
        match self.session.get_session_info() {
            Ok(info) => Ok(Some(info.session_state())),
            Err(CryptokiError::InvalidValue) => Ok(None),
            Err(error) => Err(from_cryptoki(error)),
        }
    }
}

impl std::ops::Deref for OpenSession {
    type Target = Session;
    fn deref(&self) -> &Session {
        &self.session
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
        let error = Module::acquire(Path::new("/nonexistent/module.so"), None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded);
        assert!(error.to_string().contains("/nonexistent/module.so"), "{error}");
    }

    #[test]
    fn a_library_that_is_no_module_needs_an_operator_and_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Module::acquire(file.path(), None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded);
        assert_eq!(error.cause(), Some(Cause::ModuleUnusable));
        assert!(error.to_string().contains("cannot load the module"), "{error}");
    }
}

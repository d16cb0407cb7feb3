//! What this process has: whether it is initialised, its sessions, and the connections that stay
//! warm when it is not.
//!
//! A child of fork takes nothing over: it has a copy of its parent's locks, which may be held for
//! ever, and of its sockets, on which two processes would talk at once. What the parent had is left alone,
//! neither used nor dropped, and the child begins with its own C_Initialize.

use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex};

use cryptoki_sys::{
    CK_RV, CK_SESSION_HANDLE, CKF_OS_LOCKING_OK, CKR_ARGUMENTS_BAD, CKR_CANT_LOCK,
    CKR_CRYPTOKI_ALREADY_INITIALIZED, CKR_CRYPTOKI_NOT_INITIALIZED, CKR_FUNCTION_FAILED,
    CKR_GENERAL_ERROR, CKR_OK, CKR_SESSION_HANDLE_INVALID,
};

use crate::config::{self, Found};
use crate::ffi::InitializeArguments;
use crate::library::Library;
use crate::lock::lock;
use crate::log;
use crate::origin::Origin;
use crate::rv::{self, Result};
use crate::session::Session;

/// The process that the module is in. It lives until the process ends.
pub(crate) struct Process {
    origin: Origin,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// How often C_Initialize was called without its C_Finalize.
    users: usize,
    /// Stays when the last user leaves: the next one finds its connections warm.
    library: Option<Arc<Library>>,
    sessions: BTreeMap<CK_SESSION_HANDLE, Arc<Session>>,
    last_session: CK_SESSION_HANDLE,
}

/// Null, or a process that was made by `enter` and is never freed.
static CURRENT: AtomicPtr<Process> = AtomicPtr::new(null_mut());

/// What this process has; none before its first C_Initialize.
pub(crate) fn current() -> Option<&'static Process> {
    // SAFETY: null, or made by `enter` and never freed.
    let process = unsafe { CURRENT.load(Ordering::Acquire).as_ref() }?;
    process.origin.is_here().then_some(process)
}

/// What this process has, made if it is not there.
fn enter() -> &'static Process {
    loop {
        let before = CURRENT.load(Ordering::Acquire);
        if let Some(process) = current() {
            return process;
        }
        let process =
            Box::into_raw(Box::new(Process { origin: Origin::here(), state: Mutex::default() }));
        match CURRENT.compare_exchange(before, process, Ordering::AcqRel, Ordering::Acquire) {
            Ok(null) if null.is_null() => panic::set_hook(Box::new(|panic| log::write(panic))),
            Ok(_) => {}
            // SAFETY: no other thread has seen it.
            Err(_) => drop(unsafe { Box::from_raw(process) }),
        }
    }
}

/// Runs one function of the standard: a panic ends there, and what is out of the ordinary is logged.
pub(crate) fn guard(function: &str, run: impl FnOnce() -> Result) -> CK_RV {
    match panic::catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => CKR_OK,
        Ok(Err(code)) => {
            if !rv::is_ordinary(code) {
                log::write(format_args!("{function}: {} ({code:#x})", rv::name(code)));
            }
            code
        }
        Err(_) => {
            log::write(format_args!("{function}: a bug in this module; please report it"));
            CKR_GENERAL_ERROR
        }
    }
}

/// C_Initialize.
pub(crate) fn initialize(arguments: Option<InitializeArguments>) -> Result {
    if arguments.is_some_and(|a| a.has_reserved || !matches!(a.callbacks, 0 | 4)) {
        return Err(CKR_ARGUMENTS_BAD);
    }
    enter().initialize(arguments, config::load)
}

/// C_Finalize.
pub(crate) fn finalize() -> Result {
    let process = current().ok_or(CKR_CRYPTOKI_NOT_INITIALIZED)?;
    let mut state = lock(&process.state);
    let library = state.library()?;
    state.users = if library.config.strict { 0 } else { state.users - 1 };
    if state.users == 0 {
        state.sessions.clear();
        library.slots.iter().for_each(|slot| slot.set_logged_in(false));
    }
    Ok(())
}

/// What the configuration asks for, if C_Initialize was called.
pub(crate) fn library() -> Result<Arc<Library>> {
    let process = current().ok_or(CKR_CRYPTOKI_NOT_INITIALIZED)?;
    lock(&process.state).library()
}

/// An open session.
pub(crate) fn session(handle: CK_SESSION_HANDLE) -> Result<Arc<Session>> {
    let process = current().ok_or(CKR_CRYPTOKI_NOT_INITIALIZED)?;
    let state = lock(&process.state);
    state.library()?;
    state.sessions.get(&handle).cloned().ok_or(CKR_SESSION_HANDLE_INVALID)
}

/// Opens a session. Handles are never used twice.
pub(crate) fn open(session: Session) -> Result<CK_SESSION_HANDLE> {
    let process = current().ok_or(CKR_CRYPTOKI_NOT_INITIALIZED)?;
    let mut state = lock(&process.state);
    state.library()?;
    state.last_session += 1;
    let handle = state.last_session;
    state.sessions.insert(handle, Arc::new(session));
    Ok(handle)
}

/// Closes one session. The login ends with the last one (PKCS#11 2.40 section 5.6).
pub(crate) fn close(handle: CK_SESSION_HANDLE) -> Result {
    let process = current().ok_or(CKR_CRYPTOKI_NOT_INITIALIZED)?;
    let mut state = lock(&process.state);
    let library = state.library()?;
    let session = state.sessions.remove(&handle).ok_or(CKR_SESSION_HANDLE_INVALID)?;
    if !state.sessions.values().any(|other| other.slot == session.slot) {
        library.slots[session.slot].set_logged_in(false);
    }
    Ok(())
}

/// Closes all sessions of a slot.
pub(crate) fn close_all(slot: usize) -> Result {
    let process = current().ok_or(CKR_CRYPTOKI_NOT_INITIALIZED)?;
    let mut state = lock(&process.state);
    let library = state.library()?;
    state.sessions.retain(|_, session| session.slot != slot);
    library.slots[slot].set_logged_in(false);
    Ok(())
}

/// How many sessions of a slot are open, and how many of them may write.
pub(crate) fn sessions(slot: usize) -> Result<(usize, usize)> {
    let process = current().ok_or(CKR_CRYPTOKI_NOT_INITIALIZED)?;
    let state = lock(&process.state);
    let of_slot = || state.sessions.values().filter(|session| session.slot == slot);
    Ok((of_slot().count(), of_slot().filter(|session| session.may_write).count()))
}

impl Process {
    fn initialize(
        &self,
        arguments: Option<InitializeArguments>,
        load: impl FnOnce() -> Found,
    ) -> Result {
        let mut state = lock(&self.state);
        if state.users > 0 {
            if state.library()?.config.strict {
                return Err(CKR_CRYPTOKI_ALREADY_INITIALIZED);
            }
            state.users += 1;
            return Ok(());
        }
        let Found { log, config } = load();
        log::set(log);
        let config = config.map_err(|sentence| {
            log::write(sentence);
            CKR_FUNCTION_FAILED
        })?;
        // Only the host's own locks, and no word that the system's will do as well.
        if config.strict
            && arguments.is_some_and(|a| a.callbacks > 0 && a.flags & CKF_OS_LOCKING_OK == 0)
        {
            return Err(CKR_CANT_LOCK);
        }
        if state.library.as_ref().is_none_or(|library| library.config != config) {
            state.library = Some(Arc::new(Library::new(config)));
        }
        state.users = 1;
        Ok(())
    }
}

impl State {
    fn library(&self) -> Result<Arc<Library>> {
        let library = if self.users > 0 { self.library.as_ref() } else { None };
        library.cloned().ok_or(CKR_CRYPTOKI_NOT_INITIALIZED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn found(strict: bool) -> Found {
        Found { log: None, config: Ok(Config { strict, tokens: Vec::new() }) }
    }

    fn process() -> Process {
        Process { origin: Origin::here(), state: Mutex::default() }
    }

    #[test]
    fn a_second_initialize_is_counted_unless_the_configuration_is_strict() {
        let tolerant = process();
        assert_eq!(tolerant.initialize(None, || found(false)), Ok(()));
        assert_eq!(tolerant.initialize(None, || panic!("read once")), Ok(()));
        assert_eq!(lock(&tolerant.state).users, 2);
        let strict = process();
        assert_eq!(strict.initialize(None, || found(true)), Ok(()));
        assert_eq!(
            strict.initialize(None, || panic!("read once")),
            Err(CKR_CRYPTOKI_ALREADY_INITIALIZED)
        );
    }

    #[test]
    fn a_configuration_that_did_not_change_keeps_its_library() {
        let process = process();
        let library = |process: &Process| lock(&process.state).library.clone().unwrap();
        process.initialize(None, || found(false)).unwrap();
        let first = library(&process);
        lock(&process.state).users = 0;
        process.initialize(None, || found(false)).unwrap();
        assert!(Arc::ptr_eq(&first, &library(&process)));
        lock(&process.state).users = 0;
        process.initialize(None, || found(true)).unwrap();
        assert!(!Arc::ptr_eq(&first, &library(&process)));
    }

    #[test]
    fn a_wrong_configuration_leaves_the_process_not_initialised() {
        let process = process();
        let wrong = || Found { log: None, config: Err("no such file".into()) };
        assert_eq!(process.initialize(None, wrong), Err(CKR_FUNCTION_FAILED));
        assert_eq!(lock(&process.state).users, 0);
        assert_eq!(process.initialize(None, || found(false)), Ok(()));
    }

    #[test]
    fn locks_of_the_hosts_own_are_refused_only_where_the_standard_is_wanted() {
        let arguments =
            |flags| Some(InitializeArguments { flags, callbacks: 4, has_reserved: false });
        assert_eq!(process().initialize(arguments(0), || found(true)), Err(CKR_CANT_LOCK));
        assert_eq!(process().initialize(arguments(CKF_OS_LOCKING_OK), || found(true)), Ok(()));
        assert_eq!(process().initialize(arguments(0), || found(false)), Ok(()));
    }
}

//! `C_Login`, at most once per PIN that may be wrong: everything that can be known is checked first.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use claviger_provider_api::{Cause, Error, ErrorKind, Secret, SecretSource};
use cryptoki::context::Function;
use cryptoki::error::{Error as CryptokiError, RvError};
use cryptoki::session::UserType;
use cryptoki::slot::TokenInfo;
use cryptoki::types::RawAuthPin;
use zeroize::Zeroizing;

use crate::config::{Login, TokenName, User};
use crate::error::{Returned, from_cryptoki, login_outcome_unknown};
use crate::module::OpenSession;
use crate::pin_latch::{Latch, LatchError};

/// For how long a serial number is believed without a look at the module.
const SERIAL_AGE: Duration = Duration::from_mins(1);

/// The serial numbers of tokens that could not be logged in to, by module and name, and since when.
static SERIALS: Mutex<BTreeMap<(PathBuf, String), (Instant, String)>> = Mutex::new(BTreeMap::new());

/// How to log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) login: Login,
    pub(crate) user: User,
    /// Read at each login and dropped after it.
    pub(crate) pin: Option<SecretSource>,
    /// Where attempts are recorded.
    pub(crate) state_dir: Option<PathBuf>,
}

/// Why nobody is logged in now.
#[derive(Debug)]
pub(crate) enum LoginFault {
    /// `C_Login` was not called.
    NotMade(Error),
    /// `C_Login` was called: another call may be the last one before the token locks.
    Made(Error),
}

impl From<LoginFault> for Error {
    fn from(fault: LoginFault) -> Self {
        match fault {
            LoginFault::NotMade(error) | LoginFault::Made(error) => error,
        }
    }
}

impl From<Error> for LoginFault {
    fn from(error: Error) -> Self {
        Self::NotMade(error)
    }
}

/// Logs in. Never with a PIN that failed before, and not at all when the token says that one more
/// failure locks it, or where the attempt cannot be recorded.
pub(crate) fn log_in(
    session: &OpenSession,
    info: &TokenInfo,
    credentials: &Credentials,
) -> Result<(), LoginFault> {
    let token = info.label();
    refuse_by_flags(info, credentials.user)?;
    let Some(state_dir) = &credentials.state_dir else {
        return Err(LoginFault::NotMade(Error::needs_operator(
            Cause::StateDirectory,
            "no PIN is used without a state directory, where a refused one is remembered: set \
             server.state_dir",
        )));
    };
    let pin = pin(info, credentials)?;
    let attempt = Latch::new(state_dir).attempt(info.serial_number(), &pin).map_err(latched)?;
    let user = UserType::from(credentials.user);
    let outcome = session.run(|session| {
        Ok(match credentials.login {
            Login::ProtectedPath => session.login(user, None),
            Login::Pin | Login::None => {
                session.login_with_raw(user, &RawAuthPin::new(Box::new(pin.expose().to_vec())))
            }
        })
    });
    drop(pin);
    let rv = match outcome {
        // The module was never called.
        Err(error) => {
            recorded(attempt.take_back());
            return Err(LoginFault::NotMade(error));
        }
        Ok(Ok(())) => {
            tracing::info!(token, serial = info.serial_number(), "logged in");
            recorded(attempt.succeeded());
            return Ok(());
        }
        Ok(Err(CryptokiError::Pkcs11(rv, _))) => rv,
        Ok(Err(error)) => {
            recorded(attempt.refused());
            return Err(LoginFault::Made(operator(from_cryptoki(error))));
        }
    };
    if rv == RvError::UserAlreadyLoggedIn && session.is_logged_in().unwrap_or(false) {
        // Another part of this process was faster, and the token confirms its login. What was
        // refused before stays refused.
        tracing::info!(token, serial = info.serial_number(), "was logged in already");
        recorded(attempt.take_back());
        return Ok(());
    }
    let returned = Returned { rv, function: Function::Login };
    if login_outcome_unknown(rv) && !counted_a_refusal(session, info, credentials.user) {
        attempt.without_outcome();
        let text = format!(
            "the login to the token {token:?} ended without an outcome ({returned}): the PIN may have \
             been counted against it"
        );
        return Err(LoginFault::Made(Error::new(ErrorKind::Unavailable, text)));
    }
    recorded(attempt.refused());
    let serial = info.serial_number();
    tracing::error!(token, serial, %returned, "login refused; this PIN is not tried again");
    let cause = if rv == RvError::PinLocked { Cause::PinLocked } else { Cause::PinWrong };
    let text = format!(
        "the token {token:?} refused the login ({returned}); this PIN is not tried again, so that the \
         token does not lock: put the right one into its file, or run `claviger pin clear --serial \
         {serial:?}` if this one is right"
    );
    Err(LoginFault::Made(Error::needs_operator(cause, text)))
}

/// Whether the token's flags, read again after a login without an outcome, say that it counted a
/// wrong PIN: one that they did not show before it. A token need not have these flags (PKCS#11 2.40
/// section 3.2), so their absence says nothing.
fn counted_a_refusal(session: &OpenSession, before: &TokenInfo, user: User) -> bool {
    let Ok(after) = session.token_info() else { return false };
    let told = |info: &TokenInfo| match user {
        User::So => [info.so_pin_count_low(), info.so_pin_final_try(), info.so_pin_locked()],
        User::User | User::Vendor(_) => {
            [info.user_pin_count_low(), info.user_pin_final_try(), info.user_pin_locked()]
        }
    };
    told(before).into_iter().zip(told(&after)).any(|(before, after)| !before && after)
}

/// Notes which token a name stood for when a login to it failed.
pub(crate) fn remember_serial(module: &Path, name: &TokenName, serial: &str) {
    let known = (Instant::now(), serial.to_owned());
    serials().insert((module.to_owned(), name.to_string()), known);
}

/// Why a login is not worth a look at the module, for up to a minute: the same PIN was refused, and
/// nobody cleared the latch. With many keys on a token each try would start the module for nothing.
pub(crate) fn refused_again(
    module: &Path,
    name: &TokenName,
    credentials: &Credentials,
) -> Option<Error> {
    let module = module.canonicalize().ok()?;
    let (since, serial) = serials().get(&(module, name.to_string())).cloned()?;
    let (state_dir, source) = (credentials.state_dir.as_ref()?, credentials.pin.as_ref()?);
    if since.elapsed() >= SERIAL_AGE || credentials.login != Login::Pin {
        return None;
    }
    let pin = source.read_blocking().ok()?.without_line_end();
    Latch::new(state_dir).refused_before(&serial, &pin).map(latched)
}

fn serials() -> MutexGuard<'static, BTreeMap<(PathBuf, String), (Instant, String)>> {
    SERIALS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refuse_by_flags(info: &TokenInfo, user: User) -> Result<(), Error> {
    let (locked, final_try, low) = match user {
        User::So => (info.so_pin_locked(), info.so_pin_final_try(), info.so_pin_count_low()),
        User::User | User::Vendor(_) => {
            (info.user_pin_locked(), info.user_pin_final_try(), info.user_pin_count_low())
        }
    };
    let token = info.label();
    if locked {
        return Err(Error::needs_operator(
            Cause::PinLocked,
            format!("the PIN of token {token:?} is locked: unlock it with the vendor's tools"),
        ));
    }
    if final_try {
        return Err(Error::needs_operator(
            Cause::PinLocked,
            format!(
                "token {token:?} says that one more wrong PIN locks it, so none is sent: log in once by \
             hand with the right PIN, which resets the count"
            ),
        ));
    }
    if low {
        tracing::warn!(token, "a wrong PIN was sent to this token since the last login");
    }
    Ok(())
}

fn pin(info: &TokenInfo, credentials: &Credentials) -> Result<Secret, Error> {
    if credentials.login == Login::ProtectedPath {
        if !info.protected_authentication_path() {
            return Err(operator(format!(
                "token {:?} has no keypad of its own: write login = \"pin\"",
                info.label()
            )));
        }
        // The latch counts attempts on the keypad as those of one PIN, which we do not know.
        return Ok(Secret::new(Zeroizing::new(b"protected-path".to_vec())));
    }
    let source = credentials.pin.as_ref().ok_or_else(|| operator("no PIN is configured"))?;
    let pin = source.read_blocking()?;
    let pin = pin.without_line_end();
    if pin.expose().is_empty() {
        return Err(Error::needs_operator(Cause::SecretFile, "the PIN is empty; it was not sent"));
    }
    Ok(pin)
}

fn latched(error: LatchError) -> Error {
    let kind = match error {
        LatchError::Busy { .. } => ErrorKind::Unavailable,
        _ => ErrorKind::OperatorNeeded,
    };
    let cause = match &error {
        LatchError::SamePin { .. }
        | LatchError::Exhausted { .. }
        | LatchError::Unreadable { .. } => Some(Cause::PinLatched),
        LatchError::StateDir { .. }
        | LatchError::NotDurable { .. }
        | LatchError::Outcome { .. }
        | LatchError::Io { .. } => Some(Cause::StateDirectory),
        LatchError::Busy { .. } | LatchError::Serial(_) => None,
    };
    Error::new(kind, error).with_cause(cause)
}

/// An outcome that cannot be recorded leaves the attempt counted, which is the safe side.
fn recorded(outcome: Result<(), LatchError>) {
    if let Err(error) = outcome {
        tracing::error!(%error, "PIN latch");
    }
}

fn operator(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::OperatorNeeded, source)
}

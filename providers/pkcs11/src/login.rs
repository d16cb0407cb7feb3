//! `C_Login`, at most once per PIN that may be wrong: everything that can be known is checked first.

use std::path::PathBuf;

use claviger_provider_api::{Cause, Error, ErrorKind, Secret, SecretError, SecretSource};
use cryptoki::context::Function;
use cryptoki::error::{Error as CryptokiError, RvError};
use cryptoki::session::UserType;
use cryptoki::types::RawAuthPin;
use zeroize::Zeroizing;

use crate::config::{Login, User};
use crate::error::{Returned, from_cryptoki, login_outcome_unknown};
use crate::module::OpenSession;
use crate::pin_latch::{Latch, LatchError, PinOwner};
use crate::token_info::{TokenIdentity, TokenInfo};

/// How to log in.
#[derive(Debug)]
pub(crate) struct Credentials {
    pub(crate) login: Login,
    pub(crate) user: User,
    /// Read at each login and dropped after it.
    pub(crate) pin: Option<SecretSource>,
    /// Where attempts are recorded.
    pub(crate) state_dir: Option<PathBuf>,
}

impl Credentials {
    /// Whose PIN is sent to a token.
    fn owner(&self, token: &TokenIdentity) -> PinOwner {
        PinOwner { token: token.clone(), user: self.user.to_string() }
    }
}

/// Why there is no login now.
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
    let TokenIdentity { label: token, serial, .. } = &info.identity;
    refuse_by_flags(info, credentials.user)?;
    let Some(state_dir) = &credentials.state_dir else {
        let text = "no PIN is used without a state directory, where a refused one is remembered: set \
                    server.state_dir";
        return Err(LoginFault::NotMade(Error::needs_operator(Cause::StateDirectory, text)));
    };
    let pin = pin(info, credentials)?;
    let owner = credentials.owner(&info.identity);
    let attempt = Latch::new(state_dir).attempt(&owner, &pin).map_err(latched)?;
    let user = UserType::from(credentials.user);
    let outcome = match credentials.login {
        Login::ProtectedPath => session.login(user, None),
        Login::Pin | Login::None => {
            session.login_with_raw(user, &RawAuthPin::new(Box::new(pin.expose().to_vec())))
        }
    };
    drop(pin);
    let rv = match outcome {
        Ok(()) => {
            tracing::info!(token, serial, "logged in");
            recorded(attempt.succeeded());
            return Ok(());
        }
        Err(CryptokiError::Pkcs11(rv, _)) => rv,
        Err(error) => {
            recorded(attempt.refused());
            return Err(LoginFault::Made(operator(from_cryptoki(error))));
        }
    };
    if rv == RvError::UserAlreadyLoggedIn && session.is_logged_in().unwrap_or(false) {
        // Another part of this process was faster, and the token confirms its login. What was
        // refused before stays refused.
        tracing::info!(token, serial, "was logged in already");
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
/// wrong PIN.
fn counted_a_refusal(session: &OpenSession, before: &TokenInfo, user: User) -> bool {
    session.token_info().is_ok_and(|after| after.pin(user).tells_more_than(before.pin(user)))
}

fn refuse_by_flags(info: &TokenInfo, user: User) -> Result<(), Error> {
    let (flags, token) = (info.pin(user), &info.identity.label);
    if flags.locked {
        return Err(Error::needs_operator(
            Cause::PinLocked,
            format!("the PIN of token {token:?} is locked: unlock it with the vendor's tools"),
        ));
    }
    if flags.final_try {
        return Err(Error::needs_operator(
            Cause::PinLocked,
            format!(
                "token {token:?} says that one more wrong PIN locks it, so none is sent: log in once \
                 by hand with the right PIN, which resets the count"
            ),
        ));
    }
    if flags.count_low {
        tracing::warn!(token, "a wrong PIN was sent to this token since the last login");
    }
    Ok(())
}

fn pin(info: &TokenInfo, credentials: &Credentials) -> Result<Secret, Error> {
    if credentials.login == Login::ProtectedPath {
        if !info.has_protected_path() {
            return Err(operator(format!(
                "token {:?} has no keypad of its own: write login = \"pin\"",
                info.identity.label
            )));
        }
        // The latch counts attempts on the keypad as those of one PIN, which we do not know.
        return Ok(Secret::new(Zeroizing::new(b"protected-path".to_vec())));
    }
    let source = credentials.pin.as_ref().ok_or_else(|| operator("no PIN is configured"))?;
    let unread = |error: SecretError| Error::new(error.kind(), error).with_cause(Cause::SecretFile);
    let pin = source.read_blocking().map_err(unread)?;
    let pin = pin.without_line_end();
    if pin.expose().is_empty() {
        let text = format!("the PIN in {source} is empty; it was not sent: write the PIN into it");
        return Err(Error::needs_operator(Cause::SecretFile, text));
    }
    Ok(pin)
}

fn latched(error: LatchError) -> Error {
    match &error {
        LatchError::Busy { .. } => Error::new(ErrorKind::Unavailable, error),
        LatchError::Serial(_) => operator(error),
        LatchError::SamePin { .. }
        | LatchError::Exhausted { .. }
        | LatchError::Unreadable { .. } => Error::needs_operator(Cause::PinLatched, error),
        LatchError::StateDir { .. }
        | LatchError::NotDurable { .. }
        | LatchError::Outcome { .. }
        | LatchError::Io { .. } => Error::needs_operator(Cause::StateDirectory, error),
    }
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

//! A key as its token knows it: where its handle is kept, and how it proves itself.

use std::sync::{Mutex, PoisonError};

use claviger_provider_api::{
    Canary, Cause, Error, ErrorKind, KeyMaterial, Parameters, PublicKey, Signature,
};
use cryptoki::object::ObjectHandle;

use crate::breaker::Breaker;
use crate::config::Oaep;
use crate::module::OpenSession;
use crate::object::{self, Wanted};
use crate::operation::{Failure, Operation};
use crate::token::{LoginEpoch, TokenState};

/// A key on a token, for as long as it is held open.
#[derive(Debug)]
pub(crate) struct TokenKey {
    pub(crate) index: u32,
    pub(crate) wanted: Wanted,
    /// As found when the key was opened; never another one.
    pub(crate) public_key: PublicKey,
    pub(crate) canary: Canary,
    pub(crate) oaep: Oaep,
    pub(crate) breaker: Breaker,
    handle: Mutex<Option<(u64, ObjectHandle)>>,
}

/// Why a key cannot be used as things are.
#[derive(Debug)]
pub(crate) enum KeyFault {
    /// No such object; whether that was seen with a login.
    Missing { logged_in: bool },
    /// Nothing that a new session, login or module would change: another key, not permitted.
    Final(Error),
    /// Anything else.
    Broken(Error),
}

impl TokenKey {
    /// A key that was found at `epoch`.
    pub(crate) fn new(
        index: u32,
        wanted: Wanted,
        public_key: PublicKey,
        canary: Canary,
        oaep: Oaep,
        (epoch, object): (LoginEpoch, ObjectHandle),
    ) -> Self {
        let handle = Mutex::new(Some((epoch.number, object)));
        Self { index, wanted, public_key, canary, oaep, breaker: Breaker::default(), handle }
    }

    /// Its handle, if it was found since the login in force.
    pub(crate) fn handle(&self, epoch: LoginEpoch) -> Result<ObjectHandle, Error> {
        match *self.handle.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((number, object)) if number == epoch.number => Ok(object),
            _ => Err(Error::new(
                ErrorKind::Unavailable,
                "the key was not found again yet since the last login",
            )),
        }
    }

    /// Looks for the key again; its handle is kept only if it is still the same key.
    pub(crate) fn find_again(
        &self,
        state: &TokenState,
        epoch: LoginEpoch,
        session: &OpenSession,
    ) -> Result<(), KeyFault> {
        let remember = |handle| {
            *self.handle.lock().unwrap_or_else(PoisonError::into_inner) = handle;
        };
        remember(None);
        let found = object::find(session, &self.wanted).map_err(|error| match error.kind() {
            ErrorKind::OperatorNeeded => KeyFault::Final(error),
            _ => KeyFault::Broken(error),
        })?;
        let Some(found) = found else {
            let logged_in = state.sees_private_objects(session).map_err(KeyFault::Broken)?;
            return Err(KeyFault::Missing { logged_in });
        };
        if found.public_key.sha256() != self.public_key.sha256() {
            return Err(KeyFault::Final(Error::needs_operator(
                Cause::AnotherKey,
                format!(
                    "{} is another key now: its public key has the SHA-256 {}, not {}; nothing is \
                     unwrapped with it",
                    self.wanted.locator,
                    hex::encode(found.public_key.sha256()),
                    hex::encode(self.public_key.sha256()),
                ),
            )));
        }
        remember(Some((epoch.number, found.object)));
        Ok(())
    }

    /// A private-key operation on the canary, through a session of its own.
    pub(crate) fn prove(&self, state: &TokenState) -> Result<(), Error> {
        let (epoch, session) = state.open_session()?;
        let object = self.handle(epoch)?;
        let len = self.public_key.modulus_len();
        let outcome = if let Some((algorithm, wrapped)) = self.canary.wrapped().next() {
            Operation::unwrap(wrapped, &Parameters::of(algorithm), self.oaep)
                .run(&session, object, len)
                .map_err(Failure::into_error)
                .and_then(|material| self.canary.accept(&KeyMaterial::new(material)))
        } else if let Some(algorithm) = self.canary.sign_algorithms().next() {
            Operation::sign(&self.canary.digest(algorithm), algorithm)
                .run(&session, object, len)
                .map_err(Failure::into_error)
                .and_then(|signature| {
                    let signature = Signature::without_request_id(signature.to_vec());
                    self.canary.accept_signature(&self.public_key, algorithm, &signature)
                })
        } else {
            self.find_again(state, epoch, &session).map_err(|fault| fault.into_error(self))
        };
        outcome.map_err(|error| match error.kind() {
            // A canary is good: whatever the token says about it, the token is at fault.
            ErrorKind::UnwrapFailed => {
                Error::new(ErrorKind::Unavailable, error).with_cause(Cause::BackendFailing)
            }
            _ => error,
        })
    }
}

impl KeyFault {
    /// The error that callers see.
    pub(crate) fn into_error(self, key: &TokenKey) -> Error {
        match self {
            Self::Final(error) | Self::Broken(error) => error,
            Self::Missing { logged_in } => missing(&key.wanted, logged_in),
        }
    }
}

/// The error for a key that was not found.
pub(crate) fn missing(wanted: &Wanted, logged_in: bool) -> Error {
    let locator = &wanted.locator;
    if logged_in {
        Error::needs_operator(
            Cause::KeyAbsent,
            format!(
                "the token has no private key {locator} for this user (`pkcs11-tool --login -O` \
                 lists what it has)"
            ),
        )
    } else {
        Error::new(
            ErrorKind::Unavailable,
            format!("{locator} cannot be seen: the login to its token was lost"),
        )
    }
}

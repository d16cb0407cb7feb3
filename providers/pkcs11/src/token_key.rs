//! A key as its token knows it: where its handle is kept, and how it proves itself.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use claviger_provider_api::{
    Canary, Cause, Error, ErrorKind, KeyMaterial, Parameters, PublicKey, Signature,
};
use cryptoki::object::ObjectHandle;

use crate::config::Oaep;
use crate::login_epoch::LoginEpoch;
use crate::module::OpenSession;
use crate::object::{self, Wanted};
use crate::operation::{Failure, Operation};
use crate::uri::Locator;

/// A key on a token, for as long as it is held open.
#[derive(Debug)]
pub(crate) struct TokenKey {
    pub(crate) index: u32,
    pub(crate) wanted: Wanted,
    /// As found when the key was opened; never another one.
    pub(crate) public_key: PublicKey,
    pub(crate) canary: Canary,
    pub(crate) oaep: Oaep,
    handle: Mutex<Option<(u64, ObjectHandle)>>,
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
        Self { index, wanted, public_key, canary, oaep, handle }
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

    /// Looks for the key again; its handle is kept only if it is still the same key. `needs_login`:
    /// whether private objects are seen only after a login.
    pub(crate) fn find_again(
        &self,
        epoch: LoginEpoch,
        session: &OpenSession,
        needs_login: bool,
    ) -> Result<(), Error> {
        let remember = |handle| {
            *self.handle.lock().unwrap_or_else(PoisonError::into_inner) = handle;
        };
        remember(None);
        let Some(found) = object::find(session, &self.wanted)? else {
            return Err(missing(session, &self.wanted.locator, needs_login));
        };
        check_meant(&self.wanted.locator, &found.public_key, self.public_key.sha256())?;
        remember(Some((epoch.number, found.object)));
        Ok(())
    }

    /// A private-key operation on the canary, through a session of its own.
    pub(crate) fn prove(
        &self,
        epoch: LoginEpoch,
        session: &OpenSession,
        needs_login: bool,
    ) -> Result<(), Error> {
        let object = self.handle(epoch)?;
        let len = self.public_key.modulus_len();
        let outcome = if let Some((algorithm, wrapped)) = self.canary.wrapped().next() {
            Operation::unwrap(wrapped, &Parameters::of(algorithm), self.oaep)
                .run(session, object, len)
                .map_err(Failure::into_error)
                .and_then(|material| self.canary.accept(&KeyMaterial::new(material)))
        } else if let Some(algorithm) = self.canary.sign_algorithms().next() {
            Operation::sign(&self.canary.digest(algorithm), algorithm)
                .run(session, object, len)
                .map_err(Failure::into_error)
                .and_then(|signature| {
                    let signature = Signature::without_request_id(signature.to_vec());
                    self.canary.accept_signature(&self.public_key, algorithm, &signature)
                })
        } else {
            self.find_again(epoch, session, needs_login)
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

/// An error where a public key has not the SHA-256 that is `meant`.
pub(crate) fn check_meant(
    locator: &impl fmt::Display,
    found: &PublicKey,
    meant: [u8; 32],
) -> Result<(), Error> {
    if found.sha256() == meant {
        return Ok(());
    }
    let (found, meant) = (hex::encode(found.sha256()), hex::encode(meant));
    let text = format!(
        "{locator} is another key now: its public key has the SHA-256 {found}, not {meant}; nothing is \
         unwrapped with it"
    );
    Err(Error::needs_operator(Cause::AnotherKey, text))
}

/// Why a key was not found: it is not there, or there is no login.
pub(crate) fn missing(session: &OpenSession, locator: &Locator, needs_login: bool) -> Error {
    match session.is_logged_in() {
        Err(error) if needs_login => return error,
        Ok(false) if needs_login => {
            let text = format!("{locator} cannot be seen: the login to its token was lost");
            return Error::new(ErrorKind::Unavailable, text);
        }
        _ => {}
    }
    let visible = object::visible(session)
        .unwrap_or_else(|error| format!("no list of its private keys ({error})"));
    let meant = locator.with_id_of_digits().map_or_else(String::new, |meant| {
        format!(
            "; the id in the locator stands for its characters: write {meant} if it is the ID as \
             pkcs11-tool prints it"
        )
    });
    let text = format!(
        "the token has no private key {locator} for this user; it shows {visible}{meant} \
         (`pkcs11-tool --login -O` lists all objects)"
    );
    Error::needs_operator(Cause::KeyAbsent, text)
}

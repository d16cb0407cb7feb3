//! Making keys in a backend: what an operator does with a login of his own, and the daemon never.

use crate::algorithm::{Algorithm, SignAlgorithm};
use crate::error::{Error, ErrorKind};
use crate::key::OpenKey;
use crate::public_key::PublicKey;

/// An RSA key that is to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewKey<'a> {
    /// The key's name in the configuration: letters, digits, `-`, `_` and `.`.
    pub name: &'a str,
    /// The version's number in the configuration, from 1.
    pub version: u32,
    /// The length of the modulus in bits: 2048, 3072 or 4096.
    pub bits: u32,
    /// The wrapping algorithms that it is to do; empty for a key that only signs.
    pub algorithms: &'a [Algorithm],
    /// The signing algorithms that it is to do; empty for a key that may not sign.
    pub sign_algorithms: &'a [SignAlgorithm],
    /// Whether software is to protect it, in backends that do that or have it in hardware.
    pub in_software: bool,
    /// Where it is to lie, in the backend's own form; none: the provider chooses, by name and version.
    pub locator: Option<&'a str>,
    /// Where the version lies that it is to follow, in the same provider, if there is one.
    pub after: Option<&'a str>,
}

impl NewKey<'_> {
    /// `NAME-vVERSION`, for backends in which each version is a key of its own.
    pub fn own_name(&self) -> String {
        format!("{}-v{}", self.name, self.version)
    }

    /// For backends that have no choice between software and hardware.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::OperatorNeeded`] where the choice was made.
    pub fn refuse_choice(&self) -> Result<(), Error> {
        if self.in_software {
            let text = "this type of provider has no choice between software and hardware: leave \
                        --in-software out";
            return Err(Error::new(ErrorKind::OperatorNeeded, text));
        }
        Ok(())
    }

    /// What such a key is opened with, to be checked before it is made.
    pub fn as_opened<'a>(&'a self, locator: &'a str) -> OpenKey<'a> {
        OpenKey {
            locator,
            algorithms: self.algorithms,
            sign_algorithms: self.sign_algorithms,
            public_key_sha256: None,
        }
    }
}

/// A key that was made.
#[derive(Debug)]
pub struct MadeKey {
    /// Where it lies, as a configuration names it.
    pub locator: String,
    /// Its public half, as the backend gave it when it made the key.
    pub public_key: PublicKey,
    /// What an operator should know of it, a clause each.
    pub notes: Vec<String>,
}

/// The error of a request to make a key: one whose outcome is not known says so, and where to look.
#[must_use]
pub fn asked_once(error: Error, what: impl std::fmt::Display) -> Error {
    match error.kind() {
        ErrorKind::OperatorNeeded | ErrorKind::Throttled { .. } => error,
        _ => error.in_context(format_args!(
            "it is not known whether {what} was made: look there before you try again"
        )),
    }
}

/// The error of a provider that does not do it; `instead` is what to do: the vendor's own command.
pub fn not_here(what: &str, instead: &str) -> Error {
    Error::new(ErrorKind::OperatorNeeded, format!("{what} is not done here: {instead}"))
}

//! What went wrong, as a closed set: what an operator's tool matches on, in place of sentences.

use serde::{Deserialize, Serialize};

/// What went wrong in a backend or on the way to it, where an error's kind does not say it.
///
/// A provider sets it where it already matches on its backend's codes. Closed: `claviger doctor`
/// matches on it without a wildcard. What an error's [`crate::ErrorKind`] says completely
/// (`UnwrapFailed`, `Throttled`, `DeadlineExceeded`) has no cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The token refused the PIN just now.
    PinWrong,
    /// The token refused a PIN before, so none is tried until an operator acts.
    PinLatched,
    /// The token says that its PIN is locked, or that one more failure locks it.
    PinLocked,
    /// A login attempt cannot be recorded in the state directory, so none is made.
    StateDirectory,
    /// A file or field with a secret is missing, empty, unreadable, or readable by others.
    SecretFile,
    /// The PKCS#11 module has no such token at the moment.
    TokenAbsent,
    /// The PKCS#11 module cannot be loaded or initialised.
    ModuleUnusable,
    /// The backend has no such key, or no such version of it.
    KeyAbsent,
    /// The backend has the key and does not let anyone use it: disabled, soft-deleted, expired.
    KeyDisabled,
    /// Several keys of the backend match the locator.
    KeyAmbiguous,
    /// The key is of another type or size, or was made for another use.
    KeyUnfit,
    /// Another public key than the pinned one lies here.
    AnotherKey,
    /// The backend would hand the private half out, and the configuration does not allow that.
    ExtractableRefused,
    /// The backend cannot do a listed algorithm with this key.
    AlgorithmNotOffered,
    /// Credentials are missing, wrong, expired or revoked.
    CredentialsRefused,
    /// The credentials are good, and do not permit this.
    NotPermitted,
    /// The server's certificate is not trusted here, or ours is not trusted there.
    WrongCa,
    /// Vault or OpenBao is sealed.
    Sealed,
    /// No connection to the backend.
    Unreachable,
    /// The backend was reached, and answered that it cannot serve now (HTTP 500, 502, 503, 504).
    BackendFailing,
    /// The backend was asked and did not answer in time.
    NoAnswer,
    /// The backend answered with success and with something that cannot be right: bytes that do not
    /// fit their checksum, a signature that does not verify, another key's answer.
    WrongAnswer,
}

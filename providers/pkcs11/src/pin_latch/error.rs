//! Why a PIN was not tried, in sentences that say what to do.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why no PIN was tried, or an outcome not recorded.
#[derive(Debug, thiserror::Error)]
pub enum LatchError {
    /// The token refused this PIN before.
    #[error(
        "token {token} refused this PIN before, or one that looks the same: it is not tried again; \
         put the right PIN into the PIN's file, where it is tried by itself; if this one is right, \
         check the token's own retry counter, then run: claviger pin clear --serial {serial:?}"
    )]
    SamePin {
        /// The token, as a text.
        token: String,
        /// Its serial number.
        serial: String,
    },
    /// Two attempts did not succeed.
    #[error(
        "two logins to token {token} failed or did not end: no PIN is tried any more; \
         put the right PIN into the PIN's file, check the token's own retry counter, then run: \
         claviger pin clear --serial {serial:?}"
    )]
    Exhausted {
        /// The token, as a text.
        token: String,
        /// Its serial number.
        serial: String,
    },
    /// Another process holds the token's lock.
    #[error(
        "another process has been logging in to token {token} for {}s; if it hangs, end it; \
         its attempt then counts as a crash", waited.as_secs()
    )]
    Busy {
        /// The token, as a text.
        token: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The record of earlier attempts cannot be trusted, so nothing is tried.
    #[error(
        "the record of login attempts {path} cannot be used: {reason}; no PIN is tried; check the \
         token's own retry counter, then run: claviger pin clear --serial {serial:?}",
        path = path.display()
    )]
    Unreadable {
        /// The token's serial number.
        serial: String,
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The state directory is not there, or others may change it.
    #[error("the state directory cannot hold PIN attempts: {path} {reason}", path = path.display())]
    StateDir {
        /// The directory.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The attempt could not be made durable, so it was not made.
    #[error(
        "no PIN was tried, because the attempt could not be recorded in {path} first: \
         make the state directory writable and free space there",
        path = path.display()
    )]
    NotDurable {
        /// The record.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The login was made, but how it ended is not on record.
    #[error(
        "the outcome of a login could not be recorded in {path}, where it stays as an attempt that \
         did not end; make the state directory writable, then run: claviger pin clear --serial {serial:?}",
        path = path.display()
    )]
    Outcome {
        /// The token's serial number.
        serial: String,
        /// The record.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Records cannot be listed, locked or removed.
    #[error("cannot work with {path}", path = path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No token has such a serial number.
    #[error("a token's serial number has at most 16 characters; this one has {0} bytes")]
    Serial(usize),
}

//! Why a key cannot be used, and whether a new process of its module may change that.

use claviger_provider_api::{Error, ErrorKind};

/// A failure of a token or of a key in it.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) error: Error,
    /// Whether the module, as it runs in this process, may be at fault, and not the key alone.
    pub(crate) is_of_process: bool,
}

impl Fault {
    /// A new process would change nothing.
    pub(crate) fn of_key(error: Error) -> Self {
        Self { error, is_of_process: false }
    }

    /// A new process may help.
    pub(crate) fn of_process(error: Error) -> Self {
        Self { error, is_of_process: true }
    }

    /// The process is gone, or there is none.
    pub(crate) fn no_process(reason: String) -> Self {
        Self::of_process(Error::new(ErrorKind::Unavailable, reason))
    }

    /// The same fault for another one who waited for it.
    pub(crate) fn repeated(&self) -> Self {
        Self { error: self.error.repeated(), is_of_process: self.is_of_process }
    }
}

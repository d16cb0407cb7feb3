//! One login to a token: handles that were found under another one are dead.

use cryptoki::slot::Slot;

/// Where a token is, and since which login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LoginEpoch {
    /// Counted from 1 for each token.
    pub(crate) number: u64,
    pub(crate) slot: Slot,
}

//! To whom a session thread answers: a task of this process, or the daemon at the other end of a
//! socket.

use claviger_provider_api::Error;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

/// What an operation gave.
pub(crate) type Outcome = Result<Zeroizing<Vec<u8>>, Error>;

/// The receiver of an operation's outcome.
pub(crate) trait Reply: std::fmt::Debug + Send {
    /// Whether the receiver is gone.
    fn is_gone(&self) -> bool;

    /// Passes the outcome on; it is zeroed where the receiver is gone.
    fn send(self: Box<Self>, outcome: Outcome);
}

impl Reply for oneshot::Sender<Outcome> {
    fn is_gone(&self) -> bool {
        self.is_closed()
    }

    fn send(self: Box<Self>, outcome: Outcome) {
        drop((*self).send(outcome));
    }
}

//! To whom a session thread answers: a task of this process, or the daemon at the other end of a
//! socket.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use claviger_provider_api::Error;
use claviger_provider_api::caller_left::caller_has_left;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

/// What an operation gave.
pub(crate) type Outcome = Result<Zeroizing<Vec<u8>>, Error>;

/// The receiver of an operation's outcome.
pub(crate) trait Reply: std::fmt::Debug + Send {
    /// Whether the receiver is gone.
    fn is_gone(&self) -> bool;

    /// Whether the caller for whom the receiver asked has left; the receiver may wait all the same.
    fn caller_has_left(&self) -> bool;

    /// Passes the outcome on, and how long the operation was queued; it is zeroed where the receiver is
    /// gone.
    fn send(self: Box<Self>, outcome: Outcome, queued: Duration);
}

/// To a task of this process.
#[derive(Debug)]
pub(crate) struct Local {
    sender: oneshot::Sender<(Outcome, Duration)>,
    caller_left: Arc<AtomicBool>,
}

/// Where [`Local`] arrives.
#[derive(Debug)]
pub(crate) struct Receiver {
    answer: oneshot::Receiver<(Outcome, Duration)>,
    caller_left: Arc<AtomicBool>,
}

impl Local {
    /// A reply and its receiver.
    pub(crate) fn new() -> (Self, Receiver) {
        let (sender, answer) = oneshot::channel();
        let caller_left = Arc::<AtomicBool>::default();
        (Self { sender, caller_left: Arc::clone(&caller_left) }, Receiver { answer, caller_left })
    }
}

impl Reply for Local {
    fn is_gone(&self) -> bool {
        self.sender.is_closed()
    }

    fn caller_has_left(&self) -> bool {
        self.is_gone() || self.caller_left.load(Ordering::Relaxed)
    }

    fn send(self: Box<Self>, outcome: Outcome, queued: Duration) {
        drop(self.sender.send((outcome, queued)));
    }
}

impl Future for Receiver {
    type Output = Result<(Outcome, Duration), oneshot::error::RecvError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if caller_has_left() {
            self.caller_left.store(true, Ordering::Relaxed);
        }
        Pin::new(&mut self.answer).poll(context)
    }
}

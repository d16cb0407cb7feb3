//! A PIN that lies in Vault: the child has no way there, so it asks the daemon for it, at each login.

use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use claviger_provider_api::{Error, ErrorKind, ReadSecret, Secret, SecretStore};
use zeroize::Zeroizing;

use super::message::{Event, FromChild, Pin, PinOutcome, PinWanted};
use super::outbox::Outbox;
use crate::unavailable;

/// How long the daemon may take.
const LIMIT: Duration = Duration::from_secs(30);

/// The daemon as a store of one secret.
#[derive(Debug)]
pub(super) struct PinOfDaemon {
    outbox: Arc<Outbox<UnixStream>>,
    /// Held by the one who asks.
    answers: Mutex<mpsc::Receiver<Pin>>,
    answered: mpsc::Sender<Pin>,
}

impl PinOfDaemon {
    /// Asks over `outbox`.
    pub(super) fn new(outbox: Arc<Outbox<UnixStream>>) -> Self {
        let (answered, answers) = mpsc::channel();
        Self { outbox, answers: Mutex::new(answers), answered }
    }

    /// The daemon's answer.
    pub(super) fn deliver(&self, pin: Pin) {
        // The receiver lives as long as the sender.
        let _ = self.answered.send(pin);
    }
}

impl SecretStore for PinOfDaemon {
    fn read<'a>(&'a self, path: &'a str, field: &'a str) -> ReadSecret<'a> {
        Box::pin(async move { self.read_blocking(path, field) })
    }

    fn read_blocking(&self, _: &str, _: &str) -> Result<Secret, Error> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        // An answer that came too late for an earlier question is not the newest.
        while answers.try_recv().is_ok() {}
        let wanted = FromChild::from(Event::PinWanted(PinWanted {}));
        self.outbox.send(&wanted).map_err(unavailable)?;
        match answers.recv_timeout(LIMIT) {
            Ok(Pin { outcome: Some(PinOutcome::Pin(pin)) }) => Ok(Secret::new(Zeroizing::new(pin))),
            Ok(Pin { outcome: Some(PinOutcome::Failure(failure)) }) => Err(failure.into()),
            Ok(Pin { outcome: None }) => {
                Err(Error::new(ErrorKind::Internal, "the daemon gave no PIN"))
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                Err(unavailable("the daemon did not give the PIN within 30 s"))
            }
        }
    }
}

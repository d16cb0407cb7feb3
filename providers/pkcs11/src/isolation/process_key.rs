//! A key as its provider's processes know it: what opens it, and in which of them it is open.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use claviger_provider_api::{Cause, Error, ErrorKind, PublicKey};
use tokio::sync::watch;

use super::link::Link;
use super::message::{Open, Opened, Request};
use super::now;
use super::running::Running;
use crate::breaker::Breaker;
use crate::fault::Fault;
use crate::here::OPEN_LIMIT;
use crate::token_key::check_meant;

/// A key that stays open when its process is started anew. Dropped, it is closed in the process.
#[derive(Debug)]
pub(super) struct ProcessKey {
    /// What opens it in a new process.
    request: Open,
    public_key_sha256: [u8; 32],
    /// For what is wrong with this key alone; what is wrong with all is in the provider's.
    pub(super) breaker: Breaker,
    /// In which process it is open.
    opened_in: AtomicU64,
    /// Held while it is opened again.
    opening: tokio::sync::Mutex<()>,
    repairs: AtomicU64,
    running: watch::Receiver<Running>,
}

impl ProcessKey {
    /// A key that process `opened_in` has opened. The next process opens no other one.
    pub(super) fn new(
        mut request: Open,
        public_key_sha256: [u8; 32],
        opened_in: u64,
        running: watch::Receiver<Running>,
    ) -> Self {
        request.meant_sha256 = Some(public_key_sha256.to_vec());
        Self {
            request,
            public_key_sha256,
            breaker: Breaker::default(),
            opened_in: AtomicU64::new(opened_in),
            opening: tokio::sync::Mutex::default(),
            repairs: AtomicU64::new(0),
            running,
        }
    }

    /// The locator.
    pub(super) fn locator(&self) -> &str {
        &self.request.locator
    }

    /// The number that the process knows it by.
    pub(super) fn number(&self) -> u32 {
        self.request.key
    }

    /// Whether it is open in the process behind `link`.
    pub(super) fn is_open_in(&self, link: &Link) -> bool {
        self.opened_in.load(Ordering::Acquire) == link.number
    }

    /// Why no process can be asked for it at the moment.
    pub(super) fn away(&self) -> Option<Error> {
        match self.running.borrow().link() {
            Ok(link) if self.is_open_in(&link) => None,
            Ok(_) => Some(not_open_again()),
            Err(no_process) => Some(no_process),
        }
    }

    /// Whether it should be well in the process behind `link`.
    pub(super) fn serves_in(&self, link: &Link) -> bool {
        self.is_open_in(link) && !self.breaker.is_open()
    }

    /// Opens it in the process behind `link`; false if it is open there. Another key in its place is closed
    /// again and never used.
    pub(super) async fn open_in(&self, link: &Link) -> Result<bool, Fault> {
        let _turn = self.opening.lock().await;
        if self.is_open_in(link) {
            return Ok(false);
        }
        let opened = link.open(self.request.clone(), now() + OPEN_LIMIT).await;
        let opened = opened.map_err(proven_before)?;
        let found = public_key(&opened).map_err(Fault::of_process)?;
        // The process has looked, and is not relied on.
        if let Err(error) = check_meant(&self.request.locator, &found, self.public_key_sha256) {
            link.send(Request::Close(self.request.key)).map_err(Fault::of_process)?;
            return Err(Fault::of_key(error));
        }
        self.opened_in.store(link.number, Ordering::Release);
        self.note_repair();
        self.breaker.close();
        Ok(true)
    }

    /// A check in the process behind `link`, with what that process can repair by itself. It opens the
    /// key there if that was not done, which proves more than a check.
    pub(super) async fn check_in(&self, link: &Link, deadline: Instant) -> Result<(), Fault> {
        if self.open_in(link).await? {
            return Ok(());
        }
        let before = link.repairs();
        let outcome = link.check(self.request.key, deadline).await;
        self.note_repairs(link, before);
        outcome
    }

    /// What a check gave: a fault of this key alone stands in its breaker.
    pub(super) fn checked(&self, outcome: Result<(), Fault>) -> Result<(), Error> {
        match outcome {
            Ok(()) => {
                if self.breaker.close() {
                    self.note_repair();
                }
                Ok(())
            }
            Err(Fault { error, is_of_process }) => {
                if !is_of_process {
                    self.breaker.open(now(), &error);
                }
                Err(error)
            }
        }
    }

    /// How often something under it was repaired.
    pub(super) fn repairs(&self) -> u64 {
        self.repairs.load(Ordering::Acquire)
    }

    /// Something under it was repaired.
    pub(super) fn note_repair(&self) {
        self.repairs.fetch_add(1, Ordering::AcqRel);
    }

    /// The process has repaired something by itself if its count is no longer `before`.
    pub(super) fn note_repairs(&self, link: &Link, before: u64) {
        if link.repairs() != before {
            self.note_repair();
        }
    }
}

impl Drop for ProcessKey {
    fn drop(&mut self) {
        let link = self.running.borrow().link();
        if let Ok(link) = link {
            // A process that is gone has closed everything.
            let _ = link.send(Request::Close(self.request.key));
        }
    }
}

/// What was proven when the key was first opened is no mistake of the configuration now.
fn proven_before(fault: Fault) -> Fault {
    let kind = match fault.error.cause() {
        Some(Cause::AlgorithmNotOffered) => ErrorKind::Unavailable,
        Some(Cause::WrongAnswer) => ErrorKind::Internal,
        _ => return fault,
    };
    let text = format!("a canary failed that came back right before: {}", fault.error);
    Fault::of_process(fault.error.retold(kind, text).with_cause(Cause::BackendFailing))
}

/// The error of a call between the start of a new process and the key's opening in it.
pub(super) fn not_open_again() -> Error {
    let text = "the key is not open again yet in the module's new process";
    Error::new(ErrorKind::Unavailable, text)
}

/// The public key that a process found.
pub(super) fn public_key(opened: &Opened) -> Result<PublicKey, Error> {
    PublicKey::from_spki(&opened.spki).map_err(|error| {
        let text = format!("the module's process gave no public key: {error}");
        Error::new(ErrorKind::Internal, text)
    })
}

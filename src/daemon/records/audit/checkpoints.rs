//! When checkpoints are due, and when one that is signed is written.
//!
//! A key in an HSM may take a second to sign, and a second file may hang: neither keeps the thread that
//! writes the log. It asks another thread ([`super::keeper`]) for a signature over the end of the log,
//! goes on, and writes the checkpoint with the first lines after it was signed.

use std::io;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::AuditError;
use super::chain::Head;
use super::keeper::{ForeignKey, Keeper, Made, Request};
use super::queue::Queue;
use crate::daemon::config;

/// After so many records a checkpoint is due, however little time has passed.
const MOST_RECORDS: u64 = 10_000;
/// A checkpoint that was signed when the log had so many lines less is not written: a check of a log
/// remembers this many.
pub const MOST_BEHIND: u64 = 100_000;
/// How long after a failure to sign the next signature is asked for, at least.
const RETRY: Duration = Duration::from_secs(10);
/// How long the last signature, and the second file, are waited for at the end.
const PATIENCE_AT_END: Duration = Duration::from_secs(2);

/// The checkpoints of one log.
pub(super) struct Checkpoints {
    every: Duration,
    keeper: Option<Keeper>,
    foreign_key: ForeignKey,
    thread: Option<Thread>,
    /// When the last one was written.
    last: Instant,
    is_in_a_hurry: bool,
    /// Records of the log that need no further checkpoint: those until the last one, and itself.
    covered: u64,
    /// What is being signed.
    asked: Option<Head>,
    /// What is signed and not written yet.
    ready: Option<Made>,
    /// Before this no signature is asked for again.
    not_before: Option<Instant>,
}

/// The thread that signs and keeps, and the way to it and back.
struct Thread {
    requests: mpsc::Sender<Request>,
    answers: mpsc::Receiver<Option<Made>>,
    handle: JoinHandle<()>,
}

impl Checkpoints {
    /// Reads the key, if it is in a file. The second file is made with the first checkpoint.
    pub(super) fn open(options: &config::Checkpoints) -> Result<Self, AuditError> {
        let foreign_key = ForeignKey::default();
        Ok(Self {
            every: options.every,
            keeper: Some(Keeper::open(options, &foreign_key)?),
            foreign_key,
            thread: None,
            last: Instant::now(),
            is_in_a_hurry: false,
            covered: 0,
            asked: None,
            ready: None,
            not_before: None,
        })
    }

    /// Where a key of the configuration is to be put once it can be used.
    pub(super) fn foreign_key(&self) -> ForeignKey {
        Arc::clone(&self.foreign_key)
    }

    /// Starts the thread. The log ends at `head` before this process writes: only what it adds makes a
    /// checkpoint due.
    pub(super) fn begin(&mut self, head: &Head, queue: &Arc<Queue>) -> io::Result<()> {
        self.covered = head.records;
        let Some(keeper) = self.keeper.take() else { return Ok(()) };
        let (requests, received) = mpsc::channel();
        let (answer, answers) = mpsc::channel();
        let queue = Arc::clone(queue);
        let handle = thread::Builder::new()
            .name("checkpoints".to_owned())
            .spawn(move || keeper.work(&queue, &received, &answer))?;
        self.thread = Some(Thread { requests, answers, handle });
        Ok(())
    }

    /// Asks for a signature over the log until `head` if one is due; when to look again.
    pub(super) fn ask_if_due(&mut self, head: &Head) -> Option<Instant> {
        let uncovered = self.uncovered(head);
        if self.asked.is_some() || self.ready.is_some() || uncovered == 0 {
            return None;
        }
        if !self.is_in_a_hurry {
            let every = if uncovered >= MOST_RECORDS { Duration::ZERO } else { self.every };
            let due = self.not_before.map_or(self.last + every, |at| at.max(self.last + every));
            if due > Instant::now() {
                return Some(due);
            }
        }
        let sent = self.thread.as_ref().map(|thread| thread.requests.send(Request::Sign(*head)));
        self.asked = matches!(sent, Some(Ok(()))).then_some(*head);
        None
    }

    /// The next one is due at once, if the log has grown since the last.
    pub(super) fn hurry(&mut self) {
        self.is_in_a_hurry = true;
    }

    /// At the end: whether a checkpoint is ready to be written, of the whole log if it can be had.
    pub(super) fn wait_for_last(&mut self, head: &Head) -> bool {
        let until = Instant::now() + PATIENCE_AT_END;
        self.hurry();
        while self.ready.as_ref().is_none_or(|made| made.head != *head) && self.uncovered(head) > 0
        {
            // One that was asked for before covers less.
            self.ready = None;
            self.ask_if_due(head);
            let left = until.saturating_duration_since(Instant::now());
            if self.asked.is_none() || !self.hear(left) {
                break;
            }
        }
        self.ready.is_some()
    }

    /// A checkpoint that is signed, to be written behind `head`.
    pub(super) fn take(&mut self, head: &Head) -> Option<Made> {
        if self.ready.is_none() && self.asked.is_some() {
            self.hear(Duration::ZERO);
        }
        self.ready.take().filter(|made| {
            let is_fresh = head.records.saturating_sub(made.head.records) <= MOST_BEHIND;
            if !is_fresh {
                tracing::warn!(
                    "a checkpoint of the audit log was signed too late; the next one follows"
                );
            }
            is_fresh
        })
    }

    /// It could not be written yet.
    pub(super) fn put_back(&mut self, made: Made) {
        self.ready = Some(made);
    }

    /// Its line is durable: now the second file gets it.
    pub(super) fn written(&mut self, made: Made) {
        self.last = Instant::now();
        // The checkpoint is a record itself, wherever it stands.
        self.covered = made.head.records + 1;
        if let Some(thread) = &self.thread {
            let _ = thread.requests.send(Request::Keep(made));
        }
    }

    /// Lines that no checkpoint covers.
    pub(super) fn uncovered(&self, head: &Head) -> u64 {
        head.records.saturating_sub(self.covered)
    }

    /// Waits for the answer to a request; whether it is a checkpoint.
    fn hear(&mut self, patience: Duration) -> bool {
        let Some(thread) = &self.thread else { return false };
        match thread.answers.recv_timeout(patience) {
            Err(mpsc::RecvTimeoutError::Timeout) => return false,
            Ok(Some(made)) => self.ready = Some(made),
            Ok(None) | Err(mpsc::RecvTimeoutError::Disconnected) => {
                self.is_in_a_hurry = false;
                self.not_before = Some(Instant::now() + RETRY);
            }
        }
        self.asked = None;
        self.ready.is_some()
    }
}

impl Drop for Checkpoints {
    /// The second file gets the last one; a disk that hangs does not keep the process.
    fn drop(&mut self) {
        let Some(Thread { requests, handle, .. }) = self.thread.take() else { return };
        drop(requests);
        let until = Instant::now() + PATIENCE_AT_END;
        while !handle.is_finished() && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

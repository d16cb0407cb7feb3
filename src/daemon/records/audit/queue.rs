//! What waits to be written: lines, and the calls that wait for them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;
use uuid::Uuid;

use super::AuditError;
use super::line::{push_number, with_buffer};
use super::refusals::Refusals;
use crate::daemon::records::metrics::AuditMetrics;

/// Beyond this the disk hangs, and records are refused at once instead of filling the memory.
const MOST_BYTES: usize = 16 << 20;
/// Beyond this refusals are only counted.
const MOST_BYTES_FOR_REFUSALS: usize = 4 << 20;

/// Resolves when the line is durable.
pub(super) type Waiting = oneshot::Receiver<Result<(), AuditError>>;

/// The queue between callers and the one thread that writes.
pub(super) struct Queue {
    instance: Uuid,
    pending: Mutex<Pending>,
    arrived: Condvar,
    refusals: Mutex<Refusals>,
    failing: AtomicBool,
    metrics: Arc<AuditMetrics>,
}

#[derive(Default)]
struct Pending {
    batch: Batch,
    next_seq: u64,
    writer_sleeps: bool,
    closed: bool,
}

/// Everything that one write and one sync make durable.
#[derive(Default)]
pub(super) struct Batch {
    /// Whole lines.
    pub(super) lines: Vec<u8>,
    /// How many.
    pub(super) records: u64,
    /// The `seq` of the first.
    pub(super) first_seq: u64,
    /// Whom to tell.
    pub(super) waiters: Vec<oneshot::Sender<Result<(), AuditError>>>,
}

impl Batch {
    pub(super) fn clear(&mut self) {
        // One flood must not keep its memory for ever.
        if self.lines.capacity() > 1 << 20 {
            self.lines = Vec::new();
        }
        self.lines.clear();
        self.records = 0;
        self.waiters.clear();
    }

    fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.waiters.is_empty()
    }
}

/// What the thread has to do next.
pub(super) enum Next {
    /// Write the batch.
    Write,
    /// The time it asked for has come, and nothing else.
    TimeUp,
    /// Nothing will ever come again.
    End,
}

impl Queue {
    pub(super) fn new(instance: Uuid, metrics: Arc<AuditMetrics>) -> Self {
        Self {
            instance,
            pending: Mutex::default(),
            arrived: Condvar::new(),
            refusals: Mutex::default(),
            failing: AtomicBool::new(false),
            metrics,
        }
    }

    pub(super) fn instance(&self) -> Uuid {
        self.instance
    }

    pub(super) fn metrics(&self) -> &AuditMetrics {
        &self.metrics
    }

    pub(super) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    pub(super) fn set_failing(&self, failing: bool) {
        self.failing.store(failing, Ordering::Relaxed);
        self.metrics.set_failing(failing);
    }

    /// Adds a line for a call that waits until it is durable.
    pub(super) fn push(&self, body: &[u8]) -> Result<Waiting, AuditError> {
        let (sender, waiting) = oneshot::channel();
        let mut pending = self.lock();
        if pending.closed {
            return Err(AuditError::Closed);
        }
        if pending.batch.lines.len() > MOST_BYTES {
            self.metrics.failed(1);
            return Err(AuditError::Behind { pending: pending.batch.lines.len() });
        }
        pending.append(body);
        pending.batch.waiters.push(sender);
        self.wake(pending);
        Ok(waiting)
    }

    /// Adds a line for nobody in particular.
    pub(super) fn push_unwaited(&self, body: &[u8]) {
        let mut pending = self.lock();
        if !pending.closed {
            pending.append(body);
            self.wake(pending);
        }
    }

    /// Waits for everything that was pushed before.
    pub(super) async fn flush(&self) -> Result<(), AuditError> {
        let waiting = {
            let (sender, waiting) = oneshot::channel();
            let mut pending = self.lock();
            if pending.closed {
                return Err(AuditError::Closed);
            }
            pending.batch.waiters.push(sender);
            self.wake(pending);
            waiting
        };
        waiting.await.unwrap_or(Err(AuditError::Closed))
    }

    /// Whether a refusal gets a line of its own; counts it if not.
    pub(super) fn admits_refusal(&self, caller: Option<&str>, reason: &'static str) -> bool {
        let mut refusals = self.refusals();
        let admitted = refusals.admit(caller, reason);
        let no_room = admitted && self.lock().batch.lines.len() > MOST_BYTES_FOR_REFUSALS;
        if no_room {
            refusals.count(caller, reason);
        }
        if !admitted || no_room {
            self.metrics.refusal_counted();
        }
        admitted && !no_room
    }

    /// When the counted refusals are to be written.
    pub(super) fn refusals_due(&self) -> Option<Instant> {
        self.refusals().due()
    }

    /// Adds one line per caller whose refusals were counted, and starts counting anew.
    pub(super) fn push_counted_refusals(&self) {
        let summaries = self.refusals().close();
        for summary in summaries {
            with_buffer(self.instance, |line| summary.write(line), |body| self.push_unwaited(body));
        }
    }

    /// Ends the thread after its last batch; nothing is taken any more.
    pub(super) fn close(&self) {
        let mut pending = self.lock();
        pending.closed = true;
        pending.writer_sleeps = false;
        drop(pending);
        self.arrived.notify_one();
    }

    /// For the thread: closes the queue and lets everybody who still waits know.
    pub(super) fn abandon(&self) {
        let mut pending = self.lock();
        pending.closed = true;
        pending.batch.clear();
    }

    /// For the thread: swaps its empty batch for what is pending; sleeps until there is
    /// something, at most until `until`.
    pub(super) fn take(&self, batch: &mut Batch, until: Option<Instant>) -> Next {
        let mut pending = self.lock();
        loop {
            if !pending.batch.is_empty() {
                std::mem::swap(&mut pending.batch, batch);
                return Next::Write;
            }
            if pending.closed {
                return Next::End;
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Next::TimeUp;
            }
            pending.writer_sleeps = true;
            pending = match left {
                Some(left) => {
                    let woken = self.arrived.wait_timeout(pending, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.arrived.wait(pending).unwrap_or_else(PoisonError::into_inner),
            };
            pending.writer_sleeps = false;
        }
    }

    /// A wake-up costs a system call, so only a sleeping thread gets one.
    fn wake(&self, mut pending: MutexGuard<'_, Pending>) {
        if std::mem::take(&mut pending.writer_sleeps) {
            drop(pending);
            self.arrived.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refusals(&self) -> MutexGuard<'_, Refusals> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pending {
    /// The `seq` is given here, under the lock: it counts up line by line in the file.
    fn append(&mut self, body: &[u8]) {
        if self.batch.records == 0 {
            self.batch.first_seq = self.next_seq;
        }
        self.batch.lines.extend_from_slice(b"{\"seq\":");
        push_number(&mut self.batch.lines, self.next_seq);
        self.batch.lines.extend_from_slice(body);
        self.batch.records += 1;
        self.next_seq += 1;
    }
}

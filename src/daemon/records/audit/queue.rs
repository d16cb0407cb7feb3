//! What waits to be written: lines, and the calls that wait for them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use uuid::Uuid;

use super::AuditError;
use super::counted::{Cheap, Counting, Counts};
use super::line::{push_number, with_buffer};
use super::sinks::Sinks;
use super::state::LogState;
use crate::daemon::records::metrics::AuditMetrics;

/// Beyond this the disk hangs, and records are refused at once instead of filling the memory.
const MOST_BYTES: usize = 16 << 20;
/// Beyond this cheap calls are only counted.
const MOST_BYTES_FOR_CHEAP: usize = 4 << 20;

/// Resolves when the line is durable.
pub(super) type Waiting = oneshot::Receiver<Result<(), AuditError>>;

/// The queue between callers and the one thread that writes.
pub(super) struct Queue {
    instance: Uuid,
    pending: Mutex<Pending>,
    arrived: Condvar,
    counts: Mutex<Counts>,
    state: Mutex<LogState>,
    failing: AtomicBool,
    in_reserve: AtomicBool,
    reserve_left: AtomicU64,
    /// When the write that goes on began.
    writing_since: Mutex<Option<Instant>>,
    hang_limit: Duration,
    sinks: Arc<Sinks>,
    metrics: Arc<AuditMetrics>,
}

#[derive(Default)]
struct Pending {
    batch: Batch,
    next_seq: u64,
    writer_sleeps: bool,
    closed: bool,
    checkpoints: Calls,
}

/// What the thread is called for beside lines.
#[derive(Default)]
struct Calls {
    /// A checkpoint is signed, or could not be.
    answered: bool,
    /// The last one is wanted.
    last: bool,
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
    /// The `seq` of the last.
    pub(super) last_seq: u64,
    /// Lines that were not taken, because too much waited: they have numbers all the same.
    pub(super) dropped: Option<Dropped>,
    /// Whom to tell.
    pub(super) waiters: Vec<oneshot::Sender<Result<(), AuditError>>>,
}

/// Lines that were not taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dropped {
    /// How many.
    pub(super) records: u64,
    /// The `seq` of the first.
    pub(super) first_seq: u64,
    /// The `seq` of the last.
    pub(super) last_seq: u64,
}

impl Batch {
    pub(super) fn clear(&mut self) {
        // One flood must not keep its memory for ever.
        if self.lines.capacity() > 1 << 20 {
            self.lines = Vec::new();
        }
        self.lines.clear();
        self.records = 0;
        self.dropped = None;
        self.waiters.clear();
    }

    fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.waiters.is_empty() && self.dropped.is_none()
    }
}

/// What the thread has to do next.
pub(super) enum Next {
    /// Write the batch.
    Write,
    /// The time it asked for has come, and nothing else.
    TimeUp,
    /// The process is about to end, and what signs is still there.
    LastCheckpoint,
    /// Nothing will ever come again.
    End,
}

impl Queue {
    pub(super) fn new(
        instance: Uuid,
        sinks: Arc<Sinks>,
        hang_limit: Duration,
        metrics: Arc<AuditMetrics>,
    ) -> Self {
        Self {
            instance,
            pending: Mutex::default(),
            arrived: Condvar::new(),
            counts: Mutex::default(),
            state: Mutex::default(),
            failing: AtomicBool::new(false),
            in_reserve: AtomicBool::new(false),
            reserve_left: AtomicU64::new(0),
            writing_since: Mutex::default(),
            hang_limit,
            sinks,
            metrics,
        }
    }

    pub(super) fn instance(&self) -> Uuid {
        self.instance
    }

    pub(super) fn metrics(&self) -> &AuditMetrics {
        &self.metrics
    }

    /// What the thread has told of the log last.
    pub(super) fn state(&self) -> LogState {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For the thread: tells how the log is.
    pub(super) fn tell(&self, change: impl FnOnce(&mut LogState)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
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
            pending.drop_one();
            self.metrics.failed(1);
            return Err(AuditError::Behind { pending: pending.batch.lines.len() });
        }
        pending.append(body);
        pending.batch.waiters.push(sender);
        self.wake(pending);
        Ok(waiting)
    }

    /// Adds a line that no call waits for.
    pub(super) fn push_unwaited(&self, body: &[u8]) {
        let mut pending = self.lock();
        if !pending.closed {
            pending.append(body);
            self.wake(pending);
        }
    }

    /// Resolves once everything that was pushed before is durable.
    pub(super) fn flush(&self) -> Result<Waiting, AuditError> {
        let (sender, waiting) = oneshot::channel();
        let mut pending = self.lock();
        if pending.closed {
            return Err(AuditError::Closed);
        }
        pending.batch.waiters.push(sender);
        self.wake(pending);
        Ok(waiting)
    }

    /// Waits until a line is where it must be, but not for a disk or a sink that hangs.
    pub(super) async fn durable(&self, waiting: Waiting) -> Result<(), AuditError> {
        if let Some(error) = self.hangs() {
            return Err(error);
        }
        match tokio::time::timeout(self.hang_limit, waiting).await {
            Ok(outcome) => outcome.unwrap_or(Err(AuditError::Closed)),
            Err(_) => Err(self.hangs().unwrap_or(AuditError::Hangs { limit: self.hang_limit })),
        }
    }

    /// Why no line can be where it must be at present, though the file takes it.
    pub(super) fn hangs(&self) -> Option<AuditError> {
        let since = *self.writing_since.lock().unwrap_or_else(PoisonError::into_inner);
        if since.is_some_and(|since| since.elapsed() > self.hang_limit) {
            return Some(AuditError::Hangs { limit: self.hang_limit });
        }
        self.sinks.failing()
    }

    /// For the thread: that it begins to write, or has written.
    pub(super) fn set_writing(&self, writes: bool) {
        let since = writes.then(Instant::now);
        *self.writing_since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    /// Bytes of lines that no write has taken yet.
    pub(super) fn waiting_bytes(&self) -> u64 {
        self.lock().batch.lines.len() as u64
    }

    /// For how long the write that goes on has lasted; nothing where none does.
    pub(super) fn writing_for(&self) -> Duration {
        let since = *self.writing_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.map(|since| since.elapsed()).unwrap_or_default()
    }

    /// Where lines go beside the file.
    pub(super) fn sinks(&self) -> &Sinks {
        &self.sinks
    }

    /// Whether a cheap call gets a line of its own; counts it if not.
    pub(super) fn admits(&self, call: &Counting<'_>) -> bool {
        let mut counts = self.counts();
        let admitted = counts.admit(call);
        let has_room =
            || !self.is_in_reserve() && self.lock().batch.lines.len() <= MOST_BYTES_FOR_CHEAP;
        if admitted && !has_room() {
            counts.count(call);
            self.metrics.counted(call.cheap == Cheap::Refusal);
            return false;
        }
        if !admitted {
            self.metrics.counted(call.cheap == Cheap::Refusal);
        }
        admitted
    }

    /// Notes what the line of an admitted call took.
    pub(super) fn wrote(&self, caller: Option<&str>, bytes: usize) {
        self.counts().wrote(caller, bytes);
    }

    /// When the counted calls are to be written.
    pub(super) fn counts_due(&self) -> Option<Instant> {
        self.counts().due()
    }

    /// Adds one line for each caller and kind of calls that were counted, and starts counting anew.
    /// As long as only the reserve is left, it goes on counting.
    pub(super) fn push_counted(&self) {
        if self.is_in_reserve() {
            self.counts().put_off();
            return;
        }
        let summaries = self.counts().close();
        for summary in summaries {
            with_buffer(self.instance, |line| summary.write(line), |body| self.push_unwaited(body));
        }
    }

    /// Whether only unwrap, rewrap and sign are recorded.
    pub(super) fn is_in_reserve(&self) -> bool {
        self.in_reserve.load(Ordering::Relaxed)
    }

    /// Bytes that are ready behind the end of the file.
    pub(super) fn reserve_left(&self) -> u64 {
        self.reserve_left.load(Ordering::Relaxed)
    }

    /// For the thread: how much is left. Whether that began or ended the time of the reserve.
    pub(super) fn set_reserve(&self, is_all: bool, left: u64) -> bool {
        self.reserve_left.store(left, Ordering::Relaxed);
        self.in_reserve.swap(is_all, Ordering::Relaxed) != is_all
    }

    /// Has the thread look for the answer to its request for a signature.
    pub(super) fn answered(&self) {
        let mut pending = self.lock();
        pending.checkpoints.answered = true;
        self.wake(pending);
    }

    /// Has the thread ask for a checkpoint at once, if lines are without one.
    pub(super) fn want_last_checkpoint(&self) {
        let mut pending = self.lock();
        pending.checkpoints.last = true;
        self.wake(pending);
    }

    /// Ends the thread after its last batch; nothing is taken any more.
    pub(super) fn close(&self) {
        let mut pending = self.lock();
        pending.closed = true;
        pending.writer_sleeps = false;
        drop(pending);
        self.arrived.notify_one();
    }

    /// For the thread: closes the queue, and fails every call that still waits.
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
                pending.checkpoints.answered = false;
                return Next::Write;
            }
            if std::mem::take(&mut pending.checkpoints.answered) {
                return Next::Write;
            }
            if std::mem::take(&mut pending.checkpoints.last) {
                return Next::LastCheckpoint;
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

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.batch.last_seq = self.next_seq;
        self.next_seq += 1;
    }

    /// A line that is not taken has a number, so that its absence shows.
    fn drop_one(&mut self) {
        let seq = self.next_seq;
        self.next_seq += 1;
        let dropped = Dropped { records: 0, first_seq: seq, last_seq: seq };
        let dropped = self.batch.dropped.get_or_insert(dropped);
        dropped.records += 1;
        dropped.last_seq = seq;
    }
}

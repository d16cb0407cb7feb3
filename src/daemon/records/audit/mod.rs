//! The audit log: one JSON line per operation, durable before key material leaves.
//!
//! Callers put finished lines into a queue; one thread takes everything that is pending, writes it
//! with one write, syncs once and wakes every call that waits. While it syncs, the next lines gather.
//! A line that could not be made durable is an error for the call that waits for it.
//!
//! - `record`, `event`: what a line says; `line`: how it is written, whatever the strings hold
//! - `counted`: which cheap calls get a line of their own, and the counting of the others
//! - `chain`: each line names the one before it; `checkpoint`, `checkpoints`, `keeper`: signed statements
//!   of the chain's end, when they are written, and the thread that signs and keeps them
//! - `sinks`: where lines go beside the file, and when a call may be answered for their sake
//! - `queue`: what waits; `writer`: the thread; `state`: what it tells of the log
//! - `file`: durable writes, failures, a file that was renamed; `rotation`: when the daemon renames it
//!   itself; `open`: safe opening, lock, repair; `room`: the blocks that are kept for unwrap, rewrap and
//!   sign
//! - `error`: why a record is not there; `recent`: the last refusals and events, in memory

mod chain;
mod checkpoint;
mod checkpoints;
mod counted;
mod error;
mod event;
mod file;
mod keeper;
mod line;
mod open;
mod queue;
mod recent;
mod record;
mod room;
mod rotation;
mod sinks;
mod state;
mod writer;

#[cfg(test)]
mod tests;

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use uuid::Uuid;

pub use chain::{Head, Link};
pub use checkpoint::{
    CheckpointError, Signed, Signer, Verifier, digest_of, parse as parse_checkpoint,
};
pub use checkpoints::MOST_BEHIND;
pub use error::AuditError;
pub use event::{Alarm, Event, Trust, Trusted};
pub use keeper::SignCheckpoint;
pub use recent::{Noted, Recent};
pub use record::{Record, RewrapTarget};
pub use rotation::rotated_files;
pub use sinks::SinkState;
pub use state::{AuditState, Covered, LogState};

use crate::daemon::config::{self, Operation};
use crate::daemon::records::metrics::AuditMetrics;
use checkpoints::Checkpoints;
use counted::{Cheap, Counting};
use file::LogFile;
use keeper::{ForeignKey, Keeper};
use line::Line;
use queue::{Queue, Waiting};
use sinks::Sinks;

/// Less free room than this alarms, in bytes: minutes of a flood, days of use.
const LOW_ROOM: u64 = 256 << 20;
/// How long a last checkpoint is waited for.
const LAST_CHECKPOINT: Duration = Duration::from_secs(2);
/// How long the end of the process waits for the last lines.
const LAST_BATCH: Duration = Duration::from_secs(5);

/// The audit log of this process. With `off = true` every method is a cheap success.
pub struct Audit {
    log: Option<Log>,
    recent: Recent,
}

struct Log {
    path: PathBuf,
    /// Whether its room was below [`LOW_ROOM`] when it was looked at last.
    is_low: AtomicBool,
    /// Where the key that signs checkpoints is put, if there are any.
    foreign_key: Option<ForeignKey>,
    queue: Arc<Queue>,
    thread: JoinHandle<()>,
}

impl Audit {
    /// Opens and locks the file, repairs a torn last line, starts the thread.
    ///
    /// Writes nothing: the first record is the daemon's [`Event::Start`].
    pub fn open(config: &config::Audit, metrics: Arc<AuditMetrics>) -> Result<Self, AuditError> {
        match config {
            config::Audit::Off => Ok(Self::off()),
            config::Audit::File(config) => {
                let checkpoints = config.checkpoints.as_ref().map(Checkpoints::open).transpose()?;
                let file = LogFile::open(config, room::allocate)?;
                let sinks = Sinks::start(config, &file.head())?;
                Self::over(file, checkpoints, sinks, config.hang_limit, metrics)
            }
        }
    }

    /// No log: every method is a cheap success.
    pub fn off() -> Self {
        Self { log: None, recent: Recent::default() }
    }

    /// Sees that [`Audit::open`] would accept the file, or could make it; whether another process
    /// writes it is not asked. Makes nothing.
    pub fn check(config: &config::Audit) -> Result<(), AuditError> {
        match config {
            config::Audit::Off => Ok(()),
            config::Audit::File(config) => {
                config.checkpoints.as_ref().map_or(Ok(()), Keeper::check)?;
                sinks::check(config)?;
                open::look_at(&config.path)
            }
        }
    }

    fn over(
        file: LogFile,
        checkpoints: Option<Checkpoints>,
        sinks: Arc<Sinks>,
        hang_limit: Duration,
        metrics: Arc<AuditMetrics>,
    ) -> Result<Self, AuditError> {
        let path = file.path().to_owned();
        let queue = Arc::new(Queue::new(Uuid::now_v7(), sinks, hang_limit, metrics));
        let foreign_key = checkpoints.as_ref().map(Checkpoints::foreign_key);
        let thread = writer::start(Arc::clone(&queue), file, checkpoints)
            .map_err(|error| AuditError::open(&path, format!("its thread: {error}")))?;
        let is_low = AtomicBool::new(false);
        let log = Log { path, is_low, foreign_key, queue, thread };
        Ok(Self { log: Some(log), recent: Recent::default() })
    }

    /// The last refusals and events, without a log too.
    pub fn recent(&self) -> &Recent {
        &self.recent
    }

    /// From now on this key signs checkpoints, if the configuration names one of its keys for them.
    pub fn sign_checkpoints_with(&self, key: impl SignCheckpoint + 'static) {
        let foreign_key = self.log.as_ref().and_then(|log| log.foreign_key.as_ref());
        if let Some(foreign_key) = foreign_key {
            // There is one key in a process.
            let _ = foreign_key.set(Box::new(key));
        }
    }

    /// Writes a last checkpoint while its key can still sign, if lines are without one. Waits for two
    /// seconds at most.
    pub async fn last_checkpoint(&self) {
        let Some(log) = self.log.as_ref().filter(|log| log.foreign_key.is_some()) else { return };
        log.queue.want_last_checkpoint();
        let until = Instant::now() + LAST_CHECKPOINT;
        while log.queue.state().uncovered > 0 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether there is a log at all.
    pub fn is_on(&self) -> bool {
        self.log.is_some()
    }

    /// The `instance` of every line of this process.
    pub fn instance(&self) -> Option<Uuid> {
        self.log.as_ref().map(|log| log.queue.instance())
    }

    /// Whether no call can be answered: the last write failed, or the disk or a required sink hangs or
    /// fails. Records are still tried; without any, the threads try by themselves.
    pub fn is_failing(&self) -> bool {
        self.log.as_ref().is_some_and(|log| log.queue.is_failing() || log.queue.hangs().is_some())
    }

    /// Writes the record of one operation. It is in the queue when this returns, so it is written
    /// even if the future is dropped; the future resolves when it is durable, or with the reason why not.
    pub fn record(
        &self,
        record: &Record<'_>,
    ) -> impl Future<Output = Result<(), AuditError>> + Send + use<> {
        self.durable(self.push(|line| record.write("operation", line)))
    }

    /// Writes down what happened to the daemon itself; like [`Audit::record`].
    pub fn event(
        &self,
        event: &Event<'_>,
    ) -> impl Future<Output = Result<(), AuditError>> + Send + use<> {
        self.recent.note_event(event);
        self.durable(self.push(|line| event.write(line)))
    }

    /// Writes down a call that was refused before a backend was reached. Never waits.
    ///
    /// Beyond 5 a minute per caller, and for all unidentified peers together (`caller` is `None`),
    /// refusals are counted into one line, written each minute and by [`Audit::drain`].
    pub fn refusal(&self, refusal: &Record<'_>) {
        self.recent.note_refusal(refusal);
        let Some(log) = &self.log else { return };
        let call = Counting {
            cheap: Cheap::Refusal,
            caller: refusal.caller,
            word: refusal.cause.or(refusal.reason).unwrap_or("other"),
            key: refusal.key,
            identity: refusal.identity,
        };
        if log.queue.admits(&call) {
            let written = line::with_buffer(
                log.queue.instance(),
                |line| refusal.write("refusal", line),
                |body| {
                    log.queue.push_unwaited(body);
                    body.len()
                },
            );
            log.queue.wrote(call.caller, written);
        }
    }

    /// Writes down a success that is cheap to cause: reading, verifying, wrapping. An error where it
    /// cannot be recorded, so that it must not be answered.
    ///
    /// Beyond 60 a minute per caller they are counted as refusals are; then there is nothing to wait
    /// for.
    pub fn cheap_success(
        &self,
        record: &Record<'_>,
    ) -> Result<Option<impl Future<Output = Result<(), AuditError>> + Send + use<>>, AuditError>
    {
        let Some(log) = &self.log else { return Ok(None) };
        if let Some(error) = log.queue.hangs() {
            return Err(error);
        }
        if log.queue.is_failing() {
            return Err(AuditError::Failing);
        }
        let call = Counting {
            cheap: Cheap::Success,
            caller: record.caller,
            word: record.operation.map_or("other", Operation::name),
            key: record.key,
            identity: record.identity,
        };
        if !log.queue.admits(&call) {
            return Ok(None);
        }
        let (pushed, bytes) = line::with_buffer(
            log.queue.instance(),
            |line| record.write("operation", line),
            |body| (log.queue.push(body), body.len()),
        );
        log.queue.wrote(call.caller, bytes);
        Ok(Some(self.durable(Some(Ok(pushed?)))))
    }

    /// Whether only unwrap, rewrap and sign can be recorded: the rest of the disk is kept for them.
    pub fn is_in_reserve(&self) -> bool {
        self.log.as_ref().is_some_and(|log| log.queue.is_in_reserve())
    }

    /// Bytes that are left for the log on its file system, with those that are kept ready for it.
    pub fn free_bytes(&self) -> Option<u64> {
        let log = self.log.as_ref()?;
        let free = room::free_bytes(&log.path).ok()?;
        Some(free.saturating_add(log.queue.reserve_left()))
    }

    /// How the log is; none where there is none.
    pub fn state(&self) -> Option<AuditState> {
        let log = self.log.as_ref()?;
        Some(AuditState {
            path: log.path.clone(),
            is_failing: self.is_failing(),
            is_in_reserve: self.is_in_reserve(),
            free_bytes: self.free_bytes(),
            waiting_bytes: log.queue.waiting_bytes(),
            writing_for: log.queue.writing_for(),
            sinks: log.queue.sinks().states(),
            log: log.queue.state(),
        })
    }

    /// Looks at the room that is left, and alarms when it falls below [`LOW_ROOM`].
    pub fn look_at_room(&self) {
        let (Some(log), Some(free)) = (&self.log, self.free_bytes()) else { return };
        let is_low = free < LOW_ROOM;
        if log.is_low.swap(is_low, Ordering::Relaxed) == is_low {
            return;
        }
        let path = log.path.display();
        if is_low {
            tracing::warn!(%path, free, "the disk of the audit log is nearly full");
            let alarm = Alarm::AuditRoomLow;
            drop(self.event(&Event::Alarm { alarm, caller: None, key: None }));
        } else {
            tracing::info!(%path, free, "the disk of the audit log has room again");
        }
    }

    /// Writes the counted calls now and resolves when everything before it is durable.
    pub async fn drain(&self) -> Result<(), AuditError> {
        let Some(log) = &self.log else { return Ok(()) };
        log.queue.push_counted();
        log.queue.durable(log.queue.flush()?).await
    }

    /// Looks now whether the file was renamed away, and goes on in a new one if so. (The thread
    /// also looks before each write; this is for a reload.)
    pub async fn reopen(&self) -> Result<(), AuditError> {
        match &self.log {
            Some(log) => log.queue.durable(log.queue.flush()?).await,
            None => Ok(()),
        }
    }

    fn durable(
        &self,
        pushed: Option<Result<Waiting, AuditError>>,
    ) -> impl Future<Output = Result<(), AuditError>> + Send + use<> {
        let queue = self.log.as_ref().map(|log| Arc::clone(&log.queue));
        async move {
            match queue.zip(pushed) {
                Some((queue, pushed)) => queue.durable(pushed?).await,
                None => Ok(()),
            }
        }
    }

    fn push(&self, write: impl FnOnce(&mut Line<'_>)) -> Option<Result<Waiting, AuditError>> {
        let log = self.log.as_ref()?;
        Some(line::with_buffer(log.queue.instance(), write, |body| log.queue.push(body)))
    }
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.log.as_ref().map(|log| &log.path);
        f.debug_struct("Audit").field("file", &path).finish_non_exhaustive()
    }
}

impl Drop for Log {
    /// Ends the thread after its last batch; a disk that hangs does not keep the process.
    fn drop(&mut self) {
        self.queue.push_counted();
        self.queue.close();
        let patience = Instant::now() + LAST_BATCH;
        while !self.thread.is_finished() && Instant::now() < patience {
            thread::sleep(Duration::from_millis(1));
        }
        self.queue.sinks().close();
    }
}

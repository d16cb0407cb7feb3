//! Where lines go beside the file, and which calls may be answered.
//!
//! The file is the spool: a sink has a place in it, and a thread that sends what is behind that place. A
//! call is answered when each required sink has its line, or is no farther behind than its spool
//! allows. A sink that was away goes on where it was, over rotations and restarts of the daemon.
//!
//! - `backlog`: what a sink has not got yet; `place`: where it was, over restarts
//! - `follower`: the thread of one sink
//! - `destination`: how lines are sent; `syslog`, `journald`, `tls`, `otlp`: the kinds

mod backlog;
mod destination;
mod follower;
mod journald;
mod otlp;
mod place;
mod syslog;
mod tls;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::AuditError;
use super::chain::Head;
use crate::daemon::config;
use backlog::Backlog;

pub(super) use backlog::Piece;

/// How long the last lines may take at the end of the process.
const PATIENCE_AT_END: Duration = Duration::from_secs(2);

/// The one who waits for a line.
pub(super) type Waiter = oneshot::Sender<Result<(), AuditError>>;

/// All sinks of one log.
pub(super) struct Sinks {
    all: Vec<Arc<Sink>>,
    /// Calls whose lines are in the file and not yet in each required sink, in the file's order.
    unconfirmed: Mutex<VecDeque<(u64, Waiter)>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// One sink.
pub(super) struct Sink {
    name: String,
    is_required: bool,
    spool: u64,
    /// Longer than this without an end of a send, and the sink hangs.
    hang_limit: Duration,
    pending: Mutex<Pending>,
    arrived: Condvar,
    failing: AtomicBool,
}

struct Pending {
    backlog: Backlog,
    /// When the send that goes on began.
    sending_since: Option<Instant>,
    is_closed: bool,
}

/// How a sink is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkState {
    /// Its name in the configuration.
    pub name: String,
    /// Whether calls need it.
    pub is_required: bool,
    /// Whether the last send failed, or one hangs.
    pub is_failing: bool,
    /// Bytes of the log that it has not got.
    pub behind: u64,
}

impl Sinks {
    /// None: the file is all.
    #[cfg(test)]
    pub(super) fn none() -> Arc<Self> {
        let (unconfirmed, threads) = (Mutex::default(), Mutex::default());
        Arc::new(Self { all: Vec::new(), unconfirmed, threads })
    }

    /// Starts the threads. The log at `path` ends at `head`, and each sink goes on where it was.
    pub(super) fn start(config: &config::AuditFile, head: &Head) -> Result<Arc<Self>, AuditError> {
        let refused = |name: &str, error: &dyn fmt::Display| AuditError::Sink {
            name: name.into(),
            reason: error.to_string().into(),
        };
        let mut sinks = Vec::new();
        let mut parts = Vec::new();
        for options in &config.sinks {
            let destination =
                destination::of(options).map_err(|error| refused(&options.name, &error))?;
            let place = place::Place::open(&config.path, &options.name);
            let place = place.map_err(|error| refused(&options.name, &error))?;
            let backlog = Backlog::behind(&config.path, place.records(), head);
            let sink = Arc::new(Sink {
                name: options.name.clone(),
                is_required: !options.best_effort,
                spool: options.spool,
                hang_limit: config.hang_limit,
                pending: Mutex::new(Pending { backlog, sending_since: None, is_closed: false }),
                arrived: Condvar::new(),
                failing: AtomicBool::new(false),
            });
            sinks.push(Arc::clone(&sink));
            parts.push((sink, destination, place));
        }
        let (unconfirmed, threads) = (Mutex::default(), Mutex::default());
        let all = Arc::new(Self { all: sinks, unconfirmed, threads });
        for (sink, destination, place) in parts {
            let name = sink.name.clone();
            let thread = follower::start(sink, Arc::clone(&all), destination, place)
                .map_err(|error| refused(&name, &error))?;
            lock(&all.threads).push(thread);
        }
        Ok(all)
    }

    /// Whether calls wait for more than the file.
    fn are_required(&self) -> bool {
        self.all.iter().any(|sink| sink.is_required)
    }

    /// These lines are durable in the file, and the log has `records` lines with them: each sink gets
    /// them, and `waiters` are told once they may be answered.
    pub(super) fn hand_over(
        &self,
        piece: Option<&Piece>,
        records: u64,
        waiters: impl Iterator<Item = Waiter>,
    ) {
        if let Some(piece) = piece {
            for sink in &self.all {
                let mut pending = lock(&sink.pending);
                pending.backlog.push(piece.clone());
                if !sink.is_required {
                    pending.backlog.drop_beyond(sink.spool, &sink.name);
                }
                drop(pending);
                sink.arrived.notify_one();
            }
        }
        if !self.are_required() {
            for waiter in waiters {
                let _ = waiter.send(Ok(()));
            }
            return;
        }
        lock(&self.unconfirmed).extend(waiters.map(|waiter| (records, waiter)));
        self.settle();
    }

    /// Tells the calls whose lines are where they must be, and those that must not wait any longer.
    fn settle(&self) {
        let mut unconfirmed = lock(&self.unconfirmed);
        if unconfirmed.is_empty() {
            return;
        }
        let required = self.all.iter().filter(|sink| sink.is_required);
        let confirmed = required.map(|sink| sink.covers()).min().unwrap_or(u64::MAX);
        // Those whose calls were told that it takes too long are not there any more.
        while let Some((records, waiter)) = unconfirmed.front() {
            if *records > confirmed && !waiter.is_closed() {
                break;
            }
            let Some((records, waiter)) = unconfirmed.pop_front() else { return };
            if records <= confirmed {
                let _ = waiter.send(Ok(()));
            }
        }
        if let Some(error) = self.failing() {
            for (_, waiter) in unconfirmed.drain(..) {
                let _ = waiter.send(Err(error.clone()));
            }
        }
    }

    /// The first required sink that fails or hangs, so that no call can be answered.
    pub(super) fn failing(&self) -> Option<AuditError> {
        let sink = self.all.iter().find(|sink| sink.is_required && sink.refuses())?;
        let reason = "it does not take records";
        Some(AuditError::Sink { name: sink.name.as_str().into(), reason: reason.into() })
    }

    /// How each one is.
    pub(super) fn states(&self) -> Vec<SinkState> {
        self.all.iter().map(|sink| sink.state()).collect()
    }

    /// Nothing more comes: waits for the last lines, but not for a sink that hangs.
    pub(super) fn close(&self) {
        for sink in &self.all {
            lock(&sink.pending).is_closed = true;
            sink.arrived.notify_one();
        }
        let until = Instant::now() + PATIENCE_AT_END;
        for thread in lock(&self.threads).drain(..) {
            while !thread.is_finished() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        lock(&self.unconfirmed).clear();
    }
}

impl Sink {
    /// Until which number of lines calls may be answered for this sink's sake.
    fn covers(&self) -> u64 {
        let pending = lock(&self.pending);
        if pending.backlog.bytes() <= self.spool { u64::MAX } else { pending.backlog.delivered() }
    }

    /// Whether it fails or hangs, and is farther behind than its spool allows.
    fn refuses(&self) -> bool {
        let pending = lock(&self.pending);
        let hangs = pending.sending_since.is_some_and(|since| since.elapsed() > self.hang_limit);
        (hangs || self.failing.load(Ordering::Relaxed)) && pending.backlog.bytes() > self.spool
    }

    fn state(&self) -> SinkState {
        let pending = lock(&self.pending);
        let hangs = pending.sending_since.is_some_and(|since| since.elapsed() > self.hang_limit);
        SinkState {
            name: self.name.clone(),
            is_required: self.is_required,
            is_failing: hangs || self.failing.load(Ordering::Relaxed),
            behind: pending.backlog.bytes(),
        }
    }
}

/// Sees that the sinks of a configuration could be used, as far as that can be seen without sending.
pub(super) fn check(config: &config::AuditFile) -> Result<(), AuditError> {
    config.sinks.iter().try_for_each(|options| {
        destination::check(options, &config.path).map_err(|error: io::Error| AuditError::Sink {
            name: options.name.as_str().into(),
            reason: error.to_string().into(),
        })
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

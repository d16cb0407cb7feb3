//! Where spans wait for the thread that sends them: bounded, and no call waits for room.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use claviger_otlp::trace::Span;

use crate::daemon::records::metrics::TraceMetrics;

/// Spans that wait, at most: 4 MiB, and 10 MiB where all their texts are as long as they may be.
pub(super) const MOST: usize = 4096;
/// Spans that are sent at once.
pub(super) const AT_ONCE: usize = 512;
/// How long a span waits for others.
const LINGER: Duration = Duration::from_secs(1);

/// The queue between calls and the thread.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
    metrics: Arc<TraceMetrics>,
}

#[derive(Debug, Default)]
struct State {
    spans: VecDeque<Span>,
    is_closed: bool,
}

/// What the thread is to do.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    /// Send these.
    Send(Vec<Span>),
    /// Nothing came for a while.
    Idle,
    /// Nothing comes any more, and all was handed out.
    End,
}

impl Queue {
    pub(super) fn new(metrics: Arc<TraceMetrics>) -> Self {
        Self { state: Mutex::default(), arrived: Condvar::new(), metrics }
    }

    pub(super) fn metrics(&self) -> &TraceMetrics {
        &self.metrics
    }

    /// Adds a span, or drops and counts it where there is no room.
    pub(super) fn push(&self, span: Span) {
        let mut state = self.lock();
        if state.spans.len() >= MOST || state.is_closed {
            drop(state);
            self.metrics.dropped(1);
            return;
        }
        state.spans.push_back(span);
        // Fewer wait for the end of the time that they linger.
        let is_enough = state.spans.len() == AT_ONCE;
        drop(state);
        if is_enough {
            self.arrived.notify_one();
        }
    }

    /// Waits until there is enough to send, or some of it has lingered.
    pub(super) fn next(&self) -> Next {
        let until = Instant::now() + LINGER;
        let mut state = self.lock();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if state.spans.len() >= AT_ONCE || state.is_closed || left.is_zero() {
                let count = state.spans.len().min(AT_ONCE);
                return match (count, state.is_closed) {
                    (0, true) => Next::End,
                    (0, false) => Next::Idle,
                    _ => Next::Send(state.spans.drain(..count).collect()),
                };
            }
            let woken = self.arrived.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Nothing is taken any more.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.arrived.notify_all();
    }

    /// Whether it was closed.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Waits so long, or until it is closed.
    pub(super) fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let mut state = self.lock();
        while !state.is_closed {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let woken = self.arrived.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Counts what is left as dropped.
    pub(super) fn give_up(&self) {
        let left = self.lock().spans.drain(..).count();
        self.metrics.dropped(left as u64);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

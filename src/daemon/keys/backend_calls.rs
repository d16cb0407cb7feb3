//! How long a replica's backend takes, and how many operations it has not answered.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::daemon::records::metrics::Histogram;

/// Operations that callers asked a replica for. It takes room from the first one on.
#[derive(Debug, Default)]
pub struct BackendCalls(OnceLock<Box<Measured>>);

/// What is measured of a replica that was asked.
#[derive(Debug, Default)]
pub struct Measured {
    /// From the moment that the backend, or its queue, was given an operation to its answer.
    pub duration: Histogram,
    unanswered: AtomicU64,
}

/// One operation, from now until this is dropped.
#[derive(Debug)]
pub struct BackendCall<'a> {
    measured: &'a Measured,
    started: Instant,
}

impl BackendCalls {
    /// An operation begins.
    pub fn start(&self) -> BackendCall<'_> {
        let measured = self.0.get_or_init(Box::default);
        // Before [`super::replica::Replica::is_drained`] is read.
        measured.unanswered.fetch_add(1, Ordering::SeqCst);
        BackendCall { measured, started: Instant::now() }
    }

    /// Operations that wait in the backend's queue or run there at the moment.
    pub fn unanswered(&self) -> u64 {
        self.measured().map_or(0, Measured::unanswered)
    }

    /// What was measured, once there was an operation.
    pub fn measured(&self) -> Option<&Measured> {
        self.0.get().map(|measured| &**measured)
    }
}

impl Measured {
    /// Operations that wait in the backend's queue or run there at the moment.
    pub fn unanswered(&self) -> u64 {
        self.unanswered.load(Ordering::SeqCst)
    }
}

impl Drop for BackendCall<'_> {
    fn drop(&mut self) {
        self.measured.unanswered.fetch_sub(1, Ordering::Relaxed);
        self.measured.duration.observe(self.started.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_unanswered_until_it_ends_and_timed_once() {
        let calls = BackendCalls::default();
        assert!(calls.measured().is_none());
        let (first, second) = (calls.start(), calls.start());
        let measured = calls.measured().unwrap();
        assert_eq!(measured.unanswered(), 2);
        drop(first);
        assert_eq!(measured.unanswered(), 1);
        drop(second);
        let counted: u64 = measured.duration.counts().0.iter().map(|(_, count)| count).sum();
        assert_eq!((measured.unanswered(), counted), (0, 2));
    }
}

//! What is measured per key, behind a handle made once.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tonic::Code;

use super::{add, load};
use crate::daemon::config::Operation;

/// Upper bounds in microseconds: 0.5 ms to 10 s.
pub(in crate::daemon) const BOUNDS: [u64; 10] =
    [500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 500_000, 2_500_000, 10_000_000];

/// How many codes gRPC has.
const CODES: usize = 17;

/// A histogram of durations: two atomics per observation, and 96 bytes.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.iter().position(|bound| us <= *bound).unwrap_or(BOUNDS.len());
        add(&self.buckets[bucket], 1);
        add(&self.sum_us, us);
    }

    /// Counts per bucket, each for itself, the last without a bound; and the sum in seconds.
    pub(in crate::daemon) fn counts(&self) -> ([(f64, u64); BOUNDS.len() + 1], f64) {
        let mut counts = [(f64::INFINITY, 0); BOUNDS.len() + 1];
        for (index, count) in counts.iter_mut().enumerate() {
            if let Some(bound) = BOUNDS.get(index) {
                count.0 = seconds(*bound);
            }
            count.1 = load(&self.buckets[index]);
        }
        (counts, seconds(load(&self.sum_us)))
    }
}

fn seconds(us: u64) -> f64 {
    Duration::from_micros(us).as_secs_f64()
}

/// What is measured per key. An operation takes room from its first call on.
#[derive(Debug)]
pub struct KeyMetrics {
    pub(in crate::daemon) name: Box<str>,
    operations: [OnceLock<Box<OperationMetrics>>; Operation::ALL.len()],
    pub(in crate::daemon) failed_unwraps: AtomicU64,
    pub(in crate::daemon) retries: AtomicU64,
    pub(in crate::daemon) failovers: AtomicU64,
    pub(in crate::daemon) unwraps_alarms: AtomicU64,
    pub(in crate::daemon) repeated_failures: AtomicU64,
    pub(in crate::daemon) unanswered_unwraps: AtomicU64,
    pub(in crate::daemon) values_not_granted: AtomicU64,
    pub(in crate::daemon) abandoned: AtomicU64,
}

#[derive(Debug, Default)]
pub(in crate::daemon) struct OperationMetrics {
    outcomes: [AtomicU64; CODES],
    pub(in crate::daemon) duration: Histogram,
    /// In the order of [`Phase::ALL`].
    pub(in crate::daemon) phases: [Histogram; Phase::ALL.len()],
}

/// What a call waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Room among the calls in flight, and its turn in the backend's own queue.
    Queue,
    /// The backends that were asked.
    Backend,
    /// The audit record, until it was where it must be.
    Audit,
}

impl Phase {
    /// Each one.
    pub const ALL: [Self; 3] = [Self::Queue, Self::Backend, Self::Audit];

    /// The word in metrics and traces.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Backend => "backend",
            Self::Audit => "audit",
        }
    }
}

impl KeyMetrics {
    pub(in crate::daemon) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            operations: Default::default(),
            failed_unwraps: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            failovers: AtomicU64::new(0),
            unwraps_alarms: AtomicU64::new(0),
            repeated_failures: AtomicU64::new(0),
            unanswered_unwraps: AtomicU64::new(0),
            values_not_granted: AtomicU64::new(0),
            abandoned: AtomicU64::new(0),
        }
    }

    /// Counts a call (or batch item) that ended.
    pub fn observe(&self, operation: Operation, outcome: Code, duration: Duration) {
        let operation = self.operations[operation as usize].get_or_init(Box::default);
        add(&operation.outcomes[outcome as usize], 1);
        operation.duration.observe(duration);
    }

    /// Counts how long a call that asked a backend waited for each of [`Phase::ALL`].
    pub fn waited(&self, operation: Operation, phases: [Duration; Phase::ALL.len()]) {
        let operation = self.operations[operation as usize].get_or_init(Box::default);
        for (histogram, took) in operation.phases.iter().zip(phases) {
            histogram.observe(took);
        }
    }

    /// Counts a value that does not unwrap, after attribution.
    pub fn failed_unwrap(&self) {
        add(&self.failed_unwraps, 1);
    }

    /// Counts the one silent retry of a call.
    pub fn retried(&self) {
        add(&self.retries, 1);
    }

    /// Counts a call that another replica answered than the first that was asked.
    pub fn failed_over(&self) {
        add(&self.failovers, 1);
    }

    /// Counts a caller that unwraps more than is usual for it.
    pub fn unwraps_alarmed(&self) {
        add(&self.unwraps_alarms, 1);
    }

    /// Counts a value that failed before and was answered from memory.
    pub fn failed_again(&self) {
        add(&self.repeated_failures, 1);
    }

    /// Counts an unwrap whose backend was asked and gave no verdict.
    pub fn unanswered_unwrap(&self) {
        add(&self.unanswered_unwraps, 1);
    }

    /// Counts a value that no grant of its caller lists.
    pub fn value_not_granted(&self) {
        add(&self.values_not_granted, 1);
    }

    /// Counts an operation that ran to its end although its caller had left.
    pub fn abandoned(&self) {
        add(&self.abandoned, 1);
    }

    /// The operations that were called at all.
    pub(in crate::daemon) fn called(&self) -> impl Iterator<Item = (Operation, &OperationMetrics)> {
        Operation::ALL.into_iter().filter_map(|operation| {
            Some((operation, &**self.operations[operation as usize].get()?))
        })
    }
}

impl OperationMetrics {
    /// The codes that occurred.
    pub(in crate::daemon) fn outcomes(&self) -> impl Iterator<Item = (Code, u64)> {
        (0..).zip(&self.outcomes).filter_map(|(code, count)| match load(count) {
            0 => None,
            count => Some((Code::from_i32(code), count)),
        })
    }
}

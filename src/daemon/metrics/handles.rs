//! What is measured per key, replica and provider, behind handles made once.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tonic::Code;

use super::{add, load};
use crate::daemon::config::Operation;

/// Upper bounds in microseconds: 0.5 ms to 10 s.
pub(super) const BOUNDS: [u64; 10] =
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
    pub(super) fn counts(&self) -> ([(f64, u64); BOUNDS.len() + 1], f64) {
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
    pub(super) name: Box<str>,
    operations: [OnceLock<Box<OperationMetrics>>; Operation::ALL.len()],
    pub(super) failed_unwraps: AtomicU64,
    pub(super) retries: AtomicU64,
}

#[derive(Debug, Default)]
pub(super) struct OperationMetrics {
    outcomes: [AtomicU64; CODES],
    pub(super) duration: Histogram,
}

impl KeyMetrics {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            operations: Default::default(),
            failed_unwraps: AtomicU64::new(0),
            retries: AtomicU64::new(0),
        }
    }

    /// Counts a call (or batch item) that ended.
    pub fn observe(&self, operation: Operation, outcome: Code, duration: Duration) {
        let operation = self.operations[operation as usize].get_or_init(Box::default);
        add(&operation.outcomes[outcome as usize], 1);
        operation.duration.observe(duration);
    }

    /// Counts a value that does not unwrap, after attribution.
    pub fn failed_unwrap(&self) {
        add(&self.failed_unwraps, 1);
    }

    /// Counts the one silent retry after a repair.
    pub fn retried(&self) {
        add(&self.retries, 1);
    }

    /// The operations that were called at all.
    pub(super) fn called(&self) -> impl Iterator<Item = (Operation, &OperationMetrics)> {
        Operation::ALL.into_iter().filter_map(|operation| {
            Some((operation, &**self.operations[operation as usize].get()?))
        })
    }
}

impl OperationMetrics {
    /// The codes that occurred.
    pub(super) fn outcomes(&self) -> impl Iterator<Item = (Code, u64)> {
        (0..).zip(&self.outcomes).filter_map(|(code, count)| match load(count) {
            0 => None,
            count => Some((Code::from_i32(code), count)),
        })
    }
}

/// What is measured per replica.
#[derive(Debug)]
pub struct ReplicaMetrics {
    pub(super) key: Box<str>,
    pub(super) version: Box<str>,
    pub(super) place: Box<str>,
    pub(super) provider: Box<str>,
    up: AtomicBool,
    made: Instant,
    /// Milliseconds after `made`; -1 before the first.
    checked: AtomicI64,
}

impl ReplicaMetrics {
    pub(super) fn new(key: &str, version: u32, place: usize, provider: &str) -> Self {
        Self {
            key: key.into(),
            version: version.to_string().into(),
            place: place.to_string().into(),
            provider: provider.into(),
            up: AtomicBool::new(false),
            made: Instant::now(),
            checked: AtomicI64::new(-1),
        }
    }

    /// Whether it serves. It does not until somebody says so.
    pub fn set_up(&self, up: bool) {
        self.up.store(up, Ordering::Relaxed);
    }

    /// A real private-key operation succeeded: a check, or a call that counts as one.
    pub fn checked(&self) {
        let elapsed = i64::try_from(self.made.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.checked.store(elapsed, Ordering::Relaxed);
    }

    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// How long ago the last success was.
    pub(super) fn check_age(&self) -> Option<Duration> {
        let checked = u64::try_from(self.checked.load(Ordering::Relaxed)).ok()?;
        Some(self.made.elapsed().saturating_sub(Duration::from_millis(checked)))
    }
}

/// What is measured per provider.
#[derive(Debug)]
pub struct ProviderMetrics {
    pub(super) name: Box<str>,
    pub(super) kind: Box<str>,
    pub(super) hardware: bool,
    pub(super) repairs: AtomicU64,
    pin_latched: AtomicBool,
}

impl ProviderMetrics {
    pub(super) fn new(name: &str, kind: &str, hardware: bool) -> Self {
        Self {
            name: name.into(),
            kind: kind.into(),
            hardware,
            repairs: AtomicU64::new(0),
            pin_latched: AtomicBool::new(false),
        }
    }

    /// Counts a recovery: new session, new login, new start of the module.
    pub fn repaired(&self) {
        add(&self.repairs, 1);
    }

    /// Whether a refused PIN keeps it shut until an operator acts.
    pub fn set_pin_latched(&self, latched: bool) {
        self.pin_latched.store(latched, Ordering::Relaxed);
    }

    pub(super) fn is_pin_latched(&self) -> bool {
        self.pin_latched.load(Ordering::Relaxed)
    }
}

//! Load in a closed loop: so many calls in flight, each followed by the next.

#![expect(clippy::cast_precision_loss, reason = "counts and nanoseconds of a run are below 2^52")]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use claviger_client::{Client, Error, UnwrapItem, UnwrapOptions};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::cpu;

/// What runs before anything is counted.
pub const SETTLE: Duration = Duration::from_millis(150);
/// Latencies are counted in nanoseconds, up to a minute.
const LONGEST_NS: u64 = 60_000_000_000;

/// What was measured in one stretch of time.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Sample {
    /// Unwraps a second; each item of a batch is one.
    pub per_second: f64,
    /// Half of the calls took at most this long, in microseconds; a batch is one call.
    pub p50_us: f64,
    /// 99 of 100 calls took at most this long, in microseconds.
    pub p99_us: f64,
    /// CPU time of the process that did the work, in microseconds per unwrap.
    pub cpu_us: Option<f64>,
    /// CPU time of the process that asked, in microseconds per unwrap.
    pub client_cpu_us: Option<f64>,
}

/// What one call does, and where: `keys[n % keys.len()]` for the n-th.
#[derive(Clone, Debug)]
pub struct Work {
    /// Names of keys, taken in turn.
    pub keys: Arc<[String]>,
    /// What is unwrapped, again and again.
    pub wrapped: Vec<u8>,
    /// 1: unary calls; more: batches of so many.
    pub batch: usize,
    /// Calls at a time.
    pub in_flight: usize,
    /// How long is counted, after [`SETTLE`].
    pub time: Duration,
}

/// Counts calls. Shared by whatever makes them.
#[derive(Debug)]
pub struct Counter(Mutex<Histogram<u64>>);

impl Default for Counter {
    fn default() -> Self {
        Self(Mutex::new(Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("the bounds are good")))
    }
}

impl Counter {
    /// Counts a call that took so long.
    pub fn add(&self, took: Duration) {
        let mut histogram = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        histogram.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(LONGEST_NS));
    }

    /// What was counted since the last time this was asked.
    fn take(&self) -> Histogram<u64> {
        let mut histogram = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = histogram.clone();
        histogram.reset();
        taken
    }
}

/// The beginning of a measurement: what was used until then.
#[derive(Debug)]
pub struct Begun {
    at: Instant,
    worker: Option<Duration>,
    client: Option<Duration>,
    worker_pid: Option<u32>,
}

impl Begun {
    /// Starts to measure: the CPU time of `worker_pid`, and our own.
    pub fn now(counter: &Counter, worker_pid: Option<u32>) -> Self {
        drop(counter.take());
        let (worker, client) = (worker_pid.and_then(cpu::time), cpu::time(std::process::id()));
        Self { at: Instant::now(), worker, client, worker_pid }
    }

    /// Ends it; each call was `unwraps` unwraps.
    pub fn end(self, counter: &Counter, unwraps: usize) -> Sample {
        let (elapsed, calls) = (self.at.elapsed(), counter.take());
        let done = calls.len() as f64 * unwraps as f64;
        let per_unwrap = |before: Option<Duration>, pid: Option<u32>| {
            let used = pid.and_then(cpu::time)?.checked_sub(before?)?;
            Some(used.as_secs_f64() * 1e6 / done)
        };
        let us = |quantile| calls.value_at_quantile(quantile) as f64 / 1e3;
        Sample {
            per_second: done / elapsed.as_secs_f64(),
            p50_us: us(0.5),
            p99_us: us(0.99),
            cpu_us: per_unwrap(self.worker, self.worker_pid),
            client_cpu_us: per_unwrap(self.client, Some(std::process::id())),
        }
    }
}

/// Puts the daemon that `clients` are connected to under load. `server_pid` is the process whose CPU
/// time counts, where it is known.
pub async fn run(
    clients: &[Client],
    work: &Work,
    server_pid: Option<u32>,
) -> Result<Sample, Error> {
    let counter = Arc::new(Counter::default());
    let mut calls = JoinSet::new();
    for number in 0..work.in_flight {
        let client = clients[number % clients.len()].clone();
        calls.spawn(call_for_ever(client, work.clone(), number, Arc::clone(&counter)));
    }
    let measure = async {
        tokio::time::sleep(SETTLE).await;
        let begun = Begun::now(&counter, server_pid);
        tokio::time::sleep(work.time).await;
        begun.end(&counter, work.batch)
    };
    let sample = tokio::select! {
        sample = measure => Ok(sample),
        Some(ended) = calls.join_next() => Err(ended.expect("a call neither panics nor is ended")),
    };
    calls.shutdown().await;
    sample
}

/// Ends with the first error only.
async fn call_for_ever(client: Client, work: Work, first: usize, counter: Arc<Counter>) -> Error {
    let options = UnwrapOptions::default();
    let mut turn = first;
    let mut next_key = || {
        turn = (turn + work.in_flight) % work.keys.len();
        &work.keys[turn]
    };
    loop {
        if work.batch == 1 {
            let begun = Instant::now();
            if let Err(error) = client.unwrap_key(next_key(), &work.wrapped, &options).await {
                return error;
            }
            counter.add(begun.elapsed());
        } else {
            let item = |_| UnwrapItem {
                key: next_key().clone(),
                wrapped: work.wrapped.clone(),
                options: options.clone(),
            };
            let items: Vec<_> = (0..work.batch).map(item).collect();
            let begun = Instant::now();
            let outcome = client.unwrap_batch(&items).await;
            counter.add(begun.elapsed());
            if let Err(error) =
                outcome.and_then(|items| items.into_iter().collect::<Result<Vec<_>, _>>())
            {
                return error;
            }
        }
    }
}

/// The middle one, or the mean of the two in the middle.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let (low, high) = (values.len().checked_sub(1)? / 2, values.len() / 2);
    Some(f64::midpoint(values[low], values[high]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
    }
}

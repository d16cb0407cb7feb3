//! How long the last canaries of a replica took that came back right.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Canaries that are remembered of each replica.
const MOST: usize = 30;

/// The durations of the last canaries, the oldest first.
#[derive(Debug, Default)]
pub struct Canaries(Mutex<VecDeque<u32>>);

impl Canaries {
    pub(super) fn note(&self, took: Duration) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() == MOST {
            all.pop_front();
        }
        all.push_back(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
    }

    /// How long the last one took; none before the first.
    pub fn last(&self) -> Option<Duration> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.back().map(|us| Duration::from_micros((*us).into()))
    }

    /// The last 30 at most, in microseconds, the oldest first.
    pub fn recent_us(&self) -> Vec<u32> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_thirty_are_remembered_in_their_order() {
        let canaries = Canaries::default();
        assert!(canaries.last().is_none());
        for us in 1..=40 {
            canaries.note(Duration::from_micros(us));
        }
        assert_eq!(canaries.last(), Some(Duration::from_micros(40)));
        assert_eq!(canaries.recent_us(), (11..=40).collect::<Vec<_>>());
    }
}

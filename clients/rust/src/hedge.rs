//! How many calls may be asked of two endpoints at once.

use std::sync::{Mutex, PoisonError};

/// Calls that may each be asked twice, whatever came before.
const FREE_CALLS: u64 = 5;
/// In tenths of a call: what asking once more costs, and what may be saved up.
const COST: u32 = 10;
const MOST_SAVED: u32 = 100;

/// After its first five calls a process asks at most one in ten of a second endpoint, so that slow
/// backends do not get twice the calls because they are slow.
#[derive(Debug, Default)]
pub(crate) struct HedgeBudget(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    calls: u64,
    saved: u32,
}

impl HedgeBudget {
    /// A call begins that may be asked twice.
    pub(crate) fn begin_call(&self) {
        self.with(|counts| {
            counts.calls += 1;
            if counts.calls > FREE_CALLS {
                counts.saved = (counts.saved + 1).min(MOST_SAVED);
            }
        });
    }

    /// Whether [`Self::take`] would succeed now.
    pub(crate) fn is_available(&self) -> bool {
        self.with(|counts| counts.calls <= FREE_CALLS || counts.saved >= COST)
    }

    /// Whether one more endpoint may be asked; counts it.
    pub(crate) fn take(&self) -> bool {
        self.with(|counts| {
            if counts.calls <= FREE_CALLS {
                return true;
            }
            let left = counts.saved.checked_sub(COST);
            counts.saved = left.unwrap_or(counts.saved);
            left.is_some()
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Counts) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_five_calls_at_most_one_in_ten_is_asked_twice() {
        let budget = HedgeBudget::default();
        let asked_twice = |calls: usize| {
            let hedged = (0..calls).filter(|_| {
                budget.begin_call();
                budget.is_available() && budget.take()
            });
            hedged.count()
        };
        assert_eq!(asked_twice(5), 5);
        assert_eq!(asked_twice(9), 0);
        assert_eq!(asked_twice(1), 1);
        assert_eq!(asked_twice(1000), 100);
    }

    #[test]
    fn what_was_not_used_is_saved_up_to_ten_calls() {
        let budget = HedgeBudget::default();
        (0..10_000).for_each(|_| budget.begin_call());
        assert_eq!((0..100).filter(|_| budget.take()).count(), 10);
        assert!(!budget.is_available());
    }
}

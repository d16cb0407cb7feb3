//! What one caller may spend on one key: a rate of calls, and failed unwraps; and how many unwraps
//! are worth an alarm.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::Notify;

use crate::daemon::config::{Limits, Rate};
use crate::daemon::status::{Exhausted, Failure};

/// The budget of one caller on one key. It outlives reloads and, for failed unwraps, restarts.
#[derive(Debug)]
pub struct Budget {
    state: Mutex<State>,
    released: Notify,
}

#[derive(Debug)]
struct State {
    limits: Limits,
    /// When the rate's bucket is full again (a generic cell rate algorithm in one number).
    rate_full_at: Instant,
    /// Failed unwraps within the window, oldest first: by the clock that only goes forward, and in
    /// milliseconds since 1970 for the state directory.
    failed_at: VecDeque<(Instant, u64)>,
    /// Unwraps whose outcome is not known yet.
    in_flight: u32,
    /// Unwraps since the window of `unwraps_alarm` began.
    unwraps: u64,
    unwraps_since: Instant,
}

impl Budget {
    /// A budget with nothing spent but `failed_at` (milliseconds since 1970, oldest first). What
    /// lies in the future, because a clock was wrong, counts as spent now.
    pub fn new(limits: Limits, failed_at: &[u64]) -> Self {
        let (now, now_ms) = (Instant::now(), now_ms());
        let failed_at = failed_at.iter().filter_map(|at| {
            let age = Duration::from_millis(now_ms.saturating_sub(*at));
            now.checked_sub(age).map(|instant| (instant, (*at).min(now_ms)))
        });
        let failed_at = failed_at.collect();
        let state = State {
            limits,
            rate_full_at: now,
            failed_at,
            in_flight: 0,
            unwraps: 0,
            unwraps_since: now,
        };
        Self { state: Mutex::new(state), released: Notify::new() }
    }

    /// Takes over changed limits; what was spent stays spent.
    pub fn set_limits(&self, limits: Limits) {
        self.lock().limits = limits;
    }

    /// Failed unwraps within the window, in milliseconds since 1970, oldest first.
    pub fn failed_at(&self) -> Vec<u64> {
        let mut state = self.lock();
        state.expire(Instant::now());
        state.failed_at.iter().map(|(_, at)| *at).collect()
    }

    /// Spends one call of the rate.
    pub fn spend_call(&self) -> Result<(), Failure> {
        let mut state = self.lock();
        let Some(Rate { count, per }) = state.limits.rate else { return Ok(()) };
        let now = Instant::now();
        let full_at = state.rate_full_at.max(now) + per / count;
        let over = full_at.saturating_duration_since(now).saturating_sub(per);
        if over.is_zero() {
            state.rate_full_at = full_at;
            return Ok(());
        }
        Err(Failure::Exhausted { what: Exhausted::Rate, retry_after: over })
    }

    /// Counts an unwrap. Whether it is the one that alarms: the first above `unwraps_alarm` in a
    /// window that began with an unwrap.
    pub fn count_unwrap(&self) -> bool {
        let mut state = self.lock();
        let Some(Rate { count, per }) = state.limits.unwraps_alarm else { return false };
        let now = Instant::now();
        if now.duration_since(state.unwraps_since) >= per {
            (state.unwraps, state.unwraps_since) = (0, now);
        }
        state.unwraps += 1;
        state.unwraps == u64::from(count) + 1
    }

    /// Starts an unwrap that may fail. Where more are in flight than failures are left, it waits
    /// for one of them, so that the limit holds however many calls come at once.
    pub async fn start_unwrap(&self) -> Result<StartedUnwrap<'_>, Failure> {
        loop {
            let released = self.released.notified();
            {
                let mut state = self.lock();
                let Some(Rate { count, per }) = state.limits.failed_unwraps else {
                    state.in_flight += 1;
                    return Ok(StartedUnwrap { budget: self, missed: false });
                };
                let now = Instant::now();
                state.expire(now);
                let failed = state.failed_at.len() as u32;
                if failed >= count {
                    let (oldest, _) = state.failed_at[(failed - count) as usize];
                    let age = now.saturating_duration_since(oldest);
                    let retry_after = per.saturating_sub(age).max(Duration::from_millis(1));
                    // Calls that wait learn it too.
                    self.released.notify_one();
                    return Err(Failure::Exhausted { what: Exhausted::FailedUnwraps, retry_after });
                }
                if failed + state.in_flight < count {
                    state.in_flight += 1;
                    if failed + state.in_flight < count {
                        self.released.notify_one();
                    }
                    return Ok(StartedUnwrap { budget: self, missed: false });
                }
            }
            released.await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Forgets failures that have left the window.
    fn expire(&mut self, now: Instant) {
        let Some(Rate { per, .. }) = self.limits.failed_unwraps else {
            self.failed_at.clear();
            return;
        };
        while self.failed_at.front().is_some_and(|(at, _)| now.duration_since(*at) >= per) {
            self.failed_at.pop_front();
        }
    }
}

/// An unwrap in flight; dropped without a word it was no failure, unless a key has missed already.
#[derive(Debug)]
pub struct StartedUnwrap<'a> {
    budget: &'a Budget,
    missed: bool,
}

impl StartedUnwrap<'_> {
    /// A key did not unwrap the value. From here on only a verdict spares the budget: a caller
    /// that goes away, or lets its deadline pass while the fault is looked for, has seen that the
    /// value was no success.
    pub fn missed(&mut self) {
        self.missed = true;
    }

    /// The value was not at fault.
    pub fn spared(mut self) {
        self.missed = false;
    }

    /// The value was at fault: spends one failed unwrap. Whether that was the last one left.
    pub fn failed(mut self) -> bool {
        self.missed = false;
        self.spend()
    }

    fn spend(&self) -> bool {
        let mut state = self.budget.lock();
        let Some(Rate { count, .. }) = state.limits.failed_unwraps else { return false };
        state.failed_at.push_back((Instant::now(), now_ms()));
        state.failed_at.len() as u32 == count
    }
}

impl Drop for StartedUnwrap<'_> {
    fn drop(&mut self) {
        if self.missed {
            self.spend();
        }
        self.budget.lock().in_flight -= 1;
        self.budget.released.notify_one();
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(rate: Option<u32>, failed: Option<u32>) -> Limits {
        let per = Duration::from_hours(1);
        let of = |count: Option<u32>| count.map(|count| Rate { count, per });
        Limits { rate: of(rate), failed_unwraps: of(failed), unwraps_alarm: None }
    }

    #[test]
    fn one_unwrap_of_a_window_alarms_and_none_is_refused() {
        let per = Duration::from_millis(200);
        let alarm =
            |count| Limits { unwraps_alarm: Some(Rate { count, per }), ..limits(None, None) };
        let budget = Budget::new(alarm(3), &[]);
        budget.lock().unwraps_since = Instant::now() + Duration::from_hours(1);
        let alarms: Vec<bool> = (0..6).map(|_| budget.count_unwrap()).collect();
        assert_eq!(alarms, [false, false, false, true, false, false]);
        // The next window begins with the next unwrap.
        budget.lock().unwraps_since = Instant::now().checked_sub(per).unwrap();
        budget.set_limits(alarm(1_000_000));
        assert!((0..6).all(|_| !budget.count_unwrap()));
        assert_eq!(budget.lock().unwraps, 6);
    }

    #[tokio::test]
    async fn the_failure_after_the_last_allowed_one_is_refused_and_successes_cost_nothing() {
        let budget = Budget::new(limits(None, Some(3)), &[]);
        for _ in 0..10 {
            drop(budget.start_unwrap().await.unwrap());
        }
        for _ in 0..3 {
            budget.start_unwrap().await.unwrap().failed();
        }
        let refused = budget.start_unwrap().await.unwrap_err();
        assert!(matches!(
            refused,
            Failure::Exhausted { what: Exhausted::FailedUnwraps, retry_after }
                if retry_after > Duration::from_secs(3590)
        ));
    }

    #[tokio::test]
    async fn who_leaves_after_a_miss_has_spent_a_failure_and_who_was_spared_has_not() {
        let budget = Budget::new(limits(None, Some(2)), &[]);
        let mut left = budget.start_unwrap().await.unwrap();
        left.missed();
        drop(left);
        assert_eq!(budget.failed_at().len(), 1);
        let mut spared = budget.start_unwrap().await.unwrap();
        spared.missed();
        spared.spared();
        let mut failed = budget.start_unwrap().await.unwrap();
        failed.missed();
        assert!(failed.failed());
        assert_eq!(budget.failed_at().len(), 2);
    }

    #[tokio::test]
    async fn calls_at_once_cannot_fail_more_often_than_the_limit() {
        let budget = Budget::new(limits(None, Some(2)), &[]);
        let first = budget.start_unwrap().await.unwrap();
        let second = budget.start_unwrap().await.unwrap();
        let mut third = Box::pin(budget.start_unwrap());
        assert!(futures::poll!(&mut third).is_pending());
        first.failed();
        assert!(futures::poll!(&mut third).is_pending());
        second.failed();
        assert!(third.await.is_err());
    }

    #[tokio::test]
    async fn failures_leave_the_window_and_survive_a_restart_until_then() {
        let hour = 3_600_000;
        let spent = vec![now_ms() - hour - 1, now_ms() - 1000];
        let budget = Budget::new(limits(None, Some(2)), &spent);
        budget.start_unwrap().await.unwrap().failed();
        assert!(budget.start_unwrap().await.is_err());
        assert_eq!(Budget::new(limits(None, Some(2)), &budget.failed_at()).failed_at().len(), 2);
    }

    #[test]
    fn a_rate_allows_its_count_at_once_and_then_says_when() {
        let budget = Budget::new(limits(Some(5), None), &[]);
        for _ in 0..5 {
            budget.spend_call().unwrap();
        }
        assert!(matches!(
            budget.spend_call(),
            Err(Failure::Exhausted { what: Exhausted::Rate, retry_after })
                if retry_after <= Duration::from_mins(12)
        ));
    }
}

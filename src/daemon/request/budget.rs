//! What one caller may spend on one key: a rate of calls, and distinct values that fail to unwrap; and
//! how many unwraps are worth an alarm.

mod failures;
mod started;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

use crate::daemon::config::{Limits, Rate};
use crate::daemon::request::failed_unwraps::{CallerAndKey, FailedUnwraps, SpentUnwrap};
use crate::daemon::status::{Exhausted, Failure};
use failures::{Added, Failures};
pub use started::StartedUnwrap;

/// Values that unwrapped lately, kept per caller and key: their repeats need no place of their own.
const PROVEN: usize = 16;
/// The repeat of one failed value that alarms.
const REPEATS_THAT_ALARM: u32 = 10;

/// SHA-256 of all that decides what an unwrap gives: the wrapped value, the version, algorithm and
/// label that were asked for, and of a rewrap the longest material that is taken.
pub type ValueId = [u8; 32];

/// The budget of one caller on one key. It outlives reloads and, for failed unwraps, restarts.
#[derive(Debug)]
pub struct Budget {
    caller_and_key: CallerAndKey,
    file: Arc<FailedUnwraps>,
    state: Mutex<State>,
    released: Notify,
}

#[derive(Debug)]
struct State {
    limits: Limits,
    /// When the rate's bucket is full again (a generic cell rate algorithm in one number).
    rate_full_at: Instant,
    failures: Failures,
    /// Values that are being unwrapped and whose outcome is not known yet.
    asked: HashMap<ValueId, Asked>,
    /// Those of them that would be one more failure.
    asked_for_the_first_time: u32,
    /// The latest last.
    proven: VecDeque<ValueId>,
    /// Of the key's versions, replicas and algorithms: what was learned holds for this state.
    of_key: u64,
    /// Unwraps since the window of `unwraps_alarm` began.
    unwraps: u64,
    unwraps_since: Instant,
    /// When a value that fails again and again was last worth an alarm.
    repeat_alarmed_at: Option<Instant>,
    /// When a value outside of the grant was last worth an alarm, and how many there were since.
    not_granted_alarmed_at: Option<Instant>,
}

/// A value that is being unwrapped, by one call or several.
#[derive(Debug)]
struct Asked {
    calls: u32,
    counts: bool,
    ended: Arc<Notify>,
}

/// What becomes of an unwrap that may fail.
#[derive(Debug)]
pub enum Start<'a> {
    /// The backend may be asked.
    Begun(StartedUnwrap<'a>),
    /// This value failed within the window, and the key has not changed since: it is answered as
    /// before, at no cost.
    FailedBefore {
        /// Whether it has failed so often that it is worth an alarm, which is said once a window.
        alarm: bool,
    },
}

/// What `claviger budget show` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spent {
    /// `failed_unwraps`; none where it is off.
    pub limit: Option<Rate>,
    /// Distinct values that count at the moment.
    pub failed: usize,
    /// Those of them whose backend has not answered: an answer may take them back.
    pub unanswered: usize,
    /// When the oldest leaves the window.
    pub next_in: Option<Duration>,
}

enum Admission {
    Begin,
    FailedBefore { alarm: bool },
    Refuse { retry_after: Duration },
    WaitForSameValue(OwnedNotified),
    WaitForRoom,
}

impl Budget {
    /// A budget with nothing spent but what `file` has of it. What lies in the future, because a
    /// clock was wrong, counts as spent now.
    pub fn new(
        caller_and_key: CallerAndKey,
        limits: Limits,
        file: Arc<FailedUnwraps>,
        key_state: u64,
    ) -> Self {
        let now = Instant::now();
        let state = State {
            limits,
            rate_full_at: now,
            failures: Failures::restored(&file.spent(&caller_and_key), key_state, now, now_ms()),
            asked: HashMap::new(),
            asked_for_the_first_time: 0,
            proven: VecDeque::new(),
            of_key: key_state,
            unwraps: 0,
            unwraps_since: now,
            repeat_alarmed_at: None,
            not_granted_alarmed_at: None,
        };
        Self { caller_and_key, file, state: Mutex::new(state), released: Notify::new() }
    }

    /// Takes over changed limits, and forgets what was learned about a key that has changed; what
    /// was spent stays spent.
    pub fn put_in_force(&self, limits: Limits, key_state: u64) {
        let mut state = self.lock();
        state.limits = limits;
        if std::mem::replace(&mut state.of_key, key_state) != key_state {
            state.failures.forget_verdicts();
            state.proven.clear();
        }
    }

    /// What counts of `failed_unwraps` at the moment.
    pub fn spent(&self) -> Spent {
        let (mut state, now) = (self.lock(), Instant::now());
        state.expire(now);
        let limit = state.limits.failed_unwraps;
        Spent {
            limit,
            failed: state.failures.len(),
            unanswered: state.failures.unanswered(),
            next_in: limit.and_then(|limit| {
                Some(limit.per.saturating_sub(now.saturating_duration_since(state.failures.at(0)?)))
            }),
        }
    }

    /// Gives all failed unwraps back, durably; how many there were. Blocks on the disk.
    pub fn reset(&self) -> std::io::Result<usize> {
        let mut state = self.lock();
        let given_back = state.failures.len();
        state.failures = Failures::default();
        self.file.reset(&self.caller_and_key);
        drop(state);
        self.released.notify_waiters();
        self.file.write()?;
        Ok(given_back)
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

    /// Whether a value outside of the grant is worth an alarm: the first one in an hour.
    pub fn alarm_not_granted(&self) -> bool {
        once_in(&mut self.lock().not_granted_alarmed_at, Duration::from_hours(1))
    }

    /// Starts an unwrap that may fail. Where more new values are asked than failures are left, it
    /// waits for one of them, so that the limit holds however many calls come at once. A value that is
    /// being asked already is waited for once: if it fails, this call has failed too.
    pub async fn start_unwrap(&self, value: ValueId) -> Result<Start<'_>, Failure> {
        let mut has_waited = false;
        loop {
            let room = self.released.notified();
            let admission = self.lock().admit(&value, has_waited);
            match admission {
                Admission::Begin => {
                    return Ok(Start::Begun(StartedUnwrap::new(self, value)));
                }
                Admission::FailedBefore { alarm } => return Ok(Start::FailedBefore { alarm }),
                Admission::Refuse { retry_after } => {
                    // Those that wait learn it too.
                    self.released.notify_one();
                    return Err(Failure::Exhausted { what: Exhausted::FailedUnwraps, retry_after });
                }
                Admission::WaitForSameValue(ended) => {
                    has_waited = true;
                    ended.await;
                }
                Admission::WaitForRoom => room.await,
            }
        }
    }

    fn end(&self, value: &ValueId, verdict: Verdict) -> bool {
        let mut state = self.lock();
        let used_up = state.end(value, verdict, &self.caller_and_key, &self.file);
        drop(state);
        self.released.notify_one();
        used_up
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How an unwrap ended, as far as the budget is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The value unwrapped.
    Succeeded,
    /// The value was at fault.
    Failed,
    /// A key was asked and has not answered.
    Unanswered,
    /// The value was not at fault.
    Spared,
}

impl State {
    fn admit(&mut self, value: &ValueId, has_waited: bool) -> Admission {
        let Some(Rate { count, per }) = self.limits.failed_unwraps else { return Admission::Begin };
        let now = Instant::now();
        self.expire(now);
        let is_being_asked = self.asked.contains_key(value);
        if let Some(repeats) = self.failures.repeat(value, now, is_being_asked) {
            let alarm = repeats >= REPEATS_THAT_ALARM && once_in(&mut self.repeat_alarmed_at, per);
            return Admission::FailedBefore { alarm };
        }
        let is_new = !self.proven.contains(value) && !self.failures.contains(value);
        if let Some(asked) = self.asked.get_mut(value) {
            if is_new && !has_waited {
                // Made under the lock: no end is missed.
                return Admission::WaitForSameValue(Arc::clone(&asked.ended).notified_owned());
            }
            asked.calls += 1;
            return Admission::Begin;
        }
        let failed = u32::try_from(self.failures.len()).unwrap_or(u32::MAX);
        if is_new && failed >= count {
            let oldest = self.failures.at((failed - count) as usize).unwrap_or(now);
            let age = now.saturating_duration_since(oldest);
            let retry_after = per.saturating_sub(age).max(Duration::from_millis(1));
            return Admission::Refuse { retry_after };
        }
        if is_new && failed + self.asked_for_the_first_time >= count {
            return Admission::WaitForRoom;
        }
        self.asked_for_the_first_time += u32::from(is_new);
        let asked = Asked { calls: 1, counts: is_new, ended: Arc::default() };
        self.asked.insert(*value, asked);
        Admission::Begin
    }

    /// Whether this was the last failure that was left.
    fn end(
        &mut self,
        value: &ValueId,
        verdict: Verdict,
        caller_and_key: &CallerAndKey,
        file: &FailedUnwraps,
    ) -> bool {
        if let Some(asked) = self.asked.get_mut(value) {
            asked.calls -= 1;
            asked.ended.notify_waiters();
            if asked.calls == 0 {
                self.asked_for_the_first_time -= u32::from(asked.counts);
                self.asked.remove(value);
            }
        }
        let Some(Rate { count, .. }) = self.limits.failed_unwraps else { return false };
        match verdict {
            Verdict::Spared => return false,
            Verdict::Succeeded => {
                if self.failures.take_back(value) {
                    file.take_back(caller_and_key, value);
                }
                if !self.proven.contains(value) {
                    if self.proven.len() == PROVEN {
                        self.proven.pop_front();
                    }
                    self.proven.push_back(*value);
                }
                return false;
            }
            Verdict::Failed | Verdict::Unanswered => {}
        }
        let is_known = verdict == Verdict::Failed;
        self.proven.retain(|proven| proven != value);
        let at_ms = now_ms();
        let added = self.failures.add(*value, is_known, Instant::now());
        if added != Added::Nothing {
            let (value, key_state) = (*value, self.of_key);
            file.spend(caller_and_key, SpentUnwrap { at_ms, value, is_known, key_state });
        }
        added == Added::Value && self.failures.len() == count as usize
    }

    /// Forgets failures that have left the window.
    fn expire(&mut self, now: Instant) {
        match self.limits.failed_unwraps {
            Some(Rate { per, .. }) => self.failures.expire(now, per),
            None => self.failures = Failures::default(),
        }
    }
}

/// Whether it is time again; notes that it was done now.
fn once_in(last: &mut Option<Instant>, per: Duration) -> bool {
    let now = Instant::now();
    let due = last.is_none_or(|last| now.saturating_duration_since(last) >= per);
    if due {
        *last = Some(now);
    }
    due
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;

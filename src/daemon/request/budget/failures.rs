//! The distinct values that failed within the window, in the order of their failures.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::ValueId;
use crate::daemon::request::failed_unwraps::SpentUnwrap;

/// How long a value is answered from memory before the key is asked once more: at first so long, then
/// twice as long each time. A token's own trouble may look like the value's fault, and must not keep a
/// good value out for the whole window.
const FIRST_PAUSE: Duration = Duration::from_mins(1);

/// The distinct values that failed within the window; at most as many as the limit.
#[derive(Debug, Default)]
pub(super) struct Failures {
    /// Oldest first: by the clock that only goes forward.
    order: VecDeque<(Instant, ValueId)>,
    verdicts: HashMap<ValueId, Remembered>,
}

/// What is known about a value that counts.
#[derive(Clone, Copy, Debug)]
struct Remembered {
    /// Whether the key as it is now was found unable to unwrap it.
    is_known: bool,
    /// When that was found last.
    asked_at: Instant,
    /// How long the key is not asked again.
    pause: Duration,
    /// How often it was answered from memory.
    repeats: u32,
}

/// What was new about a value that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Added {
    /// All of it: one more value counts.
    Value,
    /// That it is its own fault.
    Verdict,
    /// It failed before.
    Nothing,
}

impl Failures {
    /// What the state directory has, oldest first. What was learned about the key in another state
    /// counts, and is asked again.
    pub(super) fn restored(
        spent: &[SpentUnwrap],
        key_state: u64,
        now: Instant,
        now_ms: u64,
    ) -> Self {
        let mut restored = Self::default();
        for SpentUnwrap { at_ms, value, is_known, key_state: then } in spent {
            let age = Duration::from_millis(now_ms.saturating_sub(*at_ms));
            if let Some(at) = now.checked_sub(age) {
                restored.add(*value, *is_known && *then == key_state, at);
            }
        }
        restored
    }

    /// Adds a value, or what is known of it now.
    pub(super) fn add(&mut self, value: ValueId, is_known: bool, at: Instant) -> Added {
        if let Some(known) = self.verdicts.get_mut(&value) {
            let is_learned = is_known && !known.is_known;
            if is_known {
                known.pause = if is_learned { FIRST_PAUSE } else { known.pause.saturating_mul(2) };
                (known.is_known, known.asked_at) = (true, at);
            }
            return if is_learned { Added::Verdict } else { Added::Nothing };
        }
        let known = Remembered { is_known, asked_at: at, pause: FIRST_PAUSE, repeats: 0 };
        self.verdicts.insert(value, known);
        self.order.push_back((at, value));
        Added::Value
    }

    /// Counts the repeat of a value that is known to fail; none for any other, and where it is time to
    /// ask the key once more.
    pub(super) fn repeat(
        &mut self,
        value: &ValueId,
        now: Instant,
        is_being_asked: bool,
    ) -> Option<u32> {
        let known = self.verdicts.get_mut(value).filter(|known| known.is_known)?;
        if !is_being_asked && now.saturating_duration_since(known.asked_at) >= known.pause {
            return None;
        }
        known.repeats = known.repeats.saturating_add(1);
        Some(known.repeats)
    }

    /// Whether the value counts already.
    pub(super) fn contains(&self, value: &ValueId) -> bool {
        self.verdicts.contains_key(value)
    }

    /// Takes a value back that turned out to be good. Whether it had counted.
    pub(super) fn take_back(&mut self, value: &ValueId) -> bool {
        let counted = self.verdicts.remove(value).is_some();
        if counted {
            self.order.retain(|(_, other)| other != value);
        }
        counted
    }

    /// The key is another one now: what counts goes on counting, and is asked again.
    pub(super) fn forget_verdicts(&mut self) {
        self.verdicts.values_mut().for_each(|known| known.is_known = false);
    }

    /// Forgets what is as old as the window is long.
    pub(super) fn expire(&mut self, now: Instant, window: Duration) {
        while let Some((at, value)) = self.order.front()
            && now.saturating_duration_since(*at) >= window
        {
            self.verdicts.remove(value);
            self.order.pop_front();
        }
    }

    /// How many count.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// How many of them may still turn out to be good.
    pub(super) fn unanswered(&self) -> usize {
        self.verdicts.values().filter(|known| !known.is_known).count()
    }

    /// Lets so much time pass.
    #[cfg(test)]
    pub(super) fn grow_older(&mut self, by: Duration) {
        for (at, _) in &mut self.order {
            *at = at.checked_sub(by).unwrap();
        }
        for known in self.verdicts.values_mut() {
            known.asked_at = known.asked_at.checked_sub(by).unwrap();
        }
    }

    /// When the failure at this place, from the oldest on, happened.
    pub(super) fn at(&self, place: usize) -> Option<Instant> {
        self.order.get(place).map(|(at, _)| *at)
    }
}

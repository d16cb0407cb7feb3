//! How long to wait before a process that ended is followed by the next one.

use std::time::{Duration, Instant};

/// So many processes that had served may end at once before the next one waits, and so often one more.
const AT_ONCE: u32 = 30;
const ONE_MORE: Duration = Duration::from_secs(1);

/// The pauses after processes that end without having served: doubled each time.
const UNSERVED: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));

/// What to wait for. A module that crashes now and then costs its callers no pause; one that cannot
/// start costs the host little.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    /// Of the last process, if it had not served.
    unserved: Option<Duration>,
    /// When all that may end at once may do so again.
    full_at: Option<Instant>,
}

impl Pauses {
    /// The pause after a process ended by itself.
    pub(super) fn after(&mut self, has_served: bool, now: Instant) -> Duration {
        if !has_served {
            let (first, longest) = UNSERVED;
            let pause = self.unserved.map_or(first, |last| (last * 2).min(longest));
            self.unserved = Some(pause);
            return pause;
        }
        self.unserved = None;
        let full_at = self.full_at.map_or(now, |at| at.max(now)) + ONE_MORE;
        self.full_at = Some(full_at);
        full_at.saturating_duration_since(now + ONE_MORE * AT_ONCE)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_process_that_had_served_is_followed_at_once_for_thirty_times_and_then_each_second() {
        let (mut pauses, now) = (Pauses::default(), Instant::now());
        for _ in 0..AT_ONCE {
            assert_eq!(pauses.after(true, now), Duration::ZERO);
        }
        assert_eq!(pauses.after(true, now), ONE_MORE);
        assert_eq!(pauses.after(true, now + ONE_MORE * 2), Duration::ZERO);
        let later = now + ONE_MORE * 1000;
        assert_eq!(pauses.after(true, later), Duration::ZERO);
    }

    #[test]
    fn one_crash_in_each_second_goes_on_for_ever_without_a_pause() {
        let (mut pauses, now) = (Pauses::default(), Instant::now());
        assert!((0..1000).all(|n| pauses.after(true, now + ONE_MORE * n).is_zero()));
    }

    #[test]
    fn processes_that_never_serve_are_followed_after_pauses_that_grow_to_three_seconds() {
        let (mut pauses, now) = (Pauses::default(), Instant::now());
        let milliseconds = [100, 200, 400, 800, 1600, 3000, 3000];
        for pause in milliseconds {
            assert_eq!(pauses.after(false, now), Duration::from_millis(pause));
        }
        assert!(pauses.after(true, now).is_zero());
        assert_eq!(pauses.after(false, now), Duration::from_millis(100));
    }

    proptest! {
        /// Each process ends so many milliseconds after it was started.
        #[test]
        fn whatever_processes_do_they_are_no_more_than_thirty_and_one_a_second_and_no_pause_is_longer(
            lives in prop::collection::vec((any::<bool>(), prop_oneof![0..50_u64, 0..5000_u64]), 1..300),
        ) {
            let (mut pauses, begun) = (Pauses::default(), Instant::now());
            let (mut now, mut served, mut unserved_before) = (begun, 0, None);
            for (has_served, lives_for) in lives {
                now += Duration::from_millis(lives_for);
                let pause = pauses.after(has_served, now);
                prop_assert!(pause <= UNSERVED.1, "{pause:?}");
                if has_served {
                    prop_assert!(pause <= ONE_MORE, "{pause:?}");
                    served += 1;
                    unserved_before = None;
                } else {
                    let doubled = |last: Duration| (last * 2).min(UNSERVED.1);
                    prop_assert_eq!(pause, unserved_before.map_or(UNSERVED.0, doubled));
                    unserved_before = Some(pause);
                }
                now += pause;
                let seconds = now.duration_since(begun).as_secs() as u32;
                prop_assert!(served <= AT_ONCE + 1 + seconds, "{served} in {seconds} s");
            }
        }
    }
}

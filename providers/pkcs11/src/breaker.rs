//! After repairs failed: fail fast for a while, then let one check try again.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::rand;
use claviger_provider_api::{Error, ErrorKind};

/// The first pauses: a host waits for ten seconds, and an HSM that comes back in the last of them is to
/// be seen in time.
const QUICK: Duration = Duration::from_millis(550);
const QUICK_FAILURES: u32 = 18;
/// Each later pause: no more than 20 looks in the first 15 s.
const SLOW: Duration = Duration::from_millis(2700);
/// A host that calls after so long without a call finds the first pauses again, however long the outage
/// has lasted. Without calls only the monitor looks, and more rarely than any pause allows.
const REST: Duration = Duration::from_secs(10);

/// What is refused, and until when even a look is: of one key, or of a whole process. Only checks open
/// and close it, never a caller's value.
#[derive(Debug, Default)]
pub(crate) struct Breaker(Mutex<Option<Open>>);

#[derive(Debug)]
struct Open {
    failures: u32,
    until: Instant,
    /// When a call was refused last.
    refused_at: Option<Instant>,
    cause: Error,
}

impl Breaker {
    /// An error while the breaker is open: why a call is refused.
    pub(crate) fn admit(&self, now: Instant) -> Result<(), Error> {
        let mut state = self.state();
        let Some(open) = state.as_mut() else { return Ok(()) };
        open.refused_at = Some(now);
        Err(open.error(now))
    }

    /// Whether calls are refused.
    pub(crate) fn is_open(&self) -> bool {
        self.state().is_some()
    }

    /// Why it is open, for operators: a call is not refused by this.
    pub(crate) fn why(&self, now: Instant) -> Option<Error> {
        self.state().as_ref().map(|open| open.error(now))
    }

    /// An error while even a check is refused: it is too early.
    pub(crate) fn admit_check(&self, now: Instant) -> Result<(), Error> {
        let state = self.state();
        let open = state.as_ref().filter(|open| now < open.until);
        open.map_or(Ok(()), |open| Err(open.error(now)))
    }

    /// Opens it after a check failed: for 0.55 s the first 18 times that calls wait, then for 2.7 s, and up to
    /// a 25th more. Checks that fail together count once, and a token without room not at all.
    pub(crate) fn open(&self, now: Instant, cause: &Error) {
        if matches!(cause.kind(), ErrorKind::Throttled { .. }) {
            return;
        }
        let mut state = self.state();
        let before = state.as_ref().map_or((0, now), |open| (open.failures, open.until));
        let refused_at = state.as_ref().and_then(|open| open.refused_at);
        let (failures, until) = if now < before.1 {
            before
        } else {
            let is_waited_for = refused_at.is_some_and(|at| now.duration_since(at) < REST);
            let failures = if is_waited_for { before.0 } else { 0 };
            let pause = if failures < QUICK_FAILURES { QUICK } else { SLOW };
            (failures + 1, now + pause + jitter(pause))
        };
        *state = Some(Open { failures, until, refused_at, cause: cause.repeated() });
    }

    /// Closes it; whether it was open.
    pub(crate) fn close(&self) -> bool {
        self.state().take().is_some()
    }

    fn state(&self) -> MutexGuard<'_, Option<Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// The cause, with the time until the next check is let through.
    fn error(&self, now: Instant) -> Error {
        let next_look = self.until.checked_duration_since(now).filter(|left| !left.is_zero());
        self.cause.repeated().with_next_look(next_look)
    }
}

fn jitter(pause: Duration) -> Duration {
    let mut byte = [0];
    // Without random bytes there is no jitter, and the keys have other troubles.
    let _ = rand::fill(&mut byte);
    pause / 25 * u32::from(byte[0]) / 255
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cause() -> Error {
        Error::new(ErrorKind::Unavailable, "the token is gone")
    }

    #[test]
    fn an_open_breaker_repeats_what_went_wrong_until_it_is_closed() {
        let breaker = Breaker::default();
        let now = Instant::now();
        breaker.admit(now).unwrap();
        breaker.open(now, &cause());
        let error = breaker.admit(now).unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string()),
            (ErrorKind::Unavailable, cause().to_string())
        );
        let next_look = error.next_look().unwrap();
        assert!(next_look <= QUICK + QUICK / 25, "{next_look:?}");
        let late = breaker.state().as_ref().unwrap().error(now + SLOW);
        assert_eq!(late.next_look(), None, "the next check asks the token");
        assert!(breaker.close());
        breaker.admit(now).unwrap();
        assert!(!breaker.close());
    }

    /// Looks that fail, each as soon as it may, while a call waits or none does; the pauses after them.
    fn pauses(
        breaker: &Breaker,
        now: &mut Instant,
        looks: usize,
        is_waited_for: bool,
    ) -> Vec<u128> {
        let look = |_| {
            breaker.open(*now, &cause());
            assert!(breaker.is_open(), "calls are refused until a check succeeded");
            if is_waited_for {
                breaker.admit(*now).unwrap_err();
            }
            let open = *now;
            while breaker.admit_check(*now).is_err() {
                *now += Duration::from_millis(1);
            }
            now.duration_since(open).as_millis()
        };
        (0..looks).map(look).collect()
    }

    #[test]
    fn checks_fail_quickly_for_ten_seconds_and_then_rarely() {
        let (breaker, mut now) = (Breaker::default(), Instant::now());
        let pauses = pauses(&breaker, &mut now, 30, true);
        let (quick, slow) = pauses.split_at(18);
        assert!(quick.iter().all(|pause| (550..574).contains(pause)), "{pauses:?}");
        assert!(slow.iter().all(|pause| (2700..2810).contains(pause)), "{pauses:?}");
    }

    #[test]
    fn a_host_that_comes_late_in_an_outage_finds_quick_looks_again() {
        let (breaker, mut now) = (Breaker::default(), Instant::now());
        pauses(&breaker, &mut now, 30, true);
        // For a while nothing but the monitor.
        for _ in 0..10 {
            now += Duration::from_secs(3);
            breaker.open(now, &cause());
        }
        breaker.admit(now).unwrap_err();
        let pauses = pauses(&breaker, &mut now, 18, true);
        assert!(pauses[1..17].iter().all(|pause| (550..574).contains(pause)), "{pauses:?}");
    }

    #[test]
    fn looks_that_no_call_waits_for_use_none_of_the_quick_ones_up() {
        let (breaker, mut now) = (Breaker::default(), Instant::now());
        pauses(&breaker, &mut now, 1000, false);
        let pauses = pauses(&breaker, &mut now, 10, true);
        assert!(pauses.iter().all(|pause| (550..574).contains(pause)), "{pauses:?}");
    }

    #[test]
    fn checks_that_fail_together_are_one_failure() {
        let breaker = Breaker::default();
        let now = Instant::now();
        for _ in 0..100 {
            breaker.open(now, &cause());
        }
        breaker.admit_check(now + QUICK + QUICK / 25).unwrap();
        breaker.open(now + QUICK * 2, &cause());
        breaker.admit_check(now + QUICK * 3 + QUICK / 25).expect("still quick");
    }

    /// What may come to a breaker, and after how many milliseconds.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        Call,
        /// A check, if the breaker lets it: it fails so, or comes back right.
        Check(Option<ErrorKind>),
    }

    fn any_event() -> impl Strategy<Value = (u64, Event)> {
        let throttled = ErrorKind::Throttled { retry_after: None };
        let event = prop_oneof![
            3 => Just(Event::Call),
            4 => Just(Event::Check(Some(ErrorKind::Unavailable))),
            1 => Just(Event::Check(Some(ErrorKind::OperatorNeeded))),
            1 => Just(Event::Check(Some(throttled))),
            1 => Just(Event::Check(None)),
        ];
        (prop_oneof![0..60_u64, 0..700_u64, 0..20_000_u64], event)
    }

    proptest! {
        #[test]
        fn whatever_comes_calls_are_refused_from_a_failed_check_to_a_good_one_and_pauses_are_bounded(
            events in prop::collection::vec(any_event(), 0..200),
        ) {
            let (breaker, begun) = (Breaker::default(), Instant::now());
            let (mut now, mut is_open, mut failed) = (begun, false, Vec::new());
            let longest = SLOW + SLOW / 25;
            for (after, event) in events {
                now += Duration::from_millis(after);
                match event {
                    Event::Call => match breaker.admit(now) {
                        Ok(()) => prop_assert!(!is_open),
                        Err(error) => {
                            prop_assert!(is_open);
                            prop_assert!(error.next_look().unwrap_or_default() <= longest);
                        }
                    },
                    Event::Check(outcome) => {
                        if breaker.admit_check(now).is_err() {
                            prop_assert!(is_open);
                            let since = now - *failed.last().unwrap();
                            prop_assert!(since < longest, "no check for {since:?}");
                            continue;
                        }
                        match outcome {
                            None => prop_assert_eq!(breaker.close(), is_open),
                            Some(kind) => breaker.open(now, &Error::new(kind, "as it is said")),
                        }
                        match outcome {
                            None => is_open = false,
                            // A token without room changes nothing.
                            Some(ErrorKind::Throttled { .. }) => {}
                            Some(_) => {
                                is_open = true;
                                failed.push(now);
                            }
                        }
                    }
                }
                prop_assert_eq!(breaker.is_open(), is_open);
            }
        }

        /// However eagerly checks are asked for, and however calls come meanwhile.
        #[test]
        fn an_outage_costs_the_token_no_more_than_two_looks_a_second(
            calls in prop::collection::vec(0..60_000_u64, 0..50),
        ) {
            let (breaker, begun) = (Breaker::default(), Instant::now());
            let mut looks = Vec::new();
            for ms in (0..60_000).step_by(10) {
                let now = begun + Duration::from_millis(ms);
                if calls.iter().any(|call| (ms..ms + 10).contains(call)) {
                    let _ = breaker.admit(now);
                }
                if breaker.admit_check(now).is_ok() {
                    looks.push(now);
                    breaker.open(now, &cause());
                }
            }
            for pair in looks.windows(2) {
                let pause = pair[1] - pair[0];
                prop_assert!((QUICK..=SLOW + SLOW / 25 + QUICK / 10).contains(&pause), "{pause:?}");
            }
        }
    }
}

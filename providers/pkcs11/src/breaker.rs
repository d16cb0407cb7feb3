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

/// What is refused, and until when even a look is: of one key, or of a whole process. Only checks open
/// and close it, never a caller's value.
#[derive(Debug, Default)]
pub(crate) struct Breaker(Mutex<Option<Open>>);

#[derive(Debug)]
struct Open {
    failures: u32,
    until: Instant,
    cause: Error,
}

impl Breaker {
    /// An error while the breaker is open: why a call is refused.
    pub(crate) fn admit(&self) -> Result<(), Error> {
        self.state().as_ref().map_or(Ok(()), |open| Err(open.error(Instant::now())))
    }

    /// An error while even a check is refused: it is too early.
    pub(crate) fn admit_check(&self, now: Instant) -> Result<(), Error> {
        let state = self.state();
        let open = state.as_ref().filter(|open| now < open.until);
        open.map_or(Ok(()), |open| Err(open.error(now)))
    }

    /// Opens it after a check failed: for 0.55 s the first 18 times, then for 2.7 s, and up to a 25th more.
    /// Checks that fail together count once, and a token without room not at all.
    pub(crate) fn open(&self, now: Instant, cause: &Error) {
        if matches!(cause.kind(), ErrorKind::Throttled { .. }) {
            return;
        }
        let mut state = self.state();
        let before = state.as_ref().map_or((0, now), |open| (open.failures, open.until));
        let (failures, until) = if now < before.1 {
            before
        } else {
            let pause = if before.0 < QUICK_FAILURES { QUICK } else { SLOW };
            (before.0 + 1, now + pause + jitter(pause))
        };
        *state = Some(Open { failures, until, cause: cause.repeated() });
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
    use super::*;

    fn cause() -> Error {
        Error::new(ErrorKind::Unavailable, "the token is gone")
    }

    #[test]
    fn an_open_breaker_repeats_what_went_wrong_until_it_is_closed() {
        let breaker = Breaker::default();
        let now = Instant::now();
        breaker.admit().unwrap();
        breaker.open(now, &cause());
        let error = breaker.admit().unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string()),
            (ErrorKind::Unavailable, cause().to_string())
        );
        let next_look = error.next_look().unwrap();
        assert!(next_look <= QUICK + QUICK / 25, "{next_look:?}");
        let late = breaker.state().as_ref().unwrap().error(now + SLOW);
        assert_eq!(late.next_look(), None, "the next check asks the token");
        assert!(breaker.close());
        breaker.admit().unwrap();
        assert!(!breaker.close());
    }

    #[test]
    fn checks_fail_quickly_for_ten_seconds_and_then_rarely() {
        let breaker = Breaker::default();
        let mut now = Instant::now();
        let quick = std::iter::repeat_n(0.55, 18);
        for pause in quick.chain([2.7, 2.7, 2.7]) {
            breaker.open(now, &cause());
            let check = |seconds| breaker.admit_check(now + Duration::from_secs_f64(seconds));
            assert!(check(pause - 0.001).is_err(), "{pause}");
            let longest = pause * 1.04 + 0.001;
            assert!(check(longest).is_ok(), "{pause}");
            assert!(breaker.admit().is_err(), "calls are refused until a check succeeded");
            now += Duration::from_secs_f64(longest);
        }
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
}

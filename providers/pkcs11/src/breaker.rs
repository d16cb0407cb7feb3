//! After repairs failed: fail fast for a while, then let one check try again.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::rand;
use claviger_provider_api::Error;

/// The first pauses: for some nine seconds, in which callers wait for an HSM that is away for a moment,
/// it is looked at often.
const QUICK: Duration = Duration::from_millis(520);
const QUICK_FAILURES: u32 = 18;
/// Each later pause, a little shorter than what the monitor leaves between two checks: a token that is
/// back serves within five seconds, and an outage of 15 s costs it 20 attempts at most.
const SLOW: Duration = Duration::from_millis(2850);

/// One key's breaker. Only checks open and close it, never a caller's value.
#[derive(Debug, Default)]
pub(crate) struct Breaker(Mutex<Option<Open>>);

#[derive(Debug)]
struct Open {
    failures: u32,
    until: Instant,
    cause: Error,
}

impl Breaker {
    /// Why a call is refused, while the breaker is open.
    pub(crate) fn refusal(&self) -> Option<Error> {
        self.state().as_ref().map(|open| open.error(Instant::now()))
    }

    /// Why even a check is refused: it is too early.
    pub(crate) fn too_early(&self, now: Instant) -> Option<Error> {
        let state = self.state();
        let open = state.as_ref().filter(|open| now < open.until)?;
        Some(open.error(now))
    }

    /// Opens it after a check failed: for 0.52 s the first 18 times, then for 2.85 s, and up to a 25th
    /// more.
    pub(crate) fn open(&self, now: Instant, cause: &Error) {
        let mut state = self.state();
        let failures = state.as_ref().map_or(1, |open| open.failures + 1);
        let pause = if failures <= QUICK_FAILURES { QUICK } else { SLOW };
        let until = now + pause + jitter(pause);
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
    use claviger_provider_api::ErrorKind;

    fn cause() -> Error {
        Error::new(ErrorKind::Unavailable, "the token is gone")
    }

    #[test]
    fn an_open_breaker_repeats_what_went_wrong_until_it_is_closed() {
        let breaker = Breaker::default();
        let now = Instant::now();
        assert!(breaker.refusal().is_none());
        breaker.open(now, &cause());
        let error = breaker.refusal().unwrap();
        assert_eq!(
            (error.kind(), error.to_string()),
            (ErrorKind::Unavailable, cause().to_string())
        );
        let next_look = error.next_look().unwrap();
        assert!(next_look <= QUICK + QUICK / 25, "{next_look:?}");
        let late = breaker.state().as_ref().unwrap().error(now + SLOW);
        assert_eq!(late.next_look(), None, "the next check asks the token");
        assert!(breaker.close());
        assert!(breaker.refusal().is_none());
        assert!(!breaker.close());
    }

    #[test]
    fn checks_fail_quickly_for_nine_seconds_and_then_every_three() {
        let breaker = Breaker::default();
        let now = Instant::now();
        let quick = std::iter::repeat_n(0.52, 18);
        for pause in quick.chain([2.85, 2.85, 2.85]) {
            breaker.open(now, &cause());
            let (shortest, longest) = (pause - 0.001, pause * 1.04 + 0.001);
            assert!(
                breaker.too_early(now + Duration::from_secs_f64(shortest)).is_some(),
                "{pause}"
            );
            assert!(breaker.too_early(now + Duration::from_secs_f64(longest)).is_none(), "{pause}");
            assert!(breaker.refusal().is_some(), "calls are refused until a check succeeded");
        }
    }
}

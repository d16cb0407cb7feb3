//! After repairs failed: fail fast for a while, then let one check try again.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::rand;
use claviger_provider_api::{Cause, Error, ErrorKind};

const SHORTEST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(2);

/// One key's breaker. Only checks open and close it, never a caller's value.
#[derive(Debug, Default)]
pub(crate) struct Breaker(Mutex<Option<Open>>);

#[derive(Debug)]
struct Open {
    failures: u32,
    until: Instant,
    kind: ErrorKind,
    cause: Option<Cause>,
    text: String,
}

impl Breaker {
    /// Why a call is refused, while the breaker is open.
    pub(crate) fn refusal(&self) -> Option<Error> {
        self.state().as_ref().map(Open::error)
    }

    /// Why even a check is refused: it is too early.
    pub(crate) fn too_early(&self, now: Instant) -> Option<Error> {
        let state = self.state();
        let open = state.as_ref().filter(|open| now < open.until)?;
        Some(open.error())
    }

    /// Opens it after a check failed, for longer each time: 0.5, 1, 2, 2, … s and up to a quarter more.
    /// No longer, so that a token that is back soon serves.
    pub(crate) fn open(&self, now: Instant, cause: &Error) {
        let mut state = self.state();
        let failures = state.as_ref().map_or(0, |open| open.failures + 1);
        let pause = SHORTEST.saturating_mul(1 << failures.min(10)).min(LONGEST);
        *state = Some(Open {
            failures,
            until: now + pause + jitter(pause),
            kind: cause.kind(),
            cause: cause.cause(),
            text: cause.to_string(),
        });
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
    fn error(&self) -> Error {
        Error::new(self.kind, self.text.clone()).with_cause(self.cause)
    }
}

fn jitter(pause: Duration) -> Duration {
    let mut byte = [0];
    // Without random bytes there is no jitter, and the keys have other troubles.
    let _ = rand::fill(&mut byte);
    pause / 4 * u32::from(byte[0]) / 255
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
        assert!(breaker.refusal().is_none());
        breaker.open(Instant::now(), &cause());
        let error = breaker.refusal().unwrap();
        assert_eq!(
            (error.kind(), error.to_string()),
            (ErrorKind::Unavailable, cause().to_string())
        );
        assert!(breaker.close());
        assert!(breaker.refusal().is_none());
        assert!(!breaker.close());
    }

    #[test]
    fn each_failed_check_waits_longer_for_the_next_up_to_two_seconds() {
        let breaker = Breaker::default();
        let now = Instant::now();
        for pause in [0.5, 1.0, 2.0, 2.0, 2.0] {
            breaker.open(now, &cause());
            let (shortest, longest) = (pause - 0.001, pause * 1.25 + 0.001);
            assert!(
                breaker.too_early(now + Duration::from_secs_f64(shortest)).is_some(),
                "{pause}"
            );
            assert!(breaker.too_early(now + Duration::from_secs_f64(longest)).is_none(), "{pause}");
            assert!(breaker.refusal().is_some(), "calls are refused until a check succeeded");
        }
    }
}

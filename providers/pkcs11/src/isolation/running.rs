//! The process that runs, as those see it who use it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use claviger_provider_api::{Error, ErrorKind};

use super::link::Link;
use super::now;

/// A pause before the next process that is longer than this is not waited for: another daemon may serve
/// meanwhile, and a host is told when to ask again.
const WAITED_FOR: Duration = Duration::from_millis(500);

/// The process that runs, or why there is none.
#[derive(Clone, Debug, Default)]
pub(super) struct Running {
    pub(super) link: Option<Arc<Link>>,
    pub(super) fault: Option<Arc<str>>,
    /// When the next process is started, while none is.
    pub(super) starts_at: Option<Instant>,
}

impl Running {
    /// The process.
    pub(super) fn link(&self) -> Result<Arc<Link>, Error> {
        self.link.clone().ok_or_else(|| self.no_process())
    }

    /// The error of a call that needs a process.
    pub(super) fn no_process(&self) -> Error {
        let reason = self.fault.as_deref().unwrap_or("it is being started");
        let text = format!("the module's process does not run: {reason}");
        Error::new(ErrorKind::Unavailable, text).with_next_look(self.pause())
    }

    /// Whether the next process is not even started soon.
    pub(super) fn is_pausing(&self) -> bool {
        self.pause().is_some_and(|pause| pause > WAITED_FOR)
    }

    fn pause(&self) -> Option<Duration> {
        let pause = self.starts_at?.saturating_duration_since(now());
        (!pause.is_zero()).then_some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_the_next_process_is_not_started_yet_an_error_says_when_it_will_be() {
        let second = Duration::from_secs(1);
        let starts_at = Some(Instant::now() + second);
        let running = Running { starts_at, fault: Some("crashes".into()), link: None };
        let error = running.link().unwrap_err();
        let next_look = error.next_look().unwrap();
        assert!(next_look > second / 2 && next_look <= second, "{next_look:?}");
        assert!(running.is_pausing());
        let soon = Running { starts_at: Some(Instant::now() + second / 4), ..running.clone() };
        assert!(!soon.is_pausing(), "that is waited for");
        let starting = Running { starts_at: Some(Instant::now()), ..running };
        assert!(starting.no_process().next_look().is_none() && !starting.is_pausing());
    }
}

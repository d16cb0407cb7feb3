//! How long a connection may last: short, unless it was found to be one that lasts.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// When a connection ends at the latest.
#[derive(Debug)]
pub(super) struct Lifetime(Mutex<Instant>);

impl Lifetime {
    /// From now on.
    pub(super) fn of(time: Duration) -> Self {
        Self(Mutex::new(Instant::now() + time))
    }

    /// Lets it last for `time` from now on, if that is longer.
    pub(super) fn extend(&self, time: Duration) {
        let mut end = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *end = (*end).max(Instant::now() + time);
    }

    /// Waits until it is over.
    pub(super) async fn is_over(&self) {
        loop {
            let end = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if end <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_extended_while_it_is_waited_for_lasts_longer() {
        let lifetime = Lifetime::of(Duration::from_secs(30));
        let begun = Instant::now();
        tokio::join!(lifetime.is_over(), async {
            tokio::time::sleep(Duration::from_secs(20)).await;
            lifetime.extend(Duration::from_secs(100));
            lifetime.extend(Duration::from_secs(1));
        });
        assert_eq!(begun.elapsed(), Duration::from_mins(2));
    }
}

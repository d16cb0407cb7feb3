//! When a connection is asked to go, and when it is cut: by its age and by its certificate.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::ConnectionSettings;
use super::stats::Cut;
use crate::daemon::transport::caller::Peer;

/// How long after GOAWAY a connection is cut.
const GRACE: Duration = Duration::from_secs(30);

/// When a connection is asked to go, and when it is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lifetime {
    pub(super) silent_until: Instant,
    pub(super) go_away_at: Instant,
    pub(super) cut_at: Instant,
    pub(super) cut_for: Cut,
}

impl Lifetime {
    pub(super) fn new(settings: &ConnectionSettings, peer: &Peer) -> Self {
        let age = jittered(settings.max_connection_age, random_fraction());
        let expires_in = peer.certificate.as_ref().map(|certificate| {
            certificate.not_after.duration_since(SystemTime::now()).unwrap_or_default()
        });
        Self::from_now(Instant::now(), settings.handshake_timeout, age, expires_in)
    }

    fn from_now(
        now: Instant,
        silence: Duration,
        age: Duration,
        expires_in: Option<Duration>,
    ) -> Self {
        let (mut go_away, mut cut, mut cut_for) = (age, age + GRACE, Cut::Age);
        if let Some(expires_in) = expires_in
            && expires_in < cut
        {
            // The client gets the time to come back with a newer certificate.
            go_away = age.min(expires_in.saturating_sub(GRACE).max(expires_in / 2));
            (cut, cut_for) = (expires_in, Cut::Expired);
        }
        Self { silent_until: now + silence, go_away_at: now + go_away, cut_at: now + cut, cut_for }
    }
}

/// `fraction` from 0 to 1 gives nine to eleven tenths, at most 30 years.
fn jittered(age: Duration, fraction: f64) -> Duration {
    age.min(Duration::from_hours(30 * 365 * 24)).mul_f64(0.9 + 0.2 * fraction)
}

fn random_fraction() -> f64 {
    let mut bytes = [0; 2];
    // Without random numbers there is no TLS either; the middle does as well.
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => f64::from(u16::from_le_bytes(bytes)) / f64::from(u16::MAX),
        Err(_) => 0.5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_hours(1);

    #[test]
    fn ages_differ_by_a_tenth_so_that_clients_do_not_come_back_together() {
        assert_eq!(jittered(HOUR, 0.0), Duration::from_mins(54));
        assert_eq!(jittered(HOUR, 1.0), Duration::from_mins(66));
        assert!(jittered(Duration::MAX, 1.0) < Duration::MAX);
        assert!((0.0..=1.0).contains(&random_fraction()));
    }

    #[test]
    fn an_old_connection_is_asked_to_go_and_cut_thirty_seconds_later() {
        let now = Instant::now();
        let life = Lifetime::from_now(now, SECOND, HOUR, Some(2 * HOUR));
        assert_eq!(life.go_away_at, now + HOUR);
        assert_eq!(life.cut_at, now + HOUR + GRACE);
        assert_eq!(life.cut_for, Cut::Age);
    }

    #[test]
    fn a_connection_never_outlives_its_certificate_and_is_told_before() {
        let now = Instant::now();
        for (expires_in, go_away) in [(600, 570), (40, 20), (2, 1), (0, 0)] {
            let expires_in = Duration::from_secs(expires_in);
            let life = Lifetime::from_now(now, SECOND, HOUR, Some(expires_in));
            assert_eq!(life.go_away_at, now + Duration::from_secs(go_away), "{expires_in:?}");
            assert_eq!(life.cut_at, now + expires_in);
            assert_eq!(life.cut_for, Cut::Expired);
        }
    }
}

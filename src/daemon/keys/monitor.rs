//! Watches every replica: opens what is closed, proves by canaries what no call has used lately.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Weak};
use std::time::Duration;

use claviger_provider_api::ErrorKind;
use futures::StreamExt;
use tokio::time::Instant;

use crate::daemon::keys::health::ReplicaHealth;
use crate::daemon::keys::replica::Replica;
use crate::daemon::keys::replicas::Replicas;

/// How often an unused replica is proven.
const PROVE_EVERY: Duration = Duration::from_secs(10);
const PROVE_BILLED_EVERY: Duration = Duration::from_mins(5);
/// How often the monitor looks; also the least time between two periodic canaries of a provider.
const TICK: Duration = Duration::from_secs(1);
/// How long a replica that fails waits for its next check: doubled from the first on, and no longer
/// than the last while its backend cannot be reached, so that the end of an outage is soon seen.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// The longest wait where a check costs nothing, whatever is wrong: a token that is put right serves
/// within five seconds.
const LONGEST_FREE_BACKOFF: Duration = Duration::from_secs(3);
/// Neighbours that are checked for each replica that begins to fail.
const WITNESSES: usize = 4;
/// Keys of one provider that are opened at a time.
const OPEN_AT_ONCE: usize = 8;

/// Opens every replica that is not open yet: ends when each has opened or failed once.
pub async fn open_all(replicas: &Replicas) {
    futures::future::join_all(replicas.by_provider().into_values().map(open)).await;
}

/// Opens the replicas of one provider that are not open yet: ends when each has opened or failed once.
pub async fn open_provider(replicas: &Replicas, provider: &str) {
    let of_provider = replicas.by_provider().remove(provider).unwrap_or_default();
    open(of_provider).await;
}

async fn open(replicas: Vec<Arc<Replica>>) {
    let closed = replicas.into_iter().filter(|replica| replica.key().is_none());
    futures::stream::iter(closed)
        .for_each_concurrent(OPEN_AT_ONCE, |replica| async move {
            // What is wrong is in the replica's health and in the log.
            let _ = replica.check().await;
        })
        .await;
}

/// Watches the replicas in force, which `in_force` gives, for ever.
pub async fn watch(in_force: impl Fn() -> Arc<Replicas>) {
    let mut failing: HashMap<usize, Backoff> = HashMap::new();
    let mut watched = Weak::new();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let in_force = in_force();
        let reloaded = watched.as_ptr() != Arc::as_ptr(&in_force);
        if reloaded {
            // After a reload all are asked at once: a repair may have been the reason for it.
            failing.clear();
            watched = Arc::downgrade(&in_force);
        }
        for (provider, replicas) in in_force.by_provider() {
            let billed =
                in_force.providers.get(provider).is_some_and(|(c, _)| c.provider_type().is_billed);
            let prove_every = if billed { PROVE_BILLED_EVERY } else { PROVE_EVERY };
            let mut due = due(&replicas, Instant::now(), prove_every, &mut failing);
            // Those that failed before say nothing about their neighbours.
            due.retain(|replica| !(reloaded && replica.is_serving()));
            due.into_iter().for_each(Replica::check_in_background);
        }
    }
}

/// When a replica that fails was last asked, and how long it is to wait.
#[derive(Debug)]
struct Backoff {
    asked: Instant,
    wait: Duration,
}

impl Backoff {
    /// Whether a replica that fails like this is to be asked now.
    fn is_over(&mut self, now: Instant, kind: ErrorKind, prove_every: Duration) -> bool {
        let wait = self.wait(kind, prove_every);
        let is_over = now.saturating_duration_since(self.asked) >= wait;
        if is_over {
            *self = Self { asked: now, wait: wait * 2 };
        }
        is_over
    }

    /// How long it waits after it was asked. What no retry can mend waits up to the usual interval: of
    /// a billed provider each check has its price.
    fn wait(&self, kind: ErrorKind, prove_every: Duration) -> Duration {
        let (shortest, longest) = match kind {
            ErrorKind::Throttled { retry_after } => {
                (retry_after.unwrap_or_default().min(prove_every), prove_every)
            }
            _ if prove_every < PROVE_BILLED_EVERY => (Duration::ZERO, LONGEST_FREE_BACKOFF),
            ErrorKind::Unavailable | ErrorKind::DeadlineExceeded => (Duration::ZERO, BACKOFF.1),
            ErrorKind::OperatorNeeded | ErrorKind::Internal | ErrorKind::UnwrapFailed => {
                (Duration::ZERO, prove_every)
            }
        };
        self.wait.clamp(shortest, longest)
    }
}

/// Which replicas of one provider are to be asked: those that fail and whose time has come, or else
/// the one that was proven longest ago.
fn due<'a>(
    replicas: &'a [Arc<Replica>],
    now: Instant,
    prove_every: Duration,
    failing: &mut HashMap<usize, Backoff>,
) -> Vec<&'a Arc<Replica>> {
    let mut due = Vec::new();
    let mut longest_ago: Option<(&Arc<Replica>, Duration)> = None;
    let mut failed_just_now = 0;
    for replica in replicas {
        let kind = match &*replica.health() {
            ReplicaHealth::Opening | ReplicaHealth::Drained => continue,
            ReplicaHealth::Serving => {
                failing.remove(&identity(replica));
                // One that callers use all the time is compared with the others all the same.
                let overdue = replica.comparison_due_for().map(|overdue| overdue + prove_every);
                let ago = replica.had_its_turn_ago().max(overdue.unwrap_or_default());
                if ago >= prove_every && longest_ago.is_none_or(|(_, longest)| longest < ago) {
                    longest_ago = Some((replica, ago));
                }
                continue;
            }
            ReplicaHealth::Failing(fault) => fault.kind,
        };
        match failing.entry(identity(replica)) {
            Entry::Occupied(mut entry) => {
                let backoff = entry.get_mut();
                if backoff.is_over(now, kind, prove_every) {
                    due.push(replica);
                    if replica.key().is_none() {
                        // No call opens it: until then each one has the same answer.
                        replica.looks_again_after(backoff.wait(kind, prove_every));
                    }
                }
            }
            Entry::Vacant(entry) => {
                entry.insert(Backoff { asked: now, wait: BACKOFF.0 });
                if replica.key().is_none() {
                    replica.looks_again_after(BACKOFF.0);
                }
                // A throttled backend is not asked again at once, nor about others.
                if !matches!(kind, ErrorKind::Throttled { .. }) {
                    failed_just_now += 1;
                    due.push(replica);
                }
            }
        }
    }
    if failed_just_now > 0 {
        // Replicas of one provider often fail together: for each failure, up to `WITNESSES` serving
        // ones are checked early.
        let neighbours = replicas.iter().filter(|replica| replica.is_serving());
        due.extend(neighbours.take(failed_just_now * WITNESSES));
    } else if let Some((replica, _)) = longest_ago {
        due.push(replica);
    }
    due
}

/// Which replica this is, as long as it lives.
fn identity(replica: &Arc<Replica>) -> usize {
    Arc::as_ptr(replica).addr()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::keys::fakes::{failing, serving};

    const THROTTLED: ErrorKind = ErrorKind::Throttled { retry_after: None };

    /// At which seconds of an hour the first of these replicas is asked.
    fn asked(replicas: &[Arc<Replica>], prove_every: Duration) -> Vec<u64> {
        let (begun, mut backoffs) = (Instant::now(), HashMap::new());
        let is_asked = |second: &u64| {
            let now = begun + Duration::from_secs(*second);
            let due = due(replicas, now, prove_every, &mut backoffs);
            due.iter().any(|replica| Arc::ptr_eq(replica, &replicas[0]))
        };
        (0..3600).filter(is_asked).collect()
    }

    fn waits(asked: &[u64]) -> Vec<u64> {
        asked.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }

    #[test]
    fn a_billed_key_that_only_an_operator_can_mend_is_asked_every_five_minutes_at_last() {
        for kind in [ErrorKind::OperatorNeeded, ErrorKind::Internal, ErrorKind::UnwrapFailed] {
            let asked = asked(&[failing(kind)], PROVE_BILLED_EVERY);
            assert_eq!(asked[0], 0, "{kind:?}");
            let waits = waits(&asked);
            assert_eq!(waits[..10], [1, 2, 4, 8, 16, 32, 64, 128, 256, 300], "{kind:?}");
            assert!(waits[10..].iter().all(|wait| *wait == 300), "{kind:?}: {waits:?}");
        }
    }

    #[test]
    fn a_billed_key_that_cannot_be_reached_is_asked_every_ten_seconds_at_last() {
        for kind in [ErrorKind::Unavailable, ErrorKind::DeadlineExceeded] {
            let waits = waits(&asked(&[failing(kind)], PROVE_BILLED_EVERY));
            assert_eq!(waits[..5], [1, 2, 4, 8, 10], "{kind:?}");
            assert!(waits[5..].iter().all(|wait| *wait == 10), "{kind:?}: {waits:?}");
        }
    }

    #[test]
    fn a_key_whose_checks_cost_nothing_is_asked_every_three_seconds_at_last() {
        for kind in [ErrorKind::Unavailable, ErrorKind::OperatorNeeded, ErrorKind::Internal] {
            let waits = waits(&asked(&[failing(kind)], PROVE_EVERY));
            assert_eq!(waits[..4], [1, 2, 3, 3], "{kind:?}");
            assert!(waits[4..].iter().all(|wait| *wait == 3), "{kind:?}: {waits:?}");
        }
    }

    #[test]
    fn a_throttled_key_is_asked_when_its_backend_said_and_in_the_usual_interval_at_last() {
        let of = |retry_after| {
            let kind = ErrorKind::Throttled { retry_after };
            asked(&[failing(kind)], PROVE_BILLED_EVERY)
        };
        assert_eq!(of(None)[..4], [1, 3, 7, 15], "not at once");
        assert_eq!(of(Some(Duration::from_secs(7)))[..4], [7, 21, 49, 105]);
        let longest = of(Some(Duration::from_hours(2)));
        assert_eq!(longest[..2], [300, 600], "a backend cannot put a key off for ever");
        assert!(waits(&of(None)).ends_with(&[300]));
    }

    #[test]
    fn an_outage_after_a_refusal_is_watched_as_an_outage() {
        let mut backoff = Backoff { asked: Instant::now(), wait: PROVE_BILLED_EVERY };
        let mut is_over = |seconds, kind| {
            let now = backoff.asked + Duration::from_secs(seconds);
            backoff.is_over(now, kind, PROVE_BILLED_EVERY)
        };
        assert!(!is_over(299, ErrorKind::OperatorNeeded));
        assert!(is_over(10, ErrorKind::Unavailable));
    }

    #[test]
    fn neighbours_are_asked_when_a_key_begins_to_fail_and_not_when_it_is_throttled() {
        let due_with = |kind| {
            let replicas = [failing(kind), serving(&[]), serving(&[])];
            due(&replicas, Instant::now(), PROVE_EVERY, &mut HashMap::new()).len()
        };
        assert_eq!(due_with(ErrorKind::Unavailable), 3);
        assert_eq!(due_with(THROTTLED), 0);
    }

    #[test]
    fn a_key_that_was_never_open_says_when_it_is_looked_at_again() {
        let replica = failing(ErrorKind::Unavailable);
        assert_eq!(replica.next_look(), None, "nothing is known yet");
        let (begun, mut backoffs) = (Instant::now(), HashMap::new());
        for (second, expected) in [(0, 1), (1, 2), (3, 3)] {
            let now = begun + Duration::from_secs(second);
            let replicas = [Arc::clone(&replica)];
            assert_eq!(due(&replicas, now, PROVE_EVERY, &mut backoffs).len(), 1);
            let next_look = replica.next_look().unwrap();
            assert!(next_look > Duration::from_secs(expected - 1), "{next_look:?}");
            assert!(next_look <= Duration::from_secs(expected), "{next_look:?}");
        }
        replica.proven();
        assert_eq!(replica.next_look(), None);
    }

    #[tokio::test]
    async fn a_throttled_canary_had_its_turn() {
        let (throttled, other) = (serving(&[THROTTLED]), serving(&[]));
        // Longer than the clock's grain.
        std::thread::sleep(Duration::from_millis(5));
        throttled.check().await.unwrap_err();
        assert!(throttled.is_serving());
        let replicas = [Arc::clone(&throttled), other];
        let due = due(&replicas, Instant::now(), Duration::ZERO, &mut HashMap::new());
        assert_eq!(due.len(), 1);
        assert!(Arc::ptr_eq(due[0], &replicas[1]), "the one that waits for longest is next");
    }
}

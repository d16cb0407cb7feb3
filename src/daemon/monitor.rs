//! Watches every replica: opens what is closed, proves by canaries what nobody has used lately.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures::StreamExt;

use crate::daemon::keyset::Keyset;
use crate::daemon::replica::{Condition, Replica};

/// How often a replica that nobody uses is proven, and where each operation has its price.
const PROVE_EVERY: Duration = Duration::from_secs(10);
const PROVE_BILLED_EVERY: Duration = Duration::from_mins(5);
/// How often the monitor looks; also the least time between two periodic canaries of a provider.
const TICK: Duration = Duration::from_secs(1);
/// How long a replica that fails waits for its next check: doubled from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// Neighbours that are checked for each replica that begins to fail.
const WITNESSES: usize = 4;
/// Keys of one provider that are opened at a time.
const OPEN_AT_ONCE: usize = 8;

/// Opens every replica that is not open yet: ends when each has opened or failed once.
pub async fn open_all(keyset: &Keyset) {
    let by_provider = by_provider(keyset);
    futures::future::join_all(by_provider.into_values().map(|replicas| {
        let closed = replicas.into_iter().filter(|replica| replica.key().is_none());
        futures::stream::iter(closed).for_each_concurrent(OPEN_AT_ONCE, |replica| async move {
            // What is wrong is in the replica's condition and in the log.
            let _ = replica.check().await;
        })
    }))
    .await;
}

/// Watches the replicas of the keyset in force, for ever.
pub async fn watch(keyset: Arc<ArcSwap<Keyset>>) {
    let mut failing: HashMap<usize, Backoff> = HashMap::new();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let keyset = keyset.load_full();
        if !failing.is_empty() {
            let present: HashSet<_> = keyset.replicas.values().map(identity).collect();
            failing.retain(|replica, _| present.contains(replica));
        }
        for (provider, replicas) in by_provider(&keyset) {
            let billed = keyset.providers.get(provider).is_some_and(|(c, _)| c.is_billed());
            let prove_every = if billed { PROVE_BILLED_EVERY } else { PROVE_EVERY };
            check_some(&replicas, prove_every, &mut failing);
        }
    }
}

#[derive(Debug)]
struct Backoff {
    next: Instant,
    wait: Duration,
}

/// Of one provider: the failing replicas whose time has come, or else the one that was proven
/// longest ago.
fn check_some(
    replicas: &[Arc<Replica>],
    prove_every: Duration,
    failing: &mut HashMap<usize, Backoff>,
) {
    let now = Instant::now();
    let mut longest_ago: Option<&Arc<Replica>> = None;
    let mut failed_just_now = 0;
    for replica in replicas {
        if replica.is_serving() {
            failing.remove(&identity(replica));
            let ago = replica.proven_ago();
            if ago >= prove_every && longest_ago.is_none_or(|other| other.proven_ago() < ago) {
                longest_ago = Some(replica);
            }
            continue;
        }
        if *replica.condition() == Condition::Opening {
            continue;
        }
        let backoff = match failing.entry(identity(replica)) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                failed_just_now += 1;
                entry.insert(Backoff { next: now, wait: BACKOFF.0 })
            }
        };
        if backoff.next <= now {
            backoff.wait = (backoff.wait * 2).min(BACKOFF.1);
            backoff.next = now + backoff.wait;
            replica.check_in_background();
        }
    }
    if failed_just_now > 0 {
        // What ails one replica may ail its neighbours: some are asked, and more with each that fails.
        let neighbours = replicas.iter().filter(|replica| replica.is_serving());
        neighbours.take(failed_just_now * WITNESSES).for_each(Replica::check_in_background);
    } else if let Some(replica) = longest_ago {
        replica.check_in_background();
    }
}

/// Which replica this is, as long as it lives.
fn identity(replica: &Arc<Replica>) -> usize {
    Arc::as_ptr(replica).addr()
}

fn by_provider(keyset: &Keyset) -> BTreeMap<&str, Vec<Arc<Replica>>> {
    let mut groups: BTreeMap<&str, Vec<Arc<Replica>>> = BTreeMap::new();
    for (specification, replica) in &keyset.replicas {
        groups.entry(&specification.place.provider).or_default().push(Arc::clone(replica));
    }
    groups
}

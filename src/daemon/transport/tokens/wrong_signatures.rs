//! How many wrong signatures one source may have looked at: each costs as much as a right one.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::daemon::transport::caller::{Peer, PeerAddress};
use crate::daemon::transport::source::Source;

/// So many at once, and one more in each pause: some 10 ms of a core in a second.
const AT_ONCE: u64 = 50;
const PAUSE: Duration = Duration::from_millis(100);
/// Sources that fall into the same place share it; which do, a caller cannot know.
const PLACES: usize = 1024;

/// Wrong signatures by source: an identity of a certificate, a uid, or an address.
#[derive(Debug)]
pub(super) struct WrongSignatures {
    hasher: RandomState,
    begun: Instant,
    /// Until when, in milliseconds since `begun`, the pauses of those that were counted last.
    places: Box<[AtomicU64]>,
}

impl Default for WrongSignatures {
    fn default() -> Self {
        let places = (0..PLACES).map(|_| AtomicU64::new(0)).collect();
        Self { hasher: RandomState::new(), begun: Instant::now(), places }
    }
}

impl WrongSignatures {
    /// Whether another signature of this source is looked at.
    pub(super) fn may_come_from(&self, peer: &Peer) -> bool {
        let until = self.place(peer).load(Ordering::Relaxed);
        until <= self.now() + AT_ONCE * PAUSE.as_millis() as u64
    }

    /// Counts a wrong one.
    pub(super) fn count(&self, peer: &Peer) {
        let (now, pause) = (self.now(), PAUSE.as_millis() as u64);
        let counted = |until: u64| Some(until.max(now) + pause);
        let _ = self.place(peer).fetch_update(Ordering::Relaxed, Ordering::Relaxed, counted);
    }

    fn place(&self, peer: &Peer) -> &AtomicU64 {
        let hash = match (peer.identity(), peer.address) {
            (Some(identity), _) => self.hasher.hash_one(identity),
            (None, PeerAddress::Tcp(address)) => self.hasher.hash_one(Source::from(address.ip())),
            (None, PeerAddress::Unix { uid, .. }) => self.hasher.hash_one(uid),
        };
        &self.places[hash as usize % PLACES]
    }

    fn now(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }
}

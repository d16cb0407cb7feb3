//! When a caller called last, and with which certificate: for operators, and for nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;

use crate::daemon::transport::caller::Peer;

/// The last call of one caller since the start of the daemon.
#[derive(Debug, Default)]
pub struct LastSeen {
    /// In seconds since 1970; 0 before the first call.
    at: AtomicU64,
    /// Who it was. One peer for each certificate: a second connection of the same one changes nothing.
    peer: ArcSwapOption<Peer>,
}

impl LastSeen {
    /// Notes a call. Costs a look at the clock and at the certificate's hash.
    pub fn note(&self, peer: &Arc<Peer>) {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = since_1970.unwrap_or_default().as_secs();
        if self.at.load(Ordering::Relaxed) != now {
            self.at.store(now, Ordering::Relaxed);
        }
        let known = self.peer.load();
        let is_known = known.as_ref().is_some_and(|known| {
            Arc::ptr_eq(known, peer) || certificate(known) == certificate(peer)
        });
        if !is_known {
            self.peer.store(Some(Arc::clone(peer)));
        }
    }

    /// When it called last; none if it has not called since the start.
    pub fn at(&self) -> Option<SystemTime> {
        let at = self.at.load(Ordering::Relaxed);
        (at > 0).then(|| SystemTime::UNIX_EPOCH + Duration::from_secs(at))
    }

    /// A peer with the certificate of the last call.
    pub fn peer(&self) -> Option<Arc<Peer>> {
        self.peer.load_full()
    }
}

fn certificate(peer: &Peer) -> Option<&[u8; 32]> {
    peer.certificate.as_ref().map(|certificate| &certificate.sha256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_peer_of_a_certificate_is_kept_and_the_time_is_that_of_the_last_call() {
        let seen = LastSeen::default();
        assert!(seen.at().is_none() && seen.peer().is_none());
        let [first, second] = [7, 8].map(|uid| Arc::new(Peer::with_uid(uid, None)));
        let before = SystemTime::now() - Duration::from_secs(1);
        seen.note(&first);
        seen.note(&second);
        assert!(seen.at().unwrap() >= before);
        assert!(Arc::ptr_eq(&seen.peer().unwrap(), &first), "neither has a certificate");
    }
}

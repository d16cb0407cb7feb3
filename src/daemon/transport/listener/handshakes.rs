//! Permits for concurrent TLS handshakes. A source (IPv4 address or IPv6 /64) gets an eighth of them,
//! at least `LEAST_SHARE`; a handshake slower than `STALL` gives its permit up while others wait.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::sleep;

use super::HandshakeFailure;
use crate::daemon::transport::source::Source;

/// How long a handshake may hold its permit while others wait for one.
const STALL: Duration = Duration::from_secs(1);
/// How often a slow handshake looks whether others wait.
const LOOK: Duration = Duration::from_millis(100);
/// The least number of permits of a source, whose share is an eighth of all.
const LEAST_SHARE: usize = 8;

/// The permits of all handshakes, and the sources that have some or wait for some.
#[derive(Debug)]
pub(super) struct Handshakes {
    stall: Duration,
    permits: Arc<Permits>,
    sources: Mutex<Sources>,
}

#[derive(Debug)]
struct Sources {
    permits: usize,
    by_source: HashMap<Source, Arc<Permits>>,
}

/// A number of permits, and how many handshakes wait for one.
#[derive(Debug)]
struct Permits {
    free: Semaphore,
    waiting: AtomicUsize,
}

impl Handshakes {
    pub(super) fn new(permits: usize) -> Self {
        let sources = Mutex::new(Sources { permits, by_source: HashMap::new() });
        Self { stall: STALL, permits: Arc::new(Permits::new(permits)), sources }
    }

    /// Runs a handshake with a permit. While its source has its whole share, it waits for others of
    /// that source only; a handshake slower than the stall time fails if another one waits.
    pub(super) async fn run<T, E>(
        &self,
        source: Source,
        handshake: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E>
    where
        E: From<HandshakeFailure>,
    {
        let entered = self.enter(source);
        let _of_source = entered.permits.next().await?;
        let _permit = self.permits.next().await?;
        let gives_way = async {
            sleep(self.stall).await;
            while !entered.permits.awaited() && !self.permits.awaited() {
                sleep(LOOK).await;
            }
        };
        tokio::select! {
            biased;
            outcome = handshake => outcome,
            () = gives_way => Err(HandshakeFailure::Stalled.into()),
        }
    }

    /// Changes the number of permits. A source keeps the share that it came with until its last
    /// handshake has ended. To be called inside a Tokio runtime.
    pub(super) fn resize(&self, permits: usize) {
        let before = std::mem::replace(&mut self.lock().permits, permits);
        self.permits.free.add_permits(permits.saturating_sub(before));
        let fewer = before.saturating_sub(permits);
        let taken = fewer - self.permits.free.forget_permits(fewer);
        if taken > 0 {
            let permits = self.permits.clone();
            tokio::spawn(async move {
                if let Ok(permits) = permits.free.acquire_many(taken as u32).await {
                    permits.forget();
                }
            });
        }
    }

    fn enter(&self, source: Source) -> Entered<'_> {
        let mut sources = self.lock();
        let share = (sources.permits / 8).max(LEAST_SHARE);
        let permits =
            sources.by_source.entry(source).or_insert_with(|| Arc::new(Permits::new(share)));
        Entered { handshakes: self, source, permits: permits.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permits {
    fn new(permits: usize) -> Self {
        Self { free: Semaphore::new(permits), waiting: AtomicUsize::new(0) }
    }

    async fn next(&self) -> Result<SemaphorePermit<'_>, HandshakeFailure> {
        if let Ok(permit) = self.free.try_acquire() {
            return Ok(permit);
        }
        let _waiting = Waiting::new(&self.waiting);
        self.free.acquire().await.map_err(|_| HandshakeFailure::Shutdown)
    }

    fn awaited(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}

/// One that waits, counted until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A handshake among those of its source; the last one to leave takes the source along.
struct Entered<'a> {
    handshakes: &'a Handshakes,
    source: Source,
    permits: Arc<Permits>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut sources = self.handshakes.lock();
        // Clones are made under the lock only: the list's own and this one are the last two.
        if Arc::strong_count(&self.permits) == 2 {
            sources.by_source.remove(&self.source);
        }
        // While the lock is held, or two that leave at once would each see the other.
        self.permits = Arc::new(Permits::new(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Outcome = Result<(), HandshakeFailure>;

    fn source(address: &str) -> Source {
        address.parse::<std::net::IpAddr>().unwrap().into()
    }

    #[test]
    fn an_ipv6_network_is_one_source_and_an_ipv4_address_is_one_however_written() {
        assert_eq!(source("2001:db8:1:2::1"), source("2001:db8:1:2:ffff::9"));
        assert_ne!(source("2001:db8:1:2::1"), source("2001:db8:1:3::1"));
        assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
        assert_ne!(source("192.0.2.1"), source("192.0.2.2"));
        assert_eq!(source("::ffff:192.0.2.1").to_string(), "192.0.2.1");
        assert_eq!(source("2001:db8:1:2::1").to_string(), "2001:db8:1:2::/64");
    }

    #[tokio::test]
    async fn a_source_has_an_eighth_of_the_places_and_others_do_not_wait_for_it() {
        let handshakes = Handshakes::new(128);
        let started = AtomicUsize::new(0);
        let stalled = || async {
            started.fetch_add(1, Ordering::Relaxed);
            std::future::pending::<Outcome>().await
        };
        let flood = futures::future::join_all(
            (0..200).map(|_| handshakes.run(source("192.0.2.1"), stalled())),
        );
        let honest = async {
            tokio::task::yield_now().await;
            for _ in 0..100 {
                handshakes.run(source("192.0.2.2"), async { Outcome::Ok(()) }).await.unwrap();
            }
        };
        // None of the flood has given way yet: those that came meanwhile waited for none of it.
        tokio::select! {
            () = honest => assert_eq!(started.load(Ordering::Relaxed), 16),
            _ = flood => panic!("stalled handshakes ended"),
        }
        assert!(handshakes.lock().by_source.is_empty(), "sources leave nothing behind");
        assert_eq!(handshakes.permits.free.available_permits(), 128);
        assert!(!handshakes.permits.awaited());
    }

    #[tokio::test]
    async fn a_slow_handshake_gives_way_only_to_one_that_waits() {
        let stall = Duration::from_millis(5);
        let handshakes = Handshakes { stall, ..Handshakes::new(1) };
        let slow = async {
            sleep(20 * stall).await;
            Outcome::Ok(())
        };
        handshakes.run(source("192.0.2.1"), slow).await.unwrap();

        let stalled = handshakes.run(source("192.0.2.1"), std::future::pending::<Outcome>());
        let honest = handshakes.run(source("192.0.2.2"), async { Outcome::Ok(()) });
        let (stalled, honest) = tokio::join!(stalled, honest);
        assert_eq!((stalled, honest), (Err(HandshakeFailure::Stalled), Ok(())));
    }

    #[tokio::test]
    async fn fewer_places_act_when_those_taken_are_given_back() {
        let handshakes = Handshakes::new(2);
        handshakes.resize(4);
        assert_eq!(handshakes.permits.free.available_permits(), 4);
        let held = handshakes.permits.next().await.unwrap();
        handshakes.resize(1);
        tokio::task::yield_now().await;
        assert_eq!(handshakes.permits.free.available_permits(), 0);
        drop(held);
        assert_eq!(handshakes.permits.free.available_permits(), 1);
    }
}

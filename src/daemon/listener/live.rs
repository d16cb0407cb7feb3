//! The connections that are open, so that each can be told to go, and its peer be looked at again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::stats::{ConnectionStats, Cut};
use crate::daemon::caller::Peer;

/// What a connection is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Finish the calls in flight, take no more.
    Drain,
    /// End now.
    Cut(Cut),
}

/// How one connection is told.
#[derive(Debug, Default)]
pub(super) struct Signal {
    /// 0: nothing; 1: drain; 2 and more: cut, for the reason of that number.
    command: AtomicU8,
    notify: Notify,
}

impl Signal {
    pub(super) fn send(&self, command: Command) {
        let number = match command {
            Command::Drain => 1,
            Command::Cut(reason) => 2 + reason as u8,
        };
        self.command.fetch_max(number, Ordering::Release);
        self.notify.notify_one();
    }

    /// Waits for a command. A later one replaces a milder one that was not yet read.
    pub(super) async fn received(&self) -> Command {
        loop {
            self.notify.notified().await;
            match self.command.load(Ordering::Acquire) {
                0 => {}
                1 => return Command::Drain,
                reason => return Command::Cut(Cut::ALL[usize::from(reason) - 2]),
            }
        }
    }
}

/// All open connections.
#[derive(Debug)]
pub(super) struct Live {
    entries: Mutex<Entries>,
    emptied: Notify,
    stats: Arc<ConnectionStats>,
}

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    draining: bool,
    open: HashMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    signal: Arc<Signal>,
    /// None as long as the handshake goes on.
    peer: Option<Arc<Peer>>,
}

/// One connection's place among the open ones; dropped when it ends.
#[derive(Debug)]
pub(super) struct Place {
    live: Arc<Live>,
    number: u64,
    pub(super) signal: Arc<Signal>,
}

impl Live {
    pub(super) fn new(stats: Arc<ConnectionStats>) -> Arc<Self> {
        Arc::new(Self { entries: Mutex::default(), emptied: Notify::new(), stats })
    }

    /// Takes a place, unless `most` are taken.
    pub(super) fn enter(self: &Arc<Self>, most: usize) -> Option<Place> {
        let mut entries = self.lock();
        if entries.open.len() >= most {
            return None;
        }
        let number = entries.next;
        entries.next += 1;
        let signal = Arc::new(Signal::default());
        if entries.draining {
            signal.send(Command::Drain);
        }
        entries.open.insert(number, Entry { signal: signal.clone(), peer: None });
        self.stats.set_open(entries.open.len());
        Some(Place { live: self.clone(), number, signal })
    }

    /// Every connection that has its peer.
    pub(super) fn identified(&self) -> Vec<(Arc<Signal>, Arc<Peer>)> {
        let entries = self.lock();
        let identified = entries.open.values().filter_map(|entry| {
            entry.peer.as_ref().map(|peer| (entry.signal.clone(), peer.clone()))
        });
        identified.collect()
    }

    /// Tells every connection, and for `Drain` each that comes later as well.
    pub(super) fn send_all(&self, command: Command) {
        let mut entries = self.lock();
        entries.draining |= command == Command::Drain;
        for entry in entries.open.values() {
            entry.signal.send(command);
        }
    }

    /// Waits until no connection is open.
    pub(super) async fn emptied(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.lock().open.is_empty() {
                return;
            }
            emptied.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Says who is at the other end. From here on the connection is looked at when CAs, CRLs or
    /// the denied callers change; what was in force when this returns has to be asked by the
    /// connection itself.
    pub(super) fn identify(&self, peer: Arc<Peer>) {
        if let Some(entry) = self.live.lock().open.get_mut(&self.number) {
            entry.peer = Some(peer);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut entries = self.live.lock();
        entries.open.remove(&self.number);
        self.live.stats.set_open(entries.open.len());
        if entries.open.is_empty() {
            self.live.emptied.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live() -> Arc<Live> {
        Live::new(Arc::default())
    }

    #[test]
    fn a_place_is_free_again_when_its_connection_has_ended() {
        let live = live();
        let first = live.enter(1).unwrap();
        assert!(live.enter(1).is_none());
        assert_eq!(live.stats.open(), 1);
        drop(first);
        assert_eq!(live.stats.open(), 0);
        assert!(live.enter(1).is_some());
    }

    #[tokio::test]
    async fn a_cut_outdoes_a_drain_that_was_not_yet_heard() {
        let live = live();
        let place = live.enter(1).unwrap();
        live.send_all(Command::Drain);
        place.signal.send(Command::Cut(Cut::Denied));
        assert_eq!(place.signal.received().await, Command::Cut(Cut::Denied));
    }

    #[tokio::test]
    async fn who_comes_during_a_drain_is_told_at_once() {
        let live = live();
        live.send_all(Command::Drain);
        let place = live.enter(1).unwrap();
        assert_eq!(place.signal.received().await, Command::Drain);
        assert!(live.identified().is_empty());
        place.identify(Arc::new(Peer::with_uid(1, None)));
        assert_eq!(live.identified().len(), 1);
        drop(place);
        live.emptied().await;
    }
}

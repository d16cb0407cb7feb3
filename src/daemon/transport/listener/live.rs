//! The connections that are open, so that each can be told to go, and its peer be looked at again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::handshakes::Source;
use super::stats::{ConnectionStats, Cut, HandshakeFailure};
use crate::daemon::transport::caller::{Peer, PeerAddress};

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
    /// How many of the open ones each has.
    shares: HashMap<Holder, usize>,
}

#[derive(Debug)]
struct Entry {
    signal: Arc<Signal>,
    /// None as long as the handshake goes on.
    peer: Option<Arc<Peer>>,
    /// Whose share it counts in.
    holder: Option<Holder>,
}

/// Who has connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Holder {
    /// Not authenticated yet: counted under its source address until the handshake ends.
    Unknown(Source),
    /// Certificates without a name are one, for each bundle of CAs.
    Certificate { ca: Arc<str>, identity: Option<Box<str>> },
    /// By uid.
    User(u32),
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// As many as allowed are open.
    All,
    /// As many of this source as one caller may have are in their handshake.
    Share,
}

/// One connection's place among the open ones; dropped when it ends.
#[derive(Debug)]
pub(super) struct Place {
    live: Arc<Live>,
    number: u64,
    pub(super) signal: Arc<Signal>,
}

impl Full {
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::All => "as many as allowed are open",
            Self::Share => "as many handshakes as allowed to one address go on",
        }
    }
}

impl Live {
    pub(super) fn new(stats: Arc<ConnectionStats>) -> Arc<Self> {
        Arc::new(Self { entries: Mutex::default(), emptied: Notify::new(), stats })
    }

    /// Takes a place, unless `most` are taken, or `share` by handshakes of this source.
    pub(super) fn enter(
        self: &Arc<Self>,
        most: usize,
        share: usize,
        source: Option<Source>,
    ) -> Result<Place, Full> {
        let mut entries = self.lock();
        if entries.open.len() >= most {
            return Err(Full::All);
        }
        let holder = source.map(Holder::Unknown);
        if let Some(holder) = &holder
            && !entries.take(holder, share)
        {
            return Err(Full::Share);
        }
        let number = entries.next;
        entries.next += 1;
        let signal = Arc::new(Signal::default());
        if entries.draining {
            signal.send(Command::Drain);
        }
        entries.open.insert(number, Entry { signal: signal.clone(), peer: None, holder });
        self.stats.set_open(entries.open.len());
        Ok(Place { live: self.clone(), number, signal })
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
    /// the denied callers change. Those in force now are asked at each call.
    ///
    /// # Errors
    /// The peer has `share` connections without this one, which has to end.
    pub(super) fn identify(&self, peer: Arc<Peer>, share: usize) -> Result<(), HandshakeFailure> {
        let holder = Holder::of(&peer);
        let mut entries = self.live.lock();
        let before = entries.open.get_mut(&self.number).and_then(|entry| entry.holder.take());
        entries.give_back(before);
        if !entries.take(&holder, share) {
            return Err(HandshakeFailure::TooMany);
        }
        if let Some(entry) = entries.open.get_mut(&self.number) {
            (entry.peer, entry.holder) = (Some(peer), Some(holder));
        }
        Ok(())
    }
}

impl Entries {
    /// Counts one more, unless there are `share`.
    fn take(&mut self, holder: &Holder, share: usize) -> bool {
        let count = self.shares.get(holder).copied().unwrap_or(0);
        if count < share {
            self.shares.insert(holder.clone(), count + 1);
        }
        count < share
    }

    fn give_back(&mut self, holder: Option<Holder>) {
        if let Some(holder) = holder
            && let Some(count) = self.shares.get_mut(&holder)
        {
            *count -= 1;
            if *count == 0 {
                self.shares.remove(&holder);
            }
        }
    }
}

impl Holder {
    fn of(peer: &Peer) -> Self {
        match (&peer.certificate, peer.address) {
            (Some(certificate), _) => Self::Certificate {
                ca: certificate.ca.clone(),
                identity: peer.identity().map(Into::into),
            },
            (None, PeerAddress::Unix { uid, .. }) => Self::User(uid),
            (None, PeerAddress::Tcp(address)) => Self::Unknown(address.ip().into()),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut entries = self.live.lock();
        let ended = entries.open.remove(&self.number);
        entries.give_back(ended.and_then(|entry| entry.holder));
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
        let first = live.enter(1, 1, None).unwrap();
        assert_eq!(live.enter(1, 1, None).unwrap_err(), Full::All);
        assert_eq!(live.stats.open(), 1);
        drop(first);
        assert_eq!(live.stats.open(), 0);
        assert!(live.enter(1, 1, None).is_ok());
    }

    #[test]
    fn each_has_its_share_of_the_open_connections_and_no_more() {
        let live = live();
        let enter = || live.enter(10, 2, None).unwrap();
        let user = |uid| Arc::new(Peer::with_uid(uid, None));
        let (first, second, third) = (enter(), enter(), enter());
        first.identify(user(1), 2).unwrap();
        second.identify(user(1), 2).unwrap();
        second.identify(user(1), 2).unwrap();
        assert_eq!(third.identify(user(1), 2), Err(HandshakeFailure::TooMany));
        assert_eq!(live.identified().len(), 2);
        third.identify(user(2), 2).unwrap();
        drop(first);
        enter().identify(user(1), 2).unwrap();
        drop((second, third));
        assert!(live.lock().shares.is_empty());
    }

    #[test]
    fn who_does_not_end_his_handshakes_takes_no_more_than_one_caller_may() {
        let live = live();
        let source = |last| Some(std::net::IpAddr::from([192, 0, 2, last]).into());
        let first = live.enter(10, 2, source(1)).unwrap();
        let _second = live.enter(10, 2, source(1)).unwrap();
        assert_eq!(live.enter(10, 2, source(1)).unwrap_err(), Full::Share);
        live.enter(10, 2, source(2)).unwrap();
        // Known by now, it counts among its caller's.
        first.identify(Arc::new(Peer::with_uid(1, None)), 2).unwrap();
        live.enter(10, 2, source(1)).unwrap();
    }

    #[tokio::test]
    async fn a_cut_outdoes_a_drain_that_was_not_yet_heard() {
        let live = live();
        let place = live.enter(1, 1, None).unwrap();
        live.send_all(Command::Drain);
        place.signal.send(Command::Cut(Cut::Denied));
        assert_eq!(place.signal.received().await, Command::Cut(Cut::Denied));
    }

    #[tokio::test]
    async fn who_comes_during_a_drain_is_told_at_once() {
        let live = live();
        live.send_all(Command::Drain);
        let place = live.enter(1, 1, None).unwrap();
        assert_eq!(place.signal.received().await, Command::Drain);
        assert!(live.identified().is_empty());
        place.identify(Arc::new(Peer::with_uid(1, None)), 1).unwrap();
        assert_eq!(live.identified().len(), 1);
        drop(place);
        live.emptied().await;
    }
}

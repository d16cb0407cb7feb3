//! The connections that are open, so that each can be told to go, and its peer be looked at again.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::calls::Calls;
use super::handshakes::Source;
use super::stats::{ConnectionStats, Cut, HandshakeFailure};
use crate::daemon::transport::caller::{Peer, PeerAddress};

/// Connections that were cut to make room and still hold their descriptor, at most.
const MOST_LEAVING: usize = 64;
/// Looking for an idle connection among all takes time that nobody may cause at will.
const IDLE_CUT_INTERVAL: Duration = Duration::from_millis(10);

/// What a connection is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Finish the calls in flight, take no more.
    Drain,
    /// End now.
    Cut(Cut),
}

/// What one connection and the list of all tell each other.
#[derive(Debug, Default)]
pub(super) struct Signal {
    /// 0: nothing; 1: drain; 2 and more: cut, for the reason of that number.
    command: AtomicU8,
    notify: Notify,
    /// The peer has sent its first byte.
    spoke: AtomicBool,
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
    /// What each has of the open ones.
    shares: HashMap<Holder, Share>,
    /// Connections of unknown peers.
    unknown: usize,
    /// The same in their order, with some that have ended or are known by now.
    strangers: VecDeque<u64>,
    /// Those that have sent nothing, in their order, with some that no longer are such.
    silent: VecDeque<u64>,
    /// Connections that were cut to make room and still have their descriptor.
    leaving: usize,
    last_idle_cut: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    signal: Arc<Signal>,
    calls: Arc<Calls>,
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

/// What one holder has.
#[derive(Debug, Default)]
struct Share {
    connections: usize,
    /// Of an unknown holder: as [`Entries::silent`].
    silent: VecDeque<u64>,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// As many as allowed are open.
    All,
    /// As many of this source as one caller may have are in their handshake.
    Share,
    /// The last file descriptors are not for connections.
    Descriptors,
}

/// One connection's place among the open ones; free again when it is dropped.
#[derive(Debug)]
pub struct Place {
    live: Arc<Live>,
    number: u64,
    pub(super) signal: Arc<Signal>,
    pub(super) calls: Arc<Calls>,
}

impl Full {
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::All => "as many as allowed are open",
            Self::Share => "as many handshakes as allowed to one address go on",
            Self::Descriptors => "hardly any file descriptors are left",
        }
    }
}

impl Live {
    pub(super) fn new(stats: Arc<ConnectionStats>) -> Arc<Self> {
        Arc::new(Self { entries: Mutex::default(), emptied: Notify::new(), stats })
    }

    /// Takes a place. Where `most` are taken, an older connection makes room if one can, see
    /// [`Live::make_room`]; where handshakes of this source have `share`, its oldest connection
    /// that has not sent anything yet is cut.
    pub(super) fn enter(
        self: &Arc<Self>,
        most: usize,
        share: usize,
        source: Option<Source>,
    ) -> Result<Place, Full> {
        let mut entries = self.lock();
        if entries.open.len() >= most && !entries.make_room() {
            return Err(Full::All);
        }
        let number = entries.next;
        let holder = source.map(Holder::Unknown);
        if let Some(holder) = &holder {
            let taken = entries.take(holder, share)
                || (entries.cut_silent_of(holder) && entries.take(holder, share));
            if !taken {
                return Err(Full::Share);
            }
            entries.note_silent(holder, number);
        }
        entries.next += 1;
        let (signal, calls) = (Arc::<Signal>::default(), Arc::<Calls>::default());
        if entries.draining {
            signal.send(Command::Drain);
        }
        let entry = Entry { signal: signal.clone(), calls: calls.clone(), peer: None, holder };
        entries.open.insert(number, entry);
        self.stats.set_open(entries.open.len());
        Ok(Place { live: self.clone(), number, signal, calls })
    }

    /// Cuts one connection, so that its place and its descriptor are free in a moment: the oldest
    /// one without a call in flight of the peer that has most. Peers that are not known yet count as
    /// one there, and lose the oldest connection that has not sent anything yet, or else the oldest.
    /// Whether one was found.
    pub(super) fn make_room(&self) -> bool {
        self.lock().make_room()
    }

    /// Whether connections that were cut to make room still hold their descriptors.
    pub(super) fn is_making_room(&self) -> bool {
        self.lock().leaving > 0
    }

    /// Every connection that has its peer.
    pub(super) fn identified(&self) -> Vec<(Arc<Signal>, Arc<Peer>)> {
        let entries = self.lock();
        let identified = entries.open.values().filter_map(|entry| {
            entry.peer.as_ref().map(|peer| (entry.signal.clone(), peer.clone()))
        });
        identified.collect()
    }

    /// Cuts each connection whose peer has left an answer unread for longer than it may.
    pub(super) fn cut_overdue(&self) {
        let now = tokio::time::Instant::now();
        for entry in self.lock().open.values().filter(|entry| entry.calls.is_overdue(now)) {
            entry.signal.send(Command::Cut(Cut::Unread));
        }
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
    /// Waits until the peer has sent its first byte. Until then a connection costs no more than its
    /// socket, and is the first to go.
    pub async fn first_byte(&self, stream: &TcpStream) -> Result<(), HandshakeFailure> {
        match stream.peek(&mut [0]).await {
            Ok(1..) => self.signal.spoke.store(true, Ordering::Relaxed),
            _ => return Err(HandshakeFailure::PeerLeft),
        }
        Ok(())
    }

    /// Waits until the connection has to go, because others need its place.
    pub async fn crowded_out(&self) {
        while !matches!(self.signal.received().await, Command::Cut(_)) {}
    }

    /// Says who is at the other end. From here on the connection is looked at when CAs, CRLs or
    /// the denied callers change. Those in force now are asked at each call.
    ///
    /// # Errors
    /// The peer has `share` connections without this one, which has to end.
    pub(super) fn identify(&self, peer: Arc<Peer>, share: usize) -> Result<(), HandshakeFailure> {
        let holder = Holder::of(&peer);
        let mut entries = self.live.lock();
        let Some(entry) = entries.open.get_mut(&self.number) else {
            return Err(HandshakeFailure::Crowded);
        };
        let before = entry.holder.take();
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
        let count = self.shares.get(holder).map_or(0, |share| share.connections);
        if count < share {
            self.shares.entry(holder.clone()).or_default().connections += 1;
            self.unknown += usize::from(holder.is_unknown());
        }
        count < share
    }

    fn give_back(&mut self, holder: Option<Holder>) {
        let Some(holder) = holder else { return };
        self.unknown -= usize::from(holder.is_unknown());
        if let Some(share) = self.shares.get_mut(&holder) {
            share.connections -= 1;
            if share.connections == 0 {
                self.shares.remove(&holder);
            }
        }
    }

    /// Remembers a connection that has not sent anything, and forgets older ones that no longer
    /// are such.
    fn note_silent(&mut self, holder: &Holder, number: u64) {
        let open = &self.open;
        let share = self.shares.get_mut(holder).map(|share| &mut share.silent);
        for silent in share.into_iter().chain([&mut self.silent]) {
            while silent.front().is_some_and(|oldest| !is_silent(open, *oldest)) {
                silent.pop_front();
            }
            silent.push_back(number);
        }
        while self.strangers.front().is_some_and(|oldest| !is_unknown(open, *oldest)) {
            self.strangers.pop_front();
        }
        self.strangers.push_back(number);
    }

    fn make_room(&mut self) -> bool {
        if self.leaving >= MOST_LEAVING {
            return false;
        }
        let of_known = self.shares.iter().filter(|(holder, _)| !holder.is_unknown());
        let most = of_known.max_by_key(|(_, share)| share.connections);
        match most.map(|(holder, share)| (holder.clone(), share.connections)) {
            // The only connection of a caller stays.
            Some((holder, connections)) if connections > self.unknown.max(1) => {
                self.cut_idle_of(&holder)
            }
            _ => {
                let silent = pop(&mut self.silent, |number| is_silent(&self.open, number));
                let oldest = silent
                    .or_else(|| pop(&mut self.strangers, |number| is_unknown(&self.open, number)));
                self.cut(oldest)
            }
        }
    }

    fn cut_silent_of(&mut self, holder: &Holder) -> bool {
        if self.leaving >= MOST_LEAVING {
            return false;
        }
        let share = self.shares.get_mut(holder);
        let oldest =
            share.and_then(|share| pop(&mut share.silent, |number| is_silent(&self.open, number)));
        self.cut(oldest)
    }

    fn cut_idle_of(&mut self, holder: &Holder) -> bool {
        let now = Instant::now();
        if self.last_idle_cut.is_some_and(|last| now.duration_since(last) < IDLE_CUT_INTERVAL) {
            return false;
        }
        self.last_idle_cut = Some(now);
        let of_holder = |entry: &Entry| entry.holder.as_ref() == Some(holder);
        let idle = self.open.iter().filter(|(_, entry)| of_holder(entry) && entry.calls.is_idle());
        let oldest = idle.map(|(number, _)| *number).min();
        self.cut(oldest)
    }

    /// Cuts this one. Its place is free at once, its descriptor when its task has ended.
    fn cut(&mut self, number: Option<u64>) -> bool {
        let Some(entry) = number.and_then(|number| self.open.remove(&number)) else { return false };
        self.leaving += 1;
        self.give_back(entry.holder);
        entry.signal.send(Command::Cut(Cut::Crowded));
        true
    }
}

fn is_unknown(open: &HashMap<u64, Entry>, number: u64) -> bool {
    open.get(&number).is_some_and(|entry| entry.peer.is_none())
}

fn is_silent(open: &HashMap<u64, Entry>, number: u64) -> bool {
    is_unknown(open, number)
        && open.get(&number).is_some_and(|entry| !entry.signal.spoke.load(Ordering::Relaxed))
}

fn pop(queue: &mut VecDeque<u64>, is_one: impl Fn(u64) -> bool) -> Option<u64> {
    std::iter::from_fn(|| queue.pop_front()).find(|number| is_one(*number))
}

impl Holder {
    fn of(peer: &Peer) -> Self {
        match (&peer.certificate, peer.address) {
            (Some(certificate), _) => Self::Certificate {
                ca: certificate.anchor.bundle.clone(),
                identity: peer.identity().map(Into::into),
            },
            (None, PeerAddress::Unix { uid, .. }) => Self::User(uid),
            (None, PeerAddress::Tcp(address)) => Self::Unknown(address.ip().into()),
        }
    }

    fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut entries = self.live.lock();
        match entries.open.remove(&self.number) {
            Some(ended) => entries.give_back(ended.holder),
            None => entries.leaving -= 1,
        }
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
        let second = live.enter(10, 2, source(1)).unwrap();
        for place in [&first, &second] {
            place.signal.spoke.store(true, Ordering::Relaxed);
        }
        assert_eq!(live.enter(10, 2, source(1)).unwrap_err(), Full::Share);
        live.enter(10, 2, source(2)).unwrap();
        // Known by now, it counts among its caller's.
        first.identify(Arc::new(Peer::with_uid(1, None)), 2).unwrap();
        live.enter(10, 2, source(1)).unwrap();
    }

    #[tokio::test]
    async fn who_has_sent_nothing_makes_room_for_others_of_its_source_and_in_all() {
        let live = live();
        let source = |last| Some(std::net::IpAddr::from([192, 0, 2, last]).into());
        let first = live.enter(3, 2, source(1)).unwrap();
        let second = live.enter(3, 2, source(1)).unwrap();
        first.signal.spoke.store(true, Ordering::Relaxed);
        let third = live.enter(3, 2, source(1)).unwrap();
        second.crowded_out().await;
        assert!(live.is_making_room());
        drop(second);
        assert!(!live.is_making_room());
        // Of all: the oldest silent one, then the oldest that is not known yet.
        let fourth = live.enter(3, 2, source(2)).unwrap();
        let fifth = live.enter(3, 2, source(2)).unwrap();
        third.crowded_out().await;
        for place in [&fourth, &fifth] {
            place.signal.spoke.store(true, Ordering::Relaxed);
        }
        let sixth = live.enter(3, 2, source(3)).unwrap();
        first.crowded_out().await;
        assert_eq!(live.stats.open(), 3);
        drop((first, third, fourth, fifth, sixth));
        assert_eq!(live.stats.open(), 0);
        let entries = live.lock();
        assert!(entries.shares.is_empty() && entries.unknown == 0 && entries.leaving == 0);
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

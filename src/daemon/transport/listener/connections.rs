//! The connections that are open, so that each can be told to go, and its peer be looked at again.

mod state;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::TcpStream;
use tokio::sync::Notify;

use self::state::{OpenConnection, Owner, State};
use super::calls::Calls;
use super::signal::{Command, Signal};
use super::stats::{ConnectionStats, Cut, HandshakeFailure};
use crate::daemon::transport::caller::Peer;
use crate::daemon::transport::source::Source;

/// All open connections.
#[derive(Debug)]
pub(super) struct Connections {
    state: Mutex<State>,
    emptied: Notify,
    stats: Arc<ConnectionStats>,
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// As many as allowed are open.
    All,
    /// As many of this source as one caller may have are in their handshake.
    Share,
    /// The last file descriptors are not for connections.
    Descriptors,
}

/// One connection among the open ones; it no longer counts when this is dropped.
#[derive(Debug)]
pub struct Registration {
    connections: Arc<Connections>,
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

impl Connections {
    pub(super) fn new(stats: Arc<ConnectionStats>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), emptied: Notify::new(), stats })
    }

    /// Registers a connection. Where `most` are open, an older connection makes room if one can, see
    /// [`Connections::make_room`]; where handshakes of this source have `share`, its oldest connection
    /// that has not sent anything yet is cut.
    pub(super) fn enter(
        self: &Arc<Self>,
        most: usize,
        share: usize,
        source: Option<Source>,
    ) -> Result<Registration, Full> {
        let mut state = self.lock();
        if state.open.len() >= most && !state.make_room() {
            return Err(Full::All);
        }
        let number = state.next;
        let owner = source.map(Owner::Unidentified);
        if let Some(owner) = &owner {
            let taken = state.take(owner, share)
                || (state.cut_silent_of(owner) && state.take(owner, share));
            if !taken {
                return Err(Full::Share);
            }
            state.note_silent(owner, number);
        }
        state.next += 1;
        let (signal, calls) = (Arc::<Signal>::default(), Arc::<Calls>::default());
        if state.draining {
            signal.send(Command::Drain);
        }
        let connection =
            OpenConnection { signal: signal.clone(), calls: calls.clone(), peer: None, owner };
        state.open.insert(number, connection);
        self.stats.set_open(state.open.len());
        Ok(Registration { connections: self.clone(), number, signal, calls })
    }

    /// Cuts one connection, so that its permit and its descriptor are free in a moment: the oldest
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
        let state = self.lock();
        let identified = state.open.values().filter_map(|connection| {
            connection.peer.as_ref().map(|peer| (connection.signal.clone(), peer.clone()))
        });
        identified.collect()
    }

    /// Cuts each connection whose peer has left an answer unread for longer than it may.
    pub(super) fn cut_overdue(&self) {
        let now = tokio::time::Instant::now();
        for connection in
            self.lock().open.values().filter(|connection| connection.calls.is_overdue(now))
        {
            connection.signal.send(Command::Cut(Cut::Unread));
        }
    }

    /// Tells every connection, and for `Drain` each that comes later as well.
    pub(super) fn send_all(&self, command: Command) {
        let mut state = self.lock();
        state.draining |= command == Command::Drain;
        for connection in state.open.values() {
            connection.signal.send(command);
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

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registration {
    /// Waits until the peer has sent its first byte. Until then a connection costs no more than its
    /// socket, and is the first to go.
    pub async fn first_byte(&self, stream: &TcpStream) -> Result<(), HandshakeFailure> {
        match stream.peek(&mut [0]).await {
            Ok(1..) => self.signal.spoke.store(true, Ordering::Relaxed),
            _ => return Err(HandshakeFailure::PeerLeft),
        }
        Ok(())
    }

    /// Waits until the connection has to go, to make room for others.
    pub async fn crowded_out(&self) {
        while !matches!(self.signal.received().await, Command::Cut(_)) {}
    }

    /// Says who is at the other end. From here on the connection is looked at when CAs, CRLs or
    /// the denied callers change. Those in force now are asked at each call.
    ///
    /// # Errors
    /// The peer has `share` connections without this one, which has to end.
    pub(super) fn identify(&self, peer: Arc<Peer>, share: usize) -> Result<(), HandshakeFailure> {
        let owner = Owner::of(&peer);
        let mut state = self.connections.lock();
        let Some(connection) = state.open.get_mut(&self.number) else {
            return Err(HandshakeFailure::Crowded);
        };
        let before = connection.owner.take();
        state.give_back(before);
        if !state.take(&owner, share) {
            return Err(HandshakeFailure::TooMany);
        }
        if let Some(connection) = state.open.get_mut(&self.number) {
            (connection.peer, connection.owner) = (Some(peer), Some(owner));
        }
        Ok(())
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut state = self.connections.lock();
        match state.open.remove(&self.number) {
            Some(ended) => state.give_back(ended.owner),
            None => state.leaving -= 1,
        }
        self.connections.stats.set_open(state.open.len());
        if state.open.is_empty() {
            self.connections.emptied.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections() -> Arc<Connections> {
        Connections::new(Arc::default())
    }

    #[test]
    fn a_place_is_free_again_when_its_connection_has_ended() {
        let connections = connections();
        let first = connections.enter(1, 1, None).unwrap();
        assert_eq!(connections.enter(1, 1, None).unwrap_err(), Full::All);
        assert_eq!(connections.stats.open(), 1);
        drop(first);
        assert_eq!(connections.stats.open(), 0);
        assert!(connections.enter(1, 1, None).is_ok());
    }

    #[test]
    fn each_has_its_share_of_the_open_connections_and_no_more() {
        let connections = connections();
        let enter = || connections.enter(10, 2, None).unwrap();
        let user = |uid| Arc::new(Peer::with_uid(uid, None));
        let (first, second, third) = (enter(), enter(), enter());
        first.identify(user(1), 2).unwrap();
        second.identify(user(1), 2).unwrap();
        second.identify(user(1), 2).unwrap();
        assert_eq!(third.identify(user(1), 2), Err(HandshakeFailure::TooMany));
        assert_eq!(connections.identified().len(), 2);
        third.identify(user(2), 2).unwrap();
        drop(first);
        enter().identify(user(1), 2).unwrap();
        drop((second, third));
        assert!(connections.lock().shares.is_empty());
    }

    #[test]
    fn who_does_not_end_his_handshakes_takes_no_more_than_one_caller_may() {
        let connections = connections();
        let source = |last| Some(std::net::IpAddr::from([192, 0, 2, last]).into());
        let first = connections.enter(10, 2, source(1)).unwrap();
        let second = connections.enter(10, 2, source(1)).unwrap();
        for registration in [&first, &second] {
            registration.signal.spoke.store(true, Ordering::Relaxed);
        }
        assert_eq!(connections.enter(10, 2, source(1)).unwrap_err(), Full::Share);
        connections.enter(10, 2, source(2)).unwrap();
        // Known by now, it counts among its caller's.
        first.identify(Arc::new(Peer::with_uid(1, None)), 2).unwrap();
        connections.enter(10, 2, source(1)).unwrap();
    }

    #[tokio::test]
    async fn who_has_sent_nothing_makes_room_for_others_of_its_source_and_in_all() {
        let connections = connections();
        let source = |last| Some(std::net::IpAddr::from([192, 0, 2, last]).into());
        let first = connections.enter(3, 2, source(1)).unwrap();
        let second = connections.enter(3, 2, source(1)).unwrap();
        first.signal.spoke.store(true, Ordering::Relaxed);
        let third = connections.enter(3, 2, source(1)).unwrap();
        second.crowded_out().await;
        assert!(connections.is_making_room());
        drop(second);
        assert!(!connections.is_making_room());
        // Of all: the oldest silent one, then the oldest that is not known yet.
        let fourth = connections.enter(3, 2, source(2)).unwrap();
        let fifth = connections.enter(3, 2, source(2)).unwrap();
        third.crowded_out().await;
        for registration in [&fourth, &fifth] {
            registration.signal.spoke.store(true, Ordering::Relaxed);
        }
        let sixth = connections.enter(3, 2, source(3)).unwrap();
        first.crowded_out().await;
        assert_eq!(connections.stats.open(), 3);
        drop((first, third, fourth, fifth, sixth));
        assert_eq!(connections.stats.open(), 0);
        let state = connections.lock();
        assert!(state.shares.is_empty() && state.unidentified_count == 0 && state.leaving == 0);
    }

    #[tokio::test]
    async fn a_cut_outdoes_a_drain_that_was_not_yet_heard() {
        let connections = connections();
        let registration = connections.enter(1, 1, None).unwrap();
        connections.send_all(Command::Drain);
        registration.signal.send(Command::Cut(Cut::Denied));
        assert_eq!(registration.signal.received().await, Command::Cut(Cut::Denied));
    }

    #[tokio::test]
    async fn who_comes_during_a_drain_is_told_at_once() {
        let connections = connections();
        connections.send_all(Command::Drain);
        let registration = connections.enter(1, 1, None).unwrap();
        assert_eq!(registration.signal.received().await, Command::Drain);
        assert!(connections.identified().is_empty());
        registration.identify(Arc::new(Peer::with_uid(1, None)), 1).unwrap();
        assert_eq!(connections.identified().len(), 1);
        drop(registration);
        connections.emptied().await;
    }
}

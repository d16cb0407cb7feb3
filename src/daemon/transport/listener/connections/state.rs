//! Which connections are open, whose share each counts in, and which one is cut to make room.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::super::calls::Calls;
use super::super::signal::{Command, Signal};
use super::super::stats::Cut;
use crate::daemon::transport::caller::{Peer, PeerAddress};
use crate::daemon::transport::source::Source;

/// Connections that were cut to make room and still hold their descriptor, at most.
const MOST_LEAVING: usize = 64;
/// An idle connection is looked for among all once in this time at most: peers can cause it.
const IDLE_CUT_INTERVAL: Duration = Duration::from_millis(10);

/// The open connections and the shares of their owners.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) next: u64,
    pub(super) draining: bool,
    pub(super) open: HashMap<u64, OpenConnection>,
    /// The share of each owner in the open connections.
    pub(super) shares: HashMap<Owner, Share>,
    /// How many connections have a peer that is not identified yet.
    pub(super) unidentified_count: usize,
    /// Connections of unidentified peers, oldest first; some have ended or are identified by now.
    unidentified: VecDeque<u64>,
    /// Connections that have sent nothing, oldest first; some have ended or have sent something.
    silent: VecDeque<u64>,
    /// Connections that were cut to make room and still have their descriptor.
    pub(super) leaving: usize,
    last_idle_cut: Option<Instant>,
}

/// One open connection.
#[derive(Debug)]
pub(super) struct OpenConnection {
    pub(super) signal: Arc<Signal>,
    pub(super) calls: Arc<Calls>,
    /// None as long as the handshake goes on.
    pub(super) peer: Option<Arc<Peer>>,
    /// None for a connection over a Unix socket before its peer is known.
    pub(super) owner: Option<Owner>,
}

/// Whose share a connection counts in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Owner {
    /// Not authenticated yet: counted under its source address until the handshake ends.
    Unidentified(Source),
    /// Certificates without a name are one, for each bundle of CAs.
    Certificate { ca: Arc<str>, identity: Option<Box<str>> },
    /// By uid.
    User(u32),
    /// Of a listener that needs no certificate: by address, after the handshake too.
    Address(Source),
}

/// The open connections of one owner.
#[derive(Debug, Default)]
pub(super) struct Share {
    connections: usize,
    /// Of an unidentified owner: as [`State::silent`].
    silent: VecDeque<u64>,
}

impl State {
    /// Counts one more, unless there are `share`.
    pub(super) fn take(&mut self, owner: &Owner, share: usize) -> bool {
        let count = self.shares.get(owner).map_or(0, |share| share.connections);
        if count < share {
            self.shares.entry(owner.clone()).or_default().connections += 1;
            self.unidentified_count += usize::from(owner.is_unidentified());
        }
        count < share
    }

    pub(super) fn give_back(&mut self, owner: Option<Owner>) {
        let Some(owner) = owner else { return };
        self.unidentified_count -= usize::from(owner.is_unidentified());
        if let Some(share) = self.shares.get_mut(&owner) {
            share.connections -= 1;
            if share.connections == 0 {
                self.shares.remove(&owner);
            }
        }
    }

    /// Remembers a connection that has not sent anything, and forgets older ones that no longer
    /// are such.
    pub(super) fn note_silent(&mut self, owner: &Owner, number: u64) {
        let open = &self.open;
        let share = self.shares.get_mut(owner).map(|share| &mut share.silent);
        for silent in share.into_iter().chain([&mut self.silent]) {
            while silent.front().is_some_and(|oldest| !is_silent(open, *oldest)) {
                silent.pop_front();
            }
            silent.push_back(number);
        }
        while self.unidentified.front().is_some_and(|oldest| !is_unidentified(open, *oldest)) {
            self.unidentified.pop_front();
        }
        self.unidentified.push_back(number);
    }

    pub(super) fn make_room(&mut self) -> bool {
        if self.leaving >= MOST_LEAVING {
            return false;
        }
        let of_known = self.shares.iter().filter(|(owner, _)| !owner.is_unidentified());
        let most = of_known.max_by_key(|(_, share)| share.connections);
        match most.map(|(owner, share)| (owner.clone(), share.connections)) {
            // The only connection of a caller stays.
            Some((owner, connections)) if connections > self.unidentified_count.max(1) => {
                self.cut_idle_of(&owner)
            }
            _ => {
                let silent = pop(&mut self.silent, |number| is_silent(&self.open, number));
                let oldest = silent.or_else(|| {
                    pop(&mut self.unidentified, |number| is_unidentified(&self.open, number))
                });
                self.cut(oldest)
            }
        }
    }

    pub(super) fn cut_silent_of(&mut self, owner: &Owner) -> bool {
        if self.leaving >= MOST_LEAVING {
            return false;
        }
        let share = self.shares.get_mut(owner);
        let oldest =
            share.and_then(|share| pop(&mut share.silent, |number| is_silent(&self.open, number)));
        self.cut(oldest)
    }

    fn cut_idle_of(&mut self, owner: &Owner) -> bool {
        let now = Instant::now();
        if self.last_idle_cut.is_some_and(|last| now.duration_since(last) < IDLE_CUT_INTERVAL) {
            return false;
        }
        self.last_idle_cut = Some(now);
        let of_owner = |connection: &OpenConnection| connection.owner.as_ref() == Some(owner);
        let idle = self
            .open
            .iter()
            .filter(|(_, connection)| of_owner(connection) && connection.calls.is_idle());
        let oldest = idle.map(|(number, _)| *number).min();
        self.cut(oldest)
    }

    /// Cuts a connection. It no longer counts; its descriptor is free when its task has ended.
    fn cut(&mut self, number: Option<u64>) -> bool {
        let Some(connection) = number.and_then(|number| self.open.remove(&number)) else {
            return false;
        };
        self.leaving += 1;
        self.give_back(connection.owner);
        connection.signal.send(Command::Cut(Cut::Crowded));
        true
    }
}

fn is_unidentified(open: &HashMap<u64, OpenConnection>, number: u64) -> bool {
    open.get(&number).is_some_and(|connection| connection.peer.is_none())
}

fn is_silent(open: &HashMap<u64, OpenConnection>, number: u64) -> bool {
    is_unidentified(open, number)
        && open
            .get(&number)
            .is_some_and(|connection| !connection.signal.spoke.load(Ordering::Relaxed))
}

fn pop(queue: &mut VecDeque<u64>, is_one: impl Fn(u64) -> bool) -> Option<u64> {
    std::iter::from_fn(|| queue.pop_front()).find(|number| is_one(*number))
}

impl Owner {
    pub(super) fn of(peer: &Peer) -> Self {
        match (&peer.certificate, peer.address) {
            (Some(certificate), _) => Self::Certificate {
                ca: certificate.anchor.bundle.clone(),
                identity: peer.identity().map(Into::into),
            },
            (None, PeerAddress::Unix { uid, .. }) => Self::User(uid),
            (None, PeerAddress::Tcp(address)) => Self::Address(address.ip().into()),
        }
    }

    pub(super) fn is_unidentified(&self) -> bool {
        matches!(self, Self::Unidentified(_))
    }
}

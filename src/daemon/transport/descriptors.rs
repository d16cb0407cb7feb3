//! File descriptors: how many this process may have, and that connections never take the last ones.
//!
//! Each connection is a descriptor, and so is each file that is read: the list of denied callers,
//! certificates, CRLs, PINs, the audit log when it is opened anew, the state directory. The system
//! gives out the lowest free number, so the number of a new connection tells how many are left.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that connections leave for files.
const SPARE: u64 = 16;
/// What the daemon itself needs: standard streams, listeners, runtime, audit log, locks.
const OWN: u64 = 48;
/// What each provider needs: sockets of a service, pipes of a child.
const OF_A_PROVIDER: u64 = 16;
/// Fewer connections than this are no service.
const FEWEST_CONNECTIONS: u64 = 16;

/// How many descriptors this process may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    limit: u64,
    others: u64,
}

/// What a new connection means for the descriptors that are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// There are enough.
    Enough,
    /// Another connection should go.
    Scarce,
    /// This one has to go.
    None,
}

impl Descriptors {
    /// Raises the soft limit as far as `connections` and `providers` need it and the hard limit
    /// lets it. Not further: there is software that walks through all numbers up to the limit.
    ///
    /// # Errors
    /// The limit leaves no room for a service; the text says which limit would.
    pub fn raise(connections: usize, providers: usize) -> io::Result<Self> {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let (soft, hard) = (current.unwrap_or(u64::MAX), maximum.unwrap_or(u64::MAX));
        let own = OWN + SPARE + OF_A_PROVIDER * providers as u64;
        let wanted = own + OPERATIONS.1 + connections as u64;
        let mut limit = soft;
        if soft < wanted.min(hard) {
            let raised = Rlimit { current: Some(wanted.min(hard)), maximum };
            match setrlimit(Resource::Nofile, raised) {
                Ok(()) => limit = wanted.min(hard),
                Err(error) => {
                    tracing::warn!(%error, limit = soft, "RLIMIT_NOFILE could not be raised");
                }
            }
        }
        let found = Self::of(limit, own);
        if found.for_connections() < FEWEST_CONNECTIONS as usize {
            let needed = own + OPERATIONS.0 + FEWEST_CONNECTIONS;
            return Err(io::Error::other(format!(
                "this process may open {limit} file descriptors, which leaves none for connections; \
                 it needs {needed} at least: raise LimitNOFILE= in its unit, or `ulimit -n`"
            )));
        }
        Ok(found)
    }

    fn of(limit: u64, own: u64) -> Self {
        let others = own + operations(limit);
        Self { limit, others }
    }

    /// How many this process may have.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// How many connections of callers there is room for.
    pub fn for_connections(&self) -> usize {
        usize::try_from(self.limit.saturating_sub(self.others)).unwrap_or(usize::MAX)
    }

    /// How many connections the operations listener may have.
    pub fn for_operations(&self) -> usize {
        operations(self.limit) as usize
    }

    /// What is left once `newest` was opened.
    pub(super) fn left(&self, newest: BorrowedFd<'_>) -> Room {
        let taken = u64::try_from(newest.as_raw_fd()).unwrap_or_default() + 1;
        match self.limit.saturating_sub(taken) {
            left if left >= SPARE => Room::Enough,
            left if left >= SPARE / 2 => Room::Scarce,
            _ => Room::None,
        }
    }
}

/// The fewest and the most connections of the operations listener.
const OPERATIONS: (u64, u64) = (16, 256);

fn operations(limit: u64) -> u64 {
    (limit / 16).clamp(OPERATIONS.0, OPERATIONS.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn what_is_not_for_connections_is_left_for_files_providers_and_probes() {
        let own = OWN + SPARE + 2 * OF_A_PROVIDER;
        let few = Descriptors::of(256, own);
        assert_eq!((few.for_connections(), few.for_operations()), (144, 16));
        let many = Descriptors::of(65_536, own);
        assert_eq!((many.for_connections(), many.for_operations()), (65_184, 256));
        assert_eq!(Descriptors::of(64, own).for_connections(), 0);
    }

    #[test]
    fn the_last_descriptors_are_not_for_connections() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let number = u64::try_from(file.as_raw_fd()).unwrap();
        let left = |limit| Descriptors { limit, others: 0 }.left(file.as_fd());
        assert_eq!(left(number + 1 + SPARE), Room::Enough);
        assert_eq!(left(number + SPARE), Room::Scarce);
        assert_eq!(left(number + SPARE / 2), Room::None);
        assert_eq!(left(number + 1), Room::None);
    }
}

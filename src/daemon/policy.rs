//! Who may do what with which keys: grants, denied by default.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use claviger_provider_api::CallerSlot;

use crate::daemon::budget::Budget;
use crate::daemon::config::Operation;
use crate::daemon::keyring::Key;
use crate::daemon::status::{Exhausted, Failure};

/// Calls that one caller may have in flight before the total counts for it.
const ALWAYS_IN_FLIGHT: u32 = 8;

/// One configured caller.
#[derive(Debug)]
pub struct Caller {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// Its queue in front of each backend.
    pub slot: CallerSlot,
    /// Its grants by key name.
    pub grants: HashMap<String, Granted>,
    /// Names of the keys that it may read, sorted.
    pub readable: Vec<String>,
    /// What it may spend on lists of keys; kept over reloads.
    pub listing: Arc<Budget>,
    /// Its calls in flight; kept over reloads.
    pub in_flight: Arc<AtomicU32>,
}

/// What one caller may do with one key.
#[derive(Debug)]
pub struct Granted {
    /// The key.
    pub key: Arc<Key>,
    operations: u8,
    /// What it may spend; kept over reloads.
    pub budget: Arc<Budget>,
}

impl Granted {
    /// A grant of nothing yet.
    pub fn new(key: Arc<Key>, budget: Arc<Budget>) -> Self {
        Self { key, operations: 0, budget }
    }

    /// Adds an operation.
    pub fn allow(&mut self, operation: Operation) {
        self.operations |= 1 << operation as u8;
    }

    /// Whether the operation is granted.
    pub fn allows(&self, operation: Operation) -> bool {
        self.operations & (1 << operation as u8) != 0
    }

    /// The granted operations that the key can do.
    pub fn operations(&self) -> impl Iterator<Item = Operation> {
        Operation::ALL.into_iter().filter(|o| self.allows(*o) && self.key.possible(*o))
    }
}

impl Caller {
    /// The grant for `operation` on `key`. No such key, not granted, and all versions disabled are
    /// the same failure.
    pub fn granted(&self, key: &str, operation: Operation) -> Result<&Granted, Failure> {
        self.grants
            .get(key)
            .filter(|granted| granted.allows(operation) && granted.key.is_usable())
            .ok_or(Failure::PermissionDenied)
    }
}

/// Calls in flight, of all callers and of each. No caller can take the last room of another: the
/// total counts only for callers that already have some in flight.
#[derive(Debug)]
pub struct InFlight {
    total: AtomicU32,
    most: u32,
    most_of_one: u32,
}

impl InFlight {
    /// Room for `most` calls, an eighth of it (at least 128) for one caller.
    pub fn new(most: usize) -> Self {
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        Self { total: AtomicU32::new(0), most, most_of_one: (most / 8).max(128) }
    }

    /// Starts a call.
    pub fn start(self: &Arc<Self>, caller: &Arc<AtomicU32>) -> Result<StartedCall, Failure> {
        let started = StartedCall { in_flight: Arc::clone(self), caller: Arc::clone(caller) };
        let of_caller = caller.fetch_add(1, Ordering::Relaxed) + 1;
        let total = self.total.fetch_add(1, Ordering::Relaxed) + 1;
        let refused =
            of_caller > self.most_of_one || (total > self.most && of_caller > ALWAYS_IN_FLIGHT);
        if refused {
            let retry_after = std::time::Duration::from_millis(100);
            return Err(Failure::Exhausted { what: Exhausted::Calls, retry_after });
        }
        Ok(started)
    }

    /// How many calls are in flight.
    pub fn total(&self) -> u32 {
        self.total.load(Ordering::Relaxed)
    }
}

/// A call in flight; it ends when this is dropped.
#[derive(Debug)]
pub struct StartedCall {
    in_flight: Arc<InFlight>,
    caller: Arc<AtomicU32>,
}

impl Drop for StartedCall {
    fn drop(&mut self) {
        self.caller.fetch_sub(1, Ordering::Relaxed);
        self.in_flight.total.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_house_still_has_room_for_a_caller_with_nothing_in_flight() {
        let in_flight = Arc::new(InFlight::new(128));
        let (hog, quiet) = (Arc::default(), Arc::default());
        let held: Vec<_> = (0..128).map(|_| in_flight.start(&hog).unwrap()).collect();
        assert!(in_flight.start(&hog).is_err());
        assert_eq!(in_flight.total(), 128);
        let one = in_flight.start(&quiet).unwrap();
        drop((held, one));
        assert_eq!(in_flight.total(), 0);
    }
}

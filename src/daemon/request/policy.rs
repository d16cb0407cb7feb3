//! Who may do what with which keys: grants, denied by default.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use claviger_provider_api::CallerSlot;

use crate::daemon::config::{self, Operation, PublicKeys};
use crate::daemon::keys::keyring::Key;
use crate::daemon::request::approvers::{Approval, Approver, Approvers, NotApproved};
use crate::daemon::request::budget::Budget;
use crate::daemon::request::in_flight::CallerCalls;
use crate::daemon::status::Failure;
use crate::daemon::transport::log_limit::LogLimit;

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
    /// Its calls in flight and waiting; kept over reloads.
    pub calls: Arc<CallerCalls>,
    /// How many lines of the log its calls may cause.
    pub log_limit: LogLimit,
}

/// What one caller may do with one key: the sum of its grants.
#[derive(Debug)]
pub struct Granted {
    /// The key.
    pub key: Arc<Key>,
    operations: u8,
    unwraps: Values,
    rewraps: Vec<Rewraps>,
    /// What it may spend; kept over reloads.
    pub budget: Arc<Budget>,
}

/// Wrapped values, by their SHA-256.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Values {
    /// Every one.
    All,
    /// These.
    Only(HashSet<[u8; 32]>),
}

/// One grant of rewrap.
#[derive(Debug)]
struct Rewraps {
    values: Values,
    to: Vec<Arc<Key>>,
    to_public_keys: PublicKeys,
    approvers: Option<Approvers>,
}

/// A person's approval with the public key that it is for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The approval; none was sent.
    pub approval: Option<&'a Approval>,
    /// The wrapped value.
    pub wrapped: &'a [u8],
    /// Of the public key that it is to go to.
    pub public_key_sha256: &'a [u8; 32],
}

/// Which values may go to a public key, and who approved it where that was needed.
pub type ToPublicKey<'a> = (Vec<&'a Values>, Option<Approver>);

impl Granted {
    /// A grant of nothing yet.
    pub fn new(key: Arc<Key>, budget: Arc<Budget>) -> Self {
        let unwraps = Values::Only(HashSet::new());
        Self { key, operations: 0, unwraps, rewraps: Vec::new(), budget }
    }

    /// Adds a grant; `to` are the keys that it names as targets, `approvers` those of `to_approved`.
    pub fn allow(
        &mut self,
        grant: &config::Grant,
        to: Vec<Arc<Key>>,
        approvers: Option<Approvers>,
    ) {
        for operation in &grant.operations {
            self.operations |= 1 << *operation as u8;
        }
        let values = Values::of(grant.wrapped_sha256.as_deref());
        if grant.operations.contains(&Operation::Rewrap) {
            let (values, to_public_keys) = (values.clone(), grant.to_public_keys.clone());
            self.rewraps.push(Rewraps { values, to, to_public_keys, approvers });
        }
        if grant.operations.contains(&Operation::Unwrap) {
            self.unwraps.add(values);
        }
    }

    /// Whether the operation is granted.
    pub fn allows(&self, operation: Operation) -> bool {
        self.operations & (1 << operation as u8) != 0
    }

    /// The granted operations that the key can do.
    pub fn operations(&self) -> impl Iterator<Item = Operation> {
        Operation::ALL.into_iter().filter(|o| self.allows(*o) && self.key.possible(*o))
    }

    /// The values that may be unwrapped.
    pub fn unwraps(&self) -> &Values {
        &self.unwraps
    }

    /// The key of this name as the target of a rewrap, and the values that may go there. Unknown,
    /// not granted, and all versions disabled are the same failure.
    pub fn rewraps_to_key(&self, name: &str) -> Result<(&Key, Vec<&Values>), Failure> {
        let mut target = None;
        let mut values = Vec::new();
        for rewraps in &self.rewraps {
            if let Some(key) = rewraps.to.iter().find(|key| key.name == name) {
                target = Some(&**key);
                values.push(&rewraps.values);
            }
        }
        let target = target.filter(|key| key.is_usable()).ok_or(Failure::PermissionDenied)?;
        Ok((target, values))
    }

    /// The values that may be rewrapped to the public key with this SHA-256.
    pub fn rewraps_to_public_key(&self, sha256: &[u8; 32]) -> Result<Vec<&Values>, Failure> {
        let named = |keys: &PublicKeys| match keys {
            PublicKeys::Any => true,
            PublicKeys::Only(keys) => keys.contains(sha256),
        };
        let rewraps = self.rewraps.iter().filter(|rewraps| named(&rewraps.to_public_keys));
        let values: Vec<&Values> = rewraps.map(|rewraps| &rewraps.values).collect();
        if values.is_empty() { Err(Failure::PermissionDenied) } else { Ok(values) }
    }

    /// The values that may be rewrapped to a public key that no grant lists, by this approval; with why
    /// not, where an approval was looked at.
    pub async fn rewraps_by_approval(
        &self,
        asked: Asked<'_>,
    ) -> Result<ToPublicKey<'_>, Option<NotApproved>> {
        let Asked { approval: Some(approval), wrapped, public_key_sha256 } = asked else {
            return Err(None);
        };
        let mut why = None;
        for rewraps in &self.rewraps {
            let Some(approvers) = &rewraps.approvers else { continue };
            match approvers.check(approval, wrapped, public_key_sha256).await {
                Ok(approver) => return Ok((vec![&rewraps.values], Some(approver))),
                Err(reason) => why = Some(reason),
            }
        }
        Err(why)
    }
}

impl Values {
    fn of(wrapped_sha256: Option<&[[u8; 32]]>) -> Self {
        wrapped_sha256.map_or(Self::All, |values| Self::Only(values.iter().copied().collect()))
    }

    fn add(&mut self, other: Self) {
        match (self, other) {
            (Self::Only(values), Self::Only(more)) => values.extend(more),
            (values, Self::All) => *values = Self::All,
            (Self::All, Self::Only(_)) => {}
        }
    }

    /// Whether the value with this SHA-256 is among them.
    pub fn contains(&self, wrapped_sha256: &[u8; 32]) -> bool {
        match self {
            Self::All => true,
            Self::Only(values) => values.contains(wrapped_sha256),
        }
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

/// The slot of the caller at `index` in the configuration; slot 0 is the daemon itself.
pub fn slot(index: usize) -> CallerSlot {
    CallerSlot(index as u32 + 1)
}

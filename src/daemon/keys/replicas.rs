//! Every replica in force, with the providers that opened them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::replica::Replica;
use super::specification::Specification;
use crate::daemon::backends::Providers;

/// The providers and replicas of one configuration.
#[derive(Debug, Default)]
pub struct Replicas {
    /// By name; unchanged ones outlive a reload with their logins.
    pub providers: Providers,
    /// Unchanged ones outlive a reload with their open keys.
    pub by_specification: HashMap<Specification, Arc<Replica>>,
    /// Providers that an operator has taken out, by name: nothing is asked of them.
    pub drained: BTreeSet<String>,
}

impl Replicas {
    /// The replicas of each provider, by its name.
    pub fn by_provider(&self) -> BTreeMap<&str, Vec<Arc<Replica>>> {
        let mut groups: BTreeMap<&str, Vec<Arc<Replica>>> = BTreeMap::new();
        for (specification, replica) in &self.by_specification {
            groups.entry(&specification.place.provider).or_default().push(Arc::clone(replica));
        }
        groups
    }
}

//! Which replica of a version a call asks, and which next.

use std::sync::Arc;

use claviger_provider_api::Algorithm;

use super::keyring::Version;
use super::replica::Replica;
use crate::daemon::config::Balance;

/// Replicas that one call asks at most: a value that makes modules crash does not reach all of them.
pub const MOST_ASKED: usize = 3;

/// What a call needs of a replica beside its health.
#[derive(Clone, Copy, Debug, Default)]
pub struct Need {
    /// Of an unwrap.
    pub algorithm: Option<Algorithm>,
    /// Whether the value has an OAEP label, which some replicas may not take.
    pub has_label: bool,
}

/// The replicas of one version in the order in which one call asks them, each once.
#[derive(Debug)]
pub struct Turns<'a> {
    version: &'a Version,
    need: Need,
    asked: [Option<&'a Arc<Replica>>; MOST_ASKED],
}

impl<'a> Turns<'a> {
    /// Nothing was asked yet.
    pub fn new(version: &'a Version, need: Need) -> Self {
        Self { version, need, asked: [None; MOST_ASKED] }
    }

    /// The replica to ask next: one that serves; as the first one also, where none serves, one that is
    /// open and may be back. It answers fast.
    pub fn take(&mut self) -> Option<&'a Arc<Replica>> {
        let last_resort = || self.last_resort().filter(|_| self.count() == 0);
        let taken = self.serving().or_else(last_resort)?;
        let place = self.count();
        self.asked[place] = Some(taken);
        Some(taken)
    }

    /// Whether another replica serves that was not asked yet.
    pub fn has_next(&self) -> bool {
        self.serving().is_some()
    }

    /// Replicas that were asked.
    pub fn count(&self) -> usize {
        self.asked.iter().flatten().count()
    }

    /// The best of those that serve. One that was found silent comes last.
    fn serving(&self) -> Option<&'a Arc<Replica>> {
        if self.count() == MOST_ASKED {
            return None;
        }
        let serving = || self.left().filter(|replica| replica.is_serving());
        let heard = serving().filter(|replica| !replica.is_silent());
        self.best_of(heard).or_else(|| self.best_of(serving()))
    }

    /// The first that is open and fails, but for one that is not what the configuration says. Under
    /// RSA1_5 some tokens answer any value with random bytes: there only a proven replica is asked.
    fn last_resort(&self) -> Option<&'a Arc<Replica>> {
        if self.need.algorithm == Some(Algorithm::Rsa15) {
            return None;
        }
        let may_be_back = |replica: &&Arc<Replica>| {
            replica.health().fault().is_some_and(|fault| !fault.is_divergence())
        };
        self.left().find(may_be_back)
    }

    fn best_of(
        &self,
        mut replicas: impl Iterator<Item = &'a Arc<Replica>>,
    ) -> Option<&'a Arc<Replica>> {
        match self.version.balance {
            Balance::Priority => replicas.next(),
            // Of equals the first.
            Balance::LeastBusy => replicas.min_by_key(|replica| replica.backend_calls.unanswered()),
        }
    }

    /// Those that were not asked yet and are open for what the call needs.
    fn left(&self) -> impl Iterator<Item = &'a Arc<Replica>> + use<'_, 'a> {
        let was_asked = |replica: &Arc<Replica>| {
            self.asked.iter().flatten().any(|asked| Arc::ptr_eq(asked, replica))
        };
        self.version.replicas.iter().filter(move |replica| {
            let Some(key) = replica.key() else { return false };
            let takes = |algorithm| key.label_algorithms().contains(algorithm);
            let fits = !self.need.has_label || self.need.algorithm.is_none_or(takes);
            fits && !was_asked(replica)
        })
    }
}

//! What a configuration becomes: providers, replicas, keys, callers; and what of it outlives a
//! reload.

mod callers;
mod versions;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use tokio::sync::watch;

use self::callers::{Around, LISTING, build_caller, key_states};
use self::versions::{build_version, check_description};
use crate::daemon::backends::{self, Providers};
use crate::daemon::config::{self, Config};
use crate::daemon::keys::keyring::{Key, Keyring};
use crate::daemon::keys::replica::Replica;
use crate::daemon::keys::replicas::Replicas;
use crate::daemon::keys::specification::Specification;
use crate::daemon::records::audit::{Audit, Event};
use crate::daemon::records::metrics::Metrics;
use crate::daemon::request::budget::Budget;
use crate::daemon::request::failed_unwraps::{CallerAndKey, FailedUnwraps};
use crate::daemon::request::in_flight::CallerCalls;
use crate::daemon::request::policy::Caller;
use crate::daemon::transport::caller::{CallerIndex, Callers, Peer, Unidentified};
use crate::daemon::transport::tokens::{IssuerError, NotIdentified, Tokens};
use crate::daemon::transport::verdicts::TokenIdentity;

/// A caller, and the token that makes it this caller.
pub type ByToken<'a> = (&'a Arc<Caller>, Arc<TokenIdentity>);

/// The callers and keys in force: what a call needs.
#[derive(Debug)]
pub struct Snapshot {
    callers: Callers,
    policies: Vec<Arc<Caller>>,
    tokens: Option<Arc<Tokens>>,
    /// Every key.
    pub keyring: Keyring,
}

impl Snapshot {
    /// The configured callers, in the order of the configuration.
    pub fn callers(&self) -> impl Iterator<Item = &Arc<Caller>> {
        self.policies.iter()
    }

    /// The configured caller that this peer is, if it is exactly one.
    pub fn identify(&self, peer: &Peer) -> Result<&Arc<Caller>, Unidentified> {
        let CallerIndex(index) = self.callers.identify(peer)?;
        self.policies.get(index).ok_or(Unidentified::NoCaller)
    }

    /// The issuers of tokens, if there are any.
    pub fn tokens(&self) -> Option<&Arc<Tokens>> {
        self.tokens.as_ref()
    }

    /// The configured caller that the token in these headers is, on this peer's connection; none where
    /// the headers have no token, or none is looked at.
    pub fn identify_by_token(
        &self,
        peer: &Peer,
        headers: &HeaderMap,
    ) -> Option<Result<ByToken<'_>, NotIdentified>> {
        let tokens = self.tokens.as_ref()?;
        headers.get(AUTHORIZATION)?;
        let identified = tokens.identify(&self.callers, peer, headers);
        Some(identified.map(|(CallerIndex(index), token)| (&self.policies[index], token)))
    }
}

/// Everything that was made from a configuration.
#[derive(Debug)]
pub struct ActiveConfig {
    /// What a call needs.
    pub snapshot: Arc<Snapshot>,
    /// Its providers and replicas.
    pub replicas: Arc<Replicas>,
    /// By caller and key; under the empty name of a key that of lists.
    pub budgets: HashMap<CallerAndKey, Arc<Budget>>,
    calls: HashMap<Arc<str>, Arc<CallerCalls>>,
    /// The limits of budgets that are older than this configuration, and the state of their keys.
    limits: Vec<(Arc<Budget>, config::Limits, u64)>,
}

/// Why a configuration cannot be put in force.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A provider refused its options.
    #[error("providers.{name}: {error}")]
    Provider {
        /// Its name.
        name: String,
        /// What it said.
        error: claviger_provider_api::Error,
    },
    /// A certificate for a public key cannot be read.
    #[error("keys.{key}: certificate {path}: {error}")]
    Certificate {
        /// The key's name.
        key: String,
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        error: String,
    },
    /// A key that could neither be listed nor described.
    #[error(
        "keys.{key}: its versions and their certificates take {bytes} bytes, and no message is above 64 KiB; leave certificates out, or remove old versions"
    )]
    TooLarge {
        /// The key's name.
        key: String,
        /// About what its description takes.
        bytes: usize,
    },
    /// An issuer's file or CA cannot be used.
    #[error(transparent)]
    Issuer(#[from] IssuerError),
    /// A version without a pin. `Config::check_for_serve` says it better and earlier.
    #[error("keys.{key}: version {version} has no public_key_sha256")]
    NotPinned {
        /// The key's name.
        key: String,
        /// The version.
        version: u32,
    },
}

/// What is previous from before, and what is shared with what was before.
#[derive(Debug)]
pub struct Previous<'a> {
    /// The active in force until now.
    pub active: Option<&'a ActiveConfig>,
    /// Failed unwraps of all callers on all keys.
    pub failed_unwraps: &'a Arc<FailedUnwraps>,
    /// Told about each change of a replica's health.
    pub changed: &'a watch::Sender<u64>,
    /// Told about each change of a replica's health too.
    pub audit: &'a Arc<Audit>,
    /// Providers that are out of service, by name: their replicas are never opened.
    pub drained: &'a BTreeSet<String>,
}

impl Previous<'_> {
    fn was_drained(&self, provider: &str) -> bool {
        self.active.is_some_and(|active| active.replicas.drained.contains(provider))
    }

    fn replica(&self, specification: &Specification) -> Option<&Arc<Replica>> {
        self.active?.replicas.by_specification.get(specification)
    }

    /// Providers that go on as they are. One that is drained, or comes back, is made anew: the last
    /// call to the old one takes its sessions, its login and its process with it.
    fn providers(&self) -> Option<Providers> {
        let is_kept = |name: &str| self.drained.contains(name) == self.was_drained(name);
        let providers = self.active?.replicas.providers.iter().filter(|(name, _)| is_kept(name));
        Some(providers.map(|(name, provider)| (name.clone(), provider.clone())).collect())
    }
}

impl ActiveConfig {
    /// Makes everything from a checked configuration; touches no backend.
    pub fn build(
        config: &Config,
        metrics: &Metrics,
        previous: &Previous<'_>,
    ) -> Result<Self, BuildError> {
        let state_dir = config.server.state_dir.as_deref();
        let configs = config.providers.iter().map(|(name, provider)| (name, &provider.config));
        let before = previous.providers();
        let providers = backends::make(configs, state_dir, before.as_ref())
            .map_err(|(name, error)| BuildError::Provider { name, error })?;
        for (name, (_, provider)) in &providers {
            let (name, audit) = (name.clone(), Arc::clone(previous.audit));
            provider.tell_logins(Box::new(move |login| {
                // It is in the queue, and no call waits for it.
                drop(audit.event(&Event::Login { provider: &name, login }));
            }));
        }
        let mut replicas = HashMap::new();
        let mut keyring = Keyring::default();
        for (name, key) in &config.keys {
            let versions = key
                .versions
                .iter()
                .map(|version| {
                    let balance = key.balance;
                    build_version(name, version, balance, &providers, previous, &mut replicas)
                })
                .collect::<Result<Vec<_>, _>>()?;
            check_description(name, &versions)?;
            let key = Key { name: name.clone(), versions, metrics: metrics.key(name) };
            keyring.keys.insert(name.clone(), Arc::new(key));
        }
        let tokens_before = previous.active.and_then(|active| active.snapshot.tokens.as_deref());
        let all_tokens = Tokens::new(&config.issuers, tokens_before)?;
        let tokens = all_tokens.as_deref();
        let mut budgets = HashMap::new();
        let mut calls = HashMap::new();
        let most = config.server.max_concurrent_calls;
        let mut limits = Vec::new();
        let states = key_states(config);
        let policies = (0..)
            .zip(&config.callers)
            .map(|(index, caller)| {
                let keys = caller.grants.iter().flat_map(|grant| &grant.keys).cloned();
                for key in keys.chain([LISTING.to_owned()]) {
                    let caller_and_key = (caller.name.clone(), key);
                    let budget =
                        previous.active.and_then(|active| active.budgets.get(&caller_and_key));
                    let state = states.get(&caller_and_key.1).copied().unwrap_or_default();
                    limits.extend(budget.map(|budget| (Arc::clone(budget), caller.limits, state)));
                }
                let around = Around {
                    keyring: &keyring,
                    states: &states,
                    previous,
                    most_calls: most,
                    tokens,
                };
                let built = build_caller(index, caller, &around, &mut budgets);
                calls.insert(Arc::clone(&built.name), Arc::clone(&built.calls));
                built
            })
            .collect();
        let several_cas = config.server.tls.as_ref().is_some_and(|tls| tls.client_ca.len() > 1);
        let callers = Callers::new(&config.callers, several_cas);
        let snapshot = Arc::new(Snapshot { callers, policies, tokens: all_tokens, keyring });
        let drained = previous.drained.iter().filter(|name| providers.contains_key(*name));
        let drained = drained.cloned().collect();
        let replicas = Arc::new(Replicas { providers, by_specification: replicas, drained });
        Ok(Self { snapshot, replicas, budgets, calls, limits })
    }

    /// Budgets outlive a reload; their limits change when it is certain, and what was learned about
    /// values is forgotten where a key has changed.
    pub fn put_limits_in_force(&self) {
        for (budget, limits, key_state) in &self.limits {
            budget.put_in_force(*limits, *key_state);
        }
    }
}

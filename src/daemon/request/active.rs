//! What a configuration becomes: providers, replicas, keys, callers; and what of it outlives a
//! reload.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use claviger_provider_api::public_key::sha256;
use claviger_provider_api::{Provider, PublicKey};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use tokio::sync::watch;

use crate::daemon::backends::{self, Providers};
use crate::daemon::config::{self, Config, State};
use crate::daemon::keys::keyring::{Key, Keyring, Version};
use crate::daemon::keys::proof::Proof;
use crate::daemon::keys::replica::Replica;
use crate::daemon::keys::replicas::Replicas;
use crate::daemon::keys::specification::Specification;
use crate::daemon::records::audit::{Audit, Event};
use crate::daemon::records::metrics::Metrics;
use crate::daemon::request::approvers::Approvers;
use crate::daemon::request::budget::Budget;
use crate::daemon::request::failed_unwraps::{CallerAndKey, FailedUnwraps};
use crate::daemon::request::in_flight::CallerCalls;
use crate::daemon::request::policy::{self, Caller, Granted};
use crate::daemon::transport::caller::{CallerIndex, Callers, Peer, Unidentified};
use crate::daemon::transport::log_limit::LogLimit;
use crate::daemon::transport::tokens::{IssuerError, NotIdentified, Tokens};
use crate::daemon::transport::verdicts::TokenIdentity;

/// What a version takes in a message without its certificate: the public key (RSA-8192) and the
/// names of all algorithms.
const MAX_VERSION_BYTES: usize = 1300;

/// In the place of a key's name: no key has it.
const LISTING: &str = "";

/// Lines of the log a minute about the calls of one caller.
const LOG_LINES: u32 = 60;

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

fn build_version(
    key: &str,
    version: &config::Version,
    balance: config::Balance,
    providers: &Providers,
    previous: &Previous<'_>,
    replicas: &mut HashMap<Specification, Arc<Replica>>,
) -> Result<Version, BuildError> {
    let disabled = version.state == State::Disabled;
    let pin = version.public_key_sha256;
    if pin.is_none() && !disabled {
        return Err(BuildError::NotPinned { key: key.to_owned(), version: version.version });
    }
    let places = if disabled { &[][..] } else { &version.replicas };
    let specifications: Vec<_> = places
        .iter()
        .map(|place| Specification {
            place: place.clone(),
            algorithms: version.algorithms.clone(),
            sign_algorithms: version.sign_algorithms.clone(),
            public_key_sha256: pin.unwrap_or_default(),
        })
        .collect();
    let before = specifications.iter().find_map(|specification| previous.replica(specification));
    let proof = before.map_or_else(Arc::<Proof>::default, |before| Arc::clone(before.proof()));
    if specifications.len() > 1 {
        proof.compare();
    }
    let of_version = specifications.into_iter().map(|specification| {
        let (_, provider) = &providers[&specification.place.provider];
        let replica = build_replica(&specification, provider, &proof, previous);
        replicas.insert(specification, Arc::clone(&replica));
        replica
    });
    Ok(Version {
        number: version.version,
        state: version.state,
        algorithms: version.algorithms.clone(),
        sign_algorithms: version.sign_algorithms.clone(),
        public_key_sha256: pin,
        replicas: of_version.collect(),
        balance,
        certificate: version
            .certificate
            .as_deref()
            .map(|path| read_certificate(key, path, pin))
            .transpose()?,
    })
}

/// The replica that is there already, unless its provider is another one now; else a new one.
fn build_replica(
    specification: &Specification,
    provider: &Arc<dyn Provider>,
    proof: &Arc<Proof>,
    previous: &Previous<'_>,
) -> Arc<Replica> {
    let name = &specification.place.provider;
    let before = previous.replica(specification);
    let is_drained = previous.drained.contains(name);
    let has_same_provider = previous.active.is_some_and(|active| {
        let before = active.replicas.providers.get(name);
        before.is_some_and(|(_, before)| Arc::ptr_eq(before, provider))
    });
    if let Some(before) = before
        && has_same_provider
        && before.is_drained() == is_drained
    {
        return Arc::clone(before);
    }
    let (changed, audit) = (previous.changed.clone(), Arc::clone(previous.audit));
    let (provider, proof) = (Arc::clone(provider), Arc::clone(proof));
    let replica = Replica::new(specification.clone(), provider, proof, changed, audit);
    if let Some(before) = before {
        replica.follows(before);
    }
    if is_drained {
        replica.drain();
    }
    Arc::new(replica)
}

/// One key must fit a message, else a caller could not even list the others.
fn check_description(key: &str, versions: &[Version]) -> Result<(), BuildError> {
    let certificate = |version: &Version| version.certificate.as_ref().map_or(0, Vec::len);
    let bytes = versions.iter().map(|version| certificate(version) + MAX_VERSION_BYTES).sum();
    if bytes > claviger_proto::MAX_MESSAGE_BYTES {
        return Err(BuildError::TooLarge { key: key.to_owned(), bytes });
    }
    Ok(())
}

/// A certificate is handed out to callers as the key's own: it must be over the pinned public key.
fn read_certificate(key: &str, path: &Path, pin: Option<[u8; 32]>) -> Result<Vec<u8>, BuildError> {
    use claviger_files::pem::{self, Beside};
    use x509_parser::prelude::{FromDer, X509Certificate};
    let refused = |error: String| BuildError::Certificate {
        key: key.to_owned(),
        path: path.to_owned(),
        error,
    };
    let file = std::fs::read(path).map_err(|error| refused(error.to_string()))?;
    let chain =
        pem::certificates(&file, Beside::Nothing).map_err(|error| refused(error.to_string()))?;
    let (_, certificate) =
        X509Certificate::from_der(&chain[0]).map_err(|_| refused("is not X.509".to_owned()))?;
    let public_key = PublicKey::from_spki(certificate.public_key().raw)
        .map_err(|error| refused(error.to_string()))?;
    if pin.is_some_and(|pin| pin != public_key.sha256()) {
        return Err(refused("is over another public key than the version's pin".to_owned()));
    }
    Ok(chain[0].to_vec())
}

/// What callers are built from.
struct Around<'a> {
    keyring: &'a Keyring,
    states: &'a HashMap<String, u64>,
    previous: &'a Previous<'a>,
    /// Calls in flight, of all callers.
    most_calls: usize,
    /// The issuers of tokens.
    tokens: Option<&'a Tokens>,
}

/// A number for each key that changes with its versions, their replicas and algorithms, and with the
/// options of their providers.
fn key_states(config: &Config) -> HashMap<String, u64> {
    let state = |key: &config::Key| {
        let places = key.versions.iter().flat_map(|version| &version.replicas);
        let providers =
            places.map(|place| config.providers.get(&place.provider).map(|p| &p.config));
        let text = format!("{:?}{:?}", key.versions, providers.collect::<Vec<_>>());
        let hash = sha256(text.as_bytes());
        u64::from_be_bytes(hash[..8].try_into().expect("eight bytes"))
    };
    config.keys.iter().map(|(name, key)| (name.clone(), state(key))).collect()
}

fn build_caller(
    index: usize,
    caller: &config::Caller,
    around: &Around<'_>,
    budgets: &mut HashMap<CallerAndKey, Arc<Budget>>,
) -> Arc<Caller> {
    let mut grants: HashMap<String, Granted> = HashMap::new();
    for grant in &caller.grants {
        for name in &grant.keys {
            let granted = grants.entry(name.clone()).or_insert_with(|| {
                let caller_and_key = (caller.name.clone(), name.clone());
                let budget = build_budget(&caller_and_key, caller.limits, around);
                budgets.insert(caller_and_key, Arc::clone(&budget));
                Granted::new(Arc::clone(&around.keyring.keys[name]), budget)
            });
            let to = grant.to.iter().map(|name| Arc::clone(&around.keyring.keys[name])).collect();
            let approvers = grant.to_approved.as_ref().and_then(|config| {
                let trusted = around.tokens?.trusted().iter();
                let trusted = trusted.into_iter().find(|trusted| *trusted.name == *config.issuer);
                Some(Approvers::new(config, trusted?))
            });
            granted.allow(grant, to, approvers);
        }
    }
    let mut readable: Vec<String> = grants
        .iter()
        .filter(|(_, granted)| granted.allows(config::Operation::Read))
        .map(|(name, _)| name.clone())
        .collect();
    readable.sort_unstable();
    let caller_and_key = (caller.name.clone(), LISTING.to_owned());
    let listing = build_budget(&caller_and_key, caller.limits, around);
    budgets.insert(caller_and_key, Arc::clone(&listing));
    let name: Arc<str> = caller.name.as_str().into();
    let before = around.previous.active.and_then(|active| active.calls.get(&name)).map(Arc::clone);
    let calls = before.unwrap_or_else(|| Arc::new(CallerCalls::new(around.most_calls)));
    let (slot, log_limit) = (policy::slot(index), LogLimit::per_minute(LOG_LINES));
    Arc::new(Caller { name, slot, grants, readable, listing, calls, log_limit })
}

fn build_budget(
    caller_and_key: &CallerAndKey,
    limits: config::Limits,
    around: &Around<'_>,
) -> Arc<Budget> {
    if let Some(budget) =
        around.previous.active.and_then(|active| active.budgets.get(caller_and_key))
    {
        return Arc::clone(budget);
    }
    let file = Arc::clone(around.previous.failed_unwraps);
    let key_state = around.states.get(&caller_and_key.1).copied().unwrap_or_default();
    Arc::new(Budget::new(caller_and_key.clone(), limits, file, key_state))
}

//! The callers of a configuration: their grants, and budgets and counts that outlive a reload.

use std::collections::HashMap;
use std::sync::Arc;

use claviger_provider_api::public_key::sha256;

use super::Previous;
use crate::daemon::config::{self, Config};
use crate::daemon::keys::keyring::Keyring;
use crate::daemon::request::approvers::Approvers;
use crate::daemon::request::budget::Budget;
use crate::daemon::request::failed_unwraps::CallerAndKey;
use crate::daemon::request::in_flight::CallerCalls;
use crate::daemon::request::policy::{self, Caller, Granted};
use crate::daemon::transport::log_limit::LogLimit;
use crate::daemon::transport::tokens::Tokens;

/// In the place of a key's name: no key has it.
pub(super) const LISTING: &str = "";

/// Lines of the log a minute about the calls of one caller.
const LOG_LINES: u32 = 60;

/// What callers are built from.
pub(super) struct Around<'a> {
    pub(super) keyring: &'a Keyring,
    pub(super) states: &'a HashMap<String, u64>,
    pub(super) previous: &'a Previous<'a>,
    /// Calls in flight, of all callers.
    pub(super) most_calls: usize,
    /// The issuers of tokens.
    pub(super) tokens: Option<&'a Tokens>,
}

/// A number for each key that changes with its versions, their replicas and algorithms, and with the
/// options of their providers.
pub(super) fn key_states(config: &Config) -> HashMap<String, u64> {
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

/// A caller; its budgets are noted in `budgets`.
pub(super) fn build_caller(
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

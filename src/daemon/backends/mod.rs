//! The one list of providers. A cargo feature adds a provider and changes nothing else.

mod options;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use claviger_provider_api::{Error, Provider, ProviderType, SecretSource};
use toml::de::Deserializer;

pub use options::ProviderConfig;

/// A `type` that a provider may have in a configuration.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The word in the configuration, and the cargo feature.
    pub name: &'static str,
    /// The provider's crate; none if this build does not have it.
    built: Option<Built>,
}

/// What the daemon takes from a provider's crate.
#[derive(Clone, Copy, Debug)]
struct Built {
    provider_type: &'static ProviderType,
    read: for<'a> fn(Deserializer<'a>) -> Result<ProviderConfig, toml::de::Error>,
}

macro_rules! row {
    ($name:tt, $provider:ident) => {
        Row {
            name: $name,
            #[cfg(feature = $name)]
            built: Some(Built {
                provider_type: &$provider::PROVIDER_TYPE,
                read: ProviderConfig::read::<$provider::Config>,
            }),
            #[cfg(not(feature = $name))]
            built: None,
        }
    };
}

/// Every type, whether this build has it or not.
pub const PROVIDERS: [Row; 6] = [
    row!("aws-kms", claviger_aws_kms),
    row!("azure-key-vault", claviger_azure_key_vault),
    row!("gcp-kms", claviger_gcp_kms),
    row!("pkcs11", claviger_pkcs11),
    row!("software", claviger_software),
    row!("vault-transit", claviger_vault_transit),
];

/// The types that this build has.
pub fn provider_types() -> impl Iterator<Item = &'static ProviderType> {
    PROVIDERS.into_iter().filter_map(|row| row.built).map(|built| built.provider_type)
}

/// Reads a provider's own options: its table without what the daemon itself reads there (`type` and
/// `required`). Errors keep their places in the file.
pub fn read_options(
    type_name: &str,
    options: Deserializer<'_>,
) -> Result<ProviderConfig, toml::de::Error> {
    let row = PROVIDERS.into_iter().find(|row| row.name == type_name);
    let Some(built) = row.and_then(|row| row.built) else {
        let reason = format!("no provider has the type {type_name:?}");
        return Err(serde::de::Error::custom(reason));
    };
    (built.read)(options)
}

/// Providers by name, each with the options that it was made from.
pub type Providers = BTreeMap<String, (ProviderConfig, Arc<dyn Provider>)>;

/// A provider, or what was wrong, with the options that it was made from.
type Made = (ProviderConfig, Result<Arc<dyn Provider>, Error>);

/// Makes every provider, first those through which others read their secrets. Where `before` has one
/// of the same name and options, it is kept. An error has the provider's name.
pub fn make<'a>(
    configs: impl IntoIterator<Item = (&'a String, &'a ProviderConfig)>,
    state_dir: Option<&Path>,
    before: Option<&Providers>,
) -> Result<Providers, (String, Error)> {
    let made = make_each(configs, state_dir, before).into_iter();
    made.map(|(name, (config, provider))| match provider {
        Ok(provider) => Ok((name, (config, provider))),
        Err(error) => Err((name, error)),
    })
    .collect()
}

/// As [`make`], but goes on after an error: gives a `Result` for each provider.
pub fn make_each<'a>(
    configs: impl IntoIterator<Item = (&'a String, &'a ProviderConfig)>,
    state_dir: Option<&Path>,
    before: Option<&Providers>,
) -> BTreeMap<String, Made> {
    let (stores, others): (Vec<_>, Vec<_>) =
        configs.into_iter().partition(|(_, config)| config.is_secret_store());
    let mut made: BTreeMap<String, Made> = BTreeMap::new();
    for (name, config) in stores.into_iter().chain(others) {
        let mut config = config.clone();
        for source in config.secret_sources() {
            let SecretSource::Vault(vault) = source else { continue };
            let provider = made.get(&vault.provider).and_then(|(_, made)| made.as_ref().ok());
            if let Some(store) = provider.and_then(|provider| provider.secret_store()) {
                vault.bind(store);
            }
        }
        let provider = match before.and_then(|before| before.get(name)) {
            Some((same, provider)) if *same == config => Ok(Arc::clone(provider)),
            _ => config.provider(name, state_dir),
        };
        made.insert(name.clone(), (config, provider));
    }
    made
}

/// Checks the names in `{ vault = { … } }`: what is wrong, and what to write instead.
pub fn check_secret(path: &str, field: &str) -> Result<(), String> {
    let mut checks = provider_types().filter_map(|provider_type| provider_type.check_secret);
    checks.try_for_each(|check| check(path, field))
}

/// Waits until every backend was left: a process that ends while a thread is still inside a PKCS#11
/// module may crash in the module's own exit handlers. Drop all keys first. False if `limit` passes,
/// as it does when a module hangs.
pub fn wait_until_left(limit: Duration) -> bool {
    #[cfg(feature = "pkcs11")]
    let left = claviger_pkcs11::wait_until_left(limit);
    #[cfg(not(feature = "pkcs11"))]
    let left = limit >= Duration::ZERO;
    left
}

/// A token with login attempts that did not succeed.
#[derive(Clone, Debug)]
pub struct LatchedToken {
    /// Its serial number, which it may share with others.
    pub serial: String,
    /// Its label; empty where only the serial number is on record.
    pub label: String,
    /// Whether no login is tried until an operator acts.
    pub is_shut: bool,
    /// Whether not even another PIN is tried.
    pub is_exhausted: bool,
}

/// Tokens with login attempts that did not succeed. Looks at the state directory.
pub fn latched_tokens(state_dir: &Path) -> Result<Vec<LatchedToken>, String> {
    #[cfg(feature = "pkcs11")]
    let tokens = {
        let mut tokens: Vec<LatchedToken> = Vec::new();
        let listed = claviger_pkcs11::pin_latch::list(state_dir);
        for token in listed.map_err(|error| error.to_string())? {
            let (is_shut, is_exhausted) = (token.is_latched(), token.is_exhausted());
            match tokens.last_mut() {
                // Another user of the same token.
                Some(last) if (&last.serial, &last.label) == (&token.serial, &token.label) => {
                    last.is_shut |= is_shut;
                    last.is_exhausted |= is_exhausted;
                }
                _ => {
                    let (serial, label) = (token.serial, token.label);
                    tokens.push(LatchedToken { serial, label, is_shut, is_exhausted });
                }
            }
        }
        tokens
    };
    #[cfg(not(feature = "pkcs11"))]
    let (tokens, _) = (Vec::new(), state_dir);
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_name_that_its_crate_says() {
        for Row { name, built } in PROVIDERS {
            if let Some(built) = built {
                assert_eq!(built.provider_type.name, name);
                assert!(!built.provider_type.quota.is_empty());
            }
        }
    }
}

//! The one list of providers. A cargo feature adds a provider and changes nothing else.

mod config;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use claviger_provider_api::{Error, OpenKey, SecretSource, SecretStore, WrappingKey};

pub use config::{PROVIDER_TYPES, ProviderConfig, ProviderType};

/// Providers by name, each with the options that it was made from.
pub type Providers = BTreeMap<String, (ProviderConfig, Arc<Provider>)>;

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

/// The same, with what was wrong in the place of each provider that could not be made.
pub fn make_each<'a>(
    configs: impl IntoIterator<Item = (&'a String, &'a ProviderConfig)>,
    state_dir: Option<&Path>,
    before: Option<&Providers>,
) -> BTreeMap<String, (ProviderConfig, Result<Arc<Provider>, Error>)> {
    let (stores, others): (Vec<_>, Vec<_>) =
        configs.into_iter().partition(|(_, config)| config.is_secret_store());
    let mut made: BTreeMap<String, (ProviderConfig, Result<Arc<Provider>, Error>)> =
        BTreeMap::new();
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
            _ => Provider::new(name, &config, state_dir).map(Arc::new),
        };
        made.insert(name.clone(), (config, provider));
    }
    made
}

/// A provider that can open keys.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there are a few, each made once and shared")]
#[non_exhaustive]
pub enum Provider {
    /// Keys in files.
    #[cfg(feature = "software")]
    Software(claviger_software::Provider),
    /// Keys in PKCS#11 tokens.
    #[cfg(feature = "pkcs11")]
    Pkcs11(claviger_pkcs11::Provider),
    /// Keys in AWS KMS.
    #[cfg(feature = "aws-kms")]
    AwsKms(claviger_aws_kms::Provider),
    /// Keys in Azure Key Vault and Managed HSM.
    #[cfg(feature = "azure-key-vault")]
    AzureKeyVault(claviger_azure_key_vault::Provider),
    /// Keys in Google Cloud KMS.
    #[cfg(feature = "gcp-kms")]
    GcpKms(claviger_gcp_kms::Provider),
    /// Keys in Transit, of Vault and OpenBao.
    #[cfg(feature = "vault-transit")]
    VaultTransit(claviger_vault_transit::Provider),
}

impl Provider {
    /// Makes a provider; touches no backend. [`make`] does it for all.
    fn new(name: &str, config: &ProviderConfig, state_dir: Option<&Path>) -> Result<Self, Error> {
        match config {
            #[cfg(feature = "software")]
            ProviderConfig::Software(config) => {
                Ok(Self::Software(claviger_software::Provider::new(name, config, state_dir)?))
            }
            #[cfg(feature = "pkcs11")]
            ProviderConfig::Pkcs11(config) => {
                Ok(Self::Pkcs11(claviger_pkcs11::Provider::new(name, config, state_dir)?))
            }
            #[cfg(feature = "aws-kms")]
            ProviderConfig::AwsKms(config) => {
                Ok(Self::AwsKms(claviger_aws_kms::Provider::new(name, config, state_dir)?))
            }
            #[cfg(feature = "azure-key-vault")]
            ProviderConfig::AzureKeyVault(config) => Ok(Self::AzureKeyVault(
                claviger_azure_key_vault::Provider::new(name, config, state_dir)?,
            )),
            #[cfg(feature = "gcp-kms")]
            ProviderConfig::GcpKms(config) => {
                Ok(Self::GcpKms(claviger_gcp_kms::Provider::new(name, config, state_dir)?))
            }
            #[cfg(feature = "vault-transit")]
            ProviderConfig::VaultTransit(config) => Ok(Self::VaultTransit(
                claviger_vault_transit::Provider::new(name, config, state_dir)?,
            )),
        }
    }

    /// Opens a key: looks it up, logs in, checks its type, proves its algorithms.
    pub async fn open(&self, open: &OpenKey<'_>) -> Result<Arc<dyn WrappingKey>, Error> {
        match self {
            #[cfg(feature = "software")]
            Self::Software(provider) => provider.open(open).await,
            #[cfg(feature = "pkcs11")]
            Self::Pkcs11(provider) => provider.open(open).await,
            #[cfg(feature = "aws-kms")]
            Self::AwsKms(provider) => provider.open(open).await,
            #[cfg(feature = "azure-key-vault")]
            Self::AzureKeyVault(provider) => provider.open(open).await,
            #[cfg(feature = "gcp-kms")]
            Self::GcpKms(provider) => provider.open(open).await,
            #[cfg(feature = "vault-transit")]
            Self::VaultTransit(provider) => provider.open(open).await,
        }
    }

    /// The secrets that others may read through it, if it holds any.
    fn secret_store(&self) -> Option<Arc<dyn SecretStore>> {
        match self {
            #[cfg(feature = "software")]
            Self::Software(_) => None,
            #[cfg(feature = "pkcs11")]
            Self::Pkcs11(_) => None,
            #[cfg(feature = "aws-kms")]
            Self::AwsKms(_) => None,
            #[cfg(feature = "azure-key-vault")]
            Self::AzureKeyVault(_) => None,
            #[cfg(feature = "gcp-kms")]
            Self::GcpKms(_) => None,
            #[cfg(feature = "vault-transit")]
            Self::VaultTransit(provider) => Some(provider.secret_store()),
        }
    }
}

/// Checks the names in `{ vault = { … } }`: what is wrong, and what to write instead.
pub fn check_secret(path: &str, field: &str) -> Result<(), String> {
    #[cfg(feature = "vault-transit")]
    let checked = claviger_vault_transit::Config::check_secret(path, field);
    #[cfg(not(feature = "vault-transit"))]
    let checked = {
        let _ = (path, field);
        Ok(())
    };
    checked
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
    /// Whether nobody logs in until an operator acts.
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

//! The one list of providers. A cargo feature adds a provider and changes nothing else.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use claviger_provider_api::{Error, OpenKey, SecretSource, SecretStore, WrappingKey};
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, Deserializer};

/// A `type` that a provider may have in a configuration.
#[derive(Clone, Copy, Debug)]
pub struct ProviderType {
    /// The word in the configuration, and the cargo feature.
    pub name: &'static str,
    /// Whether this build has it.
    pub compiled: bool,
    /// Its options that are paths: relative ones are taken from the configuration file's folder. A
    /// dot leads into a table.
    pub paths: &'static [&'static str],
    /// Its options that are sources of secrets: `{ file = "…" }`, `{ credential = "…" }` or
    /// `{ vault = { … } }`. A dot leads into a table, and `*` stands for each of its names.
    pub secrets: &'static [&'static str],
}

/// Every type, whether this build has it or not.
pub const PROVIDER_TYPES: [ProviderType; 6] = [
    ProviderType {
        name: "aws-kms",
        compiled: cfg!(feature = "aws-kms"),
        paths: &["ca"],
        secrets: &[
            "credentials.access_key_id",
            "credentials.secret_access_key",
            "credentials.session_token",
        ],
    },
    ProviderType {
        name: "azure-key-vault",
        compiled: cfg!(feature = "azure-key-vault"),
        paths: &["ca"],
        secrets: &["auth.client_secret.secret", "auth.workload_identity.token"],
    },
    ProviderType {
        name: "gcp-kms",
        compiled: cfg!(feature = "gcp-kms"),
        paths: &["ca"],
        secrets: &["credentials"],
    },
    ProviderType {
        name: "pkcs11",
        compiled: cfg!(feature = "pkcs11"),
        paths: &["module"],
        secrets: &["pin"],
    },
    ProviderType {
        name: "software",
        compiled: cfg!(feature = "software"),
        paths: &["directory"],
        secrets: &["passphrase", "files.*"],
    },
    ProviderType {
        name: "vault-transit",
        compiled: cfg!(feature = "vault-transit"),
        paths: &["ca", "auth.certificate.certificate"],
        secrets: &[
            "auth.token",
            "auth.approle.secret_id",
            "auth.kubernetes.token",
            "auth.jwt.token",
            "auth.certificate.private_key",
        ],
    },
];

/// A provider's own options, by `type`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum ProviderConfig {
    /// `type = "software"`.
    #[cfg(feature = "software")]
    Software(claviger_software::Config),
    /// `type = "pkcs11"`.
    #[cfg(feature = "pkcs11")]
    Pkcs11(claviger_pkcs11::Config),
    /// `type = "aws-kms"`.
    #[cfg(feature = "aws-kms")]
    AwsKms(claviger_aws_kms::Config),
    /// `type = "azure-key-vault"`.
    #[cfg(feature = "azure-key-vault")]
    AzureKeyVault(claviger_azure_key_vault::Config),
    /// `type = "gcp-kms"`.
    #[cfg(feature = "gcp-kms")]
    GcpKms(claviger_gcp_kms::Config),
    /// `type = "vault-transit"`.
    #[cfg(feature = "vault-transit")]
    VaultTransit(claviger_vault_transit::Config),
}

impl ProviderConfig {
    /// Reads a provider's own options: its table without what the daemon itself reads there
    /// (`type` and `required`). Errors keep their places in the file.
    pub fn from_options(
        type_name: &str,
        options: Spanned<DeTable<'_>>,
    ) -> Result<Self, toml::de::Error> {
        let options = Deserializer::from(options);
        match type_name {
            #[cfg(feature = "software")]
            "software" => Deserialize::deserialize(options).map(Self::Software),
            #[cfg(feature = "pkcs11")]
            "pkcs11" => Deserialize::deserialize(options).map(Self::Pkcs11),
            #[cfg(feature = "aws-kms")]
            "aws-kms" => Deserialize::deserialize(options).map(Self::AwsKms),
            #[cfg(feature = "azure-key-vault")]
            "azure-key-vault" => Deserialize::deserialize(options).map(Self::AzureKeyVault),
            #[cfg(feature = "gcp-kms")]
            "gcp-kms" => Deserialize::deserialize(options).map(Self::GcpKms),
            #[cfg(feature = "vault-transit")]
            "vault-transit" => Deserialize::deserialize(options).map(Self::VaultTransit),
            other => Err(serde::de::Error::custom(format!("no provider has the type {other:?}"))),
        }
    }

    /// Its `type`.
    pub fn type_name(&self) -> &'static str {
        match self {
            #[cfg(feature = "software")]
            Self::Software(_) => "software",
            #[cfg(feature = "pkcs11")]
            Self::Pkcs11(_) => "pkcs11",
            #[cfg(feature = "aws-kms")]
            Self::AwsKms(_) => "aws-kms",
            #[cfg(feature = "azure-key-vault")]
            Self::AzureKeyVault(_) => "azure-key-vault",
            #[cfg(feature = "gcp-kms")]
            Self::GcpKms(_) => "gcp-kms",
            #[cfg(feature = "vault-transit")]
            Self::VaultTransit(_) => "vault-transit",
        }
    }

    /// Whether its keys are in hardware, as far as the kind of backend tells: Transit keeps its keys
    /// in the memory of its servers, Google Cloud KMS in software unless a key says HSM, and Key
    /// Vault has both kinds, unless it is a managed HSM.
    pub fn is_hardware(&self) -> bool {
        match self {
            #[cfg(feature = "software")]
            Self::Software(_) => false,
            #[cfg(feature = "pkcs11")]
            Self::Pkcs11(_) => true,
            #[cfg(feature = "aws-kms")]
            Self::AwsKms(_) => true,
            #[cfg(feature = "azure-key-vault")]
            Self::AzureKeyVault(config) => config.is_managed_hsm(),
            #[cfg(feature = "gcp-kms")]
            Self::GcpKms(_) => false,
            #[cfg(feature = "vault-transit")]
            Self::VaultTransit(_) => false,
        }
    }

    /// Whether each operation has its price, so that canaries should be few.
    pub fn is_billed(&self) -> bool {
        match self {
            #[cfg(feature = "software")]
            Self::Software(_) => false,
            #[cfg(feature = "pkcs11")]
            Self::Pkcs11(_) => false,
            #[cfg(feature = "aws-kms")]
            Self::AwsKms(_) => true,
            #[cfg(feature = "azure-key-vault")]
            Self::AzureKeyVault(_) => true,
            #[cfg(feature = "gcp-kms")]
            Self::GcpKms(_) => true,
            #[cfg(feature = "vault-transit")]
            Self::VaultTransit(_) => false,
        }
    }

    /// Whether others may read their secrets through it.
    pub fn is_secret_store(&self) -> bool {
        match self {
            #[cfg(feature = "software")]
            Self::Software(_) => false,
            #[cfg(feature = "pkcs11")]
            Self::Pkcs11(_) => false,
            #[cfg(feature = "aws-kms")]
            Self::AwsKms(_) => false,
            #[cfg(feature = "azure-key-vault")]
            Self::AzureKeyVault(_) => false,
            #[cfg(feature = "gcp-kms")]
            Self::GcpKms(_) => false,
            #[cfg(feature = "vault-transit")]
            Self::VaultTransit(_) => true,
        }
    }

    /// Where its secrets are read from.
    fn secret_sources(&mut self) -> Vec<&mut SecretSource> {
        match self {
            #[cfg(feature = "software")]
            Self::Software(config) => config.secret_sources(),
            #[cfg(feature = "pkcs11")]
            Self::Pkcs11(config) => config.secret_sources(),
            #[cfg(feature = "aws-kms")]
            Self::AwsKms(config) => config.secret_sources(),
            #[cfg(feature = "azure-key-vault")]
            Self::AzureKeyVault(config) => config.secret_sources(),
            #[cfg(feature = "gcp-kms")]
            Self::GcpKms(config) => config.secret_sources(),
            #[cfg(feature = "vault-transit")]
            Self::VaultTransit(config) => config.secret_sources(),
        }
    }

    /// Checks what can be checked without a backend: what is wrong, and what to write instead.
    pub fn validate(&self) -> Result<(), String> {
        match self {
            #[cfg(feature = "software")]
            Self::Software(config) => config.validate(),
            #[cfg(feature = "pkcs11")]
            Self::Pkcs11(config) => config.validate(),
            #[cfg(feature = "aws-kms")]
            Self::AwsKms(config) => config.validate(),
            #[cfg(feature = "azure-key-vault")]
            Self::AzureKeyVault(config) => config.validate(),
            #[cfg(feature = "gcp-kms")]
            Self::GcpKms(config) => config.validate(),
            #[cfg(feature = "vault-transit")]
            Self::VaultTransit(config) => config.validate(),
        }
    }

    /// Checks the syntax of a locator.
    pub fn check_locator(&self, locator: &str) -> Result<(), String> {
        match self {
            #[cfg(feature = "software")]
            Self::Software(config) => config.check_locator(locator),
            #[cfg(feature = "pkcs11")]
            Self::Pkcs11(config) => config.check_locator(locator),
            #[cfg(feature = "aws-kms")]
            Self::AwsKms(config) => config.check_locator(locator),
            #[cfg(feature = "azure-key-vault")]
            Self::AzureKeyVault(config) => config.check_locator(locator),
            #[cfg(feature = "gcp-kms")]
            Self::GcpKms(config) => config.check_locator(locator),
            #[cfg(feature = "vault-transit")]
            Self::VaultTransit(config) => config.check_locator(locator),
        }
    }
}

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
}

impl Provider {
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
    /// Its serial number.
    pub serial: String,
    /// Whether nobody logs in until an operator acts.
    pub is_shut: bool,
    /// Whether not even another PIN is tried.
    pub is_exhausted: bool,
}

/// Tokens with login attempts that did not succeed. Looks at the state directory.
pub fn latched_tokens(state_dir: &Path) -> Result<Vec<LatchedToken>, String> {
    #[cfg(feature = "pkcs11")]
    let tokens = claviger_pkcs11::latch::list(state_dir)
        .map_err(|error| error.to_string())?
        .into_iter()
        .map(|token| LatchedToken {
            is_shut: token.is_latched(),
            is_exhausted: token.is_exhausted(),
            serial: token.serial,
        })
        .collect();
    #[cfg(not(feature = "pkcs11"))]
    let (tokens, _) = (Vec::new(), state_dir);
    Ok(tokens)
}

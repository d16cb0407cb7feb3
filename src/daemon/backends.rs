//! The one list of providers. A cargo feature adds a provider and changes nothing else.

use std::path::Path;
use std::sync::Arc;

use claviger_provider_api::{Error, OpenKey, WrappingKey};
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
    /// Its options that are paths: relative ones are taken from the configuration file's folder.
    pub paths: &'static [&'static str],
    /// Its options that are sources of secrets: `{ file = "…" }` or `{ credential = "…" }`. One in a
    /// table of the provider's is written `table.option`.
    pub secrets: &'static [&'static str],
}

/// Every type, whether this build has it or not.
pub const PROVIDER_TYPES: [ProviderType; 3] = [
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
        name: "pkcs11",
        compiled: cfg!(feature = "pkcs11"),
        paths: &["module"],
        secrets: &["pin"],
    },
    ProviderType {
        name: "software",
        compiled: cfg!(feature = "software"),
        paths: &["directory"],
        secrets: &["passphrase"],
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
            other => Err(serde::de::Error::custom(format!("no provider has the type {other:?}"))),
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
        }
    }
}

/// A provider that can open keys.
#[derive(Debug)]
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
}

impl Provider {
    /// Makes a provider; touches no backend.
    pub fn new(
        name: &str,
        config: &ProviderConfig,
        state_dir: Option<&Path>,
    ) -> Result<Self, Error> {
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
        }
    }
}

/// To be called when the last key was dropped, before the process ends: a PKCS#11 module must have
/// been left by then. False where one still hangs after `limit`.
pub fn wait_until_left(limit: std::time::Duration) -> bool {
    #[cfg(feature = "pkcs11")]
    return claviger_pkcs11::wait_until_left(limit);
    #[cfg(not(feature = "pkcs11"))]
    {
        let _ = limit;
        true
    }
}

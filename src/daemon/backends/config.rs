//! The types of providers, and the options of each.

use claviger_provider_api::SecretSource;
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
    pub(super) fn secret_sources(&mut self) -> Vec<&mut SecretSource> {
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

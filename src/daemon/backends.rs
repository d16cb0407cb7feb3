//! The one list of providers. A cargo feature adds a provider and changes nothing else.

use std::path::Path;
use std::sync::Arc;

use claviger_provider_api::{Error, OpenKey, WrappingKey};

/// A provider's own options, by `type`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ProviderConfig {
    /// `type = "software"`.
    #[cfg(feature = "software")]
    Software(claviger_software::Config),
    /// `type = "pkcs11"`.
    #[cfg(feature = "pkcs11")]
    Pkcs11(claviger_pkcs11::Config),
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
        }
    }

    /// Opens a key: looks it up, logs in, checks its type, proves its algorithms.
    pub async fn open(&self, open: &OpenKey<'_>) -> Result<Arc<dyn WrappingKey>, Error> {
        match self {
            #[cfg(feature = "software")]
            Self::Software(provider) => provider.open(open).await,
            #[cfg(feature = "pkcs11")]
            Self::Pkcs11(provider) => provider.open(open).await,
        }
    }
}

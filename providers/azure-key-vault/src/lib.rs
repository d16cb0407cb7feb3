//! RSA keys in Azure Key Vault and Managed HSM.
//!
//! A locator is Azure's key identifier. With a version it names one key for ever; without one it stands
//! for the version whose public key is the pinned one, so that a rotation in Azure breaks nothing.
//!
//! - `config`, `locator`: what an operator writes
//! - `client`: one client for all keys of a provider
//! - `limit`: answers of limited length
//! - `login`, `credentials`: its token, and what it signs in with
//! - `versions`: which version of a key is meant, and whether it is fit for use
//! - `key`: an opened key; `making`: a new one, for an operator
//! - `error`: from the SDK's errors to the one error of every provider

mod client;
mod config;
mod credentials;
mod error;
mod key;
mod limit;
mod locator;
mod login;
mod making;
mod versions;

use std::sync::Arc;

use async_trait::async_trait;
use claviger_provider_api::{
    self as api, Error, ErrorKind, MadeKey, NewKey, OpenKey, Options, PrivateKey, WrappingKey,
};
use tokio::sync::OnceCell;

pub use config::{
    Auth, AzureCli, ClientSecret, Config, ManagedIdentity, PROVIDER_TYPE, WorkloadIdentity,
};

use client::Backend;
use key::AzureKey;
use locator::Locator;

/// Opens keys of one vault or managed HSM. All its keys share one client and its connections.
#[derive(Debug)]
pub struct Provider {
    name: String,
    config: Config,
    backend: OnceCell<Arc<Backend>>,
}

impl Provider {
    /// Makes a provider; touches neither a file nor the network.
    pub fn new(name: &str, config: &Config) -> Result<Self, Error> {
        config.validate().map_err(operator)?;
        Ok(Self { name: name.to_owned(), config: config.clone(), backend: OnceCell::new() })
    }
}

#[async_trait]
impl api::Provider for Provider {
    async fn open(&self, open: &OpenKey<'_>) -> Result<Arc<dyn WrappingKey>, Error> {
        let origin = self.config.origin().map_err(operator)?;
        let locator = Locator::parse(open.locator, &origin).map_err(operator)?;
        let connect = || async { Backend::connect(&self.config) };
        let backend = self.backend.get_or_try_init(connect).await?;
        let key = AzureKey::open(backend.clone(), &locator, open).await?;
        if locator.version.is_none() {
            tracing::info!(
                provider = self.name,
                locator = open.locator,
                version = %key.backend().locator(),
                key = ?key.public_key(),
                "this locator has no version, and was found to mean the key with this identifier; \
                 write that as the locator, so that it need not be looked for"
            );
        }
        Ok(Arc::new(key))
    }

    async fn create_key(&self, new: &NewKey<'_>) -> Result<MadeKey, Error> {
        let origin = self.config.origin().map_err(operator)?;
        let connect = || async { Backend::connect(&self.config) };
        let backend = self.backend.get_or_try_init(connect).await?;
        making::create(backend, &origin, new).await
    }

    async fn import_key(&self, new: &NewKey<'_>, key: &PrivateKey) -> Result<MadeKey, Error> {
        let origin = self.config.origin().map_err(operator)?;
        let connect = || async { Backend::connect(&self.config) };
        let backend = self.backend.get_or_try_init(connect).await?;
        making::import(backend, &origin, new, key).await
    }
}

fn operator(reason: String) -> Error {
    Error::new(ErrorKind::OperatorNeeded, reason)
}

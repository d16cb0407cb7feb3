//! RSA keys in AWS KMS. A locator is a key id, a key ARN, an alias name or an alias ARN; it is
//! resolved to the key's ARN when the key is opened, and only that ARN is used from then on.
//!
//! - `config`, `locator`: what an operator writes
//! - `client`, `credentials`: one client for all keys of a provider, and what it signs in with
//! - `limit`: answers of limited length
//! - `key`: an opened key; `making`: a new one, for an operator
//! - `answer`, `refusal`, `error`: from the SDK's errors to the one error of every provider

mod answer;
mod client;
mod config;
mod credentials;
mod error;
mod key;
mod limit;
mod locator;
mod making;
mod refusal;

use std::sync::Arc;

use async_trait::async_trait;
use claviger_provider_api::{
    self as api, Error, ErrorKind, MadeKey, NewKey, OpenKey, Options, PrivateKey, WrappingKey,
};
use tokio::sync::OnceCell;

pub use config::{Config, PROVIDER_TYPE, StaticCredentials};

use client::Backend;
use key::KmsKey;
use locator::Locator;

/// Opens keys in one region of AWS KMS. All its keys share one client and its connections.
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
        let locator = Locator::parse(open.locator, &self.config.region).map_err(operator)?;
        let backend = self.backend.get_or_try_init(|| Backend::connect(&self.config)).await?;
        let key = KmsKey::open(backend.clone(), open, locator).await?;
        if locator.is_alias() {
            tracing::info!(
                provider = self.name,
                locator = open.locator,
                arn = key.backend().arn(),
                key = ?key.public_key(),
                "this alias points to the key with this ARN now; write the ARN as the locator: \
                 an alias may point elsewhere at the next start"
            );
        }
        Ok(Arc::new(key))
    }

    async fn create_key(&self, new: &NewKey<'_>) -> Result<MadeKey, Error> {
        let backend = self.backend.get_or_try_init(|| Backend::connect(&self.config)).await?;
        making::create(backend, new).await
    }

    async fn import_key(&self, new: &NewKey<'_>, key: &PrivateKey) -> Result<MadeKey, Error> {
        let backend = self.backend.get_or_try_init(|| Backend::connect(&self.config)).await?;
        making::import(backend, new, key).await
    }
}

fn operator(reason: String) -> Error {
    Error::new(ErrorKind::OperatorNeeded, reason)
}

//! RSA keys in Google Cloud KMS. A locator is the full name of a crypto key version,
//! `projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/N`, which is one key pair with one
//! algorithm for ever.
//!
//! - `config`, `locator`: what an operator writes
//! - `client`: requests and answers
//! - `credentials`, `token`: a credentials file as Google's tools write it, and the access token it gives
//! - `session`: the current token, which all keys of a provider share
//! - `description`: what KMS says about a version
//! - `key`: an opened key; `making`: a new one, for an operator;
//!   `import`: one that is brought along
//! - `error`: from what KMS or a token endpoint answered to the one error of every provider

mod client;
mod config;
mod credentials;
mod description;
mod error;
mod import;
mod key;
mod locator;
mod making;
mod session;
mod token;

use std::sync::Arc;

use async_trait::async_trait;
use claviger_provider_api::{
    self as api, Error, ErrorKind, MadeKey, NewKey, OpenKey, Options, PrivateKey, WrappingKey,
};

pub use config::{Config, PROVIDER_TYPE};

use key::KmsKey;
use locator::Locator;
use session::Session;

/// Opens keys of Google Cloud KMS under one identity. All its keys share one client and one token.
#[derive(Debug)]
pub struct Provider {
    session: Arc<Session>,
}

impl Provider {
    /// Makes a provider; touches neither a file nor the network.
    pub fn new(name: &str, config: &Config) -> Result<Self, Error> {
        config.validate().map_err(operator)?;
        Ok(Self { session: Arc::new(Session::new(name, config.clone())) })
    }
}

#[async_trait]
impl api::Provider for Provider {
    async fn open(&self, open: &OpenKey<'_>) -> Result<Arc<dyn WrappingKey>, Error> {
        let locator: Locator = open.locator.parse().map_err(operator)?;
        Ok(Arc::new(KmsKey::open(self.session.clone(), locator, open).await?))
    }

    async fn create_key(&self, new: &NewKey<'_>) -> Result<MadeKey, Error> {
        making::create(&self.session, new).await
    }

    async fn import_key(&self, new: &NewKey<'_>, key: &PrivateKey) -> Result<MadeKey, Error> {
        import::import(&self.session, new, key).await
    }
}

fn operator(reason: String) -> Error {
    Error::new(ErrorKind::OperatorNeeded, reason)
}

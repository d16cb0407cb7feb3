//! RSA keys in the Transit engine of HashiCorp Vault and OpenBao.
//!
//! A locator is `mount/key:version`. Transit does OAEP with SHA-256 and no label, and nothing else;
//! PKCS#1 v1.5 only where the server honours `padding_scheme` (Vault from 1.19), which a canary
//! proves at open: OpenBao ignores the field silently.
//!
//! - `config`: the options and what can be checked of them without a server
//! - `locator`: `mount/key:version`
//! - `client`: one HTTP client over our own TLS: no proxy, no redirects, no environment
//! - `auth`: one login for all keys of a provider: renewal, and a new one where it was revoked
//! - `description`: what the server says about a key
//! - `key`: the contract; `value`, `batch`: one value, and several in one request
//! - `making`: new keys, for an operator
//! - `kv`: secrets of other providers
//! - `error`: from what a server answered to our error

mod auth;
mod batch;
mod client;
mod config;
mod description;
mod error;
mod key;
mod kv;
mod locator;
mod making;
mod value;

use std::sync::Arc;

use async_trait::async_trait;
use claviger_provider_api::{
    self as api, Error, ErrorKind, MadeKey, NewKey, OpenKey, Options, PrivateKey, SecretStore,
    WrappingKey,
};

pub use config::{AppRole, Auth, Certificate, Config, Jwt, PROVIDER_TYPE};

use auth::Session;
use key::TransitKey;
use kv::Kv;
use locator::Locator;

/// Opens keys of one server under one login.
#[derive(Debug)]
pub struct Provider {
    session: Arc<Session>,
    kv: Arc<Kv>,
}

impl Provider {
    /// Makes a provider; touches neither server nor file. Make it inside the runtime: threads that wait for a secret are served by it.
    pub fn new(name: &str, config: &Config) -> Result<Self, Error> {
        config.validate().map_err(|reason| Error::new(ErrorKind::OperatorNeeded, reason))?;
        let session = Arc::new(Session::new(name, config.clone()));
        Ok(Self { kv: Arc::new(Kv::new(session.clone())), session })
    }
}

#[async_trait]
impl api::Provider for Provider {
    async fn open(&self, open: &OpenKey<'_>) -> Result<Arc<dyn WrappingKey>, Error> {
        let refuse = |reason: String| Error::new(ErrorKind::OperatorNeeded, reason);
        let locator: Locator = open.locator.parse().map_err(refuse)?;
        Ok(Arc::new(TransitKey::open(self.session.clone(), locator, open).await?))
    }

    async fn create_key(&self, new: &NewKey<'_>) -> Result<MadeKey, Error> {
        making::make(&self.session, new).await
    }

    async fn import_key(&self, new: &NewKey<'_>, key: &PrivateKey) -> Result<MadeKey, Error> {
        making::import(&self.session, new, key).await
    }

    /// The secrets that this login may read.
    fn secret_store(&self) -> Option<Arc<dyn SecretStore>> {
        Some(self.kv.clone())
    }
}

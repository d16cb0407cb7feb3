//! What the daemon knows of this type of provider.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use claviger_provider_api::{
    self as api, Error, LoginListener, MadeKey, Measure, NewKey, OpenKey, Options, PrivateKey,
    ProviderProcess, ProviderType, SecretSource, WrappingKey,
};

use crate::{Config, Provider};

/// What is the same for every provider of `type = "pkcs11"`.
pub const PROVIDER_TYPE: ProviderType = ProviderType {
    name: "pkcs11",
    paths: &["module"],
    secrets: &["pin"],
    is_billed: false,
    keeps_files: true,
    quota: "no quota; the token's own number of sessions, of which the daemon takes `sessions` and two \
            more while it runs, and its own speed",
    check_secret: None,
};

impl Options for Config {
    fn provider_type(&self) -> &'static ProviderType {
        &PROVIDER_TYPE
    }

    fn validate(&self) -> Result<(), String> {
        Self::validate(self)
    }

    fn check_locator(&self, locator: &str) -> Result<(), String> {
        Self::check_locator(self, locator)
    }

    fn secret_sources(&mut self) -> Vec<&mut SecretSource> {
        Self::secret_sources(self)
    }

    fn is_hardware(&self) -> bool {
        true
    }

    fn provider(
        &self,
        name: &str,
        state_dir: Option<&Path>,
    ) -> Result<Arc<dyn api::Provider>, Error> {
        Ok(Arc::new(Provider::new(name, self, state_dir)?))
    }
}

#[async_trait]
impl api::Provider for Provider {
    async fn open(&self, open: &OpenKey<'_>) -> Result<Arc<dyn WrappingKey>, Error> {
        Self::open(self, open).await
    }

    async fn create_key(&self, new: &NewKey<'_>) -> Result<MadeKey, Error> {
        Self::create_key(self, new).await
    }

    async fn import_key(&self, new: &NewKey<'_>, key: &PrivateKey) -> Result<MadeKey, Error> {
        Self::import_key(self, new, key).await
    }

    fn measures(&self) -> Vec<Measure> {
        Self::measures(self)
    }

    fn process(&self) -> Option<ProviderProcess> {
        Self::process(self)
    }

    fn tell_logins(&self, listener: LoginListener) {
        self.logins().tell_to(listener);
    }
}

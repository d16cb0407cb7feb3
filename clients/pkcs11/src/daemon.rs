//! The daemon, reached when it is needed: the blocking client, with a host's signals kept out.

use std::sync::{Arc, Mutex};

use claviger_client::{Client, Config, Error, Key, SignOptions, UnwrapOptions};
use claviger_provider_api::{Algorithm, SignAlgorithm};
use tokio::runtime::{Builder, Runtime};
use zeroize::Zeroizing;

use crate::config::Token;
use crate::guest::without_sigpipe;
use crate::process::lock;

/// One daemon. Nothing is read or connected before the first call.
pub(crate) struct Daemon {
    token: Token,
    connection: Mutex<Option<Arc<Connection>>>,
}

struct Connection {
    runtime: Mutex<Runtime>,
    client: Client,
}

impl Daemon {
    pub(crate) fn new(token: Token) -> Self {
        Self { token, connection: Mutex::default() }
    }

    /// Every key that this program may use.
    pub(crate) fn keys(&self) -> Result<Vec<Key>, Error> {
        self.call(async |client| client.keys().await)
    }

    /// One key.
    pub(crate) fn key(&self, name: &str) -> Result<Key, Error> {
        self.call(async |client| client.key(name).await)
    }

    pub(crate) fn unwrap_key(
        &self,
        key: &str,
        key_version: Option<u32>,
        wrapped: &[u8],
        algorithm: Algorithm,
        label: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        let options =
            UnwrapOptions { key_version, algorithm: algorithm.to_string(), label: label.to_vec() };
        self.call(async |client| client.unwrap_key(key, wrapped, &options).await)
            .map(|unwrapped| unwrapped.key_material)
    }

    pub(crate) fn sign(
        &self,
        key: &str,
        key_version: u32,
        digest: &[u8],
        algorithm: SignAlgorithm,
    ) -> Result<Vec<u8>, Error> {
        let options = SignOptions { key_version: Some(key_version) };
        self.call(async |client| client.sign(key, digest, algorithm.name(), options).await)
            .map(|signed| signed.signature)
    }

    fn call<T>(&self, call: impl AsyncFnOnce(&Client) -> Result<T, Error>) -> Result<T, Error> {
        without_sigpipe(|| {
            let connection = self.connection()?;
            lock(&connection.runtime).block_on(call(&connection.client))
        })
    }

    fn connection(&self) -> Result<Arc<Connection>, Error> {
        let mut connection = lock(&self.connection);
        if let Some(connection) = &*connection {
            return Ok(Arc::clone(connection));
        }
        let token = &self.token;
        let mut config = Config::new(
            &token.endpoints[0],
            token.ca.clone(),
            token.certificate.clone(),
            token.private_key.clone(),
        )?;
        config.timeout = token.timeout;
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let client = {
            let _inside = runtime.enter();
            Client::new(&config)?
        };
        let made = Arc::new(Connection { runtime: Mutex::new(runtime), client });
        Ok(Arc::clone(connection.insert(made)))
    }
}

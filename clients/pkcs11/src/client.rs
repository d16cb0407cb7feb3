//! The daemon, reached when it is needed: the blocking client, with a host's signals kept out.

use std::sync::Mutex;
use std::time::Duration;

use claviger_client::blocking::Client;
use claviger_client::{Config, Error, Key, SignOptions, UnwrapOptions};
use claviger_provider_api::{Algorithm, SignAlgorithm};
use zeroize::Zeroizing;

use crate::config::Token;
use crate::host_process::without_sigpipe;
use crate::lock::lock;

/// One daemon. Nothing is read or connected before the first call.
pub(crate) struct DaemonClient {
    token: Token,
    client: Mutex<Option<Client>>,
}

impl DaemonClient {
    pub(crate) fn new(token: Token) -> Self {
        Self { token, client: Mutex::default() }
    }

    /// Every key that this program may use, as one of the endpoints knows them.
    pub(crate) fn keys(&self, within: Duration) -> Result<Vec<Key>, Error> {
        self.call(|client| client.with_timeout(within).keys())
    }

    /// One key, as an endpoint knows it that has opened it, if there is one.
    pub(crate) fn key(&self, name: &str, within: Duration) -> Result<Key, Error> {
        self.call(|client| client.with_timeout(within).opened_key(name))
    }

    /// Whether another endpoint may know what the first one does not.
    pub(crate) fn is_several(&self) -> bool {
        self.token.endpoints.len() > 1
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
        let unwrapped = self.call(|client| client.unwrap_key(key, wrapped, &options))?;
        Ok(unwrapped.key_material)
    }

    pub(crate) fn sign(
        &self,
        key: &str,
        key_version: u32,
        digest: &[u8],
        algorithm: SignAlgorithm,
    ) -> Result<Vec<u8>, Error> {
        let options = SignOptions { key_version: Some(key_version) };
        let signed = self.call(|client| client.sign(key, digest, algorithm.name(), options))?;
        Ok(signed.signature)
    }

    fn call<T>(&self, call: impl FnOnce(&Client) -> Result<T, Error>) -> Result<T, Error> {
        without_sigpipe(|| call(&self.client()?))
    }

    /// The client, made by the first call. Its files may come after the host has started.
    fn client(&self) -> Result<Client, Error> {
        let mut client = lock(&self.client);
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let Token { endpoints, ca, certificate, private_key, timeout, hedge, .. } = &self.token;
        let [ca, certificate, private_key] =
            [ca, certificate, private_key].map(|file| file.as_deref());
        let config = Config::new(endpoints, ca, certificate, private_key)?;
        // What a host does with an error may be to give up for good: what passes by itself is waited
        // for as long as a call may take.
        let made = Client::new(&Config { timeout: *timeout, wait: true, hedge: *hedge, ..config })?;
        Ok(client.insert(made).clone())
    }
}

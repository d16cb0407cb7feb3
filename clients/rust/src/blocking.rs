//! The calls for programs without a runtime of their own.
//!
//! A [`Client`] has no thread of its own at any time, and nothing of it runs between two calls. The threads that call share one connection to each endpoint; one of
//! them drives it for all, and hands that on when its own call has ended.

use std::os::unix::fs::MetadataExt;
use std::process;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use claviger_proto::v1;
use tokio::runtime::{Builder, Runtime};

use crate::client::CallOptions;
use crate::config::{Config, ConfigError};
use crate::connect::Driver;
use crate::endpoints::Endpoints;
use crate::error::{Code, Error};
use crate::{
    Client as AsyncClient, Health, KeyPage, RewrapItem, Rewrapped, SignOptions, Signed, UnwrapItem,
    UnwrapOptions, Unwrapped, Verified, WrapOptions, Wrapped,
};

/// The blocking counterpart of [`crate::Client`], with the same methods. Cheap to clone; clones
/// share the connections.
///
/// - Between calls the daemon's pings are not answered, and it cuts such a connection after a while:
///   one that was idle for longer than [`Config::max_idle`] is replaced before a call.
/// - Host names are looked up by the calling thread. The system's resolver cannot be interrupted:
///   where the deadline must hold even while name servers are down, configure addresses.
/// - After a fork the child begins anew, with connections of its own. It leaves alone what it
///   inherited, whether it goes on calling or drops the client, so that the parent is undisturbed;
///   the inherited descriptors close at its next `exec`, or with it.
///
/// # Panics
///
/// Its methods panic inside an asynchronous task, as blocking there would stop other tasks: use
/// [`crate::Client`].
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
    options: CallOptions,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    engine: ArcSwap<Engine>,
}

/// The connections of one process, and what drives them.
#[derive(Debug)]
struct Engine {
    process: ProcessId,
    parts: Option<Parts>,
}

/// A process: its number, and the PID namespace in which it has it. A child of fork in a namespace of
/// its own may have its parent's number (unshare(2), CLONE_NEWPID).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ProcessId {
    number: u32,
    namespace: Option<u64>,
}

impl ProcessId {
    fn here() -> Self {
        let namespace = std::fs::metadata("/proc/self/ns/pid");
        let namespace = namespace.ok().map(|namespace| namespace.ino());
        Self { number: process::id(), namespace }
    }
}

#[derive(Debug)]
struct Parts {
    endpoints: Arc<Endpoints>,
    runtime: OnceLock<Runtime>,
}

impl Client {
    /// Connects, and asks the daemon for its health, as [`crate::Client::connect`] does.
    pub fn connect(config: &Config) -> Result<Self, Error> {
        let client = Self::new(config)?;
        client.health(None)?;
        Ok(client)
    }

    /// Reads the files of `config`; everything else waits for the first call.
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        let engine = ArcSwap::from_pointee(Engine::new(config)?);
        let shared = Arc::new(Shared { config: config.clone(), engine });
        Ok(Self { shared, options: CallOptions::new(config)? })
    }

    /// A client over these connections with another deadline for each call.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        let mut client = self.clone();
        client.options.timeout = timeout;
        client
    }

    /// A client over these connections with a request id, as [`crate::Client::with_request_id`] does.
    pub fn with_request_id(&self, request_id: &str) -> Result<Self, Error> {
        let mut client = self.clone();
        client.options.set_request_id(request_id)?;
        Ok(client)
    }

    /// See [`crate::Client::wrap`].
    pub fn wrap(
        &self,
        key: &str,
        material: &[u8],
        options: &WrapOptions,
    ) -> Result<Wrapped, Error> {
        self.call(async |client| client.wrap(key, material, options).await)
    }

    /// See [`crate::Client::unwrap_key`].
    pub fn unwrap_key(
        &self,
        key: &str,
        wrapped: &[u8],
        options: &UnwrapOptions,
    ) -> Result<Unwrapped, Error> {
        self.call(async |client| client.unwrap_key(key, wrapped, options).await)
    }

    /// See [`crate::Client::unwrap_batch`].
    pub fn unwrap_batch(
        &self,
        items: &[UnwrapItem],
    ) -> Result<Vec<Result<Unwrapped, Error>>, Error> {
        self.call(async |client| client.unwrap_batch(items).await)
    }

    /// See [`crate::Client::rewrap`].
    pub fn rewrap(&self, item: &RewrapItem) -> Result<Rewrapped, Error> {
        self.call(async |client| client.rewrap(item).await)
    }

    /// See [`crate::Client::rewrap_batch`].
    pub fn rewrap_batch(
        &self,
        items: &[RewrapItem],
    ) -> Result<Vec<Result<Rewrapped, Error>>, Error> {
        self.call(async |client| client.rewrap_batch(items).await)
    }

    /// See [`crate::Client::sign`].
    pub fn sign(
        &self,
        key: &str,
        digest: &[u8],
        algorithm: &str,
        options: SignOptions,
    ) -> Result<Signed, Error> {
        self.call(async |client| client.sign(key, digest, algorithm, options).await)
    }

    /// See [`crate::Client::verify`].
    pub fn verify(
        &self,
        key: &str,
        digest: &[u8],
        algorithm: &str,
        signature: &[u8],
        options: SignOptions,
    ) -> Result<Verified, Error> {
        self.call(async |client| client.verify(key, digest, algorithm, signature, options).await)
    }

    /// See [`crate::Client::list_keys`].
    pub fn list_keys(&self, page_size: u32, after: Option<&str>) -> Result<KeyPage, Error> {
        self.call(async |client| client.list_keys(page_size, after).await)
    }

    /// See [`crate::Client::keys`].
    pub fn keys(&self) -> Result<Vec<v1::Key>, Error> {
        self.call(async |client| client.keys().await)
    }

    /// See [`crate::Client::key`].
    pub fn key(&self, name: &str) -> Result<v1::Key, Error> {
        self.call(async |client| client.key(name).await)
    }

    /// See [`crate::Client::opened_key`].
    pub fn opened_key(&self, name: &str) -> Result<v1::Key, Error> {
        self.call(async |client| client.opened_key(name).await)
    }

    /// See [`crate::Client::health`].
    pub fn health(&self, key: Option<&str>) -> Result<Health, Error> {
        self.call(async |client| client.health(key).await)
    }

    fn call<T>(
        &self,
        call: impl AsyncFnOnce(&AsyncClient) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let engine = self.shared.engine()?;
        let parts = engine.parts.as_ref().expect("taken only when it is dropped");
        let endpoints = Arc::clone(&parts.endpoints);
        let client = AsyncClient { endpoints, options: self.options.clone() };
        parts.runtime()?.block_on(call(&client))
    }
}

impl Shared {
    /// The engine of this process: a child that was forked makes its own. Of its parent's it
    /// touches nothing, not even a lock, which another thread may have held in that moment.
    fn engine(&self) -> Result<Arc<Engine>, ConfigError> {
        let mut engine = self.engine.load_full();
        while engine.process != ProcessId::here() {
            let own = Arc::new(Engine::new(&self.config)?);
            self.engine.compare_and_swap(&engine, own);
            engine = self.engine.load_full();
        }
        Ok(engine)
    }
}

impl Engine {
    fn new(config: &Config) -> Result<Self, ConfigError> {
        let endpoints = Arc::new(Endpoints::new(config, Driver::OnlyInCalls)?);
        let parts = Parts { endpoints, runtime: OnceLock::new() };
        Ok(Self { process: ProcessId::here(), parts: Some(parts) })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let Some(parts) = self.parts.take() else { return };
        if self.process == ProcessId::here() {
            drop(parts.endpoints);
            if let Some(runtime) = parts.runtime.into_inner() {
                runtime.shutdown_background();
            }
        } else {
            // Dropped properly, the sockets would be struck off the poll instance, which the parent
            // still uses.
            std::mem::forget(parts);
        }
    }
}

impl Parts {
    fn runtime(&self) -> Result<&Runtime, Error> {
        if let Some(runtime) = self.runtime.get() {
            return Ok(runtime);
        }
        let runtime = Builder::new_current_thread().enable_all().build().map_err(|error| {
            let message = format!("cannot prepare to connect: {error}");
            Error::local(Code::Unavailable, message)
        })?;
        Ok(self.runtime.get_or_init(|| runtime))
    }
}

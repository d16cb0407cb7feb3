//! A real OpenBao or HashiCorp Vault, with configurations of this provider for it.

#![allow(dead_code, reason = "each test program uses its part")]
#![allow(unreachable_pub, reason = "a module of several test programs")]

use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use claviger_provider_api::Timeout;
use claviger_provider_api::{
    Algorithm, Call, CallerSlot, Error, KeyMaterial, OpenKey, Parameters, Provider as _,
    SecretSource, SignAlgorithm, WrappingKey,
};
use claviger_vault_transit::{AppRole, Auth, Config, Provider};
use serde_json::json;
use test_backends::vault;
pub use test_backends::vault::{Backend, ROOT};

/// Runs each test on OpenBao, and as a long one on HashiCorp Vault.
#[macro_export]
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod openbao {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name($crate::backend::Backend::OpenBao).await;
            })*
        }
        mod vault {
            $(#[tokio::test(flavor = "multi_thread")]
            #[ignore = "long: scripts/test --all"]
            async fn $name() {
                super::$name($crate::backend::Backend::Vault).await;
            })*
        }
    };
}

/// A running server with a Transit engine at `transit`. It ends when dropped.
pub struct Server(vault::Server);

impl Deref for Server {
    type Target = vault::Server;

    fn deref(&self) -> &vault::Server {
        &self.0
    }
}

impl Server {
    /// Starts over http.
    pub async fn start(backend: Backend) -> Self {
        Self(vault::Server::start(backend).await)
    }

    /// Starts over https, with a CA of its own.
    pub async fn start_tls(backend: Backend) -> Self {
        Self(vault::Server::start_tls(backend).await)
    }

    /// Writes a secret file.
    pub fn secret(&self, name: &str, content: &str) -> SecretSource {
        SecretSource::File(self.secret_file(name, content))
    }

    /// A configuration that logs in by a token.
    pub fn config_with_token(&self, token: &str) -> Config {
        self.config(Auth::Token(self.secret("token", token)))
    }

    pub fn config(&self, auth: Auth) -> Config {
        Config {
            address: self.address.clone(),
            ca: self.ca(),
            namespace: None,
            auth,
            connect_timeout: Timeout(Duration::from_secs(3)),
            timeout: Timeout(Duration::from_secs(10)),
        }
    }

    /// The policy that the documentation names, and an AppRole with it; tokens live for `ttl`.
    pub async fn config_with_approle(&self, ttl: &str, max_ttl: &str) -> Config {
        let policy = vault::Server::least_policy();
        let (role_id, secret_id) = self.approle(&policy, ttl, max_ttl).await;
        self.config(Auth::Approle(AppRole {
            mount: "approle".into(),
            role_id,
            secret_id: self.secret("secret-id", &secret_id),
        }))
    }

    /// The least policy, as in `docs/backends/vault-transit.md`.
    pub async fn least_policy(&self) {
        let policy = vault::Server::least_policy();
        self.set("sys/policies/acl/claviger", json!({"policy": policy})).await;
    }
}

/// Opens a key with the algorithms that this backend has.
pub async fn open(config: &Config, locator: &str) -> Result<Arc<dyn WrappingKey>, Error> {
    open_with(config, locator, &[Algorithm::RsaOaep256], &[]).await
}

pub async fn open_with(
    config: &Config,
    locator: &str,
    algorithms: &[Algorithm],
    sign_algorithms: &[SignAlgorithm],
) -> Result<Arc<dyn WrappingKey>, Error> {
    let provider = Provider::new("vault-a", config).unwrap();
    provider.open(&OpenKey { locator, algorithms, sign_algorithms, public_key_sha256: None }).await
}

/// A call that may take `limit`.
pub fn call(limit: Duration) -> Call {
    Call { caller: CallerSlot(1), deadline: Instant::now() + limit }
}

/// Wraps and unwraps 32 bytes; gives the id under which the server logged it.
pub async fn round_trip(key: &dyn WrappingKey) -> Result<Option<String>, Error> {
    let parameters = Parameters::of(Algorithm::RsaOaep256);
    let material = KeyMaterial::copied_from(&[7; 32]);
    let wrapped = key.public_key().wrap(&material, &parameters).unwrap();
    let unwrapped = key.unwrap_key(&wrapped, &parameters, call(Duration::from_secs(10))).await?;
    assert_eq!(unwrapped.material.expose(), [7; 32]);
    Ok(unwrapped.backend_request_id)
}

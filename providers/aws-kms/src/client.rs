//! The client that all keys of a provider share, and how its credentials are renewed.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use aws_sdk_kms::Client;
use aws_sdk_kms::config::retry::RetryConfig;
use aws_sdk_kms::config::timeout::TimeoutConfig;
use aws_sdk_kms::config::{AppName, BehaviorVersion, IdentityCache, Region, SharedHttpClient};
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};
use claviger_provider_api::{Error, ErrorKind, tls};

use crate::config::Config;
use crate::credentials;
use crate::error::Failure;
use crate::limit::Limited;

/// KMS in one region, under one source of credentials.
#[derive(Debug)]
pub(crate) struct Backend {
    session: RwLock<Session>,
    renewing: tokio::sync::Mutex<()>,
    credential_timeout: Duration,
    repairs: AtomicU64,
}

/// A client with the credentials it holds.
#[derive(Clone, Debug)]
struct Session {
    client: Client,
    /// How many were before it.
    number: u64,
    /// The last one whose credentials were accepted after others were not.
    accepted: u64,
}

impl Backend {
    /// Makes the client; sends nothing. No environment variable says where requests to KMS go.
    pub(crate) async fn connect(config: &Config) -> Result<Arc<Self>, Error> {
        let http_client = http_client(config.ca.as_deref()).await?;
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(config.connect_timeout.0)
            .operation_attempt_timeout(config.attempt_timeout.0)
            .operation_timeout(config.operation_timeout.0)
            .build();
        let credentials = credentials::source(config, http_client.clone(), timeouts.clone()).await;
        let credential_timeout = config.attempt_timeout.0;
        let mut sdk = aws_sdk_kms::Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .app_name(AppName::new("claviger").expect("a word of letters"))
            .region(Region::new(config.region.clone()))
            .credentials_provider(credentials)
            .identity_cache(fresh_cache(credential_timeout))
            .http_client(http_client)
            .timeout_config(timeouts)
            // Retrying is the daemon's, and only after a repair.
            .retry_config(RetryConfig::disabled());
        sdk.set_endpoint_url(config.endpoint.clone());
        Ok(Arc::new(Self {
            session: RwLock::new(Session {
                client: Client::from_conf(sdk.build()),
                number: 0,
                accepted: 0,
            }),
            renewing: tokio::sync::Mutex::new(()),
            credential_timeout,
            repairs: AtomicU64::new(0),
        }))
    }

    /// The client of now.
    pub(crate) fn client(&self) -> Client {
        self.session().client
    }

    /// How often new credentials were accepted where older ones were not.
    pub(crate) fn repairs(&self) -> u64 {
        self.repairs.load(Ordering::Acquire)
    }

    /// Calls, and once more with credentials that were asked for anew if AWS refused those it had.
    pub(crate) async fn call_renewing<T, F>(&self, call: impl Fn(Client) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let Session { client, number, .. } = self.session();
        match call(client).await {
            Err(failure) if failure.is_renewable() => {
                let Session { client, number, .. } = self.renewed(number, failure).await;
                let answer = call(client).await.map_err(Failure::after_renewal)?;
                self.count_repair(number);
                Ok(answer)
            }
            outcome => outcome.map_err(Failure::into_error),
        }
    }

    /// A client that asks for credentials anew, unless another call made one since `number`. The
    /// connections stay.
    async fn renewed(&self, number: u64, refused: Failure) -> Session {
        let _one_at_a_time = self.renewing.lock().await;
        let session = self.session();
        if session.number != number {
            return session;
        }
        let error = refused.into_error();
        tracing::warn!(%error, "AWS refused the credentials; asking for new ones");
        let config = session.client.config().to_builder();
        let config = config.identity_cache(fresh_cache(self.credential_timeout)).build();
        let mut current = self.session.write().unwrap_or_else(PoisonError::into_inner);
        current.client = Client::from_conf(config);
        current.number = number + 1;
        current.clone()
    }

    /// Counts one repair, however many calls found out at the same time.
    fn count_repair(&self, number: u64) {
        let mut current = self.session.write().unwrap_or_else(PoisonError::into_inner);
        if current.accepted < number {
            current.accepted = number;
            self.repairs.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn session(&self) -> Session {
        self.session.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn fresh_cache(load_timeout: Duration) -> aws_sdk_kms::config::SharedIdentityCache {
    IdentityCache::lazy().load_timeout(load_timeout).build()
}

/// HTTP without proxy and without redirects; TLS by rustls over aws-lc; answers of limited length.
async fn http_client(ca: Option<&Path>) -> Result<SharedHttpClient, Error> {
    let builder = Builder::new().tls_provider(Provider::Rustls(CryptoMode::AwsLc));
    let Some(path) = ca else { return Ok(Limited::client(builder.build_https())) };
    let path = path.to_owned();
    // The SDK panics on what it cannot parse, so it is parsed here first.
    let read = tokio::task::spawn_blocking(move || tls::ca_pem(&path)).await;
    let pem = read.map_err(|error| Error::new(ErrorKind::Internal, error))??;
    let trust = TrustStore::empty().with_pem_certificate(pem);
    let context = TlsContext::builder()
        .with_trust_store(trust)
        .build()
        .map_err(|error| Error::new(ErrorKind::Internal, format!("`ca` is refused: {error}")))?;
    Ok(Limited::client(builder.tls_context(context).build_https()))
}

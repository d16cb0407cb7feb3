//! What requests are signed with: the standard chain, a profile, or an access key in secret files.

use std::fmt;

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::future;
use aws_sdk_kms::config::{Credentials, ProvideCredentials, Region, SharedCredentialsProvider};
use aws_sdk_kms::config::{SharedHttpClient, retry::RetryConfig, timeout::TimeoutConfig};
use claviger_provider_api::{ErrorKind, SecretError, SecretSource};

use crate::config::{Config, StaticCredentials};

/// The configured source of credentials. What it asks over the network (STS, ECS, IMDS) goes
/// through `http_client`.
pub(crate) async fn source(
    config: &Config,
    http_client: SharedHttpClient,
    timeouts: TimeoutConfig,
) -> SharedCredentialsProvider {
    if let Some(files) = &config.credentials {
        return SharedCredentialsProvider::new(InFiles(files.clone()));
    }
    let region = Region::new(config.region.clone());
    let conf = ProviderConfig::without_region()
        .with_region(Some(region.clone()))
        .with_http_client(http_client)
        .with_timeout_config(timeouts)
        .with_retry_config(RetryConfig::disabled());
    match &config.profile {
        Some(name) => SharedCredentialsProvider::new(
            ProfileFileCredentialsProvider::builder().configure(&conf).profile_name(name).build(),
        ),
        None => SharedCredentialsProvider::new(
            DefaultCredentialsChain::builder().region(region).configure(conf).build().await,
        ),
    }
}

/// An access key in secret files, read anew each time it is asked for, so that replaced files act.
struct InFiles(StaticCredentials);

impl InFiles {
    async fn read(&self) -> Result<Credentials, CredentialsError> {
        let StaticCredentials { access_key_id, secret_access_key, session_token } = &self.0;
        let token = match session_token {
            Some(source) => Some(read("session_token", source).await?),
            None => None,
        };
        Ok(Credentials::new(
            read("access_key_id", access_key_id).await?,
            read("secret_access_key", secret_access_key).await?,
            token,
            None,
            "claviger's secret files",
        ))
    }
}

/// The SDK takes a `String`, which it zeroes when the credentials are dropped.
async fn read(name: &'static str, source: &SecretSource) -> Result<String, CredentialsError> {
    let secret = source.read().await.map_err(|error| {
        let passing = error.kind() == ErrorKind::Unavailable;
        let error = NotInFile::Unreadable { name, source: error };
        if passing {
            CredentialsError::provider_error(error)
        } else {
            CredentialsError::invalid_configuration(error)
        }
    })?;
    let secret = secret.without_line_end();
    let text = str::from_utf8(secret.expose())
        .ok()
        .filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()));
    text.map(str::to_owned)
        .ok_or_else(|| CredentialsError::invalid_configuration(NotInFile::NoWord(name)))
}

/// Why a secret file gives no part of an access key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotInFile {
    #[error("`credentials.{name}` cannot be read")]
    Unreadable { name: &'static str, source: SecretError },
    #[error("the source of `credentials.{0}` holds more or less than one printable word")]
    NoWord(&'static str),
}

impl ProvideCredentials for InFiles {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.read())
    }
}

impl fmt::Debug for InFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InFiles({:?})", self.0)
    }
}

//! What a provider signs in with: from its configuration and the secret in its file to a token.

use std::sync::Arc;

use async_trait::async_trait;
use azure_core::cloud::{CloudConfiguration, CustomConfiguration};
use azure_core::credentials::{AccessToken, Secret, TokenCredential};
use azure_core::error::ErrorKind as SdkErrorKind;
use azure_core::http::{ClientMethodOptions, ClientOptions, RetryOptions, Transport};
use azure_identity::{
    AzureCliCredential, AzureCliCredentialOptions, ClientAssertion, ClientAssertionCredential,
    ClientAssertionCredentialOptions, ClientSecretCredential, ClientSecretCredentialOptions,
    ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId,
};
use claviger_provider_api::{Cause, Error, ErrorKind, SecretSource};

use crate::config::{Auth, Config};
use crate::error::LoginFailure;
use crate::limit::Limited;

/// Asks for tokens; keeps neither them nor a secret.
pub(crate) struct Credentials {
    auth: Auth,
    scope: String,
    options: ClientOptions,
}

impl Credentials {
    pub(crate) fn new(config: &Config, scope: &str, http: Limited) -> Self {
        let mut cloud = CustomConfiguration::default();
        config.authority().unwrap_or_default().clone_into(&mut cloud.authority_host);
        Self {
            auth: config.auth.clone(),
            scope: scope.to_owned(),
            options: ClientOptions {
                retry: RetryOptions::none(),
                transport: Some(Transport::new(Arc::new(http))),
                cloud: Some(Arc::new(CloudConfiguration::Custom(cloud))),
                ..ClientOptions::default()
            },
        }
    }

    /// A new token.
    pub(crate) async fn token(&self) -> Result<AccessToken, LoginFailure> {
        self.ask().await.map_err(|error| LoginFailure::of(&error))
    }

    async fn ask(&self) -> azure_core::Result<AccessToken> {
        let scopes = &[self.scope.as_str()];
        let client_options = self.options.clone();
        match &self.auth {
            Auth::ManagedIdentity(identity) => {
                let options = ManagedIdentityCredentialOptions {
                    user_assigned_id: identity.client_id.clone().map(UserAssignedId::ClientId),
                    client_options,
                };
                ManagedIdentityCredential::new(Some(options))?.get_token(scopes, None).await
            }
            Auth::WorkloadIdentity(identity) => {
                let credential = ClientAssertionCredential::new(
                    identity.tenant_id.clone(),
                    identity.client_id.clone(),
                    InFile(identity.token.clone()),
                    Some(ClientAssertionCredentialOptions { client_options }),
                )?;
                credential.get_token(scopes, None).await
            }
            Auth::ClientSecret(secret) => {
                let credential = ClientSecretCredential::new(
                    &secret.tenant_id,
                    secret.client_id.clone(),
                    Secret::new(read("client_secret.secret", &secret.secret).await?),
                    Some(ClientSecretCredentialOptions { client_options }),
                )?;
                credential.get_token(scopes, None).await
            }
            Auth::AzureCli(cli) => {
                let options = AzureCliCredentialOptions {
                    tenant_id: cli.tenant_id.clone(),
                    ..AzureCliCredentialOptions::default()
                };
                AzureCliCredential::new(Some(options))?.get_token(scopes, None).await
            }
        }
    }
}

/// A federated token in a secret file.
#[derive(Debug)]
struct InFile(SecretSource);

#[async_trait]
impl ClientAssertion for InFile {
    async fn secret(&self, _: Option<ClientMethodOptions<'_>>) -> azure_core::Result<String> {
        read("workload_identity.token", &self.0).await
    }
}

/// The SDK takes a `String`.
async fn read(name: &str, source: &SecretSource) -> azure_core::Result<String> {
    let secret = source.read().await.map_err(|error| {
        let error = Error::from(error);
        LoginFailure::new(error.kind(), error.cause(), format!("`auth.{name}`: {error}"))
    })?;
    let secret = secret.without_line_end();
    let text = str::from_utf8(secret.expose())
        .ok()
        .filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()));
    text.map(str::to_owned).ok_or_else(|| {
        let reason =
            format!("the file of `auth.{name}` holds more or less than one printable word");
        LoginFailure::new(ErrorKind::OperatorNeeded, Some(Cause::SecretFile), reason).into()
    })
}

impl From<LoginFailure> for azure_core::Error {
    fn from(failure: LoginFailure) -> Self {
        Self::new(SdkErrorKind::Credential, failure)
    }
}

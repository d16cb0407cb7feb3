//! The login of one provider: a token for its vault and for nothing else, replaced before it ends or
//! when the vault refuses it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use azure_core::cloud::{CloudConfiguration, CustomConfiguration};
use azure_core::credentials::{AccessToken, Secret, TokenCredential, TokenRequestOptions};
use azure_core::error::ErrorKind as SdkErrorKind;
use azure_core::http::{ClientMethodOptions, ClientOptions, RetryOptions, Transport};
use azure_core::time::OffsetDateTime;
use azure_identity::{
    AzureCliCredential, AzureCliCredentialOptions, ClientAssertion, ClientAssertionCredential,
    ClientAssertionCredentialOptions, ClientSecretCredential, ClientSecretCredentialOptions,
    ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId,
};
use claviger_provider_api::{ErrorKind, SecretSource};
use tokio::sync::Mutex;

use crate::config::{Auth, Config};
use crate::error::{LoginFailure, printable};

/// A token that is younger than this is not replaced: it was got for a call that was refused at the
/// same time as this one.
const YOUNG: Duration = Duration::from_secs(2);

/// From when on before its end the SDK asks for the next token.
const SDK_RENEWS: Duration = Duration::from_mins(5);

/// For how long after a failure a token that is still good is used without asking for the next one, so
/// that calls do not wait for an authority that is down.
const PAUSE: Duration = Duration::from_secs(30);

/// Signs in. The SDK keeps the token until it nears its end or is refused, and then asks again; nothing
/// is kept here that would be sent in its place, secrets least of all.
pub(crate) struct Login {
    auth: Auth,
    scope: String,
    options: ClientOptions,
    last: Mutex<Last>,
    replaced: AtomicU64,
}

/// The last token, and the last failure since.
#[derive(Default)]
struct Last {
    token: Option<(AccessToken, Instant)>,
    failed_at: Option<Instant>,
}

impl Login {
    pub(crate) fn new(config: &Config, http: reqwest::Client) -> Self {
        let mut cloud = CustomConfiguration::default();
        config.authority().unwrap_or_default().clone_into(&mut cloud.authority_host);
        Self {
            auth: config.auth.clone(),
            scope: format!("{}/.default", config.resource().unwrap_or_default()),
            options: ClientOptions {
                retry: RetryOptions::none(),
                transport: Some(Transport::new(Arc::new(http))),
                cloud: Some(Arc::new(CloudConfiguration::Custom(cloud))),
                ..ClientOptions::default()
            },
            last: Mutex::default(),
            replaced: AtomicU64::new(0),
        }
    }

    /// How often a token was replaced before its end.
    pub(crate) fn replaced(&self) -> u64 {
        self.replaced.load(Ordering::Acquire)
    }

    /// Refuses a challenge (RFC 9110 section 11.6.1) that asks for a token for anything else, in any of
    /// the parameters that the SDK may read.
    pub(crate) fn check_challenge(&self, challenge: &str) -> Result<(), LoginFailure> {
        for (at, _) in challenge.match_indices("=\"") {
            let (name, value) = (&challenge[..at], &challenge[at + 2..]);
            let value = value.split('"').next().unwrap_or_default();
            let scope = if name.ends_with("resource") {
                format!("{value}/.default")
            } else if name.ends_with("scope") {
                value.to_owned()
            } else {
                continue;
            };
            self.check_scopes(&[&scope])?;
        }
        Ok(())
    }

    fn check_scopes(&self, scopes: &[&str]) -> Result<(), LoginFailure> {
        if scopes == [self.scope.as_str()] {
            return Ok(());
        }
        let reason = format!(
            "the vault asks for a token for {}, and gets one for {:?} or none; look at `vault` and \
             `resource`",
            printable(&format!("{scopes:?}")),
            self.scope
        );
        Err(LoginFailure::new(ErrorKind::OperatorNeeded, reason))
    }

    async fn fetch(&self, scopes: &[&str]) -> azure_core::Result<AccessToken> {
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

#[async_trait]
impl TokenCredential for Login {
    async fn get_token(
        &self,
        scopes: &[&str],
        _options: Option<TokenRequestOptions<'_>>,
    ) -> azure_core::Result<AccessToken> {
        self.check_scopes(scopes)?;
        let mut last = self.last.lock().await;
        let now = OffsetDateTime::now_utc();
        // One that is asked for in place of another which has long to go was refused.
        let was_refused = |token: &AccessToken| token.expires_on > now + SDK_RENEWS;
        if let Some((token, at)) = &last.token {
            let is_good = token.expires_on > now + PAUSE;
            let pauses = last.failed_at.is_some_and(|failed_at| failed_at.elapsed() < PAUSE);
            if is_good && (at.elapsed() < YOUNG || (pauses && !was_refused(token))) {
                return Ok(token.clone());
            }
        }
        let token = match self.fetch(scopes).await {
            Ok(token) => token,
            Err(error) => {
                last.failed_at = Some(Instant::now());
                return Err(LoginFailure::of(&error).into());
            }
        };
        if last.token.as_ref().is_some_and(|(old, _)| was_refused(old)) {
            tracing::warn!("Azure refused a token before its end; another one was got");
            self.replaced.fetch_add(1, Ordering::AcqRel);
        }
        *last = Last { token: Some((token.clone(), Instant::now())), failed_at: None };
        Ok(token)
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({})", self.scope)
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
        let kind = error.kind();
        let error = claviger_provider_api::Error::new(kind, error);
        LoginFailure::new(kind, format!("`auth.{name}`: {error}"))
    })?;
    let secret = secret.without_line_end();
    let text = str::from_utf8(secret.expose())
        .ok()
        .filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()));
    text.map(str::to_owned).ok_or_else(|| {
        let reason =
            format!("the file of `auth.{name}` holds more or less than one printable word");
        LoginFailure::new(ErrorKind::OperatorNeeded, reason).into()
    })
}

impl From<LoginFailure> for azure_core::Error {
    fn from(failure: LoginFailure) -> Self {
        Self::new(SdkErrorKind::Credential, failure)
    }
}

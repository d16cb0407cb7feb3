//! The client that all keys of a provider share: TLS of our own, no proxy, no redirects, no retries,
//! and no request to anywhere but the vault.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use azure_core::error::ErrorKind as SdkErrorKind;
use azure_core::http::headers::{AUTHORIZATION, WWW_AUTHENTICATE};
use azure_core::http::{
    AsyncRawResponse, ClientOptions, HttpClient, Request, RetryOptions, StatusCode, Transport,
    UserAgentOptions,
};
use azure_security_keyvault_keys::{KeyClient, KeyClientOptions};
use claviger_provider_api::{Cause, Error, ErrorKind};

use crate::config::{Auth, Config};
use crate::error::{self, Operation};
use crate::limit::Limited;
use crate::login::Login;

/// One vault under one login.
pub(crate) struct Backend {
    keys: KeyClient,
    login: Arc<Login>,
    operation_timeout: Duration,
}

impl Backend {
    /// Makes the client; sends nothing.
    pub(crate) fn connect(config: &Config) -> Result<Arc<Self>, Error> {
        let internal = |error: azure_core::Error| Error::new(ErrorKind::Internal, error);
        let refuse = |reason: String| Error::new(ErrorKind::OperatorNeeded, reason);
        let origin = config.origin().map_err(refuse)?;
        // The metadata service of a virtual machine speaks plain HTTP, on the host itself.
        let https_only = !matches!(config.auth, Auth::ManagedIdentity(_));
        let login = Arc::new(Login::new(config, Limited::new(config, https_only)?));
        let http = Limited::new(config, true)?;
        let fence = Fence { http, origin: origin.clone(), login: login.clone() };
        let options = KeyClientOptions {
            client_options: ClientOptions {
                retry: RetryOptions::none(),
                transport: Some(Transport::new(Arc::new(fence))),
                user_agent: UserAgentOptions { application_id: Some("claviger".to_owned()) },
                ..ClientOptions::default()
            },
            // The fence looks at it, more strictly.
            verify_challenge_resource: Some(false),
            ..KeyClientOptions::default()
        };
        let keys = KeyClient::new(&origin, login.clone(), Some(options)).map_err(internal)?;
        Ok(Arc::new(Self { keys, login, operation_timeout: config.operation_timeout.0 }))
    }

    /// The SDK's client.
    pub(crate) fn keys(&self) -> &KeyClient {
        &self.keys
    }

    /// How often a token was replaced before its end.
    pub(crate) fn repairs(&self) -> u64 {
        self.login.replaced()
    }

    /// Asks until the deadline, and no longer than a call may take. A request that was sent before
    /// cannot be taken back; its answer is dropped with its connection.
    pub(crate) async fn ask<T>(
        &self,
        operation: Operation,
        deadline: Instant,
        asking: impl Future<Output = azure_core::Result<T>>,
    ) -> Result<T, Error> {
        let limit = Instant::now() + self.operation_timeout;
        match tokio::time::timeout_at(deadline.min(limit).into(), asking).await {
            Ok(outcome) => outcome.map_err(|error| error::of_call(operation, &error)),
            Err(_) if deadline < limit => {
                let reason = "the deadline passed before Azure answered";
                Err(Error::new(ErrorKind::DeadlineExceeded, reason))
            }
            Err(_) => {
                let limit = self.operation_timeout.as_millis();
                let reason =
                    format!("{operation}: no answer within {limit} ms (operation_timeout)");
                Err(Error::new(ErrorKind::Unavailable, reason).with_cause(Cause::NoAnswer))
            }
        }
    }
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Backend({})", self.keys.endpoint())
    }
}

/// Lets requests out to the vault alone, and in only a challenge that asks for the login's own token.
/// The SDK follows the address of a list's next page wherever it leads, and would take the token
/// along; and what one challenge asks for it keeps for good.
#[derive(Debug)]
struct Fence {
    http: Limited,
    origin: String,
    login: Arc<Login>,
}

#[async_trait]
impl HttpClient for Fence {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        let origin = request.url().origin().ascii_serialization();
        if origin != self.origin {
            let reason = format!("a page of the list lies at {origin}, which is not the vault");
            return Err(azure_core::Error::with_message(SdkErrorKind::Other, reason));
        }
        let response = self.http.execute_request(request).await?;
        if response.status() == StatusCode::Unauthorized {
            if let Some(authorization) = request.headers().get_optional_str(&AUTHORIZATION) {
                self.login.refused(authorization).await;
            }
            if let Some(challenge) = response.headers().get_optional_str(&WWW_AUTHENTICATE) {
                self.login.check_challenge(challenge)?;
            }
        }
        Ok(response)
    }
}

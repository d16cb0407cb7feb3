//! Azure Key Vault: its SDK alone.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use azure_core::credentials::{AccessToken, TokenCredential, TokenRequestOptions};
use azure_core::http::{ClientOptions, RetryOptions, Transport};
use azure_key_vault_fake::{CLIENT_ID, CLIENT_SECRET, TENANT};
use azure_security_keyvault_keys::models::{EncryptionAlgorithm, KeyOperationParameters};
use azure_security_keyvault_keys::{KeyClient, KeyClientOptions};
use futures::future::BoxFuture;

use super::{Fake, MATERIAL, Pair, Service, http, options, secret, table, token};
use crate::Outcome;

/// The fake with the key in it, and the SDK in front.
pub(super) async fn service(key: &Pair) -> Outcome<Service> {
    let fake = Fake::start("--serve-azure", key)?;
    let (origin, kid, folder) = (fake.said("origin")?, fake.said("locator")?, &fake.folder);
    let ca = folder.path().join("ca.pem");
    fs::write(&ca, fake.said("ca")?)?;
    let application = table([
        ("tenant_id", TENANT.into()),
        ("client_id", CLIENT_ID.into()),
        ("secret", secret(folder, "secret", CLIENT_SECRET)?),
    ]);
    let provider = options([
        ("type", "azure-key-vault".into()),
        ("vault", origin.clone().into()),
        ("authority", origin.clone().into()),
        ("resource", "https://vault.azure.net".into()),
        ("ca", ca.to_str().ok_or("a path in UTF-8")?.into()),
        ("auth", table([("client_secret", application)])),
    ]);
    let http = http(Some(&fake.said("ca")?))?;
    let form = format!(
        "grant_type=client_credentials&client_id={CLIENT_ID}&client_secret={CLIENT_SECRET}\
         &scope=https://vault.azure.net/.default"
    );
    let login = http.post(format!("{origin}/{TENANT}/oauth2/v2.0/token")).body(form);
    let token = token(login.header("content-type", "application/x-www-form-urlencoded")).await?;
    let options = KeyClientOptions {
        client_options: ClientOptions {
            retry: RetryOptions::none(),
            transport: Some(Transport::new(Arc::new(http))),
            ..ClientOptions::default()
        },
        verify_challenge_resource: Some(false),
        ..KeyClientOptions::default()
    };
    let keys = Arc::new(KeyClient::new(&origin, Arc::new(KeptToken(token)), Some(options))?);
    let (version, wrapped) =
        (kid.rsplit('/').next().unwrap_or_default().to_owned(), key.wrapped.clone());
    let call = move || -> BoxFuture<'static, Outcome<bool>> {
        let (keys, version) = (Arc::clone(&keys), version.clone());
        let parameters = KeyOperationParameters {
            algorithm: Some(EncryptionAlgorithm::RsaOaep256),
            value: Some(wrapped.clone()),
            ..KeyOperationParameters::default()
        };
        Box::pin(async move {
            let answer = keys.unwrap_key("bench", &version, parameters.try_into()?, None).await?;
            let material = answer.into_model()?.result;
            Ok(material.is_some_and(|material| material == MATERIAL))
        })
    };
    Ok(Service {
        name: "Azure Key Vault (fake)",
        bare: "the SDK alone",
        provider,
        locator: kid,
        call: Arc::new(call),
        _server: Box::new(fake),
    })
}

/// A token that was got before.
#[derive(Debug)]
struct KeptToken(String);

#[async_trait::async_trait]
impl TokenCredential for KeptToken {
    async fn get_token(
        &self,
        _: &[&str],
        _: Option<TokenRequestOptions<'_>>,
    ) -> azure_core::Result<AccessToken> {
        let expires_on = azure_core::time::OffsetDateTime::now_utc() + Duration::from_hours(1);
        Ok(AccessToken::new(self.0.clone(), expires_on))
    }
}

//! OpenID Connect Discovery (1.0, section 4): the issuer's name and its key set, over HTTP.

use std::path::Path;
use std::time::Duration;

use claviger_files::{Protection, pem};
use reqwest::{Certificate, Client, redirect};
use serde::Deserialize;

use super::KeySet;

/// Longest document that is read.
const MAX_BYTES: usize = 256 << 10;
const TIMEOUT: Duration = Duration::from_secs(10);

/// What discovery gave.
#[derive(Debug)]
pub(super) struct Discovered {
    /// What `iss` is.
    pub(super) issuer: String,
    pub(super) keys: KeySet,
}

#[derive(Deserialize)]
struct Document {
    issuer: String,
    jwks_uri: String,
}

/// An HTTP client that follows no redirects and trusts `ca`, or the system's CAs.
pub(super) fn client(ca: Option<&Path>) -> Result<Client, String> {
    let mut builder =
        Client::builder().redirect(redirect::Policy::none()).timeout(TIMEOUT).no_proxy();
    if let Some(ca) = ca {
        let read = claviger_files::read(ca, Protection::Trusted, 1 << 20);
        let bytes = read.map_err(|error| error.to_string())?;
        let named = |error: &dyn std::fmt::Display| format!("{}: {error}", ca.display());
        let certificates =
            pem::certificates(&bytes, pem::Beside::Nothing).map_err(|error| named(&error))?;
        let certificates: Result<Vec<_>, _> =
            certificates.iter().map(|der| Certificate::from_der(der)).collect();
        builder = builder.tls_certs_only(certificates.map_err(|error| named(&error))?);
    }
    builder.build().map_err(|error| error.to_string())
}

/// Asks for the document and the key set that it names.
pub(super) async fn discover(client: &Client, url: &str) -> Result<Discovered, String> {
    let address = format!("{url}/.well-known/openid-configuration");
    let document = fetch(client, &address).await?;
    let document: Document =
        serde_json::from_slice(&document).map_err(|error| format!("{address}: {error}"))?;
    let keys = fetch(client, &document.jwks_uri).await?;
    let keys = KeySet::parse(&keys).map_err(|error| format!("{}: {error}", document.jwks_uri))?;
    Ok(Discovered { issuer: document.issuer, keys })
}

async fn fetch(client: &Client, address: &str) -> Result<Vec<u8>, String> {
    let failed = |error: reqwest::Error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
        format!("{address}: {error}{}", cause.unwrap_or_default())
    };
    let mut response = client.get(address).send().await.map_err(failed)?;
    if !response.status().is_success() {
        return Err(format!("{address}: {}", response.status()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_BYTES {
            return Err(format!("{address}: longer than {MAX_BYTES} bytes"));
        }
    }
    Ok(body)
}

//! OpenID Connect Discovery (1.0, section 4): the issuer's name and its key set, over HTTP.

use std::path::Path;
use std::time::Duration;

use claviger_files::{Protection, pem};
use reqwest::header::{CACHE_CONTROL, HeaderMap};
use reqwest::{Certificate, Client, StatusCode, redirect};
use serde::Deserialize;

use crate::KeySet;

/// Longest document that is read.
const MAX_BYTES: usize = 256 << 10;
const TIMEOUT: Duration = Duration::from_secs(10);

/// What discovery gave.
#[derive(Debug)]
pub(crate) struct Discovered {
    pub(crate) document: Document,
    pub(crate) keys: KeySet,
    /// How long the key set may be cached; none: the issuer does not say.
    pub(crate) cache: Option<Duration>,
}

/// The document, as far as it is looked at (section 3).
#[derive(Debug, Deserialize)]
pub(crate) struct Document {
    /// What `iss` is.
    pub(crate) issuer: String,
    pub(crate) jwks_uri: String,
    #[serde(rename = "id_token_signing_alg_values_supported")]
    pub(crate) algorithms: Option<Vec<String>>,
}

/// Why there is no document, or no key set.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct NotDiscovered {
    text: String,
    /// What the issuer answered; none: nothing, or something that cannot be used.
    pub(crate) status: Option<StatusCode>,
}

/// An HTTP client that follows no redirects and trusts `ca`, or the system's CAs.
pub(crate) fn client(ca: Option<&Path>) -> Result<Client, String> {
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
pub(crate) async fn discover(client: &Client, url: &str) -> Result<Discovered, NotDiscovered> {
    let (document, _) = document(client, url).await?;
    let (keys, cache) = key_set(client, url, &document).await?;
    Ok(Discovered { document, keys, cache })
}

/// Asks for the document; gives the headers of the answer too.
pub(crate) async fn document(
    client: &Client,
    url: &str,
) -> Result<(Document, HeaderMap), NotDiscovered> {
    let address = format!("{}/.well-known/openid-configuration", url.trim_end_matches('/'));
    let (bytes, headers) = fetch(client, &address).await?;
    let document = serde_json::from_slice(&bytes);
    let document = document.map_err(|error| unusable(format!("{address}: {error}")))?;
    Ok((document, headers))
}

/// Asks for the key set that the document names, and how long it may be cached.
pub(crate) async fn key_set(
    client: &Client,
    url: &str,
    document: &Document,
) -> Result<(KeySet, Option<Duration>), NotDiscovered> {
    let address = &document.jwks_uri;
    if url.starts_with("https://") && !address.starts_with("https://") {
        return Err(unusable(format!("{url}: jwks_uri is {address:?}, and only https is as safe")));
    }
    let (bytes, headers) = fetch(client, address).await?;
    let keys = KeySet::parse(&bytes).map_err(|error| unusable(format!("{address}: {error}")))?;
    Ok((keys, cache_time(&headers)))
}

fn unusable(text: String) -> NotDiscovered {
    NotDiscovered { text, status: None }
}

async fn fetch(client: &Client, address: &str) -> Result<(Vec<u8>, HeaderMap), NotDiscovered> {
    let failed = |error: reqwest::Error| {
        let mut text = format!("{address}: {error}");
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        unusable(text)
    };
    let mut response = client.get(address).send().await.map_err(failed)?;
    let status = response.status();
    if !status.is_success() {
        return Err(NotDiscovered { text: format!("{address}: {status}"), status: Some(status) });
    }
    let headers = std::mem::take(response.headers_mut());
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_BYTES {
            return Err(unusable(format!("{address}: longer than {MAX_BYTES} bytes")));
        }
    }
    Ok((body, headers))
}

/// `Cache-Control` (RFC 9111 section 5.2.2), as far as it limits.
fn cache_time(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(CACHE_CONTROL)?.to_str().ok()?.to_ascii_lowercase();
    let mut limit = None;
    for directive in value.split(',').map(str::trim) {
        if matches!(directive, "no-store" | "no-cache") {
            return Some(Duration::ZERO);
        }
        if let Some(seconds) = directive.strip_prefix("max-age=") {
            limit = seconds.parse().ok().map(Duration::from_secs);
        }
    }
    limit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_issuer_says_about_caching_is_read() {
        for (value, expected) in [
            ("public, max-age=21600, must-revalidate", Some(21600)),
            ("No-Cache", Some(0)),
            ("max-age=60, no-store", Some(0)),
            ("private", None),
            ("max-age=x", None),
        ] {
            let headers = HeaderMap::from_iter([(CACHE_CONTROL, value.parse().unwrap())]);
            assert_eq!(cache_time(&headers), expected.map(Duration::from_secs), "{value}");
        }
        assert_eq!(cache_time(&HeaderMap::new()), None);
    }
}

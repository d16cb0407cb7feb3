//! A person signs in: in a browser, with an authorization code and PKCE (RFC 8252, RFC 7636), or on another
//! device (RFC 8628).

use std::fmt;
use std::path::Path;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, Url};
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use crate::discovery::client;

/// Longest answer that is read, in bytes.
const MAX_BYTES: usize = 256 << 10;

/// An issuer that people sign in at, and the client that they do it with: a public one, without a secret.
#[derive(Debug)]
pub struct SignIn {
    http: Client,
    endpoints: Endpoints,
    client_id: String,
    scope: String,
}

#[derive(Debug, Deserialize)]
struct Endpoints {
    issuer: String,
    authorization_endpoint: Option<String>,
    token_endpoint: Option<String>,
    device_authorization_endpoint: Option<String>,
}

/// What a person got. Never printed.
#[derive(Deserialize)]
pub struct Granted {
    /// What resources are asked with; a JWT with most issuers.
    #[serde(deserialize_with = "secret")]
    pub access_token: Zeroizing<String>,
    /// Who the person is; always a JWT.
    #[serde(default, deserialize_with = "some_secret")]
    pub id_token: Option<Zeroizing<String>>,
    /// For another token later; many issuers give one with the scope `offline_access` alone.
    #[serde(default, deserialize_with = "some_secret")]
    pub refresh_token: Option<Zeroizing<String>>,
    /// Seconds until the access token ends.
    pub expires_in: Option<u64>,
}

/// What a person has to type on another device.
#[derive(Deserialize)]
pub struct DeviceCode {
    #[serde(rename = "device_code", deserialize_with = "secret")]
    code: Zeroizing<String>,
    /// What is typed.
    pub user_code: String,
    /// Where.
    pub verification_uri: String,
    /// The same with the code in it.
    pub verification_uri_complete: Option<String>,
    /// Seconds until it is over.
    pub expires_in: u64,
    interval: Option<u64>,
}

/// A secret of this sign-in, which is told only when the code comes back (RFC 7636).
pub struct Pkce {
    verifier: Zeroizing<String>,
}

/// An error of the token endpoint (RFC 6749 section 5.2).
#[derive(Deserialize)]
struct Refused {
    error: String,
    error_description: Option<String>,
}

fn secret<'de, D: Deserializer<'de>>(text: D) -> Result<Zeroizing<String>, D::Error> {
    String::deserialize(text).map(Zeroizing::new)
}

fn some_secret<'de, D: Deserializer<'de>>(text: D) -> Result<Option<Zeroizing<String>>, D::Error> {
    Ok(Option::deserialize(text)?.map(Zeroizing::new))
}

impl SignIn {
    /// Asks for the issuer's discovery document.
    pub async fn discover(
        issuer: &str,
        ca: Option<&Path>,
        client_id: &str,
        scope: &str,
    ) -> Result<Self, String> {
        let http = client(ca)?;
        let address = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let response =
            http.get(&address).send().await.map_err(|error| in_words(&address, &error))?;
        let (is_good, body) = answer(&address, response).await?;
        let endpoints: Endpoints = Some(body)
            .filter(|_| is_good)
            .and_then(|body| serde_json::from_slice(&body).ok())
            .ok_or_else(|| format!("{address}: no discovery document"))?;
        if endpoints.issuer != issuer {
            let named = &endpoints.issuer;
            return Err(format!(
                "the issuer calls itself {named:?}: write it like that, to the letter"
            ));
        }
        Ok(Self { http, endpoints, client_id: client_id.to_owned(), scope: scope.to_owned() })
    }

    /// The address that a browser begins at; it comes back to `redirect` with `state`.
    pub fn address(&self, redirect: &str, state: &str, pkce: &Pkce) -> Result<String, String> {
        let endpoint = self.endpoints.authorization_endpoint.as_deref();
        let endpoint =
            endpoint.ok_or("the issuer has no authorization_endpoint; try --device-code")?;
        let mut url = Url::parse(endpoint).map_err(|error| format!("{endpoint}: {error}"))?;
        url.query_pairs_mut().extend_pairs([
            ("response_type", "code"),
            ("client_id", &self.client_id),
            ("redirect_uri", redirect),
            ("scope", &self.scope),
            ("state", state),
            ("code_challenge", &pkce.challenge()),
            ("code_challenge_method", "S256"),
        ]);
        Ok(url.into())
    }

    /// Whether an answer that names its issuer (RFC 9207) names this one.
    pub fn is_of_issuer(&self, iss: Option<&str>) -> bool {
        iss.is_none_or(|iss| iss == self.endpoints.issuer)
    }

    /// Turns the code that the browser came back with into tokens.
    pub async fn exchange(
        &self,
        code: &str,
        redirect: &str,
        pkce: &Pkce,
    ) -> Result<Granted, String> {
        let fields = [
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", redirect),
            ("client_id", &self.client_id),
            ("code_verifier", &pkce.verifier),
        ];
        self.granted(&fields).await.map_err(|refused| refused.to_string())
    }

    /// Another token, without the person.
    pub async fn refresh(&self, refresh_token: &str) -> Result<Granted, String> {
        let fields = [
            ("grant_type", "refresh_token"),
            ("refresh_token", refresh_token),
            ("client_id", &self.client_id),
        ];
        self.granted(&fields).await.map_err(|refused| refused.to_string())
    }

    /// Begins on another device.
    pub async fn device_code(&self) -> Result<DeviceCode, String> {
        let endpoint = self.endpoints.device_authorization_endpoint.as_deref();
        let endpoint = endpoint.ok_or("the issuer has no device_authorization_endpoint")?;
        let fields = [("client_id", self.client_id.as_str()), ("scope", &self.scope)];
        let (is_good, body) = self.post(endpoint, &fields).await?;
        if !is_good {
            return Err(refused(endpoint, &body).to_string());
        }
        serde_json::from_slice(&body).map_err(|error| format!("{endpoint}: {error}"))
    }

    /// Waits until the person has agreed on the other device.
    pub async fn wait_for_device(&self, code: &DeviceCode) -> Result<Granted, String> {
        let fields = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:device_code"),
            ("device_code", &code.code),
            ("client_id", &self.client_id),
        ];
        let mut pause = Duration::from_secs(code.interval.unwrap_or(5).clamp(1, 60));
        let over = tokio::time::Instant::now() + Duration::from_secs(code.expires_in.min(3600));
        loop {
            tokio::time::sleep(pause).await;
            match self.granted(&fields).await {
                Err(refused) if refused.error == "slow_down" => pause += Duration::from_secs(5),
                Err(refused) if refused.error == "authorization_pending" => {}
                outcome => return outcome.map_err(|refused| refused.to_string()),
            }
            if tokio::time::Instant::now() > over {
                return Err("the code has expired".to_owned());
            }
        }
    }

    async fn granted(&self, fields: &[(&str, &str)]) -> Result<Granted, Refused> {
        let local = |error: String| Refused { error, error_description: None };
        let endpoint = self.endpoints.token_endpoint.as_deref();
        let endpoint =
            endpoint.ok_or_else(|| local("the issuer has no token_endpoint".to_owned()))?;
        let (is_good, body) = self.post(endpoint, fields).await.map_err(local)?;
        if !is_good {
            return Err(refused(endpoint, &body));
        }
        // What the parser says of a wrong answer may hold a part of a token.
        serde_json::from_slice(&body)
            .map_err(|_| local(format!("{endpoint}: no tokens in its answer")))
    }

    async fn post(
        &self,
        endpoint: &str,
        fields: &[(&str, &str)],
    ) -> Result<(bool, Zeroizing<Vec<u8>>), String> {
        let mut form = Url::parse("form:").expect("a URL");
        form.query_pairs_mut().extend_pairs(fields);
        let body = Zeroizing::new(form.query().unwrap_or_default().to_owned());
        let request = self.http.post(endpoint).body(body.to_string());
        let request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        let response = request.send().await.map_err(|error| in_words(endpoint, &error))?;
        answer(endpoint, response).await
    }
}

impl Pkce {
    /// 256 random bits.
    pub fn new() -> Self {
        Self { verifier: Zeroizing::new(random_text()) }
    }

    /// What is told at the beginning: S256.
    fn challenge(&self) -> String {
        URL_SAFE_NO_PAD.encode(digest(&SHA256, self.verifier.as_bytes()))
    }
}

impl Default for Pkce {
    fn default() -> Self {
        Self::new()
    }
}

/// 256 random bits in base64url: 43 characters.
pub fn random_text() -> String {
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes).expect("where there is no randomness there is no TLS either");
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Whether the issuer has accepted it, and what it said.
async fn answer(
    address: &str,
    mut response: reqwest::Response,
) -> Result<(bool, Zeroizing<Vec<u8>>), String> {
    let is_good = response.status().is_success();
    let mut body = Zeroizing::new(Vec::new());
    while let Some(chunk) = response.chunk().await.map_err(|error| in_words(address, &error))? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_BYTES {
            return Err(format!("{address}: longer than {MAX_BYTES} bytes"));
        }
    }
    Ok((is_good, body))
}

fn refused(address: &str, body: &[u8]) -> Refused {
    serde_json::from_slice(body).unwrap_or_else(|_| Refused {
        error: format!("{address} refused it without a reason"),
        error_description: None,
    })
}

fn in_words(address: &str, error: &reqwest::Error) -> String {
    let mut text = format!("{address}: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.error_description {
            Some(description) => write!(f, "the issuer refused it: {}: {description}", self.error),
            None => f.write_str(&self.error),
        }
    }
}

impl fmt::Debug for Granted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Granted").field("expires_in", &self.expires_in).finish_non_exhaustive()
    }
}

impl fmt::Debug for Pkce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pkce([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_challenge_is_that_of_rfc_7636_appendix_b() {
        let verifier = Zeroizing::new("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk".to_owned());
        let challenge = Pkce { verifier }.challenge();
        assert_eq!(challenge, "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
        assert_ne!(random_text(), random_text());
    }
}

//! Access tokens: how each kind of credentials gets one.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use claviger_provider_api::{Cause, Error, ErrorKind, secret};
use http::header::{HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use zeroize::Zeroizing;

use crate::client::{Answer, Client, Request};
use crate::credentials::{Credentials, Identity, Subject};
use crate::error::{Failure, Operation};

/// What a token may be used for: keys and nothing else, or taking on another identity and nothing else.
const KEYS: &str = "https://www.googleapis.com/auth/cloudkms";
const IDENTITIES: &str = "https://www.googleapis.com/auth/iam";

/// How long a signed JWT is good: the longest that is accepted.
const ASSERTION_LIFETIME: i64 = 3600;

/// How far this host's clock may run ahead of Google's.
const CLOCK_SKEW: i64 = 30;

/// A token that was granted.
pub(crate) struct Granted {
    /// `Bearer` and the token.
    pub(crate) authorization: HeaderValue,
    pub(crate) lifetime: Duration,
}

/// The answer of a token endpoint (RFC 6749 section 5.1) and of the metadata server.
#[derive(Deserialize)]
struct TokenBody<'a> {
    #[serde(borrow)]
    access_token: Cow<'a, str>,
    expires_in: u64,
}

/// The answer of `generateAccessToken`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ImpersonatedBody<'a> {
    #[serde(borrow)]
    access_token: Cow<'a, str>,
    expire_time: String,
}

/// Asks for a token.
pub(crate) async fn grant(
    client: &Client,
    credentials: &Credentials,
    deadline: Instant,
) -> Result<Granted, Error> {
    let scope = if credentials.impersonate.is_some() { IDENTITIES } else { KEYS };
    let request = request(client, &credentials.identity, scope, deadline).await?;
    let granted = granted(&client.send(&request, deadline).await?)?;
    let Some(url) = &credentials.impersonate else { return Ok(granted) };
    let lifetime = format!("{ASSERTION_LIFETIME}s");
    let body = json!({ "scope": [KEYS], "lifetime": lifetime });
    let request = Request::post(Operation::Token, url.as_str().to_owned(), &body)
        .with_authorization(&granted.authorization);
    impersonated(&client.send(&request, deadline).await?)
}

async fn request(
    client: &Client,
    identity: &Identity,
    scope: &str,
    deadline: Instant,
) -> Result<Request, Error> {
    let post = |url: &reqwest::Url, fields: &[(&str, &str)]| {
        Request::form(Operation::Token, url.as_str().to_owned(), fields)
    };
    Ok(match identity {
        Identity::ServiceAccount { email, key_id, key, token_uri } => {
            let assertion = assertion(email, key_id.as_deref(), key, token_uri.as_str(), scope)?;
            post(
                token_uri,
                &[
                    ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"),
                    ("assertion", &assertion),
                ],
            )
        }
        Identity::AuthorizedUser { client_id, client_secret, refresh_token, token_uri } => post(
            token_uri,
            &[
                ("grant_type", "refresh_token"),
                ("client_id", client_id),
                ("client_secret", client_secret),
                ("refresh_token", refresh_token),
            ],
        ),
        Identity::Federated { audience, subject_token_type, token_url, subject } => {
            let subject_token = subject_token(client, subject, deadline).await?;
            post(
                token_url,
                &[
                    ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
                    ("audience", audience),
                    ("scope", scope),
                    ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
                    ("subject_token_type", subject_token_type),
                    ("subject_token", &subject_token),
                ],
            )
        }
        Identity::Metadata { url } => Request::get(Operation::Metadata, url.clone()).with_header(
            HeaderName::from_static("metadata-flavor"),
            HeaderValue::from_static("Google"),
        ),
    })
}

/// A JWT that says who we are (RFC 7523 section 3), signed with RS256.
fn assertion(
    email: &str,
    key_id: Option<&str>,
    key: &RsaKeyPair,
    audience: &str,
    scope: &str,
) -> Result<Zeroizing<String>, Error> {
    let now = OffsetDateTime::now_utc().unix_timestamp() - CLOCK_SKEW;
    let header = json!({ "alg": "RS256", "typ": "JWT", "kid": key_id });
    let claims = json!({
        "iss": email,
        "scope": scope,
        "aud": audience,
        "iat": now,
        "exp": now + ASSERTION_LIFETIME,
    });
    let encode = |part: &serde_json::Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let signed = format!("{}.{}", encode(&header), encode(&claims));
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature)
        .map_err(|_| Error::new(ErrorKind::Internal, "aws-lc did not sign the JWT"))?;
    Ok(Zeroizing::new(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(&signature))))
}

async fn subject_token(
    client: &Client,
    subject: &Subject,
    deadline: Instant,
) -> Result<Zeroizing<String>, Error> {
    let unusable = |place: &dyn std::fmt::Display, why: String| {
        let reason = format!("the subject token in {place} cannot be used: {why}");
        Error::needs_operator(Cause::SecretFile, reason)
    };
    match subject {
        Subject::File(path, format) => {
            let secret = secret::read_secret_file(path)?;
            format.token(secret.expose()).map_err(|why| unusable(&path.display(), why))
        }
        Subject::Url(url, headers, format) => {
            let mut request = Request::get(Operation::SubjectToken, url.as_str().to_owned());
            for (name, value) in headers {
                request = request.with_header(name.clone(), value.clone());
            }
            let answer = client.send(&request, deadline).await?;
            format.token(answer.body()).map_err(|why| unusable(&"`credential_source.url`", why))
        }
    }
}

fn granted(answer: &Answer) -> Result<Granted, Failure> {
    let TokenBody { access_token, expires_in } = answer.json()?;
    let lifetime = Duration::from_secs(expires_in);
    Ok(Granted { authorization: bearer(&access_token, answer)?, lifetime })
}

fn impersonated(answer: &Answer) -> Result<Granted, Error> {
    let ImpersonatedBody { access_token, expire_time } = answer.json()?;
    let until = OffsetDateTime::parse(&expire_time, &Rfc3339)
        .map_err(|_| malformed("an expireTime that is none", answer))?;
    let lifetime = (until - OffsetDateTime::now_utc()).try_into().unwrap_or_default();
    Ok(Granted { authorization: bearer(&access_token, answer)?, lifetime })
}

/// `Bearer` and a token, as a header whose bytes are zeroed with its last copy, and which no log shows.
fn bearer(token: &str, answer: &Answer) -> Result<HeaderValue, Failure> {
    let wrong = || malformed("a token that is none", answer);
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(wrong());
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(token.len() + 7));
    bytes.extend_from_slice(b"Bearer ");
    bytes.extend_from_slice(token.as_bytes());
    let mut header =
        HeaderValue::from_maybe_shared(Bytes::from_owner(bytes)).map_err(|_| wrong())?;
    header.set_sensitive(true);
    Ok(header)
}

fn malformed(what: &str, answer: &Answer) -> Failure {
    Failure::Malformed { what: what.to_owned(), request_id: answer.request_id.clone() }
}

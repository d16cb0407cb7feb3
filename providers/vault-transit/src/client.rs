//! One HTTP client over our own TLS: no proxy, no redirects, no retries, no environment variables.

use std::time::{Duration, Instant};

use bytes::Bytes;
use claviger_files::pem::{self, Beside};
use claviger_provider_api::{Error, ErrorKind, secret, tls};
use http::header::{HeaderName, HeaderValue, RETRY_AFTER};
use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::batch;
use crate::config::{Auth, Certificate, Config};
use crate::error::{Failure, Operation, Refusal};

const TOKEN: HeaderName = HeaderName::from_static("x-vault-token");
const REQUEST: HeaderName = HeaderName::from_static("x-vault-request");
const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");

/// The longest answer that is read, in bytes; a key's description with hundreds of versions fits.
const MAX_ANSWER: usize = 4 << 20;

/// Talks to one server.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    origin: String,
    namespace: Option<HeaderValue>,
    timeout: Duration,
}

/// One request, to be sent as often as needed.
pub(crate) struct Request {
    operation: Operation,
    method: Method,
    path: String,
    body: Bytes,
}

impl Request {
    /// A GET of `/v1/` and `path`.
    pub(crate) fn get(operation: Operation, path: String) -> Self {
        Self { operation, method: Method::GET, path, body: Bytes::new() }
    }

    /// A POST of `body` as JSON to `/v1/` and `path`. Its bytes are zeroed after use.
    pub(crate) fn post(operation: Operation, path: String, body: &impl Serialize) -> Self {
        // Large enough for a secret not to make it grow, which would leave copies behind: a JWT is
        // at most a few KiB. A batch may, since what is wrapped is no secret.
        let mut json = Zeroizing::new(Vec::with_capacity(16 << 10));
        serde_json::to_writer(&mut *json, body).expect("our own requests are JSON");
        Self { operation, method: Method::POST, path, body: Bytes::from_owner(json) }
    }
}

/// The body of a success, zeroed when dropped.
pub(crate) struct Answer(Zeroizing<Vec<u8>>);

impl Answer {
    /// Reads it as JSON. What is wrong is said without repeating any of it.
    pub(crate) fn json<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Failure> {
        serde_json::from_slice(&self.0).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            let what = format!("not the JSON that was asked for, line {line}, column {column}");
            Failure::Malformed(what)
        })
    }
}

#[cfg(test)]
impl Answer {
    /// An answer that says `body`.
    pub(crate) fn of(body: &str) -> Self {
        Self(Zeroizing::new(body.as_bytes().to_vec()))
    }
}

impl Client {
    /// Reads the certificates that the configuration names. Connects to nothing.
    pub(crate) fn new(config: &Config) -> Result<Self, Error> {
        let refuse = |reason: String| Error::new(ErrorKind::OperatorNeeded, reason);
        let namespace = config.namespace.as_deref().map(HeaderValue::from_str).transpose();
        let origin = config.origin().map_err(refuse)?;
        let identity = match &config.auth {
            Auth::Certificate(certificate) => {
                Some(client_certificate(certificate).map_err(refuse)?)
            }
            _ => None,
        };
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::client_config(config.ca.as_deref(), identity)?)
            .https_only(origin.starts_with("https:"))
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .user_agent(concat!("claviger/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(config.connect_timeout.0)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .http2_keep_alive_timeout(Duration::from_secs(5))
            .build()
            .map_err(|error| Error::new(ErrorKind::Internal, error))?;
        Ok(Self {
            http,
            origin,
            namespace: namespace.map_err(|error| refuse(error.to_string()))?,
            timeout: config.timeout.0,
        })
    }

    /// Sends a request once. It ends with the deadline, or after `timeout`.
    pub(crate) async fn send(
        &self,
        request: &Request,
        token: Option<&HeaderValue>,
        deadline: Instant,
    ) -> Result<Answer, Failure> {
        let now = Instant::now();
        if deadline <= now {
            return Err(Failure::Deadline);
        }
        let (until, late) = match now + self.timeout {
            ours if ours < deadline => (ours, Failure::TimedOut(self.timeout)),
            _ => (deadline, Failure::Deadline),
        };
        let exchange = self.exchange(request, token);
        tokio::time::timeout_at(until.into(), exchange).await.unwrap_or(Err(late))
    }

    async fn exchange(
        &self,
        request: &Request,
        token: Option<&HeaderValue>,
    ) -> Result<Answer, Failure> {
        let url = format!("{}/v1/{}", self.origin, request.path);
        let mut builder = self.http.request(request.method.clone(), url).header(REQUEST, "true");
        if request.method == Method::POST {
            builder = builder
                .header(http::header::CONTENT_TYPE, "application/json")
                .body(request.body.clone());
        }
        if let Some(namespace) = &self.namespace {
            builder = builder.header(NAMESPACE, namespace);
        }
        if let Some(token) = token {
            builder = builder.header(TOKEN, token);
        }
        let response = builder.send().await.map_err(Failure::Transport)?;
        let status = response.status();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(seconds);
        let body = whole_body(response).await?;
        let of_batch = request.operation == Operation::UnwrapBatch;
        if matches!(status, StatusCode::OK | StatusCode::NO_CONTENT)
            || (of_batch && batch::holds_results(&body))
        {
            return Ok(Answer(body));
        }
        let said: Errors = serde_json::from_slice(&body).unwrap_or_default();
        Err(Failure::Refused(Refusal {
            operation: request.operation,
            status: status.as_u16(),
            messages: said.errors,
            retry_after,
            request_id: said.request_id,
        }))
    }
}

/// The body of an answer that is no success.
#[derive(Default, Deserialize)]
struct Errors {
    #[serde(default)]
    errors: Vec<String>,
    request_id: Option<String>,
}

/// `Retry-After` in seconds (RFC 9110 section 10.2.3); neither server sends a date.
fn seconds(value: &HeaderValue) -> Option<Duration> {
    value.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

async fn whole_body(mut response: reqwest::Response) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let announced = response.content_length().unwrap_or(8 << 10).min(MAX_ANSWER as u64);
    let mut body = Zeroizing::new(Vec::with_capacity(announced as usize));
    while let Some(chunk) = response.chunk().await.map_err(Failure::Transport)? {
        let len = body.len() + chunk.len();
        if len > MAX_ANSWER {
            return Err(Failure::Malformed(format!("longer than {MAX_ANSWER} bytes")));
        }
        if len > body.capacity() {
            // By hand: a vector that grows on its own leaves its old buffer unzeroed.
            let mut larger = Zeroizing::new(Vec::with_capacity(len.max(2 * body.capacity())));
            larger.extend_from_slice(&body);
            body = larger;
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn client_certificate(certificate: &Certificate) -> Result<tls::Identity, String> {
    let path = certificate.certificate.display();
    let unusable = |error: &dyn std::fmt::Display| format!("`certificate` {path}: {error}");
    let file = std::fs::read(&certificate.certificate).map_err(|error| unusable(&error))?;
    let chain = pem::certificates(&file, Beside::Keys).map_err(|error| unusable(&error))?;
    let file: secret::Secret = certificate
        .private_key
        .read_blocking()
        .map_err(|error| format!("`private_key`: {}", Error::new(ErrorKind::Internal, error)))?;
    let key = pem::private_key(file.expose()).map_err(|error| format!("`private_key`: {error}"))?;
    Ok((chain, key))
}

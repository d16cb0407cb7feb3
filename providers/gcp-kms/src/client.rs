//! One HTTP client over our own TLS: no proxy, no redirects, no retries, no environment variables.

use std::time::{Duration, Instant};

use bytes::Bytes;
use claviger_provider_api::{Error, ErrorKind, tls};
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Method, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::config::Config;
use crate::error::{Failure, Operation, Refusal, Said};

/// What Cloud Audit Logs record as the reason of a request (`requestAttributes.reason`). KMS gives its
/// requests no id, so they get one of ours, which joins our records with Google's.
const REASON: HeaderName = HeaderName::from_static("x-goog-request-reason");

/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// What stands unescaped in a form (RFC 3986 section 2.3).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Talks to KMS and to the servers that give tokens.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    timeout: Duration,
}

/// One request, to be sent as often as needed.
pub(crate) struct Request {
    operation: Operation,
    method: Method,
    url: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Request {
    pub(crate) fn get(operation: Operation, url: String) -> Self {
        let (headers, body) = (HeaderMap::new(), Bytes::new());
        Self { operation, method: Method::GET, url, headers, body }
    }

    /// A POST of `body` as JSON. Its bytes are zeroed after use.
    pub(crate) fn post(operation: Operation, url: String, body: &impl Serialize) -> Self {
        // Large enough not to grow, which would leave copies behind.
        let mut json = Zeroizing::new(Vec::with_capacity(4 << 10));
        serde_json::to_writer(&mut *json, body).expect("our own requests are JSON");
        Self::with_body(operation, url, "application/json", json)
    }

    /// A POST of a form. Its bytes are zeroed after use.
    pub(crate) fn form(operation: Operation, url: String, fields: &[(&str, &str)]) -> Self {
        let len: usize = fields.iter().map(|(name, value)| name.len() + 3 * value.len() + 2).sum();
        let mut form = Zeroizing::new(Vec::with_capacity(len));
        for (name, value) in fields {
            if !form.is_empty() {
                form.push(b'&');
            }
            form.extend_from_slice(name.as_bytes());
            form.push(b'=');
            for part in utf8_percent_encode(value, ESCAPED) {
                form.extend_from_slice(part.as_bytes());
            }
        }
        Self::with_body(operation, url, "application/x-www-form-urlencoded", form)
    }

    fn with_body(
        operation: Operation,
        url: String,
        content_type: &'static str,
        body: Zeroizing<Vec<u8>>,
    ) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        Self { operation, method: Method::POST, url, headers, body: Bytes::from_owner(body) }
    }

    pub(crate) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Adds `Bearer` and a token, as a header that no log shows.
    pub(crate) fn with_authorization(self, token: &HeaderValue) -> Self {
        self.with_header(AUTHORIZATION, token.clone())
    }
}

/// The body of a success, zeroed when dropped.
pub(crate) struct Answer {
    body: Zeroizing<Vec<u8>>,
    /// The id that the request had in our audit log and in Google's.
    pub(crate) request_id: String,
}

impl Answer {
    /// The bytes.
    pub(crate) fn body(&self) -> &[u8] {
        &self.body
    }

    /// Reads it as JSON. What is wrong is said without repeating any of it.
    pub(crate) fn json<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Failure> {
        serde_json::from_slice(&self.body).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            let what = format!("not the JSON that was asked for, line {line}, column {column}");
            Failure::Malformed { what, request_id: self.request_id.clone() }
        })
    }
}

impl Client {
    /// Reads the CA file if there is one. Connects to nothing.
    pub(crate) fn new(config: &Config) -> Result<Self, Error> {
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::client_config(config.ca.as_deref(), None)?)
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
        Ok(Self { http, timeout: config.timeout.0 })
    }

    /// Sends a request once. It ends with the deadline, or after `timeout`.
    pub(crate) async fn send(
        &self,
        request: &Request,
        deadline: Instant,
    ) -> Result<Answer, Failure> {
        let now = Instant::now();
        if deadline <= now {
            return Err(Failure::Deadline { request_id: None });
        }
        let id = Uuid::now_v7().to_string();
        let (until, late) = match now + self.timeout {
            ours if ours < deadline => {
                (ours, Failure::TimedOut { after: self.timeout, request_id: id.clone() })
            }
            _ => (deadline, Failure::Deadline { request_id: Some(id.clone()) }),
        };
        let exchange = self.exchange(request, id);
        tokio::time::timeout_at(until.into(), exchange).await.unwrap_or(Err(late))
    }

    async fn exchange(&self, request: &Request, request_id: String) -> Result<Answer, Failure> {
        let failed = |error| Failure::Transport { error, request_id: request_id.clone() };
        let mut builder = self
            .http
            .request(request.method.clone(), &request.url)
            .headers(request.headers.clone());
        if request.operation.is_of_kms() {
            builder = builder.header(REASON, &request_id);
        }
        if request.method == Method::POST {
            builder = builder.body(request.body.clone());
        }
        let response = builder.send().await.map_err(failed)?;
        let status = response.status();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(seconds);
        let body = whole_body(response, &request_id).await?;
        if status == StatusCode::OK {
            return Ok(Answer { body, request_id });
        }
        Err(Failure::Refused(Refusal {
            operation: request.operation,
            status: status.as_u16(),
            said: Said::parse(&body),
            retry_after,
            request_id,
        }))
    }
}

/// `Retry-After` in seconds (RFC 9110 section 10.2.3); a date is not passed on.
fn seconds(value: &HeaderValue) -> Option<Duration> {
    value.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

async fn whole_body(
    mut response: reqwest::Response,
    request_id: &str,
) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let request_id = || request_id.to_owned();
    let announced = response.content_length().unwrap_or(8 << 10).min(MAX_ANSWER as u64);
    let mut body = Zeroizing::new(Vec::with_capacity(announced as usize));
    loop {
        let chunk = response.chunk().await;
        let chunk =
            chunk.map_err(|error| Failure::Transport { error, request_id: request_id() })?;
        let Some(chunk) = chunk else { return Ok(body) };
        let len = body.len() + chunk.len();
        if len > MAX_ANSWER {
            let what = format!("longer than {MAX_ANSWER} bytes");
            return Err(Failure::Malformed { what, request_id: request_id() });
        }
        if len > body.capacity() {
            // By hand: a vector that grows on its own leaves its old buffer unzeroed.
            let mut larger = Zeroizing::new(Vec::with_capacity(len.max(2 * body.capacity())));
            larger.extend_from_slice(&body);
            body = larger;
        }
        body.extend_from_slice(&chunk);
    }
}

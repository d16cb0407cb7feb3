//! Requests to KMS and to the servers that give tokens, and their answers.

use std::time::{Duration, Instant};

use bytes::Bytes;
use claviger_provider_api::http::{ClientOptions, not_json};
use claviger_provider_api::{self as api, Error};
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
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
            let what = not_json(error.line(), error.column());
            Failure::Malformed { what, request_id: self.request_id.clone() }
        })
    }
}

#[cfg(test)]
impl Answer {
    /// An answer that says `body`.
    pub(crate) fn of(body: &str) -> Self {
        let request_id = "id".to_owned();
        Self { body: Zeroizing::new(body.as_bytes().to_vec()), request_id }
    }
}

impl Client {
    /// Reads the CA file if there is one. Connects to nothing.
    pub(crate) fn new(config: &Config) -> Result<Self, Error> {
        let http = api::http::client(ClientOptions {
            ca: config.ca.as_deref(),
            identity: None,
            // The metadata server, and an endpoint on loopback, may do without.
            https_only: false,
            connect_timeout: config.connect_timeout.0,
        })?;
        Ok(Self { http, timeout: config.timeout.0 })
    }

    /// Sends a request once. It ends with the deadline, or after `timeout`.
    pub(crate) async fn send(
        &self,
        request: &Request,
        deadline: Instant,
    ) -> Result<Answer, Failure> {
        let request_id = Uuid::now_v7().to_string();
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
        let answer = api::http::send(builder, MAX_ANSWER, self.timeout, deadline).await;
        let answer = answer
            .map_err(|why| Failure::NoAnswer { why, request_id: Some(request_id.clone()) })?;
        if answer.status == StatusCode::OK {
            return Ok(Answer { body: answer.body, request_id });
        }
        Err(Failure::Refused(Refusal {
            operation: request.operation,
            status: answer.status.as_u16(),
            said: Said::parse(&answer.body),
            retry_after: answer.retry_after,
            request_id,
        }))
    }
}

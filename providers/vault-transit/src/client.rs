//! Requests to a server of Vault or OpenBao, and their answers.

use std::time::{Duration, Instant};

use bytes::Bytes;
use claviger_files::pem::{self, Beside};
use claviger_provider_api::http::{ClientOptions, not_json};
use claviger_provider_api::{self as api, Cause, Error, ErrorKind, tls};
use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

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
        serde_json::from_slice(&self.0)
            .map_err(|error| Failure::Malformed(not_json(error.line(), error.column())))
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
            Auth::Certificate(certificate) => Some(client_certificate(certificate)?),
            _ => None,
        };
        let http = api::http::client(ClientOptions {
            ca: config.ca.as_deref(),
            identity,
            https_only: origin.starts_with("https:"),
            connect_timeout: config.connect_timeout.0,
        })?;
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
        let api::http::Answer { status, retry_after, body } =
            api::http::send(builder, MAX_ANSWER, self.timeout, deadline).await?;
        let of_batch = request.operation == Operation::UnwrapBatch;
        if matches!(status, StatusCode::OK | StatusCode::NO_CONTENT)
            || (of_batch && holds_results(&body))
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

/// Whether the answer to a batch, whatever its status, has a result for each value.
fn holds_results(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Body {
        #[serde(rename = "data")]
        _data: Data,
    }
    #[derive(Deserialize)]
    struct Data {
        #[serde(rename = "batch_results")]
        _results: Vec<IgnoredAny>,
    }
    serde_json::from_slice::<Body>(body).is_ok()
}

/// The body of an answer that is no success.
#[derive(Default, Deserialize)]
struct Errors {
    #[serde(default)]
    errors: Vec<String>,
    request_id: Option<String>,
}

fn client_certificate(certificate: &Certificate) -> Result<tls::Identity, Error> {
    let path = certificate.certificate.display();
    let unusable = |error: &dyn std::fmt::Display| {
        let text = format!("`certificate` {path}: {error}");
        Error::needs_operator(Cause::CredentialsRefused, text)
    };
    let file = std::fs::read(&certificate.certificate).map_err(|error| unusable(&error))?;
    let chain = pem::certificates(&file, Beside::Keys).map_err(|error| unusable(&error))?;
    let file = certificate.private_key.read_blocking();
    let file = file.map_err(|error| Error::from(error).in_context("`private_key`"))?;
    let key = pem::private_key(file.expose()).map_err(|error| {
        Error::needs_operator(Cause::SecretFile, format!("`private_key`: {error}"))
    })?;
    Ok((chain, key))
}

#[cfg(test)]
mod tests {
    use super::holds_results;

    #[test]
    fn what_is_no_batch_is_told_from_one() {
        assert!(holds_results(
            br#"{"data":{"batch_results":[{"plaintext":"AQI="},{"error":"x"}]}}"#
        ));
        for body in ["", "{}", r#"{"errors":["Vault is sealed"]}"#, r#"{"data":{"plaintext":"x"}}"#]
        {
            assert!(!holds_results(body.as_bytes()), "{body}");
        }
    }
}

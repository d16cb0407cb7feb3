//! The HTTP client of providers that speak to a service themselves: over our own TLS, without proxy,
//! redirects, retries or environment variables.

use std::path::Path;
use std::time::{Duration, Instant};

use http::StatusCode;
use http::header::{HeaderMap, RETRY_AFTER};
use zeroize::Zeroizing;

use crate::cause::Cause;
use crate::error::{Error, ErrorKind};
use crate::{foreign, tls};

/// How a client reaches its service.
#[derive(Debug)]
pub struct ClientOptions<'a> {
    /// The only CAs to trust, PEM; none: the system's.
    pub ca: Option<&'a Path>,
    /// A client certificate.
    pub identity: Option<tls::Identity>,
    /// Whether requests without TLS are refused.
    pub https_only: bool,
    /// How long a connection may take.
    pub connect_timeout: Duration,
}

/// A client. Reads the CA file if there is one; connects to nothing.
pub fn client(options: ClientOptions<'_>) -> Result<reqwest::Client, Error> {
    let ClientOptions { ca, identity, https_only, connect_timeout } = options;
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls::client_config(ca, identity)?)
        .https_only(https_only)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .user_agent(concat!("claviger/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(connect_timeout)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .http2_keep_alive_timeout(Duration::from_secs(5))
        .build()
        .map_err(|error| Error::new(ErrorKind::Internal, error))
}

/// An answer, whatever its status.
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// `Retry-After`, at most [`foreign::MAX_RETRY_AFTER`].
    pub retry_after: Option<Duration>,
    /// Its body, zeroed when dropped.
    pub body: Zeroizing<Vec<u8>>,
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// The caller's deadline passed.
    #[error("the deadline passed before the server answered")]
    Deadline,
    /// The configured limit passed first.
    #[error("no answer within {} ms (`timeout`)", .0.as_millis())]
    TimedOut(Duration),
    /// No connection, or one that was cut. Without the URL, which says no more than the locator.
    #[error("cannot reach the server")]
    Transport(#[source] reqwest::Error),
    /// More than is read of any answer.
    #[error("the server's answer makes no sense: longer than {0} bytes")]
    TooLong(usize),
}

impl NoAnswer {
    /// Whether the server's certificate, or ours, was refused: a new CA file may help.
    pub fn is_certificate(&self) -> bool {
        matches!(self, Self::Transport(error) if tls::holds_certificate_error(error))
    }

    /// The kind and cause of the provider's error.
    pub fn meaning(&self) -> (ErrorKind, Option<Cause>) {
        match self {
            Self::Deadline => (ErrorKind::DeadlineExceeded, None),
            Self::TimedOut(_) => (ErrorKind::Unavailable, Some(Cause::NoAnswer)),
            Self::Transport(_) if self.is_certificate() => {
                (ErrorKind::OperatorNeeded, Some(Cause::WrongCa))
            }
            Self::Transport(error) if error.is_builder() => (ErrorKind::Internal, None),
            Self::Transport(_) => (ErrorKind::Unavailable, Some(Cause::Unreachable)),
            Self::TooLong(_) => (ErrorKind::Unavailable, Some(Cause::BackendFailing)),
        }
    }
}

impl From<reqwest::Error> for NoAnswer {
    fn from(error: reqwest::Error) -> Self {
        Self::Transport(error.without_url())
    }
}

/// Sends a request once, and reads at most `max` bytes of its answer. It ends with the deadline, or
/// after `timeout`.
pub async fn send(
    request: reqwest::RequestBuilder,
    max: usize,
    timeout: Duration,
    deadline: Instant,
) -> Result<Answer, NoAnswer> {
    let now = Instant::now();
    if deadline <= now {
        return Err(NoAnswer::Deadline);
    }
    let (until, late) = match now + timeout {
        ours if ours < deadline => (ours, NoAnswer::TimedOut(timeout)),
        _ => (deadline, NoAnswer::Deadline),
    };
    let exchange = async {
        let response = request.send().await?;
        let status = response.status();
        let retry_after = retry_after(response.headers());
        Ok(Answer { status, retry_after, body: whole_body(response, max).await? })
    };
    tokio::time::timeout_at(until.into(), exchange).await.unwrap_or(Err(late))
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    foreign::retry_after(headers.get(RETRY_AFTER)?.to_str().ok()?)
}

/// A body of at most `max` bytes, in a buffer that zeroes itself.
async fn whole_body(
    mut response: reqwest::Response,
    max: usize,
) -> Result<Zeroizing<Vec<u8>>, NoAnswer> {
    let announced = response.content_length().unwrap_or(8 << 10).min(max as u64);
    let mut body = Zeroizing::new(Vec::with_capacity(announced as usize));
    while let Some(chunk) = response.chunk().await? {
        let len = body.len() + chunk.len();
        if len > max {
            return Err(NoAnswer::TooLong(max));
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

/// What is wrong with a body that is not the JSON that was asked for, without repeating any of it.
pub fn not_json(line: usize, column: usize) -> String {
    format!("not the JSON that was asked for, line {line}, column {column}")
}

//! The operations listener: `/livez` and `/readyz` for everybody, `/metrics` for readers.
//!
//! HTTP/1.1, one request per connection. The probes tell up or down and nothing else.

mod plain_text;
mod process;
mod scrape;
#[cfg(test)]
mod shipped_queries;
mod sources;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

use crate::daemon::records::metrics::Metrics;
use crate::daemon::request::health::Phase;

pub use sources::Sources;

/// A probe or a scrape takes far less; beyond this number the oldest connection is closed.
const MOST_CONNECTIONS: usize = 64;
/// For a TLS handshake, and for a request's head.
const START_TIMEOUT: Duration = Duration::from_secs(5);
/// For all of a connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// The TLS configuration in force, asked for at each connection, so that reloads take effect.
pub type TlsSource = Arc<dyn Fn() -> Arc<ServerConfig> + Send + Sync>;

/// Whether a verified client certificate chain belongs to a reader of the metrics.
pub type Authorise = Arc<dyn Fn(&[CertificateDer<'_>]) -> bool + Send + Sync>;

/// What the listener tells.
#[derive(Debug)]
pub struct OperationsState {
    metrics: Arc<Metrics>,
    sources: Arc<Sources>,
    /// One at a time: readers cannot take all processors.
    rendering: Semaphore,
}

impl OperationsState {
    /// What is counted, and what is read when it is asked for.
    pub fn new(metrics: Arc<Metrics>, sources: Sources) -> Self {
        Self { metrics, sources: Arc::new(sources), rendering: Semaphore::new(1) }
    }

    /// Whether the daemon accepts calls.
    pub fn is_ready(&self) -> bool {
        self.sources.phase() == Phase::Ready
    }
}

/// Answers until `shutdown`. Without `tls` only loopback is served, and anybody on the host may
/// read the metrics; with it, those whose certificate `authorise` accepts.
pub async fn serve(
    listener: TcpListener,
    tls: Option<TlsSource>,
    authorise: Authorise,
    state: Arc<OperationsState>,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let address = listener.local_addr()?;
    check_address(address, tls.is_some())?;
    if tls.is_none() {
        tracing::info!(%address, "operations listener without TLS: /metrics is open to this host");
    }
    let mut shutdown = pin!(shutdown);
    let mut connections = Connections::default();
    loop {
        let stream = tokio::select! {
            () = &mut shutdown => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: others must close first.
                    tracing::warn!(%error, "operations listener cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let tls = tls.as_ref().map(|source| TlsAcceptor::from(source()));
        let answer = connection(stream, tls, Arc::clone(&authorise), Arc::clone(&state));
        connections.spawn(tokio::time::timeout(CONNECTION_TIMEOUT, answer));
    }
}

fn check_address(address: SocketAddr, has_tls: bool) -> io::Result<()> {
    if has_tls || address.ip().is_loopback() {
        return Ok(());
    }
    let reason = format!("[operations] listen = \"{address}\": off loopback it needs [server.tls]");
    Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
}

/// Open connections, oldest first. At `MOST_CONNECTIONS` the oldest one is aborted, so that a health
/// probe always gets in.
#[derive(Default)]
struct Connections(VecDeque<AbortHandle>);

impl Connections {
    fn spawn(&mut self, connection: impl Future<Output: Send> + Send + 'static) {
        if self.0.len() >= MOST_CONNECTIONS {
            self.0.retain(|connection| !connection.is_finished());
        }
        if self.0.len() >= MOST_CONNECTIONS
            && let Some(oldest) = self.0.pop_front()
        {
            oldest.abort();
        }
        self.0.push_back(tokio::spawn(connection).abort_handle());
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

async fn connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    authorise: Authorise,
    state: Arc<OperationsState>,
) {
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else { return answer(stream, true, state).await };
    match tokio::time::timeout(START_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(stream)) => {
            let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let is_reader = !chain.is_empty() && authorise(chain);
            answer(stream, is_reader, state).await;
        }
        Ok(Err(error)) => tracing::debug!(%error, "operations listener: handshake failed"),
        Err(_) => tracing::debug!("operations listener: handshake too slow"),
    }
}

async fn answer<S>(stream: S, is_reader: bool, state: Arc<OperationsState>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(respond(&request, is_reader, &state).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(START_TIMEOUT)
        .max_headers(64)
        .max_buf_size(16 * 1024)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "operations listener: connection failed");
    }
}

async fn respond(
    request: &Request<Incoming>,
    is_reader: bool,
    state: &OperationsState,
) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match request.uri().path() {
        "/livez" => text(StatusCode::OK, "up\n"),
        "/readyz" if state.is_ready() => text(StatusCode::OK, "up\n"),
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "down\n"),
        "/metrics" if is_reader => {
            let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
            metrics(state, plain_text::is_asked_for(accept)).await
        }
        "/metrics" => text(StatusCode::FORBIDDEN, "not a reader\n"),
        _ => text(StatusCode::NOT_FOUND, "not here\n"),
    }
}

/// As OpenMetrics, or as plain text.
async fn metrics(state: &OperationsState, is_plain: bool) -> Response<Full<Bytes>> {
    let _one_at_a_time = state.rendering.acquire().await;
    let (metrics, sources) = (Arc::clone(&state.metrics), Arc::clone(&state.sources));
    // With 10,000 keys this takes long enough to be felt by calls.
    match tokio::task::spawn_blocking(move || scrape::render(&metrics, &sources)).await {
        Ok(rendered) => {
            let mut response = text(StatusCode::OK, "");
            let (content_type, rendered) = if is_plain {
                (plain_text::CONTENT_TYPE, plain_text::plain_text(&rendered))
            } else {
                (scrape::CONTENT_TYPE, rendered)
            };
            let content_type = HeaderValue::from_static(content_type);
            response.headers_mut().insert(CONTENT_TYPE, content_type);
            *response.body_mut() = Full::new(rendered.into());
            response
        }
        Err(error) => {
            tracing::error!(%error, "the metrics could not be rendered");
            text(StatusCode::INTERNAL_SERVER_ERROR, "failed\n")
        }
    }
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests;

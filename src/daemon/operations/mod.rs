//! The operations listener: `/livez` and `/readyz` for any client, `/metrics` for readers.
//!
//! HTTP/1.1, one request per connection. The probes tell up or down and nothing else.

pub mod control;
mod plain_text;
mod process;
mod scrape;
#[cfg(test)]
mod shipped_queries;
mod sources;

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
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::daemon::records::metrics::Metrics;
use crate::daemon::request::health::Phase;
use crate::daemon::transport::descriptors::Descriptors;
use crate::daemon::transport::listener::{Capacity, Entered, Entrance};

pub use sources::Sources;

/// TLS handshakes at a time.
const HANDSHAKES: usize = 64;
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

    /// Whether the daemon accepts calls and can record unwrap, rewrap and sign, so that it may answer
    /// them.
    pub fn is_ready(&self) -> bool {
        self.sources.phase() == Phase::Ready && !self.sources.audit.is_failing()
    }

    /// Whether it can record every other call too.
    fn is_ready_for_all(&self) -> bool {
        self.is_ready() && !self.sources.audit.is_in_reserve()
    }
}

/// Answers until `shutdown`. Without `tls` only loopback is served, and any user of the host may
/// read the metrics; with it, those whose certificate `authorise` accepts.
pub async fn serve(
    listener: TcpListener,
    tls: Option<TlsSource>,
    authorise: Authorise,
    state: Arc<OperationsState>,
    descriptors: Descriptors,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let address = listener.local_addr()?;
    check_address(address, tls.is_some())?;
    if tls.is_none() {
        tracing::info!(%address, "operations listener without TLS: /metrics is open to this host");
    }
    let most = descriptors.for_operations();
    let capacity = Capacity { connections: most, of_one_source: most.div_ceil(2) };
    let entrance = Arc::new(Entrance::new(HANDSHAKES, descriptors));
    let mut shutdown = pin!(shutdown);
    let mut connections = JoinSet::new();
    loop {
        let entered = tokio::select! {
            () = &mut shutdown => return Ok(()),
            entered = entrance.accept(&listener, || capacity) => entered,
        };
        while connections.try_join_next().is_some() {}
        let served =
            connection(entrance.clone(), entered, tls.clone(), authorise.clone(), state.clone());
        connections.spawn(tokio::time::timeout(CONNECTION_TIMEOUT, served));
    }
}

fn check_address(address: SocketAddr, has_tls: bool) -> io::Result<()> {
    if has_tls || address.ip().is_loopback() {
        return Ok(());
    }
    let reason = format!("[operations] listen = \"{address}\": off loopback it needs [server.tls]");
    Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
}

/// Serves one connection, unless it is cut to make room for others.
async fn connection(
    entrance: Arc<Entrance>,
    entered: Entered,
    tls: Option<TlsSource>,
    authorise: Authorise,
    state: Arc<OperationsState>,
) {
    let Entered { stream, address, registration } = entered;
    let _ = stream.set_nodelay(true);
    let served = async {
        let Some(tls) = tls else {
            tokio::time::timeout(START_TIMEOUT, registration.first_byte(&stream))
                .await
                .ok()?
                .ok()?;
            answer(stream, true, state).await;
            return Some(());
        };
        let acceptor = || TlsAcceptor::from(tls());
        let handshake = entrance.handshake_or_log(stream, address, &registration, acceptor);
        let stream = tokio::time::timeout(START_TIMEOUT, handshake).await.ok()?.ok()?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let is_reader = !chain.is_empty() && authorise(chain);
        answer(stream, is_reader, state).await;
        Some(())
    };
    tokio::select! {
        _ = served => {}
        () = registration.crowded_out() => {}
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
        "/readyz/all" if state.is_ready_for_all() => text(StatusCode::OK, "up\n"),
        "/readyz" | "/readyz/all" => text(StatusCode::SERVICE_UNAVAILABLE, "down\n"),
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

//! The operations listener: `/livez` and `/readyz` for any client, `/metrics` and `/status` for readers.
//!
//! HTTP/1.1, one request per connection. The probes tell up or down and nothing else.

pub mod control;
mod plain_text;
mod process;
mod scrape;
#[cfg(test)]
mod shipped_queries;
mod sources;
pub mod status;

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

use crate::daemon::transport::descriptors::Descriptors;
use crate::daemon::transport::listener::{Capacity, Entered, Entrance};

pub use sources::Sources;

/// TLS handshakes at a time.
const HANDSHAKES: usize = 64;
/// For a TLS handshake, and for a request's head.
const START_TIMEOUT: Duration = Duration::from_secs(5);
/// For all of a connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

const PLAIN: &str = "text/plain; charset=utf-8";

/// The TLS configuration in force, asked for at each connection, so that reloads take effect.
pub type TlsSource = Arc<dyn Fn() -> Arc<ServerConfig> + Send + Sync>;

/// Whether a verified client certificate chain belongs to a reader of the metrics.
pub type Authorise = Arc<dyn Fn(&[CertificateDer<'_>]) -> bool + Send + Sync>;

/// What the listener tells.
#[derive(Debug)]
pub struct OperationsState {
    sources: Arc<Sources>,
    /// One at a time: readers cannot take all processors.
    rendering: Semaphore,
}

impl OperationsState {
    /// What is read when it is asked for.
    pub fn new(sources: Sources) -> Self {
        Self { sources: Arc::new(sources), rendering: Semaphore::new(1) }
    }

    fn is_ready(&self) -> bool {
        self.sources.is_ready()
    }

    /// Whether it can record every other call too.
    fn is_ready_for_all(&self) -> bool {
        self.is_ready() && !self.sources.audit.is_in_reserve()
    }

    /// What `render` makes of the sources. With 10,000 keys this takes long enough to be felt by calls.
    async fn rendered<T: Send + 'static>(
        &self,
        render: impl FnOnce(&Arc<Sources>) -> T + Send + 'static,
    ) -> Result<T, Response<Full<Bytes>>> {
        let _one_at_a_time = self.rendering.acquire().await;
        let sources = Arc::clone(&self.sources);
        tokio::task::spawn_blocking(move || render(&sources)).await.map_err(|error| {
            tracing::error!(%error, "what was asked of the operations listener could not be rendered");
            text(StatusCode::INTERNAL_SERVER_ERROR, "failed\n")
        })
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
    let entrance = Arc::new(Entrance::new(HANDSHAKES, descriptors)?);
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
    // Where it is not told to anybody, `?verbose` changes nothing: a probe must not fail for it.
    let is_verbose = is_reader && request.uri().query().is_some_and(|query| query == "verbose");
    match request.uri().path() {
        "/readyz" if is_verbose => readiness(state).await,
        "/livez" => text(StatusCode::OK, "up\n"),
        "/readyz" if state.is_ready() => text(StatusCode::OK, "up\n"),
        "/readyz/all" if state.is_ready_for_all() => text(StatusCode::OK, "up\n"),
        "/readyz" | "/readyz/all" => text(StatusCode::SERVICE_UNAVAILABLE, "down\n"),
        "/metrics" if is_reader => {
            let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
            metrics(state, plain_text::is_asked_for(accept)).await
        }
        "/status" if is_reader => status(state).await,
        "/metrics" | "/status" => text(StatusCode::FORBIDDEN, "not a reader\n"),
        _ => text(StatusCode::NOT_FOUND, "not here\n"),
    }
}

/// As OpenMetrics, or as plain text.
async fn metrics(state: &OperationsState, is_plain: bool) -> Response<Full<Bytes>> {
    match state.rendered(scrape::render).await {
        Ok(rendered) if is_plain => {
            with_body(StatusCode::OK, plain_text::CONTENT_TYPE, plain_text::plain_text(&rendered))
        }
        Ok(rendered) => with_body(StatusCode::OK, scrape::CONTENT_TYPE, rendered),
        Err(failed) => failed,
    }
}

/// What `/readyz` looks at, part by part, and how each replica is.
async fn readiness(state: &OperationsState) -> Response<Full<Bytes>> {
    let ready = state.is_ready();
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let rendered = state.rendered(|sources| sources.readiness()).await;
    rendered.map_or_else(|failed| failed, |rendered| with_body(code, PLAIN, rendered))
}

/// The [`status::Status`].
async fn status(state: &OperationsState) -> Response<Full<Bytes>> {
    let rendered = state.rendered(|sources| serde_json::to_string(&sources.status())).await;
    match rendered {
        Ok(Ok(rendered)) => with_body(StatusCode::OK, "application/json", rendered + "\n"),
        Ok(Err(error)) => {
            tracing::error!(%error, "the status cannot be written");
            text(StatusCode::INTERNAL_SERVER_ERROR, "failed\n")
        }
        Err(failed) => failed,
    }
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    with_body(status, PLAIN, body)
}

fn with_body(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests;

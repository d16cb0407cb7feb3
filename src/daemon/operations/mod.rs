//! The operations listener: `/livez` and `/readyz` for any client; `/metrics`, `/status` and the page at `/`
//! for readers.
//!
//! HTTP/1.1, one request per connection. The probes tell up or down and nothing else.

pub mod control;
mod lifetime;
pub(crate) mod page;
mod plain_text;
mod process;
mod reader;
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

use http::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS,
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
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

use lifetime::Lifetime;
use page::Pages;
use reader::Reader;
pub use sources::Sources;

/// TLS handshakes at a time.
const HANDSHAKES: usize = 64;
/// For a TLS handshake, and for a request's head.
const START_TIMEOUT: Duration = Duration::from_secs(5);
/// For all of a connection, unless it is that of an open page.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

const LED_HERE: &str =
    "ask under 127.0.0.1, [::1] or localhost, and from no page of another site\n";
const PLAIN: &str = "text/plain; charset=utf-8";

/// The TLS configuration in force, asked for at each connection, so that reloads take effect.
pub type TlsSource = Arc<dyn Fn() -> Arc<ServerConfig> + Send + Sync>;

/// What is answered, whole or as a stream.
type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Whether a verified client certificate chain belongs to a reader of the metrics.
pub type Authorise = Arc<dyn Fn(&[CertificateDer<'_>]) -> bool + Send + Sync>;

/// What the listener tells.
#[derive(Debug)]
pub struct OperationsState {
    sources: Arc<Sources>,
    /// One at a time: readers cannot take all processors.
    rendering: Semaphore,
    pages: Pages,
}

impl OperationsState {
    /// What is read when it is asked for.
    pub fn new(sources: Sources) -> Self {
        Self { sources: Arc::new(sources), rendering: Semaphore::new(1), pages: Pages::default() }
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
    ) -> Result<T, Response<Body>> {
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
    let pages = Arc::clone(&state);
    connections.spawn(async move { pages.pages.keep_up_to_date(&pages).await });
    loop {
        let entered = tokio::select! {
            () = &mut shutdown => return Ok(()),
            entered = entrance.accept(&listener, || capacity) => entered,
        };
        while connections.try_join_next().is_some() {}
        let served =
            connection(entrance.clone(), entered, tls.clone(), authorise.clone(), state.clone());
        connections.spawn(served);
    }
}

fn check_address(address: SocketAddr, has_tls: bool) -> io::Result<()> {
    if has_tls || address.ip().is_loopback() {
        return Ok(());
    }
    let reason = format!("[operations] listen = \"{address}\": off loopback it needs [server.tls]");
    Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
}

/// Serves one connection, unless it lasts too long or is cut to make room for others.
async fn connection(
    entrance: Arc<Entrance>,
    entered: Entered,
    tls: Option<TlsSource>,
    authorise: Authorise,
    state: Arc<OperationsState>,
) {
    let Entered { stream, address, registration } = entered;
    let _ = stream.set_nodelay(true);
    let lifetime = Arc::new(Lifetime::of(CONNECTION_TIMEOUT));
    let served = async {
        let Some(tls) = tls else {
            tokio::time::timeout(START_TIMEOUT, registration.first_byte(&stream))
                .await
                .ok()?
                .ok()?;
            answer(stream, Reader::ThisHost, &lifetime, state).await;
            return Some(());
        };
        let acceptor = || TlsAcceptor::from(tls());
        let handshake = entrance.handshake_or_log(stream, address, &registration, acceptor);
        let stream = tokio::time::timeout(START_TIMEOUT, handshake).await.ok()?.ok()?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let reader = Reader::peer(chain, authorise);
        answer(stream, reader, &lifetime, state).await;
        Some(())
    };
    tokio::select! {
        _ = served => {}
        () = registration.crowded_out() => {}
        () = lifetime.is_over() => {}
    }
}

async fn answer<S>(stream: S, reader: Reader, lifetime: &Arc<Lifetime>, state: Arc<OperationsState>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let reader = Arc::new(reader);
    let service = service_fn(|request| {
        let (reader, lifetime, state) = (reader.clone(), lifetime.clone(), state.clone());
        async move { Ok::<_, Infallible>(respond(&request, reader, &lifetime, &state).await) }
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
    reader: Arc<Reader>,
    lifetime: &Lifetime,
    state: &OperationsState,
) -> Response<Body> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    let is_led_here = reader.is_led_here(request.headers());
    let is_reader = !is_led_here && reader.may_read();
    // Where it is not told to anybody, `?verbose` changes nothing: a probe must not fail for it.
    let is_verbose = is_reader && request.uri().query().is_some_and(|query| query == "verbose");
    let path = request.uri().path();
    match path {
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
        "/events" if is_reader => {
            lifetime.extend(page::LONGEST);
            state.pages.open(reader)
        }
        _ => match page::file(path) {
            Some(file) if is_reader => file,
            None if !matches!(path, "/metrics" | "/status" | "/events") => {
                text(StatusCode::NOT_FOUND, "not here\n")
            }
            _ if is_led_here => text(StatusCode::MISDIRECTED_REQUEST, LED_HERE),
            _ => text(StatusCode::FORBIDDEN, "not a reader\n"),
        },
    }
}

/// As OpenMetrics, or as plain text.
async fn metrics(state: &OperationsState, is_plain: bool) -> Response<Body> {
    match state.rendered(scrape::render).await {
        Ok(rendered) if is_plain => {
            whole(StatusCode::OK, plain_text::CONTENT_TYPE, plain_text::plain_text(&rendered))
        }
        Ok(rendered) => whole(StatusCode::OK, scrape::CONTENT_TYPE, rendered),
        Err(failed) => failed,
    }
}

/// What `/readyz` looks at, part by part, and how each replica is.
async fn readiness(state: &OperationsState) -> Response<Body> {
    let ready = state.is_ready();
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let rendered = state.rendered(|sources| sources.readiness()).await;
    rendered.map_or_else(|failed| failed, |rendered| whole(code, PLAIN, rendered))
}

/// The [`status::Status`].
async fn status(state: &OperationsState) -> Response<Body> {
    let rendered = state.rendered(|sources| serde_json::to_string(&sources.status())).await;
    match rendered {
        Ok(Ok(rendered)) => whole(StatusCode::OK, "application/json", rendered + "\n"),
        Ok(Err(error)) => {
            tracing::error!(%error, "the status cannot be written");
            text(StatusCode::INTERNAL_SERVER_ERROR, "failed\n")
        }
        Err(failed) => failed,
    }
}

fn text(status: StatusCode, body: &'static str) -> Response<Body> {
    whole(status, PLAIN, body)
}

fn whole(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    with_body(status, content_type, Full::new(body.into()).boxed_unsync())
}

fn with_body(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    response
}

#[cfg(test)]
mod tests;

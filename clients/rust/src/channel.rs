//! One HTTP/2 connection, as what the generated clients call.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::{Authority, Scheme};
use http::{HeaderValue, Request, Response, Uri, header};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::AlertDescription;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::body::Body;
use tower::Service;

use crate::drained::{Drained, ReceivedAlert};

/// An idle connection is asked this often whether it still exists: a firewall forgets it silently,
/// and the next call would wait for its whole deadline to find out.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const USER_AGENT: HeaderValue =
    HeaderValue::from_static(concat!("claviger-client/", env!("CARGO_PKG_VERSION")));

/// What each request says it asks for: `:scheme` and `:authority`.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) scheme: Scheme,
    pub(crate) authority: Authority,
}

/// A connection. Clones share it; it ends when the last one is gone and no call is left.
#[derive(Clone, Debug)]
pub(crate) struct Channel {
    sender: SendRequest<Body>,
    origin: Origin,
    status: Arc<ConnectionStatus>,
}

/// What became of a connection so far.
#[derive(Debug)]
struct ConnectionStatus {
    answers: AtomicU64,
    alert: ReceivedAlert,
}

impl Channel {
    /// Speaks HTTP/2 over `stream`; a task of the current runtime drives it. With `pings` the task
    /// also sees to it that an idle connection is noticed when it is gone.
    pub(crate) async fn open(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        origin: Origin,
        pings: bool,
    ) -> Result<Self, (hyper::Error, Option<AlertDescription>)> {
        let (stream, alert) = Drained::new(stream);
        let (sender, connection) = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(pings)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| (error, alert.get().copied()))?;
        let status = Arc::new(ConnectionStatus { answers: AtomicU64::new(0), alert });
        // What ends the connection, each of its calls is told.
        tokio::spawn(connection);
        Ok(Self { sender, origin, status })
    }

    /// Whether it takes no more calls.
    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Whether both are the same connection.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.status, &other.status)
    }

    /// The TLS alert that ended the connection, as it does where the daemon refuses this program's
    /// certificate after the handshake. It is known before any call fails for it.
    pub(crate) fn alert(&self) -> Option<AlertDescription> {
        self.status.alert.get().copied()
    }

    /// How many answers came over it until now, to all its calls together.
    pub(crate) fn answers(&self) -> u64 {
        self.status.answers.load(Ordering::Relaxed)
    }

    fn absolute(&self, uri: &Uri) -> Uri {
        let mut parts = uri.clone().into_parts();
        parts.scheme = Some(self.origin.scheme.clone());
        parts.authority = Some(self.origin.authority.clone());
        Uri::from_parts(parts).expect("a gRPC method is a path")
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Self::Response>> + Send>>;

    /// Always ready: a closed connection is an error of the call, which says that nothing was sent.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        *request.uri_mut() = self.absolute(request.uri());
        request.headers_mut().insert(header::USER_AGENT, USER_AGENT);
        let answer = self.sender.send_request(request);
        let status = Arc::clone(&self.status);
        Box::pin(async move {
            let answer = answer.await;
            if answer.is_ok() {
                status.answers.fetch_add(1, Ordering::Relaxed);
            }
            answer
        })
    }
}

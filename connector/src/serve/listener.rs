//! Connections: accepted up to a bound, HTTP/1.1 or HTTP/2 over TLS, or HTTP/1.1 from a named proxy.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::tls::Tls;
use crate::app::App;
use crate::http::{self, Answer, network};

/// For a TLS handshake, and for the head of a request; an idle connection is closed after it too.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest head: a token and as much again.
const MAX_HEAD: usize = 32 << 10;
const MAX_STREAMS: u32 = 32;

/// What answers on a listener.
#[derive(Clone)]
pub(super) enum Service {
    /// Users' clients; without `tls` for the proxies of `app` alone.
    Users { app: Arc<App>, tls: Option<Arc<Tls>> },
    /// Operators.
    Operations { app: Arc<App> },
}

/// Room for connections, and their end. Cheap to clone.
#[derive(Clone)]
pub(super) struct Connections {
    room: Arc<Semaphore>,
    all: u32,
    /// How many each address has open.
    of_address: Arc<Mutex<HashMap<IpAddr, u32>>>,
    draining: watch::Sender<bool>,
}

/// A place among the connections of one address, given back when dropped.
struct Place {
    connections: Connections,
    address: IpAddr,
}

impl Connections {
    pub(super) fn new(all: u32) -> Self {
        let room = Arc::new(Semaphore::new(all as usize));
        Self { room, all, of_address: Arc::default(), draining: watch::Sender::new(false) }
    }

    /// One address has a quarter of the room at most, so that no other is kept out by it.
    fn enter(&self, address: IpAddr) -> Option<Place> {
        let mut of_address = self.of_address.lock().expect("nothing panics with it");
        let open = of_address.entry(address).or_default();
        if *open >= self.all.div_ceil(4) {
            return None;
        }
        *open += 1;
        Some(Place { connections: self.clone(), address })
    }

    /// Lets each connection end after the request in flight; waits for them.
    pub(super) async fn drain(&self, longest: Duration) {
        self.draining.send_replace(true);
        if timeout(longest, self.room.acquire_many(self.all)).await.is_err() {
            warn!(open = self.all as usize - self.room.available_permits(), "connections are cut");
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut of_address = self.connections.of_address.lock().expect("nothing panics with it");
        if let Some(open) = of_address.get_mut(&self.address) {
            *open -= 1;
            if *open == 0 {
                of_address.remove(&self.address);
            }
        }
    }
}

/// Accepts for ever.
pub(super) async fn accept(listener: TcpListener, service: Service, connections: Connections) {
    loop {
        let room = Arc::clone(&connections.room).acquire_owned().await;
        let Ok(room) = room else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                // A proxy's connections are those of many.
                let place = match &service {
                    Service::Users { tls: Some(_), .. } => {
                        let Some(place) = connections.enter(network(peer.ip())) else {
                            debug!(%peer, "an address has a quarter of all connections open");
                            continue;
                        };
                        Some(place)
                    }
                    _ => None,
                };
                let (service, draining) = (service.clone(), connections.draining.subscribe());
                tokio::spawn(connection(stream, peer, service, draining, (room, place)));
            }
            Err(error) => {
                // Out of descriptors, most often: others must end first.
                warn!(%error, "a connection was not accepted");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    service: Service,
    draining: watch::Receiver<bool>,
    _room: (OwnedSemaphorePermit, Option<Place>),
) {
    let peer = peer.ip().to_canonical();
    // Small answers must not wait for more.
    let _ = stream.set_nodelay(true);
    match service {
        Service::Operations { app } => {
            let answer = move |request| {
                let app = Arc::clone(&app);
                async move { Ok(http::operations(app, request).await) }
            };
            over_http1(stream, answer, draining).await;
        }
        Service::Users { app, tls: None } => {
            if !app.proxies.iter().any(|network| network.contains(&peer)) {
                debug!(%peer, "not a proxy that `proxies` names");
                return;
            }
            over_http1(stream, users(app, peer), draining).await;
        }
        Service::Users { app, tls: Some(tls) } => {
            match timeout(HEAD_TIMEOUT, tls.acceptor().accept(stream)).await {
                Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                    over_http2(stream, users(app, peer), draining).await;
                }
                Ok(Ok(stream)) => over_http1(stream, users(app, peer), draining).await,
                Ok(Err(error)) => debug!(%peer, %error, "no TLS came about"),
                Err(_) => debug!(%peer, "no TLS came about in time"),
            }
        }
    }
}

/// Waits until the listener is to end.
async fn told(draining: &mut watch::Receiver<bool>) {
    // An error is the end of the whole process.
    let _ = draining.wait_for(|draining| *draining).await;
}

type Outcome = Result<Response<Answer>, Infallible>;

fn users(
    app: Arc<App>,
    peer: IpAddr,
) -> impl Fn(Request<Incoming>) -> futures::future::BoxFuture<'static, Outcome> + Clone {
    move |request| {
        let app = Arc::clone(&app);
        Box::pin(async move { Ok(http::answer(app, peer, request).await) })
    }
}

async fn over_http1<F, A>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: F,
    mut draining: watch::Receiver<bool>,
) where
    F: Fn(Request<Incoming>) -> A,
    A: Future<Output = Outcome>,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service_fn(answer));
    to_its_end(pin!(connection), http1::Connection::graceful_shutdown, &mut draining).await;
}

async fn over_http2<F, A>(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    answer: F,
    mut draining: watch::Receiver<bool>,
) where
    F: Fn(Request<Incoming>) -> A,
    A: Future<Output = Outcome> + Send + 'static,
{
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(HEAD_TIMEOUT)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD as u32)
        .serve_connection(TokioIo::new(stream), service_fn(answer));
    to_its_end(pin!(connection), http2::Connection::graceful_shutdown, &mut draining).await;
}

/// Serves a connection until its peer ends it, or until it has answered what is in flight when it is
/// `told` to end.
async fn to_its_end<C: Future<Output = hyper::Result<()>>>(
    mut connection: Pin<&mut C>,
    end: impl FnOnce(Pin<&mut C>),
    draining: &mut watch::Receiver<bool>,
) {
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = told(draining) => {
            end(connection.as_mut());
            connection.await
        }
    };
    if let Err(error) = outcome {
        debug!(%error, "a connection broke");
    }
}

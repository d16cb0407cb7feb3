//! One connection's life, in one task: handshake, requests, and its end.

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tower::util::{Oneshot, ServiceExt};

use super::lifetime::Lifetime;
use super::live::{Command, Place, Signal};
use super::refusal::Refusal;
use super::stats::{Cut, HandshakeFailure};
use super::stream::Lingering;
use super::{Answer, ConnectionSettings, Shared};
use crate::daemon::transport::caller::Peer;

/// A dead peer is noticed after both together; idle connections cost one small frame a minute.
const PING_INTERVAL: Duration = Duration::from_mins(1);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests carry a few short headers.
const MAX_HEADER_LIST: u32 = 8 << 10;
/// Streams that a peer resets before they were served (CVE-2023-44487), and that we reset for the
/// peer's errors; more end the connection.
const MAX_RESET_STREAMS: usize = 20;
const MAX_LOCAL_ERROR_RESETS: usize = 128;
/// A message has 64 KiB at most: one fits a stream's window, four the connection's.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;
const SEND_BUFFER: usize = 128 << 10;
/// Connections that a denied caller may have: enough to be told so.
const DENIED_SHARE: usize = 4;

pub(super) async fn serve_tcp<S: Answer>(
    shared: Arc<Shared>,
    stream: TcpStream,
    address: SocketAddr,
    place: Place,
    service: S,
) {
    let _ = stream.set_nodelay(true);
    let allowed = shared.settings.load().handshake_timeout;
    // Boxed, like the connection that comes of it: the task itself stays small, and the memory of a
    // handshake is free again after it.
    let admission = Box::pin(async {
        let (stream, peer) = handshake(&shared, stream, address, &place).await?;
        shared.stats.count_handshake();
        Ok(open(&shared, stream, peer, service))
    });
    let outcome = tokio::select! {
        outcome = timeout(allowed, admission) => {
            outcome.unwrap_or(Err(Refusal::from(HandshakeFailure::Timeout)))
        }
        _ = place.signal.received() => Err(HandshakeFailure::Shutdown.into()),
    };
    match outcome {
        Ok(opened) => serve(&shared, &place, opened).await,
        Err(refusal) => refusal.record(&shared, address),
    }
}

pub(super) async fn serve_unix<S: Answer>(
    shared: Arc<Shared>,
    stream: UnixStream,
    place: Place,
    service: S,
) {
    let Ok(credentials) = stream.peer_cred() else {
        shared.stats.count_failed(HandshakeFailure::Protocol);
        return;
    };
    let peer = Arc::new(Peer::with_uid(credentials.uid(), credentials.pid()));
    if let Err(refusal) = admit(&shared, &place, &peer) {
        refusal.record(&shared, peer.address);
        return;
    }
    let opened = open(&shared, stream, peer, service);
    serve(&shared, &place, opened).await;
}

/// TLS, and who it is. Nothing here costs more than a socket until the peer has sent its first
/// bytes: only then it waits for one of its source's places.
async fn handshake(
    shared: &Shared,
    stream: TcpStream,
    address: SocketAddr,
    place: &Place,
) -> Result<(TlsStream<TcpStream>, Arc<Peer>), Refusal> {
    let tls = shared.tls.as_ref().ok_or(HandshakeFailure::Protocol)?;
    stream.peek(&mut [0]).await.map_err(|_| HandshakeFailure::PeerLeft)?;
    let accept = async {
        let acceptor = TlsAcceptor::from(tls.load().server_config());
        acceptor.accept(stream).await.map_err(Refusal::from)
    };
    let stream = shared.handshakes.run(address.ip().into(), accept).await?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    loop {
        let (trust, now) = (tls.load().trust().clone(), SystemTime::now());
        let ca = trust.verify(chain, now)?;
        let peer = Peer::with_certificate(address, ca, chain).map_err(|error| Refusal {
            reason: HandshakeFailure::BadCertificate,
            detail: error.to_string(),
        })?;
        let peer = Arc::new(peer);
        admit(shared, place, &peer)?;
        // What came in force before `identify` may not have looked at this connection.
        let in_force = tls.load().trust().clone();
        if in_force.fingerprint() == trust.fingerprint()
            && in_force.past_grace(SystemTime::now()) == trust.past_grace(now)
        {
            return Ok((stream, peer));
        }
    }
}

/// Lets a peer in that is known by now, unless it has its share of connections. One that is denied
/// comes in too: only an answer to its calls tells it so, and the service denies each of them.
fn admit(shared: &Shared, place: &Place, peer: &Arc<Peer>) -> Result<(), Refusal> {
    let share = shared.settings.load().max_connections_per_caller;
    let share = if shared.denied.denies(peer) { share.min(DENIED_SHARE) } else { share };
    place.identify(peer.clone(), share).map_err(|reason| Refusal::of(peer, reason))
}

/// A connection that is to speak HTTP/2.
struct Opened<C> {
    connection: Pin<Box<C>>,
    heard: Arc<AtomicBool>,
    lifetime: Lifetime,
}

type Http2<I, S> = http2::Connection<TokioIo<Lingering<I>>, WithPeer<S>, TokioExecutor>;

fn open<I: AsyncRead + AsyncWrite + Send + Unpin + 'static, S: Answer>(
    shared: &Shared,
    io: I,
    peer: Arc<Peer>,
    service: S,
) -> Opened<Http2<I, S>> {
    let settings = shared.settings.load();
    let heard = Arc::new(AtomicBool::new(false));
    let lifetime = Lifetime::new(&settings, &peer);
    let io = TokioIo::new(Lingering::new(io, heard.clone()));
    let service = WithPeer { peer, service };
    let connection = Box::pin(http2_settings(&settings).serve_connection(io, service));
    Opened { connection, heard, lifetime }
}

async fn serve<I: AsyncRead + AsyncWrite + Send + Unpin + 'static, S: Answer>(
    shared: &Shared,
    place: &Place,
    opened: Opened<Http2<I, S>>,
) {
    let Opened { mut connection, heard, lifetime } = opened;
    let mut stage = Stage::Silent;
    let silent_until = lifetime.silent_until.min(lifetime.cut_at);
    let mut timer = pin!(sleep_until(lifetime.go_away_at.min(silent_until)));
    let signal: &Signal = &place.signal;
    let cut = loop {
        tokio::select! {
            biased;
            command = signal.received() => match command {
                Command::Drain => connection.as_mut().graceful_shutdown(),
                Command::Cut(reason) => break Some(reason),
            },
            () = timer.as_mut() => match stage {
                Stage::Silent if heard.load(Ordering::Relaxed) => {
                    stage = Stage::Serving;
                    timer.as_mut().reset(lifetime.go_away_at);
                }
                // Before its preface a client cannot be told to go.
                Stage::Silent if Instant::now() < silent_until => {
                    timer.as_mut().reset(silent_until);
                }
                Stage::Silent => break Some(Cut::Silent),
                Stage::Serving => {
                    connection.as_mut().graceful_shutdown();
                    stage = Stage::Leaving;
                    timer.as_mut().reset(lifetime.cut_at);
                }
                Stage::Leaving => break Some(lifetime.cut_for),
            },
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended");
                }
                break None;
            }
        }
    };
    if let Some(reason) = cut {
        shared.stats.count_cut(reason);
    }
}

fn http2_settings(settings: &ConnectionSettings) -> http2::Builder<TokioExecutor> {
    let mut http2 = http2::Builder::new(TokioExecutor::new());
    http2
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(settings.max_streams)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_pending_accept_reset_streams(MAX_RESET_STREAMS)
        .max_local_error_reset_streams(MAX_LOCAL_ERROR_RESETS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER);
    http2
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// No HTTP/2 yet, perhaps.
    Silent,
    Serving,
    /// GOAWAY was sent.
    Leaving,
}

/// The service, with the connection's peer in each request.
struct WithPeer<S> {
    peer: Arc<Peer>,
    service: S,
}

impl<S> hyper::service::Service<Request<Incoming>> for WithPeer<S>
where
    S: tower::Service<Request<Incoming>> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Oneshot<S, Request<Incoming>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.peer.clone());
        self.service.clone().oneshot(request)
    }
}

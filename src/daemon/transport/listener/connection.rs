//! One connection's life, in one task: handshake, requests, and its end.

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tower::util::{Oneshot, ServiceExt};

use super::authority::AnyAuthority;
use super::calls::{AnswerBody, Answering, Calls, StreamTasks};
use super::connections::Registration;
use super::entrance::Entered;
use super::lifetime::Lifetime;
use super::refusal::Refusal;
use super::signal::{Command, Signal};
use super::stats::{Cut, HandshakeFailure};
use super::stream::Lingering;
use super::{Answer, ClientCertificate, ConnectionSettings, Shared};
use crate::daemon::transport::caller::{Peer, PeerAddress};
use crate::daemon::transport::tls::TlsState;
use crate::daemon::transport::tls::trust::ClientTrust;

/// A dead peer is noticed after both together; idle connections cost one small frame a minute.
const PING_INTERVAL: Duration = Duration::from_mins(1);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests carry a few short headers. What is above is answered by the HTTP/2 library, with HTTP
/// 431; below it the service has its own, smaller limit, and answers in its own words.
const MAX_HEADER_LIST: u32 = 64 << 10;
/// Streams that a peer resets before they were served (CVE-2023-44487), and that we reset for the
/// peer's errors; more end the connection.
const MAX_RESET_STREAMS: usize = 20;
const MAX_LOCAL_ERROR_RESETS: usize = 128;
/// A message has 64 KiB at most: one fits a stream's window, nearly four the connection's. What a
/// call sends while it waits for room takes no more than the former.
const STREAM_WINDOW: u32 = 66 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;
const SEND_BUFFER: usize = 128 << 10;
/// How long after GOAWAY a connection stays whose calls have their answers: for the answer to the
/// ping that comes with it, and for calls that are on their way. And how long a handshake may go on
/// when the daemon has begun to drain.
const LEAVE_TIME: Duration = Duration::from_millis(500);
/// Connections that a denied caller may have: enough to be told so.
const DENIED_SHARE: usize = 4;

pub(super) async fn serve_tcp<S: Answer>(
    shared: Arc<Shared>,
    entered: Entered,
    certificate: ClientCertificate,
    service: S,
) {
    let Entered { stream, address, registration } = entered;
    let _ = stream.set_nodelay(true);
    let allowed = shared.settings.load().handshake_timeout;
    // Boxed, like the connection that comes of it: the task itself stays small, and the memory of a
    // handshake is free again after it.
    let mut admission = Box::pin(timeout(allowed, async {
        let (stream, peer) =
            handshake(&shared, stream, address, certificate, &registration).await?;
        shared.entrance.stats.count_handshake();
        Ok(open(&shared, &registration, stream, peer, service))
    }));
    let mut drains_until = None;
    let outcome = loop {
        tokio::select! {
            outcome = admission.as_mut() => {
                break outcome.unwrap_or(Err(Refusal::from(HandshakeFailure::Timeout)));
            }
            // Cut now, a client would not learn why: after its handshake it is asked to go.
            command = registration.signal.received() => match command {
                Command::Drain => drains_until = Some(Instant::now() + LEAVE_TIME),
                Command::Cut(Cut::Crowded) => break Err(HandshakeFailure::Crowded.into()),
                Command::Cut(_) => break Err(HandshakeFailure::Shutdown.into()),
            },
            () = at(drains_until) => break Err(HandshakeFailure::Shutdown.into()),
        }
    };
    if drains_until.is_some() {
        registration.signal.send(Command::Drain);
    }
    match outcome {
        Ok(opened) => serve(&shared, &registration, opened).await,
        Err(refusal) => shared.entrance.refused(&refusal, address),
    }
}

pub(super) async fn serve_unix<S: Answer>(
    shared: Arc<Shared>,
    stream: UnixStream,
    registration: Registration,
    service: S,
) {
    let Ok(credentials) = stream.peer_cred() else {
        shared.entrance.stats.count_failed(HandshakeFailure::Protocol);
        return;
    };
    let peer = Arc::new(Peer::with_uid(credentials.uid(), credentials.pid()));
    if let Err(refusal) = admit(&shared, &registration, &peer) {
        shared.entrance.refused(&refusal, peer.address);
        return;
    }
    let opened = open(&shared, &registration, stream, peer, service);
    serve(&shared, &registration, opened).await;
}

/// At this time; without one never.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// TLS, and who it is.
async fn handshake(
    shared: &Shared,
    stream: TcpStream,
    address: SocketAddr,
    certificate: ClientCertificate,
    registration: &Registration,
) -> Result<(TlsStream<TcpStream>, Arc<Peer>), Refusal> {
    let tls = shared.tls.as_ref().ok_or(HandshakeFailure::Protocol)?;
    let acceptor = || {
        let tls = tls.load();
        TlsAcceptor::from(match certificate {
            ClientCertificate::Required => tls.server_config(),
            ClientCertificate::Optional => tls.without_certificate(),
        })
    };
    let source = address.ip().into();
    let verify = {
        let tls = Arc::clone(tls);
        move |stream| Ok((Verified::by(&tls, address, certificate, &stream)?, stream))
    };
    let done = shared.entrance.handshake(stream, source, registration, acceptor, verify).await?;
    let (mut verified, stream) = done;
    loop {
        admit(shared, registration, &verified.peer)?;
        // What came in force before `identify` may not have looked at this connection.
        if verified.is_so_now(tls) {
            return Ok((stream, verified.peer));
        }
        verified = Verified::by(tls, address, certificate, &stream)?;
    }
}

/// A peer, and what it was verified by.
struct Verified {
    peer: Arc<Peer>,
    trust: Arc<ClientTrust>,
    at: SystemTime,
}

impl Verified {
    /// By what is in force now.
    fn by(
        tls: &TlsState,
        address: SocketAddr,
        certificate: ClientCertificate,
        stream: &TlsStream<TcpStream>,
    ) -> Result<Self, Refusal> {
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let (trust, at) = (tls.load().trust().clone(), SystemTime::now());
        if chain.is_empty() && certificate == ClientCertificate::Optional {
            return Ok(Self { peer: Arc::new(Peer::without_certificate(address)), trust, at });
        }
        let verified = trust.verify(chain, at)?;
        let peer = Peer::with_certificate(address, verified, chain).map_err(|error| Refusal {
            reason: HandshakeFailure::BadCertificate,
            detail: error.to_string(),
        })?;
        Ok(Self { peer: Arc::new(peer), trust, at })
    }

    /// Whether nothing else came in force meanwhile.
    fn is_so_now(&self, tls: &TlsState) -> bool {
        let in_force = tls.load().trust().clone();
        in_force.fingerprint() == self.trust.fingerprint()
            && in_force.past_grace(SystemTime::now()) == self.trust.past_grace(self.at)
    }
}

/// Lets a peer in that is known by now, unless it has its share of connections. One that is denied
/// comes in too: only an answer to its calls tells it so, and the service denies each of them.
fn admit(shared: &Shared, registration: &Registration, peer: &Arc<Peer>) -> Result<(), Refusal> {
    let share = shared.settings.load().max_connections_per_caller;
    let share = if shared.denied.denies(peer) { share.min(DENIED_SHARE) } else { share };
    registration.identify(peer.clone(), share).map_err(|reason| Refusal::of(peer, reason))
}

/// A connection that is to speak HTTP/2.
struct Opened<C> {
    connection: Pin<Box<C>>,
    heard: Arc<AtomicBool>,
    lifetime: Lifetime,
}

type Http2<I, S> = http2::Connection<TokioIo<Lingering<I>>, OfConnection<S>, StreamTasks>;

fn open<I: AsyncRead + AsyncWrite + Send + Unpin + 'static, S: Answer>(
    shared: &Shared,
    registration: &Registration,
    io: I,
    peer: Arc<Peer>,
    service: S,
) -> Opened<Http2<I, S>> {
    let settings = shared.settings.load();
    let heard = Arc::new(AtomicBool::new(false));
    let lifetime = Lifetime::new(&settings, &peer);
    let is_unix = matches!(peer.address, PeerAddress::Unix { .. });
    let authority = is_unix.then(AnyAuthority::default);
    let io = TokioIo::new(Lingering::new(io, heard.clone(), authority));
    let calls = registration.calls.clone();
    let tasks = StreamTasks { calls: calls.clone(), stats: shared.entrance.stats.clone() };
    let service = OfConnection { peer, calls, service };
    let connection = Box::pin(http2_settings(&settings, tasks).serve_connection(io, service));
    Opened { connection, heard, lifetime }
}

async fn serve<I: AsyncRead + AsyncWrite + Send + Unpin + 'static, S: Answer>(
    shared: &Shared,
    registration: &Registration,
    opened: Opened<Http2<I, S>>,
) {
    let Opened { mut connection, heard, lifetime } = opened;
    let (signal, calls): (&Signal, &Calls) = (&registration.signal, &registration.calls);
    let mut stage = Stage::Silent;
    let silent_until = lifetime.silent_until.min(lifetime.cut_at);
    let mut timer = pin!(sleep_until(lifetime.go_away_at.min(silent_until)));
    let cut = loop {
        let leave = tokio::select! {
            biased;
            command = signal.received() => match command {
                Command::Drain => Some(Leaving { by: lifetime.cut_at, reason: Cut::Shutdown }),
                Command::Cut(reason) => break Some(reason),
            },
            () = timer.as_mut() => match stage {
                Stage::Silent if heard.load(Ordering::Relaxed) => {
                    stage = Stage::Serving;
                    timer.as_mut().reset(lifetime.go_away_at);
                    None
                }
                // Before its preface a client cannot be told to go.
                Stage::Silent if Instant::now() < silent_until => {
                    timer.as_mut().reset(silent_until);
                    None
                }
                Stage::Silent => break Some(Cut::Silent),
                Stage::Serving => {
                    Some(Leaving { by: lifetime.cut_at, reason: lifetime.cut_for })
                }
                Stage::Leaving(leaving) if leaving.is_over(calls) => break Some(leaving.reason),
                Stage::Leaving(leaving) => {
                    timer.as_mut().reset(leaving.by);
                    None
                }
            },
            () = calls.last_answered(), if matches!(stage, Stage::Leaving(_)) => {
                if let Stage::Leaving(leaving) = stage {
                    timer.as_mut().reset(leaving.until(calls));
                }
                None
            }
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended");
                }
                break None;
            }
        };
        if let Some(leaving) = leave {
            connection.as_mut().graceful_shutdown();
            stage = Stage::Leaving(leaving);
            timer.as_mut().reset(leaving.until(calls));
        }
    };
    if let Some(reason) = cut {
        shared.entrance.stats.count_cut(reason);
    }
}

fn http2_settings(
    settings: &ConnectionSettings,
    tasks: StreamTasks,
) -> http2::Builder<StreamTasks> {
    let mut http2 = http2::Builder::new(tasks);
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
    Leaving(Leaving),
}

/// When a connection that was asked to go has to be gone.
#[derive(Clone, Copy, Debug)]
struct Leaving {
    by: Instant,
    reason: Cut,
}

impl Leaving {
    /// The peer has [`LEAVE_TIME`] from its last answer on; as long as one is outstanding, it is
    /// waited for.
    fn until(self, calls: &Calls) -> Instant {
        if calls.all_answered() { self.by.min(Instant::now() + LEAVE_TIME) } else { self.by }
    }

    fn is_over(self, calls: &Calls) -> bool {
        calls.all_answered() || Instant::now() >= self.by
    }
}

/// The service of one connection: each request knows its peer, and is a call of the connection.
struct OfConnection<S> {
    peer: Arc<Peer>,
    calls: Arc<Calls>,
    service: S,
}

impl<S, B> hyper::service::Service<Request<Incoming>> for OfConnection<S>
where
    S: tower::Service<Request<Incoming>, Response = Response<B>> + Clone,
    B: Body,
{
    type Response = Response<AnswerBody<B>>;
    type Error = S::Error;
    type Future = Answering<Oneshot<S, Request<Incoming>>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let call = self.calls.begin();
        request.extensions_mut().insert(self.peer.clone());
        request.extensions_mut().insert(call.clone());
        Answering::new(self.service.clone().oneshot(request), call)
    }
}

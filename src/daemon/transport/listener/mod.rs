//! From listening sockets to requests that know their peer: accept, TLS, HTTP/2, and the end of
//! each connection.
//!
//! - [`mod@bind`]: the sockets, opened before anything is served; [`bound`]: what they are then
//! - `connection`, one connection's life, in one task; `stream`, what is under its HTTP/2; `lifetime`,
//!   how long it may take; `refusal`, why it never began
//! - [`entrance`]: who is let in; `handshakes`: permits for handshakes, shared among the sources of
//!   connections; `handshake_thread`: where they are made
//! - `connections`: all that are open, to drain them, cut them, and verify them again; `signal`, how
//!   one is told
//! - [`calls`]: the calls of one connection, in flight until their answers have left
//! - [`stats`]: what happened, counted

mod authority;
pub mod bind;
pub mod bound;
pub mod calls;
mod connection;
mod connections;
pub mod entrance;
mod handshake_thread;
mod handshakes;
pub mod inherited;
mod lifetime;
mod refusal;
mod signal;
pub mod stats;
mod stream;

use std::borrow::Cow;
use std::collections::HashMap;
use std::error::Error as StdError;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tower::Service;

pub use bind::{bind, bind_private};
pub use bound::{Bound, BoundUnix, ClientCertificate};
pub use calls::Call;
pub use entrance::{Capacity, Entered, Entrance};
pub use inherited::Inherited;
pub use stats::{ConnectionStats, Cut, HandshakeFailure};

use crate::daemon::config;
use crate::daemon::transport::caller::Peer;
use crate::daemon::transport::denied::DeniedCallers;
use crate::daemon::transport::descriptors::Descriptors;
use crate::daemon::transport::tls::TlsState;
use signal::Command;

/// How often files are looked at: what changes in them acts within two of these.
const POLL: Duration = Duration::from_millis(400);
/// How long connections that were cut may take to be gone.
const CUT_TIMEOUT: Duration = Duration::from_secs(1);

/// A boxed error, as `tower` and `hyper` know it.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// A service that answers requests: whatever `tower` and `hyper` can serve.
pub trait Answer:
    Service<Request<Incoming>, Response = Response<Self::Body>, Error: Into<BoxError>, Future: Send>
    + Clone
    + Send
    + 'static
{
    /// What an answer carries.
    type Body: Body<Data: Send, Error: Into<BoxError>> + Send + 'static;
}

impl<S, B> Answer for S
where
    S: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    type Body = B;
}

/// What one connection may do; from `[server]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionSettings {
    /// Open connections in all; more are closed at accept.
    pub max_connections: usize,
    /// Open connections of one identity or uid, and handshakes of one address; more are closed.
    pub max_connections_per_caller: usize,
    /// TLS handshakes at a time, an eighth of them (at least 8) from one address; more wait, and
    /// their waiting counts as handshake time.
    pub max_handshakes: usize,
    /// How long a handshake may take, and how long a client may stay silent after it.
    pub handshake_timeout: Duration,
    /// Streams of one connection.
    pub max_streams: u32,
    /// After this, more or less a tenth, a connection is asked to go; 30 s later it is cut.
    pub max_connection_age: Duration,
    /// How long a drain waits for calls without an answer.
    pub drain_timeout: Duration,
    /// What connections share with files.
    pub descriptors: Descriptors,
}

impl ConnectionSettings {
    /// What `[server]` says, as far as there are file descriptors for it.
    pub fn new(server: &config::Server, descriptors: Descriptors) -> Self {
        let (most, of_one) = (server.max_connections, server.max_connections_per_caller);
        let max_connections = most.min(descriptors.for_connections());
        let max_connections_per_caller =
            if max_connections < most { of_one.min((max_connections / 4).max(1)) } else { of_one };
        if max_connections < most {
            tracing::warn!(
                limit = descriptors.limit(),
                max_connections,
                max_connections_per_caller,
                "server.max_connections = {most} is more than there are file descriptors for:                  fewer connections are accepted; raise LimitNOFILE= in the unit, or `ulimit -n`"
            );
        }
        Self {
            max_connections,
            max_connections_per_caller,
            max_handshakes: server.max_handshakes,
            handshake_timeout: server.handshake_timeout,
            max_streams: server.max_streams_per_connection,
            max_connection_age: server.max_connection_age,
            drain_timeout: server.drain_timeout,
            descriptors,
        }
    }
}

/// What serves connections. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Transport {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    tls: Option<Arc<TlsState>>,
    denied: Arc<DeniedCallers>,
    settings: ArcSwap<ConnectionSettings>,
    entrance: Entrance,
    looked_at: Mutex<InForce>,
}

/// What peers were last looked at by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct InForce {
    trust: Option<[u8; 32]>,
    /// CRLs pass their grace without any file changing.
    past_grace: usize,
    denied: u64,
}

impl Transport {
    /// A transport that serves nothing yet.
    ///
    /// # Errors
    /// Its thread for handshakes does not start.
    pub fn new(
        tls: Option<Arc<TlsState>>,
        denied: Arc<DeniedCallers>,
        settings: ConnectionSettings,
    ) -> io::Result<Self> {
        let looked_at = Mutex::new(InForce::now(tls.as_deref(), &denied));
        let shared = Arc::new(Shared {
            tls,
            denied,
            settings: ArcSwap::from_pointee(settings),
            entrance: Entrance::new(handshake_permits(&settings), settings.descriptors)?,
            looked_at,
        });
        Ok(Self { shared })
    }

    /// What happened to connections since the start.
    pub fn stats(&self) -> Arc<ConnectionStats> {
        self.shared.entrance.stats.clone()
    }

    /// New settings, for connections from now on. To be called inside a Tokio runtime.
    pub fn configure(&self, settings: ConnectionSettings) {
        self.shared.settings.store(Arc::new(settings));
        self.shared.entrance.handshakes.resize(handshake_permits(&settings));
    }

    /// Serves until `shutdown` ends, then drains: no new connections, and GOAWAY to the open ones. A
    /// connection without a call that waits for its answer has half a second to leave; after
    /// `drain_timeout` the rest is cut. Each request carries an `Arc<Peer>` and an `Arc<Call>` as
    /// extensions.
    ///
    /// While it runs, the files of TLS and of the denied callers are looked at, and every open
    /// connection is verified again when client CAs, CRLs or denied callers have changed, or a CRL
    /// has passed its grace. Peers that are denied or no longer trusted lose their connection; the service still has to ask
    /// [`Callers::identify`](crate::daemon::transport::caller::Callers::identify) and
    /// [`DeniedCallers::denies`] for each call.
    ///
    /// # Errors
    /// A TCP listener without TLS.
    pub async fn serve(
        &self,
        listeners: Vec<Bound>,
        service: impl Answer,
        shutdown: impl Future<Output = ()> + Send,
    ) -> io::Result<()> {
        let shared = &self.shared;
        if shared.tls.is_none() && listeners.iter().any(|bound| matches!(bound, Bound::Tcp(..))) {
            let message = "a TCP socket listens for TLS only: [server.tls] is missing";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let mut tasks = JoinSet::new();
        for bound in listeners {
            match bound {
                Bound::Tcp(listener, certificate) => {
                    let (shared, service) = (shared.clone(), service.clone());
                    tasks.spawn(accept_tcp(shared, listener, certificate, service));
                }
                Bound::Unix(listener) => {
                    tasks.spawn(accept_unix(shared.clone(), listener, service.clone()));
                }
            }
        }
        let mut watching = JoinSet::new();
        watching.spawn(watch(shared.clone()));
        shutdown.await;
        tasks.shutdown().await;
        // A peer that is revoked or denied meanwhile is cut during the drain too.
        shared.drain().await;
        watching.shutdown().await;
        Ok(())
    }

    /// Looks at the files now, and at every open connection if they have changed or a CRL has passed
    /// its grace. Blocks on the file system and on signatures.
    pub fn look_now(&self) {
        self.shared.look();
    }
}

async fn accept_tcp<S: Answer>(
    shared: Arc<Shared>,
    listener: TcpListener,
    certificate: ClientCertificate,
    service: S,
) {
    loop {
        let entered = shared.entrance.accept(&listener, || shared.capacity()).await;
        let (shared, service) = (shared.clone(), service.clone());
        tokio::spawn(connection::serve_tcp(shared, entered, certificate, service));
    }
}

async fn accept_unix<S: Answer>(shared: Arc<Shared>, bound: BoundUnix, service: S) {
    loop {
        match bound.listener.accept().await {
            Ok((stream, _)) => {
                let capacity = shared.capacity();
                let registration = shared.entrance.enter(&stream, None, capacity).await;
                let Some(registration) = registration else { continue };
                let task =
                    connection::serve_unix(shared.clone(), stream, registration, service.clone());
                tokio::spawn(task);
            }
            Err(error) => shared.entrance.accept_failed(&error).await,
        }
    }
}

async fn watch(shared: Arc<Shared>) {
    let mut tick = tokio::time::interval(POLL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let shared = shared.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || shared.look()).await {
            tracing::error!(%error, "checking connections against certificates and denied callers failed");
        }
    }
}

fn handshake_permits(settings: &ConnectionSettings) -> usize {
    settings.max_handshakes.clamp(1, u32::MAX as usize)
}

impl Shared {
    fn capacity(&self) -> Capacity {
        let settings = self.settings.load();
        Capacity {
            connections: settings.max_connections,
            of_one_source: settings.max_connections_per_caller,
        }
    }

    fn look(&self) {
        if let Some(tls) = &self.tls {
            tls.poll();
        }
        self.denied.poll();
        self.entrance.connections.cut_overdue();
        let mut looked_at = self.looked_at.lock().unwrap_or_else(PoisonError::into_inner);
        // Taken before the connections are: who comes later asks for himself.
        let now = InForce::now(self.tls.as_deref(), &self.denied);
        if *looked_at != now {
            self.look_at_peers();
            *looked_at = now;
        }
    }

    fn look_at_peers(&self) {
        let trust = self.tls.as_ref().map(|tls| tls.load().trust().clone());
        // One line for all connections of an identity, of which there may be thousands.
        let mut cut: HashMap<(Cut, Option<String>), (Arc<Peer>, u64)> = HashMap::new();
        for (signal, peer) in self.entrance.connections.identified() {
            let refused = match (&peer.certificate, &trust) {
                (Some(certificate), Some(trust)) => trust
                    .verify(certificate.chain(), SystemTime::now())
                    .map(|verified| verified.anchor.bundle != certificate.anchor.bundle),
                _ => Ok(false),
            };
            let reason = if self.denied.denies(&peer) {
                Cut::Denied
            } else if matches!(refused, Ok(false)) {
                continue;
            } else {
                Cut::NotTrusted
            };
            let of_one = (reason, peer.identity().map(Cow::into_owned));
            cut.entry(of_one).or_insert((peer, 0)).1 += 1;
            signal.send(Command::Cut(reason));
        }
        for ((reason, _), (peer, connections)) in cut {
            tracing::info!(?peer, reason = reason.name(), connections, "connections cut");
        }
    }

    async fn drain(&self) {
        self.entrance.connections.send_all(Command::Drain);
        let timeout = self.settings.load().drain_timeout;
        if tokio::time::timeout(timeout, self.entrance.connections.emptied()).await.is_err() {
            tracing::warn!(
                open = self.entrance.stats.open(),
                "drain is over: open connections are cut"
            );
            self.entrance.connections.send_all(Command::Cut(Cut::Shutdown));
            let _ = tokio::time::timeout(CUT_TIMEOUT, self.entrance.connections.emptied()).await;
        }
    }
}

impl InForce {
    fn now(tls: Option<&TlsState>, denied: &DeniedCallers) -> Self {
        let trust = tls.map(|tls| tls.load().trust().clone());
        Self {
            trust: trust.as_ref().map(|trust| trust.fingerprint()),
            past_grace: trust.map_or(0, |trust| trust.past_grace(SystemTime::now())),
            denied: denied.generation(),
        }
    }
}

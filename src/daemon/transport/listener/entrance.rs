//! What lets connections in, for each listener: how many there may be, in all and of one source,
//! who goes when there is no room, and how many handshakes go on.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::HandshakeFailure;
use super::connections::{Connections, Full, Registration};
use super::handshake_thread::HandshakeThread;
use super::handshakes::Handshakes;
use super::refusal::Refusal;
use super::stats::ConnectionStats;
use crate::daemon::transport::descriptors::{Descriptors, Room};
use crate::daemon::transport::log_limit::LogLimit;
use crate::daemon::transport::source::Source;

/// How long accepting rests when the system has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Lines of the log a minute about connections that were refused, of all peers together.
const LOG_LINES: u32 = 30;

/// How many connections are let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Open connections in all; an older one makes room if it can, else more are closed at accept.
    pub connections: usize,
    /// Handshakes of one source that go on; from then on its oldest that has sent nothing goes.
    pub of_one_source: usize,
}

/// What lets the connections of one or more listeners in.
#[derive(Debug)]
pub struct Entrance {
    pub(super) connections: Arc<Connections>,
    pub(super) handshakes: Handshakes,
    pub(super) stats: Arc<ConnectionStats>,
    pub(super) log_limit: LogLimit,
    thread: HandshakeThread,
    descriptors: Descriptors,
}

/// A TCP connection that was let in.
#[derive(Debug)]
pub struct Entered {
    /// The socket.
    pub stream: TcpStream,
    /// The peer's address.
    pub address: SocketAddr,
    /// Counts it among the open connections until dropped.
    pub registration: Registration,
}

impl Entrance {
    /// Without connections; at most `handshakes` go on at a time, all on one thread.
    ///
    /// # Errors
    /// The thread does not start.
    pub fn new(handshakes: usize, descriptors: Descriptors) -> io::Result<Self> {
        let stats = Arc::new(ConnectionStats::default());
        Ok(Self {
            connections: Connections::new(Arc::clone(&stats)),
            handshakes: Handshakes::new(handshakes),
            stats,
            log_limit: LogLimit::per_minute(LOG_LINES),
            thread: HandshakeThread::start()?,
            descriptors,
        })
    }

    /// The next connection that is let in.
    pub async fn accept(&self, listener: &TcpListener, capacity: impl Fn() -> Capacity) -> Entered {
        loop {
            match listener.accept().await {
                Ok((stream, address)) => {
                    let source = Some(address.ip().into());
                    if let Some(registration) = self.enter(&stream, source, capacity()).await {
                        return Entered { stream, address, registration };
                    }
                }
                Err(error) => self.accept_failed(&error).await,
            }
        }
    }

    /// Registers a connection, if there is room.
    pub(super) async fn enter(
        &self,
        stream: &impl AsFd,
        source: Option<Source>,
        capacity: Capacity,
    ) -> Option<Registration> {
        let full = match self.register(stream, source, capacity) {
            Ok(registration) => {
                self.stats.count_accepted();
                if self.connections.is_making_room() {
                    // What was cut has to close before more are accepted.
                    tokio::task::yield_now().await;
                }
                return Some(registration);
            }
            Err(full) => full,
        };
        self.stats.count_refused_at_cap();
        if self.log_limit.allows() {
            let address = source.map(tracing::field::display);
            tracing::warn!(address, reason = full.reason(), "connection refused");
        }
        None
    }

    fn register(
        &self,
        stream: &impl AsFd,
        source: Option<Source>,
        capacity: Capacity,
    ) -> Result<Registration, Full> {
        let room = self.descriptors.left(stream.as_fd());
        if room != Room::Enough {
            let found = self.connections.make_room();
            if room == Room::None || !found {
                return Err(Full::Descriptors);
            }
        }
        self.connections.enter(capacity.connections, capacity.of_one_source, source)
    }

    /// An accept that failed is a matter of one peer, or of the system's means: never of the loop.
    pub(super) async fn accept_failed(&self, error: &io::Error) {
        self.stats.count_accept_error();
        if matches!(
            error.kind(),
            io::ErrorKind::ConnectionAborted
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::Interrupted
        ) {
            return;
        }
        let made_room = self.connections.make_room();
        if self.log_limit.allows() {
            tracing::error!(%error, made_room, "accepting connections failed; trying again");
        }
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }

    /// TLS, with one of the source's permits for handshakes, as soon as the peer has sent something.
    ///
    /// # Errors
    /// Why there was no handshake; it was counted and logged.
    pub async fn handshake_or_log(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        registration: &Registration,
        acceptor: impl FnOnce() -> TlsAcceptor,
    ) -> Result<TlsStream<TcpStream>, HandshakeFailure> {
        let source = address.ip().into();
        let stream = self.handshake(stream, source, registration, acceptor, Ok).await;
        stream.map_err(|refusal| {
            self.refused(&refusal, address);
            refusal.reason
        })
    }

    /// Counts a connection that did not get as far as its first request, and logs it within limits.
    pub(super) fn refused(&self, refusal: &Refusal, address: impl fmt::Display) {
        self.stats.count_failed(refusal.reason);
        let reason = refusal.reason.name();
        match refusal.reason {
            HandshakeFailure::PeerLeft | HandshakeFailure::Crowded | HandshakeFailure::Shutdown => {
                tracing::debug!(%address, reason, "no handshake");
            }
            _ if self.log_limit.allows() => {
                tracing::info!(%address, reason, detail = refusal.detail, "handshake refused");
            }
            _ => {}
        }
    }

    /// The same, and what `then` makes of the connection; neither is done on the calling thread.
    pub(super) async fn handshake<T: Send + 'static>(
        &self,
        stream: TcpStream,
        source: Source,
        registration: &Registration,
        acceptor: impl FnOnce() -> TlsAcceptor,
        then: impl FnOnce(TlsStream<TcpStream>) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        registration.first_byte(&stream).await?;
        let accept = async {
            let acceptor = acceptor();
            let accepted = async move { then(acceptor.accept(stream).await?) };
            self.thread.run(accepted).await
        };
        self.handshakes.run(source, accept).await
    }
}

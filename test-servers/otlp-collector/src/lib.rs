//! A collector of OpenTelemetry for tests: OTLP over gRPC on loopback, both services. It keeps what it
//! got, and hangs, refuses, rejects or takes its time when it is told to.
//!
//! It is written over the published interface and is no stand-in for the real Collector, which has a test
//! of its own. What cannot do its work panics with a sentence: it is the test that failed.

mod services;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use claviger_otlp::logs::LogRecord;
use claviger_otlp::logs_service::logs_service_server::LogsServiceServer;
use claviger_otlp::resource::Resource;
use claviger_otlp::trace::Span;
use claviger_otlp::trace_service::trace_service_server::TraceServiceServer;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio_rustls::TlsAcceptor;
use tonic::Code;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_mins(1);

/// What it does with each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// It takes what comes.
    Takes,
    /// It answers nothing until it behaves in another way, and then by that.
    Hangs,
    /// It answers with this code.
    Refuses(Code),
    /// It takes the request and rejects all that is in it.
    Rejects,
    /// It takes what comes after so long.
    TakesAfter(Duration),
}

/// What it got.
#[derive(Clone, Debug, Default)]
pub struct Received {
    /// Each span, with who sent it.
    pub spans: Vec<(Resource, Span)>,
    /// Each log record, with who sent it.
    pub records: Vec<(Resource, LogRecord)>,
    /// The headers of the last request.
    pub headers: MetadataMap,
    /// Requests that came, whatever became of them.
    pub requests: usize,
}

/// A collector that runs until it is dropped.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    is_tls: bool,
    received: Arc<Mutex<Received>>,
    behaviour: watch::Sender<Behaviour>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Collector {
    /// One on a free port, without TLS.
    pub fn start() -> Self {
        Self::at("127.0.0.1:0".parse().expect("an address"), None)
    }

    /// One at this address, such as that of one that has ended; with TLS, if there is a configuration.
    pub fn at(address: SocketAddr, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = bind(address);
        let address = listener.local_addr().expect("a listener has an address");
        let (received, behaviour) = (Arc::default(), watch::Sender::new(Behaviour::Takes));
        let (end, ended) = oneshot::channel();
        let is_tls = tls.is_some();
        let service = services::Services::new(Arc::clone(&received), behaviour.subscribe());
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime starts").block_on(async {
                tokio::select! {
                    _ = ended => {}
                    error = serve(listener, tls, service) => panic!("the collector ended: {error}"),
                }
            });
        });
        Self { address, is_tls, received, behaviour, end: Some(end), thread: Some(thread) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// That as a URL with the host `localhost`.
    pub fn endpoint(&self) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        format!("{scheme}://localhost:{}", self.address.port())
    }

    /// What it does from now on.
    pub fn behave(&self, behaviour: Behaviour) {
        self.behaviour.send_replace(behaviour);
    }

    /// What it got so far.
    pub fn received(&self) -> Received {
        lock(&self.received).clone()
    }

    /// What it got, once `is_enough`.
    pub fn wait_until(&self, is_enough: impl Fn(&Received) -> bool) -> Received {
        let begun = Instant::now();
        loop {
            let received = self.received();
            if is_enough(&received) {
                return received;
            }
            assert!(begun.elapsed() < PATIENCE, "it never came: {received:#?}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Collector {
    /// Its connections break.
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Another program may have the port for a moment.
fn bind(address: SocketAddr) -> std::net::TcpListener {
    let begun = Instant::now();
    loop {
        match std::net::TcpListener::bind(address) {
            Ok(listener) => {
                listener.set_nonblocking(true).expect("a socket can be set so");
                return listener;
            }
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{address}: {error}"),
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Ends with an error of the listener.
async fn serve(
    listener: std::net::TcpListener,
    tls: Option<Arc<ServerConfig>>,
    services: services::Services,
) -> io::Error {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return error,
    };
    let routes = Routes::new(TraceServiceServer::new(services.clone()))
        .add_service(LogsServiceServer::new(services))
        .prepare();
    loop {
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => return error,
        };
        let (routes, tls) = (routes.clone(), tls.clone());
        tokio::spawn(async move {
            let stream: Box<dyn Stream> = match tls {
                None => Box::new(socket),
                Some(config) => match TlsAcceptor::from(config).accept(socket).await {
                    Ok(stream) => Box::new(stream),
                    // The client says why.
                    Err(_) => return,
                },
            };
            let service = TowerToHyperService::new(routes);
            let server = http2::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

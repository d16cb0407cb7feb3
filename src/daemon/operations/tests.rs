//! The operations listener over real sockets, with and without TLS.

use std::time::Instant;

use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};

use super::*;
use crate::daemon::records::metrics::Metrics;
use crate::daemon::request::health::Phase;

fn descriptors() -> Descriptors {
    Descriptors::raise(16, 1).unwrap()
}

pub(super) struct Running {
    address: SocketAddr,
    pub(super) phase: watch::Sender<Phase>,
    stop: Option<oneshot::Sender<()>>,
    served: tokio::task::JoinHandle<io::Result<()>>,
}

impl Running {
    async fn start(tls: Option<TlsSource>, authorise: Authorise) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Arc::new(Metrics::default());
        let configuration = "[server]\nlisten = [\"unix:/run/c.sock\"]\n[audit]\noff = true\n";
        let (sources, phase) = Sources::of(configuration, &metrics);
        let state = Arc::new(OperationsState::new(sources));
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            let _ = stopped.await;
        };
        let served = tokio::spawn(serve(listener, tls, authorise, state, descriptors(), shutdown));
        Self { address, phase, stop: Some(stop), served }
    }

    pub(super) async fn plain() -> Self {
        Self::start(None, Arc::new(|_| panic!("nobody to authorise without TLS"))).await
    }

    pub(super) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    pub(super) async fn ask(&self, request: &str) -> String {
        ask_over(self.connect().await, request).await
    }

    pub(super) async fn get(&self, path: &str) -> (u16, String) {
        parse(&self.ask(&format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")).await)
    }
}

async fn ask_over(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A TLS peer that closes without a goodbye has still sent its answer.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

fn parse(answer: &str) -> (u16, String) {
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head[9..12].parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn the_probes_tell_up_or_down_and_nothing_else() {
    let running = Running::plain().await;
    let (up, down) = ((200, "up\n".to_owned()), (503, "down\n".to_owned()));
    assert_eq!(running.get("/livez").await, up);
    assert_eq!(running.get("/readyz").await, down);
    running.phase.send_replace(Phase::Ready);
    assert_eq!(running.get("/readyz").await, up);
    running.phase.send_replace(Phase::Draining);
    assert_eq!(running.get("/readyz").await, down);
    assert_eq!(running.get("/livez").await, up);
}

#[tokio::test]
async fn on_loopback_without_tls_anybody_reads_the_metrics() {
    let running = Running::plain().await;
    let answer = running.ask("GET /metrics HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n").await;
    assert!(answer.contains("content-type: application/openmetrics-text"), "{answer}");
    let (status, body) = parse(&answer);
    assert_eq!(status, 200);
    assert!(body.contains("claviger_build_info{") && body.ends_with("# EOF\n"));
}

#[tokio::test]
async fn on_loopback_a_browser_that_another_site_led_here_gets_the_probes_alone() {
    let running = Running::plain().await;
    for path in ["/", "/page.js", "/events", "/status", "/metrics"] {
        for led_here in ["host: example.org:9443", "host: localhost\r\nsec-fetch-site: cross-site"]
        {
            let request = format!("GET {path} HTTP/1.1\r\n{led_here}\r\n\r\n");
            let (status, said) = parse(&running.ask(&request).await);
            assert_eq!((status, &*said), (421, LED_HERE), "{path} {led_here}");
        }
    }
    let answer = running.ask("GET /livez HTTP/1.1\r\nhost: example.org\r\n\r\n").await;
    assert_eq!(parse(&answer).0, 200);
}

#[tokio::test]
async fn other_paths_and_methods_are_refused_and_a_connection_ends_after_one_answer() {
    let running = Running::plain().await;
    assert_eq!(running.get("/page").await.0, 404);
    assert_eq!(running.get("/livez/").await.0, 404);
    let post = "POST /livez HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(parse(&running.ask(post).await).0, 405);
    let twice = "GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".repeat(2);
    assert_eq!(running.ask(&twice).await.matches("HTTP/1.1").count(), 1);
    let (status, body) =
        parse(&running.ask("HEAD /metrics HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n").await);
    assert_eq!((status, &*body), (200, ""));
    assert_eq!(parse(&running.ask("\u{16}\u{3}\u{1}garbage\r\n\r\n").await).0, 400);
    let huge = format!("GET /livez HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(100_000));
    let mut stream = running.connect().await;
    let _ = stream.write_all(huge.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    assert_eq!(running.get("/livez").await.0, 200);
}

#[tokio::test]
async fn a_client_that_does_not_finish_its_head_is_cut() {
    let running = Running::plain().await;
    let started = Instant::now();
    let mut stream = running.connect().await;
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost:").await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let took = started.elapsed();
    assert!(took >= START_TIMEOUT && took < START_TIMEOUT * 2, "{took:?}");
}

#[tokio::test]
async fn held_connections_do_not_keep_a_probe_away() {
    let running = Running::plain().await;
    let mut held = Vec::new();
    for _ in 0..descriptors().for_operations() + 10 {
        held.push(running.connect().await);
    }
    let started = Instant::now();
    assert_eq!(running.get("/livez").await.0, 200);
    assert!(started.elapsed() < START_TIMEOUT / 2);
    let mut answer = Vec::new();
    let _ = held[0].read_to_end(&mut answer).await;
    assert!(answer.is_empty() && started.elapsed() < START_TIMEOUT / 2, "the oldest is cut");
}

#[tokio::test]
async fn it_ends_when_told_and_closes_what_is_open() {
    let mut running = Running::plain().await;
    let mut held = running.connect().await;
    assert_eq!(running.get("/livez").await.0, 200);
    running.stop.take().unwrap().send(()).unwrap();
    running.served.await.unwrap().unwrap();
    assert_eq!(held.read(&mut [0]).await.unwrap_or(0), 0);
    assert!(TcpStream::connect(running.address).await.is_err());
}

#[test]
fn off_loopback_without_tls_is_refused() {
    let check = |address: &str, has_tls| check_address(address.parse().unwrap(), has_tls);
    assert!(check("0.0.0.0:9443", false).unwrap_err().to_string().contains("needs [server.tls]"));
    assert!(check("192.0.2.1:9443", false).is_err());
    check("[::1]:9443", false).unwrap();
    check("0.0.0.0:9443", true).unwrap();
}

/// A CA of its own, the server's TLS configuration, and client certificates by DNS name.
struct Pki {
    ca: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Pki {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        Self { ca: rcgen::CertifiedIssuer::self_signed(params, key).unwrap() }
    }

    fn issue(&self, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.ca).unwrap();
        (vec![certificate.der().clone()], key.into())
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.der().clone()).unwrap();
        Arc::new(roots)
    }

    fn server(&self) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let clients =
            WebPkiClientVerifier::builder_with_provider(self.roots(), Arc::clone(&provider))
                .allow_unauthenticated()
                .build()
                .unwrap();
        let (chain, key) = self.issue("localhost");
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, key);
        Arc::new(config.unwrap())
    }

    async fn get(&self, running: &Running, path: &str, client: Option<&str>) -> (u16, String) {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots());
        let config = match client.map(|name| self.issue(name)) {
            Some((chain, key)) => config.with_client_auth_cert(chain, key).unwrap(),
            None => config.with_no_client_auth(),
        };
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(ServerName::try_from("localhost").unwrap(), running.connect().await)
            .await
            .unwrap();
        parse(&ask_over(stream, &format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")).await)
    }
}

#[tokio::test]
async fn with_tls_only_readers_get_the_metrics_and_everybody_the_probes() {
    let pki = Pki::new();
    let config = pki.server();
    let authorise: Authorise = Arc::new(|chain: &[CertificateDer<'_>]| {
        // The name stands in the DER as it is.
        chain[0].as_ref().windows(10).any(|bytes| bytes == b"prometheus")
    });
    let running = Running::start(Some(Arc::new(move || Arc::clone(&config))), authorise).await;
    assert_eq!(pki.get(&running, "/metrics", Some("prometheus")).await.0, 200);
    let refused = (403, "not a reader\n".to_owned());
    assert_eq!(pki.get(&running, "/metrics", Some("somebody")).await, refused);
    assert_eq!(pki.get(&running, "/metrics", None).await, refused);
    for path in ["/", "/page.css", "/events", "/status"] {
        assert_eq!(pki.get(&running, path, Some("somebody")).await, refused, "{path}");
    }
    assert!(pki.get(&running, "/", Some("prometheus")).await.1.contains("<title>Claviger"));
    assert_eq!(pki.get(&running, "/livez", None).await.0, 200);
    assert!(
        !running.ask("GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n").await.contains("200 OK")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bare_connections_without_end_from_the_probes_own_address_keep_no_probe_away() {
    let pki = Pki::new();
    let config = pki.server();
    let authorise: Authorise = Arc::new(|_| false);
    let running = Running::start(Some(Arc::new(move || Arc::clone(&config))), authorise).await;
    let address = running.address;
    let floods = [(); 2].map(|()| std::thread::spawn(move || flood(address)));
    let (begun, mut slowest) = (Instant::now(), Duration::ZERO);
    let mut probes = 0;
    while begun.elapsed() < FLOOD {
        let start = Instant::now();
        assert_eq!(pki.get(&running, "/livez", None).await.0, 200);
        slowest = slowest.max(start.elapsed());
        probes += 1;
    }
    let connections: u32 = floods.into_iter().map(|flood| flood.join().unwrap()).sum();
    println!(
        "{} bare connections a second; {probes} probes answered, the slowest after {slowest:?}",
        connections / FLOOD.as_secs() as u32
    );
    // How many there were is up to the machine: 3,000 a second where nothing else runs.
    assert!(connections > 100 && probes > 5, "{connections} connections, {probes} probes");
    assert!(slowest < FLOOD, "{slowest:?}");
}

const FLOOD: Duration = Duration::from_secs(3);

/// Connects 1,500 times a second, as far as the machine can, and keeps the last 200; how many there
/// were.
fn flood(address: SocketAddr) -> u32 {
    let mut held = std::collections::VecDeque::new();
    let begun = Instant::now();
    for number in 0.. {
        let due = begun + number * Duration::from_micros(666);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if begun.elapsed() >= FLOOD {
            return number;
        }
        held.push_back(std::net::TcpStream::connect(address));
        if held.len() > 200 {
            held.pop_front();
        }
    }
    unreachable!("the time ends before the numbers do")
}

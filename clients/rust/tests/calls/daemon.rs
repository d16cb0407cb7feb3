//! A small daemon over real mutual TLS, whose answers depend on the name of the key.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use claviger_client::{Config, Endpoint, IdentityFiles, TlsFiles};
use claviger_proto::v1::key_service_server::{KeyService, KeyServiceServer};
use claviger_proto::v1::rewrap_batch_result::Result as RewrapItemResult;
use claviger_proto::v1::rewrap_target::Recipient;
use claviger_proto::v1::{self, unwrap_batch_result::Result as ItemResult};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_types::{ErrorDetails, StatusExt};

/// A CA with its folder of files.
pub(crate) struct Pki {
    ca: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), ca.pem()).unwrap();
        Self { ca, folder }
    }

    pub(crate) fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A client's certificate and key; `ca` is whom the client trusts.
    pub(crate) fn client(&self, ca: PathBuf) -> TlsFiles {
        let (certificate, key) = self.issue("client");
        let identity = IdentityFiles {
            certificate: self.folder.path().join("client.crt"),
            private_key: self.folder.path().join("client.key"),
        };
        std::fs::write(&identity.certificate, certificate.pem()).unwrap();
        write_private(&identity.private_key, &key.serialize_pem());
        TlsFiles { ca, identity: Some(identity) }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn issue(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        // With the CA's own name OpenSSL would take it for self-signed.
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        (params.signed_by(&key, &self.ca).unwrap(), key)
    }

    fn server_config(&self) -> rustls::ServerConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.der().clone()).unwrap();
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            Arc::new(roots),
            Arc::clone(&provider),
        );
        let (certificate, key) = self.issue("localhost");
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }
}

fn write_private(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// How a daemon in memory takes a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Reach {
    #[default]
    Connects,
    Refuses,
    /// As a stopped process does.
    NeverAnswers,
}

/// What the daemon saw of the last call and the last handshake.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) timeout: String,
    pub(crate) request_id: String,
    pub(crate) handshakes: usize,
    /// Calls of the key service, and the DER of the certificate that the client showed.
    pub(crate) calls: usize,
    /// Calls that were cancelled before they were answered.
    pub(crate) cancelled: usize,
    pub(crate) peer: Vec<u8>,
    pub(crate) rewraps: usize,
    pub(crate) tls: Option<(rustls::ProtocolVersion, rustls::NamedGroup)>,
}

pub(crate) struct Daemon {
    pub(crate) port: u16,
    fake: Fake,
    task: JoinHandle<()>,
}

impl Daemon {
    pub(crate) async fn start(pki: &Pki) -> Self {
        Self::start_on(pki, 0, None).await
    }

    /// Starts on a port; 0: any. A connection is asked to end when it is `max_age` old.
    pub(crate) async fn start_on(pki: &Pki, port: u16, max_age: Option<Duration>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(pki.server_config()));
        let service = Fake::new(max_age);
        let fake = service.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (acceptor, service) = (acceptor.clone(), service.clone());
                connections.spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    let connection = tls.get_ref().1;
                    service.note_handshake(connection);
                    service.serve(tls).await;
                });
            }
        });
        Self { port, fake, task }
    }

    pub(crate) fn start_on_socket(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let service = Fake::new(None);
        let fake = service.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(service.clone().serve(stream));
            }
        });
        Self { port: 0, fake, task }
    }

    /// One that only [`Self::dial`] reaches: without a network, and without TLS.
    pub(crate) fn in_memory() -> Self {
        Self { port: 0, fake: Fake::new(None), task: tokio::spawn(std::future::pending()) }
    }

    /// Connects to a daemon in memory.
    pub(crate) async fn dial(&self) -> io::Result<DuplexStream> {
        let reach = *self.fake.reach.lock().unwrap();
        match reach {
            Reach::Refuses => return Err(io::ErrorKind::ConnectionRefused.into()),
            Reach::NeverAnswers => std::future::pending().await,
            Reach::Connects => {}
        }
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        tokio::spawn(self.fake.clone().serve(ours));
        Ok(theirs)
    }

    pub(crate) fn set_reach(&self, reach: Reach) {
        *self.fake.reach.lock().unwrap() = reach;
    }

    /// What it answers each call with from now on; none: what the key's name says.
    pub(crate) fn set_answer(&self, answer: Option<Status>) {
        *self.fake.answer.lock().unwrap() = answer;
    }

    /// How long each call takes from now on.
    pub(crate) fn set_delay(&self, delay: Duration) {
        *self.fake.delay.lock().unwrap() = delay;
    }

    /// Breaks every connection.
    pub(crate) fn cut(&self) {
        self.fake.cut.notify_waiters();
    }

    pub(crate) fn config(&self, files: TlsFiles) -> Config {
        config(self.port, files)
    }

    pub(crate) fn seen(&self) -> Seen {
        self.fake.seen.lock().unwrap().clone()
    }

    /// Whether it accepts calls; without that they are UNAVAILABLE, as while keys open.
    pub(crate) fn set_serving(&self, serving: bool) {
        self.fake.serving.store(serving, Ordering::SeqCst);
    }

    /// Whether it has opened its keys; without that they are described without public keys.
    pub(crate) fn set_opened(&self, opened: bool) {
        self.fake.opened.store(opened, Ordering::SeqCst);
    }

    /// Ends the daemon and every connection.
    pub(crate) async fn stop(self) -> u16 {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
        self.port
    }
}

pub(crate) fn config(port: u16, files: TlsFiles) -> Config {
    Config {
        endpoints: vec![Endpoint::Tls { host: "localhost".into(), port, files }],
        timeout: Duration::from_secs(5),
        patience: Duration::ZERO,
        wait: false,
        hedge: Some(claviger_client::DEFAULT_HEDGE),
        max_idle: claviger_client::DEFAULT_MAX_IDLE,
        token: None,
    }
}

#[derive(Clone)]
struct Fake {
    seen: Arc<Mutex<Seen>>,
    serving: Arc<AtomicBool>,
    opened: Arc<AtomicBool>,
    cut: Arc<Notify>,
    reach: Arc<Mutex<Reach>>,
    answer: Arc<Mutex<Option<Status>>>,
    delay: Arc<Mutex<Duration>>,
    max_age: Option<Duration>,
}

impl Fake {
    fn new(max_age: Option<Duration>) -> Self {
        let serving = Arc::new(AtomicBool::new(true));
        let opened = Arc::new(AtomicBool::new(true));
        Self {
            seen: Arc::default(),
            serving,
            opened,
            cut: Arc::default(),
            reach: Arc::default(),
            answer: Arc::default(),
            delay: Arc::default(),
            max_age,
        }
    }

    fn note_handshake(&self, connection: &rustls::ServerConnection) {
        let mut seen = self.seen.lock().unwrap();
        seen.handshakes += 1;
        seen.peer = connection.peer_certificates().unwrap()[0].to_vec();
        seen.tls = Some((
            connection.protocol_version().unwrap(),
            connection.negotiated_key_exchange_group().unwrap().name(),
        ));
    }

    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let max_age = self.max_age.unwrap_or(Duration::MAX);
        let cut = Arc::clone(&self.cut);
        let routes = tonic::service::Routes::new(KeyServiceServer::new(self.clone()))
            .add_service(HealthServer::new(self))
            .prepare();
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(
                TokioIo::new(Lingering { stream, sent: false }),
                TowerToHyperService::new(routes),
            );
        let mut connection = std::pin::pin!(connection);
        let _ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = cut.notified() => return,
            () = tokio::time::sleep(max_age) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
    }

    /// Notes what came with the call, then does what the key's name says.
    async fn note<T>(&self, request: &Request<T>, key: &str) -> Result<(), Status> {
        let text = |name| request.metadata().get(name).unwrap().to_str().unwrap().to_owned();
        {
            let mut seen = self.seen.lock().unwrap();
            seen.timeout = text("grpc-timeout");
            seen.request_id = text("x-request-id");
            seen.calls += 1;
        }
        let delay = *self.delay.lock().unwrap();
        if !delay.is_zero() {
            let unanswered = Unanswered(&self.seen);
            tokio::time::sleep(delay).await;
            std::mem::forget(unanswered);
        }
        if let Some(answer) = self.answer.lock().unwrap().clone() {
            return Err(answer);
        }
        if !self.serving.load(Ordering::SeqCst) {
            return Err(Status::unavailable("the key is not open"));
        }
        let mut status = match key {
            "cut" => {
                self.cut.notify_waiters();
                std::future::pending().await
            }
            "unreachable" => Status::unavailable("the backend cannot be reached"),
            "slow" => {
                tokio::time::sleep(Duration::from_mins(1)).await;
                return Ok(());
            }
            "field" => {
                let details = ErrorDetails::with_bad_request_violation("algorithm", "use RSA-OAEP");
                Status::with_error_details(
                    Code::InvalidArgument,
                    "algorithm: use RSA-OAEP",
                    details,
                )
            }
            "busy" => {
                let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(2)));
                Status::with_error_details(Code::ResourceExhausted, "the queue is full", details)
            }
            "nobody" => Status::permission_denied("no such key, or not yours"),
            _ => return Ok(()),
        };
        status.metadata_mut().insert("x-request-id", "daemon-id".parse().unwrap());
        Err(status)
    }
}

/// A call that is cancelled while it waits drops this.
struct Unanswered<'a>(&'a Mutex<Seen>);

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.0.lock().unwrap().cancelled += 1;
    }
}

#[expect(clippy::unnecessary_wraps, reason = "each method of the service returns a Result")]
fn answer<T>(message: T) -> Result<Response<T>, Status> {
    let mut response = Response::new(message);
    response.metadata_mut().insert("x-request-id", "daemon-id".parse().unwrap());
    Ok(response)
}

/// A key with an active version 2 and a version 1 that has not been opened.
fn key(name: String) -> v1::Key {
    let opened = v1::KeyVersion {
        version: 2,
        state: v1::KeyVersionState::Active.into(),
        algorithms: vec!["RSA-OAEP".into()],
        modulus_bits: 2048,
        public_key: Bytes::from_static(
            b"a public key in DER, longer than one line of PEM has room",
        ),
        public_key_sha256: Bytes::from_static(&[0xab; 32]),
        ..Default::default()
    };
    let unopened = v1::KeyVersion {
        version: 1,
        state: v1::KeyVersionState::UnwrapOnly.into(),
        algorithms: vec!["RSA-OAEP-256".into()],
        public_key_sha256: Bytes::from_static(&[0xcd; 32]),
        ..Default::default()
    };
    let operations = vec!["wrap".into(), "unwrap".into(), "read".into()];
    v1::Key { name, operations, versions: vec![opened, unopened] }
}

fn rewrapped(request: &v1::RewrapRequest) -> v1::RewrapResponse {
    let target = request.target.as_ref().unwrap();
    let is_key = matches!(target.recipient, Some(Recipient::Key(_)));
    v1::RewrapResponse {
        wrapped: reversed(&request.wrapped),
        source_key_version: request.source.as_ref().unwrap().key_version.unwrap_or(2),
        target_key_version: if is_key { 4 } else { 0 },
        target_algorithm: target.algorithm.clone(),
        target_public_key_sha256: Bytes::from_static(&[0xef; 32]),
    }
}

fn reversed(bytes: &Bytes) -> Bytes {
    bytes.iter().rev().copied().collect()
}

#[tonic::async_trait]
impl KeyService for Fake {
    async fn wrap(
        &self,
        request: Request<v1::WrapRequest>,
    ) -> Result<Response<v1::WrapResponse>, Status> {
        self.note(&request, &request.get_ref().key).await?;
        let v1::WrapRequest { key_material, algorithm, .. } = request.into_inner();
        answer(v1::WrapResponse { wrapped: reversed(&key_material), key_version: 2, algorithm })
    }

    async fn unwrap(
        &self,
        request: Request<v1::UnwrapRequest>,
    ) -> Result<Response<v1::UnwrapResponse>, Status> {
        self.note(&request, &request.get_ref().key).await?;
        let v1::UnwrapRequest { wrapped, key_version, .. } = request.into_inner();
        answer(v1::UnwrapResponse {
            key_material: reversed(&wrapped),
            key_version: key_version.unwrap_or(2),
        })
    }

    async fn unwrap_batch(
        &self,
        request: Request<v1::UnwrapBatchRequest>,
    ) -> Result<Response<v1::UnwrapBatchResponse>, Status> {
        self.note(&request, "batch").await?;
        let results = request.into_inner().items.into_iter().map(|item| {
            let result = match item.key.as_str() {
                "nobody" => ItemResult::Error(v1::ItemError { code: 7, ..Default::default() }),
                _ => ItemResult::Unwrapped(v1::UnwrapResponse {
                    key_material: reversed(&item.wrapped),
                    key_version: 1,
                }),
            };
            v1::UnwrapBatchResult { result: Some(result) }
        });
        answer(v1::UnwrapBatchResponse { results: results.collect() })
    }

    async fn rewrap(
        &self,
        request: Request<v1::RewrapRequest>,
    ) -> Result<Response<v1::RewrapResponse>, Status> {
        self.note(&request, &request.get_ref().source.as_ref().unwrap().key).await?;
        answer(rewrapped(&request.into_inner()))
    }

    async fn rewrap_batch(
        &self,
        request: Request<v1::RewrapBatchRequest>,
    ) -> Result<Response<v1::RewrapBatchResponse>, Status> {
        self.note(&request, "batch").await?;
        let busy_before = std::mem::take(&mut self.seen.lock().unwrap().rewraps) == 0;
        let results = request.into_inner().items.into_iter().map(|item| {
            self.seen.lock().unwrap().rewraps += 1;
            let error = |code: i32, retry_after_ms| {
                let message = "this item is refused".to_owned();
                v1::ItemError { code, message, retry_after_ms, ..Default::default() }
            };
            let result = match &item.wrapped[..] {
                b"bad" => RewrapItemResult::Error(error(3, 0)),
                b"gone" => RewrapItemResult::Error(error(14, 0)),
                b"busy" if busy_before => RewrapItemResult::Error(error(8, 20)),
                _ => RewrapItemResult::Rewrapped(rewrapped(&item)),
            };
            v1::RewrapBatchResult { result: Some(result) }
        });
        answer(v1::RewrapBatchResponse { results: results.collect() })
    }

    async fn sign(
        &self,
        request: Request<v1::SignRequest>,
    ) -> Result<Response<v1::SignResponse>, Status> {
        self.note(&request, &request.get_ref().key).await?;
        let v1::SignRequest { digest, algorithm, .. } = request.into_inner();
        answer(v1::SignResponse { signature: reversed(&digest), key_version: 3, algorithm })
    }

    async fn verify(
        &self,
        request: Request<v1::VerifyRequest>,
    ) -> Result<Response<v1::VerifyResponse>, Status> {
        self.note(&request, &request.get_ref().key).await?;
        let v1::VerifyRequest { digest, signature, .. } = request.into_inner();
        let valid = reversed(&digest) == signature;
        answer(v1::VerifyResponse { valid, key_version: if valid { 3 } else { 0 } })
    }

    /// Five keys, two on a page.
    async fn list_keys(
        &self,
        request: Request<v1::ListKeysRequest>,
    ) -> Result<Response<v1::ListKeysResponse>, Status> {
        self.note(&request, "list").await?;
        let first: usize = request.get_ref().page_token.parse().unwrap_or(0);
        let keys = (first..5).take(2);
        let keys = keys.map(|n| key(format!("key-{n}")));
        let next_page_token = if first + 2 < 5 { (first + 2).to_string() } else { String::new() };
        answer(v1::ListKeysResponse { keys: keys.collect(), next_page_token })
    }

    async fn get_key(
        &self,
        request: Request<v1::GetKeyRequest>,
    ) -> Result<Response<v1::GetKeyResponse>, Status> {
        self.note(&request, &request.get_ref().key).await?;
        let mut key = key(request.into_inner().key);
        if key.name == "one-version" {
            key.versions.truncate(1);
        }
        if !self.opened.load(Ordering::SeqCst) {
            for version in &mut key.versions {
                version.public_key.clear();
            }
        }
        answer(v1::GetKeyResponse { key: Some(key) })
    }
}

#[tonic::async_trait]
impl Health for Fake {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let serving = self.serving.load(Ordering::SeqCst);
        let status = match request.into_inner().service.as_str() {
            "claviger.v1.KeyService/not-mine" => return Err(Status::not_found("unknown service")),
            "claviger.v1.KeyService/down" => ServingStatus::NotServing,
            _ if !serving => ServingStatus::NotServing,
            _ => ServingStatus::Serving,
        };
        answer(HealthCheckResponse { status: status.into() })
    }

    type WatchStream = futures::stream::Empty<Result<HealthCheckResponse, Status>>;

    async fn watch(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(futures::stream::empty()))
    }
}

/// After the last byte was sent, reads on until the client has closed too: a socket that is closed
/// with unread bytes is reset, and a reset overtakes the GOAWAY that says which calls were not looked at.
struct Lingering<S> {
    stream: S,
    sent: bool,
}

impl<S: AsyncRead + Unpin> AsyncRead for Lingering<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.sent {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.sent = true;
        }
        let mut bytes = [0; 1024];
        loop {
            let mut buffer = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

//! A running fake: HTTP/1.1 on a free loopback port, on a thread of its own, and what a test does to it.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::enums::{Algorithm, ProtectionLevel, VersionState, Wire};
use crate::fault::{Fault, WrongCrc};
use crate::oauth::Tokens;
use crate::rest;
use crate::rsa::RsaKey;
use crate::status::Status;
use crate::store::{Store, parent};

/// A running fake. It ends when dropped.
pub struct Fake {
    endpoint: String,
    state: Arc<State>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    endpoint: String,
    store: Mutex<Store>,
    tokens: Mutex<Tokens>,
    switches: Mutex<Switches>,
}

/// What tests set and read.
#[derive(Default)]
struct Switches {
    faults: VecDeque<Fault>,
    token_faults: VecDeque<Fault>,
    wrong_crc: Option<WrongCrc>,
    /// Whether the caller's identity may do nothing.
    denied: bool,
    asked: Vec<String>,
    last_headers: HeaderMap,
}

impl Fake {
    /// Starts one on a free loopback port.
    ///
    /// # Panics
    /// If loopback cannot be listened on, or no thread can be started.
    pub fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free loopback port");
        listener.set_nonblocking(true).expect("a socket that does not block");
        let address: SocketAddr = listener.local_addr().expect("a bound socket has an address");
        let endpoint = format!("http://{address}");
        let state = Arc::new(State {
            endpoint: endpoint.clone(),
            store: Mutex::default(),
            tokens: Mutex::new(Tokens::new()),
            switches: Mutex::default(),
        });
        let (stop, stopped) = oneshot::channel();
        let serving = state.clone();
        let thread = std::thread::Builder::new().name("gcp-kms-fake".into()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener, serving) => {}
                    _ = stopped => {}
                }
            });
        });
        let thread = thread.expect("a thread");
        Self { endpoint, state, stop: Some(stop), thread: Some(thread) }
    }

    /// Where it listens: `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Makes a key version with a fresh key, and what it needs around it; gives its name.
    /// `crypto_key` is `projects/P/locations/L/keyRings/R/cryptoKeys/K`; if it is there already, with
    /// whatever algorithm, it gets a further version.
    ///
    /// # Panics
    /// If the name is none.
    pub fn create_version(&self, crypto_key: &str, algorithm: Algorithm) -> String {
        self.add(crypto_key, algorithm, RsaKey::generate(algorithm.bits()))
    }

    /// Adds a version with a private key of the caller's: PKCS#8, DER. Only the fake has this; the import
    /// jobs of the real interface are there too.
    ///
    /// # Panics
    /// If the key is no RSA key of the algorithm's size.
    pub fn import_version(&self, crypto_key: &str, algorithm: Algorithm, pkcs8: &[u8]) -> String {
        let key = RsaKey::from_pkcs8(pkcs8).expect("an RSA key in PKCS#8 form");
        assert_eq!(key.bits(), algorithm.bits(), "a key of the algorithm's size");
        self.add(crypto_key, algorithm, key)
    }

    fn add(&self, crypto_key: &str, algorithm: Algorithm, key: RsaKey) -> String {
        let mut store = lock(&self.state.store);
        let body = json!({
            "purpose": algorithm.purpose().name(),
            "versionTemplate": {
                "algorithm": Wire::name(algorithm),
                "protectionLevel": ProtectionLevel::Software.name(),
            },
        });
        let _there_already = store.create_key_ring(parent(crypto_key)).is_err();
        let _there_already = store.create_crypto_key(crypto_key, &body).is_err();
        let crypto = store.crypto_key(crypto_key).unwrap_or_else(|status| panic!("{status:?}"));
        let (number, _) = crypto.add_version(key, None);
        format!("{crypto_key}/cryptoKeyVersions/{number}")
    }

    /// Puts a version into a state, whatever it was in.
    ///
    /// # Panics
    /// If there is no such version.
    pub fn set_state(&self, version: &str, state: VersionState) {
        let mut store = lock(&self.state.store);
        store.version(version).unwrap_or_else(|status| panic!("{status:?}")).state = state;
    }

    /// A version's public key as KMS gives it: SubjectPublicKeyInfo, PEM.
    ///
    /// # Panics
    /// If there is no such version.
    pub fn public_key(&self, version: &str) -> String {
        let mut store = lock(&self.state.store);
        let version = store.version(version).unwrap_or_else(|status| panic!("{status:?}"));
        version.key.public_pem()
    }

    /// Another key in a version's place, as it never happens in KMS.
    ///
    /// # Panics
    /// If there is no such version.
    pub fn swap_key(&self, version: &str) {
        let mut store = lock(&self.state.store);
        let version = store.version(version).unwrap_or_else(|status| panic!("{status:?}"));
        version.key = Arc::new(RsaKey::generate(version.algorithm.bits()));
    }

    /// The JSON file of a service account's key that this fake's token endpoint knows.
    pub fn service_account(&self) -> String {
        lock(&self.state.tokens).service_account(&self.endpoint).to_string()
    }

    /// The JSON file of a workload identity federation. Its subject token is read from `subject_token`,
    /// which must hold what [`Fake::subject_token`] gives.
    pub fn external_account(&self, subject_token: &Path, impersonate: bool) -> String {
        Tokens::external_account(&self.endpoint, subject_token, impersonate).to_string()
    }

    /// The subject token that STS accepts.
    pub fn subject_token(&self) -> String {
        lock(&self.state.tokens).subject_token().to_owned()
    }

    /// The JSON file of a user who logged in with `gcloud`. Google's file names no token endpoint, so
    /// the client has to be given this one's.
    pub fn authorized_user(&self) -> String {
        Tokens::authorized_user().to_string()
    }

    /// How long the tokens live that are given from now on, and what is said of that.
    pub fn set_token_lifetime(&self, lifetime: Duration, announced: Duration) {
        lock(&self.state.tokens).set_lifetime(lifetime, announced);
    }

    /// Makes every token that was given useless.
    pub fn revoke_tokens(&self) {
        lock(&self.state.tokens).revoke();
    }

    /// Whether credentials get no further tokens.
    pub fn refuse_credentials(&self, refused: bool) {
        lock(&self.state.tokens).refuse(refused);
    }

    /// Whether the identity behind the tokens may do nothing.
    pub fn deny(&self, denied: bool) {
        self.switches().denied = denied;
    }

    /// Does this to the next request to KMS that has no fault yet.
    pub fn next(&self, fault: Fault) {
        self.switches().faults.push_back(fault);
    }

    /// Does this to the next request for a token that has no fault yet.
    pub fn next_token(&self, fault: Fault) {
        self.switches().token_faults.push_back(fault);
    }

    /// Makes a checksum wrong in every answer, until it is switched off.
    pub fn set_wrong_crc(&self, wrong: Option<WrongCrc>) {
        self.switches().wrong_crc = wrong;
    }

    /// What was asked for since the last time, in order: `getPublicKey`, `asymmetricDecrypt`, `token`,
    /// `refresh`, `sts`, `generateAccessToken`, `metadata`, or a path.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.switches().asked)
    }

    /// A header of the last request to KMS; empty if it had none.
    pub fn last_header(&self, name: &str) -> String {
        let switches = self.switches();
        let value = switches.last_headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    }

    fn switches(&self) -> MutexGuard<'_, Switches> {
        lock(&self.state.switches)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(listener: std::net::TcpListener, state: Arc<State>) {
    let listener = TcpListener::from_std(listener).expect("a listener of the runtime");
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let state = state.clone();
        let service = service_fn(move |request| {
            let state = state.clone();
            async move { state.answer(request).await.ok_or_else(|| io::Error::other("cut")) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service);
        tokio::spawn(connection);
    }
}

/// A request that was read, in the form that both halves of the fake take.
struct Asked {
    method: http::Method,
    path: String,
    query: String,
    headers: HeaderMap,
    body: Bytes,
}

impl State {
    /// None cuts the connection.
    async fn answer(&self, request: Request<Incoming>) -> Option<Response<Reply>> {
        let (parts, body) = request.into_parts();
        let asked = Asked {
            method: parts.method,
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            headers: parts.headers,
            body: body.collect().await.ok()?.to_bytes(),
        };
        let (fault, status, mut json) = match self.token(&asked) {
            Some(answered) => answered,
            None => self.kms(&asked),
        };
        let mut cut = false;
        match fault {
            None | Some(Fault::CorruptedRequest) => {}
            Some(Fault::Answer(status, headers, body)) => {
                return Some(response(status, &headers, Reply::whole(body)));
            }
            Some(Fault::Slow(delay)) => tokio::time::sleep(delay).await,
            Some(Fault::Cut) => return None,
            Some(Fault::Truncated) => cut = true,
            Some(Fault::Changed(fields)) => {
                for (name, value) in fields.as_object().into_iter().flatten() {
                    if let (true, Some(json)) = (value.is_null(), json.as_object_mut()) {
                        json.remove(name);
                    } else {
                        json[name] = value.clone();
                    }
                }
            }
        }
        let reply =
            if cut { Reply::torn(json.to_string()) } else { Reply::whole(json.to_string()) };
        let headers = [("content-type", "application/json; charset=UTF-8".to_owned())];
        Some(response(status, &headers, reply))
    }

    fn token(&self, asked: &Asked) -> Option<(Option<Fault>, u16, Value)> {
        let form = rest::pairs(&String::from_utf8_lossy(&asked.body));
        let json = serde_json::from_slice(&asked.body).unwrap_or_default();
        let header = |name: &str| {
            let value = asked.headers.get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let mut tokens = lock(&self.tokens);
        let (operation, status, json) =
            tokens.answer(&self.endpoint, &asked.path, header, &form, &json)?;
        let mut switches = lock(&self.switches);
        switches.asked.push(operation.to_owned());
        Some((switches.token_faults.pop_front(), status, json))
    }

    fn kms(&self, asked: &Asked) -> (Option<Fault>, u16, Value) {
        let path = asked.path.strip_prefix("/v1/").unwrap_or_default();
        let (fault, wrong_crc, denied) = {
            let mut switches = lock(&self.switches);
            switches.asked.push(rest::operation(path));
            switches.last_headers = asked.headers.clone();
            (switches.faults.pop_front(), switches.wrong_crc, switches.denied)
        };
        let token = asked.headers.get("authorization").and_then(|value| value.to_str().ok());
        let good = token.and_then(|token| token.strip_prefix("Bearer "));
        let good = good.is_some_and(|token| lock(&self.tokens).is_good(token));
        let outcome = if !good {
            Err(Status::unauthenticated(token.is_none()))
        } else if denied {
            Err(Status::denied(permission(path), path.split(':').next().unwrap_or_default()))
        } else if let Ok(body) = body(&asked.body) {
            let request = rest::Request {
                method: &asked.method,
                path,
                query: rest::pairs(&asked.query),
                body,
                corrupted: matches!(fault, Some(Fault::CorruptedRequest)),
                wrong_crc,
            };
            rest::answer(&mut lock(&self.store), &request)
        } else {
            Err(Status::invalid("Invalid JSON payload received."))
        };
        match outcome {
            Ok(json) => (fault, 200, json),
            Err(status) => (fault, status.http(), status.to_json()),
        }
    }
}

fn body(bytes: &[u8]) -> serde_json::Result<Value> {
    if bytes.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(bytes) }
}

fn permission(path: &str) -> &'static str {
    match rest::operation(path).as_str() {
        "asymmetricDecrypt" => "cloudkms.cryptoKeyVersions.useToDecrypt",
        "asymmetricSign" => "cloudkms.cryptoKeyVersions.useToSign",
        "getPublicKey" => "cloudkms.cryptoKeyVersions.viewPublicKey",
        _ => "cloudkms.cryptoKeyVersions.get",
    }
}

fn response(status: u16, headers: &[(&'static str, String)], reply: Reply) -> Response<Reply> {
    let mut builder = Response::builder().status(status);
    for (name, value) in headers {
        builder = builder.header(*name, value);
    }
    builder.body(reply).expect("a status and headers of our own")
}

/// A body that may end sooner than it said.
struct Reply {
    data: Option<Bytes>,
    announced: u64,
    torn: bool,
}

impl Reply {
    fn whole(body: String) -> Self {
        Self { announced: body.len() as u64, data: Some(body.into()), torn: false }
    }

    fn torn(body: String) -> Self {
        let announced = body.len() as u64;
        Self {
            announced,
            data: Some(Bytes::from(body).slice(..announced as usize / 2)),
            torn: true,
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.data.take() {
            Some(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
            None if self.torn => Poll::Ready(Some(Err(io::Error::other("cut")))),
            None => Poll::Ready(None),
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(if self.data.is_some() { self.announced } else { 0 })
    }
}

impl std::fmt::Debug for Fake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Fake({})", self.endpoint)
    }
}

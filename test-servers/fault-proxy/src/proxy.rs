//! The proxy: takes connections, asks the script, forwards what no fault meets.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinHandle};

use crate::certificates::{Certificates, Shown};
use crate::script::{Answer, Fault, Pattern, Script, Seen, Times};
use crate::upstream::{Answered, Upstream};

/// What was written before a connection is cut gets this long to be on its way.
const BEFORE_CUT: Duration = Duration::from_millis(20);

/// A running proxy. It ends when dropped, and all its connections with it.
pub struct FaultProxy {
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

struct State {
    /// Where the proxy is.
    url: String,
    upstream: Upstream,
    /// None: plain http.
    certificates: Option<Certificates>,
    shown: Mutex<Shown>,
    is_cut_off: AtomicBool,
    script: Mutex<Script>,
    seen: Mutex<Vec<Seen>>,
    handshakes: AtomicU64,
    connections: Mutex<HashMap<u64, AbortHandle>>,
}

type Body = UnsyncBoxBody<Bytes, io::Error>;

impl FaultProxy {
    /// In front of a service at `origin`, over http.
    pub async fn start(origin: &str, ca: Option<&str>) -> Self {
        Self::listen(origin, ca, None).await
    }

    /// In front of a service at `origin`, over https with a CA of its own. `ca` vouches for the
    /// service.
    pub async fn start_tls(origin: &str, ca: Option<&str>) -> Self {
        Self::listen(origin, ca, Some(Certificates::new())).await
    }

    async fn listen(origin: &str, ca: Option<&str>, certificates: Option<Certificates>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let address = listener.local_addr().expect("it was just bound");
        let scheme = if certificates.is_some() { "https" } else { "http" };
        let state = Arc::new(State {
            url: format!("{scheme}://{address}"),
            upstream: Upstream::new(origin, ca),
            certificates,
            shown: Mutex::default(),
            is_cut_off: AtomicBool::new(false),
            script: Mutex::default(),
            seen: Mutex::default(),
            handshakes: AtomicU64::new(0),
            connections: Mutex::default(),
        });
        let accepting = tokio::spawn(Arc::clone(&state).accept(listener));
        Self { state, accepting }
    }

    /// `http://127.0.0.1:PORT` or `https://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        self.state.url.clone()
    }

    /// The CA of its certificate, PEM; none over http.
    pub fn ca_pem(&self) -> Option<&str> {
        self.state.certificates.as_ref().map(|certificates| certificates.ca_pem.as_str())
    }

    /// From now on `fault` happens to requests that match, so many times. Older rules come first.
    pub fn on(&self, pattern: Pattern, times: Times, fault: Fault) {
        lock(&self.state.script).add(pattern, times, fault);
    }

    /// Forgets the script, lets connections in, and shows the good certificate.
    pub async fn clear(&self) {
        lock(&self.state.script).clear();
        self.state.is_cut_off.store(false, Ordering::SeqCst);
        self.show(Shown::Good).await;
    }

    /// Cuts every connection, and each new one as soon as it is made.
    pub async fn cut_off(&self) {
        self.state.is_cut_off.store(true, Ordering::SeqCst);
        self.cut_connections().await;
    }

    /// Shows this certificate from now on; older connections are cut where it is another one.
    pub async fn show(&self, shown: Shown) {
        let before = std::mem::replace(&mut *lock(&self.state.shown), shown);
        if before != shown {
            self.cut_connections().await;
        }
    }

    /// Waits until they are gone, and as long again for the other ends to find out.
    async fn cut_connections(&self) {
        let cut = self.state.cut_connections();
        while !cut.iter().all(AbortHandle::is_finished) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(BEFORE_CUT).await;
    }

    /// The requests so far, in order.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.state.seen).clone()
    }

    /// How many requests so far match.
    pub fn count(&self, pattern: &Pattern) -> usize {
        lock(&self.state.seen).iter().filter(|seen| pattern.matches(seen)).count()
    }

    /// How many connections so far were tried.
    pub fn connections(&self) -> u64 {
        self.state.handshakes.load(Ordering::SeqCst)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.state.cut_connections();
    }
}

impl State {
    async fn accept(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let number = self.handshakes.fetch_add(1, Ordering::SeqCst);
            if self.is_cut_off.load(Ordering::SeqCst) {
                continue;
            }
            // Held until the connection is known, so that it cannot end before that.
            let mut connections = lock(&self.connections);
            let state = Arc::clone(&self);
            let task = tokio::spawn(async move {
                Arc::clone(&state).connection(stream).await;
                lock(&state.connections).remove(&number);
            });
            connections.insert(number, task.abort_handle());
        }
    }

    /// What goes wrong on a connection is for those at its other end to see.
    async fn connection(self: Arc<Self>, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        match &self.certificates {
            None => self.serve(stream).await,
            Some(certificates) => {
                let shown = *lock(&self.shown);
                if let Ok(stream) = certificates.acceptor(shown).accept(stream).await {
                    self.serve(stream).await;
                }
            }
        }
    }

    async fn serve(self: &Arc<Self>, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let service = service_fn(|request| Arc::clone(self).exchange(request));
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }

    /// One request. An error cuts the connection before the head of an answer.
    async fn exchange(self: Arc<Self>, request: Request<Incoming>) -> io::Result<Response<Body>> {
        let (head, body) = request.into_parts();
        let seen = Seen {
            method: head.method,
            path: head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
            headers: head.headers,
            body: body.collect().await.map_err(io::Error::other)?.to_bytes(),
        };
        let fault = lock(&self.script).fault(&seen);
        lock(&self.seen).push(seen.clone());
        let Some(fault) = fault else { return Ok(whole(self.ask(&seen).await?)) };
        match fault {
            Fault::Answer(answer) => Ok(whole(answered(&answer))),
            Fault::Delay(delay) => {
                tokio::time::sleep(delay).await;
                Ok(whole(self.ask(&seen).await?))
            }
            Fault::SlowFirstByte(delay) => {
                let answer = self.ask(&seen).await?;
                tokio::time::sleep(delay).await;
                Ok(whole(answer))
            }
            Fault::SlowBody(delay) => {
                let answer = self.ask(&seen).await?;
                let (len, body) = (answer.body.len(), answer.body.clone());
                Ok(in_parts(answer, len, vec![(delay, Ok(body))]))
            }
            Fault::CutBeforeHeaders => {
                self.ask(&seen).await?;
                Err(cut())
            }
            Fault::CutAfterHeaders => {
                let answer = self.ask(&seen).await?;
                let len = answer.body.len().max(1);
                Ok(in_parts(answer, len, vec![(BEFORE_CUT, Err(cut()))]))
            }
            Fault::CutBody => {
                let answer = self.ask(&seen).await?;
                let len = answer.body.len().max(2);
                let half = answer.body.slice(..answer.body.len() / 2);
                let parts = vec![(Duration::ZERO, Ok(half)), (BEFORE_CUT, Err(cut()))];
                Ok(in_parts(answer, len, parts))
            }
            Fault::TruncatedBody => {
                let answer = self.ask(&seen).await?;
                let body = answer.body.slice(..answer.body.len() / 2);
                Ok(whole(Answered { body, ..answer }))
            }
            Fault::ChangedField(name, value) => {
                let mut answer = self.ask(&seen).await?;
                let mut json: serde_json::Value =
                    serde_json::from_slice(&answer.body).map_err(io::Error::other)?;
                json[name] = value;
                answer.body = json.to_string().into();
                Ok(whole(answer))
            }
        }
    }

    /// Asks the service. Where it names itself in its answer, it names the proxy.
    async fn ask(&self, seen: &Seen) -> io::Result<Answered> {
        let mut answer = self.upstream.ask(seen).await.map_err(io::Error::other)?;
        let origin = self.upstream.origin();
        if let Ok(body) = str::from_utf8(&answer.body)
            && body.contains(origin)
        {
            answer.body = body.replace(origin, &self.url).into();
        }
        for value in answer.headers.values_mut() {
            let text = value.to_str().unwrap_or_default();
            if text.contains(origin) {
                *value = text.replace(origin, &self.url).parse().expect("it was a header's value");
            }
        }
        Ok(answer)
    }

    fn cut_connections(&self) -> Vec<AbortHandle> {
        let connections: Vec<_> = lock(&self.connections).drain().map(|(_, task)| task).collect();
        connections.iter().for_each(AbortHandle::abort);
        connections
    }
}

impl fmt::Debug for FaultProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultProxy({})", self.url())
    }
}

fn answered(answer: &Answer) -> Answered {
    let mut headers = HeaderMap::new();
    for (name, value) in &answer.headers {
        headers.append(*name, value.parse().expect("tests write visible ASCII"));
    }
    Answered { status: answer.status, headers, body: answer.body.clone() }
}

fn whole(answer: Answered) -> Response<Body> {
    let body = Full::new(answer.body).map_err(|never| match never {}).boxed_unsync();
    response(answer.status, answer.headers, body)
}

/// Announces a body of `len` bytes and gives it in parts, each after its delay.
fn in_parts(
    answer: Answered,
    len: usize,
    parts: Vec<(Duration, io::Result<Bytes>)>,
) -> Response<Body> {
    let Answered { status, mut headers, .. } = answer;
    headers.insert(CONTENT_LENGTH, len.into());
    let frames = stream::unfold(parts.into_iter(), |mut parts| async {
        let (delay, part) = parts.next()?;
        // A pause lets go of what was written before.
        tokio::time::sleep(delay.max(Duration::from_millis(1))).await;
        Some((part.map(Frame::data), parts))
    });
    response(status, headers, StreamBody::new(frames).boxed_unsync())
}

fn response(status: StatusCode, headers: HeaderMap, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn cut() -> io::Error {
    io::Error::other("the script cuts this connection")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

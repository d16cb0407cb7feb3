//! HTTP/1.1 over TLS: requests in, replies out, and the faults between them.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use aws_lc_rs::rand;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What happens to one request instead of, or with, the right answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This answer instead.
    Answer {
        /// The HTTP status.
        status: u16,
        /// Further header fields, such as `("Retry-After", "7")`.
        headers: Vec<(String, String)>,
        /// The body.
        body: String,
    },
    /// The right answer, so much later.
    Slow(Duration),
    /// The connection is closed without an answer.
    Cut,
    /// The connection is closed in the middle of the right answer.
    Truncated,
    /// The right answer with these fields of its JSON replaced.
    Changed(Value),
}

/// A request.
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Request {
    async fn read(request: http::Request<Incoming>) -> Result<Self, hyper::Error> {
        let (parts, body) = request.into_parts();
        Ok(Self {
            method: parts.method,
            path: parts.uri.path().to_owned(),
            query: form(parts.uri.query().unwrap_or_default()),
            headers: parts.headers,
            body: body.collect().await?.to_bytes(),
        })
    }

    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        value_of(&self.query, name)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// `application/x-www-form-urlencoded`.
pub(crate) fn form(text: &str) -> Vec<(String, String)> {
    let decode =
        |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    text.split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect()
}

/// The first value under a name.
pub(crate) fn value_of<'a>(pairs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    pairs.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn json(status: u16, body: &Value) -> Self {
        Self { status, headers: Vec::new(), body: body.to_string() }
    }
}

/// What answers requests: the fault that the request meets, and the right answer.
pub(crate) trait Answer: Send + Sync + 'static {
    fn answer(&self, request: &Request) -> (Option<Fault>, Reply);
}

/// Accepts connections for ever.
pub(crate) async fn serve(listener: TcpListener, tls: TlsAcceptor, service: Arc<impl Answer>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let (tls, service) = (tls.clone(), Arc::clone(&service));
        tokio::spawn(async move {
            // What a client breaks off is the client's affair.
            let Ok(stream) = tls.accept(stream).await else { return };
            let handler = service_fn(move |request| respond(Arc::clone(&service), request));
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), handler);
            connection.await.ok();
        });
    }
}

/// Listens on a free port of the loopback interface.
pub(crate) async fn listen(port: u16) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

async fn respond(
    service: Arc<impl Answer>,
    request: http::Request<Incoming>,
) -> Result<Response<Cuttable>, io::Error> {
    let request = Request::read(request).await.map_err(io::Error::other)?;
    let (fault, mut reply) = service.answer(&request);
    let mut sent = usize::MAX;
    match fault {
        None => {}
        Some(Fault::Answer { status, headers, body }) => {
            let header = |(name, value): (String, String)| {
                let name = HeaderName::from_bytes(name.as_bytes()).map_err(io::Error::other)?;
                Ok((name, HeaderValue::from_str(&value).map_err(io::Error::other)?))
            };
            let headers = headers.into_iter().map(header).collect::<io::Result<_>>()?;
            reply = Reply { status, headers, body };
        }
        Some(Fault::Slow(delay)) => tokio::time::sleep(delay).await,
        Some(Fault::Cut) => return Err(io::ErrorKind::ConnectionAborted.into()),
        Some(Fault::Truncated) => sent = reply.body.len() / 2,
        Some(Fault::Changed(fields)) => reply.body = changed(&reply.body, &fields),
    }
    let mut response = Response::builder()
        .status(reply.status)
        .header(CONTENT_TYPE, "application/json; charset=utf-8")
        .header(CACHE_CONTROL, "no-cache")
        .header("x-ms-request-id", request_id())
        .header("x-ms-keyvault-region", "fake")
        .header("x-ms-keyvault-service-version", "fake");
    if let Some(id) = request.header("x-ms-client-request-id") {
        response = response.header("x-ms-client-request-id", id);
    }
    for (name, value) in reply.headers {
        response = response.header(name, value);
    }
    let body = Cuttable { body: reply.body.into(), sent, step: Step::Begin };
    response.body(body).map_err(io::Error::other)
}

fn changed(body: &str, fields: &Value) -> String {
    let (Ok(mut body), Some(fields)) = (serde_json::from_str::<Value>(body), fields.as_object())
    else {
        return body.to_owned();
    };
    for (name, value) in fields {
        body[name.as_str()] = value.clone();
    }
    body.to_string()
}

/// A UUID, as the service names its requests.
fn request_id() -> String {
    let id = random_hex::<16>();
    format!("{}-{}-{}-{}-{}", &id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..])
}

/// N random bytes in hexadecimal.
pub(crate) fn random_hex<const N: usize>() -> String {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the system gives random bytes");
    hex::encode(bytes)
}

/// A body that announces its whole length, and may end before it.
struct Cuttable {
    body: Bytes,
    sent: usize,
    step: Step,
}

/// How far a body is.
enum Step {
    Begin,
    /// Time for what was given to be sent.
    Pause,
    End,
}

impl Body for Cuttable {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.step {
            Step::Begin => {
                self.step = Step::Pause;
                let part = self.body.slice(..self.sent.min(self.body.len()));
                Poll::Ready(Some(Ok(Frame::data(part))))
            }
            Step::Pause => {
                self.step = Step::End;
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Step::End if self.sent < self.body.len() => {
                Poll::Ready(Some(Err(io::ErrorKind::ConnectionAborted.into())))
            }
            Step::End => Poll::Ready(None),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self.step {
            Step::Begin => SizeHint::with_exact(self.body.len() as u64),
            Step::Pause | Step::End => SizeHint::default(),
        }
    }
}

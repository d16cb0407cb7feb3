//! The outermost layer of every call: who calls, request id, deadline, room, and only the
//! contract's status codes on the wire.

use std::convert::Infallible;
use std::fmt::Write;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Status};

use crate::daemon::records::audit::{Audit, Record};
use crate::daemon::records::metrics::Metrics;
use crate::daemon::request::active::Snapshot;
use crate::daemon::request::call::{CallContext, DEFAULT_DEADLINE};
use crate::daemon::request::policy::{InFlight, StartedCall};
use crate::daemon::request::status_trailers::ContractTrailers;
use crate::daemon::status::{Failure, in_contract};
use crate::daemon::transport::caller::Peer;
use crate::daemon::transport::denied::DeniedCallers;

/// Services whose answers are in the contract already.
const OUR_SERVICES: &str = "/claviger.v1.";
/// A longer deadline than this is cut to it.
const MAX_DEADLINE: Duration = Duration::from_mins(5);
/// The longest `x-request-id` of a caller's that is recorded.
const MAX_CALLER_REQUEST_ID: usize = 64;

/// The outermost layer, around tonic's routes.
#[derive(Clone)]
pub struct Admission {
    routes: Routes,
    shared: Arc<Shared>,
}

/// What all calls share.
pub struct Shared {
    /// Callers and keys in force.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Callers refused at once.
    pub denied: Arc<DeniedCallers>,
    /// Where refusals are recorded.
    pub audit: Arc<Audit>,
    /// Refusals are counted here.
    pub metrics: Arc<Metrics>,
    /// Calls in flight.
    pub in_flight: Arc<InFlight>,
    /// The first half of each request id: this process.
    pub instance: String,
    /// The second half: this call.
    pub calls: AtomicU64,
}

impl Admission {
    /// A layer around `routes`.
    pub fn new(routes: Routes, shared: Arc<Shared>) -> Self {
        Self { routes, shared }
    }
}

impl tower::Service<Request<Incoming>> for Admission {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Incoming>) -> Self::Future {
        let request_id = self.shared.request_id();
        match self.shared.admit(&request, &request_id) {
            Err(failure) => Box::pin(std::future::ready(Ok(refusal(failure, &request_id)))),
            Ok((context, in_flight)) => {
                let deadline = context.deadline;
                let shared = Arc::clone(&self.shared);
                request.extensions_mut().insert(Arc::clone(&context));
                let ours = request.uri().path().starts_with(OUR_SERVICES);
                let answered = tower::Service::call(&mut self.routes, request);
                Box::pin(async move {
                    let answered = tokio::time::timeout_at(deadline.into(), answered).await;
                    let Ok(response) = answered else {
                        return Ok(answer(Failure::DeadlineExceeded.into(), &request_id));
                    };
                    let Ok(mut response) = response;
                    if let Some((status, reason)) = of_the_framework(response.headers()) {
                        shared.refused(&context, status.code(), reason);
                        return Ok(answer(status, &request_id));
                    }
                    add_request_id(response.headers_mut(), &request_id);
                    if ours {
                        return Ok(response);
                    }
                    Ok(response.map(|body| ContractTrailers::around(body, in_flight)))
                })
            }
        }
    }
}

impl Shared {
    fn request_id(&self) -> Arc<str> {
        let mut id = String::with_capacity(self.instance.len() + 17);
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        write!(id, "{}-{call:x}", self.instance).expect("writing to a String");
        id.into()
    }

    /// Counts and records a call that ended before it reached the service.
    fn refused(&self, context: &CallContext, code: Code, reason: &'static str) {
        self.metrics.server.refused(reason);
        context.with_record(code, |record| {
            self.audit.refusal(&Record { reason: Some(reason), ..record });
        });
    }

    fn admit(
        &self,
        request: &Request<Incoming>,
        request_id: &Arc<str>,
    ) -> Result<(Arc<CallContext>, StartedCall), Failure> {
        let peer = request.extensions().get::<Arc<Peer>>().ok_or(Failure::Internal)?;
        let snapshot = self.snapshot.load();
        let caller_request_id = caller_request_id(request.headers());
        let refuse = |failure: Failure, caller: Option<&str>, reason: &'static str| {
            self.metrics.server.refused(reason);
            let (identity, address) = (peer.identity(), peer.address.to_string());
            self.audit.refusal(&Record {
                request_id,
                caller_request_id: caller_request_id.as_deref(),
                caller,
                identity: identity.as_deref(),
                certificate_sha256: peer.certificate.as_ref().map(|c| &c.sha256),
                peer: Some(&address),
                reason: Some(reason),
                ..Record::new(failure.code())
            });
            failure
        };
        if self.denied.denies(peer) {
            return Err(refuse(Failure::Unauthenticated, None, "denied_caller"));
        }
        let caller = snapshot
            .identify(peer)
            .map_err(|nobody| refuse(Failure::Unauthenticated, None, nobody.reason()))?;
        let refuse = |failure: Failure| {
            let reason = failure.reason();
            refuse(failure, Some(&caller.name), reason)
        };
        check_content_type(request.headers()).map_err(refuse)?;
        let timeout = deadline(request.headers()).map_err(refuse)?;
        let in_flight = self.in_flight.start(&caller.in_flight).map_err(refuse)?;
        let context = CallContext {
            request_id: Arc::clone(request_id),
            caller_request_id,
            traceparent: traceparent(request.headers()),
            peer: Arc::clone(peer),
            caller: Arc::clone(caller),
            deadline: Instant::now() + timeout,
        };
        Ok((Arc::new(context), in_flight))
    }
}

/// Only gRPC with protobuf is spoken here (gRPC over HTTP/2, "Content-Type").
fn check_content_type(headers: &HeaderMap) -> Result<(), Failure> {
    let value = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let essence = value.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii_end();
    match essence {
        b"application/grpc" | b"application/grpc+proto" => Ok(()),
        _ => Err(Failure::Field {
            field: "content-type",
            allowed: "must be application/grpc".into(),
        }),
    }
}

/// `grpc-timeout`: one to eight digits and a unit (gRPC over HTTP/2, "Timeout").
fn deadline(headers: &HeaderMap) -> Result<Duration, Failure> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(DEFAULT_DEADLINE) };
    let bad = || Failure::Field {
        field: "grpc-timeout",
        allowed: "must be one to eight digits and a unit of H, M, S, m, u or n".into(),
    };
    let (digits, unit) = match value.as_bytes() {
        [digits @ .., unit] if (1..=8).contains(&digits.len()) => (digits, unit),
        _ => return Err(bad()),
    };
    let mut number: u64 = 0;
    for digit in digits {
        match digit {
            b'0'..=b'9' => number = number * 10 + u64::from(digit - b'0'),
            _ => return Err(bad()),
        }
    }
    let timeout = match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return Err(bad()),
    };
    Ok(timeout.min(MAX_DEADLINE))
}

/// The caller's own request id, if it is printable and at most 64 characters.
fn caller_request_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(claviger_proto::REQUEST_ID)?.to_str().ok()?;
    let good = !id.is_empty()
        && id.len() <= MAX_CALLER_REQUEST_ID
        && id.bytes().all(|b| (0x20..0x7f).contains(&b));
    good.then(|| id.to_owned())
}

/// W3C trace context, if it has the form of version 00.
fn traceparent(headers: &HeaderMap) -> Option<String> {
    let value = headers.get("traceparent")?.to_str().ok()?;
    let good =
        value.len() == 55 && value.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-'));
    good.then(|| value.to_owned())
}

/// A status of tonic's own, in the contract's words, with a word for metrics and audit.
fn of_the_framework(headers: &HeaderMap) -> Option<(Status, &'static str)> {
    if !headers.contains_key("grpc-status") {
        return None;
    }
    let status = Status::from_header_map(headers)?;
    match status.code() {
        Code::Ok => None,
        Code::Unimplemented => Some((status, "unimplemented")),
        code => in_contract(code, status.message()).map(|status| (status, "unreadable_message")),
    }
}

/// What is no gRPC call is refused in HTTP's words too, for clients that know nothing else.
fn refusal(failure: Failure, request_id: &str) -> Response<Body> {
    let is_no_call = matches!(failure, Failure::Field { field: "content-type", .. });
    let mut response = answer(failure.into(), request_id);
    if is_no_call {
        *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    }
    response
}

fn answer(status: Status, request_id: &str) -> Response<Body> {
    let mut response = status.into_http();
    add_request_id(response.headers_mut(), request_id);
    response
}

fn add_request_id(headers: &mut HeaderMap, request_id: &str) {
    if let Ok(value) = HeaderValue::from_str(request_id) {
        headers.insert(claviger_proto::REQUEST_ID, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_static(value))])
    }

    #[test]
    fn a_deadline_is_read_as_grpc_writes_it_and_anything_else_names_the_header() {
        assert_eq!(deadline(&HeaderMap::new()), Ok(DEFAULT_DEADLINE));
        let read = |value| deadline(&headers("grpc-timeout", value));
        assert_eq!(read("250m"), Ok(Duration::from_millis(250)));
        assert_eq!(read("99999999H"), Ok(MAX_DEADLINE));
        for bad in ["", "5", "S", "123456789S", "-1S", "1x", "1.5S"] {
            let failure = read(bad).unwrap_err();
            assert!(matches!(failure, Failure::Field { field: "grpc-timeout", .. }), "{bad}");
        }
    }

    #[test]
    fn only_grpc_with_protobuf_is_a_call() {
        for good in ["application/grpc", "application/grpc+proto", "application/grpc; a=b"] {
            assert_eq!(check_content_type(&headers("content-type", good)), Ok(()), "{good}");
        }
        for bad in ["", "application/json", "application/grpc-web", "application/grpc+json"] {
            assert!(check_content_type(&headers("content-type", bad)).is_err(), "{bad}");
        }
        assert!(check_content_type(&HeaderMap::new()).is_err());
    }

    #[test]
    fn only_a_printable_short_request_id_is_taken_over() {
        let read = |value| caller_request_id(&headers("x-request-id", value));
        assert_eq!(read("abc-1"), Some("abc-1".into()));
        assert_eq!(read(""), None);
        assert_eq!(read("a\tb"), None);
        assert!(
            caller_request_id(&HeaderMap::from_iter([(
                "x-request-id".parse().unwrap(),
                HeaderValue::from_str(&"a".repeat(65)).unwrap()
            )]))
            .is_none()
        );
    }

    #[test]
    fn a_traceparent_must_have_its_form() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert!(traceparent(&headers("traceparent", good)).is_some());
        assert!(traceparent(&headers("traceparent", "00-xyz")).is_none());
    }
}

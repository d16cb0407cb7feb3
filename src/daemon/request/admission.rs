//! The outermost layer of every call: who calls, request id, deadline, room, and only the
//! contract's status codes on the wire.

mod headers;
mod spans;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use claviger_proto::v1::key_service_server::KeyServiceServer;
use claviger_tokens::Issuer;
use futures::future::BoxFuture;
use http::header::ALLOW;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::Service as _;

use self::headers::{METHOD, caller_request_id, check_head, deadline, stream_deadline};
use self::spans::{server_span, traced};
use crate::daemon::records::audit::{Audit, Record};
use crate::daemon::records::metrics::{Metrics, Phase};
use crate::daemon::records::traces::{TraceParent, Tracer, Waited};
use crate::daemon::request::active::Snapshot;
use crate::daemon::request::call::{CallContext, DEFAULT_DEADLINE};
use crate::daemon::request::in_flight::{InFlight, StartedCall};
use crate::daemon::request::one_message::OneMessage;
use crate::daemon::request::request_id;
use crate::daemon::request::service::Service;
use crate::daemon::request::status_trailers::ContractTrailers;
use crate::daemon::status::{Exhausted, Failure, in_contract};
use crate::daemon::transport::caller::Peer;
use crate::daemon::transport::denied::DeniedCallers;
use crate::daemon::transport::listener::Call;
use crate::daemon::transport::log_limit::LogLine;
use crate::daemon::transport::tokens::{NotIdentified, Why};
use crate::daemon::transport::verdicts::TokenIdentity;

/// Services whose answers are in the contract already.
const OUR_SERVICES: &str = "/claviger.v1.";
/// The service that most calls are for.
const KEY_SERVICE: &str = "/claviger.v1.KeyService/";
/// Methods that take any number of messages.
const REFLECTION: &str = "/grpc.reflection.";
/// A longer deadline than this is cut to it, but for streams.
const MAX_DEADLINE: Duration = Duration::from_mins(5);
/// How long after the deadline an answer may take to leave.
const UNTIL_LEFT: Duration = Duration::from_secs(1);
/// The outermost layer, around the services.
#[derive(Clone)]
pub struct Admission {
    services: Services,
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
    /// Begins the traces of calls.
    pub tracer: Arc<Tracer>,
}

impl Admission {
    /// A layer around `services`.
    pub fn new(services: Services, shared: Arc<Shared>) -> Self {
        Self { services, shared }
    }
}

/// The services that calls are handed on to.
#[derive(Clone)]
pub struct Services {
    /// That of keys, asked directly: the routes would match each path and box each call once more.
    pub keys: KeyServiceServer<Service>,
    /// To all others.
    pub others: Routes,
}

impl Services {
    fn hand_on(
        &mut self,
        request: Request<Incoming>,
    ) -> BoxFuture<'static, Result<Response<Body>, Infallible>> {
        let path = request.uri().path();
        if path.starts_with(KEY_SERVICE) {
            return self.keys.call(request.map(OneMessage::of));
        }
        if path.starts_with(REFLECTION) {
            return Box::pin(self.others.call(request));
        }
        Box::pin(self.others.call(request.map(OneMessage::of)))
    }
}

impl tower::Service<Request<Incoming>> for Admission {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let request_id = request_id::new();
        let (shared, services) = (Arc::clone(&self.shared), self.services.clone());
        match self.shared.admit(&request, &request_id, Keys::MayBeOutdated) {
            Ok(context) => Box::pin(shared.serve(services, request, context, request_id)),
            Err(NotAdmitted::Refused(failure)) => {
                Box::pin(std::future::ready(Ok(refusal(failure, &request_id))))
            }
            Err(NotAdmitted::Outdated(issuer)) => Box::pin(async move {
                // Of a bad request the deadline does not matter.
                let patience = deadline(request.headers()).unwrap_or_default();
                let fetched = issuer.refresh_for_a_token();
                let _ = tokio::time::timeout(patience.min(DEFAULT_DEADLINE), fetched).await;
                match shared.admit(&request, &request_id, Keys::AreFetched) {
                    Ok(context) => shared.serve(services, request, context, request_id).await,
                    Err(NotAdmitted::Refused(failure)) => Ok(refusal(failure, &request_id)),
                    Err(NotAdmitted::Outdated(_)) => Ok(refusal(Failure::Internal, &request_id)),
                }
            }),
        }
    }
}

/// Whether the keys of a token's issuer were fetched for this call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keys {
    MayBeOutdated,
    AreFetched,
}

/// Why a call does not go on.
enum NotAdmitted {
    /// It was counted and recorded.
    Refused(Failure),
    /// This issuer's keys do not fit the call's token: they may have changed.
    Outdated(Arc<Issuer>),
}

/// What is known of a call that is refused.
#[derive(Clone, Copy, Default)]
struct Known<'a> {
    caller: Option<&'a str>,
    token: Option<&'a TokenIdentity>,
    token_sha256: Option<&'a [u8; 32]>,
}

impl Shared {
    async fn serve(
        self: Arc<Self>,
        mut services: Services,
        mut request: Request<Incoming>,
        context: Arc<CallContext>,
        request_id: Arc<str>,
    ) -> Result<Response<Body>, Infallible> {
        let mut span = server_span(&context, &request);
        let started = self.start(&context).await;
        let started = match started {
            Ok(started) => started,
            Err(failure) => {
                self.refused(&context, failure.code(), failure.reason());
                return Ok(traced(&mut span, answer(failure.into(), &request_id)));
            }
        };
        // It is given up when nothing works for the call any more and its answer has left.
        let started = Arc::new(started);
        let _ = context.in_flight.set(Arc::clone(&started));
        let ours = request.uri().path().starts_with(OUR_SERVICES);
        let stream_deadline =
            if ours { None } else { stream_deadline(request.headers(), context.token.as_deref()) };
        if let Some(call) = request.extensions_mut().remove::<Arc<Call>>() {
            let until = if ours { Some(context.deadline) } else { stream_deadline };
            call.keep(until.map(|until| until + UNTIL_LEFT), started);
        }
        request.extensions_mut().insert(Arc::clone(&context));
        let deadline = context.deadline;
        let answered = services.hand_on(request);
        let answered = tokio::time::timeout_at(deadline.into(), answered).await;
        let Ok(response) = answered else {
            return Ok(traced(&mut span, answer(Failure::DeadlineExceeded.into(), &request_id)));
        };
        let Ok(mut response) = response;
        if let Some((status, reason)) = of_the_framework(response.headers()) {
            self.refused(&context, status.code(), reason);
            return Ok(traced(&mut span, answer(status, &request_id)));
        }
        add_request_id(response.headers_mut(), &request_id);
        if ours {
            return Ok(traced(&mut span, response));
        }
        Ok(response.map(|body| ContractTrailers::around(body, stream_deadline)))
    }

    /// Room among the calls in flight, once there is some.
    async fn start(&self, context: &CallContext) -> Result<StartedCall, Failure> {
        let since = Instant::now();
        let started = self.in_flight.start(&context.caller.calls, context.deadline).await;
        let waited = *context.waited_for_room.get_or_init(|| since.elapsed());
        if let Some(trace) = &context.trace {
            let failure = started.as_ref().err().map(Failure::reason);
            trace.waited(&Waited::new(Phase::Queue, since, waited).failed(failure));
        }
        started
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
        keys: Keys,
    ) -> Result<Arc<CallContext>, NotAdmitted> {
        let peer = request.extensions().get::<Arc<Peer>>();
        let peer = peer.ok_or(NotAdmitted::Refused(Failure::Internal))?;
        let snapshot = self.snapshot.load();
        let caller_request_id = caller_request_id(request.headers());
        let refuse = |failure: Failure, reason: &'static str, known: Known<'_>| {
            self.metrics.server.refused(reason);
            let (identity, address) = (peer.identity(), peer.address.to_string());
            let record = Record::new(failure.code()).with_token(known.token);
            self.audit.refusal(&Record {
                request_id,
                caller_request_id: caller_request_id.as_deref(),
                caller: known.caller,
                identity: identity.as_deref(),
                certificate_sha256: peer.certificate.as_ref().map(|c| &c.sha256),
                certificate_not_after: peer.certificate.as_ref().map(|c| c.not_after),
                anchor: peer.certificate.as_ref().map(|c| &*c.anchor.bundle),
                token_sha256: known.token_sha256.or(record.token_sha256),
                peer: Some(&address),
                reason: Some(reason),
                ..record
            });
            NotAdmitted::Refused(failure)
        };
        if self.denied.denies(peer) {
            return Err(refuse(Failure::Unauthenticated, "denied_caller", Known::default()));
        }
        let (caller, token) = match snapshot.identify_by_token(peer, request.headers()) {
            None => {
                let identified = snapshot.identify(peer).map_err(|unknown| {
                    refuse(Failure::Unauthenticated, unknown.reason(), Known::default())
                });
                (identified?, None)
            }
            Some(Ok((caller, token))) => (caller, Some(token)),
            Some(Err(NotIdentified { outdated: Some(issuer), .. }))
                if keys == Keys::MayBeOutdated =>
            {
                return Err(NotAdmitted::Outdated(issuer));
            }
            Some(Err(NotIdentified { why, sha256, identity, .. })) => {
                log_refusal(&snapshot, peer, request_id, why);
                let (token, token_sha256) = (identity.as_deref(), sha256.as_ref());
                let known = Known { caller: None, token, token_sha256 };
                return Err(refuse(of_token(why), why.reason(), known));
            }
        };
        let known =
            Known { caller: Some(&caller.name), token: token.as_deref(), ..Known::default() };
        if token.as_ref().is_some_and(|token| self.denied.denies_token(token)) {
            return Err(refuse(Failure::BadToken, "denied_caller", known));
        }
        let refuse = |failure: Failure| {
            let reason = failure.reason();
            refuse(failure, reason, known)
        };
        check_head(request, token.is_some()).map_err(refuse)?;
        caller.calls.seen.note(peer);
        let timeout = deadline(request.headers()).map_err(refuse)?.min(MAX_DEADLINE);
        let is_traced = request.uri().path().starts_with(KEY_SERVICE);
        let traceparent = TraceParent::of(request.headers()).map(|(text, _)| text.to_owned());
        let context = CallContext {
            request_id: Arc::clone(request_id),
            traceparent,
            trace: is_traced.then(|| self.tracer.begin(request.headers(), request_id)).flatten(),
            peer: Arc::clone(peer),
            caller: Arc::clone(caller),
            deadline: Instant::now() + timeout,
            in_flight: OnceLock::new(),
            waited_for_room: OnceLock::new(),
            token: token.clone(),
            caller_request_id,
        };
        Ok(Arc::new(context))
    }
}

/// What the caller learns: one and the same for every bad token.
fn of_token(why: Why) -> Failure {
    match why {
        Why::Bad(_) | Why::Unidentified(_) => Failure::BadToken,
        Why::NoKeys => Failure::IssuerAway,
        Why::TooMany => Failure::Exhausted {
            what: Exhausted::WrongSignatures,
            retry_after: Duration::from_secs(1),
        },
    }
}

/// Why a token was refused, for the operator.
fn log_refusal(snapshot: &Snapshot, peer: &Peer, request_id: &str, why: Why) {
    let Some(tokens) = snapshot.tokens() else { return };
    let (peer, identity) = (peer.address, peer.identity());
    match tokens.log_limit().count() {
        LogLine::Written => {
            tracing::warn!(request_id, %peer, ?identity, reason = why.reason(), "token refused: {why}");
        }
        LogLine::FirstLeftOut => {
            tracing::warn!("more lines about refused tokens are left out for up to a minute");
        }
        LogLine::LeftOut => {}
    }
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
    let field = match &failure {
        Failure::Field { field, .. } => *field,
        _ => "",
    };
    let mut response = answer(failure.into(), request_id);
    match field {
        METHOD => {
            *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        }
        "content-type" => *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE,
        _ => {}
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

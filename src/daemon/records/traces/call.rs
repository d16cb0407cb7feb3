//! The spans of one call: that of the call itself, and those of what it waited for.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use claviger_otlp::attribute;
use claviger_otlp::common::KeyValue;
use claviger_otlp::trace::span::SpanKind;
use claviger_otlp::trace::status::StatusCode;
use claviger_otlp::trace::{Span, SpanFlags, Status};
use http::uri::Authority;
use tonic::Code;

use super::context::{SpanId, TraceId};
use super::queue::Queue;
use crate::daemon::records::metrics::{Phase, code_name};

/// The longest text of an attribute, in characters.
const LONGEST: usize = 64;
/// The longest host name, in characters (RFC 1035 section 2.3.4).
const LONGEST_HOST: usize = 255;
/// W3C Trace Context: sampled, and random (version 2, section 3.2.2.5).
const SAMPLED: u32 = 1;
const RANDOM: u32 = 2;
/// What is called in the place of a method that does not exist, by the conventions of OpenTelemetry.
const OTHER: &str = "_OTHER";
/// The methods that exist.
pub(super) const METHODS: [&str; 9] = [
    "claviger.v1.KeyService/Unwrap",
    "claviger.v1.KeyService/UnwrapBatch",
    "claviger.v1.KeyService/Wrap",
    "claviger.v1.KeyService/Rewrap",
    "claviger.v1.KeyService/RewrapBatch",
    "claviger.v1.KeyService/Sign",
    "claviger.v1.KeyService/Verify",
    "claviger.v1.KeyService/ListKeys",
    "claviger.v1.KeyService/GetKey",
];

/// A call whose trace is kept.
#[derive(Debug)]
pub struct CallTrace {
    queue: Arc<Queue>,
    trace_id: TraceId,
    /// Of the call's own span.
    span_id: SpanId,
    /// The caller's span.
    parent: Option<SpanId>,
    state: String,
    begun: (SystemTime, Instant),
    /// What the operation has told of itself, where the call is one operation.
    told: Mutex<Vec<KeyValue>>,
}

/// The span of the call itself; it ends when this is dropped.
#[derive(Debug)]
pub struct ServerSpan {
    trace: Arc<CallTrace>,
    method: Option<&'static str>,
    attributes: Vec<KeyValue>,
    code: Code,
}

/// One operation of a traced call: the call itself, or an item of a batch with a span of its own.
#[derive(Debug)]
pub struct OperationTrace {
    trace: Arc<CallTrace>,
    span_id: SpanId,
    item: Option<u32>,
    begun: Instant,
}

/// Something that an operation waited for, until now.
#[derive(Clone, Copy, Debug)]
pub struct Waited<'a> {
    /// What.
    pub phase: Phase,
    /// Since when.
    pub since: Instant,
    /// How long.
    pub took: Duration,
    /// Of a backend: the provider's name, and its type.
    pub provider: Option<(&'a str, &'a str)>,
    /// Of a backend: the version that was asked.
    pub version: Option<u32>,
    /// The reason of its failure; one of a small closed set.
    pub failure: Option<&'static str>,
}

/// What is told of an operation: nothing of why a value failed that its caller is not told.
#[derive(Clone, Copy, Debug)]
pub struct Outcome<'a> {
    /// What was asked for.
    pub operation: &'static str,
    /// The key, by the name that was asked for.
    pub key: &'a str,
    /// The version that was used.
    pub version: Option<u32>,
    /// The provider of the replica that was used.
    pub provider: Option<&'a str>,
    /// The algorithm's JWA name.
    pub algorithm: Option<&'static str>,
    /// How it ended.
    pub code: Code,
    /// Why it did not succeed.
    pub reason: Option<&'static str>,
}

impl Waited<'_> {
    /// For this, since then, so long.
    pub fn new(phase: Phase, since: Instant, took: Duration) -> Self {
        Self { phase, since, took, provider: None, version: None, failure: None }
    }

    /// The same, with the reason why nothing came of it, if there is one.
    #[must_use]
    pub fn failed(self, failure: Option<&'static str>) -> Self {
        Self { failure, ..self }
    }
}

impl CallTrace {
    /// Begins now.
    pub(super) fn new(
        queue: Arc<Queue>,
        trace_id: TraceId,
        parent: Option<SpanId>,
        state: String,
    ) -> Self {
        let begun = (SystemTime::now(), Instant::now());
        let told = Mutex::default();
        Self { queue, trace_id, span_id: new_span_id(), parent, state, begun, told }
    }

    /// The span of the call itself: of the path of its request, its `:authority`, and where it comes from.
    pub fn server_span(
        self: &Arc<Self>,
        path: &str,
        authority: Option<&Authority>,
        peer: Option<SocketAddr>,
    ) -> ServerSpan {
        let asked = path.trim_start_matches('/');
        let method = METHODS.into_iter().find(|method| *method == asked);
        let mut attributes = vec![
            attribute("rpc.system.name", "grpc"),
            attribute("rpc.method", method.unwrap_or(OTHER)),
        ];
        if method.is_none() {
            attributes.push(attribute("rpc.method_original", cut(asked, LONGEST)));
        }
        if let Some(authority) = authority {
            attributes.push(attribute("server.address", cut(authority.host(), LONGEST_HOST)));
            attributes
                .extend(authority.port_u16().map(|port| attribute("server.port", i64::from(port))));
        }
        match peer {
            Some(peer) => attributes.extend([
                attribute("network.transport", "tcp"),
                attribute("network.peer.address", peer.ip().to_string()),
                attribute("network.peer.port", i64::from(peer.port())),
            ]),
            None => attributes.push(attribute("network.transport", "unix")),
        }
        ServerSpan { trace: Arc::clone(self), method, attributes, code: Code::Cancelled }
    }

    /// The call's one operation, or that of an item of a batch.
    pub fn operation(self: &Arc<Self>, item: Option<u32>) -> OperationTrace {
        let span_id = if item.is_some() { new_span_id() } else { self.span_id };
        OperationTrace { trace: Arc::clone(self), span_id, item, begun: Instant::now() }
    }

    /// What the call as a whole waited for.
    pub fn waited(&self, waited: &Waited<'_>) {
        self.push(self.span_of(waited, self.span_id));
    }

    fn span_of(&self, waited: &Waited<'_>, parent: SpanId) -> Span {
        let &Waited { phase, since, took, provider, version, failure } = waited;
        let mut attributes = Vec::new();
        if let Some((name, kind)) = provider {
            attributes.push(attribute("claviger.provider", name));
            attributes.push(attribute("claviger.provider.type", kind));
        }
        attributes.extend(version.map(of_version));
        attributes.extend(failure.map(|reason| attribute("error.type", reason)));
        let mut span = self.span(phase.name(), new_span_id(), Some(parent), since, since + took);
        span.kind = SpanKind::Internal.into();
        span.attributes = attributes;
        span.status = failure.map(failed);
        span
    }

    fn span(
        &self,
        name: &str,
        span_id: SpanId,
        parent: Option<SpanId>,
        begun: Instant,
        ended: Instant,
    ) -> Span {
        let is_remote = parent.is_some() && parent == self.parent;
        let remote = if is_remote { SpanFlags::ContextIsRemoteMask as u32 } else { 0 };
        let known = SpanFlags::ContextHasIsRemoteMask as u32;
        // Only of an id of ours is it known that it is random.
        let random = if self.parent.is_none() { RANDOM } else { 0 };
        Span {
            trace_id: self.trace_id.to_vec(),
            span_id: span_id.to_vec(),
            trace_state: self.state.clone(),
            parent_span_id: parent.map_or_else(Vec::new, |parent| parent.to_vec()),
            flags: SAMPLED | random | known | remote,
            name: name.to_owned(),
            start_time_unix_nano: self.unix_nano(begun),
            end_time_unix_nano: self.unix_nano(ended),
            ..Span::default()
        }
    }

    /// By the clock as it was when the call began: a clock that is set meanwhile turns no span around.
    fn unix_nano(&self, at: Instant) -> u64 {
        let (begun, begun_at) = self.begun;
        let since_1970 = begun.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let since = since_1970 + at.saturating_duration_since(begun_at);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    fn push(&self, span: Span) {
        self.queue.push(span);
    }
}

impl ServerSpan {
    /// Notes who called, and under which ids.
    pub fn note_caller(&mut self, caller: &str, request_id: &str, callers_own: Option<&str>) {
        self.attributes.push(attribute("claviger.caller", cut(caller, LONGEST)));
        self.attributes.push(attribute("claviger.request_id", request_id));
        let own = callers_own.map(|id| attribute("claviger.caller_request_id", cut(id, LONGEST)));
        self.attributes.extend(own);
    }

    /// The call was answered so. One that never was has gone away: `CANCELLED`.
    pub fn answered(&mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for ServerSpan {
    fn drop(&mut self) {
        let (trace, code) = (&self.trace, self.code);
        let name = self.method.unwrap_or("grpc");
        let begun = trace.begun.1;
        let mut span = trace.span(name, trace.span_id, trace.parent, begun, Instant::now());
        span.kind = SpanKind::Server.into();
        span.attributes = std::mem::take(&mut self.attributes);
        let told = &mut *trace.told.lock().unwrap_or_else(PoisonError::into_inner);
        span.attributes.append(told);
        span.attributes.push(attribute("rpc.response.status_code", status_code(code)));
        if is_error(code) {
            span.attributes.push(attribute("error.type", status_code(code)));
            span.status = Some(failed(status_code(code)));
        }
        trace.push(span);
    }
}

impl OperationTrace {
    /// What it waited for.
    pub fn waited(&self, waited: &Waited<'_>) {
        self.trace.push(self.trace.span_of(waited, self.span_id));
    }

    /// It has ended: told with the call's own span, or with that of the item.
    pub fn ended(&self, outcome: &Outcome<'_>) {
        let &Outcome { operation, key, version, provider, algorithm, code, reason } = outcome;
        let mut attributes = vec![attribute("claviger.operation", operation)];
        if !key.is_empty() {
            attributes.push(attribute("claviger.key.name", cut(key, LONGEST)));
        }
        attributes.extend(version.map(of_version));
        attributes.extend(provider.map(|name| attribute("claviger.provider", name)));
        attributes.extend(algorithm.map(|name| attribute("claviger.algorithm", name)));
        attributes.extend(reason.map(|reason| attribute("claviger.reason", reason)));
        let trace = &self.trace;
        let Some(item) = self.item else {
            // Of an operation that runs on without its caller, whose span has ended, this is lost.
            *trace.told.lock().unwrap_or_else(PoisonError::into_inner) = attributes;
            return;
        };
        attributes.push(attribute("claviger.batch_item", i64::from(item)));
        attributes.push(attribute("claviger.outcome", code_name(code)));
        let parent = Some(trace.span_id);
        let mut span = trace.span(operation, self.span_id, parent, self.begun, Instant::now());
        span.kind = SpanKind::Internal.into();
        span.attributes = attributes;
        if is_error(code) {
            span.attributes.push(attribute("error.type", status_code(code)));
            span.status = Some(failed(status_code(code)));
        }
        trace.push(span);
    }
}

/// The codes of a server that are its errors, by the conventions for gRPC.
fn is_error(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

/// As gRPC writes it.
fn status_code(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        code => code_name(code),
    }
}

fn failed(reason: &str) -> Status {
    Status { code: StatusCode::Error.into(), message: reason.to_owned() }
}

fn of_version(version: u32) -> KeyValue {
    attribute("claviger.key.version", i64::from(version))
}

fn cut(text: &str, longest: usize) -> &str {
    text.char_indices().nth(longest).map_or(text, |(end, _)| &text[..end])
}

/// Another one for each span of the process, and of other processes as far as chance goes: a place in a
/// sequence that begins anywhere and comes to each number once (splitmix64).
fn new_span_id() -> SpanId {
    static NEXT: LazyLock<AtomicU64> = LazyLock::new(|| {
        let mut seed = [0; 8];
        aws_lc_rs::rand::fill(&mut seed)
            .expect("where there is no randomness there is no TLS either");
        AtomicU64::new(u64::from_ne_bytes(seed))
    });
    loop {
        let mut mixed = NEXT.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        if mixed != 0 {
            return mixed.to_be_bytes();
        }
    }
}

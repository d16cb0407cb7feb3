//! The span of a call: what is known of it when it comes, and how it was answered.

use http::{Request, Response};
use hyper::body::Incoming;
use tonic::body::Body;
use tonic::{Code, Status};

use crate::daemon::records::traces::ServerSpan;
use crate::daemon::request::call::CallContext;
use crate::daemon::transport::caller::PeerAddress;

/// The span of a call whose trace is kept.
pub(super) fn server_span(
    context: &CallContext,
    request: &Request<Incoming>,
) -> Option<ServerSpan> {
    let trace = context.trace.as_ref()?;
    let peer = match context.peer.address {
        PeerAddress::Tcp(address) => Some(address),
        PeerAddress::Unix { .. } => None,
    };
    let mut span = trace.server_span(request.uri().path(), request.uri().authority(), peer);
    let own = context.caller_request_id.as_deref();
    span.note_caller(&context.caller.name, &context.request_id, own);
    Some(span)
}

/// Notes in the span how the call was answered.
pub(super) fn traced(span: &mut Option<ServerSpan>, response: Response<Body>) -> Response<Body> {
    if let Some(span) = span {
        let status = response.headers().get(Status::GRPC_STATUS);
        span.answered(status.map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes())));
    }
    response
}

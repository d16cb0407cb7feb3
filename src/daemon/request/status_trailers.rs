//! Streams end with a status in their trailers: what tonic's own services say there is put into the
//! words of the contract too.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};

use crate::daemon::request::policy::StartedCall;
use crate::daemon::status::in_contract;

/// A response body whose trailers carry only the contract's codes. A stream is a call in flight
/// until its body ends.
pub(super) struct ContractTrailers {
    body: Body,
    _in_flight: StartedCall,
}

impl ContractTrailers {
    /// Around the body of a service that is not ours.
    pub(super) fn around(body: Body, in_flight: StartedCall) -> Body {
        Body::new(Self { body, _in_flight: in_flight })
    }
}

impl HttpBody for ContractTrailers {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        Poll::Ready(frame.map(|frame| {
            frame.map(|frame| match frame.into_trailers() {
                Ok(trailers) => Frame::trailers(checked(trailers)),
                Err(frame) => frame,
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn checked(trailers: HeaderMap) -> HeaderMap {
    let Some(status) = Status::from_header_map(&trailers) else { return trailers };
    let replaced = match status.code() {
        // A health check says it in headers; nobody else may.
        Code::NotFound => Some(Status::invalid_argument(status.message())),
        code => in_contract(code, status.message()),
    };
    let Some(status) = replaced else { return trailers };
    let mut trailers = HeaderMap::new();
    // A status of ours has no header that could be refused.
    let _ = status.add_header(&mut trailers);
    trailers
}

//! The status at the end of a stream (its trailers): a code that tonic's own services give there is
//! replaced by one of the contract too.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Sleep, sleep_until};
use tonic::body::Body;
use tonic::{Code, Status};

use crate::daemon::status::{Failure, in_contract};

/// A response body whose trailers carry only the contract's codes, and that ends at its deadline.
pub(super) struct ContractTrailers {
    body: Body,
    deadline: Option<Pin<Box<Sleep>>>,
    ended: bool,
}

impl ContractTrailers {
    /// Around the body of a service that is not ours.
    pub(super) fn around(body: Body, deadline: Option<Instant>) -> Body {
        let deadline = deadline.map(|deadline| Box::pin(sleep_until(deadline.into())));
        Body::new(Self { body, deadline, ended: false })
    }
}

impl HttpBody for ContractTrailers {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame.map(|frame| {
                frame.map(|frame| match frame.into_trailers() {
                    Ok(trailers) => Frame::trailers(checked(trailers)),
                    Err(frame) => frame,
                })
            }));
        }
        let Some(deadline) = &mut self.deadline else { return Poll::Pending };
        ready!(deadline.as_mut().poll(context));
        self.ended = true;
        Poll::Ready(Some(Ok(Frame::trailers(in_trailers(&Failure::DeadlineExceeded.into())))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn checked(trailers: HeaderMap) -> HeaderMap {
    let Some(status) = Status::from_header_map(&trailers) else { return trailers };
    let replaced = match status.code() {
        // A health check answers it in its headers; no other method may.
        Code::NotFound => Some(Status::invalid_argument(status.message())),
        code => in_contract(code, status.message()),
    };
    replaced.map_or(trailers, |status| in_trailers(&status))
}

fn in_trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    // A status of ours has no header that could be refused.
    let _ = status.add_header(&mut trailers);
    trailers
}

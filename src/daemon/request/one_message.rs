//! Sees that a call has exactly one message, where its method takes one.
//!
//! gRPC's word for any other number is UNIMPLEMENTED ("Status codes and their use in gRPC", request
//! cardinality violation). The framework reads the first message and passes over what follows.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tonic::Status;

/// Compressed flag and length (gRPC over HTTP/2, "Length-Prefixed-Message").
const HEAD: usize = 5;

/// A request's body that fails where a second message begins, or where none came.
pub(super) struct OneMessage<B> {
    body: B,
    message: Message,
}

#[derive(Debug, Default)]
struct Message {
    head: [u8; HEAD],
    have: usize,
    left: usize,
}

impl<B> OneMessage<B> {
    pub(super) fn of(body: B) -> Self {
        Self { body, message: Message::default() }
    }
}

impl<B> Body for OneMessage<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(Status::from_error(error.into())))),
            None if self.message.have == 0 => return Poll::Ready(Some(Err(not_one()))),
            None => return Poll::Ready(None),
        };
        let is_one = frame.data_ref().is_none_or(|bytes| self.message.goes_on_with(bytes));
        Poll::Ready(Some(if is_one { Ok(frame) } else { Err(not_one()) }))
    }

    fn is_end_stream(&self) -> bool {
        self.message.have > 0 && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Message {
    /// Whether these bytes belong to the one message too.
    fn goes_on_with(&mut self, bytes: &[u8]) -> bool {
        let of_head = (HEAD - self.have).min(bytes.len());
        let (head, rest) = bytes.split_at(of_head);
        self.head[self.have..self.have + of_head].copy_from_slice(head);
        self.have += of_head;
        if of_head > 0 && self.have == HEAD {
            let [_, length @ ..] = self.head;
            self.left = u32::from_be_bytes(length) as usize;
        }
        let goes_on = rest.len() <= self.left;
        self.left = self.left.saturating_sub(rest.len());
        goes_on
    }
}

fn not_one() -> Status {
    Status::unimplemented("this method takes exactly one message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, StreamBody};
    use std::convert::Infallible;

    /// Whether the body passes, however it is cut.
    async fn passes(body: &[u8]) -> bool {
        let mut outcomes = Vec::new();
        for size in [1, 3, 5, 6, 1000] {
            let parts = body
                .chunks(size)
                .map(|part| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(part))));
            let parts: Vec<_> = parts.collect();
            let body = OneMessage::of(StreamBody::new(futures::stream::iter(parts)));
            outcomes.push(match body.collect().await {
                Ok(_) => true,
                Err(status) => {
                    assert_eq!(status.code(), tonic::Code::Unimplemented);
                    false
                }
            });
        }
        assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]), "{outcomes:?}");
        outcomes[0]
    }

    #[tokio::test]
    async fn one_message_passes_and_none_or_a_second_one_does_not() {
        assert!(passes(b"\0\0\0\0\x03abc").await);
        assert!(passes(b"\0\0\0\0\0").await, "an empty message is one");
        assert!(passes(b"\0\0\0\0\x09abc").await, "what is cut off is another's to refuse");
        assert!(!passes(b"").await);
        assert!(!passes(b"\0\0\0\0\x03abc\0\0\0\0\x03abc").await);
        assert!(!passes(b"\0\0\0\0\0\0\0\0\0\0").await);
        assert!(!passes(b"\0\0\0\0\x03abc\0").await);
    }
}

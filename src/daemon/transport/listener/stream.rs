//! What is under HTTP/2: notes when a peer begins, and stays until it has left too.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::authority::AnyAuthority;

/// The client's HTTP/2 preface: RFC 9113, section 3.4.
const PREFACE: u8 = 24;
/// How long a peer may take to close after us.
const LINGER: Duration = Duration::from_secs(1);

/// A stream that notes when its peer has sent as much as HTTP/2 begins with.
///
/// After its last byte it reads on until the peer has closed too, for a second at most: a socket
/// that is closed with unread bytes is reset, and a reset overtakes the GOAWAY that says which
/// calls were not looked at.
pub(super) struct Lingering<I> {
    io: I,
    bytes: u8,
    heard: Arc<AtomicBool>,
    /// For a peer that may name a path as authority.
    authority: Option<AnyAuthority>,
    closed: Option<Pin<Box<Sleep>>>,
}

impl<I> Lingering<I> {
    /// Sets `heard` when the peer has begun; what it sends passes through `authority`.
    pub(super) fn new(io: I, heard: Arc<AtomicBool>, authority: Option<AnyAuthority>) -> Self {
        Self { io, bytes: 0, heard, authority, closed: None }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Lingering<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = pin!(&mut self.io).poll_read(context, buffer);
        if self.bytes < PREFACE {
            let new = (buffer.filled().len() - before).min(usize::from(PREFACE));
            self.bytes += new as u8;
            if self.bytes >= PREFACE {
                self.heard.store(true, Ordering::Relaxed);
            }
        }
        if let Some(authority) = &mut self.authority {
            authority.pass(&mut buffer.filled_mut()[before..]);
        }
        outcome
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        pin!(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        pin!(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, closed, .. } = &mut *self;
        let limit = if let Some(limit) = closed {
            limit
        } else {
            ready!(pin!(&mut *io).poll_shutdown(context))?;
            closed.insert(Box::pin(sleep(LINGER)))
        };
        let mut bytes = [0; 1024];
        while limit.as_mut().poll(context).is_pending() {
            let mut buffer = ReadBuf::new(&mut bytes);
            // A peer that fails has left as well.
            let outcome = ready!(pin!(&mut *io).poll_read(context, &mut buffer));
            if outcome.is_err() || buffer.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        pin!(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

//! A stream that is read to its end before an error of writing is reported.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use rustls::AlertDescription;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Reads of 1 KiB in a row after a failed write.
const MOST_READS: usize = 64;

/// The TLS alert that the peer sent, once it was read.
pub(crate) type ReceivedAlert = Arc<OnceLock<AlertDescription>>;

/// In TLS 1.3 a server looks at the client's certificate after the client's handshake has ended: it
/// refuses it by an alert and closes the connection, on which the client is writing already. Where
/// the write fails first, the alert lies in the receive buffer, and it is the reason to report.
pub(crate) struct Drained<S> {
    stream: S,
    alert: ReceivedAlert,
    /// Why writing has failed, while the rest is read.
    failed: Option<io::Error>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Drained<S> {
    pub(crate) fn new(stream: S) -> (Self, ReceivedAlert) {
        let alert = ReceivedAlert::default();
        (Self { stream, alert: Arc::clone(&alert), failed: None }, alert)
    }

    /// Writes by `write`. After an error that means that the peer has closed, what it sent before is
    /// read first; that ends, as a closed connection has an end.
    fn poll_written<T>(
        &mut self,
        context: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.failed.is_none() {
            match ready!(write(Pin::new(&mut self.stream), context)) {
                Err(error) if is_closed(&error) => self.failed = Some(error),
                written => return Poll::Ready(written),
            }
        }
        ready!(self.poll_drained(context));
        Poll::Ready(Err(self.failed.take().expect("set above")))
    }

    fn poll_drained(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut bytes = [0; 1024];
        for _ in 0..MOST_READS {
            let mut buffer = ReadBuf::new(&mut bytes);
            match ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                Ok(()) => break,
                Err(error) => {
                    note(&self.alert, &error);
                    break;
                }
            }
        }
        Poll::Ready(())
    }
}

fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset)
}

fn note(alert: &ReceivedAlert, error: &io::Error) {
    if let Some(received) = received_alert(error) {
        let _ = alert.set(received);
    }
}

/// The alert that an error of a TLS stream stands for.
pub(crate) fn received_alert(error: &io::Error) -> Option<AlertDescription> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Drained<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        Poll::Ready(read.inspect_err(|error| note(&self.alert, error)))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Drained<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_written(context, |stream, context| stream.poll_write(context, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_written(context, AsyncWrite::poll_flush)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_written(context, AsyncWrite::poll_shutdown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    /// Refuses to be written to; what can be read is some bytes, each after a while, and then an
    /// alert.
    struct Refusing {
        left: usize,
        is_late: bool,
    }

    impl Refusing {
        fn after(left: usize) -> Self {
            Self { left, is_late: false }
        }
    }

    impl AsyncRead for Refusing {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.is_late = !self.is_late;
            if self.is_late {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let Some(left) = self.left.checked_sub(1) else {
                let alert = rustls::Error::AlertReceived(AlertDescription::UnknownCA);
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, alert)));
            };
            self.left = left;
            buffer.put_slice(b"bytes");
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Refusing {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn the_alert_behind_a_failed_write_is_read_before_the_error_is_reported() {
        let (mut stream, alert) = Drained::new(Refusing::after(3));
        let error = stream.write_all(b"a request").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(alert.get(), Some(&AlertDescription::UnknownCA));
    }
}

//! Writing to the socket: what many threads send at a time goes out in one write.

use std::mem;
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use prost::Message;
use rustix::io::Errno;
use rustix::net::SendFlags;
use tokio::net::UnixStream;
use tokio::sync::Notify;

use super::frame::Frames;

/// The side of a socket that is written to. A thread that finds no other one writing writes, for itself
/// and for those that come meanwhile.
#[derive(Debug)]
pub(super) struct Outbox<S> {
    socket: S,
    flags: SendFlags,
    state: Mutex<State>,
    /// The socket's buffer is full; see [`Outbox::flush`].
    full: Notify,
}

#[derive(Debug)]
struct State {
    waiting: Frames,
    spare: Option<Frames>,
    /// What a full socket did not take, and from where on.
    rest: Option<(Frames, usize)>,
    is_written: bool,
    is_closed: bool,
}

/// The message was not sent: the other side is gone, or it is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message could not be sent")]
pub(super) struct NotSent;

impl<S: AsFd> Outbox<S> {
    /// One whose senders wait where the socket is full.
    pub(super) fn blocking(socket: S) -> Self {
        Self::new(socket, SendFlags::NOSIGNAL)
    }

    /// One whose senders never wait; what a full socket does not take, [`Outbox::flush`] writes.
    pub(super) fn non_blocking(socket: S) -> Self {
        Self::new(socket, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
    }

    fn new(socket: S, flags: SendFlags) -> Self {
        let state = State {
            waiting: Frames::new(),
            spare: None,
            rest: None,
            is_written: false,
            is_closed: false,
        };
        Self { socket, flags, state: Mutex::new(state), full: Notify::new() }
    }

    /// Sends a message, or leaves it to the thread that is writing.
    pub(super) fn send(&self, message: &impl Message) -> Result<(), NotSent> {
        let mut state = self.state();
        if state.is_closed || !state.waiting.push(message) {
            return Err(NotSent);
        }
        if !state.is_written {
            state.is_written = true;
            self.write_all(state);
        }
        Ok(())
    }

    /// Whether the other side is gone.
    pub(super) fn is_closed(&self) -> bool {
        self.state().is_closed
    }

    fn write_all<'a>(&'a self, mut state: MutexGuard<'a, State>) {
        while !state.waiting.is_empty() {
            let empty = state.spare.take().unwrap_or_else(Frames::new);
            let mut batch = mem::replace(&mut state.waiting, empty);
            drop(state);
            let (written, outcome) = self.write(batch.bytes());
            state = self.state();
            match outcome {
                Ok(()) => {
                    batch.clear();
                    state.spare = Some(batch);
                }
                Err(Errno::WOULDBLOCK) => {
                    state.rest = Some((batch, written));
                    drop(state);
                    self.full.notify_one();
                    return;
                }
                Err(_) => {
                    state.is_closed = true;
                    state.waiting.clear();
                    return;
                }
            }
        }
        state.is_written = false;
    }

    fn write(&self, bytes: &[u8]) -> (usize, Result<(), Errno>) {
        let mut written = 0;
        while written < bytes.len() {
            match rustix::net::send(&self.socket, &bytes[written..], self.flags) {
                Ok(count) => written += count,
                Err(Errno::INTR) => {}
                Err(errno) => return (written, Err(errno)),
            }
        }
        (written, Ok(()))
    }

    fn take_rest(&self) -> Option<(Frames, usize)> {
        self.state().rest.take()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: AsFd + std::ops::Deref<Target = UnixStream>> Outbox<S> {
    /// Writes what a full socket did not take, for as long as it is polled.
    pub(super) async fn flush(&self) {
        loop {
            self.full.notified().await;
            while let Some((frames, written)) = self.take_rest() {
                // An error shows in the write.
                let _ = self.socket.writable().await;
                let written = match self.socket.try_write(&frames.bytes()[written..]) {
                    Ok(count) => written + count,
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => written,
                    Err(_) => {
                        self.state().is_closed = true;
                        return;
                    }
                };
                if written == frames.bytes().len() {
                    self.write_all(self.state());
                } else {
                    self.state().rest = Some((frames, written));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::Inbox;
    use super::super::message::{Request, ToChild};
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream as Std;
    use std::sync::Arc;

    fn received(mut socket: Std, count: usize) -> Vec<u64> {
        let (mut inbox, mut got) = (Inbox::new(), Vec::new());
        while got.len() < count {
            let read = socket.read(inbox.room()).unwrap();
            assert!(read > 0, "the socket ended after {}", got.len());
            inbox.received(read);
            while let Some(ToChild { request }) = inbox.next().unwrap() {
                let Some(Request::Cancel(id)) = request else { panic!("not what was sent") };
                got.push(id);
            }
        }
        got
    }

    #[test]
    fn messages_of_many_threads_all_arrive_whole() {
        let (ours, theirs) = Std::pair().unwrap();
        let outbox = Outbox::blocking(ours);
        let mut got = std::thread::scope(|scope| {
            for thread in 0..4 {
                let outbox = &outbox;
                scope.spawn(move || {
                    for number in 0..5000 {
                        outbox
                            .send(&ToChild::from(Request::Cancel(thread * 5000 + number)))
                            .unwrap();
                    }
                });
            }
            received(theirs, 20_000)
        });
        got.sort_unstable();
        assert_eq!(got, (0..20_000).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn what_a_full_socket_does_not_take_is_written_once_it_has_room_and_in_order() {
        let (ours, theirs) = Std::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let outbox = Arc::new(Outbox::non_blocking(Arc::new(UnixStream::from_std(ours).unwrap())));
        for id in 0..100_000 {
            outbox.send(&ToChild::from(Request::Cancel(id))).unwrap();
        }
        let flushing = tokio::spawn({
            let outbox = Arc::clone(&outbox);
            async move { outbox.flush().await }
        });
        let got = tokio::task::spawn_blocking(move || received(theirs, 100_000)).await.unwrap();
        assert_eq!(got, (0..100_000).collect::<Vec<_>>());
        flushing.abort();
    }

    #[test]
    fn nothing_is_sent_to_a_side_that_is_gone() {
        let (ours, theirs) = Std::pair().unwrap();
        drop(theirs);
        let outbox = Outbox::blocking(ours);
        // The first write finds out.
        let _ = outbox.send(&ToChild::from(Request::Close(1)));
        assert_eq!(outbox.send(&ToChild::from(Request::Close(1))), Err(NotSent));
    }
}

//! A thread for the TLS handshakes of a listener: whatever a storm of them takes, calls over connections
//! that are served wait for none of them.

use std::future::Future;
use std::io;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::HandshakeFailure;
use super::refusal::Refusal;

/// How much nicer it is than the other threads (nice(2)): where cores are scarce, a call comes first.
const NICER: i32 = 5;

/// The thread; it ends when this is dropped, and what goes on in it fails.
#[derive(Debug)]
pub(super) struct HandshakeThread {
    handle: Handle,
    _alive: oneshot::Sender<()>,
}

impl HandshakeThread {
    /// Starts it.
    pub(super) fn start() -> io::Result<Self> {
        // Sockets are watched by the runtime that accepted them, and timers are set there.
        let runtime = Builder::new_current_thread().build()?;
        let handle = runtime.handle().clone();
        let (alive, dropped) = oneshot::channel();
        let serve = move || {
            // Of this thread alone. Where it may not be, calls wait a little longer in a storm.
            let _ = rustix::process::nice(NICER);
            // It ends with the sender.
            let _: Result<(), _> = runtime.block_on(dropped);
        };
        thread::Builder::new().name("handshakes".to_owned()).spawn(serve)?;
        Ok(Self { handle, _alive: alive })
    }

    /// Makes a handshake there; it ends early with the returned future.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        handshake: impl Future<Output = Result<T, Refusal>> + Send + 'static,
    ) -> Result<T, Refusal> {
        let mut running = JoinSet::new();
        running.spawn_on(handshake, &self.handle);
        match running.join_next().await {
            Some(Ok(outcome)) => outcome,
            Some(Err(error)) if error.is_panic() => {
                let detail = "the handshake panicked".to_owned();
                Err(Refusal { reason: HandshakeFailure::Protocol, detail })
            }
            Some(Err(_)) | None => Err(HandshakeFailure::Shutdown.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_handshake_is_made_on_the_thread_and_a_panic_in_it_is_its_own() {
        let handshakes = HandshakeThread::start().unwrap();
        let name_of_its_thread =
            || async { Ok::<_, Refusal>(thread::current().name().unwrap_or_default().to_owned()) };
        let name = handshakes.run(name_of_its_thread()).await;
        assert_eq!(name.unwrap(), "handshakes");
        let panics = handshakes.run::<()>(async { panic!("as any may") }).await;
        assert_eq!(panics.unwrap_err().reason, HandshakeFailure::Protocol);
        assert!(handshakes.run(name_of_its_thread()).await.is_ok());
    }

    #[tokio::test]
    async fn one_that_is_given_up_ends_and_so_do_all_with_the_thread() {
        let handshakes = HandshakeThread::start().unwrap();
        let (held, mut ended) = tokio::sync::mpsc::channel::<()>(1);
        let endless = |held: tokio::sync::mpsc::Sender<()>| async move {
            let _held = held;
            std::future::pending::<Result<(), Refusal>>().await
        };
        let given_up = handshakes.run(endless(held.clone()));
        assert!(futures::poll!(Box::pin(given_up)).is_pending());
        let mut last = Box::pin(handshakes.handle.spawn(endless(held)));
        assert!(futures::poll!(&mut last).is_pending());
        drop(handshakes);
        assert!(last.await.unwrap_err().is_cancelled());
        assert_eq!(ended.recv().await, None, "both were dropped");
    }
}

//! The thread of one sink: it sends what the file has more than the sink, and tries again.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::backlog::Taken;
use super::destination::Destination;
use super::place::Place;
use super::{Sink, Sinks, lock};

/// How long it waits before it tries again.
const RETRY: Duration = Duration::from_millis(250);

/// Starts it.
pub(super) fn start(
    sink: Arc<Sink>,
    sinks: Arc<Sinks>,
    destination: Destination,
    place: Place,
) -> io::Result<JoinHandle<()>> {
    let name = format!("audit {}", sink.name);
    thread::Builder::new().name(name).spawn(move || {
        let mut follower = Follower { sink: &sink, sinks: &sinks, destination, place };
        follower.run();
    })
}

struct Follower<'a> {
    sink: &'a Sink,
    sinks: &'a Sinks,
    destination: Destination,
    place: Place,
}

impl Follower<'_> {
    fn run(&mut self) {
        while let Some(taken) = self.next() {
            let was_connected = self.destination.is_connected();
            let sent = self.destination.send(&taken.lines);
            // A connection may end while nothing is sent: a new one is made before it is a failure.
            let is_stale = was_connected && sent.as_ref().is_err_and(|error| !is_timeout(error));
            let is_closed = self.sent(taken, &sent, is_stale);
            if sent.is_err() && !is_stale {
                if is_closed {
                    break;
                }
                thread::sleep(RETRY);
            }
        }
        let all_arrived = self.destination.finish();
        let mut pending = lock(&self.sink.pending);
        if all_arrived {
            pending.backlog.all_arrived();
        }
        self.place.note(pending.backlog.certain(), true);
    }

    /// What is to be sent next; none once the log is closed and all of it was sent.
    fn next(&mut self) -> Option<Taken> {
        let mut pending = lock(&self.sink.pending);
        loop {
            if let Some(taken) = pending.backlog.next() {
                pending.sending_since.get_or_insert_with(Instant::now);
                return Some(taken);
            }
            pending.sending_since = None;
            if pending.is_closed {
                return None;
            }
            // What was sent becomes certain with time.
            self.place.note(pending.backlog.certain(), false);
            let woken = self.sink.arrived.wait_timeout(pending, Duration::from_secs(1));
            pending = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Notes how a send ended; whether nothing more comes.
    fn sent(&mut self, taken: Taken, sent: &io::Result<()>, is_stale: bool) -> bool {
        let mut pending = lock(&self.sink.pending);
        match sent {
            Ok(()) => {
                pending.backlog.sent(taken);
                if self.destination.answers() {
                    pending.backlog.all_arrived();
                }
                pending.sending_since = None;
                self.place.note(pending.backlog.certain(), false);
            }
            Err(_) => pending.backlog.go_back(),
        }
        let is_closed = pending.is_closed;
        drop(pending);
        if !is_stale {
            self.tell(sent.as_ref().err());
            self.sinks.settle();
        }
        is_closed
    }

    /// Says when it begins and ceases to fail.
    fn tell(&self, error: Option<&io::Error>) {
        let was_failing = self.sink.failing.swap(error.is_some(), Ordering::Relaxed);
        let (sink, required) = (&*self.sink.name, self.sink.is_required);
        match error {
            Some(error) if !was_failing => tracing::error!(
                sink, required, %error,
                "an audit sink does not take records; where it is required, calls are refused beyond its spool"
            ),
            None if was_failing => tracing::info!(sink, "the audit sink takes records again"),
            _ => {}
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

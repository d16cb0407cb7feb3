//! The calls in flight to one process.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use claviger_provider_api::caller_left::caller_has_left;
use claviger_provider_api::queue_time::waited_in_queue;
use claviger_provider_api::{self as api, Cause, Error, ErrorKind, PublicKey};
use tokio::net::UnixStream;
use tokio::sync::{Notify, oneshot};
use zeroize::Zeroizing;

use super::message::{Answer, Asked, Call, Check, Make, Open, Opened, Outcome, Request, ToChild};
use super::now;
use super::outbox::{NotSent, Outbox};
use crate::fault::Fault;

/// One process's socket and who waits for what.
#[derive(Debug)]
pub(super) struct Link {
    /// Which process of the provider's it is, from 1.
    pub(super) number: u64,
    pub(super) socket: Arc<UnixStream>,
    pub(super) outbox: Outbox<Arc<UnixStream>>,
    /// Calls in flight that a caller may have.
    most_per_caller: usize,
    calls: Mutex<Calls>,
    next_id: AtomicU64,
    /// When something was answered last, in milliseconds since `started`.
    answered_at: AtomicU64,
    started: Instant,
    /// How often the process has repaired something, as far as it told.
    repairs: AtomicU64,
    /// Whether anything went right in the process.
    has_served: AtomicBool,
    /// Whether a key was asked for in it.
    was_tried: AtomicBool,
    /// Told when the process is to be replaced.
    pub(super) given_up: Notify,
}

#[derive(Debug, Default)]
struct Calls {
    waiting: HashMap<u64, Waiting>,
    per_caller: HashMap<u32, usize>,
    /// Why nothing is answered any more.
    ended: Option<String>,
}

#[derive(Debug)]
struct Waiting {
    /// None once the call that asked is gone.
    reply: Option<oneshot::Sender<Answered>>,
    since: Instant,
    deadline: Instant,
    caller: Option<u32>,
    opens: bool,
}

/// What a call gave, and how long it was in the token's queue.
type Answered = (Result<Reply, Fault>, Duration);

/// What a call gave.
#[derive(Debug)]
pub(super) enum Reply {
    /// Key material, a signature, or the public half of a key that was made.
    Bytes(Zeroizing<Vec<u8>>),
    Opened(Opened),
    /// The canary came back right.
    Well,
}

/// How long nothing was answered.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Silence {
    /// While calls or checks wait.
    pub(super) calls: Duration,
    /// While a key is being opened.
    pub(super) opening: Duration,
    /// How long ago the deadline of a call passed that was not answered.
    pub(super) overdue: Duration,
}

/// A caller who waits; gone when dropped.
struct Ticket<'a> {
    link: &'a Link,
    id: u64,
    answer: oneshot::Receiver<Answered>,
}

impl Link {
    /// A link to process `number` on a socket.
    pub(super) fn new(number: u64, socket: UnixStream, most_per_caller: usize) -> Self {
        let socket = Arc::new(socket);
        Self {
            number,
            outbox: Outbox::non_blocking(Arc::clone(&socket)),
            socket,
            most_per_caller,
            calls: Mutex::default(),
            next_id: AtomicU64::new(0),
            answered_at: AtomicU64::new(0),
            started: now(),
            repairs: AtomicU64::new(0),
            has_served: AtomicBool::new(false),
            was_tried: AtomicBool::new(false),
            given_up: Notify::new(),
        }
    }

    /// Asks for an operation with a key. A caller's calls are counted; what was started is waited for
    /// until `call.answer_by()`.
    pub(super) async fn call(
        &self,
        key: u32,
        call: api::Call,
        asked: Asked,
    ) -> Result<Reply, Error> {
        let caller = call.caller.0;
        let ticket = self.ticket(Some(caller), call.deadline, false)?;
        self.ask(ticket.id, key, caller, call.deadline, asked)?;
        ticket.wait(call.answer_by()).await.map_err(|fault| fault.error)
    }

    /// Asks for a canary of a key, and for repairs if it fails.
    pub(super) async fn check(&self, key: u32, deadline: Instant) -> Result<(), Fault> {
        let ticket = self.ticket(None, deadline, false).map_err(Fault::of_process)?;
        let asked = Asked::Check(Check {});
        self.ask(ticket.id, key, 0, deadline, asked).map_err(Fault::of_process)?;
        ticket.wait(deadline).await.map(drop)
    }

    fn ask(
        &self,
        id: u64,
        key: u32,
        caller: u32,
        deadline: Instant,
        asked: Asked,
    ) -> Result<(), Error> {
        let remaining = deadline.saturating_duration_since(now()).as_micros() as u64;
        self.send(Request::Call(Call { id, key, caller, remaining, asked: Some(asked) }))
    }

    /// Asks for a key to be opened; `open.id` is set here.
    pub(super) async fn open(&self, open: Open, deadline: Instant) -> Result<Opened, Fault> {
        let ticket = self.ticket(None, deadline, true).map_err(Fault::of_process)?;
        let request = Request::Open(Open { id: ticket.id, ..open });
        self.send(request).map_err(Fault::of_process)?;
        match ticket.wait(deadline).await? {
            Reply::Opened(opened) => Ok(opened),
            Reply::Bytes(_) | Reply::Well => Err(no_sense()),
        }
    }

    /// Asks for a key pair to be made; `make.id` is set here. Gives its public half.
    pub(super) async fn make(&self, make: Make, deadline: Instant) -> Result<PublicKey, Fault> {
        let ticket = self.ticket(None, deadline, true).map_err(Fault::of_process)?;
        let request = Request::Make(Make { id: ticket.id, ..make });
        self.send(request).map_err(Fault::of_process)?;
        match ticket.wait(deadline).await? {
            Reply::Bytes(spki) => PublicKey::from_spki(&spki).map_err(|_| no_sense()),
            Reply::Opened(_) | Reply::Well => Err(no_sense()),
        }
    }

    /// Sends what needs no answer.
    pub(super) fn send(&self, request: Request) -> Result<(), Error> {
        let mut message = ToChild::from(request);
        let sent = self.outbox.send(&message);
        message.wipe();
        sent.map_err(|NotSent| match &self.calls().ended {
            Some(reason) => unavailable(reason.clone()),
            None => unavailable("the module's process is gone"),
        })
    }

    /// Passes an answer on. A key that was opened for a caller who is gone is closed again.
    pub(super) fn answered(&self, answer: Answer) {
        let Answer { id, repairs, outcome, queued } = answer;
        self.answered_at.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
        self.repairs.fetch_max(repairs, Ordering::AcqRel);
        let outcome = match outcome {
            Some(Outcome::Bytes(bytes)) => Ok(Reply::Bytes(Zeroizing::new(bytes))),
            Some(Outcome::Failure(failure)) => Err(failure.into()),
            Some(Outcome::Opened(opened)) => Ok(Reply::Opened(opened)),
            Some(Outcome::Well(_)) => Ok(Reply::Well),
            None => Err(no_sense()),
        };
        if outcome.is_ok() && !self.has_served() {
            self.has_served.store(true, Ordering::Relaxed);
        }
        let reply = self.calls().take(id).and_then(|waiting| waiting.reply);
        let unread = match reply {
            Some(reply) => reply.send((outcome, Duration::from_micros(queued))).err(),
            None => Some((outcome, Duration::ZERO)),
        };
        if let Some((Ok(Reply::Opened(Opened { key, .. })), _)) = unread {
            // A process that is gone has closed everything.
            let _ = self.send(Request::Close(key));
        }
    }

    /// Fails everything that waits, and all that comes. Of an operation that was asked for it is not
    /// known what would have come of it.
    pub(super) fn end(&self, reason: &str) {
        let mut calls = self.calls();
        calls.ended = Some(reason.to_owned());
        let waiting = std::mem::take(&mut calls.waiting);
        calls.per_caller.clear();
        drop(calls);
        for Waiting { reply, caller, .. } in waiting.into_values() {
            let cause = caller.map(|_| Cause::NoAnswer);
            let error = unavailable(reason.to_owned()).with_cause(cause);
            reply.map(|reply| reply.send((Err(Fault::of_process(error)), Duration::ZERO)));
        }
    }

    /// Has the process killed, and another one started.
    pub(super) fn give_up(&self) {
        self.given_up.notify_one();
    }

    /// Whether anything went right in the process.
    pub(super) fn has_served(&self) -> bool {
        self.has_served.load(Ordering::Relaxed)
    }

    /// Notes that a key is asked for in the process; true the first time.
    pub(super) fn note_attempt(&self) -> bool {
        !self.was_tried.swap(true, Ordering::Relaxed)
    }

    /// Lets the process know that nothing more will be asked: it logs out and ends.
    pub(super) fn leave(&self) {
        // It fails only where the process is gone.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write);
    }

    /// Whether the process is gone, or was given up.
    pub(super) fn is_gone(&self) -> bool {
        self.outbox.is_closed() || self.calls().ended.is_some()
    }

    /// How often the process has repaired something.
    pub(super) fn repairs(&self) -> u64 {
        self.repairs.load(Ordering::Acquire)
    }

    /// How long it has been silent.
    pub(super) fn silence(&self) -> Silence {
        let looked = now();
        let answered =
            self.started + Duration::from_millis(self.answered_at.load(Ordering::Relaxed));
        let mut silence = Silence::default();
        for waiting in self.calls().waiting.values() {
            let silent = looked.saturating_duration_since(waiting.since.max(answered));
            let of_its_kind = if waiting.opens { &mut silence.opening } else { &mut silence.calls };
            *of_its_kind = silent.max(*of_its_kind);
            if !waiting.opens {
                let overdue = looked.saturating_duration_since(waiting.deadline);
                silence.overdue = overdue.max(silence.overdue);
            }
        }
        silence
    }

    fn ticket(
        &self,
        caller: Option<u32>,
        deadline: Instant,
        opens: bool,
    ) -> Result<Ticket<'_>, Error> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        let mut calls = self.calls();
        if let Some(reason) = &calls.ended {
            return Err(unavailable(reason.clone()));
        }
        if let Some(caller) = caller {
            let count = calls.per_caller.entry(caller).or_default();
            if *count >= self.most_per_caller {
                let kind = ErrorKind::Throttled { retry_after: None };
                return Err(Error::new(kind, "this caller's queue for the backend is full"));
            }
            *count += 1;
        }
        let since = now();
        let waiting = Waiting { reply: Some(reply), since, deadline, caller, opens };
        calls.waiting.insert(id, waiting);
        drop(calls);
        Ok(Ticket { link: self, id, answer })
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Calls {
    fn take(&mut self, id: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&id)?;
        if let Some(caller) = waiting.caller
            && let Some(count) = self.per_caller.get_mut(&caller)
        {
            *count -= 1;
            if *count == 0 {
                self.per_caller.remove(&caller);
            }
        }
        Some(waiting)
    }
}

impl Ticket<'_> {
    async fn wait(mut self, deadline: Instant) -> Result<Reply, Fault> {
        match tokio::time::timeout_at(deadline.into(), self.answer()).await {
            Ok(Ok((outcome, queued))) => {
                waited_in_queue(queued);
                outcome
            }
            Ok(Err(_)) => Err(Fault::no_process("the module's process is gone".to_owned())),
            // Whether it hangs is not judged by one call.
            Err(_) => {
                let error = Error::new(ErrorKind::DeadlineExceeded, "the deadline passed");
                Err(Fault::of_key(error))
            }
        }
    }

    /// The answer. Lets the process know when the caller leaves.
    fn answer(&mut self) -> impl Future<Output = Result<Answered, oneshot::error::RecvError>> {
        let mut is_told = false;
        poll_fn(move |context| {
            if !is_told && caller_has_left() {
                is_told = true;
                // A process that is gone has nothing to make anew.
                let _ = self.link.send(Request::CallerLeft(self.id));
            }
            Pin::new(&mut self.answer).poll(context)
        })
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut calls = self.link.calls();
        // Gone once it was answered. Else it counts until it is: the process may be at it.
        let Some(waiting) = calls.waiting.get_mut(&self.id) else { return };
        waiting.reply = None;
        drop(calls);
        let _ = self.link.send(Request::Cancel(self.id));
    }
}

fn no_sense() -> Fault {
    let text = "the module's process gave an answer that makes no sense";
    Fault::of_process(Error::new(ErrorKind::Internal, text))
}

fn unavailable(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::Unavailable, source)
}

#[cfg(test)]
mod tests;

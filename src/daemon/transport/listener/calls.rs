//! The calls of one connection: a call is in flight until its answer has left, or its time is over.
//!
//! The HTTP/2 library takes an answer over before the peer has read any of it. So each part of an
//! answer carries its [`Call`] along, and the task of a stream ends, which resets the stream, when
//! an answer waits for the peer longer than it may. What the library has taken over by then is
//! looked at every now and then: a peer that leaves such an answer unread loses its connection.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Buf;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep_until};

use super::stats::ConnectionStats;

/// How long a part of an answer without a time of its own may wait for the peer.
const STALL: Duration = Duration::from_secs(30);

/// One call, from its first header until the last part of its answer has left. Each request
/// carries an `Arc` of it as an extension.
pub struct Call {
    calls: Arc<Calls>,
    /// The answer has begun.
    answered: AtomicBool,
    /// A part of the answer waits for the peer to make room.
    waiting: AtomicBool,
    kept: OnceLock<Kept>,
}

struct Kept {
    until: Option<Instant>,
    _held: Box<dyn Any + Send + Sync>,
}

impl Call {
    /// Keeps `held` as long as the call is in flight; the answer has to have left by `until`, else
    /// its stream is reset. Without `until` an answer may go on for ever, as long as the peer reads
    /// it. Only the first use counts.
    pub fn keep(&self, until: Option<std::time::Instant>, held: impl Any + Send + Sync) {
        let until = until.map(Instant::from_std);
        // A second one would be a bug that costs nothing: what it holds is let go at once.
        let _ = self.kept.set(Kept { until, _held: Box::new(held) });
    }

    fn until(&self) -> Option<Instant> {
        self.kept.get().and_then(|kept| kept.until)
    }

    fn answer(&self) {
        if !self.answered.swap(true, Ordering::AcqRel) {
            self.calls.answered();
        }
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("answered", &self.answered).finish_non_exhaustive()
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.answer();
        self.calls.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The calls of one connection, counted.
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// Calls in flight, those with an unread answer included.
    open: AtomicU32,
    /// Calls without an answer yet.
    unanswered: AtomicU32,
    /// Told when the last call without an answer got one.
    idle: Notify,
    /// Answers that the HTTP/2 library has taken over, and when they must have left.
    unread: Mutex<VecDeque<(Instant, Weak<Call>)>>,
    /// The call that the next task is for.
    begun: Mutex<Option<Arc<Call>>>,
}

impl Calls {
    /// A call begins. Its task is the next one that is spawned.
    pub(super) fn begin(self: &Arc<Self>) -> Arc<Call> {
        self.open.fetch_add(1, Ordering::AcqRel);
        self.unanswered.fetch_add(1, Ordering::AcqRel);
        let call = Arc::new(Call {
            calls: Arc::clone(self),
            answered: AtomicBool::new(false),
            waiting: AtomicBool::new(false),
            kept: OnceLock::new(),
        });
        *lock(&self.begun) = Some(Arc::clone(&call));
        call
    }

    /// Whether no call is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.open.load(Ordering::Acquire) == 0
    }

    /// Whether every call has its answer, be it read or not.
    pub(super) fn all_answered(&self) -> bool {
        self.unanswered.load(Ordering::Acquire) == 0
    }

    /// Waits until the last call without an answer gets one.
    pub(super) async fn last_answered(&self) {
        self.idle.notified().await;
    }

    /// Whether the peer has left an answer unread for longer than it may.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        lock(&self.unread).iter().any(|(until, call)| *until < now && call.strong_count() > 0)
    }

    fn answered(&self) {
        if self.unanswered.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.idle.notify_one();
        }
    }

    /// Remembers an answer of which a part may not have left yet.
    fn watch(&self, call: &Arc<Call>) {
        let Some(until) = call.until().filter(|_| Arc::strong_count(call) > 1) else { return };
        let mut unread = lock(&self.unread);
        while unread.front().is_some_and(|(_, call)| call.strong_count() == 0) {
            unread.pop_front();
        }
        if unread.len() > 2 * self.open.load(Ordering::Relaxed) as usize + 64 {
            unread.retain(|(_, call)| call.strong_count() > 0);
        }
        unread.push_back((until, Arc::downgrade(call)));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Spawns the tasks of one connection's streams.
#[derive(Clone, Debug)]
pub(super) struct StreamTasks {
    pub(super) calls: Arc<Calls>,
    pub(super) stats: Arc<ConnectionStats>,
}

impl<F> hyper::rt::Executor<F> for StreamTasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        // hyper calls the service, then gives what came of it to this executor, in one go.
        let begun = lock(&self.calls.begun).take();
        match begun {
            Some(call) => {
                let stats = Arc::clone(&self.stats);
                tokio::spawn(StreamTask { stream: Some(stream), call, stats, limit: None });
            }
            None => drop(tokio::spawn(stream)),
        }
    }
}

pin_project! {
    /// A stream's task: ends when its answer waits too long for the peer.
    struct StreamTask<F> {
        #[pin]
        stream: Option<F>,
        call: Arc<Call>,
        stats: Arc<ConnectionStats>,
        limit: Option<Pin<Box<Sleep>>>,
    }
}

impl<F: Future<Output = ()>> Future for StreamTask<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        let Some(stream) = this.stream.as_mut().as_pin_mut() else { return Poll::Ready(()) };
        if stream.poll(context).is_ready() {
            // From here on only parts that have not left hold the call.
            this.stream.set(None);
            this.call.calls.watch(this.call);
            return Poll::Ready(());
        }
        if !this.call.answered.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        let until = match this.call.until() {
            Some(until) => until,
            None if this.call.waiting.load(Ordering::Acquire) => Instant::now() + STALL,
            None => {
                *this.limit = None;
                return Poll::Pending;
            }
        };
        let limit = this.limit.get_or_insert_with(|| Box::pin(sleep_until(until)));
        ready!(limit.as_mut().poll(context));
        // The stream is dropped unfinished, which resets it (RFC 9113, section 8.1).
        this.stats.count_unread();
        Poll::Ready(())
    }
}

pin_project! {
    /// The service's future, whose answer keeps its call in flight.
    pub(super) struct Answering<F> {
        #[pin]
        answer: F,
        call: Arc<Call>,
    }
}

impl<F> Answering<F> {
    pub(super) fn new(answer: F, call: Arc<Call>) -> Self {
        Self { answer, call }
    }
}

impl<F, B, E> Future for Answering<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<AnswerBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = ready!(this.answer.poll(context));
        this.call.answer();
        let call = Arc::clone(this.call);
        Poll::Ready(answer.map(|answer| answer.map(|body| AnswerBody { body, call })))
    }
}

pin_project! {
    /// An answer's body, whose parts keep the call in flight.
    pub(super) struct AnswerBody<B> {
        #[pin]
        body: B,
        call: Arc<Call>,
    }
}

impl<B: Body> Body for AnswerBody<B> {
    type Data = Part<B::Data>;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.project();
        let call = this.call;
        // Asked for more: what was given before is taken over.
        call.waiting.store(false, Ordering::Release);
        let frame = ready!(this.body.poll_frame(context));
        Poll::Ready(frame.map(|frame| {
            frame.map(|frame| {
                call.waiting.store(frame.is_data(), Ordering::Release);
                frame.map_data(|data| Part { data, _call: Arc::clone(call) })
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

/// A part of an answer, dropped when it has left or its stream was reset.
pub(super) struct Part<D> {
    data: D,
    _call: Arc<Call>,
}

impl<D: Buf> Buf for Part<D> {
    fn remaining(&self) -> usize {
        self.data.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.data.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.data.advance(count);
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.data.chunks_vectored(slices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_in_flight_until_the_last_part_of_its_answer_is_dropped() {
        let calls = Arc::<Calls>::default();
        let held = Arc::new(());
        let call = calls.begin();
        drop(lock(&calls.begun).take());
        call.keep(None, Arc::clone(&held));
        assert!(!calls.is_idle() && !calls.all_answered());
        call.answer();
        assert!(!calls.is_idle() && calls.all_answered());
        let part = Part { data: &b"answer"[..], _call: call };
        assert_eq!(Arc::strong_count(&held), 2);
        drop(part);
        assert!(calls.is_idle());
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[tokio::test]
    async fn an_answer_that_is_not_read_in_time_is_overdue_and_one_that_was_read_is_forgotten() {
        let calls = Arc::<Calls>::default();
        let now = Instant::now();
        let part = |until: Instant| {
            let call = calls.begin();
            drop(lock(&calls.begun).take());
            call.keep(Some(until.into_std()), ());
            let part = Part { data: &b"answer"[..], _call: Arc::clone(&call) };
            calls.watch(&call);
            part
        };
        let second = Duration::from_secs(1);
        let unread = part(now + second);
        assert!(!calls.is_overdue(now) && calls.is_overdue(now + 2 * second));
        for _ in 0..1000 {
            drop(part(now + second));
        }
        assert!(lock(&calls.unread).len() < 100);
        drop(unread);
        assert!(!calls.is_overdue(now + 2 * second));
        drop(part(now));
        assert_eq!(lock(&calls.unread).len(), 1);
    }

    #[tokio::test]
    async fn the_last_answer_is_told_once() {
        let calls = Arc::<Calls>::default();
        let (first, second) = (calls.begin(), calls.begin());
        drop(lock(&calls.begun).take());
        drop(first);
        assert!(!calls.all_answered());
        second.answer();
        calls.last_answered().await;
        assert!(calls.all_answered());
    }
}

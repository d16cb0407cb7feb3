//! An operation that has reached a key runs to its end, though its caller leaves: its verdict is
//! counted, spent and recorded, so that leaving early buys nothing.
//!
//! While its caller waits, the operation is polled in the caller's own task; it becomes a task only
//! when the caller leaves. What that costs a call is one allocation for the operation and one for
//! [`Progress`].

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use claviger_provider_api::caller_left::without_caller;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tonic::Code;

/// How far an operation is, and whether its caller has left.
#[derive(Debug, Default)]
pub(super) struct Progress {
    has_reached_a_key: AtomicBool,
    left: AtomicU8,
}

/// Why a caller did not wait for the end of its operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Its deadline passed: that was its answer.
    DeadlineExceeded = 1,
    /// It went away.
    CallerGone = 2,
}

impl Left {
    /// What it was told, or would have been.
    pub(super) fn outcome(self) -> (Code, &'static str) {
        match self {
            Self::DeadlineExceeded => (Code::DeadlineExceeded, "deadline_exceeded"),
            Self::CallerGone => (Code::Cancelled, "caller_gone"),
        }
    }

    /// Of a caller that leaves now.
    pub(super) fn at(deadline: Instant) -> Self {
        if Instant::now() >= deadline { Self::DeadlineExceeded } else { Self::CallerGone }
    }
}

impl Progress {
    /// From here on the operation runs to its end.
    pub(super) fn reaches_a_key(&self) {
        self.has_reached_a_key.store(true, Ordering::Relaxed);
    }

    /// Whether, and why, the caller has left.
    pub(super) fn left(&self) -> Option<Left> {
        match self.left.load(Ordering::Relaxed) {
            0 => None,
            1 => Some(Left::DeadlineExceeded),
            _ => Some(Left::CallerGone),
        }
    }
}

/// The operations whose callers have left, until they end.
#[derive(Debug, Default)]
pub(super) struct Abandoned(Mutex<JoinSet<()>>);

impl Abandoned {
    /// Brings `work` to its end, even if the result is dropped: at once where it has not reached a key.
    pub(super) fn run_on<F>(
        self: &Arc<Self>,
        progress: Arc<Progress>,
        deadline: Instant,
        work: F,
    ) -> RunsOn<F>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        RunsOn { work: Some(Box::pin(work)), progress, deadline, abandoned: Arc::clone(self) }
    }

    /// Waits until all have ended, at most for `patience`. Those that go on are given up, with
    /// records of how far they came.
    pub(super) async fn end(&self, patience: Duration) {
        let mut operations = std::mem::take(&mut *self.lock());
        let ended = async { while operations.join_next().await.is_some() {} };
        if tokio::time::timeout(patience, ended).await.is_err() {
            operations.shutdown().await;
        }
    }

    fn adopt(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut operations = self.lock();
        while operations.try_join_next().is_some() {}
        operations.spawn(work);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, JoinSet<()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An operation in its caller's task; dropped, it goes on without the caller.
pub(super) struct RunsOn<F: Future<Output: Send> + Send + 'static> {
    work: Option<Pin<Box<F>>>,
    progress: Arc<Progress>,
    deadline: Instant,
    abandoned: Arc<Abandoned>,
}

impl<F: Future<Output: Send> + Send + 'static> Future for RunsOn<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let work = self.work.as_mut().expect("not polled after its end");
        let polled = work.as_mut().poll(context);
        if polled.is_ready() {
            self.work = None;
        }
        polled
    }
}

impl<F: Future<Output: Send> + Send + 'static> Drop for RunsOn<F> {
    fn drop(&mut self) {
        let Some(work) = self.work.take() else { return };
        let has_begun = self.progress.has_reached_a_key.load(Ordering::Relaxed);
        if !has_begun || std::thread::panicking() || Handle::try_current().is_err() {
            return;
        }
        self.progress.left.store(Left::at(self.deadline) as u8, Ordering::Relaxed);
        // What it gives, key material too, is dropped, which zeroes it.
        self.abandoned.adopt(without_caller(async move { drop(work.await) }));
    }
}

#[cfg(test)]
mod tests {
    use claviger_provider_api::caller_left::caller_has_left;
    use tokio::sync::oneshot;

    use super::*;

    fn in_an_hour() -> Instant {
        Instant::now() + Duration::from_hours(1)
    }

    /// An operation that waits for the sender, and tells the receiver its end.
    fn operation(
        progress: &Arc<Progress>,
        reaches_a_key: bool,
    ) -> (oneshot::Sender<()>, oneshot::Receiver<()>, impl Future<Output = ()> + Send + 'static)
    {
        let (go_on, waits) = oneshot::channel();
        let (ends, ended) = oneshot::channel();
        let progress = Arc::clone(progress);
        let work = async move {
            if reaches_a_key {
                progress.reaches_a_key();
            }
            assert!(!caller_has_left());
            let _ = waits.await;
            assert!(caller_has_left(), "keys are told");
            let _ = ends.send(());
        };
        (go_on, ended, work)
    }

    #[tokio::test]
    async fn what_has_reached_a_key_runs_to_its_end_and_knows_that_its_caller_left() {
        let (abandoned, progress) = (Arc::<Abandoned>::default(), Arc::<Progress>::default());
        let (go_on, ended, work) = operation(&progress, true);
        let mut running = Box::pin(abandoned.run_on(Arc::clone(&progress), in_an_hour(), work));
        assert!(futures::poll!(&mut running).is_pending());
        assert_eq!(progress.left(), None);
        drop(running);
        assert_eq!(progress.left(), Some(Left::CallerGone));
        go_on.send(()).unwrap();
        ended.await.unwrap();
    }

    #[tokio::test]
    async fn what_has_not_reached_a_key_ends_with_its_caller() {
        let (abandoned, progress) = (Arc::<Abandoned>::default(), Arc::<Progress>::default());
        let (go_on, ended, work) = operation(&progress, false);
        let mut running = Box::pin(abandoned.run_on(progress, in_an_hour(), work));
        assert!(futures::poll!(&mut running).is_pending());
        drop(running);
        assert!(go_on.send(()).is_err());
        assert!(ended.await.is_err());
    }

    #[tokio::test]
    async fn a_stop_waits_for_them_and_not_for_ever() {
        let (abandoned, progress) = (Arc::<Abandoned>::default(), Arc::<Progress>::default());
        let (_go_on, ended, work) = operation(&progress, true);
        let mut running = Box::pin(abandoned.run_on(Arc::clone(&progress), Instant::now(), work));
        assert!(futures::poll!(&mut running).is_pending());
        drop(running);
        assert_eq!(progress.left(), Some(Left::DeadlineExceeded));
        abandoned.end(Duration::from_millis(20)).await;
        assert!(ended.await.is_err(), "given up");
    }
}

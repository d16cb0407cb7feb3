//! Dedicated threads for private-key work, fed from one bounded queue per caller.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use claviger_provider_api::queue::FairQueue;
use claviger_provider_api::{Call, Error, ErrorKind};
use tokio::sync::oneshot;

/// How many jobs of one caller may wait: two thirds of a second of RSA-2048 on one core.
const CAPACITY_PER_CALLER: usize = 1024;

type Job = Box<dyn FnOnce() + Send>;

/// The threads. They end once this was dropped and the jobs that wait were handed out.
pub(crate) struct Workers {
    queue: Arc<FairQueue<Job>>,
    threads: usize,
}

impl Workers {
    pub(crate) fn start(threads: usize) -> Result<Self, Error> {
        // Made first: where a thread does not start, dropping it ends those that did.
        let workers = Self { queue: Arc::new(FairQueue::new(CAPACITY_PER_CALLER)), threads };
        for n in 0..threads {
            let queue = workers.queue.clone();
            let work = move || {
                while let Some(job) = queue.pop() {
                    job();
                }
            };
            let name = format!("claviger-rsa-{n}");
            thread::Builder::new().name(name).spawn(work).map_err(|error| no_thread(&error))?;
        }
        Ok(workers)
    }

    /// Runs `work` on one of the threads in `call`'s turn. It is not started for a caller who is
    /// gone or whose deadline passed ([`ErrorKind::DeadlineExceeded`]); if it panics, that is
    /// [`ErrorKind::Internal`] and the thread goes on.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        call: Call,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let job = move || {
            if reply.is_closed() {
                return;
            }
            let outcome = if Instant::now() >= call.deadline {
                Err(Error::new(ErrorKind::DeadlineExceeded, "the deadline passed in the queue"))
            } else {
                caught(work)
            };
            // A caller who left meanwhile drops the answer, which zeroes itself.
            let _ = reply.send(outcome);
        };
        self.queue.push(call.caller, Box::new(job))?;
        answer.await.unwrap_or_else(|_| Err(no_answer()))
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Workers({} threads, {} jobs wait)", self.threads, self.queue.len())
    }
}

/// Runs rare and slow work, such as reading a key file, on a thread that ends with it.
pub(crate) async fn on_own_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (reply, answer) = oneshot::channel();
    let work = move || {
        let _ = reply.send(caught(work));
    };
    thread::Builder::new().name(name.to_owned()).spawn(work).map_err(|error| no_thread(&error))?;
    answer.await.unwrap_or_else(|_| Err(no_answer()))
}

fn caught<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "private-key work panicked")))
}

fn no_answer() -> Error {
    Error::new(ErrorKind::Internal, "a worker thread ended without an answer")
}

fn no_thread(error: &std::io::Error) -> Error {
    let error = format!("cannot start a thread ({error}); look at the limits on processes");
    Error::new(ErrorKind::Unavailable, error)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use claviger_provider_api::CallerSlot;

    use super::*;

    fn call(caller: u32) -> Call {
        Call { caller: CallerSlot(caller), deadline: Instant::now() + Duration::from_mins(1) }
    }

    /// One thread that is held up until the sender is used or dropped.
    async fn held_up() -> (Arc<Workers>, mpsc::Sender<()>) {
        let workers = Arc::new(Workers::start(1).unwrap());
        let (release, wait) = mpsc::channel();
        let (started, has_started) = oneshot::channel();
        let holding = workers.clone();
        tokio::spawn(async move {
            let work = move || {
                let _ = started.send(());
                let _ = wait.recv();
                Ok(())
            };
            holding.run(call(9), work).await
        });
        has_started.await.unwrap();
        (workers, release)
    }

    #[tokio::test]
    async fn a_panic_is_an_internal_error_and_the_thread_goes_on() {
        let workers = Workers::start(1).unwrap();
        let outcome = workers.run::<()>(call(1), || panic!("on purpose")).await;
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Internal);
        assert_eq!(workers.run(call(1), || Ok(7)).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn work_is_not_started_after_its_deadline() {
        let workers = Workers::start(1).unwrap();
        let late = Call { deadline: Instant::now(), ..call(1) };
        let outcome = workers.run::<()>(late, || panic!("was started")).await;
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    }

    #[tokio::test]
    async fn work_of_a_caller_who_left_is_not_started() {
        let (workers, release) = held_up().await;
        let ran = Arc::new(AtomicBool::new(false));
        let mark = ran.clone();
        let work = move || {
            mark.store(true, Ordering::SeqCst);
            Ok(())
        };
        let waited = tokio::time::timeout(Duration::from_millis(20), workers.run(call(1), work));
        assert!(waited.await.is_err(), "the thread is held up");
        drop(release);
        workers.run(call(1), || Ok(())).await.unwrap();
        assert!(!ran.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn a_caller_with_too_much_waiting_is_refused_and_another_is_not() {
        let (workers, release) = held_up().await;
        let mut waiting = Vec::new();
        for _ in 0..CAPACITY_PER_CALLER {
            let workers = workers.clone();
            waiting.push(tokio::spawn(async move { workers.run(call(1), || Ok(())).await }));
        }
        while workers.queue.len() < CAPACITY_PER_CALLER {
            tokio::task::yield_now().await;
        }
        let refused = workers.run(call(1), || Ok(())).await.unwrap_err().kind();
        assert!(matches!(refused, ErrorKind::Throttled { .. }), "{refused:?}");
        drop(release);
        workers.run(call(2), || Ok(())).await.unwrap();
        for task in waiting {
            task.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn threads_end_when_the_workers_are_dropped() {
        let workers = Workers::start(3).unwrap();
        workers.run(call(1), || Ok(())).await.unwrap();
        let queue = Arc::downgrade(&workers.queue);
        drop(workers);
        let until = Instant::now() + Duration::from_secs(10);
        while queue.upgrade().is_some() {
            assert!(Instant::now() < until, "a thread still holds the queue");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

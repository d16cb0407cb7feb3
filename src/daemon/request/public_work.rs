//! RSA with public keys, on threads of its own: wrapping, verifying and parsing keys that callers
//! bring take from 20 microseconds to several milliseconds each, which would hold up every socket.

use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use claviger_provider_api::Call;
use claviger_provider_api::queue::FairQueue;
use tokio::sync::oneshot;

use crate::daemon::status::Failure;

/// Jobs of one caller that wait at a time; more are refused.
const MOST_OF_ONE: usize = 256;

/// Threads for work with public keys. Callers have their turns, one job each.
#[derive(Debug)]
pub struct PublicWork {
    queue: Arc<FairQueue<Job>>,
}

struct Job {
    deadline: Instant,
    run: Box<dyn FnOnce() + Send>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

impl PublicWork {
    /// Starts the threads: half as many as there are cores, and at least one.
    pub fn start() -> io::Result<Self> {
        let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let queue = Arc::new(FairQueue::new(MOST_OF_ONE));
        let work = Self { queue: Arc::clone(&queue) };
        for _ in 0..(cores / 2).max(1) {
            let queue = Arc::clone(&queue);
            thread::Builder::new().name("public-keys".to_owned()).spawn(move || serve(&queue))?;
        }
        Ok(work)
    }

    /// Does `work` in its caller's turn; RESOURCE_EXHAUSTED where too much of the caller waits,
    /// DEADLINE_EXCEEDED where its turn does not come in time.
    pub fn run<T, W>(
        &self,
        call: Call,
        work: W,
    ) -> impl Future<Output = Result<T, Failure>> + Send + use<T, W>
    where
        T: Send + 'static,
        W: FnOnce() -> T + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let run = move || {
            if !reply.is_closed() {
                let _ = reply.send(catch_unwind(AssertUnwindSafe(work)));
            }
        };
        let job = Job { deadline: call.deadline, run: Box::new(run) };
        let pushed = self.queue.push(call.caller, job);
        async move {
            pushed.map_err(|error| Failure::of(error.kind()))?;
            match answer.await {
                Ok(Ok(result)) => Ok(result),
                Ok(Err(_)) => Err(Failure::Internal),
                Err(_) => Err(Failure::DeadlineExceeded),
            }
        }
    }
}

impl Drop for PublicWork {
    fn drop(&mut self) {
        self.queue.close();
    }
}

fn serve(queue: &FairQueue<Job>) {
    while let Some(Job { deadline, run }) = queue.pop() {
        // Unanswered, a job that is late tells so.
        if Instant::now() < deadline {
            run();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use claviger_provider_api::CallerSlot;

    use super::*;

    fn call(caller: u32, left: Duration) -> Call {
        Call { caller: CallerSlot(caller), deadline: Instant::now() + left }
    }

    #[tokio::test]
    async fn work_is_done_elsewhere_and_late_work_and_panics_are_failures() {
        let work = PublicWork::start().unwrap();
        let long = Duration::from_mins(1);
        let here = thread::current().id();
        let there = work.run(call(1, long), || thread::current().id()).await.unwrap();
        assert_ne!(here, there);
        let late = work.run(call(1, Duration::ZERO), || ()).await;
        assert_eq!(late, Err(Failure::DeadlineExceeded));
        let panicked = work.run(call(1, long), || -> () { panic!("in a test") }).await;
        assert_eq!(panicked, Err(Failure::Internal));
        assert_eq!(work.run(call(1, long), || 7).await, Ok(7), "the thread goes on");
    }

    #[tokio::test]
    async fn a_caller_with_much_to_do_waits_for_itself_and_is_refused_beyond_its_share() {
        let work = PublicWork::start().unwrap();
        let long = Duration::from_mins(1);
        let pause = || thread::sleep(Duration::from_millis(2));
        let many: Vec<_> = (0..2 * MOST_OF_ONE).map(|_| work.run(call(1, long), pause)).collect();
        work.run(call(2, long), || ()).await.unwrap();
        let outcomes = futures::future::join_all(many).await;
        let refused = outcomes.iter().filter(|outcome| outcome.is_err()).count();
        assert!((1..=MOST_OF_ONE).contains(&refused), "{refused}");
    }
}

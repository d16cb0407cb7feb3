//! Bounded queues, one per caller, served in turn: what one caller sends cannot hold up another.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, PoisonError};

use crate::error::{Error, ErrorKind};
use crate::key::CallerSlot;

/// Feeds worker threads with jobs of many callers. Within a caller first come first served;
/// between callers, one job each in turn.
#[derive(Debug)]
pub struct FairQueue<T> {
    state: Mutex<State<T>>,
    ready: Condvar,
    capacity_per_caller: usize,
}

#[derive(Debug)]
struct State<T> {
    queues: HashMap<CallerSlot, VecDeque<T>>,
    /// Callers with at least one job, in the order in which they are served.
    turn: VecDeque<CallerSlot>,
    /// Threads that wait for a job.
    waiting: usize,
    closed: bool,
}

impl<T> FairQueue<T> {
    /// A queue that holds at most `capacity_per_caller` jobs of each caller.
    pub fn new(capacity_per_caller: usize) -> Self {
        let state =
            State { queues: HashMap::new(), turn: VecDeque::new(), waiting: 0, closed: false };
        Self { state: Mutex::new(state), ready: Condvar::new(), capacity_per_caller }
    }

    /// Adds a job, or gives [`ErrorKind::Throttled`] if this caller's queue is full and
    /// [`ErrorKind::Unavailable`] once the queue was closed.
    pub fn push(&self, caller: CallerSlot, job: T) -> Result<(), Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return Err(Error::new(ErrorKind::Unavailable, "the key was closed"));
        }
        let queue = state.queues.entry(caller).or_default();
        if queue.len() >= self.capacity_per_caller {
            let kind = ErrorKind::Throttled { retry_after: None };
            return Err(Error::new(kind, "this caller's queue for the backend is full"));
        }
        queue.push_back(job);
        if queue.len() == 1 {
            state.turn.push_back(caller);
        }
        let has_waiter = state.waiting > 0;
        drop(state);
        // A notification costs a system call even if no task waits.
        if has_waiter {
            self.ready.notify_one();
        }
        Ok(())
    }

    /// Waits for the next job; none once the queue was closed and is empty.
    pub fn pop(&self) -> Option<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(caller) = state.turn.pop_front() {
                let queue = state.queues.get_mut(&caller).expect("a caller in turn has a queue");
                let job = queue.pop_front();
                if queue.is_empty() {
                    state.queues.remove(&caller);
                } else {
                    state.turn.push_back(caller);
                }
                return job;
            }
            if state.closed {
                return None;
            }
            state.waiting += 1;
            state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
    }

    /// Refuses further jobs; those that wait are still handed out.
    pub fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.ready.notify_all();
    }

    /// How many jobs wait, of all callers.
    pub fn len(&self) -> usize {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.queues.values().map(VecDeque::len).sum()
    }

    /// Whether no job waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_caller_is_served_next_however_much_a_loud_one_sent() {
        let queue = FairQueue::new(100);
        for n in 0..100 {
            queue.push(CallerSlot(1), n).unwrap();
        }
        queue.push(CallerSlot(2), 1000).unwrap();
        assert_eq!([queue.pop(), queue.pop(), queue.pop()], [Some(0), Some(1000), Some(1)]);
    }

    #[test]
    fn a_full_queue_refuses_its_own_caller_only() {
        let queue = FairQueue::new(1);
        queue.push(CallerSlot(1), ()).unwrap();
        let kind = queue.push(CallerSlot(1), ()).unwrap_err().kind();
        assert_eq!(kind, ErrorKind::Throttled { retry_after: None });
        queue.push(CallerSlot(2), ()).unwrap();
    }

    #[test]
    fn a_closed_queue_hands_out_what_waits_and_then_ends() {
        let queue = FairQueue::new(2);
        queue.push(CallerSlot(1), 7).unwrap();
        queue.close();
        assert_eq!(queue.push(CallerSlot(1), 8).unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!((queue.pop(), queue.pop()), (Some(7), None));
    }
}

//! Room for calls: how many are in flight, of all callers and of each, and who waits for room.
//!
//! A storm is not an attack: a restart makes thousands of clients ask at once. So a call for which
//! there is no room waits behind those of its own caller, until its deadline; only when as many
//! wait as may, one more is refused. No caller can take the last room of another: the totals count
//! only for callers that have some already.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout_at;

use crate::daemon::request::last_seen::LastSeen;
use crate::daemon::status::{Exhausted, Failure};

/// Calls that one caller may have in flight, and waiting, before the totals count for it.
const ALWAYS: u32 = 8;
/// When to come back after a refusal.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Calls in flight and waiting, of all callers.
#[derive(Debug)]
pub struct InFlight {
    started: AtomicU32,
    waiting: AtomicU32,
    room: Arc<Semaphore>,
    most: u32,
}

/// The calls of one caller; kept over reloads.
#[derive(Debug)]
pub struct CallerCalls {
    /// When it called last, and as whom.
    pub seen: LastSeen,
    started: AtomicU32,
    waiting: AtomicU32,
    room: Arc<Semaphore>,
}

impl CallerCalls {
    /// Of a caller that has none yet, where all may have `most` in flight.
    pub fn new(most: usize) -> Self {
        Self {
            seen: LastSeen::default(),
            started: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            room: Arc::new(Semaphore::new((most / 8).clamp(128, 1 << 24))),
        }
    }

    /// How many of them are in flight.
    pub fn in_flight(&self) -> u32 {
        self.started.load(Ordering::Relaxed)
    }
}

impl InFlight {
    /// Room for `most` calls in flight, an eighth of it (at least 128) for one caller. Twice `most`
    /// of one caller may wait, and eight times as many of all.
    pub fn new(most: usize) -> Self {
        let most = u32::try_from(most).unwrap_or(u32::MAX).min(1 << 24);
        Self {
            started: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            room: Arc::new(Semaphore::new(most as usize)),
            most,
        }
    }

    /// Starts a call, if need be after those of its caller that came before.
    ///
    /// # Errors
    /// Too many wait already, or the deadline passed meanwhile.
    pub async fn start(
        self: &Arc<Self>,
        caller: &Arc<CallerCalls>,
        deadline: Instant,
    ) -> Result<StartedCall, Failure> {
        if let Some(started) = self.try_start(caller) {
            return Ok(started);
        }
        let _waiting = self.wait(caller)?;
        let turn = async {
            let of_caller = Arc::clone(&caller.room).acquire_owned().await;
            let of_caller = of_caller.map_err(|_| Failure::Internal)?;
            let of_all = if caller.started.load(Ordering::Relaxed) < ALWAYS {
                Arc::clone(&self.room).try_acquire_owned().ok()
            } else {
                Some(Arc::clone(&self.room).acquire_owned().await.map_err(|_| Failure::Internal)?)
            };
            Ok(self.started(caller, of_caller, of_all))
        };
        timeout_at(deadline.into(), turn).await.unwrap_or(Err(too_many()))
    }

    /// How many calls are in flight.
    pub fn total(&self) -> u32 {
        self.started.load(Ordering::Relaxed)
    }

    /// How many calls wait for room.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    fn try_start(self: &Arc<Self>, caller: &Arc<CallerCalls>) -> Option<StartedCall> {
        let of_caller = Arc::clone(&caller.room).try_acquire_owned().ok()?;
        let of_all = Arc::clone(&self.room).try_acquire_owned().ok();
        let always = caller.started.load(Ordering::Relaxed) < ALWAYS;
        (of_all.is_some() || always).then(|| self.started(caller, of_caller, of_all))
    }

    fn started(
        self: &Arc<Self>,
        caller: &Arc<CallerCalls>,
        of_caller: OwnedSemaphorePermit,
        of_all: Option<OwnedSemaphorePermit>,
    ) -> StartedCall {
        caller.started.fetch_add(1, Ordering::Relaxed);
        self.started.fetch_add(1, Ordering::Relaxed);
        StartedCall {
            in_flight: Arc::clone(self),
            caller: Arc::clone(caller),
            _room: (of_caller, of_all),
        }
    }

    fn wait<'a>(&'a self, caller: &'a CallerCalls) -> Result<Waiting<'a>, Failure> {
        let waiting = Waiting::new([&self.waiting, &caller.waiting]);
        let [of_all, of_caller] = waiting.before;
        let refused = of_caller >= self.most.saturating_mul(2)
            || (of_all >= self.most.saturating_mul(16) && of_caller >= ALWAYS);
        if refused { Err(too_many()) } else { Ok(waiting) }
    }
}

fn too_many() -> Failure {
    Failure::Exhausted { what: Exhausted::Calls, retry_after: RETRY_AFTER }
}

/// One that waits, counted until it is dropped.
struct Waiting<'a> {
    counts: [&'a AtomicU32; 2],
    before: [u32; 2],
}

impl<'a> Waiting<'a> {
    fn new(counts: [&'a AtomicU32; 2]) -> Self {
        Self { before: counts.map(|count| count.fetch_add(1, Ordering::Relaxed)), counts }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        for count in self.counts {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A call in flight; it ends when this is dropped.
#[derive(Debug)]
pub struct StartedCall {
    in_flight: Arc<InFlight>,
    caller: Arc<CallerCalls>,
    _room: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
}

impl Drop for StartedCall {
    fn drop(&mut self) {
        self.caller.started.fetch_sub(1, Ordering::Relaxed);
        self.in_flight.started.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    const MOST: usize = 128;

    fn calls() -> (Arc<InFlight>, Arc<CallerCalls>, Arc<CallerCalls>) {
        let caller = || Arc::new(CallerCalls::new(MOST));
        (Arc::new(InFlight::new(MOST)), caller(), caller())
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_mins(1)
    }

    fn start_now(in_flight: &Arc<InFlight>, caller: &Arc<CallerCalls>) -> Option<StartedCall> {
        in_flight.start(caller, soon()).now_or_never().map(Result::unwrap)
    }

    #[tokio::test]
    async fn where_one_caller_takes_all_room_another_still_finds_some() {
        let (in_flight, hog, quiet) = calls();
        let held: Vec<_> = (0..MOST).map(|_| start_now(&in_flight, &hog).unwrap()).collect();
        assert!(start_now(&in_flight, &hog).is_none(), "it waits");
        assert_eq!((in_flight.total(), in_flight.waiting()), (128, 0));
        let others: Vec<_> = (0..8).map(|_| start_now(&in_flight, &quiet).unwrap()).collect();
        assert!(start_now(&in_flight, &quiet).is_none(), "the total counts from here on");
        drop((held, others));
        assert_eq!(in_flight.total(), 0);
        assert!(start_now(&in_flight, &hog).is_some());
    }

    #[tokio::test]
    async fn a_call_waits_its_turn_behind_those_of_its_own_caller() {
        let (in_flight, storm, _) = calls();
        let mut held: Vec<_> = (0..MOST).map(|_| start_now(&in_flight, &storm).unwrap()).collect();
        let mut first = Box::pin(in_flight.start(&storm, soon()));
        let mut second = Box::pin(in_flight.start(&storm, soon()));
        assert!(first.as_mut().now_or_never().is_none());
        assert!(second.as_mut().now_or_never().is_none());
        assert_eq!(in_flight.waiting(), 2);
        held.pop();
        assert!(second.as_mut().now_or_never().is_none(), "the first one comes first");
        let first = first.await.unwrap();
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        second.await.unwrap();
        assert_eq!(in_flight.waiting(), 0);
    }

    #[tokio::test]
    async fn who_waits_until_his_deadline_or_behind_too_many_is_refused() {
        let (in_flight, storm, quiet) = calls();
        let _held: Vec<_> = (0..MOST).map(|_| start_now(&in_flight, &storm).unwrap()).collect();
        let late = in_flight.start(&storm, Instant::now() + Duration::from_millis(5)).await;
        assert_eq!(late.unwrap_err(), too_many());
        let mut waiting: Vec<_> =
            (0..2 * MOST).map(|_| Box::pin(in_flight.start(&storm, soon()))).collect();
        for call in &mut waiting {
            assert!(call.as_mut().now_or_never().is_none());
        }
        let one_more = in_flight.start(&storm, soon()).now_or_never().expect("refused at once");
        assert_eq!(one_more.unwrap_err(), too_many());
        assert!(start_now(&in_flight, &quiet).is_some());
        drop(waiting);
        assert_eq!(in_flight.waiting(), 0);
    }
}

//! When a call may ask each endpoint: the first time, and again after a failure.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{EndpointFailure, Remedy};

/// The pauses before an endpoint that could not be reached, or whose connection broke, is tried again.
const RECONNECT_PAUSES: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(250)];
/// The pauses before one that answered that it cannot serve is asked again: each run is recorded.
const REPEAT_PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(500)];
/// A daemon that names the time of its next look is asked again then, and after so long at the latest:
/// another process may have taken its place.
const LONGEST_TOLD_PAUSE: Duration = Duration::from_secs(3);
/// The last attempt of a call that waits begins so long before its time is over.
const LAST_ATTEMPT: Duration = Duration::from_millis(200);
/// A call waits no longer than this where another one has waited its whole time without success.
const WAIT_WHILE_SPENT: Duration = Duration::from_secs(1);

/// How hard a call tries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    pub(crate) timeout: Duration,
    pub(crate) patience: Duration,
    pub(crate) wait: bool,
    pub(crate) hedge: Option<Duration>,
    /// Whether running it twice does no harm, so that a second endpoint may be asked meanwhile.
    pub(crate) is_idempotent: bool,
}

/// What a call may still do, and when.
#[derive(Debug)]
pub(crate) struct Schedule {
    effort: Effort,
    begun: Instant,
    waits_until: Instant,
    endpoints: Vec<EndpointAttempts>,
    lost_connections: u32,
    is_over: bool,
}

/// The attempts of the call at one endpoint.
#[derive(Debug, Default)]
struct EndpointAttempts {
    state: State,
    failure: Option<EndpointFailure>,
    failures: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    NotAsked,
    /// Connecting or asked since then.
    Running(Instant),
    /// Failed, and not before then to be asked again.
    Paused(Instant),
    /// Answered, or failed and not to be asked again.
    Done,
}

impl Schedule {
    /// For so many endpoints; `is_wait_spent` where another call has waited without success.
    pub(crate) fn new(effort: Effort, endpoints: usize, is_wait_spent: bool) -> Self {
        let begun = Instant::now();
        let waits = match (effort.wait, is_wait_spent) {
            (true, true) => effort.timeout.min(WAIT_WHILE_SPENT),
            (true, false) => effort.timeout,
            (false, _) => effort.timeout.min(effort.patience),
        };
        let endpoints = std::iter::repeat_with(EndpointAttempts::default).take(endpoints).collect();
        let waits_until = begun + waits;
        Self { effort, begun, waits_until, endpoints, lost_connections: 0, is_over: false }
    }

    /// The call's deadline.
    pub(crate) fn deadline(&self) -> Instant {
        self.begun + self.effort.timeout
    }

    /// When a call gives up that has asked no endpoint yet, because none can be connected to.
    pub(crate) fn connects_until(&self) -> Instant {
        if self.effort.wait { self.waits_until } else { self.deadline() }
    }

    /// The endpoints that may be asked now, those with the fewest failures first.
    pub(crate) fn candidates(&self) -> impl Iterator<Item = (u32, usize)> {
        let now = Instant::now();
        let is_due = move |endpoint: &EndpointAttempts| match endpoint.state {
            State::NotAsked => true,
            State::Paused(until) => until <= now,
            State::Running(_) | State::Done => false,
        };
        let endpoints = self.endpoints.iter().enumerate();
        endpoints
            .filter(move |(_, endpoint)| !self.is_over && is_due(endpoint))
            .map(|(number, endpoint)| (endpoint.failures, number))
    }

    /// When the next endpoint may be asked; none: never.
    pub(crate) fn next(&self) -> Option<Instant> {
        let next = |endpoint: &EndpointAttempts| match endpoint.state {
            State::NotAsked => Some(self.begun),
            State::Paused(until) => Some(until),
            State::Running(_) | State::Done => None,
        };
        self.endpoints.iter().filter_map(next).min().filter(|_| !self.is_over)
    }

    /// An endpoint is being asked.
    pub(crate) fn begin(&mut self, number: usize) {
        self.endpoints[number].state = State::Running(Instant::now());
    }

    /// An endpoint gave an answer that is kept.
    pub(crate) fn answered(&mut self, number: usize) {
        self.endpoints[number].state = State::Done;
    }

    /// An endpoint did not look at what was sent to it: it may be sent again.
    pub(crate) fn not_processed(&mut self, number: usize) {
        self.endpoints[number].state = State::NotAsked;
    }

    /// Those that have been asked for so long without an answer, or so long ago to be connected to.
    pub(crate) fn running_for(&self, at_least: Duration) -> Vec<usize> {
        let now = Instant::now();
        let is_slow = |endpoint: &EndpointAttempts| matches!(endpoint.state, State::Running(since) if now >= since + at_least);
        let endpoints = self.endpoints.iter().enumerate();
        endpoints.filter(|(_, endpoint)| is_slow(endpoint)).map(|(number, _)| number).collect()
    }

    /// An endpoint failed the call.
    pub(crate) fn failed(&mut self, number: usize, failure: EndpointFailure) {
        if matches!(failure, EndpointFailure::ConnectionLost(_)) {
            self.lost_connections += 1;
        }
        let again = self.again(&failure, self.endpoints[number].failures);
        let endpoint = &mut self.endpoints[number];
        endpoint.failures += 1;
        endpoint.failure = Some(failure);
        endpoint.state = again.map_or(State::Done, State::Paused);
    }

    fn again(&mut self, failure: &EndpointFailure, failures_before: u32) -> Option<Instant> {
        let now = Instant::now();
        if let EndpointFailure::ConnectionLost(_) = failure {
            let repeats = self.effort.is_idempotent && now < self.waits_until;
            if self.lost_connections == 1 {
                return Some(now);
            } else if !repeats {
                self.is_over = true;
                return None;
            }
        }
        let has_answered = |endpoint: &EndpointAttempts| {
            endpoint.failure.as_ref().is_some_and(EndpointFailure::is_answer)
        };
        match failure.remedy() {
            Remedy::Elsewhere => None,
            // Without `wait` only daemons that cannot be reached are waited for.
            _ if !self.effort.wait
                && (failure.is_answer() || self.endpoints.iter().any(has_answered)) =>
            {
                None
            }
            Remedy::WaitFor(delay) => {
                let at = now + delay + random_part_of(delay / 4);
                (at < self.waits_until).then_some(at)
            }
            Remedy::Wait(told) => {
                let [first, longest] =
                    if failure.is_answer() { REPEAT_PAUSES } else { RECONNECT_PAUSES };
                let growing = first.saturating_mul(1 << failures_before.min(8)).min(longest);
                let at = match told {
                    Some(told) => {
                        now + told.clamp(first, LONGEST_TOLD_PAUSE) + random_part_of(first)
                    }
                    None => now + growing / 2 + random_part_of(growing),
                };
                let last = self.waits_until.checked_sub(LAST_ATTEMPT)?;
                let at = if at < self.waits_until { at } else { last };
                (at > now).then_some(at)
            }
        }
    }

    /// Begins anew at every endpoint after `delay`, if that fits into the time that a call waits.
    pub(crate) fn restart_after(&mut self, delay: Option<Duration>) -> Option<Instant> {
        let delay = delay?;
        let at = Instant::now() + delay + random_part_of(delay / 4);
        if !self.effort.wait || at >= self.waits_until {
            return None;
        }
        self.endpoints.fill_with(EndpointAttempts::default);
        Some(at)
    }

    /// From now on only the endpoints that were not asked yet, each once.
    pub(crate) fn only_others(&mut self) -> bool {
        (self.effort.wait, self.waits_until) = (false, self.begun);
        for endpoint in &mut self.endpoints {
            if endpoint.state != State::NotAsked {
                endpoint.state = State::Done;
            }
        }
        self.next().is_some()
    }

    /// Until when a call that failed everywhere goes on waiting before it says so; none: it says so
    /// at once, as waiting would not have helped.
    pub(crate) fn waits_to_fail(&self) -> Option<Instant> {
        let may_pass = |endpoint: &EndpointAttempts| {
            matches!(endpoint.failure.as_ref().map(EndpointFailure::remedy), Some(Remedy::Wait(_)))
        };
        let waits = self.effort.wait && !self.is_over && self.endpoints.iter().any(may_pass);
        waits.then_some(self.waits_until)
    }

    /// Whether the call has waited for as long as it was allowed to, not only for the time that is
    /// left to it while another one's wait is spent.
    pub(crate) fn has_waited(&self) -> bool {
        self.effort.wait && Instant::now() >= self.deadline()
    }

    /// Nothing came from those that are asked: the time is over.
    pub(crate) fn time_is_over(&mut self, was_sent: impl Fn(usize) -> bool) {
        for (number, endpoint) in self.endpoints.iter_mut().enumerate() {
            if let State::Running(_) = endpoint.state {
                endpoint.state = State::Done;
                endpoint.failure.get_or_insert(EndpointFailure::Silent { sent: was_sent(number) });
            }
        }
    }

    /// What became of the call at each endpoint that failed it, by its number.
    pub(crate) fn failures(&self) -> impl Iterator<Item = (usize, &EndpointFailure)> {
        let endpoints = self.endpoints.iter().enumerate();
        endpoints.filter_map(|(number, endpoint)| Some((number, endpoint.failure.as_ref()?)))
    }
}

/// Between nothing and `whole`, so that hosts that failed together do not come back together.
fn random_part_of(whole: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish();
    whole.mul_f64(f64::from(random as u32) / f64::from(u32::MAX))
}

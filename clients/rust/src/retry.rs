//! One call over all endpoints: which are asked, which is asked beside one that is slow, and what is
//! tried again.
//!
//! A request that was never sent, or certainly not looked at, is sent again. One whose connection
//! broke may have run: it is sent once more or, if it is idempotent, for as long as the call waits.
//! An answer about the request or the caller's rights is final. Every other one says something of
//! that daemon, and the next one is asked.

use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, sleep, sleep_until};
use tonic::{Response, Status};

use crate::channel::Channel;
use crate::endpoints::Endpoints;
use crate::error::{CallFailure, EndpointFailure, Verdict, judge};
use crate::schedule::{Effort, Schedule};

/// A daemon that ends its connections one after another may do so as fast as we connect.
const PAUSES_WHILE_CLOSING: [u64; 5] = [0, 1, 2, 4, 8];

/// The attempts of one call.
pub(crate) struct Attempts<'a> {
    endpoints: &'a Endpoints,
    effort: Effort,
    schedule: Schedule,
    closing: std::slice::Iter<'static, u64>,
    answered: Vec<usize>,
}

/// What is under way for one answer.
struct Race<'a, A> {
    connecting: Running<'a, Result<Channel, EndpointFailure>>,
    /// Connections that nothing was sent over yet.
    ready: VecDeque<(usize, Channel)>,
    requests: Running<'a, Result<Response<A>, Status>>,
    flights: Vec<Flight>,
    /// When the last request was sent, and when connecting was begun the last time. None after a
    /// failure, so that the next endpoint is asked at once.
    sent_at: Option<Instant>,
    connects_since: Option<Instant>,
}

/// Something that is done at several endpoints at once; each outcome with its endpoint's number.
type Running<'a, T> = FuturesUnordered<BoxFuture<'a, (usize, T)>>;

/// A request that was sent and not answered yet.
struct Flight {
    number: usize,
    channel: Channel,
    /// How many answers its connection had given before.
    answers: u64,
}

/// What happens next.
enum Event<A> {
    Connected(usize, Result<Channel, EndpointFailure>),
    Answered(Flight, Result<Response<A>, Status>),
    /// It is time to ask one more endpoint.
    Slow,
    TimeIsOver,
}

impl<'a> Attempts<'a> {
    pub(crate) fn new(endpoints: &'a Endpoints, effort: Effort) -> Self {
        if effort.is_idempotent {
            endpoints.hedges.begin_call();
        }
        Self {
            schedule: Schedule::new(effort, endpoints.len(), endpoints.is_wait_spent()),
            endpoints,
            effort: Effort {
                // Of a short deadline each endpoint gets its part.
                hedge: effort.hedge.map(|hedge| hedge.min(effort.timeout / endpoints.len() as u32)),
                ..effort
            },
            closing: PAUSES_WHILE_CLOSING.iter(),
            answered: Vec::new(),
        }
    }

    /// The first answer. `send` sends the request over a connection, with what is left of the
    /// deadline. Requests that are still under way then are cancelled.
    pub(crate) async fn answer<A, F>(
        &mut self,
        send: impl Fn(Channel, Duration) -> F,
    ) -> Result<Response<A>, CallFailure>
    where
        F: Future<Output = Result<Response<A>, Status>> + Send,
    {
        let mut race = Race::new();
        loop {
            if let Some((number, channel)) = self.next_to_send(&mut race) {
                let answer = send(channel, self.left());
                race.requests.push(Box::pin(async move { (number, answer.await) }));
                continue;
            }
            if let Some(number) = self.next_to_connect(&race) {
                self.connect(&mut race, number).await;
                continue;
            }
            if race.is_idle() {
                let Some(next) = self.schedule.next() else { return Err(self.give_up().await) };
                sleep_until(next).await;
                continue;
            }
            match self.event(&mut race).await {
                Event::Answered(flight, Ok(response)) => {
                    self.won(&flight);
                    race.cancel().await;
                    return Ok(response);
                }
                Event::Answered(flight, Err(status)) => {
                    (race.sent_at, race.connects_since) = (None, None);
                    if let Some(at) = self.judge(status, &flight).await? {
                        race.cancel().await;
                        race = Race::new();
                        sleep_until(at).await;
                    }
                }
                Event::Connected(number, Ok(channel)) => race.ready.push_back((number, channel)),
                Event::Connected(number, Err(failure)) => {
                    race.connects_since = None;
                    self.schedule.failed(number, failure);
                }
                Event::Slow => {}
                Event::TimeIsOver => return Err(self.time_is_over(&race)),
            }
        }
    }

    fn left(&self) -> Duration {
        self.schedule.deadline().saturating_duration_since(Instant::now())
    }

    /// A connection to send the request over now: the first one, or one more beside an endpoint that
    /// is slow.
    fn next_to_send<A>(&self, race: &mut Race<'_, A>) -> Option<(usize, Channel)> {
        let may_send = race.flights.is_empty()
            || !race.ready.is_empty()
                && self.may_ask_another(race)
                && self.is_due(race.sent_at)
                && self.endpoints.hedges.take();
        let (number, channel) = may_send.then(|| race.ready.pop_front())??;
        race.sent_at = Some(Instant::now());
        let answers = channel.answers();
        race.flights.push(Flight { number, channel: channel.clone(), answers });
        Some((number, channel))
    }

    /// An endpoint to turn to now: the best one, or one more beside those that are slow.
    fn next_to_connect<A>(&self, race: &Race<'_, A>) -> Option<usize> {
        let is_due = race.is_idle()
            || race.ready.is_empty() && self.may_ask_another(race) && self.is_due(race.begun_at());
        let best_first = |(failures, number): &(u32, usize)| {
            let (rest, is_doubtful) = self.endpoints.rest(*number);
            (*failures, rest, is_doubtful)
        };
        is_due.then(|| self.schedule.candidates().min_by_key(best_first))?.map(|(_, number)| number)
    }

    /// A second request is sent for idempotent calls only, as far as the process may; connecting
    /// costs the backend nothing.
    fn may_ask_another<A>(&self, race: &Race<'_, A>) -> bool {
        race.flights.is_empty() || self.effort.is_idempotent && self.endpoints.hedges.is_available()
    }

    fn is_due(&self, since: Option<Instant>) -> bool {
        self.slow_at(since).is_some_and(|at| at <= Instant::now())
    }

    /// When what began then counts as slow; none: never.
    fn slow_at(&self, since: Option<Instant>) -> Option<Instant> {
        let hedge = self.effort.hedge?;
        Some(since.map_or_else(Instant::now, |since| since + hedge))
    }

    async fn connect<'r, A>(&mut self, race: &mut Race<'r, A>, number: usize)
    where
        'a: 'r,
    {
        self.schedule.begin(number);
        if let Some(channel) = self.endpoints.open(number).await {
            race.ready.push_back((number, channel));
        } else {
            let endpoints = self.endpoints;
            let connecting = async move { (number, endpoints.connect(number).await) };
            race.connecting.push(Box::pin(connecting));
            race.connects_since = Some(Instant::now());
        }
    }

    async fn event<A>(&self, race: &mut Race<'_, A>) -> Event<A> {
        let next_slow = if !self.may_ask_another(race) {
            None
        } else if race.ready.is_empty() {
            let slow_at = self.slow_at(race.begun_at());
            self.schedule.next().and_then(|next| slow_at.map(|at| at.max(next)))
        } else {
            self.slow_at(race.sent_at)
        };
        let over_at = if race.flights.is_empty() {
            self.schedule.connects_until()
        } else {
            self.schedule.deadline()
        };
        tokio::select! {
            biased;
            Some((number, answer)) = race.requests.next() => {
                let flight = race.flights.iter().position(|flight| flight.number == number);
                let flight = flight.expect("every request has its flight");
                Event::Answered(race.flights.swap_remove(flight), answer)
            }
            Some((number, outcome)) = race.connecting.next() => Event::Connected(number, outcome),
            () = sleep_until(over_at) => Event::TimeIsOver,
            () = sleep_until(next_slow.unwrap_or(over_at)), if next_slow.is_some() => Event::Slow,
        }
    }

    fn won(&mut self, flight: &Flight) {
        self.schedule.answered(flight.number);
        self.endpoints.answered(flight.number);
        self.answered.push(flight.number);
        if let Some(hedge) = self.effort.hedge {
            for slow in self.schedule.running_for(hedge) {
                self.endpoints.failed(slow);
            }
        }
    }

    /// What an error means for the call: when to begin anew at every endpoint, if it does.
    async fn judge(
        &mut self,
        status: Status,
        flight: &Flight,
    ) -> Result<Option<Instant>, CallFailure> {
        let Flight { number, channel, .. } = flight;
        let is_from_the_daemon = std::error::Error::source(&status).is_none();
        if !is_from_the_daemon && let Some(alert) = channel.alert() {
            self.endpoints.connection_lost(*number, channel);
            self.schedule.failed(*number, self.endpoints.refused(*number, alert));
            return Ok(None);
        }
        match judge(status) {
            Verdict::Final(status) => {
                self.endpoints.answered(*number);
                return Err(CallFailure::Final(status));
            }
            Verdict::LimitReached(status, delay) => {
                self.endpoints.answered(*number);
                let restart_at = self.schedule.restart_after(delay);
                return restart_at.map(Some).ok_or(CallFailure::Final(status));
            }
            Verdict::NotProcessed => {
                self.endpoints.closing(*number, channel);
                if let Some(pause) = self.closing.next() {
                    self.schedule.not_processed(*number);
                    sleep(Duration::from_millis(*pause)).await;
                } else {
                    let reason = "it closes each connection at once".to_owned();
                    self.schedule.failed(*number, EndpointFailure::Unreachable(reason));
                }
            }
            Verdict::Failed(failure) => {
                match failure {
                    EndpointFailure::ConnectionLost(_) => {
                        self.endpoints.connection_lost(*number, channel);
                    }
                    _ => self.endpoints.failed(*number),
                }
                self.schedule.failed(*number, failure);
            }
        }
        Ok(None)
    }

    /// After the last endpoint has failed: says so, where waiting might have helped after the wait.
    async fn give_up(&self) -> CallFailure {
        if let Some(until) = self.schedule.waits_to_fail() {
            sleep_until(until).await;
        }
        self.failure()
    }

    fn time_is_over<A>(&mut self, race: &Race<'_, A>) -> CallFailure {
        for Flight { number, channel, answers } in &race.flights {
            // The daemon answers in time, if only that the time is over.
            if channel.answers() == *answers {
                self.endpoints.closing(*number, channel);
            }
        }
        for number in self.schedule.running_for(Duration::ZERO) {
            self.endpoints.failed(number);
        }
        let was_sent = |number| race.flights.iter().any(|flight| flight.number == number);
        self.schedule.time_is_over(was_sent);
        self.failure()
    }

    fn failure(&self) -> CallFailure {
        if self.schedule.has_waited() {
            self.endpoints.spend_wait();
        }
        let name = |number| self.endpoints.name(number).to_owned();
        let failures = self.schedule.failures();
        CallFailure::All(
            failures.map(|(number, failure)| (name(number), failure.clone())).collect(),
        )
    }

    /// After an answer that another endpoint may know better: whether there is one that was not
    /// asked yet. The next answer comes from such a one, without waiting.
    pub(crate) fn only_others(&mut self) -> bool {
        self.schedule.only_others()
    }

    /// The last answer was better than those before it: other calls go elsewhere first, too.
    pub(crate) fn was_better(&self) {
        for number in self.answered.iter().rev().skip(1) {
            self.endpoints.failed(*number);
        }
    }
}

impl<A> Race<'_, A> {
    fn new() -> Self {
        Self {
            connecting: FuturesUnordered::new(),
            ready: VecDeque::new(),
            requests: FuturesUnordered::new(),
            flights: Vec::new(),
            sent_at: None,
            connects_since: None,
        }
    }

    /// Whether nothing is under way.
    fn is_idle(&self) -> bool {
        self.flights.is_empty() && self.connecting.is_empty() && self.ready.is_empty()
    }

    /// When something was begun the last time.
    fn begun_at(&self) -> Option<Instant> {
        self.sent_at.max(self.connects_since)
    }

    /// Cancels the requests that are under way. The connection's task writes that to the daemon when
    /// it runs the next time: for a program without a runtime of its own, it is now or at the next
    /// call.
    async fn cancel(self) {
        let was_alone = self.flights.is_empty();
        drop(self.requests);
        if !was_alone {
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests;

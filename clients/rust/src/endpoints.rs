//! Which endpoint a call goes to, and over which connection.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::channel::Channel;
use crate::config::{Config, ConfigError};
use crate::connect::{ConnectError, Driver, Target};

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// While another endpoint has an open connection, a call waits no longer to get back to a better one.
const RETURN_LIMIT: Duration = Duration::from_secs(1);
/// An endpoint that failed is left out for a second, then for twice as long each time.
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(30);

/// The endpoints of a configuration, each with at most one connection for new calls.
pub(crate) struct Endpoints {
    slots: Vec<Slot>,
    driver: Driver,
    max_idle: Duration,
}

struct Slot {
    target: Target,
    state: Mutex<State>,
    /// Held by the one caller that connects; the others wait for what comes of it.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    open: Option<Open>,
    failures: u32,
    rests_until: Option<Instant>,
    /// Grows with each attempt to connect that failed; what the last one said.
    refusals: u64,
    refusal: Option<ConnectError>,
}

struct Open {
    channel: Channel,
    generation: u64,
    used: Instant,
}

impl Endpoints {
    /// Reads the files of `config`; connects to nothing yet.
    pub(crate) fn new(config: &Config, driver: Driver) -> Result<Self, ConfigError> {
        if config.endpoints.is_empty() {
            let reason = "is missing; at least one is needed".to_owned();
            return Err(ConfigError::Field { field: "endpoint", reason });
        }
        let slot = |endpoint| {
            let target = Target::new(endpoint, driver)?;
            Ok(Slot { target, state: Mutex::default(), connecting: tokio::sync::Mutex::default() })
        };
        let slots = config.endpoints.iter().map(slot).collect::<Result<_, ConfigError>>()?;
        Ok(Self { slots, driver, max_idle: config.max_idle })
    }

    /// Whether there is no choice.
    pub(crate) fn is_single(&self) -> bool {
        self.slots.len() == 1
    }

    /// A connection to the best endpoint that can be reached before `deadline`: those that work in
    /// the order of the configuration, then those that failed of late, then those of `last`, in this
    /// order. With it the endpoint's number.
    pub(crate) async fn channel(
        &self,
        last: &[usize],
        deadline: Instant,
    ) -> Result<(usize, Channel), Vec<ConnectError>> {
        let order = self.order(last);
        let mut errors = Vec::new();
        for (tried, &number) in order.iter().enumerate() {
            let slot = &self.slots[number];
            if let Some(channel) = slot.open_channel(self.driver, self.max_idle).await {
                return Ok((number, channel));
            }
            let others = &order[tried + 1..];
            let mut limit = CONNECT_LIMIT;
            if !others.is_empty() {
                let left = deadline.saturating_duration_since(Instant::now());
                limit = limit.min(left / (others.len() as u32 + 1));
                if others.iter().any(|&other| self.slots[other].is_open()) {
                    limit = limit.min(RETURN_LIMIT);
                }
            }
            match slot.connect(limit).await {
                Ok(channel) => return Ok((number, channel)),
                Err(error) => errors.push(error),
            }
        }
        Err(errors)
    }

    fn order(&self, last: &[usize]) -> Vec<usize> {
        let now = Instant::now();
        let mut order: Vec<usize> = (0..self.slots.len()).collect();
        order.sort_by_key(|&number| {
            let rest = self.slots[number].state().rests_until.filter(|until| *until > now);
            (last.iter().position(|&other| other == number), rest)
        });
        order
    }

    /// The endpoint answered.
    pub(crate) fn answered(&self, number: usize) {
        let mut state = self.slots[number].state();
        (state.failures, state.rests_until) = (0, None);
    }

    /// The endpoint answered that it cannot serve now: the next calls go to the others first.
    pub(crate) fn cannot_serve(&self, number: usize) {
        self.slots[number].state().rest();
    }

    /// The connection is of no use any more; the endpoint may be gone.
    pub(crate) fn connection_lost(&self, number: usize, channel: &Channel) {
        let mut state = self.slots[number].state();
        state.retire(channel);
        state.rest();
    }

    /// The connection takes no new calls, and that is no sign of trouble.
    pub(crate) fn closing(&self, number: usize, channel: &Channel) {
        self.slots[number].state().retire(channel);
    }

    /// Their names, for people.
    pub(crate) fn names(&self) -> String {
        let names: Vec<_> = self.slots.iter().map(|slot| slot.target.endpoint()).collect();
        names.join(" or ")
    }
}

impl Slot {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_open(&self) -> bool {
        self.state().open.as_ref().is_some_and(|open| !open.channel.is_closed())
    }

    /// The open connection, if it may take another call.
    async fn open_channel(&self, driver: Driver, max_idle: Duration) -> Option<Channel> {
        if driver == Driver::OnlyInCalls && self.state().open.is_some() {
            // What has arrived since the last call, such as its end, has not been read yet: the
            // first yield reads it, the second one lets the connection look at it.
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
        }
        let generation = self.target.generation();
        let mut state = self.state();
        let open = state.open.as_mut()?;
        let now = Instant::now();
        let too_long = driver == Driver::OnlyInCalls && now - open.used > max_idle;
        if too_long || open.generation != generation || open.channel.is_closed() {
            state.open = None;
            return None;
        }
        open.used = now;
        Some(open.channel.clone())
    }

    async fn connect(&self, limit: Duration) -> Result<Channel, ConnectError> {
        let refusals = self.state().refusals;
        let _alone = self.connecting.lock().await;
        {
            let state = self.state();
            if let Some(open) = state.open.as_ref().filter(|open| !open.channel.is_closed()) {
                return Ok(open.channel.clone());
            }
            if let Some(refusal) = state.refusal.as_ref().filter(|_| state.refusals != refusals) {
                return Err(refusal.clone());
            }
        }
        let generation = self.target.generation();
        let attempt = self.target.connect(limit).await;
        let mut state = self.state();
        match attempt {
            Ok(channel) => {
                let used = Instant::now();
                state.open = Some(Open { channel: channel.clone(), generation, used });
                Ok(channel)
            }
            Err(error) => {
                state.refusals += 1;
                state.refusal = Some(error.clone());
                state.rest();
                Err(error)
            }
        }
    }
}

impl State {
    fn retire(&mut self, channel: &Channel) {
        if self.open.as_ref().is_some_and(|open| open.channel.is(channel)) {
            self.open = None;
        }
    }

    fn rest(&mut self) {
        let rest = FIRST_REST.saturating_mul(1 << self.failures.min(8)).min(LONGEST_REST);
        self.failures += 1;
        self.rests_until = Some(Instant::now() + rest);
    }
}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.slots.iter().map(|slot| slot.target.endpoint())).finish()
    }
}

//! The endpoints of a configuration: which one is asked first, and its connection.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::AlertDescription;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::channel::Channel;
use crate::config::{Config, ConfigError};
use crate::connect::{Driver, Target};
use crate::error::EndpointFailure;
use crate::hedge::HedgeBudget;

/// How long connecting to one endpoint may take, TLS included.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// An endpoint that failed is asked after the others for a second, then for twice as long each time.
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(30);

/// The endpoints of a configuration, each with at most one connection for new calls.
pub(crate) struct Endpoints {
    slots: Vec<Slot>,
    driver: Driver,
    max_idle: Duration,
    /// How many more calls may be asked of two endpoints at once.
    pub(crate) hedges: HedgeBudget,
    wait_spent: AtomicBool,
}

struct Slot {
    target: Arc<Target>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    open: Option<Open>,
    /// The attempt to connect that is under way. Every call that needs it waits for the same one,
    /// and it goes on when a call gives up waiting.
    connecting: Option<watch::Receiver<Outcome>>,
    failures: u32,
    rests_until: Option<Instant>,
}

/// None while the attempt is under way.
type Outcome = Option<Result<Channel, EndpointFailure>>;

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
        let targets = config.endpoints.iter().map(|endpoint| Target::new(endpoint, driver));
        Ok(Self::of(targets.collect::<Result<_, _>>()?, driver, config.max_idle))
    }

    pub(crate) fn of(targets: Vec<Target>, driver: Driver, max_idle: Duration) -> Self {
        let slot = |target| Slot { target: Arc::new(target), state: Arc::default() };
        Self {
            slots: targets.into_iter().map(slot).collect(),
            driver,
            max_idle,
            hedges: HedgeBudget::default(),
            wait_spent: AtomicBool::new(false),
        }
    }

    /// How many there are; at least one.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The name of an endpoint, as it was configured.
    pub(crate) fn name(&self, number: usize) -> &str {
        self.slots[number].target.endpoint()
    }

    /// When an endpoint may be asked first again; none: now. Where no second one may be asked beside
    /// it, one that failed the last time stays behind the others.
    pub(crate) fn rest(&self, number: usize) -> (Option<Instant>, bool) {
        let state = self.slots[number].state();
        let rest = state.rests_until.filter(|until| *until > Instant::now());
        (rest, state.failures > 0 && !self.hedges.is_available())
    }

    /// The open connection to an endpoint, if it may take another call.
    pub(crate) async fn open(&self, number: usize) -> Option<Channel> {
        self.slots[number].open_channel(self.driver, self.max_idle).await
    }

    /// A new connection to an endpoint, or the one that another call makes at the moment.
    pub(crate) async fn connect(&self, number: usize) -> Result<Channel, EndpointFailure> {
        self.slots[number].connect().await
    }

    /// What it means that the endpoint ended a connection with this TLS alert.
    pub(crate) fn refused(&self, number: usize, alert: AlertDescription) -> EndpointFailure {
        self.slots[number].target.refused(alert)
    }

    /// The endpoint answered: a call has waited with success, and the next ones may wait again.
    pub(crate) fn answered(&self, number: usize) {
        self.wait_spent.store(false, Ordering::Relaxed);
        let mut state = self.slots[number].state();
        (state.failures, state.rests_until) = (0, None);
    }

    /// The endpoint failed a call that another one may serve: the next calls go there first.
    pub(crate) fn failed(&self, number: usize) {
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

    /// Whether a call has waited its whole time without success, and none has succeeded since.
    pub(crate) fn is_wait_spent(&self) -> bool {
        self.wait_spent.load(Ordering::Relaxed)
    }

    /// A call has waited its whole time without success.
    pub(crate) fn spend_wait(&self) {
        self.wait_spent.store(true, Ordering::Relaxed);
    }
}

impl Slot {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

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

    async fn connect(&self) -> Result<Channel, EndpointFailure> {
        loop {
            let mut outcome = match self.attempt() {
                Ok(channel) => return Ok(channel),
                Err(outcome) => outcome,
            };
            // The attempt is lost only where the runtime that made it has ended: begin another one.
            if let Ok(outcome) = outcome.wait_for(Option::is_some).await {
                return outcome.clone().expect("waited for");
            }
        }
    }

    /// The connection that was made meanwhile, or the attempt to make one.
    fn attempt(&self) -> Result<Channel, watch::Receiver<Outcome>> {
        let mut state = self.state();
        if let Some(open) = state.open.as_ref().filter(|open| !open.channel.is_closed()) {
            return Ok(open.channel.clone());
        }
        if let Some(connecting) = state.connecting.as_ref()
            && connecting.has_changed().is_ok()
        {
            return Err(connecting.clone());
        }
        let (tell, outcome) = watch::channel(None);
        state.connecting = Some(outcome.clone());
        let (target, state) = (Arc::clone(&self.target), Arc::clone(&self.state));
        tokio::spawn(async move {
            let generation = target.generation();
            let connected = target.connect(CONNECT_LIMIT).await;
            let mut state = lock(&state);
            state.connecting = None;
            match &connected {
                Ok(channel) => {
                    let (channel, used) = (channel.clone(), Instant::now());
                    state.open = Some(Open { channel, generation, used });
                }
                Err(_) => state.rest(),
            }
            tell.send_replace(Some(connected));
        });
        Err(outcome)
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
        self.failures = self.failures.saturating_add(1);
        self.rests_until = Some(Instant::now() + rest);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.slots.iter().map(|slot| slot.target.endpoint())).finish()
    }
}

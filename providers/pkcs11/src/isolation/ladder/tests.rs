//! The ladder over processes that only seem to be there, with a clock that stands still but for what is
//! waited for: random faults of token, process and keys.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::Instant;

use claviger_provider_api::{Cause, Error, PublicKey};
use proptest::prelude::*;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::*;
use crate::isolation::frame::Inbox;
use crate::isolation::message::{
    Answer, Asked, Call, Check, Open, Opened, Outcome, Request, ToChild,
};
use crate::isolation::pauses::Pauses;
use crate::isolation::process_key::ProcessKey;
use crate::isolation::running::Running;
use crate::isolation::supervisor::open_again;

/// How long faults come and go.
const STORM: Duration = Duration::from_secs(40);
/// How long after the last cause has ended all serves at the latest.
const BACK: Duration = Duration::from_secs(5);
/// How long a process takes to start, and to answer.
const START: Duration = Duration::from_millis(300);
const ANSWER: Duration = Duration::from_millis(5);
/// How often each key is checked, and how often a call comes.
const CHECK_EVERY: Duration = Duration::from_secs(1);
const CALL_EVERY: Duration = Duration::from_millis(200);
/// The least time between two looks of an open breaker.
const QUICK: Duration = Duration::from_millis(550);
const KEYS: u32 = 3;

/// What happens.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// No process can use the token.
    Away,
    Back,
    /// The process that runs is of no use any more; the next one is.
    Breaks,
    /// The process ends by itself.
    Crashes,
    /// This key is not in the token.
    Gone(u32),
    /// This key fails as if the process were at fault.
    Fails(u32),
    /// This key is well.
    Well(u32),
}

static PUBLIC_KEY: LazyLock<PublicKey> = LazyLock::new(|| {
    let mut modulus = [0xff; 256];
    modulus[0] = 0xc0;
    PublicKey::from_components(&modulus, &[1, 0, 1]).unwrap()
});

/// A provider, its token, and its processes.
struct World {
    shared: Arc<Shared>,
    state: Mutex<State>,
    crash: Notify,
    is_over: AtomicBool,
}

#[derive(Default)]
struct State {
    is_away: bool,
    broken_up_to: u64,
    gone: BTreeSet<u32>,
    failing: BTreeSet<u32>,
    starts: Vec<Instant>,
}

impl World {
    fn new() -> Arc<Self> {
        let config = serde_json::json!({
            "module": "/usr/lib/none.so", "token": { "label": "token" }, "login": "none",
        });
        let config = serde_json::from_value(config).expect("options of a provider");
        Arc::new(Self {
            shared: Arc::new(Shared::new("hsm", Arc::new(config), None)),
            state: Mutex::default(),
            crash: Notify::new(),
            is_over: AtomicBool::new(false),
        })
    }

    /// What a process finds out about a key.
    fn judge(&self, process: u64, key: u32) -> Result<(), Fault> {
        let state = self.state.lock().unwrap();
        let unavailable = |text| Fault::of_process(Error::new(ErrorKind::Unavailable, text));
        if state.is_away {
            return Err(unavailable("the token is away"));
        }
        if process <= state.broken_up_to || state.failing.contains(&key) {
            return Err(unavailable("CKR_DEVICE_ERROR"));
        }
        if state.gone.contains(&key) {
            let error = Error::needs_operator(Cause::KeyAbsent, "no such key".to_owned());
            return Err(Fault::of_key(error));
        }
        Ok(())
    }

    fn happens(&self, event: Event) {
        let running = self.shared.link_now().map_or(0, |link| link.number);
        let mut state = self.state.lock().unwrap();
        match event {
            Event::Away => state.is_away = true,
            Event::Back => state.is_away = false,
            Event::Breaks => state.broken_up_to = running,
            Event::Crashes => self.crash.notify_one(),
            Event::Gone(key) => {
                state.gone.insert(key);
            }
            Event::Fails(key) => {
                state.failing.insert(key);
            }
            Event::Well(key) => {
                state.gone.remove(&key);
                state.failing.remove(&key);
            }
        }
    }

    fn starts(&self) -> Vec<Instant> {
        self.state.lock().unwrap().starts.clone()
    }
}

/// Starts processes as the supervisor does.
async fn supervise(world: Arc<World>) {
    let (mut pauses, shared) = (Pauses::default(), Arc::clone(&world.shared));
    for number in 1.. {
        sleep(START).await;
        world.state.lock().unwrap().starts.push(now());
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let link = Arc::new(Link::new(number, UnixStream::from_std(ours).unwrap(), 64));
        let running = Running { link: Some(Arc::clone(&link)), ..Running::default() };
        shared.running.send_replace(running);
        tokio::spawn(open_again(Arc::clone(&shared), Arc::clone(&link)));
        let crashed = tokio::select! {
            biased;
            () = link.given_up.notified() => false,
            () = world.crash.notified() => true,
            () = answer(&world, &link, theirs) => unreachable!("it answers for ever"),
        };
        let fault = Some("ended".into());
        shared.running.send_replace(Running { fault: fault.clone(), ..Running::default() });
        link.end("the module's process ended");
        if crashed {
            let pause = pauses.after(link.has_served(), now());
            let starts_at = Some(now() + pause);
            shared.running.send_replace(Running { link: None, fault, starts_at });
            sleep(pause).await;
        }
    }
}

/// What the process does. The clock does not wait for a socket, so that it looks there from time to time.
async fn answer(world: &World, link: &Link, mut socket: StdUnixStream) {
    let mut inbox = Inbox::new();
    loop {
        sleep(ANSWER).await;
        if let Ok(count) = socket.read(inbox.room()) {
            inbox.received(count);
        }
        while let Some(message) = inbox.next::<ToChild>().unwrap() {
            let (id, key, outcome) = match message.request {
                Some(Request::Open(Open { id, key, .. })) => {
                    let spki = PUBLIC_KEY.spki().to_vec();
                    (id, key, Outcome::Opened(Opened { key, spki, ..Opened::default() }))
                }
                Some(Request::Call(Call { id, key, asked: Some(Asked::Check(_)), .. })) => {
                    (id, key, Outcome::Well(Check {}))
                }
                _ => continue,
            };
            let judged = world.judge(link.number, key);
            let outcome =
                judged.map_or_else(|fault| Outcome::Failure((&fault).into()), |()| outcome);
            link.answered(Answer { id, repairs: 0, outcome: Some(outcome), queued: 0 });
        }
    }
}

/// One check, as the daemon's monitor asks for it.
async fn check(world: &World, key: &ProcessKey) -> Result<(), Error> {
    key.breaker.admit_check(now())?;
    let attempts = AtomicU32::new(0);
    let deadline = now() + Duration::from_secs(30);
    let climb = world.shared.climb(key.number(), |link: Arc<Link>| {
        attempts.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move { key.check_in(&link, deadline).await })
    });
    let outcome = climb.await;
    assert!(attempts.load(Ordering::Relaxed) <= 2, "an attempt, and one more");
    key.checked(outcome)
}

/// Faults come and go under three keys; all is well in the end. Gives how often each key's check failed,
/// and when processes started.
async fn storm(events: &[(u64, Event)]) -> ([u32; KEYS as usize], Vec<Instant>) {
    let world = World::new();
    let supervisor = tokio::spawn(supervise(Arc::clone(&world)));
    let request = |key| Open { key, locator: format!("pkcs11:object={key}"), ..Open::default() };
    let keys: Vec<_> = (0..KEYS)
        .map(|key| {
            let running = world.shared.running.subscribe();
            let key = ProcessKey::new(request(key), PUBLIC_KEY.sha256(), 0, running);
            let key = Arc::new(key);
            world.shared.opened(&key);
            key
        })
        .collect();
    let checks: Vec<_> = keys
        .iter()
        .map(|key| {
            let (world, key) = (Arc::clone(&world), Arc::clone(key));
            tokio::spawn(async move {
                let mut failed = 0;
                sleep(START * 2 + CALL_EVERY * key.number()).await;
                while !world.is_over.load(Ordering::Relaxed) {
                    failed += u32::from(check(&world, &key).await.is_err());
                    sleep(CHECK_EVERY).await;
                }
                failed
            })
        })
        .collect();
    let calls = tokio::spawn({
        let world = Arc::clone(&world);
        async move {
            while !world.is_over.load(Ordering::Relaxed) {
                // What a call does to a breaker: it is waited for.
                let _ = world.shared.breaker.admit(now());
                sleep(CALL_EVERY).await;
            }
        }
    });
    let begun = now();
    for (at, event) in events {
        tokio::time::sleep_until((begun + Duration::from_millis(*at)).into()).await;
        world.happens(*event);
    }
    tokio::time::sleep_until((begun + STORM).into()).await;
    world.happens(Event::Back);
    for key in 0..KEYS {
        world.happens(Event::Well(key));
    }
    sleep(BACK).await;
    let link = world.shared.link_now().expect("a process runs");
    assert!(!world.shared.breaker.is_open(), "the provider serves");
    for key in &keys {
        assert!(key.serves_in(&link), "key {} serves", key.number());
    }
    world.is_over.store(true, Ordering::Relaxed);
    let mut failed = [0; KEYS as usize];
    for (failed, check) in failed.iter_mut().zip(checks) {
        *failed = check.await.expect("no check asked more than twice");
    }
    calls.await.unwrap();
    supervisor.abort();
    (failed, world.starts())
}

fn in_simulated_time<T>(work: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().unwrap().block_on(work)
}

fn in_order(mut events: Vec<(u64, Event)>) -> Vec<(u64, Event)> {
    events.sort_by_key(|(at, _)| *at);
    events
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => Just(Event::Away),
        2 => Just(Event::Back),
        2 => Just(Event::Breaks),
        2 => Just(Event::Crashes),
        1 => (0..KEYS).prop_map(Event::Gone),
        1 => (0..KEYS).prop_map(Event::Fails),
        2 => (0..KEYS).prop_map(Event::Well),
    ]
}

/// Faults of the second and third key alone.
fn event_of_a_key() -> impl Strategy<Value = Event> {
    prop_oneof![
        (1..KEYS).prop_map(Event::Gone),
        (1..KEYS).prop_map(Event::Fails),
        (1..KEYS).prop_map(Event::Well),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// A process is a login, so that the number of processes bounds that of logins.
    #[test]
    fn whatever_fails_all_serves_five_seconds_after_it_ends_and_processes_are_started_rarely(
        events in prop::collection::vec((1000..40_000_u64, any_event()), 0..16),
    ) {
        let (_, starts) = in_simulated_time(storm(&in_order(events.clone())));
        let looks = (STORM + BACK).as_millis() / QUICK.as_millis();
        prop_assert!(starts.len() <= 2 + 2 * events.len() + looks as usize, "{}", starts.len());
        // While the token is away, one process follows the other no sooner than the breaker lets it.
        let is_of_token = |event: &Event| matches!(event, Event::Away | Event::Back);
        if events.iter().all(|(_, event)| is_of_token(event)) {
            let soon = starts.windows(2).filter(|pair| pair[1] - pair[0] < QUICK).count();
            prop_assert!(soon <= events.len(), "{soon} of {}", starts.len());
        }
    }

    #[test]
    fn a_key_that_fails_alone_costs_no_other_key_anything_and_no_process(
        events in prop::collection::vec((1000..40_000_u64, event_of_a_key()), 0..16),
    ) {
        let (failed, starts) = in_simulated_time(storm(&in_order(events)));
        prop_assert_eq!((failed[0], starts.len()), (0, 1));
    }
}

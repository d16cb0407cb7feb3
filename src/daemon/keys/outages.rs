//! Random outages over simulated time: monitor, choice, failover and proof together keep their promises.

use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use claviger_provider_api::{
    Algorithm, Algorithms, Call, CallerSlot, Cause, Digest, Error, ErrorKind, KeyMaterial, OpenKey,
    Parameters, Provider, PublicKey, SignAlgorithm, SignAlgorithms, Signature, Unwrapped,
    WrappingKey,
};
use proptest::prelude::*;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::choice::{Need, Turns};
use super::failover::{Work, ask, unless_silent};
use super::fakes::{Fake, MATERIAL};
use super::keyring::Version;
use super::monitor;
use super::proof::Proof;
use super::replica::Replica;
use super::replicas::Replicas;
use super::specification::Specification;
use crate::daemon::config::{self, Balance, State};
use crate::daemon::records::audit::Audit;

/// For how long outages come and go.
const MINUTE: Duration = Duration::from_mins(1);
/// How long after its cause has ended a replica serves at the latest.
const BACK: Duration = Duration::from_secs(5);
/// From one call to the next, where the last one was answered at once.
const STEP: Duration = Duration::from_millis(230);
/// What a device takes for an answer.
const ANSWER: Duration = Duration::from_millis(2);
/// The longest that a call may take while a replica is well: two others are silent for a second each.
const LONGEST: Duration = Duration::from_millis(2100);
/// From one look at a replica that fails to the next: 3 s and the monitor's own step.
const PAUSE: Duration = Duration::from_millis(4100);

/// How a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weather {
    Well,
    Away(ErrorKind),
    Hangs,
    AnotherKey,
}

/// From then on it is so.
#[derive(Clone, Copy, Debug)]
struct Since {
    weather: Weather,
    at: Instant,
}

/// An HSM with the key of the version.
#[derive(Debug)]
struct Device {
    key: Arc<Fake>,
    now: watch::Sender<Since>,
    /// When it was opened or checked while it was away.
    looks: Mutex<Vec<Instant>>,
    /// What was wrong with a look: a panic there would only be a failed check.
    wrong: Mutex<Vec<String>>,
}

/// One key pair is enough for all.
static PAIR: LazyLock<Arc<Fake>> = LazyLock::new(Fake::pair);

impl Device {
    fn new(weather: Weather) -> Arc<Self> {
        Arc::new(Self {
            key: Arc::clone(&PAIR),
            now: watch::Sender::new(Since { weather, at: Instant::now() }),
            looks: Mutex::default(),
            wrong: Mutex::default(),
        })
    }

    fn becomes(&self, weather: Weather) {
        let is_another = |since: &mut Since| {
            let is_another = since.weather != weather;
            if is_another {
                *since = Since { weather, at: Instant::now() };
            }
            is_another
        };
        if self.now.send_if_modified(is_another) {
            self.looks.lock().unwrap().clear();
        }
    }

    /// Whether it has been well since then.
    fn well_since(&self, then: Instant) -> bool {
        let now = self.now.borrow();
        now.weather == Weather::Well && now.at <= then
    }

    async fn answer(&self) -> Result<(), Error> {
        let mut changes = self.now.subscribe();
        sleep(ANSWER).await;
        loop {
            let Since { weather, .. } = *changes.borrow_and_update();
            let text = "as the weather is";
            match weather {
                Weather::Well => return Ok(()),
                Weather::Away(kind) => return Err(Error::new(kind, text)),
                Weather::AnotherKey => {
                    let error = Error::new(ErrorKind::OperatorNeeded, text);
                    return Err(error.with_cause(Cause::AnotherKey));
                }
                Weather::Hangs => changes.changed().await.expect("its sender lives in self"),
            }
        }
    }

    /// The pauses between looks are bounded, and so is their number.
    fn look(&self) {
        let Since { weather, at } = *self.now.borrow();
        if !matches!(weather, Weather::Away(_) | Weather::AnotherKey) {
            return;
        }
        let now = Instant::now();
        let mut looks = self.looks.lock().unwrap();
        let pause = looks.last().map(|last| now - *last).unwrap_or_default();
        looks.push(now);
        let seconds = (now - at).as_secs() as usize;
        if pause > PAUSE || looks.len() > 4 + seconds {
            let told = format!("look {} after {seconds} s, {pause:?} after the last", looks.len());
            self.wrong.lock().unwrap().push(told);
        }
    }
}

#[async_trait]
impl WrappingKey for Device {
    fn public_key(&self) -> &PublicKey {
        self.key.public_key()
    }

    fn algorithms(&self) -> Algorithms {
        self.key.algorithms()
    }

    fn label_algorithms(&self) -> Algorithms {
        Algorithms::EMPTY
    }

    fn sign_algorithms(&self) -> SignAlgorithms {
        std::iter::empty().collect()
    }

    fn failure_needs_check(&self) -> bool {
        true
    }

    fn repairs(&self) -> u64 {
        0
    }

    /// An empty value is a caller's; any other is the proof that replicas are equal.
    async fn unwrap_key(
        &self,
        wrapped: &[u8],
        parameters: &Parameters<'_>,
        call: Call,
    ) -> Result<Unwrapped, Error> {
        self.answer().await?;
        if wrapped.is_empty() {
            let material = KeyMaterial::copied_from(&MATERIAL);
            return Ok(Unwrapped { material, backend_request_id: None });
        }
        self.key.unwrap_key(wrapped, parameters, call).await
    }

    async fn sign(&self, _: &Digest, _: SignAlgorithm, _: Call) -> Result<Signature, Error> {
        Err(Error::new(ErrorKind::OperatorNeeded, "this key does not sign"))
    }

    async fn check(&self) -> Result<(), Error> {
        self.look();
        self.answer().await
    }
}

/// The provider of one device: a key is opened where the device answers.
#[derive(Debug)]
struct Slot(Arc<Device>);

#[async_trait]
impl Provider for Slot {
    async fn open(&self, _: &OpenKey<'_>) -> Result<Arc<dyn WrappingKey>, Error> {
        self.0.look();
        self.0.answer().await?;
        Ok(Arc::<Device>::clone(&self.0))
    }
}

/// A version with a replica in each device.
fn version(devices: &[Arc<Device>], balance: Balance) -> (Version, Arc<Replicas>) {
    let proof = Arc::<Proof>::default();
    proof.compare();
    let replica = |(number, device): (usize, &Arc<Device>)| {
        let place =
            config::Replica { provider: format!("hsm-{number}"), locator: "a key".to_owned() };
        let specification = Specification {
            place,
            algorithms: vec![Algorithm::RsaOaep],
            sign_algorithms: Vec::new(),
            public_key_sha256: device.public_key().sha256(),
        };
        let (changed, audit) = (watch::Sender::new(0), Arc::new(Audit::off()));
        let (provider, proof) = (Arc::new(Slot(Arc::clone(device))), Arc::clone(&proof));
        Arc::new(Replica::new(specification, ("software", provider), proof, changed, audit))
    };
    let replicas: Vec<_> = devices.iter().enumerate().map(replica).collect();
    let named = replicas.iter().map(|replica| (replica.specification.clone(), Arc::clone(replica)));
    let watched = Replicas { by_specification: named.collect(), ..Replicas::default() };
    let version = Version {
        number: 1,
        state: State::Active,
        algorithms: vec![Algorithm::RsaOaep],
        sign_algorithms: Vec::new(),
        public_key_sha256: None,
        certificate: None,
        replicas,
        balance,
    };
    (version, Arc::new(watched))
}

/// One call, which looks at each replica that it is sent to.
struct Caller<'a> {
    version: &'a Version,
    asked: Vec<Arc<Replica>>,
}

impl Work for Caller<'_> {
    type Output = Vec<u8>;

    async fn on(
        &mut self,
        replica: &Arc<Replica>,
        patience: Option<Duration>,
    ) -> Result<Vec<u8>, ErrorKind> {
        assert!(!replica.diverges(), "what diverges is never asked");
        assert!(!self.asked.iter().any(|asked| Arc::ptr_eq(asked, replica)), "each once at most");
        if !replica.is_serving() {
            let others = || self.version.replicas.iter().any(|replica| replica.is_serving());
            assert!(self.asked.is_empty() && !others(), "unproven, and others serve");
        }
        self.asked.push(Arc::clone(replica));
        let key = replica.key().expect("only open ones are chosen");
        let deadline = (Instant::now() + Duration::from_secs(10)).into_std();
        let call = Call { caller: CallerSlot::DAEMON, deadline };
        let parameters = Parameters::of(Algorithm::RsaOaep);
        let _counted = replica.backend_calls.start();
        let unwrapped = key.unwrap_key(&[], &parameters, call);
        match unless_silent(replica, patience, unwrapped).await {
            Ok(unwrapped) => {
                replica.proven();
                Ok(unwrapped.material.expose().to_vec())
            }
            Err(error) => Err(error.kind()),
        }
    }

    fn may_be_at_fault(&self) -> bool {
        true
    }
}

/// Calls one after the other while the weather changes; each is judged by how the devices were.
async fn calls_go_on(
    first: &[Weather],
    changes: &[(u64, usize, Weather)],
    balance: Balance,
) -> (u64, u64) {
    let devices: Vec<_> = first.iter().map(|weather| Device::new(*weather)).collect();
    let (version, replicas) = version(&devices, balance);
    let watching = tokio::spawn(monitor::watch(move || Arc::clone(&replicas)));
    monitor_has_begun(&version).await;
    let begun = Instant::now();
    let weather = tokio::spawn({
        let (devices, mut changes) = (devices.clone(), changes.to_vec());
        changes.sort_by_key(|(at, ..)| *at);
        async move {
            for (at, device, weather) in changes {
                sleep_until(begun + Duration::from_millis(at)).await;
                let count = devices.len();
                devices[device % count].becomes(weather);
            }
        }
    });
    let (mut answered, mut failed) = (0, 0);
    while begun.elapsed() < MINUTE {
        let count = if one_call(&version, &devices).await { &mut answered } else { &mut failed };
        *count += 1;
        sleep(STEP).await;
    }
    weather.await.expect("it has ended");
    for device in &devices {
        device.becomes(Weather::Well);
        assert_eq!(*device.wrong.lock().unwrap(), [""; 0]);
    }
    sleep(BACK).await;
    for replica in &version.replicas {
        assert!(replica.is_serving(), "not back after {BACK:?}: {:?}", replica.health());
    }
    let last = Instant::now();
    assert!(one_call(&version, &devices).await);
    assert!(last.elapsed() <= ANSWER * 2, "{:?}", last.elapsed());
    watching.abort();
    (answered, failed)
}

/// Each replica was opened, or has failed once.
async fn monitor_has_begun(version: &Version) {
    for replica in &version.replicas {
        replica.check_in_background();
    }
    sleep(ANSWER * 10).await;
}

/// Whether a call was answered. While a replica is well that has had its time to come back, it is.
async fn one_call(version: &Version, devices: &[Arc<Device>]) -> bool {
    let begun = Instant::now();
    let deadline = (begun + Duration::from_secs(10)).into_std();
    let need = Need { algorithm: Some(Algorithm::RsaOaep), has_label: false };
    let mut caller = Caller { version, asked: Vec::new() };
    let mut turns = Turns::new(version, need);
    let asking = ask(&mut turns, deadline, &mut caller);
    let outcome = tokio::time::timeout(Duration::from_secs(10), asking).await;
    let took = begun.elapsed();
    let is_answered = matches!(&outcome, Ok(Ok(material)) if *material == MATERIAL);
    let was_back = begun.checked_sub(BACK).unwrap_or(begun);
    if devices.iter().any(|device| device.well_since(was_back)) {
        assert!(is_answered, "{outcome:?}");
        assert!(took <= LONGEST, "{took:?}");
    }
    is_answered
}

fn any_weather() -> impl Strategy<Value = Weather> {
    prop_oneof![
        3 => Just(Weather::Well),
        2 => Just(Weather::Away(ErrorKind::Unavailable)),
        1 => Just(Weather::Away(ErrorKind::OperatorNeeded)),
        1 => Just(Weather::Away(ErrorKind::Internal)),
        1 => Just(Weather::Hangs),
        1 => Just(Weather::AnotherKey),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn outages_of_replicas_fail_no_call_while_one_is_well_and_each_is_back_in_five_seconds(
        first in prop::collection::vec(any_weather(), 1..4),
        changes in prop::collection::vec((0..60_000_u64, 0..3_usize, any_weather()), 0..20),
        least_busy in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let balance = if least_busy { Balance::LeastBusy } else { Balance::Priority };
        let (answered, failed) = runtime.block_on(calls_go_on(&first, &changes, balance));
        prop_assert!(answered + failed > 5, "{answered} answered, {failed} failed");
    }
}

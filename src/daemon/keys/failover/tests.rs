//! Choice and failover over scripted keys, with a clock that stands still but for what is waited for.

use claviger_provider_api::{Algorithm, Call, CallerSlot, Parameters};
use proptest::prelude::*;

use super::*;
use crate::daemon::config::{Balance, State};
use crate::daemon::keys::choice::{MOST_ASKED, Need};
use crate::daemon::keys::fakes::{Does, Fake, MATERIAL, serving_with};
use crate::daemon::keys::keyring::Version;

const OF_CALL: Duration = Duration::from_secs(10);
const ANSWER: Does = Does::Answers(Duration::from_millis(2));
const LOST: Does = Does::Fails(ErrorKind::Unavailable);

/// One unwrap, as the guard asks for it.
struct Unwrap;

impl Work for Unwrap {
    type Output = Vec<u8>;

    async fn on(
        &mut self,
        replica: &Arc<Replica>,
        patience: Option<Duration>,
    ) -> Result<Vec<u8>, ErrorKind> {
        let key = replica.key().expect("only open ones are chosen");
        let call = Call { caller: CallerSlot::DAEMON, deadline: deadline() };
        let parameters = Parameters::of(Algorithm::RsaOaep);
        let _counted = replica.backend_calls.start();
        let unwrapped = key.unwrap_key(&[], &parameters, call);
        let unwrapped = unless_silent(replica, patience, unwrapped).await;
        if unwrapped.is_ok() {
            replica.proven();
        }
        unwrapped.map(|got| got.material.expose().to_vec()).map_err(|error| error.kind())
    }

    fn may_be_at_fault(&self) -> bool {
        true
    }
}

fn deadline() -> std::time::Instant {
    (Instant::now() + OF_CALL).into_std()
}

/// A version whose replicas do this.
fn version(does: &[Does], balance: Balance) -> (Version, Vec<Arc<Fake>>) {
    let keys: Vec<_> = does.iter().map(|does| Fake::new(*does)).collect();
    let version = Version {
        number: 1,
        state: State::Active,
        algorithms: vec![Algorithm::RsaOaep],
        sign_algorithms: Vec::new(),
        public_key_sha256: None,
        certificate: None,
        replicas: keys.iter().map(serving_with).collect(),
        balance,
    };
    (version, keys)
}

fn turns(version: &Version) -> Turns<'_> {
    Turns::new(version, Need { algorithm: Some(Algorithm::RsaOaep), has_label: false })
}

async fn call(version: &Version) -> Result<Vec<u8>, Ended<'_>> {
    ask(&mut turns(version), deadline(), &mut Unwrap).await
}

fn asked(keys: &[Arc<Fake>]) -> Vec<u64> {
    keys.iter().map(|key| key.asked()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_call_that_a_replica_loses_is_answered_by_the_next_one() {
    for kind in [
        ErrorKind::Unavailable,
        ErrorKind::OperatorNeeded,
        ErrorKind::Internal,
        ErrorKind::Throttled { retry_after: None },
    ] {
        let (version, keys) = version(&[Does::Fails(kind), ANSWER], Balance::Priority);
        assert_eq!(call(&version).await.unwrap(), MATERIAL, "{kind:?}");
        assert_eq!(asked(&keys), [1, 1]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_that_a_replica_misses_is_asked_of_no_other_one() {
    let missed = Does::Fails(ErrorKind::UnwrapFailed);
    for balance in [Balance::Priority, Balance::LeastBusy] {
        let (version, keys) = version(&[missed, missed, missed], balance);
        assert!(matches!(call(&version).await, Err(Ended::Missed(_))));
        assert_eq!(asked(&keys), [1, 0, 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_replica_holds_the_first_call_for_a_second_and_the_next_ones_not_at_all() {
    let (version, keys) = version(&[Does::Hangs, ANSWER], Balance::Priority);
    let begun = Instant::now();
    call(&version).await.unwrap();
    assert_eq!(begun.elapsed().as_millis(), 1002);
    assert!(version.replicas[0].is_silent());
    let begun = Instant::now();
    call(&version).await.unwrap();
    assert_eq!((begun.elapsed().as_millis(), asked(&keys)), (2, vec![1, 2]));
    // Whatever is heard of it ends its silence.
    version.replicas[0].answered();
    assert!(!version.replicas[0].is_silent());
}

#[tokio::test(start_paused = true)]
async fn a_slow_replica_that_answers_others_is_not_silent() {
    let (version, keys) =
        version(&[Does::Answers(Duration::from_millis(3500)), ANSWER], Balance::Priority);
    let heard = Arc::clone(&version.replicas[0]);
    let others = tokio::spawn(async move {
        loop {
            heard.answered();
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
    });
    call(&version).await.unwrap();
    assert_eq!(asked(&keys), [1, 0]);
    others.abort();
}

#[tokio::test(start_paused = true)]
async fn what_is_drained_or_diverges_is_never_asked_and_what_fails_only_where_none_serves() {
    let (version, keys) = version(&[ANSWER, ANSWER, LOST], Balance::Priority);
    version.replicas[0].drain();
    keys[1].check_fails(ErrorKind::Unavailable, None);
    version.replicas[1].check().await.unwrap_err();
    assert!(matches!(call(&version).await, Err(Ended::Lost(lost)) if lost.len() == 1));
    assert_eq!(asked(&keys), [0, 0, 1]);
    // Where none serves, one that fails may be back.
    version.replicas[2].drain();
    assert_eq!(call(&version).await.unwrap(), MATERIAL);
    assert_eq!(asked(&keys), [0, 1, 1]);
    keys[1].check_fails(ErrorKind::Internal, Some(Cause::WrongAnswer));
    version.replicas[1].check().await.unwrap_err();
    assert!(matches!(call(&version).await, Err(Ended::Lost(lost)) if lost.is_empty()));
    assert_eq!(asked(&keys), [0, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn under_rsa1_5_a_replica_that_fails_is_not_asked_for_it_may_give_random_bytes() {
    let (version, keys) = version(&[ANSWER], Balance::Priority);
    keys[0].check_fails(ErrorKind::Unavailable, None);
    version.replicas[0].check().await.unwrap_err();
    let need = Need { algorithm: Some(Algorithm::Rsa15), has_label: false };
    assert!(Turns::new(&version, need).take().is_none());
    assert!(turns(&version).take().is_some());
}

#[tokio::test(start_paused = true)]
async fn the_least_busy_replica_is_asked_and_of_equals_the_first() {
    let (version, keys) = version(&[ANSWER; 3], Balance::LeastBusy);
    let busy: Vec<_> = (0..3).map(|_| version.replicas[0].backend_calls.start()).collect();
    let busier = version.replicas[1].backend_calls.start();
    call(&version).await.unwrap();
    assert_eq!(asked(&keys), [0, 0, 1]);
    drop((busy, busier));
    call(&version).await.unwrap();
    assert_eq!(asked(&keys), [1, 0, 1]);
}

/// How long 640 calls take, 32 at a time, over two keys that take 5 ms for each.
async fn time_of_many_calls(balance: Balance) -> (Duration, Vec<u64>) {
    let (version, keys) = version(&[Does::Works(Duration::from_millis(5)); 2], balance);
    let begun = Instant::now();
    let calls = futures::stream::iter(0..640).map(|_| call(&version));
    let answered = calls.buffer_unordered(32).filter(|outcome| std::future::ready(outcome.is_ok()));
    assert_eq!(answered.count().await, 640);
    (begun.elapsed(), asked(&keys))
}

#[tokio::test(start_paused = true)]
async fn two_keys_of_5_ms_each_give_twice_of_one_when_the_least_busy_is_asked() {
    let (of_one, asked) = time_of_many_calls(Balance::Priority).await;
    assert_eq!(asked, [640, 0]);
    let (of_two, asked) = time_of_many_calls(Balance::LeastBusy).await;
    assert!(asked.iter().all(|asked| *asked > 300), "{asked:?}");
    let gain = of_one.as_secs_f64() / of_two.as_secs_f64();
    println!("in simulated time: {of_one:?} over one, {of_two:?} over two, {gain:.2}x");
    assert!(gain >= 1.9, "{gain}");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_passed_ends_the_round() {
    let late = Does::Fails(ErrorKind::DeadlineExceeded);
    let (version, keys) = version(&[late, ANSWER], Balance::Priority);
    assert!(matches!(call(&version).await, Err(Ended::Late)));
    assert_eq!(asked(&keys), [1, 0]);
}

fn any_behaviour() -> impl Strategy<Value = Does> {
    prop_oneof![
        4 => (0..900_u64).prop_map(|ms| Does::Answers(Duration::from_millis(ms))),
        1 => Just(Does::Fails(ErrorKind::UnwrapFailed)),
        1 => Just(LOST),
        1 => Just(Does::Fails(ErrorKind::OperatorNeeded)),
        1 => Just(Does::Fails(ErrorKind::Internal)),
        1 => Just(Does::Fails(ErrorKind::Throttled { retry_after: None })),
        1 => Just(Does::Hangs),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Over any replicas, drained or not, busy or not: who is asked, in which order, how often, for how
    /// long, and what comes of it.
    #[test]
    fn each_replica_is_asked_once_at_most_and_one_that_answers_is_found(
        replicas in prop::collection::vec((any_behaviour(), any::<bool>(), 0..3_usize), 1..6),
        least_busy in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let _in_runtime = runtime.enter();
        let balance = if least_busy { Balance::LeastBusy } else { Balance::Priority };
        let does: Vec<Does> = replicas.iter().map(|(does, ..)| *does).collect();
        let (version, keys) = version(&does, balance);
        let mut busy = Vec::new();
        for (replica, (_, is_drained, calls)) in version.replicas.iter().zip(&replicas) {
            if *is_drained {
                replica.drain();
            }
            busy.extend((0..*calls).map(|_| replica.backend_calls.start()));
        }
        // The order in which they are to be asked.
        let mut order: Vec<usize> = (0..does.len()).filter(|at| !replicas[*at].1).collect();
        if least_busy {
            order.sort_by_key(|at| replicas[*at].2);
        }
        order.truncate(MOST_ASKED);
        let ends = |at: &usize| {
            matches!(does[*at], Does::Answers(_) | Does::Fails(ErrorKind::UnwrapFailed))
        };
        let asked_at_all = order.iter().position(ends).map_or(order.len(), |at| at + 1);
        let end = asked_at_all.checked_sub(1).map(|at| does[order[at]]);
        // The last one is waited for until the caller leaves.
        let hangs_for_ever = end == Some(Does::Hangs) && asked_at_all == order.len();

        let (outcome, took) = runtime.block_on(async {
            let begun = Instant::now();
            let outcome = tokio::time::timeout(OF_CALL, call(&version)).await;
            (outcome, begun.elapsed())
        });
        let expected: Vec<u64> = (0..does.len())
            .map(|at| u64::from(order[..asked_at_all].contains(&at)))
            .collect();
        prop_assert_eq!(asked(&keys), expected);
        match outcome {
            Err(_) => prop_assert!(hangs_for_ever),
            Ok(Ok(material)) => {
                prop_assert!(matches!(end, Some(Does::Answers(_))));
                prop_assert_eq!(material, MATERIAL);
            }
            Ok(Err(Ended::Missed(_))) => {
                prop_assert_eq!(end, Some(Does::Fails(ErrorKind::UnwrapFailed)));
            }
            Ok(Err(Ended::Lost(lost))) => {
                prop_assert_eq!(lost.len(), asked_at_all);
                prop_assert!(!order.iter().any(ends));
            }
            Ok(Err(Ended::Late)) => prop_assert!(false, "nothing passed its deadline"),
        }
        // A second at most for each one that is silent, and the time of the answer.
        if !hangs_for_ever {
            prop_assert!(took <= PATIENCE.1 * 3, "{took:?}");
        }
    }
}

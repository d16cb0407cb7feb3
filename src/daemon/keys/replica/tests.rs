//! Tests of a replica, over a key whose checks end as a test says.

use std::sync::Mutex as StdMutex;

use claviger_provider_api::{Algorithm, ErrorKind};

use super::*;
use crate::daemon::keys::fakes::{Does, Fake, Gives, replica_of, serving, serving_with};

const THROTTLED: ErrorKind = ErrorKind::Throttled { retry_after: Some(Duration::from_secs(3)) };

#[tokio::test]
async fn a_throttled_canary_is_told_to_who_asked_and_the_key_serves_on() {
    let replica = serving(&[THROTTLED]);
    let changes = replica.changed.subscribe();
    // Longer than the clock's grain.
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(replica.check().await.unwrap_err().kind, THROTTLED);
    assert!(replica.is_serving());
    assert!(!changes.has_changed().unwrap(), "no watcher of its health is told");
    let had_its_turn_ago = replica.had_its_turn_ago();
    assert!(had_its_turn_ago < replica.proven_ago(), "it had its turn, and proved nothing");
}

#[tokio::test]
async fn a_throttled_canary_mends_nothing() {
    let replica = serving(&[ErrorKind::OperatorNeeded, THROTTLED]);
    assert_eq!(replica.check().await.unwrap_err().kind, ErrorKind::OperatorNeeded);
    assert!(!replica.is_serving());
    assert_eq!(replica.check().await.unwrap_err().kind, THROTTLED);
    assert!(!replica.is_serving());
    replica.check().await.unwrap();
    assert!(replica.is_serving());
}

#[tokio::test]
async fn a_replica_whose_process_has_ended_is_shown_as_failing_before_a_call_or_a_canary_notices() {
    let key = Fake::new(Does::Answers(Duration::ZERO));
    let replica = serving_with(&key);
    assert_eq!((replica.reason(), replica.shown_health().name()), ("ok", "serves"));
    key.is_away(true);
    assert_eq!((replica.reason(), replica.shown_health().name()), ("unreachable", "fails"));
    assert!(replica.shown_health().fault().unwrap().text.contains("its process has ended"));
    assert!(replica.is_serving(), "a call may still wait for the next process");
    key.is_away(false);
    assert_eq!((replica.reason(), replica.shown_health().name()), ("ok", "serves"));
}

/// Two replicas of one version, which are to be equal: what unwraps in one place, and the provider of
/// the other one.
struct Twins {
    key: Arc<Fake>,
    first: Arc<Replica>,
    second: Arc<Replica>,
    place: Arc<Gives>,
}

impl Twins {
    /// The second place holds this key.
    fn with(key: Arc<Fake>, other: Arc<Fake>) -> Self {
        let proof = Arc::<Proof>::default();
        proof.compare();
        let sha256 = key.public_key().sha256();
        let first: Arc<dyn WrappingKey> = Arc::<Fake>::clone(&key);
        let place = Arc::new(Gives(StdMutex::new(other)));
        let of = |provider| replica_of(provider, sha256, &[Algorithm::RsaOaep], &proof);
        let (first, second) =
            (of(Arc::new(Gives(StdMutex::new(first)))), of(Arc::clone(&place) as _));
        Self { key, first, second, place }
    }
}

#[tokio::test]
async fn another_key_in_the_same_place_never_serves_and_the_right_one_does_when_it_is_back() {
    let Twins { key, first, second, place } = Twins::with(Fake::pair(), Fake::pair());
    first.check().await.unwrap();
    let fault = second.check().await.unwrap_err();
    assert!(fault.is_divergence() && fault.text.contains("another key lies here"), "{fault:?}");
    assert!(first.is_serving() && second.diverges() && second.key().is_none());
    *place.0.lock().unwrap() = key;
    second.check().await.unwrap();
    assert!(second.is_serving());
}

#[tokio::test]
async fn a_replica_that_does_not_unwrap_what_the_other_one_does_is_not_opened() {
    for (does, said) in [
        (Does::Answers(Duration::ZERO), "other bytes"),
        (Does::Fails(ErrorKind::UnwrapFailed), "RSA-OAEP does not work in this replica"),
    ] {
        let key = Fake::pair();
        let Twins { key, first, second, .. } = Twins::with(Arc::clone(&key), key);
        first.check().await.unwrap();
        key.does(does);
        let fault = second.check().await.unwrap_err();
        assert!(fault.is_divergence() && fault.text.contains(said), "{fault:?}");
        assert!(second.key().is_none());
        key.does(Does::Unwraps);
        second.check().await.unwrap();
        assert!(second.is_serving());
    }
}

#[tokio::test(start_paused = true)]
async fn an_open_replica_is_compared_every_five_minutes_and_one_that_diverges_must_prove_itself() {
    let key = Fake::pair();
    let Twins { key, first, .. } = Twins::with(Arc::clone(&key), key);
    first.check().await.unwrap();
    let opened = key.asked();
    first.check().await.unwrap();
    assert_eq!(key.asked(), opened, "a check of its own is enough in between");
    assert_eq!(first.comparison_due_for(), None);
    tokio::time::advance(COMPARE_EVERY).await;
    assert!(first.comparison_due_for().is_some());
    key.does(Does::Answers(Duration::ZERO));
    assert!(first.check().await.unwrap_err().is_divergence());
    assert!(first.diverges() && !first.is_serving());
    // A call that was on its way proves nothing, and neither does the key's own canary.
    first.proven();
    first.check().await.unwrap_err();
    assert!(first.diverges());
    key.does(Does::Unwraps);
    first.check().await.unwrap();
    assert!(first.is_serving());
}

#[tokio::test]
async fn a_backend_that_goes_away_during_a_comparison_fails_and_does_not_diverge() {
    let key = Fake::pair();
    let Twins { key, first, .. } = Twins::with(Arc::clone(&key), key);
    key.does(Does::Fails(ErrorKind::UnwrapFailed));
    key.check_fails(ErrorKind::Unavailable, None);
    assert_eq!(first.check().await.unwrap_err().kind, ErrorKind::Unavailable);
    assert!(!first.diverges());
}

#[tokio::test]
async fn a_drained_replica_is_asked_nothing_and_stays_so() {
    let key = Fake::new(Does::Answers(Duration::ZERO));
    let replica = serving_with(&key);
    replica.drain();
    assert_eq!(&*replica.check().await.unwrap_err().text, DRAINED);
    replica.proven();
    assert_eq!(*replica.health(), ReplicaHealth::Drained);
    assert_eq!(key.asked(), 0);
}

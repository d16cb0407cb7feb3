//! Tests of a replica, over a key whose checks end as a test says.

use std::collections::{BTreeMap, VecDeque};

use async_trait::async_trait;
use claviger_provider_api::{
    Algorithms, Call, Digest, KeyMaterial, Parameters, SignAlgorithms, Signature, Unwrapped,
};

use super::*;

/// Answers each check with the next of these, and is well after the last.
#[derive(Debug)]
struct Scripted {
    public_key: PublicKey,
    checks: Mutex<VecDeque<ErrorKind>>,
}

#[async_trait]
impl WrappingKey for Scripted {
    fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    fn algorithms(&self) -> Algorithms {
        Algorithms::EMPTY
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

    async fn unwrap_key(
        &self,
        _wrapped: &[u8],
        _parameters: &Parameters<'_>,
        _call: Call,
    ) -> Result<Unwrapped, Error> {
        let material = KeyMaterial::copied_from(&[7; 32]);
        Ok(Unwrapped { material, backend_request_id: None })
    }

    async fn sign(
        &self,
        _digest: &Digest,
        _algorithm: claviger_provider_api::SignAlgorithm,
        _call: Call,
    ) -> Result<Signature, Error> {
        Err(Error::new(ErrorKind::OperatorNeeded, "this key does not sign"))
    }

    async fn check(&self) -> Result<(), Error> {
        match self.checks.lock().unwrap().pop_front() {
            Some(kind) => Err(Error::new(kind, "as the test says")),
            None => Ok(()),
        }
    }
}

/// A replica that serves, whose next checks fail like this.
pub(in crate::daemon) fn serving(checks: &[ErrorKind]) -> Arc<Replica> {
    let replica = closed();
    let mut modulus = [0xff; 256];
    modulus[0] = 0xc0;
    let public_key = PublicKey::from_components(&modulus, &[1, 0, 1]).unwrap();
    let checks = Mutex::new(checks.iter().copied().collect());
    replica.adopt(Arc::new(Scripted { public_key, checks }));
    replica
}

/// A replica that failed like this and was never open.
pub(in crate::daemon) fn failing(kind: ErrorKind) -> Arc<Replica> {
    let replica = closed();
    replica.set_health(&ReplicaHealth::Failing(Fault { kind, text: "as the test says".into() }));
    replica
}

fn closed() -> Arc<Replica> {
    let config = claviger_software::Config {
        directory: Some("keys".into()),
        passphrase: None,
        files: BTreeMap::new(),
    };
    let provider = claviger_software::Provider::new("files", &config).unwrap();
    let place = config::Replica { provider: "files".into(), locator: "a.pem".into() };
    let specification = Specification {
        place,
        algorithms: Vec::new(),
        sign_algorithms: Vec::new(),
        public_key_sha256: [0; 32],
    };
    let provider = Arc::new(provider);
    Arc::new(Replica::new(specification, provider, watch::Sender::new(0), Arc::new(Audit::off())))
}

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

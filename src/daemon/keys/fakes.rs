//! Keys and providers for the tests of replicas: each does what a test says.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{KeySize, OAEP_SHA1_MGF1SHA1, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use claviger_provider_api::{
    Algorithm, Algorithms, Call, Cause, Digest, Error, ErrorKind, KeyMaterial, OpenKey, Parameters,
    Provider, PublicKey, SignAlgorithm, SignAlgorithms, Signature, Unwrapped, WrappingKey,
};
use tokio::sync::watch;

use super::health::{Fault, ReplicaHealth};
use super::proof::Proof;
use super::replica::Replica;
use super::specification::Specification;
use crate::daemon::config;
use crate::daemon::records::audit::Audit;

/// What becomes of an unwrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Does {
    /// It gives [`MATERIAL`] after so long.
    Answers(Duration),
    /// It gives [`MATERIAL`] after so long, one value at a time.
    Works(Duration),
    /// It unwraps what was wrapped with its public key.
    Unwraps,
    /// It fails so.
    Fails(ErrorKind),
    /// It never ends, and neither does a check.
    Hangs,
}

/// What a fake key gives.
pub(super) const MATERIAL: [u8; 32] = [7; 32];

/// A key that does what it is told, and counts what it is asked.
#[derive(Debug)]
pub(super) struct Fake {
    public_key: PublicKey,
    private_key: Option<OaepPrivateDecryptingKey>,
    does: Mutex<Does>,
    /// How its next checks fail; it is well after the last.
    checks: Mutex<VecDeque<(ErrorKind, Option<Cause>)>>,
    lane: tokio::sync::Mutex<()>,
    asked: AtomicU64,
    is_away: AtomicBool,
}

impl Fake {
    pub(super) fn new(does: Does) -> Arc<Self> {
        let mut modulus = [0xff; 256];
        modulus[0] = 0xc0;
        Self::of(PublicKey::from_components(&modulus, &[1, 0, 1]).unwrap(), None, does)
    }

    /// A real key pair, which [`Does::Unwraps`] uses.
    pub(super) fn pair() -> Arc<Self> {
        let private_key = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
        let spki = private_key.public_key().as_der().unwrap();
        let public_key = PublicKey::from_spki(spki.as_ref()).unwrap();
        let private_key = OaepPrivateDecryptingKey::new(private_key).unwrap();
        Self::of(public_key, Some(private_key), Does::Unwraps)
    }

    fn of(
        public_key: PublicKey,
        private_key: Option<OaepPrivateDecryptingKey>,
        does: Does,
    ) -> Arc<Self> {
        Arc::new(Self {
            public_key,
            private_key,
            does: Mutex::new(does),
            checks: Mutex::default(),
            lane: tokio::sync::Mutex::default(),
            asked: AtomicU64::new(0),
            is_away: AtomicBool::new(false),
        })
    }

    /// From now on it does this.
    pub(super) fn does(&self, does: Does) {
        *self.does.lock().unwrap() = does;
    }

    /// Its provider knows from now on whether it can be asked.
    pub(super) fn is_away(&self, is_away: bool) {
        self.is_away.store(is_away, Ordering::Relaxed);
    }

    /// One more check fails so.
    pub(super) fn check_fails(&self, kind: ErrorKind, cause: Option<Cause>) {
        self.checks.lock().unwrap().push_back((kind, cause));
    }

    /// Unwraps that it was asked for.
    pub(super) fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    fn decrypt(&self, wrapped: &[u8]) -> Result<KeyMaterial, Error> {
        let private_key = self.private_key.as_ref().expect("made as a pair");
        let mut buffer = [0; 256];
        let bytes = private_key.decrypt(&OAEP_SHA1_MGF1SHA1, wrapped, &mut buffer, None);
        let bytes = bytes.map_err(|_| Error::new(ErrorKind::UnwrapFailed, "a bad value"))?;
        Ok(KeyMaterial::copied_from(bytes))
    }
}

#[async_trait]
impl WrappingKey for Fake {
    fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    fn algorithms(&self) -> Algorithms {
        [Algorithm::RsaOaep].into_iter().collect()
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

    fn away(&self) -> Option<Error> {
        let is_away = self.is_away.load(Ordering::Relaxed);
        is_away.then(|| Error::new(ErrorKind::Unavailable, "its process has ended"))
    }

    async fn unwrap_key(
        &self,
        wrapped: &[u8],
        _parameters: &Parameters<'_>,
        _call: Call,
    ) -> Result<Unwrapped, Error> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let does = *self.does.lock().unwrap();
        let material = match does {
            Does::Answers(after) => {
                tokio::time::sleep(after).await;
                KeyMaterial::copied_from(&MATERIAL)
            }
            Does::Works(for_so_long) => {
                let _alone = self.lane.lock().await;
                tokio::time::sleep(for_so_long).await;
                KeyMaterial::copied_from(&MATERIAL)
            }
            Does::Unwraps => self.decrypt(wrapped)?,
            Does::Fails(kind) => return Err(Error::new(kind, "as the test says")),
            Does::Hangs => std::future::pending().await,
        };
        Ok(Unwrapped { material, backend_request_id: None })
    }

    async fn sign(&self, _: &Digest, _: SignAlgorithm, _: Call) -> Result<Signature, Error> {
        Err(Error::new(ErrorKind::OperatorNeeded, "this key does not sign"))
    }

    async fn check(&self) -> Result<(), Error> {
        let hangs = *self.does.lock().unwrap() == Does::Hangs;
        if hangs {
            std::future::pending::<()>().await;
        }
        match self.checks.lock().unwrap().pop_front() {
            Some((kind, cause)) => Err(Error::new(kind, "as the test says").with_cause(cause)),
            None => Ok(()),
        }
    }
}

/// A provider that gives one key whenever it is asked.
#[derive(Debug)]
pub(super) struct Gives(pub(super) Mutex<Arc<dyn WrappingKey>>);

#[async_trait]
impl Provider for Gives {
    async fn open(&self, _: &OpenKey<'_>) -> Result<Arc<dyn WrappingKey>, Error> {
        Ok(Arc::clone(&self.0.lock().unwrap()))
    }
}

/// A replica of this provider, not opened yet.
pub(super) fn replica_of(
    provider: Arc<dyn Provider>,
    public_key_sha256: [u8; 32],
    algorithms: &[Algorithm],
    proof: &Arc<Proof>,
) -> Arc<Replica> {
    let specification = Specification {
        place: config::Replica { provider: "hsm".into(), locator: "a".into() },
        algorithms: algorithms.to_vec(),
        sign_algorithms: Vec::new(),
        public_key_sha256,
    };
    let (changed, audit) = (watch::Sender::new(0), Arc::new(Audit::off()));
    Arc::new(Replica::new(specification, ("software", provider), Arc::clone(proof), changed, audit))
}

/// A replica that serves with this key.
pub(super) fn serving_with(key: &Arc<Fake>) -> Arc<Replica> {
    let key: Arc<dyn WrappingKey> = Arc::<Fake>::clone(key);
    let replica = closed(Arc::clone(&key));
    replica.adopt(key);
    replica
}

/// A replica that serves, whose next checks fail like this.
pub(super) fn serving(checks: &[ErrorKind]) -> Arc<Replica> {
    let key = Fake::new(Does::Answers(Duration::ZERO));
    for kind in checks {
        key.check_fails(*kind, None);
    }
    serving_with(&key)
}

/// A replica that failed like this and was never open.
pub(super) fn failing(kind: ErrorKind) -> Arc<Replica> {
    let replica = closed(Fake::new(Does::Hangs));
    replica.set_health(&ReplicaHealth::Failing(Fault::new(kind, "as the test says")));
    replica
}

fn closed(key: Arc<dyn WrappingKey>) -> Arc<Replica> {
    let provider = Arc::new(Gives(Mutex::new(key)));
    replica_of(provider, [0; 32], &[Algorithm::RsaOaep], &Arc::default())
}

//! The proof that the replicas of a version are equal: one value, wrapped once for each algorithm with
//! the pinned public key, that every replica unwraps to the same bytes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use claviger_provider_api::checks::daemon_call;
use claviger_provider_api::{Canary, Cause, Error, ErrorKind, Parameters, PublicKey, WrappingKey};

use super::health::Fault;
use super::specification::Specification;

/// The value of one version; its replicas share it.
#[derive(Debug, Default)]
pub struct Proof {
    canary: OnceLock<Canary>,
    making: Mutex<()>,
    has_several: AtomicBool,
}

impl Proof {
    /// Notes that the version has more than one replica, so that they are to be compared.
    pub fn compare(&self) {
        self.has_several.store(true, Ordering::Relaxed);
    }

    /// Whether a replica proves more by it than by its own canary, which has one algorithm at a time.
    pub(super) fn is_needed(&self, of: &Specification) -> bool {
        let algorithms = of.algorithms.len() + of.sign_algorithms.len();
        self.has_several.load(Ordering::Relaxed) || algorithms > 1
    }

    /// Whether the version has more than one replica.
    pub(super) fn compares(&self) -> bool {
        self.has_several.load(Ordering::Relaxed)
    }

    /// Has an open key unwrap the value under every algorithm of its version, and sign with every one.
    pub(super) async fn ask(&self, key: &dyn WrappingKey, of: &Specification) -> Result<(), Fault> {
        let canary = self.canary(key.public_key(), of).map_err(|error| Fault::of(&error))?;
        for (algorithm, wrapped) in canary.wrapped() {
            let unwrapped =
                key.unwrap_key(wrapped, &Parameters::of(algorithm), daemon_call()).await;
            let accepted = unwrapped.and_then(|unwrapped| canary.accept(&unwrapped.material));
            accepted.map_err(|error| refuted(algorithm.name(), &error))?;
        }
        for algorithm in canary.sign_algorithms() {
            let digest = canary.digest(algorithm);
            let signature = key.sign(&digest, algorithm, daemon_call()).await;
            let accepted = signature.and_then(|signature| {
                canary.accept_signature(key.public_key(), algorithm, &signature)
            });
            accepted.map_err(|error| refuted(algorithm.name(), &error))?;
        }
        Ok(())
    }

    /// Made from the first public key that matched the pin: all others are the same.
    fn canary(&self, public_key: &PublicKey, of: &Specification) -> Result<&Canary, Error> {
        let _alone = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(canary) = self.canary.get() {
            return Ok(canary);
        }
        let canary = Canary::new(public_key, &of.to_open())?;
        Ok(self.canary.get_or_init(|| canary))
    }
}

/// What a failed proof says. A value that is good and does not unwrap is a statement about the
/// algorithm; all else is what it is.
fn refuted(algorithm: &str, error: &Error) -> Fault {
    match error.kind() {
        ErrorKind::UnwrapFailed => Fault::new(
            ErrorKind::OperatorNeeded,
            format!(
                "{algorithm} does not work in this replica: a value that was wrapped once for all \
                 replicas of the version does not unwrap ({error})"
            ),
        )
        .with_cause(Cause::AlgorithmNotOffered),
        _ => Fault::of(error),
    }
}

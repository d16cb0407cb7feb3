//! One replica: opened as the daemon opens it, compared with its pin, proven by canaries, timed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use claviger_provider_api::{
    Algorithm, Call, CallerSlot, Canary, Cause, Error, OpenKey, Parameters, Provider,
    SignAlgorithm, WrappingKey,
};

use super::diagnosis::Trouble;
use crate::daemon::config::{Replica, Version};
use crate::daemon::keys::diagnosis::Diagnosis;

/// How long one private-key operation may take.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// How many unwraps are timed, and how long that may take in all.
const TIMED: (usize, Duration) = (5, Duration::from_secs(2));

/// One replica of the configuration, with its key and version.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConfiguredReplica<'a> {
    /// The key's name.
    pub(super) key: &'a str,
    /// Its version.
    pub(super) version: &'a Version,
    /// The replica.
    pub(super) replica: &'a Replica,
}

/// What was found out about a replica.
#[derive(Debug)]
pub(super) struct Finding {
    /// The key that lies there, if it was seen.
    pub(super) found: Option<Found>,
    /// Everything that is wrong.
    pub(super) troubles: Vec<Trouble>,
    /// How long it took to find out.
    pub(super) took: Duration,
}

/// A key that was found.
#[derive(Debug)]
pub(super) struct Found {
    /// The length of its modulus.
    pub(super) bits: usize,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub(super) sha256: [u8; 32],
    /// Whether its backend would hand it out; none where it does not tell.
    pub(super) extractable: Option<bool>,
    /// What its backend allows with it and the configuration does not ask for.
    pub(super) unneeded_rights: Vec<String>,
    /// Which algorithms its backend gave canaries back with.
    pub(super) proofs: Proofs,
    /// How long unwraps took, shortest first; none for a key that only signs.
    pub(super) unwraps: Vec<Duration>,
}

impl Finding {
    /// Nothing but this.
    pub(super) fn of(trouble: Trouble) -> Self {
        Self { found: None, troubles: vec![trouble], took: Duration::ZERO }
    }

    /// Whether nothing is wrong.
    pub(super) fn is_sound(&self) -> bool {
        self.troubles.is_empty()
    }

    /// Whether the key that lies there is not the pinned one.
    pub(super) fn holds_another_key(&self) -> bool {
        self.troubles.iter().any(|trouble| trouble.diagnosis == Diagnosis::Of(Cause::AnotherKey))
    }
}

/// Examines a replica. The key that it gives is open: as long as one is, a token stays logged in.
pub(super) async fn examine(
    provider: &dyn Provider,
    configured: &ConfiguredReplica<'_>,
) -> (Finding, Option<Arc<dyn WrappingKey>>) {
    let begun = Instant::now();
    let Version { algorithms, sign_algorithms, public_key_sha256, .. } = configured.version;
    let whole = OpenKey {
        locator: &configured.replica.locator,
        algorithms,
        sign_algorithms,
        public_key_sha256: *public_key_sha256,
    };
    let mut troubles = Vec::new();
    let mut as_configured = true;
    let (key, proofs, unwraps) = match provider.open(&whole).await {
        Ok(key) => match prove(&*key, &whole).await {
            Ok((proofs, unwraps)) => {
                troubles.extend(failures(&proofs).map(Trouble::of));
                (Some(key), proofs, unwraps)
            }
            Err(error) => {
                troubles.push(Trouble::of(&error));
                (Some(key), Proofs::new(), Vec::new())
            }
        },
        Err(error) => {
            let trouble = Trouble::of(&error);
            let the_rest_may_work = trouble.diagnosis == Diagnosis::Of(Cause::AlgorithmNotOffered);
            troubles.push(trouble);
            if the_rest_may_work {
                as_configured = false;
                let (key, proofs) = one_by_one(provider, &whole).await;
                (key, proofs, Vec::new())
            } else {
                (None, Proofs::new(), Vec::new())
            }
        }
    };
    let found = key.as_deref().map(|key| {
        let sha256 = key.public_key().sha256();
        troubles.extend(Trouble::of_pin(sha256, *public_key_sha256));
        let (bits, extractable) = (key.public_key().modulus_bits(), key.extractable());
        // One that was opened for less needs less.
        let unneeded_rights = as_configured.then(|| key.unneeded_rights().to_vec());
        let unneeded_rights = unneeded_rights.unwrap_or_default();
        Found { bits, sha256, extractable, unneeded_rights, proofs, unwraps }
    });
    (Finding { found, troubles, took: begun.elapsed() }, key)
}

fn failures(proofs: &Proofs) -> impl Iterator<Item = &Error> {
    proofs.iter().filter_map(|(_, proof)| proof.as_ref().err())
}

/// Opens the key with no algorithm, and with each alone: which of them work.
async fn one_by_one(
    provider: &dyn Provider,
    whole: &OpenKey<'_>,
) -> (Option<Arc<dyn WrappingKey>>, Proofs) {
    let bare = OpenKey { algorithms: &[], sign_algorithms: &[], ..*whole };
    let Ok(key) = provider.open(&bare).await else { return (None, Proofs::new()) };
    let mut proofs = Proofs::new();
    for algorithm in whole.algorithms {
        let alone = OpenKey { algorithms: &[*algorithm], ..bare };
        proofs.push((algorithm.name(), provider.open(&alone).await.map(drop)));
    }
    for algorithm in whole.sign_algorithms {
        let alone = OpenKey { sign_algorithms: &[*algorithm], ..bare };
        proofs.push((algorithm.name(), provider.open(&alone).await.map(drop)));
    }
    (Some(key), proofs)
}

/// Each listed algorithm that was tried, and why it does not work.
pub(super) type Proofs = Vec<(&'static str, Result<(), Error>)>;

/// A canary for each algorithm, and some more unwraps with the first that works, timed.
async fn prove(
    key: &dyn WrappingKey,
    whole: &OpenKey<'_>,
) -> Result<(Proofs, Vec<Duration>), Error> {
    let canary = Canary::new(key.public_key(), whole)?;
    let mut proofs = Proofs::new();
    let mut unwraps = Vec::new();
    let mut timed = None;
    for (algorithm, wrapped) in canary.wrapped() {
        let outcome = unwrap(key, &canary, algorithm, wrapped).await;
        if let (Ok(took), None) = (&outcome, &timed) {
            unwraps.push(*took);
            timed = Some((algorithm, wrapped));
        }
        proofs.push((algorithm.name(), outcome.map(drop)));
    }
    for algorithm in canary.sign_algorithms() {
        proofs.push((algorithm.name(), sign(key, &canary, algorithm).await));
    }
    if let Some((algorithm, wrapped)) = timed {
        let begun = Instant::now();
        while unwraps.len() < TIMED.0 && begun.elapsed() < TIMED.1 {
            match unwrap(key, &canary, algorithm, wrapped).await {
                Ok(took) => unwraps.push(took),
                Err(error) => {
                    // What works now and then does not work.
                    proofs.push((algorithm.name(), Err(error)));
                    break;
                }
            }
        }
    }
    unwraps.sort_unstable();
    Ok((proofs, unwraps))
}

async fn unwrap(
    key: &dyn WrappingKey,
    canary: &Canary,
    algorithm: Algorithm,
    wrapped: &[u8],
) -> Result<Duration, Error> {
    let begun = Instant::now();
    let unwrapped = key.unwrap_key(wrapped, &Parameters::of(algorithm), call()).await?;
    let took = begun.elapsed();
    canary.accept(&unwrapped.material)?;
    Ok(took)
}

async fn sign(
    key: &dyn WrappingKey,
    canary: &Canary,
    algorithm: SignAlgorithm,
) -> Result<(), Error> {
    let signature = key.sign(&canary.digest(algorithm), algorithm, call()).await?;
    canary.accept_signature(key.public_key(), algorithm, &signature)
}

fn call() -> Call {
    Call { caller: CallerSlot::DAEMON, deadline: Instant::now() + CALL_LIMIT }
}

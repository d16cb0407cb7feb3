//! Names -> keys -> versions -> replicas, and which of them may answer a call.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use claviger_provider_api::{
    Algorithm, Algorithms, ErrorKind, PublicKey, SignAlgorithm, SignAlgorithms, WrappingKey,
};

use crate::daemon::config::{Balance, Operation, State};
use crate::daemon::keys::health::{Fault, OK, ReplicaHealth};
use crate::daemon::keys::replica::{DRAINED, Replica};
use crate::daemon::records::metrics::KeyMetrics;
use crate::daemon::status::Failure;

/// Every configured key by name.
#[derive(Debug, Default)]
pub struct Keyring {
    /// By name.
    pub keys: HashMap<String, Arc<Key>>,
}

/// A key: one name, one or more versions.
#[derive(Debug)]
pub struct Key {
    /// Its name in the configuration.
    pub name: String,
    /// Newest first; disabled ones too.
    pub versions: Vec<Version>,
    /// Its counters.
    pub metrics: Arc<KeyMetrics>,
}

/// One RSA key pair of a key.
#[derive(Debug)]
pub struct Version {
    /// From 1.
    pub number: u32,
    /// What it may be used for.
    pub state: State,
    /// The default first.
    pub algorithms: Vec<Algorithm>,
    /// As configured.
    pub sign_algorithms: Vec<SignAlgorithm>,
    /// SHA-256 of the SubjectPublicKeyInfo; a disabled version may have none.
    pub public_key_sha256: Option<[u8; 32]>,
    /// An X.509 certificate, DER.
    pub certificate: Option<Vec<u8>>,
    /// In the order of the configuration; empty if disabled.
    pub replicas: Vec<Arc<Replica>>,
    /// Which of several replicas that serve is asked first.
    pub balance: Balance,
}

/// A version that may answer an unwrap.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// The version.
    pub version: &'a Version,
    /// The request's algorithm, else the version's first.
    pub algorithm: Algorithm,
}

impl Key {
    /// Whether at least one version is not disabled.
    pub fn is_usable(&self) -> bool {
        self.usable().next().is_some()
    }

    /// Whether every version that is not disabled has a replica that serves.
    pub fn is_serving(&self) -> bool {
        self.is_usable() && self.usable().all(Version::is_serving)
    }

    /// `ok`, or the reason of the newest version that is not: the doctor's word, `opening`, `drained`;
    /// `disabled` where all versions are.
    pub fn reason(&self) -> &'static str {
        let reasons: Vec<_> = self.usable().map(|v| (v.is_serving(), v.reason())).collect();
        let first = reasons.iter().find(|(serves, _)| !serves);
        let first = first.or_else(|| reasons.iter().find(|(_, reason)| *reason != OK));
        first.or(reasons.first()).map_or("disabled", |(_, reason)| *reason)
    }

    /// Versions that are not disabled, newest first.
    pub fn usable(&self) -> impl Iterator<Item = &Version> {
        self.versions.iter().filter(|version| version.state != State::Disabled)
    }

    /// Versions that may wrap and sign, newest first.
    fn active(&self) -> impl Iterator<Item = &Version> {
        self.versions.iter().filter(|version| version.state == State::Active)
    }

    /// A version by number; a disabled or absent one answers as a key that is not yours.
    pub fn version(&self, number: u32) -> Result<&Version, Failure> {
        self.usable().find(|v| v.number == number).ok_or(Failure::PermissionDenied)
    }

    /// The version that wraps, with the algorithm: the newest active one. Whether it may is for
    /// [`Candidate::has_proven`] and [`Candidate::takes_label`] to say.
    pub fn for_wrap(&self, algorithm: Option<Algorithm>) -> Result<Candidate<'_>, Failure> {
        let version = self.active().next().ok_or_else(no_active_version)?;
        let algorithm = match algorithm {
            Some(algorithm) if version.algorithms.contains(&algorithm) => algorithm,
            Some(_) => return Err(not_listed(&version.algorithms)),
            None => *version.algorithms.first().ok_or_else(|| not_listed::<Algorithm>(&[]))?,
        };
        Ok(Candidate { version, algorithm })
    }

    /// The versions that may unwrap a value of `wrapped_len` bytes, newest first. Decided without
    /// looking at the value. A version whose size is not known yet, because it was never opened,
    /// stays in: it makes the outcome UNAVAILABLE instead of a failure.
    pub fn for_unwrap(
        &self,
        wrapped_len: usize,
        version: Option<u32>,
        algorithm: Option<Algorithm>,
        label: &[u8],
    ) -> Result<Vec<Candidate<'_>>, Failure> {
        let eligible: Vec<&Version> = match version {
            Some(number) => vec![self.version(number)?],
            None => self.usable().collect(),
        };
        let listed: Algorithms =
            eligible.iter().flat_map(|version| version.algorithms.iter().copied()).collect();
        if listed.is_empty() || algorithm.is_some_and(|algorithm| !listed.contains(algorithm)) {
            return Err(not_listed(&listed.iter().collect::<Vec<_>>()));
        }
        let fitting: Vec<Candidate<'_>> = eligible
            .iter()
            .filter_map(|version| {
                let first = version.algorithms.first().copied()?;
                let algorithm = algorithm.unwrap_or(first);
                version.algorithms.contains(&algorithm).then_some(Candidate { version, algorithm })
            })
            .collect();
        let unlabelled = fitting.first().map(|candidate| candidate.algorithm);
        let fitting: Vec<Candidate<'_>> = fitting
            .into_iter()
            .filter(|c| label.is_empty() || c.version.takes_labels(c.algorithm))
            .collect();
        if let (true, Some(algorithm)) = (fitting.is_empty(), unlabelled) {
            return Err(no_labels(algorithm));
        }
        let candidates: Vec<Candidate<'_>> =
            fitting.iter().copied().filter(|c| c.version.may_have_len(wrapped_len)).collect();
        if candidates.is_empty() {
            return Err(wrong_len("wrapped", fitting.iter().map(|c| c.version), wrapped_len));
        }
        if candidates.len() > 1 && candidates.iter().any(|c| c.algorithm == Algorithm::Rsa15) {
            if candidates.iter().any(|c| c.version.public_key().is_none()) {
                return Err(Failure::unavailable());
            }
            return Err(Failure::Field {
                field: "key_version",
                allowed: "is required: RSA1_5 is never tried across versions".into(),
            });
        }
        Ok(candidates)
    }

    /// The version that signs: the one asked for, if it is active, else the newest active one.
    pub fn for_sign(
        &self,
        version: Option<u32>,
        algorithm: SignAlgorithm,
    ) -> Result<&Version, Failure> {
        let version = match version {
            Some(number) => match self.version(number)? {
                version if version.state == State::Active => version,
                _ => return Err(no_active_version()),
            },
            None => self.active().next().ok_or_else(no_active_version)?,
        };
        listed(version, algorithm)
    }

    /// The version that signs checkpoints of the audit log: the newest active one, if it signs.
    pub fn for_checkpoints(&self) -> Option<&Version> {
        self.active().next().filter(|version| !version.sign_algorithms.is_empty())
    }

    /// The versions to verify a signature of `signature_len` bytes with: the one asked for, else all
    /// that are not disabled and list the algorithm, newest first. One whose size is not known yet
    /// stays in.
    pub fn for_verify(
        &self,
        version: Option<u32>,
        algorithm: SignAlgorithm,
        signature_len: usize,
    ) -> Result<Vec<&Version>, Failure> {
        let eligible: Vec<&Version> = match version {
            Some(number) => vec![listed(self.version(number)?, algorithm)?],
            None => self.usable().filter(|v| v.sign_algorithms.contains(&algorithm)).collect(),
        };
        if eligible.is_empty() {
            let all: SignAlgorithms =
                self.usable().flat_map(|version| version.sign_algorithms.iter().copied()).collect();
            return Err(not_listed(&all.iter().collect::<Vec<_>>()));
        }
        let fitting: Vec<&Version> =
            eligible.iter().copied().filter(|v| v.may_have_len(signature_len)).collect();
        if fitting.is_empty() {
            return Err(wrong_len("signature", eligible.into_iter(), signature_len));
        }
        Ok(fitting)
    }

    /// The operations of `granted` that this key can do at all.
    pub fn possible(&self, operation: Operation) -> bool {
        match operation {
            Operation::Wrap => self.active().any(|v| !v.algorithms.is_empty()),
            Operation::Unwrap | Operation::Rewrap => {
                self.usable().any(|v| !v.algorithms.is_empty())
            }
            Operation::Sign => self.active().any(|v| !v.sign_algorithms.is_empty()),
            Operation::Verify => self.usable().any(|v| !v.sign_algorithms.is_empty()),
            Operation::Read => true,
        }
    }
}

impl Candidate<'_> {
    /// Whether a replica is there that has proven to unwrap the algorithm; else what keeps the first
    /// one. One that is closed and comes back has to prove it as well, so that it unwraps what was
    /// wrapped meanwhile, or serves nothing. Of labels that is not so: there each one must be known.
    pub fn has_proven(&self, label: &[u8]) -> Result<(), Fault> {
        let replicas = &self.version.replicas;
        let unknown = replicas.iter().find(|replica| replica.label_algorithms().is_none());
        if let (false, Some(replica)) = (label.is_empty(), unknown) {
            return Err(fault(replica));
        }
        let proven = |replica: &&Arc<Replica>| {
            let key = replica.key().filter(|_| !replica.diverges());
            key.is_some_and(|key| key.algorithms().contains(self.algorithm))
        };
        replicas.iter().find(proven).map(drop).ok_or_else(|| self.version.fault())
    }

    /// Whether every replica, as far as is known, unwraps a value with this label.
    pub fn takes_label(&self, label: &[u8]) -> Result<(), Failure> {
        let mut known = self.version.replicas.iter().filter_map(|r| r.label_algorithms());
        if label.is_empty() || known.all(|algorithms| algorithms.contains(self.algorithm)) {
            return Ok(());
        }
        Err(no_labels(self.algorithm))
    }
}

impl Version {
    /// The public key, once a replica has opened and matched the pin.
    pub fn public_key(&self) -> Option<&PublicKey> {
        self.replicas.iter().find_map(|replica| replica.public_key())
    }

    /// A key that a replica has opened and that matches the pin.
    pub fn opened_key(&self) -> Option<&Arc<dyn WrappingKey>> {
        self.replicas.iter().find_map(|replica| replica.key())
    }

    /// Whether a wrapped value or a signature of this version may have `len` bytes: as long as the size
    /// of the key is not known, any.
    fn may_have_len(&self, len: usize) -> bool {
        self.public_key().is_none_or(|key| key.modulus_len() == len)
    }

    /// Whether it may unwrap a value with a label, as far as is known: a replica that was never
    /// opened may.
    fn takes_labels(&self, algorithm: Algorithm) -> bool {
        let takes = |replica: &Arc<Replica>| {
            replica.label_algorithms().is_none_or(|known| known.contains(algorithm))
        };
        algorithm != Algorithm::Rsa15 && self.replicas.iter().any(takes)
    }

    /// Whether a replica serves.
    pub fn is_serving(&self) -> bool {
        self.replicas.iter().any(|replica| replica.is_serving())
    }

    /// How long it takes until a replica that fails is looked at again; none where a call looks at it
    /// or nothing is known.
    pub fn next_look(&self) -> Option<Duration> {
        self.replicas.iter().filter_map(|replica| replica.next_look()).min()
    }

    /// `ok` while a replica serves well, else why the best of them does not: the doctor's word,
    /// `opening`, `drained`; `disabled` if it is.
    pub fn reason(&self) -> &'static str {
        let rank = |replica: &&Arc<Replica>| match &*replica.health() {
            ReplicaHealth::Serving => u8::from(replica.reason() != OK),
            ReplicaHealth::Opening => 2,
            ReplicaHealth::Failing(fault) if fault.kind == ErrorKind::Unavailable => 2,
            ReplicaHealth::Failing(_) => 3,
            ReplicaHealth::Drained => 4,
        };
        self.replicas.iter().min_by_key(rank).map_or("disabled", |replica| replica.reason())
    }

    /// Why no replica answers.
    pub fn fault(&self) -> Fault {
        let faults = self.replicas.iter().map(|replica| fault(replica));
        faults
            .max_by_key(|fault| fault.kind == ErrorKind::Unavailable)
            .expect("a version in use has a replica")
    }
}

fn fault(replica: &Replica) -> Fault {
    match &*replica.health() {
        ReplicaHealth::Failing(fault) => fault.clone(),
        ReplicaHealth::Opening | ReplicaHealth::Serving => {
            Fault::new(ErrorKind::Unavailable, "not opened yet")
        }
        ReplicaHealth::Drained => Fault::new(ErrorKind::Unavailable, DRAINED),
    }
}

/// `versions` are those whose lengths would have been right.
fn wrong_len<'a>(
    field: &'static str,
    versions: impl Iterator<Item = &'a Version>,
    len: usize,
) -> Failure {
    let mut lengths: Vec<usize> =
        versions.filter_map(Version::public_key).map(PublicKey::modulus_len).collect();
    lengths.sort_unstable();
    lengths.dedup();
    let lengths: Vec<String> = lengths.iter().map(ToString::to_string).collect();
    let allowed = format!("must be exactly {} bytes, not {len}", lengths.join(" or "));
    Failure::Field { field, allowed }
}

fn listed(version: &Version, algorithm: SignAlgorithm) -> Result<&Version, Failure> {
    let is_listed = version.sign_algorithms.contains(&algorithm);
    is_listed.then_some(version).ok_or_else(|| not_listed(&version.sign_algorithms))
}

fn no_labels(algorithm: Algorithm) -> Failure {
    let allowed = if algorithm == Algorithm::Rsa15 {
        "must be empty: RSA1_5 has no label".to_owned()
    } else {
        format!("must be empty: this key's backend cannot unwrap {algorithm} with a label")
    };
    Failure::Field { field: "label", allowed }
}

fn no_active_version() -> Failure {
    Failure::Field { field: "key", allowed: "has no active version for this operation".into() }
}

fn not_listed<T: std::fmt::Display>(listed: &[T]) -> Failure {
    let allowed = match listed {
        [] => "this key has none for this operation".to_owned(),
        listed => format!("this key allows {}", claviger_provider_api::algorithm::names(listed)),
    };
    Failure::Field { field: "algorithm", allowed }
}

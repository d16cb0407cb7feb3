//! How a replica is, and why one does not serve.

use std::sync::{Arc, LazyLock};

use claviger_provider_api::{Cause, Error, ErrorKind};

use super::diagnosis::Diagnosis;

/// The reason of what serves.
pub const OK: &str = "ok";

/// Why a replica does not serve at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What to do about it.
    pub kind: ErrorKind,
    /// What went wrong, where the kind does not say it.
    pub cause: Option<Cause>,
    /// What happened, for log and audit.
    pub text: Arc<str>,
}

impl Fault {
    /// A fault whose kind says everything.
    pub fn new(kind: ErrorKind, text: impl Into<Arc<str>>) -> Self {
        Self { kind, cause: None, text: text.into() }
    }

    /// A fault from a provider's error.
    pub fn of(error: &Error) -> Self {
        Self { kind: error.kind(), cause: error.cause(), text: error.to_string().into() }
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_cause(self, cause: Cause) -> Self {
        Self { cause: Some(cause), ..self }
    }

    /// What is wrong, in one word of the doctor's.
    pub fn diagnosis(&self) -> Diagnosis {
        Diagnosis::of(self.kind, self.cause)
    }

    /// Whether the replica is not what the configuration says: another key lies there, it gives wrong
    /// bytes, or it does not do an algorithm of the version. No call asks it before it has proven
    /// every algorithm.
    pub fn is_divergence(&self) -> bool {
        use Cause::{AlgorithmNotOffered, AnotherKey, WrongAnswer};
        matches!(self.cause, Some(AnotherKey | WrongAnswer | AlgorithmNotOffered))
    }
}

/// How a replica is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaHealth {
    /// Not opened yet and no attempt has ended.
    Opening,
    /// Its canary came back right.
    Serving,
    /// It cannot serve, for this reason.
    Failing(Fault),
    /// An operator has taken its provider out: nothing is asked of it, no canary either.
    Drained,
}

impl ReplicaHealth {
    /// Each call asks for it: among many keys, those that serve all point to the same place, which
    /// stays in the processor's cache.
    pub(super) fn shared(&self) -> Arc<Self> {
        static SERVING: LazyLock<Arc<ReplicaHealth>> =
            LazyLock::new(|| Arc::new(ReplicaHealth::Serving));
        match self {
            Self::Serving => Arc::clone(&SERVING),
            other => Arc::new(other.clone()),
        }
    }

    /// Why it fails; none where it does not.
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Failing(fault) => Some(fault),
            Self::Opening | Self::Serving | Self::Drained => None,
        }
    }

    /// Why it is so: [`OK`], `opening`, `drained`, or the doctor's word for what is wrong.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Serving => OK,
            Self::Failing(fault) => fault.diagnosis().name(),
            Self::Opening | Self::Drained => self.name(),
        }
    }

    /// The word for operators: `opening`, `serves`, `fails`, `diverges` or `drained`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Serving => "serves",
            Self::Failing(fault) if fault.is_divergence() => "diverges",
            Self::Failing(_) => "fails",
            Self::Drained => "drained",
        }
    }
}

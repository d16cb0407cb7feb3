//! The checked types of providers, keys, their versions and replicas.

use std::collections::BTreeMap;
use std::path::PathBuf;

use claviger_provider_api::{Algorithm, SecretSource, SignAlgorithm};

use crate::daemon::backends::ProviderConfig;

/// `[providers.NAME]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Provider {
    /// Whether the daemon refuses to start while this backend cannot be reached.
    pub required: bool,
    /// The provider's own options.
    pub config: ProviderConfig,
    /// Where its secrets are read from, by the names of its options, such as `pin`.
    pub secrets: BTreeMap<String, SecretSource>,
    /// The files and folders it uses beside them, by the names of its options, such as `module`.
    pub files: BTreeMap<String, PathBuf>,
}

/// `[keys.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Newest (highest number) first; at least one.
    pub versions: Vec<Version>,
    /// Which of several replicas that serve is asked first. Default: in the order of the file.
    pub balance: Balance,
}

/// Which of several replicas that serve is asked first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// The first in the order of the configuration; the others only where it does not serve.
    #[default]
    Priority,
    /// The one with the fewest operations that it has not answered.
    LeastBusy,
}

/// `[[keys.NAME.versions]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// From 1.
    pub version: u32,
    /// What it may be used for.
    pub state: State,
    /// Its own list, else its key's; the default first. May be empty for a key that only signs.
    pub algorithms: Vec<Algorithm>,
    /// Its own list, else its key's.
    pub sign_algorithms: Vec<SignAlgorithm>,
    /// Where its private half lives; at least one.
    pub replicas: Vec<Replica>,
    /// SHA-256 of its SubjectPublicKeyInfo. Required by `serve`; `config pin` fills it in.
    pub public_key_sha256: Option<[u8; 32]>,
    /// An X.509 certificate for the public key, PEM.
    pub certificate: Option<PathBuf>,
}

/// What a version may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Wraps, unwraps, signs.
    Active,
    /// Unwraps and verifies.
    UnwrapOnly,
    /// Nothing; answers as a key that is not yours.
    Disabled,
}

/// One place where a version's private half lives.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Replica {
    /// A name from `[providers]`.
    pub provider: String,
    /// In the backend's own standard form.
    pub locator: String,
}

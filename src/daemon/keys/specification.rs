//! What a replica is made from.

use claviger_provider_api::{Algorithm, OpenKey, SignAlgorithm};

use crate::daemon::config;

/// What a replica is made from. Two equal specifications are the same replica: a reload keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Specification {
    /// Provider and locator.
    pub place: config::Replica,
    /// The version's wrapping algorithms.
    pub algorithms: Vec<Algorithm>,
    /// The version's signing algorithms.
    pub sign_algorithms: Vec<SignAlgorithm>,
    /// The version's pin.
    pub public_key_sha256: [u8; 32],
}

impl Specification {
    /// The request to open it.
    pub(super) fn to_open(&self) -> OpenKey<'_> {
        OpenKey {
            locator: &self.place.locator,
            algorithms: &self.algorithms,
            sign_algorithms: &self.sign_algorithms,
            public_key_sha256: Some(self.public_key_sha256),
        }
    }
}

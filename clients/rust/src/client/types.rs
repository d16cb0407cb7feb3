//! What is said in calls, and what comes back.

use std::fmt;

use claviger_proto::v1;
use zeroize::Zeroizing;

/// What may be said about a wrap beyond the key and the material.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WrapOptions {
    /// A JWA name; empty: the key's default.
    pub algorithm: String,
    /// The OAEP label, at most 1024 bytes; unwrap needs the same one.
    pub label: Vec<u8>,
}

/// What may be said about an unwrap beyond the key and the wrapped value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnwrapOptions {
    /// The version that wrapped; none: the daemon tries those that fit, newest first.
    pub key_version: Option<u32>,
    /// A JWA name; empty: each version's default.
    pub algorithm: String,
    /// The label that was given to wrap.
    pub label: Vec<u8>,
}

/// What may be said about a signature beyond the key, the digest and the algorithm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SignOptions {
    /// None: the newest active version signs, and any version that is not disabled verifies.
    pub key_version: Option<u32>,
}

/// One unwrap of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnwrapItem {
    /// The key's name.
    pub key: String,
    /// The wrapped value, as long as the modulus.
    pub wrapped: Vec<u8>,
    /// What else there is to say.
    pub options: UnwrapOptions,
}

/// Key material, wrapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrapped {
    /// As many bytes as the modulus has.
    pub wrapped: Vec<u8>,
    /// The version that wrapped.
    pub key_version: u32,
    /// The algorithm used.
    pub algorithm: String,
    /// The daemon's id of the call.
    pub request_id: Option<String>,
}

/// Key material, recovered.
#[derive(PartialEq, Eq)]
pub struct Unwrapped {
    /// The bytes that were wrapped; zeroed when dropped.
    pub key_material: Zeroizing<Vec<u8>>,
    /// The version that unwrapped.
    pub key_version: u32,
    /// The daemon's id of the call.
    pub request_id: Option<String>,
}

impl fmt::Debug for Unwrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unwrapped")
            .field("key_material", &"[redacted]")
            .field("key_version", &self.key_version)
            .field("request_id", &self.request_id)
            .finish()
    }
}

/// A signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// As many bytes as the modulus has.
    pub signature: Vec<u8>,
    /// The version that signed.
    pub key_version: u32,
    /// The algorithm used.
    pub algorithm: String,
    /// The daemon's id of the call.
    pub request_id: Option<String>,
}

/// The outcome of a verification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The version under which the signature is good; none if it is not good.
    pub key_version: Option<u32>,
    /// The daemon's id of the call.
    pub request_id: Option<String>,
}

/// One page of keys.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyPage {
    /// In the order of their names.
    pub keys: Vec<v1::Key>,
    /// What to ask the next page with; none on the last one.
    pub next: Option<String>,
}

/// What the daemon says about itself or about a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Calls are accepted.
    Serving,
    /// Calls would fail at the moment.
    NotServing,
}

//! The checked types of callers: who they are, what they may do, what they may spend.

use std::collections::BTreeMap;
use std::time::Duration;

use claviger_tokens::{Audiences, ClaimValue};

/// `[[callers]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its name, in logs, metrics and audit.
    pub name: String,
    /// Any of these makes a peer this caller.
    pub matches: Vec<Match>,
    /// What it may do.
    pub grants: Vec<Grant>,
    /// What it may spend, per key.
    pub limits: Limits,
}

/// One identity of a caller.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Match {
    /// The identity itself.
    pub identity: Identity,
    /// The client CA bundle that must have issued it; required where there are several bundles.
    pub ca: Option<String>,
}

/// Who a peer is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Identity {
    /// The one URI SAN of a client certificate.
    Spiffe(String),
    /// A DNS SAN of a client certificate without a URI SAN, compared exactly, in lower case.
    Dns(String),
    /// The user of the process at the other end of a Unix socket; never 0 or 65534.
    Uid(u32),
    /// A token in the call's metadata.
    Token(TokenMatch),
}

/// Which tokens are a caller.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenMatch {
    /// A name from `[issuers]`.
    pub issuer: String,
    /// `sub`, to the letter; none: any, as far as the claims are right.
    pub subject: Option<String>,
    /// Each of these claims is one of its values, or a list with one of them.
    pub claims: BTreeMap<String, Vec<ClaimValue>>,
    /// What the connection must show besides: a certificate's name or a uid; none: whatever lets it in.
    pub peer: Option<Box<Identity>>,
}

/// What a caller may do with which keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Names from `[keys]`.
    pub keys: Vec<String>,
    /// What it may do with them.
    pub operations: Vec<Operation>,
    /// `wrapped_sha256`: the only wrapped values that may be unwrapped and rewrapped; none: all.
    pub wrapped_sha256: Option<Vec<[u8; 32]>>,
    /// `to`: the keys that a rewrap may wrap for, by their names in `[keys]`.
    pub to: Vec<String>,
    /// `to_public_keys`: the public keys of others that a rewrap may wrap for.
    pub to_public_keys: PublicKeys,
    /// `to_approved`: whose approval lets a rewrap wrap for any public key, for this value and a time.
    pub to_approved: Option<ToApproved>,
}

/// Whose approval lets a rewrap go to a public key that is not listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToApproved {
    /// A name from `[issuers]`.
    pub issuer: String,
    /// For whom the ID token must be; none: as the issuer says.
    pub audiences: Option<Audiences>,
    /// `sub`, to the letter; none: any, as far as the claims are right.
    pub subject: Option<String>,
    /// Each of these claims is one of its values, or a list with one of them.
    pub claims: BTreeMap<String, Vec<ClaimValue>>,
    /// How long ago the person may have signed in, and how long the approval may hold. Default: 15
    /// minutes.
    pub max_age: Duration,
}

/// Public keys, by the SHA-256 of their SubjectPublicKeyInfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKeys {
    /// `"any"`: a caller with this grant can read the key material, as with [`Operation::Unwrap`].
    Any,
    /// These; none where the option is left out.
    Only(Vec<[u8; 32]>),
}

/// What can be granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Wrap.
    Wrap,
    /// Unwrap and UnwrapBatch.
    Unwrap,
    /// Rewrap and RewrapBatch, to the targets that the grant names.
    Rewrap,
    /// Sign.
    Sign,
    /// Verify.
    Verify,
    /// ListKeys, GetKey and the key's health.
    Read,
}

impl Operation {
    /// Every operation, in the order in which they are listed to callers.
    pub const ALL: [Self; 6] =
        [Self::Wrap, Self::Unwrap, Self::Rewrap, Self::Sign, Self::Verify, Self::Read];

    /// The word in configuration, audit, metrics and on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wrap => "wrap",
            Self::Unwrap => "unwrap",
            Self::Rewrap => "rewrap",
            Self::Sign => "sign",
            Self::Verify => "verify",
            Self::Read => "read",
        }
    }
}

/// What a caller may spend on each key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Calls. Default: none.
    pub rate: Option<Rate>,
    /// Unwraps that failed. Default: 100 an hour.
    pub failed_unwraps: Option<Rate>,
    /// Unwraps beyond which the daemon alarms; it refuses none for it. Default: 100 an hour where
    /// there is no `rate`.
    pub unwraps_alarm: Option<Rate>,
}

impl Limits {
    /// One daemon's share where `fleet` of them serve the same callers. None of a limit that is less
    /// than one for each.
    pub(crate) fn shared_by(rate: Rate, fleet: u32) -> Option<Rate> {
        let count = rate.count / fleet;
        (count > 0).then_some(Rate { count, ..rate })
    }
}

impl Default for Limits {
    fn default() -> Self {
        let hundred_an_hour = Some(Rate { count: 100, per: Duration::from_hours(1) });
        Self { rate: None, failed_unwraps: hundred_an_hour, unwraps_alarm: hundred_an_hour }
    }
}

/// So many in so long: `"50/s"`, `"100/h"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// At least 1.
    pub count: u32,
    /// A second, a minute, an hour or a day.
    pub per: Duration,
}

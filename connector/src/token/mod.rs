//! Users' tokens: signature, times, issuer (401), then scope, method and subject (403).
//!
//! As the original checks them, and stricter where `docs/connector.md` says so.

mod claims;
mod discovery;
mod header;
mod issuer;
mod key_set;

pub use issuer::{Issuer, REFRESH};
pub use key_set::{KeySet, KeySetError};

/// Why a request is not answered with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no bearer token (RFC 6750 section 3: no error code).
    #[error("no bearer token")]
    NoToken,
    /// The token is not good: 401, with the reason for the log alone.
    #[error("{0}")]
    Invalid(&'static str),
    /// The token is good and does not allow this: 403.
    #[error("{0}")]
    Forbidden(&'static str),
    /// The issuer's keys are not to be had at the moment: 503.
    #[error("the issuer's keys are not known yet")]
    NotNow,
}

/// Longest token; those of Bitwarden have one to two thousand bytes.
pub const MAX_TOKEN_LEN: usize = 16 << 10;

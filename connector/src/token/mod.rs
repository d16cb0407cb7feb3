//! Users' tokens: signature, times, issuer (401), then scope, method and subject (403).
//!
//! As the original checks them, and stricter where `docs/connector.md` says so.

mod claims;

use std::sync::Arc;

use claviger_tokens::{Claims, Fault, Issuer, NotVerified, Token};

use crate::user::UserId;

/// Why a request is not answered with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no bearer token (RFC 6750 section 3: no error code).
    #[error("no bearer token")]
    NoToken,
    /// The token is not good: 401, with the reason for the log alone.
    #[error(transparent)]
    Bad(#[from] Fault),
    /// Its claims are not good: 401, with the reason for the log alone.
    #[error("{0}")]
    Invalid(&'static str),
    /// The token is good and does not allow this: 403.
    #[error("{0}")]
    Forbidden(&'static str),
    /// The issuer's keys are not to be had at the moment: 503.
    #[error("the issuer's keys are not known yet")]
    NotNow,
}

/// The user whose token it is.
pub async fn user(issuer: &Arc<Issuer>, token: &str) -> Result<UserId, Refusal> {
    Ok(user_with_claims(issuer, token).await?.0)
}

/// The user whose token it is, and all that it says.
pub async fn user_with_claims(
    issuer: &Arc<Issuer>,
    token: &str,
) -> Result<(UserId, Claims), Refusal> {
    let token = Token::parse(token)?;
    let known = issuer.verify(&token).await.map_err(|reason| match reason {
        NotVerified::Bad(fault) => Refusal::Bad(fault),
        NotVerified::NoKeys => Refusal::NotNow,
    })?;
    let user = claims::user(token.claims(), &known.name)?;
    Ok((user, Claims::parse(token.claims())?))
}

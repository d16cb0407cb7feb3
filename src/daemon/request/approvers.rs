//! Whose approval lets a rewrap go to a public key that no configuration names.
//!
//! The approver's own ID token is looked at here, so that a caller who was broken into can approve
//! nothing: its `nonce` is the hash of this value, this public key and this expiry.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use claviger_tokens::{
    Claims, Fault, Issuer, Judged, LEEWAY, NotVerified, Rules, Token, approval_nonce,
};

use crate::daemon::config::ToApproved;
use crate::daemon::transport::tokens::Trusted;

/// Who may approve, by one grant.
#[derive(Debug)]
pub struct Approvers {
    config: ToApproved,
    /// The issuer's name in the configuration.
    name: Arc<str>,
    issuer: Arc<Issuer>,
    /// The issuer's, with the grant's audiences and age.
    rules: Rules,
}

/// A person's approval of one rewrap, as it was sent.
pub struct Approval {
    /// An ID token in the compact form.
    pub id_token: String,
    /// Seconds since 1970.
    pub expires: u64,
}

/// Who approved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approver {
    /// The issuer's name in the configuration.
    pub issuer: Arc<str>,
    /// `sub` of the ID token.
    pub subject: String,
    /// Of the ID token's bytes.
    pub token_sha256: [u8; 32],
}

/// Why something is no approval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotApproved {
    /// The ID token is not good.
    #[error("the approver's ID token is not good: {0}")]
    Bad(Fault),
    /// `expires` has passed.
    #[error("the approval has expired")]
    Expired,
    /// `expires` is further away than `max_age`.
    #[error("the approval is for longer than `max_age`")]
    TooLong,
    /// `nonce` is missing, or of another value, public key or expiry.
    #[error("the nonce of the ID token is not that of this value, public key and expiry")]
    Nonce,
    /// The person is none of those who may.
    #[error("the ID token's subject or claims are not those of an approver")]
    NoApprover,
    /// The keys of the issuer are not known.
    #[error("the keys of the approvers' issuer cannot be had")]
    NoKeys,
}

impl NotApproved {
    /// A word for audit records; a closed set.
    pub fn cause(self) -> &'static str {
        match self {
            Self::Bad(_) => "approval_token",
            Self::Expired => "approval_expired",
            Self::TooLong => "approval_too_long",
            Self::Nonce => "approval_nonce",
            Self::NoApprover => "approval_by_no_approver",
            Self::NoKeys => "approval_issuer_unavailable",
        }
    }
}

impl Approvers {
    /// Those of a grant; `trusted` is the issuer that it names.
    pub fn new(config: &ToApproved, trusted: &Trusted) -> Self {
        let mut rules = trusted.config.rules.clone();
        rules.max_age = config.max_age;
        if let Some(audiences) = &config.audiences {
            rules.audiences = audiences.clone();
        }
        let (name, issuer) = (Arc::clone(&trusted.name), Arc::clone(&trusted.issuer));
        Self { config: config.clone(), name, issuer, rules }
    }

    /// Who approved that this value goes to this public key.
    pub async fn check(
        &self,
        approval: &Approval,
        wrapped: &[u8],
        public_key_sha256: &[u8; 32],
    ) -> Result<Approver, NotApproved> {
        let now = SystemTime::now();
        let expires = UNIX_EPOCH.checked_add(Duration::from_secs(approval.expires));
        let expires = expires.ok_or(NotApproved::TooLong)?;
        if now >= expires {
            return Err(NotApproved::Expired);
        }
        if expires > now + self.config.max_age + LEEWAY {
            return Err(NotApproved::TooLong);
        }
        let token = Token::parse(&approval.id_token).map_err(NotApproved::Bad)?;
        let claims = Claims::parse(token.claims()).map_err(NotApproved::Bad)?;
        if claims.text("iss") != self.issuer.settings().name.as_deref() {
            return Err(NotApproved::Bad(Fault::Issuer));
        }
        let judged = self.rules.judge(&token, &claims, None, now).map_err(NotApproved::Bad)?;
        let nonce = approval_nonce(wrapped, public_key_sha256, approval.expires);
        if claims.text("nonce") != Some(&nonce) {
            return Err(NotApproved::Nonce);
        }
        self.issuer.verify(&token).await.map_err(|reason| match reason {
            NotVerified::Bad(fault) => NotApproved::Bad(fault),
            NotVerified::NoKeys => NotApproved::NoKeys,
        })?;
        let Judged { subject, .. } = judged;
        let is_subject = self.config.subject.as_ref().is_none_or(|wanted| *wanted == subject);
        let mut needed = self.config.claims.iter();
        if !is_subject || !needed.all(|(name, values)| claims.has(name, values)) {
            return Err(NotApproved::NoApprover);
        }
        let token_sha256 = digest(&SHA256, approval.id_token.as_bytes());
        let token_sha256 = token_sha256.as_ref().try_into().expect("SHA-256 has 32 bytes");
        Ok(Approver { issuer: Arc::clone(&self.name), subject, token_sha256 })
    }
}

impl fmt::Debug for Approval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { expires, .. } = self;
        f.debug_struct("Approval").field("expires", expires).finish_non_exhaustive()
    }
}

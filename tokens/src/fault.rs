//! Why a token is not good.

/// Why a token is not good, whatever its issuer's keys are. A closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Fault {
    /// More than [`MAX_TOKEN_LEN`](crate::MAX_TOKEN_LEN) bytes.
    #[error("the token is longer than 16 KiB")]
    TooLong,
    /// Not three parts in base64url, or a header that is no JSON object (RFC 7519 section 7.2).
    #[error("it is no JSON Web Token")]
    NotAToken,
    /// Five parts (RFC 7516 section 3.1).
    #[error("it is encrypted (JWE); remove the encryption key of this client at the issuer")]
    Encrypted,
    /// `crit` names what must be understood (RFC 7515 section 4.1.11); nothing of it is known here.
    #[error("its header has `crit`")]
    Critical,
    /// `typ` says that it is something else (RFC 8725 section 3.11).
    #[error("its `typ` says that it is no access or ID token")]
    Type,
    /// `none`, HMAC, or a name that is not known.
    #[error(
        "its algorithm is not one of RS, PS, ES and EdDSA; where it is HS256, the issuer signs with a \
         secret: choose RS256 there"
    )]
    Algorithm,
    /// The configuration does not list its algorithm.
    #[error("its algorithm is not among the issuer's `algorithms` here")]
    NotAllowed,
    /// The claims are no JSON object, or one of them is there twice.
    #[error("its claims are no JSON object, or a name in it is there twice")]
    Claims,
    /// `iss` is none of the configured issuers, to the letter.
    #[error(
        "its issuer is none of the configured ones: they are compared to the letter, a slash at the end \
         and the version of an endpoint (…/v2.0) included"
    )]
    Issuer,
    /// A time is no whole number of seconds since 1970.
    #[error("a time in it is no whole number of seconds since 1970")]
    Time,
    /// `exp` is missing.
    #[error("it has no `exp`")]
    NoExpiry,
    /// `exp` has passed.
    #[error("it has expired")]
    Expired,
    /// `nbf` or `iat` is to come.
    #[error("it is not valid yet; is this host's clock, or the issuer's, wrong?")]
    NotYetValid,
    /// It was issued longer ago than `max_age`, or is good for longer without saying since when.
    #[error("it is older than `max_age`")]
    TooOld,
    /// `aud` holds none of the trusted audiences.
    #[error("its `aud` is none of `audiences`")]
    Audience,
    /// `sub` is missing, empty or too long.
    #[error("its `sub` is no text of 1 to 512 bytes")]
    Subject,
    /// `cnf` binds it to another certificate, or to something that is not known here (RFC 7800).
    #[error("it is bound (`cnf`) to another client certificate or key")]
    Bound,
    /// No key of the issuer has this `kid` and fits the algorithm.
    #[error("its issuer has no such key")]
    NoSuchKey,
    /// No key of the issuer has signed it.
    #[error("its signature is wrong")]
    Signature,
}

impl Fault {
    /// A word for metrics and audit records.
    pub fn reason(self) -> &'static str {
        match self {
            Self::TooLong => "token_too_long",
            Self::NotAToken => "token_malformed",
            Self::Encrypted => "token_encrypted",
            Self::Critical => "token_critical",
            Self::Type => "token_type",
            Self::Algorithm | Self::NotAllowed => "token_algorithm",
            Self::Claims | Self::Time | Self::NoExpiry | Self::Subject => "token_claims",
            Self::Issuer => "token_issuer",
            Self::Expired => "token_expired",
            Self::NotYetValid => "token_not_yet_valid",
            Self::TooOld => "token_too_old",
            Self::Audience => "token_audience",
            Self::Bound => "token_bound",
            Self::NoSuchKey => "token_key",
            Self::Signature => "token_signature",
        }
    }
}

/// Why a signature was not found good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotVerified {
    /// The token is not good.
    #[error(transparent)]
    Bad(#[from] Fault),
    /// The issuer's keys are not known, or have not been had for too long.
    #[error("the issuer's keys are not known")]
    NoKeys,
}

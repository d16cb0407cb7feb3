//! What is demanded of a token beside its signature: times, audience, subject, and for whom it was
//! issued.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use regex_lite::Regex;
use serde_json::Value;

use crate::{Claims, Fault, Token};

/// How far clocks may differ.
pub const LEEWAY: Duration = Duration::from_secs(30);

/// Longest subject, in bytes: a Kubernetes service account has at most 339.
const MAX_SUBJECT: usize = 512;

/// The algorithms that tokens may be signed with, by their names in JWA (RFC 7518, RFC 8037).
pub const ALGORITHMS: [&str; 9] =
    ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"];

/// What is demanded of an issuer's tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// For whom they must be.
    pub audiences: Audiences,
    /// Names out of [`ALGORITHMS`].
    pub algorithms: Vec<String>,
    /// How old one may be, whatever it says itself.
    pub max_age: Duration,
}

/// For whom tokens must be: `aud` holds one of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audiences {
    /// Nothing is demanded: tokens for any other service are good here too.
    Any,
    /// One of these.
    Of(Vec<Audience>),
}

/// One audience.
#[derive(Clone, Debug)]
pub enum Audience {
    /// To the letter.
    Exact(String),
    /// A regular expression from `^` to `$`.
    Pattern(Regex),
}

/// What a good token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// `sub`.
    pub subject: String,
    /// From then on it is no longer good.
    pub until: SystemTime,
}

impl Audience {
    /// Text, or a pattern where it begins with `^`.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("is empty; write what `aud` is in the tokens".to_owned());
        }
        if !text.starts_with('^') {
            return Ok(Self::Exact(text.to_owned()));
        }
        // An alternative would have an end of its own.
        let inner = text[1..].strip_suffix('$').filter(|inner| !inner.ends_with('\\'));
        let inner = inner.ok_or_else(|| {
            format!(
                "{text:?} has no `$` at its end; write a pattern for the whole: \"^\\\\d{{18}}$\""
            )
        })?;
        Regex::new(&format!("^(?:{inner})$"))
            .map(Self::Pattern)
            .map_err(|error| format!("{text:?} is no pattern: {error}"))
    }

    fn is(&self, audience: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == audience,
            Self::Pattern(pattern) => pattern.is_match(audience),
        }
    }
}

impl PartialEq for Audience {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(one), Self::Exact(two)) => one == two,
            (Self::Pattern(one), Self::Pattern(two)) => one.as_str() == two.as_str(),
            _ => false,
        }
    }
}

impl Eq for Audience {}

impl Rules {
    /// Judges a token's claims and header; its signature and its issuer are judged elsewhere.
    /// `certificate_sha256` is of the connection that the token came with.
    pub fn judge(
        &self,
        token: &Token<'_>,
        claims: &Claims,
        certificate_sha256: Option<&[u8; 32]>,
        now: SystemTime,
    ) -> Result<Judged, Fault> {
        if !self.algorithms.iter().any(|allowed| *allowed == token.algorithm()) {
            return Err(Fault::NotAllowed);
        }
        let until = self.judge_times(claims, now)?;
        if !self.audiences.hold(claims.get("aud"))? {
            return Err(Fault::Audience);
        }
        let is_other = |typ: &str| ["refresh", "offline", "logout"].contains(&&*typ.to_lowercase());
        if claims.text("typ").is_some_and(is_other) {
            return Err(Fault::Type);
        }
        let subject = claims.text("sub").filter(|sub| (1..=MAX_SUBJECT).contains(&sub.len()));
        let subject = subject.ok_or(Fault::Subject)?.to_owned();
        check_confirmation(claims.get("cnf"), certificate_sha256)?;
        Ok(Judged { subject, until })
    }

    /// `exp` is required. Age counts from `iat`, else from `nbf`; a token without both may not be good
    /// for longer than it might be old.
    fn judge_times(&self, claims: &Claims, now: SystemTime) -> Result<SystemTime, Fault> {
        let expires = time(claims.get("exp"))?.ok_or(Fault::NoExpiry)?;
        let not_before = time(claims.get("nbf"))?;
        let issued = time(claims.get("iat"))?;
        if now >= expires + LEEWAY {
            return Err(Fault::Expired);
        }
        if [not_before, issued].into_iter().flatten().any(|at| at > now + LEEWAY) {
            return Err(Fault::NotYetValid);
        }
        let too_old = match issued.or(not_before) {
            Some(at) => now.duration_since(at).is_ok_and(|age| age > self.max_age + LEEWAY),
            None => expires > now + self.max_age + LEEWAY,
        };
        if too_old {
            return Err(Fault::TooOld);
        }
        let oldest = issued.or(not_before).map(|at| at + self.max_age);
        Ok(oldest.map_or(expires, |oldest| oldest.min(expires)) + LEEWAY)
    }
}

impl Audiences {
    fn hold(&self, aud: Option<&Value>) -> Result<bool, Fault> {
        let Self::Of(trusted) = self else { return Ok(true) };
        let is_one = |audience: &str| trusted.iter().any(|trusted| trusted.is(audience));
        match aud {
            None => Ok(false),
            Some(Value::String(audience)) => Ok(is_one(audience)),
            Some(Value::Array(list)) => {
                let texts: Option<Vec<&str>> = list.iter().map(Value::as_str).collect();
                Ok(texts.ok_or(Fault::Audience)?.into_iter().any(is_one))
            }
            Some(_) => Err(Fault::Audience),
        }
    }
}

/// A NumericDate (RFC 7519 section 2) in whole seconds, from 1970 to the year 9999.
fn time(claim: Option<&Value>) -> Result<Option<SystemTime>, Fault> {
    let Some(claim) = claim else { return Ok(None) };
    let seconds = claim.as_u64().filter(|seconds| *seconds <= 253_402_300_799);
    let seconds = seconds.ok_or(Fault::Time)?;
    Ok(Some(UNIX_EPOCH + Duration::from_secs(seconds)))
}

/// A token that is bound to a key is good with that key alone (RFC 7800): here to the certificate of the
/// connection (RFC 8705 section 3.1), and to nothing else.
fn check_confirmation(
    cnf: Option<&Value>,
    certificate_sha256: Option<&[u8; 32]>,
) -> Result<(), Fault> {
    let Some(cnf) = cnf else { return Ok(()) };
    let members = cnf.as_object().filter(|members| members.len() == 1).ok_or(Fault::Bound)?;
    let named = members.get("x5t#S256").and_then(Value::as_str).ok_or(Fault::Bound)?;
    let named = URL_SAFE_NO_PAD.decode(named).map_err(|_| Fault::Bound)?;
    let own = certificate_sha256.ok_or(Fault::Bound)?;
    verify_slices_are_equal(&named, own).map_err(|_| Fault::Bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_for_the_whole_audience() {
        let digits = Audience::parse(r"^\d{18}$").unwrap();
        assert!(digits.is("123456789012345678"));
        let either = Audience::parse("^a|b$").unwrap();
        assert!(either.is("a") && either.is("b") && !either.is("ax") && !either.is("xb"));
        for other in ["12345678901234567", "x123456789012345678", "123456789012345678\n"] {
            assert!(!digits.is(other), "{other:?}");
        }
        for bad in ["", "^a", r"^a\$", "^($"] {
            assert!(Audience::parse(bad).is_err(), "{bad:?}");
        }
        assert!(
            Audience::parse("a.c").unwrap().is("a.c") && !Audience::parse("a.c").unwrap().is("abc")
        );
    }
}

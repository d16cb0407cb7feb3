//! What a token says, judged by the original's rules.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::Value;

use super::Refusal;
use crate::user::UserId;

/// How far clocks may differ, in seconds.
const LEEWAY: f64 = 300.0;

/// The claims that are looked at; one that is there twice is an error.
#[derive(Deserialize)]
struct Claims {
    iss: Option<Value>,
    sub: Option<Value>,
    exp: Option<Value>,
    nbf: Option<Value>,
    scope: Option<Value>,
    amr: Option<Value>,
}

/// The user whose token it is.
pub(super) fn user(claims: &[u8], issuer: &str) -> Result<UserId, Refusal> {
    judged(claims, issuer, now())
}

fn judged(claims: &[u8], issuer: &str, now: f64) -> Result<UserId, Refusal> {
    let claims: Claims = serde_json::from_slice(claims)
        .map_err(|_| Refusal::Invalid("its claims are no JSON object"))?;
    if claims.iss.as_ref().and_then(Value::as_str) != Some(issuer) {
        return Err(Refusal::Invalid("it is of another issuer"));
    }
    let time = |claim: Option<Value>, missing| {
        let claim = claim.ok_or(Refusal::Invalid(missing))?;
        claim.as_f64().ok_or(Refusal::Invalid("a time in it is no number"))
    };
    if now > time(claims.exp, "it has no `exp`")? + LEEWAY {
        return Err(Refusal::Invalid("it has expired"));
    }
    if claims.nbf.is_some() && now < time(claims.nbf, "")? - LEEWAY {
        return Err(Refusal::Invalid("it is not valid yet"));
    }
    if matches!(claims.sub, Some(Value::Array(_))) {
        return Err(Refusal::Invalid("it has several subjects"));
    }
    if !has(claims.scope.as_ref(), &["api"]) {
        return Err(Refusal::Forbidden("no value of `scope` is `api`"));
    }
    if !has(claims.amr.as_ref(), &["Application", "external"]) {
        return Err(Refusal::Forbidden("`amr` has neither Application nor external"));
    }
    let subject = claims.sub.as_ref().and_then(Value::as_str);
    subject.and_then(UserId::parse).ok_or(Refusal::Forbidden("`sub` is no UUID"))
}

/// Whether the claim is one of the words, or a list with one of them.
fn has(claim: Option<&Value>, words: &[&str]) -> bool {
    let is = |value: &Value| value.as_str().is_some_and(|text| words.contains(&text));
    match claim {
        Some(Value::Array(values)) => values.iter().any(is),
        Some(value) => is(value),
        None => false,
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |now| now.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUB: &str = "2bb58a19-2001-4a8b-8223-79b2ba7d5229";

    fn judge(claims: &str) -> Result<UserId, Refusal> {
        judged(claims.as_bytes(), "https://vault.example.org|login", 1000.0)
    }

    #[test]
    fn a_token_of_vaultwarden_is_good() {
        let user = judge(&format!(
            r#"{{"iss":"https://vault.example.org|login","sub":"{SUB}","nbf":900,"exp":1100.5,"scope":["api","offline_access"],"amr":["Application"]}}"#
        ));
        assert_eq!(user.unwrap().to_string(), SUB);
    }

    #[test]
    fn a_claim_that_is_there_twice_is_refused() {
        let twice = format!(
            r#"{{"iss":"https://vault.example.org|login","sub":"{SUB}","sub":"{SUB}","exp":1100,"scope":"api","amr":"external"}}"#
        );
        assert_eq!(judge(&twice).unwrap_err(), Refusal::Invalid("its claims are no JSON object"));
    }

    #[test]
    fn clocks_may_differ_by_five_minutes() {
        let with = |exp: u32, nbf: u32| {
            judge(&format!(
                r#"{{"iss":"https://vault.example.org|login","sub":"{SUB}","exp":{exp},"nbf":{nbf},"scope":"api","amr":"external"}}"#
            ))
        };
        assert!(with(701, 1299).is_ok());
        assert_eq!(with(699, 0).unwrap_err(), Refusal::Invalid("it has expired"));
        assert_eq!(with(2000, 1301).unwrap_err(), Refusal::Invalid("it is not valid yet"));
    }
}

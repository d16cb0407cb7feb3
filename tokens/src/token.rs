//! A token's three parts and its header.

use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny};

use crate::Fault;
use crate::claims::Once;

/// Longest token, in bytes; usual ones have one to two thousand.
pub const MAX_TOKEN_LEN: usize = 16 << 10;

/// A token in the compact form (RFC 7515 section 7.1), taken apart; its signature is still to be
/// verified.
pub struct Token<'a> {
    pub(crate) algorithm: Algorithm,
    pub(crate) kid: Option<String>,
    /// What is signed: header and claims as they were sent.
    pub(crate) signed: &'a str,
    /// Base64url.
    pub(crate) signature: &'a str,
    claims: Vec<u8>,
}

/// The fields that are looked at. A key that the token brings along (`jwk`, `jku`, `x5u`, `x5c`) is not.
#[derive(Deserialize)]
struct Fields {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    #[serde(default, deserialize_with = "is_there")]
    crit: bool,
}

/// Whether a field is there, null too.
fn is_there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

impl<'a> Token<'a> {
    /// Takes a token apart and judges its header.
    pub fn parse(token: &'a str) -> Result<Self, Fault> {
        if token.len() > MAX_TOKEN_LEN {
            return Err(Fault::TooLong);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(Fault::NotAToken)?;
        let (header, claims) = signed.split_once('.').ok_or(Fault::NotAToken)?;
        match claims.bytes().filter(|byte| *byte == b'.').count() {
            0 => {}
            2 => return Err(Fault::Encrypted),
            _ => return Err(Fault::NotAToken),
        }
        decoded(signature)?;
        let (algorithm, kid) = judged(&decoded(header)?)?;
        Ok(Self { algorithm, kid, signed, signature, claims: decoded(claims)? })
    }

    /// The name of its algorithm (RFC 7518).
    pub fn algorithm(&self) -> String {
        format!("{:?}", self.algorithm)
    }

    /// The claims, as JSON was sent.
    pub fn claims(&self) -> &[u8] {
        &self.claims
    }
}

fn decoded(part: &str) -> Result<Vec<u8>, Fault> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| Fault::NotAToken)
}

fn judged(header: &[u8]) -> Result<(Algorithm, Option<String>), Fault> {
    let Once(fields) = serde_json::from_slice(header).map_err(|_| Fault::NotAToken)?;
    let fields: Fields = serde_json::from_value(fields).map_err(|_| Fault::NotAToken)?;
    if fields.crit {
        return Err(Fault::Critical);
    }
    let typ = fields.typ.as_deref().unwrap_or("JWT");
    let known = ["JWT", "JOSE", "at+jwt", "application/at+jwt"];
    if !known.iter().any(|known| typ.eq_ignore_ascii_case(known)) {
        return Err(Fault::Type);
    }
    let algorithm = Algorithm::from_str(&fields.alg).map_err(|_| Fault::Algorithm)?;
    if matches!(algorithm, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512) {
        return Err(Fault::Algorithm);
    }
    Ok((algorithm, fields.kid))
}

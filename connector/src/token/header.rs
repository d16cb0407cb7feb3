//! A token's three parts and its header.

use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde::Deserialize;

use super::{MAX_TOKEN_LEN, Refusal};

/// The parts of a token in the compact form (RFC 7515 section 7.1).
pub(super) struct Parts<'a> {
    pub(super) header: Header,
    /// What is signed: header and claims as they were sent.
    pub(super) signed: &'a str,
    pub(super) claims: Vec<u8>,
    /// Base64url.
    pub(super) signature: &'a str,
}

pub(super) struct Header {
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<String>,
}

/// The fields that are looked at. A key that the token brings along (`jwk`, `jku`, `x5u`, `x5c`) is not.
#[derive(Deserialize)]
struct Fields {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    crit: Option<serde::de::IgnoredAny>,
}

/// Takes a token apart and judges its header.
pub(super) fn parts(token: &str) -> Result<Parts<'_>, Refusal> {
    if token.len() > MAX_TOKEN_LEN {
        return Err(Refusal::Invalid("the token is longer than 16 KiB"));
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(NOT_A_TOKEN)?;
    let (header, claims) = signed.split_once('.').ok_or(NOT_A_TOKEN)?;
    if claims.contains('.') {
        return Err(Refusal::Invalid("the token is encrypted (JWE) or has too many parts"));
    }
    Ok(Parts { header: judged(&decoded(header)?)?, signed, claims: decoded(claims)?, signature })
}

const NOT_A_TOKEN: Refusal = Refusal::Invalid("it is no JSON Web Token");

fn decoded(part: &str) -> Result<Vec<u8>, Refusal> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| NOT_A_TOKEN)
}

fn judged(header: &[u8]) -> Result<Header, Refusal> {
    let fields: Fields = serde_json::from_slice(header).map_err(|_| NOT_A_TOKEN)?;
    if fields.crit.is_some() {
        return Err(Refusal::Invalid("its header has `crit`"));
    }
    let typ = fields.typ.as_deref().unwrap_or("JWT");
    if !["JWT", "at+jwt", "application/at+jwt"].iter().any(|known| typ.eq_ignore_ascii_case(known))
    {
        return Err(Refusal::Invalid("its `typ` is neither JWT nor at+jwt"));
    }
    let algorithm = Algorithm::from_str(&fields.alg)
        .ok()
        .filter(|algorithm| {
            !matches!(algorithm, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512)
        })
        .ok_or(Refusal::Invalid("its algorithm is not one of RS, PS, ES and EdDSA"))?;
    Ok(Header { algorithm, kid: fields.kid })
}

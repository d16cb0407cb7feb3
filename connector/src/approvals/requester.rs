//! The device that asks for a user's key: it has no token, but an access code that it chose itself.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rsa::PublicEncryptingKey;
use http::{Response, StatusCode};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::json;
use tracing::{info, warn};
use uuid::Uuid;

use super::fingerprint::{email, phrase};
use super::{Asked, Failed, bad, decoded, now, seconds, sha256};
use crate::http::network;
use crate::http::responses::{Answer, empty, json};
use crate::store::{Added, Kind, NewRequest, State};

/// Longest public key: SubjectPublicKeyInfo of 8192 bits.
const MAX_PUBLIC_KEY: usize = 1100;
/// Shortest and longest access code, in bytes.
const CODE: std::ops::RangeInclusive<usize> = 16..=128;
/// Wrong codes until a request ends.
const MOST_WRONG: i64 = 20;
/// Of what the device gets: JWA names (RFC 7518 section 4.1). The first is what existing clients use.
const ALGORITHMS: [&str; 2] = ["RSA-OAEP", "RSA-OAEP-256"];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NewBody {
    email: String,
    public_key: String,
    access_code: String,
    kind: String,
    algorithm: Option<String>,
}

/// POST /auth-requests. An e-mail of no enrolled user is answered alike.
pub(super) async fn ask(asked: &Asked<'_>, body: Incoming) -> Result<Response<Answer>, Failed> {
    let approvals = asked.approvals;
    approvals.requests.take(network(asked.address)).map_err(Failed::too_many)?;
    let body: NewBody = asked.json(body).await?;
    let email = email(&body.email).ok_or_else(|| bad("email is no e-mail address"))?;
    let kind = Kind::parse(&body.kind).ok_or_else(|| bad("kind is neither device nor admin"))?;
    if !CODE.contains(&body.access_code.len()) {
        return Err(bad("accessCode has not 16 to 128 bytes"));
    }
    let algorithm = match body.algorithm.as_deref() {
        None => Some(ALGORITHMS[0]),
        Some(name) => ALGORITHMS.into_iter().find(|known| *known == name),
    };
    let algorithm =
        algorithm.ok_or_else(|| bad("algorithm is neither RSA-OAEP nor RSA-OAEP-256"))?;
    let public_key = public_key(&body.public_key)?;
    let (id, now) = (Uuid::new_v4().to_string(), now());
    let expires = now
        + seconds(match kind {
            Kind::Device => approvals.device_expiry,
            Kind::Admin => approvals.admin_expiry,
        });
    let new = NewRequest {
        user: asked.app.store.user_of(&email).await?,
        kind,
        algorithm,
        code_hash: code_hash(&id, &body.access_code),
        fingerprint: phrase(&email, &public_key),
        created: now,
        expires,
        public_key: body.public_key,
        id,
        email,
    };
    if asked.app.store.add_request(&new).await? == Added::TooMany {
        warn!(address = %asked.address, "too many open requests for approval");
        return Err(Failed::too_many(60));
    }
    info!(id = new.id, address = %asked.address, kind = kind.name(), is_enrolled = new.user.is_some(), "approval requested");
    let answer = json!({ "id": new.id, "fingerprint": new.fingerprint, "expires": expires });
    Ok(json(StatusCode::CREATED, &answer))
}

/// GET /auth-requests/ID: where it stands, and once the value. Unknown, expired, fetched and a wrong code
/// are one answer.
pub(super) async fn fetch(asked: &Asked<'_>, id: &str) -> Result<Response<Answer>, Failed> {
    let (store, now) = (&asked.app.store, now());
    let code = crate::http::header(&asked.head.headers, "x-access-code").unwrap_or_default();
    let id = Uuid::try_parse(id).map(|id| id.to_string()).unwrap_or_default();
    let request = store.request(&id, now).await?;
    let hash = code_hash(&id, code);
    let stored = request.as_ref().map_or("", |request| request.code_hash.as_str());
    if verify_slices_are_equal(hash.as_bytes(), stored.as_bytes()).is_err() {
        asked.approvals.requests.take(network(asked.address)).map_err(Failed::too_many)?;
        if let Some(request) = request.filter(|request| !request.code_hash.is_empty()) {
            warn!(id = request.id, address = %asked.address, "a wrong access code");
            store.wrong_code(&request.id, MOST_WRONG).await?;
        }
        return Ok(empty(StatusCode::NOT_FOUND));
    }
    let Some(request) = request else { return Ok(empty(StatusCode::NOT_FOUND)) };
    match (request.state, request.value) {
        (State::Open, _) => Ok(json(StatusCode::OK, &json!({ "state": "open" }))),
        (State::Denied, _) => Ok(json(StatusCode::OK, &json!({ "state": "denied" }))),
        (State::Approved, Some(value)) if store.take(&id).await? => {
            info!(id, address = %asked.address, "what was approved was fetched");
            Ok(json(StatusCode::OK, &json!({ "state": "approved", "value": value })))
        }
        _ => Ok(empty(StatusCode::NOT_FOUND)),
    }
}

/// An RSA public key of 2048 to 8192 bits, in DER.
fn public_key(base64: &str) -> Result<Vec<u8>, Failed> {
    let wrong =
        "publicKey is no RSA public key of 2048 to 8192 bits (SubjectPublicKeyInfo, Base64)";
    let der = decoded(base64, wrong)?;
    if der.len() > MAX_PUBLIC_KEY {
        return Err(bad(wrong));
    }
    let key = PublicEncryptingKey::from_der(&der).map_err(|_| bad(wrong))?;
    // One spelling of a key: what is shown, hashed and approved is what is used.
    let again: PublicKeyX509Der<'_> = key.as_der().map_err(|_| bad(wrong))?;
    if again.as_ref() == der { Ok(der) } else { Err(bad(wrong)) }
}

/// Of a code, for this request alone. The code is chosen at random by a program, so that a fast hash is
/// enough.
fn code_hash(id: &str, code: &str) -> String {
    use std::fmt::Write as _;
    let mut hex = String::with_capacity(64);
    for byte in sha256(format!("{id}\0{code}").as_bytes()) {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

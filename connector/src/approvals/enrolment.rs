//! What a user's own devices do: enrol a recovery value, replace it, and trust a device.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{Method, Response, StatusCode};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::json;
use tracing::info;
use uuid::Uuid;

use super::fingerprint::email;
use super::{Asked, Failed, bad, decoded, is_under, now};
use crate::http::responses::{Answer, empty, json, method_not_allowed, text};
use crate::http::user_keys::bearer;
use crate::store::{Enrolled, Recovery, TrustedDevice};
use crate::token::user_with_claims;
use crate::user::UserId;

/// Trusted devices of one user at most.
const MOST_DEVICES: i64 = 50;
/// Longest of a device's three values, in bytes.
const MAX_VALUE: usize = 4096;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RecoveryBody {
    value: String,
    device: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "they are keys")]
struct DeviceBody {
    #[serde(rename = "encryptedUserKey")]
    user_key: String,
    #[serde(rename = "encryptedPublicKey")]
    public_key: String,
    #[serde(rename = "encryptedPrivateKey")]
    private_key: String,
}

/// GET /approvals/organization-key: under what a user's key is wrapped to be enrolled.
pub(super) async fn organization_key(asked: &Asked<'_>) -> Result<Response<Answer>, Failed> {
    user(asked).await?;
    let (key, algorithm) = asked.approvals.daemon.public_key().await.map_err(Failed::Daemon)?;
    let answer = json!({ "publicKey": STANDARD.encode(key), "algorithm": algorithm });
    Ok(json(StatusCode::OK, &answer))
}

/// GET, PUT and DELETE of /approvals/recovery.
pub(super) async fn recovery(
    asked: &Asked<'_>,
    method: &Method,
    body: Incoming,
) -> Result<Response<Answer>, Failed> {
    let store = &asked.app.store;
    match *method {
        Method::GET => {
            let (user, _) = user(asked).await?;
            let is_enrolled = store.recovery(user).await?.is_some();
            Ok(json(StatusCode::OK, &json!({ "enrolled": is_enrolled })))
        }
        Method::PUT => enrol(asked, body).await,
        Method::DELETE => {
            let (user, _) = user(asked).await?;
            if !store.withdraw(user).await? {
                return Ok(empty(StatusCode::NOT_FOUND));
            }
            info!(%user, "a user withdrew the recovery value");
            Ok(empty(StatusCode::NO_CONTENT))
        }
        _ => Ok(method_not_allowed("GET, PUT, DELETE")),
    }
}

/// Requests for the value before end. A device that is not named is trusted no longer: it has the key
/// that was replaced.
async fn enrol(asked: &Asked<'_>, body: Incoming) -> Result<Response<Answer>, Failed> {
    let (user, claimed) = user(asked).await?;
    let email =
        claimed.ok_or_else(|| bad("the token has no `email`, by which devices name the user"))?;
    let body: RecoveryBody = asked.json(body).await?;
    let (key, _) = asked.approvals.daemon.public_key().await.map_err(Failed::Daemon)?;
    let wrong = "value is not Base64 of the user's key under the organisation's public key";
    let len = decoded(&body.value, wrong)?.len();
    if !is_under(len, &key) {
        return Err(bad(wrong));
    }
    let keep = match &body.device {
        Some(device) => device_id(device)?,
        None => String::new(),
    };
    let value = Recovery { email, value: body.value };
    match asked.app.store.enrol(user, &value, &keep, now()).await? {
        Enrolled::EmailTaken => {
            Ok(text(StatusCode::CONFLICT, "another user is enrolled with this e-mail"))
        }
        Enrolled::Yes => {
            info!(%user, "a user's recovery value was stored");
            Ok(empty(StatusCode::NO_CONTENT))
        }
    }
}

/// GET, PUT and DELETE of /approvals/devices/ID.
pub(super) async fn device(
    asked: &Asked<'_>,
    method: &Method,
    device: &str,
    body: Incoming,
) -> Result<Response<Answer>, Failed> {
    let (user, _) = user(asked).await?;
    let (store, device) = (&asked.app.store, device_id(device)?);
    match *method {
        Method::GET => Ok(match store.trusted(user, &device).await? {
            None => empty(StatusCode::NOT_FOUND),
            Some(values) => json(
                StatusCode::OK,
                &json!({
                    "encryptedUserKey": values.user_key,
                    "encryptedPublicKey": values.public_key,
                    "encryptedPrivateKey": values.private_key,
                }),
            ),
        }),
        Method::PUT => {
            let body: DeviceBody = asked.json(body).await?;
            let values = TrustedDevice {
                user_key: body.user_key,
                public_key: body.public_key,
                private_key: body.private_key,
            };
            let all = [&values.user_key, &values.public_key, &values.private_key];
            if all.iter().any(|value| value.is_empty() || value.len() > MAX_VALUE) {
                return Err(bad("a value has not 1 to 4096 bytes"));
            }
            if store.recovery(user).await?.is_none() {
                return Ok(text(StatusCode::CONFLICT, "the user is not enrolled"));
            }
            if !store.trust(user, &device, &values, MOST_DEVICES).await? {
                return Ok(text(StatusCode::CONFLICT, "the user has 50 trusted devices already"));
            }
            info!(%user, device, "a device is trusted");
            Ok(empty(StatusCode::NO_CONTENT))
        }
        Method::DELETE => {
            if !store.distrust(user, &device).await? {
                return Ok(empty(StatusCode::NOT_FOUND));
            }
            info!(%user, device, "a device is trusted no longer");
            Ok(empty(StatusCode::NO_CONTENT))
        }
        _ => Ok(method_not_allowed("GET, PUT, DELETE")),
    }
}

/// The user who asks, and the e-mail that the token has.
async fn user(asked: &Asked<'_>) -> Result<(UserId, Option<String>), Failed> {
    let (user, claims) = user_with_claims(&asked.app.issuer, bearer(asked.head)?).await?;
    asked.app.user_limit.take(user).map_err(Failed::too_many)?;
    Ok((user, claims.text("email").and_then(email)))
}

fn device_id(text: &str) -> Result<String, Failed> {
    let id = Uuid::try_parse(text).map_err(|_| bad("a device is named by a UUID"))?;
    Ok(id.to_string())
}

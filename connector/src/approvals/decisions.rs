//! What approvers do, and another device of the same user: look, approve, deny.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use claviger_client::Approval;
use http::{Response, StatusCode};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::{info, warn};

use super::approver::Approver;
use super::{Asked, Failed, bad, decoded, is_under, now, sha256};
use crate::http::responses::{Answer, empty, json, text};
use crate::http::user_keys::bearer;
use crate::keys::DaemonError;
use crate::store::{Kind, Request, State};
use crate::token::{self, Refusal};
use crate::user::UserId;

/// Who decides.
enum By {
    Approver(Approver),
    User(UserId),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ApproveBody {
    /// Of an approver.
    id_token: Option<String>,
    expires: Option<u64>,
    /// Of another device of the user.
    value: Option<String>,
}

/// GET /auth-requests: what may be decided by the one who asks.
pub(super) async fn list(asked: &Asked<'_>) -> Result<Response<Answer>, Failed> {
    let store = &asked.app.store;
    let of = match by(asked).await? {
        By::Approver(_) => None,
        By::User(user) => Some(user),
    };
    let mut listed = Vec::new();
    for request in store.open_requests(of, now()).await? {
        let Some(user) = request.user else { continue };
        let Some(recovery) = store.recovery(user).await? else { continue };
        let wrapped = STANDARD.decode(&recovery.value).unwrap_or_default();
        let mut one = described(&request);
        one["publicKey"] = request.public_key.into();
        one["algorithm"] = request.algorithm.into();
        one["expires"] = request.expires.into();
        one["wrappedSha256"] = STANDARD.encode(sha256(&wrapped)).into();
        listed.push(one);
    }
    Ok(json(StatusCode::OK, &json!({ "requests": listed })))
}

/// GET /auth-requests/history: what was decided, for approvers.
pub(super) async fn history(asked: &Asked<'_>) -> Result<Response<Answer>, Failed> {
    let By::Approver(_) = by(asked).await? else {
        return Err(Refusal::Forbidden("history is for approvers").into());
    };
    let decided = asked.app.store.decided_requests().await?;
    let listed: Vec<Value> = decided
        .iter()
        .map(|request| {
            let mut one = described(request);
            one["state"] = request.state.name().into();
            one["decided"] = json!(request.decided);
            one["by"] = json!(request.decided_by);
            one
        })
        .collect();
    Ok(json(StatusCode::OK, &json!({ "requests": listed })))
}

fn described(request: &Request) -> Value {
    json!({
        "id": request.id, "email": request.email, "kind": request.kind.name(),
        "fingerprint": request.fingerprint, "created": request.created,
    })
}

/// POST /auth-requests/ID/approve. Of an approver it is one `Rewrap`, which the daemon allows by the ID
/// token; another device of the user brings the value along, encrypted by itself.
pub(super) async fn approve(
    asked: &Asked<'_>,
    id: &str,
    body: Incoming,
) -> Result<Response<Answer>, Failed> {
    let by = by(asked).await?;
    let body: ApproveBody = asked.json(body).await?;
    let request = decidable(asked, id, &by).await?.filter(|request| match by {
        By::Approver(_) => true,
        By::User(_) => request.kind == Kind::Device,
    });
    let Some(request) = request else { return Ok(empty(StatusCode::NOT_FOUND)) };
    let value = match (&by, body) {
        (By::User(_), ApproveBody { value: Some(value), id_token: None, expires: None }) => {
            encrypted(&request, value)?
        }
        (
            By::Approver(approver),
            ApproveBody { value: None, id_token: Some(id_token), expires: Some(expires) },
        ) => {
            // The one who looks and the one who approves are one person.
            if asked.approvals.approvers.approver(&id_token).await?.subject != approver.subject {
                return Err(Refusal::Forbidden("idToken is of another person").into());
            }
            match rewrapped(asked, &request, Approval { id_token, expires }).await? {
                Ok(value) => value,
                Err(response) => return Ok(response),
            }
        }
        _ => {
            return Err(bad(
                "write idToken and expires as an approver, value as the user's device",
            ));
        }
    };
    decided(asked, &request, Some(&value), &by).await
}

/// POST /auth-requests/ID/deny. A user may deny what strangers asked for in the user's name.
pub(super) async fn deny(asked: &Asked<'_>, id: &str) -> Result<Response<Answer>, Failed> {
    let by = by(asked).await?;
    match decidable(asked, id, &by).await? {
        Some(request) => decided(asked, &request, None, &by).await,
        None => Ok(empty(StatusCode::NOT_FOUND)),
    }
}

/// Who asks: an approver by an ID token of the approvals' issuer, or a user by a token of the identity
/// server's.
async fn by(asked: &Asked<'_>) -> Result<By, Failed> {
    let token = bearer(asked.head)?;
    let approvers = &asked.approvals.approvers;
    if approvers.claims_to_be(token) {
        let approver = approvers.approver(token).await?;
        let limit = asked.approvals.by_approver.take(sha256(approver.subject.as_bytes()));
        limit.map_err(Failed::too_many)?;
        return Ok(By::Approver(approver));
    }
    let user = token::user(&asked.app.issuer, token).await?;
    asked.app.user_limit.take(user).map_err(Failed::too_many)?;
    Ok(By::User(user))
}

/// A request that is open and may be looked at and denied by that person.
async fn decidable(asked: &Asked<'_>, id: &str, by: &By) -> Result<Option<Request>, Failed> {
    let request = asked.app.store.request(id, now()).await?;
    Ok(request.filter(|request| {
        let is_theirs = match by {
            By::Approver(_) => request.kind == Kind::Admin && request.user.is_some(),
            By::User(user) => request.user == Some(*user),
        };
        is_theirs && request.state == State::Open
    }))
}

/// What another device encrypted: as long as the modulus of the public key.
fn encrypted(request: &Request, value: String) -> Result<String, Failed> {
    let wrong = "value is not Base64 of what was encrypted to publicKey";
    let len = decoded(&value, wrong)?.len();
    let key = decoded(&request.public_key, wrong)?;
    if is_under(len, &key) { Ok(value) } else { Err(bad(wrong)) }
}

/// The user's value for the device, or the answer that says why not.
async fn rewrapped(
    asked: &Asked<'_>,
    request: &Request,
    approval: Approval,
) -> Result<Result<String, Response<Answer>>, Failed> {
    let gone =
        || text(StatusCode::CONFLICT, "the user's value has changed; look at the list again");
    let Some(user) = request.user else { return Ok(Err(gone())) };
    let Some(recovery) = asked.app.store.recovery(user).await? else { return Ok(Err(gone())) };
    let wrapped = decoded(&recovery.value, "the stored value is no Base64")?;
    let public_key = decoded(&request.public_key, "the stored public key is no Base64")?;
    let daemon = &asked.approvals.daemon;
    let outcome = daemon.rewrap_for(user, &wrapped, public_key, &request.algorithm, approval).await;
    match outcome {
        Ok(value) => Ok(Ok(STANDARD.encode(value))),
        Err(DaemonError::Refused(reason)) => {
            warn!(id = request.id, %user, reason, "the daemon refused an approval");
            let sentence =
                "the daemon does not take this for an approval of this value for this device";
            Ok(Err(text(StatusCode::FORBIDDEN, sentence)))
        }
        Err(reason @ DaemonError::NotNow(_)) => Err(Failed::Daemon(reason)),
    }
}

async fn decided(
    asked: &Asked<'_>,
    request: &Request,
    value: Option<&str>,
    by: &By,
) -> Result<Response<Answer>, Failed> {
    let name = match by {
        By::Approver(approver) => approver.name.clone(),
        By::User(user) => format!("another device of user {user}"),
    };
    if !asked.app.store.decide(&request.id, value, &name, now()).await? {
        return Ok(empty(StatusCode::NOT_FOUND));
    }
    let outcome = if value.is_some() { "approved" } else { "denied" };
    let user = request.user.map(|user| user.to_string()).unwrap_or_default();
    info!(id = request.id, user, by = name, outcome, "an approval was decided");
    Ok(empty(StatusCode::NO_CONTENT))
}

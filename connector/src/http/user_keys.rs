//! `/user-keys`: who asks, how often, and for what.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{Method, Response, StatusCode};
use hyper::body::Incoming;
use tracing::{error, info, warn};
use zeroize::Zeroizing;

use super::responses::{Answer, empty, key, method_not_allowed, text, too_many, unauthorized};
use super::{body, header, limiter};
use crate::app::App;
use crate::keys::KeyError;
use crate::store::Timestamp;
use crate::token::{self, Refusal};
use crate::user::UserId;

const ALLOW: &str = "GET, POST, PUT";

pub(super) async fn answer(
    app: &App,
    address: IpAddr,
    head: &Parts,
    body: Incoming,
) -> Response<Answer> {
    if !matches!(head.method, Method::GET | Method::POST | Method::PUT) {
        return method_not_allowed(ALLOW);
    }
    let user = match user(app, head).await {
        Ok(user) => user,
        Err(refusal) => return refused(app, address, refusal),
    };
    if let Err(seconds) = app.user_limit.take(user) {
        warn!(%user, %address, "too many requests of one user");
        return too_many(seconds);
    }
    let outcome = match head.method {
        Method::GET => get(app, user).await,
        Method::POST | Method::PUT => match body::key(head, body).await {
            Err(response) => return response,
            Ok(key) if head.method == Method::POST => post(app, user, &key).await,
            Ok(key) => put(app, user, &key).await,
        },
        _ => return method_not_allowed(ALLOW),
    };
    outcome.unwrap_or_else(|reason| failed(app, user, &reason))
}

/// The user whose token the request has.
async fn user(app: &App, head: &Parts) -> Result<UserId, Refusal> {
    token::user(&app.issuer, bearer(head)?).await
}

/// The bearer token of a request (RFC 6750 section 2.1).
pub(crate) fn bearer(head: &Parts) -> Result<&str, Refusal> {
    let authorization = header(&head.headers, AUTHORIZATION.as_str()).ok_or(Refusal::NoToken)?;
    let (scheme, token) = authorization.split_once(' ').ok_or(Refusal::NoToken)?;
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
        return Err(Refusal::NoToken);
    }
    Ok(token)
}

/// The answer to a request without a good token, which counts for its address.
pub(crate) fn refused(app: &App, address: IpAddr, refusal: Refusal) -> Response<Answer> {
    if refusal == Refusal::NotNow {
        return text(StatusCode::SERVICE_UNAVAILABLE, "the issuer's keys are not known yet");
    }
    app.metrics.refused(refusal);
    if let Err(seconds) = app.refused_limit.take(limiter::network(address)) {
        return too_many(seconds);
    }
    info!(%address, reason = %refusal, "refused");
    match refusal {
        Refusal::Forbidden(_) => empty(StatusCode::FORBIDDEN),
        Refusal::NoToken => unauthorized(false),
        Refusal::Bad(_) | Refusal::Invalid(_) | Refusal::NotNow => unauthorized(true),
    }
}

async fn get(app: &App, user: UserId) -> Result<Response<Answer>, KeyError> {
    let Some(stored) = app.store.key(user).await? else {
        return Ok(empty(StatusCode::NOT_FOUND));
    };
    let opened = app.keys.open(&app.store, user, &stored).await?;
    let base64 = Zeroizing::new(STANDARD.encode(&*opened));
    app.accessed.note(user, Timestamp::now());
    Ok(key(&base64))
}

async fn post(app: &App, user: UserId, key: &[u8]) -> Result<Response<Answer>, KeyError> {
    // Before the daemon is asked, so that a further enrolment costs it nothing.
    if app.store.user(user).await?.is_some() {
        return Ok(exists());
    }
    let sealed = app.keys.seal(user, key).await?;
    if !app.store.insert(user, &sealed).await? {
        return Ok(exists());
    }
    info!(%user, "a user was enrolled");
    Ok(empty(StatusCode::OK))
}

async fn put(app: &App, user: UserId, key: &[u8]) -> Result<Response<Answer>, KeyError> {
    let sealed = app.keys.seal(user, key).await?;
    app.store.put(user, &sealed).await?;
    info!(%user, "a user's key was replaced");
    Ok(empty(StatusCode::OK))
}

fn exists() -> Response<Answer> {
    text(StatusCode::BAD_REQUEST, "there is a key already")
}

fn failed(app: &App, user: UserId, reason: &KeyError) -> Response<Answer> {
    app.metrics.failed(reason);
    match reason {
        KeyError::NotNow(_) | KeyError::Store(crate::store::StoreError::Database(_)) => {
            warn!(%user, %reason, "a user's key cannot be had now");
            text(StatusCode::SERVICE_UNAVAILABLE, "try again later")
        }
        KeyError::TooLong => text(StatusCode::BAD_REQUEST, "the key is too long"),
        KeyError::Wrong(_) | KeyError::Store(_) => {
            error!(%user, %reason, "a user's stored key does not open");
            empty(StatusCode::INTERNAL_SERVER_ERROR)
        }
    }
}

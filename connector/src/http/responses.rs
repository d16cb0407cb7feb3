//! The answers, as the original gives them.

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use zeroize::Zeroizing;

use crate::health::Health;

/// The body of an answer.
pub type Answer = Full<Bytes>;

const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain");

pub(crate) fn empty(status: StatusCode) -> Response<Answer> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

/// A sentence for people.
pub(crate) fn text(status: StatusCode, sentence: &'static str) -> Response<Answer> {
    let mut response = Response::new(Full::new(Bytes::from_static(sentence.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, TEXT);
    response
}

/// A JSON string of characters that need no escape.
pub(crate) fn json_text(text: &str) -> Response<Answer> {
    let mut response = Response::new(Full::new(Bytes::from(format!("\"{text}\""))));
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

/// A JSON object that no cache keeps.
pub(crate) fn json(status: StatusCode, object: &serde_json::Value) -> Response<Answer> {
    let mut response = Response::new(Full::new(Bytes::from(object.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// `{"key":"…"}`; zeroed when it has been sent.
pub(crate) fn key(base64: &str) -> Response<Answer> {
    let mut body = Zeroizing::new(Vec::with_capacity(base64.len() + 10));
    body.extend_from_slice(b"{\"key\":\"");
    body.extend_from_slice(base64.as_bytes());
    body.extend_from_slice(b"\"}");
    let mut response = Response::new(Full::new(Bytes::from_owner(body)));
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

pub(crate) fn health(health: Health) -> Response<Answer> {
    match health {
        Health::Healthy => text(StatusCode::OK, "Healthy"),
        Health::Degraded => text(StatusCode::OK, "Degraded"),
        Health::Unhealthy => text(StatusCode::SERVICE_UNAVAILABLE, "Unhealthy"),
    }
}

pub(crate) fn metrics(rendered: String) -> Response<Answer> {
    let mut response = Response::new(Full::new(Bytes::from(rendered)));
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

pub(crate) fn method_not_allowed(allow: &'static str) -> Response<Answer> {
    let mut response = empty(StatusCode::METHOD_NOT_ALLOWED);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    response
}

/// 401 (RFC 6750 section 3): with an error code only where there was a token.
pub(crate) fn unauthorized(with_token: bool) -> Response<Answer> {
    let challenge = if with_token { "Bearer error=\"invalid_token\"" } else { "Bearer" };
    let mut response = empty(StatusCode::UNAUTHORIZED);
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    response
}

/// 429, to be tried again after so many seconds.
pub(crate) fn too_many(seconds: u64) -> Response<Answer> {
    let mut response = text(StatusCode::TOO_MANY_REQUESTS, "too many requests");
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    response
}

/// The same answer to HEAD.
pub(crate) fn without_body(response: &mut Response<Answer>) {
    *response.body_mut() = Full::default();
}

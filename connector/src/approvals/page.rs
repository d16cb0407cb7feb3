//! The page for approvers: files that are part of the program, the settings for the issuer's sign-in, and the
//! words of the fingerprint phrase.

use bytes::Bytes;
use http::header::{
    CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde_json::json;

use super::Approvals;
use super::fingerprint::words;
use crate::http::responses::{Answer, empty, json, text};

/// GET of a path below `/approvals`, whose parts are `rest`.
pub(super) fn answer(approvals: &Approvals, path: &str, rest: &[&str]) -> Response<Answer> {
    match rest {
        // What the page loads is beside it.
        [] if !path.ends_with('/') => {
            let mut response = empty(StatusCode::PERMANENT_REDIRECT);
            response.headers_mut().insert(LOCATION, HeaderValue::from_static("/approvals/"));
            response
        }
        [] => file(approvals, "text/html; charset=utf-8", include_str!("page/page.html")),
        ["page.css"] => file(approvals, "text/css; charset=utf-8", include_str!("page/page.css")),
        ["page.js"] => file(approvals, SCRIPT, include_str!("page/page.js")),
        ["sign_in.js"] => file(approvals, SCRIPT, include_str!("page/sign_in.js")),
        ["icon.svg"] => file(approvals, "image/svg+xml", include_str!("page/icon.svg")),
        ["settings"] => settings(approvals),
        ["words"] => file(approvals, "text/plain; charset=utf-8", &(words().join("\n") + "\n")),
        _ => empty(StatusCode::NOT_FOUND),
    }
}

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Nothing runs or loads but these files; the page asks this connector and the issuer, and no other.
fn file(approvals: &Approvals, kind: &'static str, content: &str) -> Response<Answer> {
    let issuer = approvals.approvers.issuer.known();
    let issuer = issuer.and_then(|known| origin(&known.name)).unwrap_or_default();
    let policy = format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
         connect-src 'self' {issuer}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'"
    );
    let mut response = Response::new(Full::new(Bytes::from(content.to_owned())));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
        return response;
    }
    text(StatusCode::SERVICE_UNAVAILABLE, "the issuer's name is no URL")
}

/// How an approver signs in.
fn settings(approvals: &Approvals) -> Response<Answer> {
    let Some(known) = approvals.approvers.issuer.known() else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "the issuer's keys are not known yet");
    };
    let scope = format!("openid {}", approvals.scope);
    let answer = json!({
        "issuer": &*known.name, "clientId": approvals.client_id, "scope": scope.trim(),
        "maxAge": approvals.max_age.as_secs(),
    });
    json(StatusCode::OK, &answer)
}

/// Scheme, host and port of a URL.
fn origin(url: &str) -> Option<String> {
    let origin = reqwest::Url::parse(url).ok()?.origin();
    origin.is_tuple().then(|| origin.ascii_serialization())
}

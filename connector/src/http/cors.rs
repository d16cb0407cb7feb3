//! Cross-origin requests: the web vault's origin, exactly, with credentials, any method and header.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD,
    ORIGIN, VARY,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};

use super::responses::{Answer, empty};

/// Where a request comes from, as its browser says.
pub(super) enum Origin {
    /// No browser, or its own origin.
    None,
    /// The web vault.
    WebVault(HeaderValue),
    /// Another page.
    Other,
}

impl Origin {
    pub(super) fn of(headers: &HeaderMap, web_vault: &HeaderValue) -> Self {
        match headers.get(ORIGIN) {
            None => Self::None,
            Some(origin) if origin == web_vault => Self::WebVault(origin.clone()),
            Some(_) => Self::Other,
        }
    }
}

/// The answer to a preflight request, which browsers send before others; none for any other request.
pub(super) fn preflight(head: &Parts, origin: &Origin) -> Option<Response<Answer>> {
    let method = head.headers.get(ACCESS_CONTROL_REQUEST_METHOD)?;
    if head.method != Method::OPTIONS || matches!(origin, Origin::None) {
        return None;
    }
    let mut response = empty(StatusCode::NO_CONTENT);
    if matches!(origin, Origin::WebVault(_)) {
        let headers = response.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, method.clone());
        if let Some(asked) = head.headers.get(ACCESS_CONTROL_REQUEST_HEADERS) {
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
        }
    }
    Some(response)
}

/// Lets the web vault read the answer.
pub(super) fn mark(response: &mut Response<Answer>, origin: &Origin) {
    let headers = response.headers_mut();
    if let Origin::WebVault(origin) = origin {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    if !matches!(origin, Origin::None) {
        headers.append(VARY, HeaderValue::from_static("Origin"));
    }
}

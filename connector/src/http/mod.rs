//! The HTTP of a Key Connector: `/user-keys`, `/alive`, `/now`, `/health`, what a browser asks for, and
//! the way to [`approvals`].
//!
//! Each rule, with what the original answers: `tests/cases/cases.json`.

mod address;
pub(crate) mod body;
mod cors;
mod limiter;
pub(crate) mod responses;
pub(crate) mod user_keys;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::body::Incoming;

pub use address::client_address;
pub use limiter::{Limiter, network};
pub use responses::Answer;

use crate::app::App;
use crate::approvals;
use crate::health::Health;
use crate::store::Timestamp;
use responses::{empty, health, json_text, method_not_allowed, text};

/// Answers one request of `peer`, which is the client or a proxy that is believed.
pub async fn answer(app: Arc<App>, peer: IpAddr, request: Request<Incoming>) -> Response<Answer> {
    let begun = Instant::now();
    let (head, body) = request.into_parts();
    let address = client_address(peer, &head.headers, &app.proxies);
    let route = Route::of(head.uri.path());
    let origin = cors::Origin::of(&head.headers, &app.web_vault);
    let mut response = if let Some(preflight) = cors::preflight(&head, &origin) {
        preflight
    } else {
        match route {
            Route::UserKeys => user_keys::answer(&app, address, &head, body).await,
            Route::Time => time(&head.method),
            Route::Health => healthy(&app, &head.method).await,
            Route::Approvals => approvals::answer(&app, address, &head, body).await,
            Route::Unknown => empty(StatusCode::NOT_FOUND),
        }
    };
    cors::mark(&mut response, &origin);
    if head.method == Method::HEAD {
        responses::without_body(&mut response);
    }
    app.metrics.request(route.name(), &head.method, response.status(), begun.elapsed());
    response
}

/// What is there. A path has one spelling, and may end with a slash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    UserKeys,
    Time,
    Health,
    Approvals,
    Unknown,
}

impl Route {
    fn of(path: &str) -> Self {
        match path.strip_suffix('/').unwrap_or(path) {
            "/user-keys" => Self::UserKeys,
            "/alive" | "/now" => Self::Time,
            "/health" => Self::Health,
            path if approvals::is_of(path) => Self::Approvals,
            _ => Self::Unknown,
        }
    }

    /// For metrics.
    fn name(self) -> &'static str {
        match self {
            Self::UserKeys => "user-keys",
            Self::Time => "alive",
            Self::Health => "health",
            Self::Approvals => "approvals",
            Self::Unknown => "unknown",
        }
    }
}

fn time(method: &Method) -> Response<Answer> {
    match *method {
        Method::GET | Method::HEAD => json_text(&Timestamp::now().iso()),
        _ => method_not_allowed("GET"),
    }
}

async fn healthy(app: &App, method: &Method) -> Response<Answer> {
    match *method {
        Method::GET | Method::HEAD => health(app.health().await),
        _ => method_not_allowed("GET"),
    }
}

/// The same for the operations listener, which also has the metrics.
pub async fn operations(app: Arc<App>, request: Request<Incoming>) -> Response<Answer> {
    match (request.uri().path(), request.method()) {
        ("/health", &Method::GET | &Method::HEAD) => health(app.health().await),
        ("/metrics", &Method::GET) => {
            let health = app.health().await;
            app.metrics.observe(health != Health::Unhealthy, app.keys.shared().is_open());
            responses::metrics(app.metrics.render())
        }
        ("/health" | "/metrics", _) => method_not_allowed("GET"),
        _ => text(StatusCode::NOT_FOUND, "there are /health and /metrics"),
    }
}

/// The text of a header that is there once.
pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let only = values.next()?;
    if values.next().is_some() { None } else { only.to_str().ok() }
}

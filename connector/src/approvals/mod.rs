//! Approvals: a new device gets a user's key once a person has released it.
//!
//! - [`requester`]: the device asks, and fetches with its access code, once
//! - [`approver`]: who may approve; [`decisions`]: the list, approve, deny, history
//! - [`enrolment`]: the user's own: recovery value and trusted devices
//! - [`fingerprint`]: what two people compare; [`page`]: where approvers do
//!
//! What an administrator approves is one `Rewrap` in the daemon, which looks at the approver's ID token
//! itself (`to_approved`): this program holds no right to open a value.

pub mod approver;
mod decisions;
mod enrolment;
pub mod fingerprint;
mod page;
mod requester;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::request::Parts;
use http::{Method, Response, StatusCode};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use tracing::{error, warn};

use crate::app::App;
use crate::config;
use crate::http::Limiter;
use crate::http::body;
use crate::http::responses::{Answer, empty, method_not_allowed, text, too_many};
use crate::http::user_keys::refused;
use crate::keys::{Daemon, DaemonError};
use crate::store::{StoreError, seconds_since_1970 as now};

use approver::Approvers;

/// Longest body: an ID token has up to 16 KiB, a device's values up to 4 KiB each.
const MAX_BODY: usize = 24 << 10;

/// What the approvals' requests share.
#[derive(Debug)]
pub struct Approvals {
    /// The organisation's key.
    daemon: Daemon,
    /// Who may approve.
    pub approvers: Approvers,
    /// New requests and wrong codes, per address.
    requests: Limiter<IpAddr>,
    /// What approvers ask for, by SHA-256 of their subject.
    by_approver: Limiter<[u8; 32]>,
    client_id: String,
    scope: String,
    max_age: Duration,
    device_expiry: Duration,
    admin_expiry: Duration,
}

impl Approvals {
    /// Reads what is in files.
    pub fn new(
        config: &config::Approvals,
        limits: config::Limits,
        daemon: &Daemon,
    ) -> Result<Self, String> {
        Ok(Self {
            daemon: daemon.with_key(&config.key),
            approvers: Approvers::new(config)?,
            requests: Limiter::new(config.requests),
            by_approver: Limiter::new(limits.user),
            client_id: config.client_id.clone(),
            scope: config.scope.clone(),
            max_age: config.max_age,
            device_expiry: config.device_expiry,
            admin_expiry: config.admin_expiry,
        })
    }
}

/// Whether a path, without a slash at its end, is one of those below.
pub(crate) fn is_of(path: &str) -> bool {
    ["/auth-requests", "/approvals"].iter().any(|first| {
        path.strip_prefix(first).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// Answers one request; 404 where approvals are off.
pub(crate) async fn answer(
    app: &App,
    address: IpAddr,
    head: &Parts,
    body: Incoming,
) -> Response<Answer> {
    let Some(approvals) = &app.approvals else { return empty(StatusCode::NOT_FOUND) };
    let asked = Asked { app, approvals, address, head };
    let path: Vec<&str> = head.uri.path().trim_end_matches('/').split('/').skip(1).collect();
    let outcome = match (path.as_slice(), &head.method) {
        (["auth-requests"], &Method::POST) => requester::ask(&asked, body).await,
        (["auth-requests"], &Method::GET) => decisions::list(&asked).await,
        (["auth-requests"], _) => return method_not_allowed("GET, POST"),
        (["auth-requests", "history"], &Method::GET) => decisions::history(&asked).await,
        (["auth-requests", id], &Method::GET) => requester::fetch(&asked, id).await,
        (["auth-requests", _], _) => return method_not_allowed("GET"),
        (["auth-requests", id, "approve"], &Method::POST) => {
            decisions::approve(&asked, id, body).await
        }
        (["auth-requests", id, "deny"], &Method::POST) => decisions::deny(&asked, id).await,
        (["auth-requests", _, "approve" | "deny"], _) => return method_not_allowed("POST"),
        (["approvals", "organization-key"], &Method::GET) => {
            enrolment::organization_key(&asked).await
        }
        (["approvals", "recovery"], method) => enrolment::recovery(&asked, method, body).await,
        (["approvals", "devices", device], method) => {
            enrolment::device(&asked, method, device, body).await
        }
        (["approvals", rest @ ..], &Method::GET | &Method::HEAD) => {
            Ok(page::answer(approvals, head.uri.path(), rest))
        }
        _ => return empty(StatusCode::NOT_FOUND),
    };
    outcome.unwrap_or_else(|reason| failed(app, address, reason))
}

/// One request and what it is answered from.
#[derive(Clone, Copy)]
struct Asked<'a> {
    app: &'a App,
    approvals: &'a Approvals,
    address: IpAddr,
    head: &'a Parts,
}

/// Why a request is not answered.
enum Failed {
    /// With this answer.
    Answered(Box<Response<Answer>>),
    /// Its token is not good, or of no one who may.
    Refused(crate::token::Refusal),
    /// By the database.
    Store(StoreError),
    /// By the daemon, for now.
    Daemon(DaemonError),
}

impl Asked<'_> {
    /// The body as JSON.
    async fn json<T: DeserializeOwned>(&self, body: Incoming) -> Result<T, Failed> {
        let bytes = body::json::<MAX_BODY>(self.head, body).await.map_err(Failed::answered)?;
        serde_json::from_slice(&bytes).map_err(|error| {
            // Its words may repeat a value: a token, or an access code.
            let (address, column, kind) = (self.address, error.column(), error.classify());
            warn!(%address, column, ?kind, "the body of a request is wrong");
            bad("the body has a field that is missing, unknown or wrong; docs/connector-approvals.md has them")
        })
    }
}

fn failed(app: &App, address: IpAddr, reason: Failed) -> Response<Answer> {
    match reason {
        Failed::Answered(response) => *response,
        Failed::Refused(refusal) => refused(app, address, refusal),
        Failed::Store(reason) => {
            error!(%reason, "approvals: the database did not do what was asked");
            text(StatusCode::SERVICE_UNAVAILABLE, "try again later")
        }
        Failed::Daemon(reason) => {
            warn!(%reason, "approvals: the daemon cannot do it now");
            text(StatusCode::SERVICE_UNAVAILABLE, "try again later")
        }
    }
}

impl Failed {
    fn answered(response: Response<Answer>) -> Self {
        Self::Answered(Box::new(response))
    }

    /// 429, to be tried again after so many seconds.
    fn too_many(seconds: u64) -> Self {
        Self::answered(too_many(seconds))
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<crate::token::Refusal> for Failed {
    fn from(refusal: crate::token::Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// 400, with what is wrong.
fn bad(sentence: &'static str) -> Failed {
    Failed::answered(text(StatusCode::BAD_REQUEST, sentence))
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// Base64 of a value, or 400.
fn decoded(text: &str, sentence: &'static str) -> Result<Vec<u8>, Failed> {
    STANDARD.decode(text).map_err(|_| bad(sentence))
}

/// Whether so many bytes may be wrapped under an RSA public key: they are as many as its modulus has,
/// which is the key (SubjectPublicKeyInfo) but for at most 64 bytes around it.
fn is_under(len: usize, key: &[u8]) -> bool {
    len >= 256 && len < key.len() && key.len() - len <= 64
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// How often what has expired is erased.
const CLEANING: Duration = Duration::from_secs(30);

/// Makes the tables, then erases what has expired, for as long as the process runs.
pub async fn keep_clean(app: Arc<App>) {
    if app.approvals.is_none() {
        return;
    }
    let per_user = app.keys.mode() == config::Mode::PerUser;
    let mut due = tokio::time::interval(CLEANING);
    let mut are_made = false;
    loop {
        let cleaned = async {
            if !are_made {
                app.store.prepare(per_user).await?;
                app.store.prepare_approvals().await?;
            }
            app.store.clean_requests(now()).await
        };
        match cleaned.await {
            Ok(()) => {
                are_made = true;
                due.tick().await;
            }
            Err(error) => {
                error!(%error, "the tables of approvals cannot be looked at; trying again");
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        }
    }
}

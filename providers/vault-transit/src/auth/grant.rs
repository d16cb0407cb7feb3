//! What a login gives: a token and its lease; and the requests that give it and lengthen it.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use http::header::HeaderValue;
use serde::Deserialize;
use serde_json::json;

use super::credentials::{Credentials, token_header};
use crate::client::{Client, Request};
use crate::error::{Failure, Operation};

/// Until when a token is good; a root token has no end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) begun: Instant,
    pub(super) length: Option<Duration>,
    pub(super) renewable: bool,
}

impl Lease {
    /// `begun` is before the request was sent: the server's clock has run since then at the latest.
    fn new(begun: Instant, seconds: u64, renewable: bool) -> Self {
        let length = (seconds > 0).then(|| Duration::from_secs(seconds));
        Self { begun, length, renewable }
    }

    pub(super) fn ended(&self) -> bool {
        self.length.is_some_and(|length| self.begun.elapsed() >= length)
    }

    /// Two thirds of the way to the end.
    pub(super) fn renew_at(&self) -> Option<Instant> {
        self.length.map(|length| self.begun + length * 2 / 3)
    }
}

/// What a login gave.
pub(super) struct Granted {
    pub(super) token: HeaderValue,
    /// Whether its policies let it look itself up, so that a refusal of that means that it is gone.
    pub(super) may_look_up: bool,
    pub(super) lease: Lease,
    /// How often it can be used; 0: as often as needed.
    pub(super) uses: u64,
}

/// The `auth` of an answer (api-docs: auth methods, "Login").
#[derive(Deserialize)]
struct AuthBody<'a> {
    #[serde(borrow)]
    auth: GrantedBody<'a>,
}

#[derive(Deserialize)]
struct GrantedBody<'a> {
    #[serde(borrow)]
    client_token: Cow<'a, str>,
    lease_duration: u64,
    renewable: bool,
    #[serde(default)]
    policies: Vec<String>,
    #[serde(default)]
    num_uses: u64,
}

/// The `data` of `auth/token/lookup-self`.
#[derive(Deserialize)]
struct LookedUpBody {
    data: LookedUp,
}

#[derive(Deserialize)]
struct LookedUp {
    ttl: u64,
    #[serde(default)]
    renewable: bool,
    #[serde(default)]
    num_uses: u64,
}

/// Logs in; a token of an operator's is looked up instead, which proves it and gives its lease.
pub(super) async fn log_in(
    client: &Client,
    credentials: &Credentials,
    deadline: Instant,
) -> Result<Granted, Failure> {
    let begun = Instant::now();
    match credentials {
        Credentials::Token(token) => {
            let request = Request::get(Operation::LogIn, "auth/token/lookup-self".into());
            let answer = client.send(&request, Some(token), deadline).await?;
            let LookedUpBody { data } = answer.json()?;
            let lease = Lease::new(begun, data.ttl, data.renewable);
            let uses = data.num_uses;
            Ok(Granted { token: token.clone(), may_look_up: true, lease, uses })
        }
        Credentials::Method(method) => {
            let answer = client.send(&method.request, None, deadline).await?;
            let AuthBody { auth } = answer.json()?;
            let token = token_header(auth.client_token.as_bytes())
                .ok_or_else(|| Failure::Malformed("a token that is none".into()))?;
            let may_look_up = auth.policies.iter().any(|p| p == "default" || p == "root");
            let lease = Lease::new(begun, auth.lease_duration, auth.renewable);
            Ok(Granted { token, may_look_up, lease, uses: auth.num_uses })
        }
    }
}

/// Renews a token.
pub(super) async fn renew(
    client: &Client,
    token: &HeaderValue,
    deadline: Instant,
) -> Result<Lease, Failure> {
    let begun = Instant::now();
    let path = "auth/token/renew-self".to_owned();
    let request = Request::post(Operation::RenewToken, path, &json!({}));
    let answer = client.send(&request, Some(token), deadline).await?;
    let AuthBody { auth } = answer.json()?;
    Ok(Lease::new(begun, auth.lease_duration, auth.renewable))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Answer;

    #[test]
    fn a_token_is_read_where_it_is_and_leaves_no_copy_that_nobody_zeroes() {
        let answer = Answer::of(
            r#"{"auth":{"client_token":"hvs.marker","lease_duration":60,"renewable":true}}"#,
        );
        let AuthBody { auth } = answer.json().unwrap();
        assert!(matches!(auth.client_token, Cow::Borrowed("hvs.marker")));
    }

    #[test]
    fn a_lease_is_renewed_at_two_thirds_and_no_lease_has_no_end() {
        let lease = Lease::new(Instant::now(), 90, true);
        assert_eq!(lease.renew_at().unwrap() - lease.begun, Duration::from_mins(1));
        assert!(!lease.ended());
        let past =
            Lease { begun: Instant::now().checked_sub(Duration::from_secs(91)).unwrap(), ..lease };
        assert!(past.ended());
        let root = Lease::new(Instant::now(), 0, false);
        assert_eq!(root.renew_at(), None);
        assert!(!root.ended());
    }
}

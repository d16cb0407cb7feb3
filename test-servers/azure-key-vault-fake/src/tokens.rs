//! Who gets in: the token endpoint of Microsoft Entra, those of managed identities, and what became of
//! the tokens.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use http::Method;
use serde_json::{Value, json};

use crate::exchange::{Reply, Request, form, random_hex, value_of};

/// The tenant.
pub const TENANT: &str = "11111111-2222-3333-4444-555555555555";
/// The one registered application, and the one managed identity.
pub const CLIENT_ID: &str = "66666666-7777-8888-9999-000000000000";
/// The application's secret at start.
pub const CLIENT_SECRET: &str = "fake-client-secret";
/// The assertion that workload identity federation accepts for the application.
pub const CLIENT_ASSERTION: &str = "fake.client.assertion";
/// What App Service has its clients send, as `X-IDENTITY-HEADER`.
pub const IDENTITY_HEADER: &str = "fake-identity-header";

/// The tokens that were given out, and the conditions for more.
pub(crate) struct Tokens {
    /// For what tokens are to be had, such as `https://vault.azure.net`.
    resource: String,
    state: Mutex<State>,
}

struct State {
    good_until: HashMap<String, Instant>,
    lifetime: Duration,
    client_secret: String,
    refusing: bool,
    issued: usize,
}

impl Tokens {
    pub(crate) fn new(resource: &str) -> Self {
        let state = State {
            good_until: HashMap::new(),
            lifetime: Duration::from_secs(3599),
            client_secret: CLIENT_SECRET.to_owned(),
            refusing: false,
            issued: 0,
        };
        Self { resource: resource.to_owned(), state: Mutex::new(state) }
    }

    pub(crate) fn resource(&self) -> &str {
        &self.resource
    }

    /// Whether the path is one of a token endpoint.
    pub(crate) fn serves(path: &str) -> bool {
        path.starts_with(&format!("/{TENANT}/")) || path == MANAGED_IDENTITY_PATH
    }

    /// Whether a request may pass; else what the vault says.
    pub(crate) fn admit(&self, request: &Request) -> Result<(), &'static str> {
        let token = request
            .header("authorization")
            .and_then(|value| value.strip_prefix("Bearer "))
            .ok_or("AKV10000: Request is missing a Bearer or PoP token.")?;
        match self.state().good_until.get(token) {
            None => Err("AKV10046: Unable to resolve the key used for signature validation."),
            Some(end) if *end <= Instant::now() => {
                Err("[TokenExpired] Error validating token: 'S2S12086'.")
            }
            Some(_) => Ok(()),
        }
    }

    /// From now on every token that was given out is expired.
    pub(crate) fn revoke(&self) {
        let now = Instant::now();
        self.state().good_until.values_mut().for_each(|end| *end = now);
    }

    pub(crate) fn set_lifetime(&self, lifetime: Duration) {
        self.state().lifetime = lifetime;
    }

    pub(crate) fn set_client_secret(&self, secret: &str) {
        secret.clone_into(&mut self.state().client_secret);
    }

    pub(crate) fn refuse(&self, refuse: bool) {
        self.state().refusing = refuse;
    }

    pub(crate) fn issued(&self) -> usize {
        self.state().issued
    }

    /// Answers for the token endpoints. `origin` is where they are.
    pub(crate) fn answer(&self, request: &Request, origin: &str) -> Reply {
        if request.path == MANAGED_IDENTITY_PATH {
            return self.managed_identity(request);
        }
        match (request.method.clone(), &request.path[TENANT.len() + 1..]) {
            (Method::POST, "/oauth2/v2.0/token") => self.client_credentials(request),
            (Method::GET, "/v2.0/.well-known/openid-configuration") => Reply::json(
                200,
                &json!({
                    "token_endpoint": format!("{origin}/{TENANT}/oauth2/v2.0/token"),
                    "authorization_endpoint": format!("{origin}/{TENANT}/oauth2/v2.0/authorize"),
                    "issuer": format!("{origin}/{TENANT}/v2.0"),
                }),
            ),
            _ => refused(404, "not_found", 0, "no such endpoint of the fake"),
        }
    }

    /// OAuth 2.0's client credentials (RFC 6749 section 4.4), with a secret or an assertion (RFC 7523
    /// section 2.2).
    fn client_credentials(&self, request: &Request) -> Reply {
        let fields = form(&String::from_utf8_lossy(&request.body));
        let field = |name| value_of(&fields, name).unwrap_or_default();
        let scope = format!("{}/.default", self.resource);
        let mut state = self.state();
        if field("grant_type") != "client_credentials" {
            return refused(
                400,
                "unsupported_grant_type",
                70003,
                "The app requested an unsupported grant type.",
            );
        }
        if field("client_id") != CLIENT_ID {
            return refused(
                400,
                "unauthorized_client",
                700_016,
                "Application was not found in the directory.",
            );
        }
        let with_assertion = field("client_assertion_type")
            == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
            && field("client_assertion") == CLIENT_ASSERTION;
        if state.refusing || !(with_assertion || field("client_secret") == state.client_secret) {
            return refused(401, "invalid_client", 7_000_215, "Invalid client secret provided.");
        }
        if !field("scope").split(' ').any(|asked| asked == scope) {
            return refused(
                400,
                "invalid_resource",
                500_011,
                "The resource principal was not found.",
            );
        }
        let (token, lifetime) = state.issue();
        let seconds = lifetime.as_secs();
        Reply::json(
            200,
            &json!({
                "token_type": "Bearer",
                "expires_in": seconds,
                "ext_expires_in": seconds,
                "access_token": token,
            }),
        )
    }

    /// App Service's endpoint for managed identities, api-version 2019-08-01.
    fn managed_identity(&self, request: &Request) -> Reply {
        let mut state = self.state();
        let wrong = request.header("x-identity-header") != Some(IDENTITY_HEADER)
            || request.query("api-version") != Some("2019-08-01")
            || request.query("client_id").is_some_and(|id| id != CLIENT_ID);
        if wrong || state.refusing {
            let body = json!({ "statusCode": 400, "message": "No managed identity was found." });
            return Reply::json(400, &body);
        }
        if request.query("resource") != Some(&self.resource) {
            let body = json!({ "statusCode": 400, "message": "The resource was not found." });
            return Reply::json(400, &body);
        }
        let (token, lifetime) = state.issue();
        let end = SystemTime::now() + lifetime;
        let end = end.duration_since(SystemTime::UNIX_EPOCH).expect("it is past 1970").as_secs();
        Reply::json(
            200,
            &json!({
                "access_token": token,
                "expires_on": end.to_string(),
                "resource": self.resource,
                "token_type": "Bearer",
                "client_id": CLIENT_ID,
            }),
        )
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn issue(&mut self) -> (String, Duration) {
        let token = format!("fake-token-{}", random_hex::<16>());
        self.good_until.insert(token.clone(), Instant::now() + self.lifetime);
        self.issued += 1;
        (token, self.lifetime)
    }
}

/// Where App Service answers, as the environment variable `IDENTITY_ENDPOINT` says.
pub(crate) const MANAGED_IDENTITY_PATH: &str = "/msi/token";

/// An error of Entra (RFC 6749 section 5.2, with Microsoft's further fields).
fn refused(status: u16, error: &str, code: u32, sentence: &str) -> Reply {
    let body: Value = json!({
        "error": error,
        "error_description": format!("AADSTS{code}: {sentence}"),
        "error_codes": [code],
        "trace_id": random_hex::<16>(),
        "correlation_id": random_hex::<16>(),
    });
    Reply::json(status, &body)
}

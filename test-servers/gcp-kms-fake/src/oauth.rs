//! Access tokens: a service account's signed JWT, a refresh token, a federated identity (STS, with or
//! without impersonation) or a metadata server give one; it ends after a while, or is revoked.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::rsa::RsaKey;
use crate::store::rfc3339;

/// The fake's one service account.
const EMAIL: &str = "claviger@fake-project.iam.gserviceaccount.com";
const KEY_ID: &str = "fakekeyid0123456789abcdef0123456789abcdef";
const CLIENT_ID: &str = "fake-client.apps.googleusercontent.com";
const CLIENT_SECRET: &str = "fake-client-secret";
const REFRESH_TOKEN: &str = "1//fake-refresh-token";
const AUDIENCE: &str = "//iam.googleapis.com/projects/123456789012/locations/global/\
                        workloadIdentityPools/pool/providers/provider";

const CLOUD_PLATFORM: &str = "https://www.googleapis.com/auth/cloud-platform";
const CLOUD_KMS: &str = "https://www.googleapis.com/auth/cloudkms";
const IAM: &str = "https://www.googleapis.com/auth/iam";

/// The scopes that there are, and those that let their owner use keys.
const SCOPES: [&str; 3] = [CLOUD_PLATFORM, CLOUD_KMS, IAM];
const KEY_SCOPES: [&str; 2] = [CLOUD_PLATFORM, CLOUD_KMS];

/// Who gets tokens, and which are good.
pub(crate) struct Tokens {
    account: RsaKey,
    subject_token: String,
    /// Until when, and with what scope.
    good: HashMap<String, (Instant, String)>,
    given: u64,
    lifetime: Duration,
    /// What is said of the lifetime.
    announced: Duration,
    /// Whether every request for a token is refused.
    refused: bool,
}

/// What was asked for, and the answer: HTTP status and JSON.
pub(crate) type Answer = (&'static str, u16, Value);

impl Tokens {
    pub(crate) fn new() -> Self {
        Self {
            account: RsaKey::generate(2048),
            subject_token: "fake-subject-token".to_owned(),
            good: HashMap::new(),
            given: 0,
            lifetime: Duration::from_hours(1),
            announced: Duration::from_hours(1),
            refused: false,
        }
    }

    pub(crate) fn set_lifetime(&mut self, lifetime: Duration, announced: Duration) {
        (self.lifetime, self.announced) = (lifetime, announced);
    }

    pub(crate) fn refuse(&mut self, refused: bool) {
        self.refused = refused;
    }

    pub(crate) fn revoke(&mut self) {
        self.good.clear();
    }

    /// Whether a token lets its owner use keys.
    pub(crate) fn is_good(&self, token: &str) -> bool {
        self.is_good_for(token, &KEY_SCOPES)
    }

    fn is_good_for(&self, token: &str, scopes: &[&str]) -> bool {
        let good = self.good.get(token);
        good.is_some_and(|(until, scope)| *until > Instant::now() && has_scope(scope, scopes))
    }

    pub(crate) fn subject_token(&self) -> &str {
        &self.subject_token
    }

    /// The JSON file of a service account's key.
    pub(crate) fn service_account(&self, endpoint: &str) -> Value {
        json!({
            "type": "service_account",
            "project_id": "fake-project",
            "private_key_id": KEY_ID,
            "private_key": self.account.private_pem(),
            "client_email": EMAIL,
            "client_id": "100000000000000000000",
            "token_uri": format!("{endpoint}/token"),
            "universe_domain": "googleapis.com",
        })
    }

    /// The JSON file of a workload identity federation whose subject token is in a file.
    pub(crate) fn external_account(endpoint: &str, subject: &Path, impersonate: bool) -> Value {
        let mut json = json!({
            "type": "external_account",
            "audience": AUDIENCE,
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": format!("{endpoint}/v1/token"),
            "credential_source": { "file": subject, "format": { "type": "text" } },
            "universe_domain": "googleapis.com",
        });
        if impersonate {
            json["service_account_impersonation_url"] = json!(format!(
                "{endpoint}/v1/projects/-/serviceAccounts/{EMAIL}:generateAccessToken"
            ));
        }
        json
    }

    /// The JSON file that `gcloud auth application-default login` writes.
    pub(crate) fn authorized_user() -> Value {
        json!({
            "type": "authorized_user",
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "refresh_token": REFRESH_TOKEN,
        })
    }

    /// Answers a request for a token; none if the path is not one of those.
    pub(crate) fn answer(
        &mut self,
        endpoint: &str,
        path: &str,
        header: impl Fn(&str) -> String,
        form: &[(String, String)],
        body: &Value,
    ) -> Option<Answer> {
        let form = Form(form);
        if path == "/token" && form.field("grant_type") == "refresh_token" {
            return Some(answered("refresh", self.refresh(&form)));
        }
        if path == "/token" {
            return Some(answered("token", self.jwt_bearer(endpoint, &form)));
        }
        if path == "/v1/token" {
            return Some(answered("sts", self.exchange(&form)));
        }
        if path == format!("/v1/projects/-/serviceAccounts/{EMAIL}:generateAccessToken") {
            let token = header("authorization");
            let token = token.strip_prefix("Bearer ").unwrap_or_default().to_owned();
            let (status, json) = self.impersonate(&token, body);
            return Some(("generateAccessToken", status, json));
        }
        if path == "/computeMetadata/v1/instance/service-accounts/default/token" {
            if header("metadata-flavor") != "Google" {
                return Some(("metadata", 403, json!({ "error": "Missing Metadata-Flavor" })));
            }
            if self.refused {
                return Some(("metadata", 404, json!({ "error": "no service account" })));
            }
            return Some(("metadata", 200, self.give(CLOUD_PLATFORM)));
        }
        None
    }

    /// RFC 7523.
    fn jwt_bearer(&mut self, endpoint: &str, form: &Form<'_>) -> Granted {
        if form.field("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer" {
            return Err(("unsupported_grant_type", "Invalid grant_type: "));
        }
        if self.refused {
            return Err(("invalid_grant", "Invalid grant: account not found"));
        }
        let claims = self.verified(form.field("assertion")).ok_or(INVALID_SIGNATURE)?;
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let (from, until) = (claims["iat"].as_i64(), claims["exp"].as_i64());
        let timely = from
            .zip(until)
            .is_some_and(|(from, until)| from <= now + 60 && now < until && until - from <= 3600);
        if !timely {
            return Err((
                "invalid_grant",
                "Invalid JWT: Token must be a short-lived token (60 \
                                          minutes) and in a reasonable timeframe.",
            ));
        }
        let scope = claims["scope"].as_str().unwrap_or_default();
        if claims["iss"] != EMAIL || !has_scope(scope, &SCOPES) {
            return Err(("invalid_scope", "Invalid OAuth scope or ID token audience provided."));
        }
        // Google's own library names Google's endpoint, wherever it sends the JWT to.
        let ours = format!("{endpoint}/token");
        if claims["aud"] != ours && claims["aud"] != "https://oauth2.googleapis.com/token" {
            return Err(("invalid_grant", "Invalid JWT: Failed audience check."));
        }
        Ok(self.give(scope))
    }

    /// The claims of a JWT that the service account signed (RS256).
    fn verified(&self, assertion: &str) -> Option<Value> {
        let (signed, signature) = assertion.rsplit_once('.')?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, self.account.spki());
        key.verify(signed.as_bytes(), &signature).ok()?;
        let (header, claims) = signed.split_once('.')?;
        let json = |part: &str| -> Option<Value> {
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
        };
        let header = json(header)?;
        (header["alg"] == "RS256" && header["kid"] == KEY_ID).then(|| json(claims))?
    }

    fn refresh(&mut self, form: &Form<'_>) -> Granted {
        if form.field("client_id") != CLIENT_ID || form.field("client_secret") != CLIENT_SECRET {
            return Err(("invalid_client", "The OAuth client was not found."));
        }
        if self.refused || form.field("refresh_token") != REFRESH_TOKEN {
            return Err(("invalid_grant", "Token has been expired or revoked."));
        }
        Ok(self.give(CLOUD_PLATFORM))
    }

    /// RFC 8693.
    fn exchange(&mut self, form: &Form<'_>) -> Granted {
        if form.field("grant_type") != "urn:ietf:params:oauth:grant-type:token-exchange"
            || form.field("audience") != AUDIENCE
            || form.field("requested_token_type") != "urn:ietf:params:oauth:token-type:access_token"
            || form.field("subject_token_type") != "urn:ietf:params:oauth:token-type:jwt"
            || !has_scope(form.field("scope"), &SCOPES)
        {
            return Err(("invalid_request", "Invalid value for a parameter (fake)."));
        }
        if self.refused || form.field("subject_token") != self.subject_token {
            return Err(("invalid_grant", "The subject token is not accepted (fake)."));
        }
        let mut granted = self.give(form.field("scope"));
        granted["issued_token_type"] = json!("urn:ietf:params:oauth:token-type:access_token");
        Ok(granted)
    }

    /// `generateAccessToken` of the IAM credentials API.
    fn impersonate(&mut self, token: &str, body: &Value) -> (u16, Value) {
        if !self.is_good_for(token, &[IAM, CLOUD_PLATFORM]) {
            return (401, crate::status::Status::unauthenticated(token.is_empty()).to_json());
        }
        let scope = body["scope"][0].as_str().unwrap_or_default();
        if !has_scope(scope, &SCOPES) {
            let status = crate::status::Status::invalid("Request contains an invalid argument.");
            return (400, status.to_json());
        }
        let granted = self.give(scope);
        let until = OffsetDateTime::now_utc() + self.announced;
        (200, json!({ "accessToken": granted["access_token"], "expireTime": rfc3339(until) }))
    }

    fn give(&mut self, scope: &str) -> Value {
        self.given += 1;
        let token = format!("ya29.fake-{}", self.given);
        let until = Instant::now() + self.lifetime;
        self.good.insert(token.clone(), (until, scope.to_owned()));
        json!({
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": self.announced.as_secs(),
        })
    }
}

/// A token, or OAuth's error (RFC 6749 section 5.2) and its description.
type Granted = Result<Value, (&'static str, &'static str)>;

const INVALID_SIGNATURE: (&str, &str) = ("invalid_grant", "Invalid JWT Signature.");

fn answered(operation: &'static str, granted: Granted) -> Answer {
    match granted {
        Ok(json) => (operation, 200, json),
        Err((error, description)) => {
            let status = if error == "invalid_client" { 401 } else { 400 };
            (operation, status, json!({ "error": error, "error_description": description }))
        }
    }
}

/// The fields of a form.
struct Form<'a>(&'a [(String, String)]);

impl Form<'_> {
    fn field(&self, name: &str) -> &str {
        self.0.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.as_str())
    }
}

/// Whether one of `scopes` is among those of a token.
fn has_scope(scope: &str, scopes: &[&str]) -> bool {
    scope.split(' ').any(|scope| scopes.contains(&scope))
}

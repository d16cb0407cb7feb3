//! A local OpenID Connect issuer, in the place of a company's own: discovery, a key, the authorization code with
//! PKCE, and tokens of two people. It asks for no password.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, CONTENT_TYPE, LOCATION};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use url::form_urlencoded::parse;

use super::super::failed;
use crate::cli::failure::{Exit, Failure};

/// The user's e-mail.
pub(super) const EMAIL: &str = "ada@example.org";
/// The user's id.
const USER: &str = "ada00000-0000-4000-8000-000000000001";
/// How long its tokens are good, in seconds.
const LASTS: u64 = 300;
/// Codes that wait to be taken at most.
const MOST_CODES: usize = 64;

/// A running issuer; it ends with this.
#[derive(Debug)]
pub(super) struct Issuer {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    url: String,
    key: EcdsaKeyPair,
    client_id: String,
    redirect: String,
    codes: Mutex<HashMap<String, Code>>,
}

/// What a code is exchanged for, and by whom.
#[derive(Debug)]
struct Code {
    challenge: String,
    nonce: String,
}

impl Issuer {
    /// Listens on a port of loopback. People sign in to one client, which has one redirect URI.
    pub(super) async fn start(port: u16, client_id: &str, redirect: &str) -> Result<Self, Failure> {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.map_err(|error| {
            let message = format!("port {port} of 127.0.0.1 is taken: {error}");
            Failure::new(Exit::Unavailable, message).advise("Name another one with --port.")
        })?;
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)
            .map_err(|error| failed("the issuer's key", &error))?;
        let shared = Arc::new(Shared {
            url: format!("http://localhost:{port}"),
            key,
            client_id: client_id.to_owned(),
            redirect: redirect.to_owned(),
            codes: Mutex::default(),
        });
        let of_task = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&of_task);
                let answer = service_fn(move |request| answer(Arc::clone(&shared), request));
                let server = hyper::server::conn::http1::Builder::new();
                tokio::spawn(server.serve_connection(TokioIo::new(stream), answer));
            }
        });
        Ok(Self { shared, task })
    }

    /// What `iss` is.
    pub(super) fn url(&self) -> &str {
        &self.shared.url
    }

    /// A token of Ada's, as her identity server gives it to her client.
    pub(super) fn user_token(&self) -> Result<String, Failure> {
        self.shared.token(json!({
            "sub": USER, "email": EMAIL, "scope": ["api"], "amr": ["Application"],
        }))
    }

    /// An ID token of Grace's.
    pub(super) fn approver_token(&self, nonce: &str) -> Result<String, Failure> {
        self.shared.approver_token(nonce)
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn approver_token(&self, nonce: &str) -> Result<String, Failure> {
        self.token(json!({
            "sub": "grace", "email": "grace@example.org", "aud": self.client_id,
            "groups": ["device-approvers"], "nonce": nonce,
        }))
    }

    fn token(&self, mut claims: Value) -> Result<String, Failure> {
        let now = now();
        claims["iss"] = self.url.as_str().into();
        claims["iat"] = now.into();
        claims["nbf"] = now.into();
        claims["exp"] = (now + LASTS).into();
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = json!({ "alg": "ES256", "typ": "JWT", "kid": "demo" });
        let signed = format!("{}.{}", part(&header), part(&claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes());
        let signature = signature.map_err(|error| failed("signing a token", &error))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    fn key_set(&self) -> Value {
        let point = self.key.public_key().as_ref();
        let [x, y] = [&point[1..33], &point[33..]].map(|part| URL_SAFE_NO_PAD.encode(part));
        json!({ "keys": [{ "kty": "EC", "crv": "P-256", "use": "sig", "kid": "demo", "alg": "ES256", "x": x, "y": y }] })
    }

    fn discovery(&self) -> Value {
        let url = &self.url;
        json!({
            "issuer": url, "jwks_uri": format!("{url}/jwks"),
            "authorization_endpoint": format!("{url}/authorize"),
            "token_endpoint": format!("{url}/token"),
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }

    /// Back to the page with a code (RFC 6749 section 4.1.2).
    fn authorize(&self, query: &str) -> Response<Full<Bytes>> {
        let fields: HashMap<_, _> = parse(query.as_bytes()).into_owned().collect();
        let field = |name: &str| fields.get(name).cloned().unwrap_or_default();
        let is_good = field("response_type") == "code"
            && field("client_id") == self.client_id
            && field("redirect_uri") == self.redirect
            && field("code_challenge_method") == "S256";
        if !is_good {
            return json_of(StatusCode::BAD_REQUEST, &json!({ "error": "invalid_request" }));
        }
        let code = claviger_tokens::random_text();
        let mut codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
        if codes.len() >= MOST_CODES {
            codes.clear();
        }
        let kept = Code { challenge: field("code_challenge"), nonce: field("nonce") };
        codes.insert(code.clone(), kept);
        let back = url::form_urlencoded::Serializer::new(format!("{}?", self.redirect))
            .append_pair("code", &code)
            .append_pair("state", &field("state"))
            .finish();
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::FOUND;
        if let Ok(back) = HeaderValue::from_str(&back) {
            response.headers_mut().insert(LOCATION, back);
        }
        response
    }

    /// An ID token for a code and its verifier (RFC 7636 section 4.6).
    fn exchange(&self, form: &[u8]) -> Response<Full<Bytes>> {
        let fields: HashMap<_, _> = parse(form).into_owned().collect();
        let field = |name: &str| fields.get(name).map_or("", String::as_str);
        let code = self.codes.lock().unwrap_or_else(PoisonError::into_inner).remove(field("code"));
        let hash = digest(&SHA256, field("code_verifier").as_bytes());
        let challenge = URL_SAFE_NO_PAD.encode(hash);
        let token = code
            .filter(|code| code.challenge == challenge)
            .and_then(|code| self.approver_token(&code.nonce).ok());
        match token {
            None => json_of(StatusCode::BAD_REQUEST, &json!({ "error": "invalid_grant" })),
            Some(token) => json_of(
                StatusCode::OK,
                &json!({ "id_token": token, "access_token": "none", "token_type": "Bearer", "expires_in": LASTS }),
            ),
        }
    }
}

async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let mut response = match (&head.method, head.uri.path()) {
        (&Method::GET, "/.well-known/openid-configuration") => {
            json_of(StatusCode::OK, &shared.discovery())
        }
        (&Method::GET, "/jwks") => json_of(StatusCode::OK, &shared.key_set()),
        (&Method::GET, "/authorize") => shared.authorize(head.uri.query().unwrap_or_default()),
        (&Method::POST, "/token") => match Limited::new(body, 16 << 10).collect().await {
            Ok(form) => shared.exchange(&form.to_bytes()),
            Err(_) => json_of(StatusCode::BAD_REQUEST, &json!({ "error": "invalid_request" })),
        },
        _ => json_of(StatusCode::NOT_FOUND, &json!({ "error": "not_found" })),
    };
    response.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    Ok(response)
}

fn json_of(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

//! An OpenID Connect issuer: discovery, a key set that changes, and tokens of every kind.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair as RsaKeyPair;
use aws_lc_rs::signature::{
    self, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::rsa_key::RsaKey;

/// A running issuer; its thread ends with the process.
#[derive(Debug)]
pub struct Issuer {
    address: SocketAddr,
    key: RsaKey,
    kid: String,
    served: Arc<Mutex<Served>>,
}

#[derive(Debug)]
struct Served {
    discovery: Value,
    jwks: Value,
    is_up: bool,
    asked: usize,
    sign_in: SignIn,
}

/// People who sign in.
#[derive(Debug, Default)]
struct SignIn {
    /// What they get.
    granted: Value,
    /// What the code verifier must hash to (RFC 7636).
    challenge: String,
    /// How often the device was asked for.
    polled: usize,
    refreshed: Vec<String>,
}

impl Issuer {
    /// One with the key `k1`.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = listener.local_addr().expect("it is bound");
        let (key, kid) = (RsaKey::shared(2048), "k1".to_owned());
        let served = Served {
            discovery: json!({
                "issuer": format!("http://{address}"),
                "jwks_uri": format!("http://{address}/jwks"),
                "id_token_signing_alg_values_supported": ["RS256"],
                "authorization_endpoint": format!("http://{address}/authorize"),
                "token_endpoint": format!("http://{address}/token"),
                "device_authorization_endpoint": format!("http://{address}/device"),
            }),
            jwks: json!({ "keys": [rsa_jwk(&key, Some(&kid))] }),
            is_up: true,
            asked: 0,
            sign_in: SignIn::default(),
        };
        let served = Arc::new(Mutex::new(served));
        let of_thread = Arc::clone(&served);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                drop(answer(stream, &of_thread));
            }
        });
        Self { address, key, kid, served }
    }

    /// What `iss` is, and where discovery is.
    pub fn name(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The key that signs.
    pub fn key(&self) -> &RsaKey {
        &self.key
    }

    /// Makes a new key that signs from now on; the key set has no other.
    pub fn change_key(&mut self, kid: &str) {
        self.key = RsaKey::generate(2048);
        kid.clone_into(&mut self.kid);
        self.lock().jwks = json!({ "keys": [rsa_jwk(&self.key, Some(kid))] });
    }

    /// Whether it answers, or says 503.
    pub fn set_up(&self, is_up: bool) {
        self.lock().is_up = is_up;
    }

    /// Changes a field of its discovery document.
    pub fn set_discovery(&self, field: &str, value: impl Into<Value>) {
        self.lock().discovery[field] = value.into();
    }

    /// Gives a person who signs in this access token for so many seconds.
    pub fn grants(&self, access_token: &str, expires_in: u64, refresh_token: Option<&str>) {
        let mut granted = json!({
            "access_token": access_token, "token_type": "Bearer", "expires_in": expires_in,
        });
        if let Some(refresh_token) = refresh_token {
            granted["refresh_token"] = refresh_token.into();
        }
        self.lock().sign_in.granted = granted;
    }

    /// What the next code verifier must hash to.
    pub fn expect_challenge(&self, challenge: &str) {
        challenge.clone_into(&mut self.lock().sign_in.challenge);
    }

    /// The refresh tokens that came back.
    pub fn refreshed(&self) -> Vec<String> {
        self.lock().sign_in.refreshed.clone()
    }

    /// How often its key set was asked for.
    pub fn asked(&self) -> usize {
        self.lock().asked
    }

    /// A good token of `subject` for the audience `claviger`, with further or other claims.
    pub fn token(&self, subject: &str, claims: &Value) -> String {
        let header = json!({ "alg": "RS256", "typ": "JWT", "kid": self.kid });
        rs256(&self.key, &header, &self.claims(subject, claims))
    }

    /// The claims of [`Issuer::token`]; null removes one.
    pub fn claims(&self, subject: &str, changes: &Value) -> Value {
        let now = seconds();
        let mut all = json!({
            "iss": self.name(), "sub": subject, "aud": "claviger", "iat": now, "exp": now + 300,
        });
        change(&mut all, changes);
        all
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Served> {
        self.served.lock().expect("no test panics with it")
    }
}

/// Sets fields of an object; null removes one.
pub fn change(object: &mut Value, changes: &Value) {
    let object = object.as_object_mut().expect("an object");
    for (name, value) in changes.as_object().into_iter().flatten() {
        if value.is_null() {
            object.remove(name);
        } else {
            object.insert(name.clone(), value.clone());
        }
    }
}

/// Seconds since 1970.
pub fn seconds() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is right");
    i64::try_from(now.as_secs()).expect("it fits")
}

/// A part of a token: base64url of the bytes.
pub fn part(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A token whose signature is made of header and claims as they are.
pub fn token(header: &str, claims: &str, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let signed = format!("{}.{}", part(header), part(claims));
    let signature = sign(signed.as_bytes());
    format!("{signed}.{}", part(signature))
}

/// A token with an RSASSA-PKCS1-v1_5 SHA-256 signature, whatever its header says.
pub fn rs256(key: &RsaKey, header: &Value, claims: &Value) -> String {
    token(&header.to_string(), &claims.to_string(), |signed| rs256_signature(key, signed))
}

/// An RSASSA-PKCS1-v1_5 SHA-256 signature.
pub fn rs256_signature(key: &RsaKey, signed: &[u8]) -> Vec<u8> {
    rsa_signature(key, &signature::RSA_PKCS1_SHA256, signed)
}

/// An RSA signature.
pub fn rsa_signature(
    key: &RsaKey,
    encoding: &'static dyn signature::RsaEncoding,
    signed: &[u8],
) -> Vec<u8> {
    let pair = RsaKeyPair::from_pkcs8(key.pkcs8()).expect("an RSA key in PKCS#8");
    let mut made = vec![0; pair.public_modulus_len()];
    pair.sign(encoding, &SystemRandom::new(), signed, &mut made).expect("RSA signs");
    made
}

/// HMAC under a secret, as a server signs that takes a public key for one.
pub fn hmac_signature(secret: &[u8], signed: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed).as_ref().to_vec()
}

/// A P-256 key and its JWK.
pub fn ec_key(kid: &str) -> (EcdsaKeyPair, Value) {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("an EC key");
    let point = pair.public_key().as_ref();
    let jwk = json!({
        "kty": "EC", "crv": "P-256", "kid": kid, "x": part(&point[1..33]), "y": part(&point[33..]),
    });
    (pair, jwk)
}

/// An Ed25519 key and its JWK.
pub fn ed_key(kid: &str) -> (Ed25519KeyPair, Value) {
    let pair = Ed25519KeyPair::generate().expect("an Ed25519 key");
    let x = part(pair.public_key().as_ref());
    let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "kid": kid, "x": x });
    (pair, jwk)
}

/// The JWK of an RSA key.
pub fn rsa_jwk(key: &RsaKey, kid: Option<&str>) -> Value {
    let pair = RsaKeyPair::from_pkcs8(key.pkcs8()).expect("an RSA key in PKCS#8");
    let public = pair.public_key();
    let mut jwk = json!({
        "kty": "RSA", "use": "sig",
        "n": part(public.modulus().big_endian_without_leading_zero()),
        "e": part(public.exponent().big_endian_without_leading_zero()),
    });
    if let Some(kid) = kid {
        jwk["kid"] = kid.into();
    }
    jwk
}

const DEVICE: &str = r#"{"device_code":"d","user_code":"ABCD-EFGH","verification_uri":"http://localhost/device","expires_in":60,"interval":1}"#;

impl SignIn {
    fn token(&mut self, form: &str) -> Result<String, &'static str> {
        let fields: HashMap<&str, &str> =
            form.split('&').filter_map(|field| field.split_once('=')).collect();
        let field = |name| fields.get(name).copied().unwrap_or_default();
        match field("grant_type") {
            "authorization_code" => {
                let hash = digest(&SHA256, field("code_verifier").as_bytes());
                let is_good = field("code") == "good" && part(hash) == self.challenge;
                if !is_good {
                    return Err("invalid_grant");
                }
            }
            "refresh_token" => self.refreshed.push(field("refresh_token").to_owned()),
            _ if field("device_code") == "d" => {
                self.polled += 1;
                if self.polled < 2 {
                    return Err("authorization_pending");
                }
            }
            _ => return Err("unsupported_grant_type"),
        }
        Ok(self.granted.to_string())
    }
}

fn answer(mut stream: TcpStream, served: &Mutex<Served>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let (mut line, mut length) = (first.clone(), 0);
    while line.trim() != "" {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut form = vec![0; length];
    reader.read_exact(&mut form)?;
    let form = String::from_utf8(form).unwrap_or_default();
    let mut served = served.lock().expect("no test panics with it");
    let (status, body) = match first.split(' ').nth(1) {
        _ if !served.is_up => ("503 Service Unavailable", String::new()),
        Some("/.well-known/openid-configuration") => ("200 OK", served.discovery.to_string()),
        Some("/jwks") => {
            served.asked += 1;
            ("200 OK", served.jwks.to_string())
        }
        Some("/device") => ("200 OK", DEVICE.to_owned()),
        Some("/token") => match served.sign_in.token(&form) {
            Ok(granted) => ("200 OK", granted),
            Err(error) => ("400 Bad Request", json!({ "error": error }).to_string()),
        },
        _ => ("404 Not Found", String::new()),
    };
    drop(served);
    let len = body.len();
    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {len}\r\nconnection: close\r\n\r\n{body}")
}

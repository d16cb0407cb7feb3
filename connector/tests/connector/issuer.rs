//! An identity server that has discovery, a key set, and tokens of every kind.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair as RsaKeyPair;
use aws_lc_rs::signature::{KeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use e2e::RsaKey;
use serde_json::{Map, Value, json};

/// A running issuer; its thread ends with the process.
pub(crate) struct Issuer {
    pub(crate) address: SocketAddr,
    key: RsaKey,
    other: RsaKey,
}

impl Issuer {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (key, other) = (RsaKey::generate(2048), RsaKey::generate(2048));
        let discovery = json!({
            "issuer": format!("http://{address}"),
            "jwks_uri": format!("http://{address}/jwks"),
        });
        let issuer = Self { address, key, other };
        let documents = Arc::new((discovery.to_string(), issuer.jwks()));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let documents = Arc::clone(&documents);
                std::thread::spawn(move || drop(answer(stream, &documents)));
            }
        });
        issuer
    }

    /// What `iss` is.
    pub(crate) fn name(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The public key in PEM.
    pub(crate) fn pem(&self) -> String {
        claviger_files::pem::encode("PUBLIC KEY", self.key.public_key().spki())
    }

    /// The key set.
    pub(crate) fn jwks(&self) -> String {
        json!({ "keys": [jwk(&self.key, Some("k1"))] }).to_string()
    }

    /// A good token of a user.
    pub(crate) fn token(&self, user: &str) -> String {
        self.token_with(user, &json!({}), &|text| text.to_owned())
    }

    /// A token that differs as a case says; `fill` replaces what its texts name.
    pub(crate) fn token_with(
        &self,
        user: &str,
        case: &Value,
        fill: &dyn Fn(&str) -> String,
    ) -> String {
        let now = seconds();
        let mut header = json!({ "alg": "RS256", "kid": "k1", "typ": "at+jwt" });
        let mut claims = json!({
            "iss": self.name(), "sub": user, "nbf": now - 5, "iat": now - 5, "exp": now + 3600,
            "scope": ["api"], "amr": ["Application"],
        });
        change(header.as_object_mut().unwrap(), &case["header"], fill);
        change(claims.as_object_mut().unwrap(), &case["claims"], fill);
        let key = case["key"].as_str().unwrap_or("issuer");
        if key == "other, embedded" {
            header["jwk"] = jwk(&self.other, None);
        }
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let signature = match key {
            "issuer" => sign(&self.key, &header["alg"], &signed),
            "none" => Vec::new(),
            "public key as secret" => {
                let secret = hmac::Key::new(hmac::HMAC_SHA256, self.pem().as_bytes());
                hmac::sign(&secret, signed.as_bytes()).as_ref().to_vec()
            }
            "other" | "other, embedded" => sign(&self.other, &header["alg"], &signed),
            unknown => panic!("no key {unknown:?}"),
        };
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// Replaces fields; null removes one.
fn change(object: &mut Map<String, Value>, changes: &Value, fill: &dyn Fn(&str) -> String) {
    for (name, value) in changes.as_object().into_iter().flatten() {
        if value.is_null() {
            object.remove(name);
        } else {
            object.insert(name.clone(), replaced(value, fill));
        }
    }
}

/// `"-240"` is a time relative to now, `"text +3600"` the same as a text, `"float +3600"` with half a
/// second more.
fn replaced(value: &Value, fill: &dyn Fn(&str) -> String) -> Value {
    let relative = |text: &str| text.strip_prefix('+').unwrap_or(text).parse::<i64>().ok();
    match value {
        Value::String(text) => {
            if let Some(text) = text.strip_prefix("text ") {
                json!((seconds() + relative(text).unwrap()).to_string())
            } else if let Some(text) = text.strip_prefix("float ") {
                #[expect(clippy::cast_precision_loss, reason = "seconds since 1970")]
                let time = (seconds() + relative(text).unwrap()) as f64 + 0.5;
                json!(time)
            } else if text.starts_with(['+', '-'])
                && let Some(offset) = relative(text)
            {
                json!(seconds() + offset)
            } else {
                json!(fill(text))
            }
        }
        Value::Array(values) => values.iter().map(|value| replaced(value, fill)).collect(),
        other => other.clone(),
    }
}

fn sign(key: &RsaKey, algorithm: &Value, signed: &str) -> Vec<u8> {
    let pair = RsaKeyPair::from_pkcs8(key.pkcs8()).unwrap();
    let mut signature = vec![0; pair.public_modulus_len()];
    let algorithm = match algorithm.as_str() {
        Some("RS512") => &RSA_PKCS1_SHA512,
        _ => &RSA_PKCS1_SHA256,
    };
    pair.sign(algorithm, &SystemRandom::new(), signed.as_bytes(), &mut signature).unwrap();
    signature
}

fn jwk(key: &RsaKey, kid: Option<&str>) -> Value {
    let pair = RsaKeyPair::from_pkcs8(key.pkcs8()).unwrap();
    let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let mut jwk = json!({
        "kty": "RSA", "use": "sig",
        "n": part(pair.public_key().modulus().big_endian_without_leading_zero()),
        "e": part(pair.public_key().exponent().big_endian_without_leading_zero()),
    });
    if let Some(kid) = kid {
        jwk["kid"] = kid.into();
    }
    jwk
}

fn answer(mut stream: TcpStream, (discovery, jwks): &(String, String)) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut line = first.clone();
    while line.trim() != "" {
        line.clear();
        reader.read_line(&mut line)?;
    }
    let (status, body) = match first.split(' ').nth(1) {
        Some("/.well-known/openid-configuration") => ("200 OK", discovery.as_str()),
        Some("/jwks") => ("200 OK", jwks.as_str()),
        _ => ("404 Not Found", ""),
    };
    let len = body.len();
    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {len}\r\nconnection: close\r\n\r\n{body}")
}

fn seconds() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(now.as_secs()).unwrap()
}

//! The vault: names, versions with their attributes, and the REST routes over them.

use std::collections::BTreeMap;
use std::time::SystemTime;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use claviger_provider_api::{Algorithm, SignAlgorithm};
use http::Method;
use serde_json::{Map, Value, json};

use crate::errors::Refusal;
use crate::exchange::{Request, random_hex};
use crate::rsa::{KeyPair, Numbers};

/// What a key may do unless its maker says otherwise.
const KEY_OPS: [&str; 6] = ["encrypt", "decrypt", "sign", "verify", "wrapKey", "unwrapKey"];

/// How many items a page has unless `maxresults` says less; the service's own number.
const PAGE: usize = 25;

/// The keys of one vault.
pub(crate) struct Vault {
    /// `https://HOST[:PORT]`.
    origin: String,
    /// Whether all keys are in hardware, as in a managed HSM.
    is_hsm: bool,
    /// By name; of each the versions in the order in which they were made.
    keys: BTreeMap<String, Vec<Version>>,
}

struct Version {
    /// 32 hexadecimal digits.
    id: String,
    material: Material,
    kty: String,
    key_ops: Vec<String>,
    attributes: Attributes,
    tags: Map<String, Value>,
}

enum Material {
    Rsa(Box<KeyPair>),
    /// On P-256, to be looked at only.
    Elliptic {
        x: Vec<u8>,
        y: Vec<u8>,
    },
}

/// Times are in seconds since 1970.
#[derive(Clone)]
struct Attributes {
    enabled: bool,
    exportable: bool,
    nbf: Option<i64>,
    exp: Option<i64>,
    created: i64,
    updated: i64,
}

type Outcome = Result<Value, Refusal>;

impl Vault {
    pub(crate) fn new(origin: String, is_hsm: bool) -> Self {
        Self { origin, is_hsm, keys: BTreeMap::new() }
    }

    /// Answers a request that was let in.
    pub(crate) fn answer(&mut self, request: &Request) -> Outcome {
        let version = request.query("api-version").unwrap_or_default();
        if !is_api_version(version) {
            return Err(Refusal::bad_parameter(format!(
                "The specified version ({version}) is not recognized. Consider using the latest \
                 supported version (2025-07-01)."
            )));
        }
        let path = request.path.trim_end_matches('/');
        let mut segments = path.split('/').skip(1);
        let (Some("keys"), segments) = (segments.next(), segments.collect::<Vec<_>>()) else {
            return Err(Refusal::no_route(404));
        };
        if let Some(name) = segments.first().filter(|name| !is_name(name)) {
            let message = format!("The request URI contains an invalid name: {name}");
            return Err(Refusal::bad_parameter(message));
        }
        match (request.method.clone(), &segments[..]) {
            (Method::GET, []) => Ok(self.page_of_keys(request)),
            (Method::GET, [name, "versions"]) => self.page_of_versions(request, name),
            (Method::GET, [name, id @ ..]) if id.len() <= 1 => self.found(name, id.first()),
            (Method::PUT, [name]) => self.import(name, &body(request)?),
            (Method::PATCH, [name, id @ ..]) if id.len() <= 1 => {
                self.change(name, id.first(), &body(request)?)
            }
            (Method::POST, [name, "create"]) => self.create(name, &body(request)?),
            (Method::POST, [name, "rotate"]) => self.rotate(name),
            // An empty version is the latest: `/keys/k//sign`.
            (Method::POST, [name, operation]) => self.operate(name, None, operation, request),
            (Method::POST, [name, id, operation]) => {
                self.operate(name, Some(id), operation, request)
            }
            _ => Err(Refusal::no_route(405)),
        }
    }

    /// Adds a version of a key, which becomes its latest; gives its identifier.
    pub(crate) fn add(&mut self, name: &str, pair: KeyPair) -> String {
        let kty = if self.is_hsm { "RSA-HSM" } else { "RSA" };
        self.push(name, Material::Rsa(pair.into()), kty, &json!({}));
        self.kid(name, self.latest(name))
    }

    /// Adds a version that is an elliptic key, which becomes the latest; gives its identifier.
    pub(crate) fn add_elliptic(&mut self, name: &str) -> String {
        let kty = if self.is_hsm { "EC-HSM" } else { "EC" };
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING);
        let key = key.expect("aws-lc generates keys");
        // SEC 1 section 2.3.3: 4, then both coordinates.
        let (x, y) = key.public_key().as_ref()[1..].split_at(32);
        let material = Material::Elliptic { x: x.to_vec(), y: y.to_vec() };
        self.push(name, material, kty, &json!({ "key_ops": ["sign", "verify"] }));
        self.kid(name, self.latest(name))
    }

    /// Deletes a key with all its versions.
    pub(crate) fn remove(&mut self, name: &str) {
        self.keys.remove(name);
    }

    fn create(&mut self, name: &str, body: &Value) -> Outcome {
        let kty = body["kty"].as_str().unwrap_or_default();
        if !matches!(kty, "RSA" | "RSA-HSM") {
            return Err(Refusal::bad_parameter(format!(
                "Property 'kty' is {kty:?}: the fake has RSA only"
            )));
        }
        let bits = body["key_size"].as_u64().unwrap_or(2048);
        let pair = KeyPair::generate(bits as usize).ok_or_else(|| {
            Refusal::bad_parameter(format!("The key size {bits} is not supported."))
        })?;
        self.push(name, Material::Rsa(pair.into()), kty, body);
        self.found(name, None)
    }

    fn import(&mut self, name: &str, body: &Value) -> Outcome {
        let jwk = &body["key"];
        let kty = jwk["kty"].as_str().unwrap_or_default();
        if !matches!(kty, "RSA" | "RSA-HSM") {
            return Err(Refusal::bad_parameter(format!(
                "Property 'kty' is {kty:?}: the fake has RSA only"
            )));
        }
        let mut numbers = Numbers::default();
        for (number, field) in numbers.iter_mut().zip(["n", "e", "d", "p", "q", "dp", "dq", "qi"]) {
            *number = bytes(jwk, field)?;
        }
        let pair = KeyPair::from_numbers(&numbers)
            .ok_or_else(|| Refusal::bad_parameter("The key is not a valid RSA key."))?;
        let kty = if self.is_hsm || body["Hsm"] == true { "RSA-HSM" } else { kty };
        let mut settings = body.clone();
        settings["key_ops"] = jwk["key_ops"].clone();
        self.push(name, Material::Rsa(pair.into()), kty, &settings);
        self.found(name, None)
    }

    fn rotate(&mut self, name: &str) -> Outcome {
        let latest = self.version(name, None)?;
        let settings = json!({ "key_ops": latest.key_ops, "tags": latest.tags });
        let (bits, kty) = (latest.pair()?.public().modulus_bits(), latest.kty.clone());
        let pair = KeyPair::generate(bits).ok_or_else(|| Refusal::bad_parameter("odd size"))?;
        self.push(name, Material::Rsa(pair.into()), &kty, &settings);
        self.found(name, None)
    }

    fn change(&mut self, name: &str, id: Option<&&str>, body: &Value) -> Outcome {
        let at = self.position(name, id.copied())?;
        let versions = self.keys.get_mut(name).expect("the position is one of its versions");
        versions[at].set(body);
        self.found(name, id)
    }

    fn found(&self, name: &str, id: Option<&&str>) -> Outcome {
        let version = self.version(name, id.copied())?;
        let mut jwk = json!({
            "kid": self.kid(name, version),
            "kty": version.kty,
            "key_ops": version.key_ops,
        });
        let numbers = match &version.material {
            Material::Rsa(pair) => {
                [("n", pair.public().modulus()), ("e", pair.public().exponent())]
            }
            Material::Elliptic { x, y } => {
                jwk["crv"] = "P-256".into();
                [("x", &x[..]), ("y", &y[..])]
            }
        };
        for (field, number) in numbers {
            jwk[field] = URL_SAFE_NO_PAD.encode(number).into();
        }
        Ok(json!({
            "key": jwk,
            "attributes": version.attributes.json(),
            "tags": version.tags,
        }))
    }

    fn operate(&self, name: &str, id: Option<&str>, operation: &str, request: &Request) -> Outcome {
        let version = self.version(name, id)?;
        let operation = KEY_OPS
            .into_iter()
            .find(|known| known.eq_ignore_ascii_case(operation))
            .ok_or_else(|| Refusal::no_route(404))?;
        version.permits(operation)?;
        let pair = version.pair()?;
        let body = body(request)?;
        let kid = self.kid(name, version);
        let signing = || named::<SignAlgorithm>(&body, &SignAlgorithm::ALL);
        let wrapping = || named::<Algorithm>(&body, &ALGORITHMS);
        let refused = || Refusal::bad_parameter("The parameter is incorrect.\r\n");
        let value = match operation {
            "encrypt" | "wrapKey" => {
                pair.encrypt(&bytes(&body, "value")?, wrapping()?).ok_or_else(refused)?
            }
            "decrypt" | "unwrapKey" => {
                let algorithm = wrapping()?;
                let plaintext = pair.decrypt(&bytes(&body, "value")?, algorithm);
                let refused =
                    || if algorithm.hash().is_some() { Refusal::oaep() } else { refused() };
                plaintext.ok_or_else(refused)?
            }
            "sign" => pair.sign(&bytes(&body, "value")?, signing()?).ok_or_else(refused)?,
            _ => {
                let (digest, value) = (bytes(&body, "digest")?, bytes(&body, "value")?);
                let good = pair.verify(&digest, signing()?, &value);
                return Ok(json!({ "value": good }));
            }
        };
        Ok(json!({ "kid": kid, "value": URL_SAFE_NO_PAD.encode(value) }))
    }

    fn page_of_keys(&self, request: &Request) -> Value {
        let items = self.keys.keys().map(|name| {
            let latest = self.latest(name);
            let kid = format!("{}/keys/{name}", self.origin);
            json!({ "kid": kid, "attributes": latest.attributes.json(), "tags": latest.tags })
        });
        self.page(request, &items.collect::<Vec<_>>())
    }

    /// The versions in the order of their ids, which says nothing about their age.
    fn page_of_versions(&self, request: &Request, name: &str) -> Outcome {
        self.version(name, None)?;
        let mut versions: Vec<_> = self.keys[name].iter().collect();
        versions.sort_by_key(|version| &version.id);
        let items = versions.into_iter().map(|version| {
            let kid = self.kid(name, version);
            json!({ "kid": kid, "attributes": version.attributes.json(), "tags": version.tags })
        });
        Ok(self.page(request, &items.collect::<Vec<_>>()))
    }

    fn page(&self, request: &Request, items: &[Value]) -> Value {
        let number = |name| request.query(name).and_then(|text| text.parse::<usize>().ok());
        let size = number("maxresults").unwrap_or(PAGE).clamp(1, PAGE);
        let begin = number("$skiptoken").unwrap_or(0).min(items.len());
        let end = (begin + size).min(items.len());
        let next = (end < items.len()).then(|| {
            let (origin, path) = (&self.origin, &request.path);
            let version = request.query("api-version").unwrap_or_default();
            format!("{origin}{path}?api-version={version}&$skiptoken={end}&maxresults={size}")
        });
        json!({ "value": items[begin..end], "nextLink": next })
    }

    fn push(&mut self, name: &str, material: Material, kty: &str, settings: &Value) {
        let now = now();
        let mut version = Version {
            id: random_hex::<16>(),
            material,
            kty: kty.to_owned(),
            key_ops: KEY_OPS.map(str::to_owned).to_vec(),
            attributes: Attributes {
                enabled: true,
                exportable: false,
                nbf: None,
                exp: None,
                created: now,
                updated: now,
            },
            tags: Map::new(),
        };
        version.set(settings);
        self.keys.entry(name.to_owned()).or_default().push(version);
    }

    fn version(&self, name: &str, id: Option<&str>) -> Result<&Version, Refusal> {
        self.position(name, id).map(|at| &self.keys[name][at])
    }

    /// Of the version with this id, or of the latest.
    fn position(&self, name: &str, id: Option<&str>) -> Result<usize, Refusal> {
        let versions = self.keys.get(name).ok_or_else(|| Refusal::key_not_found(name))?;
        let id = id.filter(|id| !id.is_empty());
        let position = match id {
            None => versions.len().checked_sub(1),
            Some(id) => versions.iter().position(|version| version.id == id),
        };
        position.ok_or_else(|| {
            Refusal::key_not_found(&id.map_or(name.to_owned(), |id| format!("{name}/{id}")))
        })
    }

    fn latest(&self, name: &str) -> &Version {
        self.keys[name].last().expect("a key has a version")
    }

    fn kid(&self, name: &str, version: &Version) -> String {
        format!("{}/keys/{name}/{}", self.origin, version.id)
    }
}

impl Version {
    fn pair(&self) -> Result<&KeyPair, Refusal> {
        match &self.material {
            Material::Rsa(pair) => Ok(pair),
            Material::Elliptic { .. } => Err(Refusal::bad_parameter(format!(
                "The fake does nothing with a {} key.",
                self.kty
            ))),
        }
    }

    /// Takes over what `settings` names of `key_ops`, `attributes` and `tags`.
    fn set(&mut self, settings: &Value) {
        if let Some(operations) = settings["key_ops"].as_array() {
            self.key_ops = operations.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        }
        if let Some(tags) = settings["tags"].as_object() {
            self.tags.clone_from(tags);
        }
        let given = &settings["attributes"];
        let attributes = &mut self.attributes;
        attributes.enabled = given["enabled"].as_bool().unwrap_or(attributes.enabled);
        attributes.exportable = given["exportable"].as_bool().unwrap_or(attributes.exportable);
        attributes.nbf = given["nbf"].as_i64().or(attributes.nbf);
        attributes.exp = given["exp"].as_i64().or(attributes.exp);
        attributes.updated = now();
    }

    /// A disabled key does nothing with its private half; outside of its time a key makes nothing new,
    /// and still opens what is there.
    fn permits(&self, operation: &str) -> Result<(), Refusal> {
        if !self.key_ops.iter().any(|permitted| permitted == operation) {
            return Err(Refusal::not_permitted(operation));
        }
        let is_private = matches!(operation, "decrypt" | "unwrapKey" | "sign");
        if !self.attributes.enabled && is_private {
            return Err(Refusal::disabled(operation));
        }
        let makes_new = matches!(operation, "encrypt" | "wrapKey" | "sign");
        let (now, Attributes { nbf, exp, .. }) = (now(), &self.attributes);
        let expired = exp.is_some_and(|exp| exp <= now);
        if makes_new && (expired || nbf.is_some_and(|nbf| nbf > now)) {
            return Err(Refusal::outside_its_time(operation, expired));
        }
        Ok(())
    }
}

impl Attributes {
    fn json(&self) -> Value {
        let mut json = json!({
            "enabled": self.enabled,
            "created": self.created,
            "updated": self.updated,
            "recoveryLevel": "Recoverable+Purgeable",
            "recoverableDays": 90,
            "exportable": self.exportable,
        });
        for (name, time) in [("nbf", self.nbf), ("exp", self.exp)] {
            if let Some(time) = time {
                json[name] = time.into();
            }
        }
        json
    }
}

/// Azure's, of all that there are.
const ALGORITHMS: [Algorithm; 3] = [Algorithm::RsaOaep, Algorithm::RsaOaep256, Algorithm::Rsa15];

fn named<T: Copy + ToString>(body: &Value, known: &[T]) -> Result<T, Refusal> {
    let name = body["alg"].as_str().unwrap_or_default();
    let found = known.iter().copied().find(|algorithm| algorithm.to_string() == name);
    found.ok_or_else(|| {
        Refusal::bad_parameter(format!("Property 'alg' has an unsupported value: {name:?}."))
    })
}

fn body(request: &Request) -> Outcome {
    if request.body.is_empty() {
        return Err(Refusal::bad_parameter("Request body not specified.\r\n"));
    }
    serde_json::from_slice(&request.body)
        .map_err(|_| Refusal::bad_parameter("Request body is not valid JSON.\r\n"))
}

/// A field in base64url without padding (RFC 7515 section 2).
fn bytes(json: &Value, field: &str) -> Result<Vec<u8>, Refusal> {
    let text = json[field].as_str().ok_or_else(|| Refusal::not_base64url(field))?;
    URL_SAFE_NO_PAD.decode(text).map_err(|_| Refusal::not_base64url(field))
}

/// `7.0` to `7.6`, their previews, and dates.
fn is_api_version(text: &str) -> bool {
    let text = text.split_once("-preview").map_or(text, |(version, _)| version);
    match text.strip_prefix("7.") {
        Some(minor) => matches!(minor, "0" | "1" | "2" | "3" | "4" | "5" | "6"),
        None => text.len() == 10 && text.starts_with("20") && text.matches('-').count() == 2,
    }
}

/// 1 to 127 letters, digits and hyphens.
fn is_name(text: &str) -> bool {
    (1..=127).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.expect("it is past 1970").as_secs().cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::Reply;

    fn request(method: Method, path: &str, version: &str, body: &Value) -> Request {
        Request {
            method,
            path: path.to_owned(),
            query: vec![("api-version".to_owned(), version.to_owned())],
            headers: http::HeaderMap::new(),
            body: body.to_string().into(),
        }
    }

    fn status(outcome: Outcome) -> u16 {
        outcome.map_or_else(|refusal| Reply::from(refusal).status, |_| 200)
    }

    #[test]
    fn only_versions_of_the_api_that_there_are_get_an_answer() {
        let mut vault = Vault::new("https://fake".to_owned(), false);
        for (version, expected) in [
            ("7.4", 200),
            ("7.6-preview.2", 200),
            ("2025-07-01", 200),
            ("", 400),
            ("6.0", 400),
            ("7.9", 400),
            ("latest", 400),
        ] {
            let outcome = vault.answer(&request(Method::GET, "/keys", version, &Value::Null));
            assert_eq!(status(outcome), expected, "{version:?}");
        }
    }

    #[test]
    fn operations_are_named_in_any_case_and_an_empty_version_is_the_latest() {
        let mut vault = Vault::new("https://fake".to_owned(), false);
        let kid = vault.add("k", KeyPair::generate(2048).unwrap());
        let (_, version) = kid.rsplit_once('/').unwrap();
        let body = json!({ "alg": "RSA-OAEP", "value": "AAAA" });
        for (path, expected) in [
            (format!("/keys/k/{version}/wrapkey"), 200),
            (format!("/keys/k/{version}/wrapKey"), 200),
            ("/keys/k//wrapKey".to_owned(), 200),
            ("/keys/k/wrapkey".to_owned(), 200),
            (format!("/keys/k/{version}/unwrapkey"), 400),
            (format!("/keys/k/{}/wrapkey", "0".repeat(32)), 404),
            ("/keys/none//wrapkey".to_owned(), 404),
            ("/keys/k_k//wrapkey".to_owned(), 400),
            (format!("/keys/k/{version}/melt"), 404),
            ("/secrets/k".to_owned(), 404),
        ] {
            let outcome = vault.answer(&request(Method::POST, &path, "7.4", &body));
            assert_eq!(status(outcome), expected, "{path}");
        }
    }
}

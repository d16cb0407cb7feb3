//! The interface: from a method, a path and a body to an answer.

use aws_lc_rs::digest::{self, Digest};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use http::Method;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use crate::enums::{Encoding, ImportJobState, Purpose, VersionState, Wire};
use crate::fault::WrongCrc;
use crate::status::Status;
use crate::store::{Store, Version};

/// The most entries of a page (and as many as there are where a client does not say).
const MAX_PAGE: usize = 1000;

/// A request, as far as the interface is concerned.
pub(crate) struct Request<'a> {
    pub(crate) method: &'a Method,
    /// Without `/v1/`.
    pub(crate) path: &'a str,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) body: Value,
    /// Whether what arrives is to be other bytes than those that were sent.
    pub(crate) corrupted: bool,
    pub(crate) wrong_crc: Option<WrongCrc>,
}

impl Request<'_> {
    fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn encoding(&self) -> Encoding {
        match self.parameter("$alt") {
            Some("json;enum-encoding=int") => Encoding::Numbers,
            _ => Encoding::Names,
        }
    }

    /// The name of a resource that is to be created.
    fn new_name(&self, id: &str) -> Result<String, Status> {
        let id = self.parameter(id).unwrap_or_default();
        let letter = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        if id.is_empty() || id.len() > 63 || !id.bytes().all(letter) {
            return Err(Status::invalid("The id does not match [a-zA-Z0-9_-]{1,63} (fake)."));
        }
        Ok(format!("{}/{id}", self.path))
    }
}

/// The operation's name in the interface, for logs: what follows the colon, or what is read.
pub(crate) fn operation(path: &str) -> String {
    match (path.rsplit_once(':'), path.rsplit_once('/')) {
        (Some((_, verb)), _) => verb.to_owned(),
        (None, Some((_, "publicKey"))) => "getPublicKey".to_owned(),
        _ => path.to_owned(),
    }
}

/// Answers, or says why not.
pub(crate) fn answer(store: &mut Store, request: &Request<'_>) -> Result<Value, Status> {
    let (path, verb) = request.path.split_once(':').unwrap_or((request.path, ""));
    let segments: Vec<&str> = path.split('/').collect();
    let ["projects", _, "locations", _, rest @ ..] = segments.as_slice() else {
        return Err(Status::unimplemented());
    };
    match (request.method.as_str(), rest, verb) {
        ("POST", ["keyRings"], "") => {
            let name = request.new_name("keyRingId")?;
            store.create_key_ring(&name).map(|ring| ring.to_json(&name))
        }
        ("GET", ["keyRings"], "") => {
            let entries = children(&store.key_rings, path);
            page(request, "keyRings", &entries, |(name, ring)| ring.to_json(name))
        }
        ("GET", ["keyRings", _], "") => {
            let ring = store.key_rings.get(path);
            ring.map(|ring| ring.to_json(path)).ok_or_else(|| Status::not_found("KeyRing", path))
        }
        ("POST" | "GET", ["keyRings", _, "cryptoKeys"], "") => crypto_keys(store, request),
        ("GET", ["keyRings", _, "cryptoKeys", _], "") => {
            store.crypto_key(path).map(|key| key.to_json(path, request.encoding()))
        }
        ("POST" | "GET", ["keyRings", _, "importJobs"], "") => import_jobs(store, request),
        ("GET", ["keyRings", _, "importJobs", _], "") => {
            let job = store.import_jobs.get(path);
            job.map(|job| job.to_json(path, request.encoding(), ImportJobState::Active))
                .ok_or_else(|| Status::not_found("ImportJob", path))
        }
        (_, ["keyRings", _, "cryptoKeys", _, "cryptoKeyVersions"], _) => {
            versions(store, request, path, verb)
        }
        (_, ["keyRings", _, "cryptoKeys", _, "cryptoKeyVersions", _], _) => {
            version(store, request, path, verb)
        }
        ("GET", ["keyRings", _, "cryptoKeys", _, "cryptoKeyVersions", _, "publicKey"], "") => {
            public_key(store, request, path.trim_end_matches("/publicKey"))
        }
        _ => Err(Status::unimplemented()),
    }
}

fn crypto_keys(store: &mut Store, request: &Request<'_>) -> Result<Value, Status> {
    let encoding = request.encoding();
    if request.method == Method::GET {
        let entries = children(&store.crypto_keys, request.path);
        return page(request, "cryptoKeys", &entries, |(name, key)| key.to_json(name, encoding));
    }
    let name = request.new_name("cryptoKeyId")?;
    store.create_crypto_key(&name, &request.body)?;
    let key = store.crypto_key(&name)?;
    if request.parameter("skipInitialVersionCreation") != Some("true") {
        key.generate_version()?;
    }
    Ok(key.to_json(&name, encoding))
}

fn import_jobs(store: &mut Store, request: &Request<'_>) -> Result<Value, Status> {
    let encoding = request.encoding();
    if request.method == Method::GET {
        let entries = children(&store.import_jobs, request.path);
        let json = |(name, job): &(&String, &crate::store::ImportJob)| {
            job.to_json(name, encoding, ImportJobState::Active)
        };
        return page(request, "importJobs", &entries, json);
    }
    let name = request.new_name("importJobId")?;
    store.create_import_job(&name, &request.body)?;
    Ok(store.import_jobs[&name].to_json(&name, encoding, ImportJobState::PendingGeneration))
}

fn versions(
    store: &mut Store,
    request: &Request<'_>,
    path: &str,
    verb: &str,
) -> Result<Value, Status> {
    let encoding = request.encoding();
    let crypto_key = path.trim_end_matches("/cryptoKeyVersions");
    let name = |number: u32| format!("{path}/{number}");
    match (request.method.as_str(), verb) {
        ("POST", "") => {
            let (number, version) = store.crypto_key(crypto_key)?.generate_version()?;
            Ok(version.to_json(&name(number), encoding, VersionState::PendingGeneration))
        }
        ("POST", "import") => {
            let field = ["wrappedKey", "rsaAesWrappedKey"]
                .into_iter()
                .find(|field| request.body[*field].is_string())
                .unwrap_or("wrappedKey");
            let wrapped = bytes(&request.body, field)?;
            let (number, version) = store.import(crypto_key, &request.body, &wrapped)?;
            Ok(version.to_json(&name(number), encoding, VersionState::PendingImport))
        }
        ("GET", "") => {
            let entries: Vec<_> = store.crypto_key(crypto_key)?.versions.iter().collect();
            page(request, "cryptoKeyVersions", &entries, |(number, version)| {
                version.to_json(&name(**number), encoding, version.state)
            })
        }
        _ => Err(Status::unimplemented()),
    }
}

fn version(
    store: &mut Store,
    request: &Request<'_>,
    name: &str,
    verb: &str,
) -> Result<Value, Status> {
    let version = store.version(name)?;
    match (request.method.as_str(), verb) {
        ("GET", "") => {}
        ("PATCH", "") => {
            if request.parameter("updateMask") != Some("state") {
                return Err(Status::invalid("Only the state can be changed (fake)."));
            }
            let state = VersionState::from_json(&request.body["state"])
                .ok_or_else(|| Status::invalid("There is no such state (fake)."))?;
            version.change(name, state)?;
        }
        ("POST", "destroy") => version.destroy(name)?,
        ("POST", "restore") => version.restore(name)?,
        ("POST", "asymmetricDecrypt") => return decrypt(version, request, name),
        ("POST", "asymmetricSign") => return sign(version, request, name),
        _ => return Err(Status::unimplemented()),
    }
    Ok(version.to_json(name, request.encoding(), version.state))
}

fn public_key(store: &mut Store, request: &Request<'_>, name: &str) -> Result<Value, Status> {
    let version = store.version(name)?;
    version.usable(name, version.algorithm.purpose())?;
    let pem = version.key.public_pem();
    Ok(json!({
        "pem": pem,
        "algorithm": version.algorithm.to_json(request.encoding()),
        "pemCrc32c": checksum(pem.as_bytes(), request.wrong_crc == Some(WrongCrc::Pem)),
        "name": name,
        "protectionLevel": version.protection_level.to_json(request.encoding()),
    }))
}

fn decrypt(version: &Version, request: &Request<'_>, name: &str) -> Result<Value, Status> {
    version.usable(name, Purpose::AsymmetricDecrypt)?;
    let mut ciphertext = bytes(&request.body, "ciphertext")?;
    if request.corrupted {
        ciphertext[0] ^= 1;
    }
    let verified = verify(request, "ciphertextCrc32c", &ciphertext, "ciphertext")?;
    let oaep = version.algorithm.oaep().expect("a version that decrypts");
    let plaintext = version.key.decrypt(oaep, &ciphertext);
    let plaintext = plaintext.ok_or_else(|| Status::invalid("Decryption failed."))?;
    Ok(without_defaults(json!({
        "plaintext": STANDARD.encode(&plaintext),
        "plaintextCrc32c": checksum(&plaintext, request.wrong_crc == Some(WrongCrc::Plaintext)),
        "verifiedCiphertextCrc32c": verified,
        "protectionLevel": version.protection_level.to_json(request.encoding()),
    })))
}

fn sign(version: &Version, request: &Request<'_>, name: &str) -> Result<Value, Status> {
    version.usable(name, Purpose::AsymmetricSign)?;
    let encoding = version.algorithm.encoding().ok_or_else(Status::unimplemented)?;
    let (hash, field) = version.algorithm.hash();
    let (given, data) = (&request.body["digest"], &request.body["data"]);
    let (signed, verified) = match (given.is_object(), data.is_string()) {
        (true, false) => {
            let mut digest = bytes(given, field)?;
            if request.corrupted {
                digest[0] ^= 1;
            }
            let verified = verify(request, "digestCrc32c", &digest, "digest")?;
            let digest = Digest::import_less_safe(&digest, hash);
            let wrong = || Status::invalid("The digest does not have the hash's length (fake).");
            (digest.map_err(|_| wrong())?, ("verifiedDigestCrc32c", verified))
        }
        (false, true) => {
            let data = bytes(&request.body, "data")?;
            let verified = verify(request, "dataCrc32c", &data, "data")?;
            (digest::digest(hash, &data), ("verifiedDataCrc32c", verified))
        }
        _ => return Err(Status::invalid("Exactly one of digest and data is needed (fake).")),
    };
    let signature = version.key.sign(encoding, &signed);
    let (verified_name, verified) = verified;
    Ok(without_defaults(json!({
        "signature": STANDARD.encode(&signature),
        "signatureCrc32c": checksum(&signature, request.wrong_crc == Some(WrongCrc::Signature)),
        verified_name: verified,
        "name": name,
        "protectionLevel": version.protection_level.to_json(request.encoding()),
    })))
}

/// Checks the checksum that came with a field, if one came. False where there was none.
fn verify(
    request: &Request<'_>,
    crc_field: &str,
    received: &[u8],
    field: &str,
) -> Result<bool, Status> {
    let crc = &request.body[crc_field];
    let crc = crc.as_i64().or_else(|| crc.as_str()?.parse().ok());
    let Some(crc) = crc else { return Ok(false) };
    if crc != i64::from(crc32c::crc32c(received)) {
        return Err(Status::invalid(format!(
            "The checksum in field {field}_crc32c did not match the data in field {field}."
        )));
    }
    Ok(request.wrong_crc != Some(WrongCrc::NotVerified))
}

/// What is empty or false is left out of an answer (proto3's JSON mapping).
fn without_defaults(mut answer: Value) -> Value {
    if let Some(fields) = answer.as_object_mut() {
        fields.retain(|_, value| *value != json!("") && *value != json!(false));
    }
    answer
}

/// CRC32C as an Int64Value, which JSON writes as a string.
fn checksum(bytes: &[u8], wrong: bool) -> Value {
    json!((crc32c::crc32c(bytes) ^ u32::from(wrong)).to_string())
}

/// A field of bytes: base64, which may be the URL-safe kind.
fn bytes(body: &Value, field: &str) -> Result<Vec<u8>, Status> {
    let missing = || Status::invalid(format!("{field} is missing or is no base64 (fake)."));
    let text = body[field].as_str().filter(|text| !text.is_empty()).ok_or_else(missing)?;
    STANDARD.decode(text).or_else(|_| URL_SAFE.decode(text)).map_err(|_| missing())
}

/// Those entries whose names begin with this collection's.
fn children<'a, T>(
    all: &'a std::collections::BTreeMap<String, T>,
    collection: &str,
) -> Vec<(&'a String, &'a T)> {
    let prefix = format!("{collection}/");
    all.iter().filter(|(name, _)| name.starts_with(&prefix)).collect()
}

/// One page of a list; the token is the number of entries before the next page.
fn page<T>(
    request: &Request<'_>,
    field: &str,
    entries: &[T],
    json: impl Fn(&T) -> Value,
) -> Result<Value, Status> {
    let size = request.parameter("pageSize").map_or(Ok(0), str::parse::<usize>);
    let size = size.map_err(|_| Status::invalid("page_size is no number (fake)."))?;
    let size = if size == 0 { MAX_PAGE } else { size.min(MAX_PAGE) };
    let from = match request.parameter("pageToken").filter(|token| !token.is_empty()) {
        None => 0,
        Some(token) => token.parse().map_err(|_| Status::invalid("The page token is bad."))?,
    };
    let shown: Vec<Value> = entries.iter().skip(from).take(size).map(json).collect();
    let next = from + shown.len();
    let mut answer = json!({ field: shown, "totalSize": entries.len() });
    if next < entries.len() {
        answer["nextPageToken"] = json!(next.to_string());
    }
    Ok(answer)
}

/// The pairs of a query or a form.
pub(crate) fn pairs(text: &str) -> Vec<(String, String)> {
    let decode = |part: &str| {
        let spaced = part.replace('+', " ");
        percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
    };
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (decode(key), decode(value)))
        .collect()
}

//! Every failed unwrap gives the same bytes, whatever the cause, the backend and the form of the
//! call; what was decided without looking at the value names its field; and nothing but the
//! contract's codes reaches the wire.

use bytes::{BufMut, Bytes, BytesMut};
use claviger_proto::v1::unwrap_batch_result::Result as ItemResult;
use claviger_proto::v1::{
    GetKeyRequest, ItemError, ListKeysRequest, SignRequest, UnwrapBatchRequest,
    UnwrapBatchResponse, UnwrapRequest, VerifyRequest, WrapRequest,
};
use claviger_provider_api::{Algorithm, KeyMaterial, Parameters};
use e2e::connection::frame;
use e2e::encoding::{Hash, OaepParts, nonzero, pkcs1, raise, random};
use e2e::{Answer, Backend, Connection, Daemon, DaemonFiles, RsaKey, Version};
use prost::Message;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_types::StatusExt;

const OAEP: &[&str] = &["RSA-OAEP", "RSA-OAEP-256", "RSA-OAEP-384", "RSA-OAEP-512"];
const K: usize = 256;
const MATERIAL: [u8; 32] = *b"thirty-two bytes of key material";
const UNWRAP: &str = "/claviger.v1.KeyService/Unwrap";

/// A daemon on one backend, with all that can be wrong about a key.
struct Setup {
    files: DaemonFiles,
    daemon: Daemon,
    connection: Connection,
    /// The one version of `user-keys` and of `old`, and both versions of `two`.
    user_keys: RsaKey,
    old: RsaKey,
    two: [RsaKey; 2],
}

impl Setup {
    async fn new(backend: &Backend, algorithms: &[&str]) -> Self {
        let mut files = DaemonFiles::new();
        backend.configure(&mut files);
        let mut id = 0;
        let mut version = |files: &DaemonFiles, number: i64, key: &RsaKey| -> Version {
            id += 1;
            backend.version(files, number, key, id)
        };
        let keys: Vec<RsaKey> = (0..10).map(|_| RsaKey::generate(2048)).collect();
        let user_keys = version(&files, 1, &keys[0]);
        files.key("user-keys", algorithms, vec![user_keys]);
        let old = version(&files, 1, &keys[1]);
        files.key("old", &["RSA1_5"], vec![old]);
        let two = vec![
            version(&files, 2, &keys[2]),
            version(&files, 1, &keys[3]).with("state", "unwrap-only"),
        ];
        files.key("two", algorithms, two);
        let old_two = vec![version(&files, 2, &keys[4]), version(&files, 1, &keys[5])];
        files.key("old-two", &["RSA1_5"], old_two);
        let partly = vec![
            version(&files, 2, &keys[6]).with("state", "disabled"),
            version(&files, 1, &keys[7]),
        ];
        files.key("partly", algorithms, partly);
        let disabled = version(&files, 1, &keys[8]).with("state", "disabled");
        files.key("disabled", algorithms, vec![disabled]);
        let forbidden = version(&files, 1, &keys[9]);
        files.key("forbidden", algorithms, vec![forbidden]);
        let all = ["wrap", "unwrap", "sign", "verify", "read"];
        let mine = ["user-keys", "old", "two", "old-two", "partly", "disabled"];
        let caller = files.caller("key-connector", &mine, &all);
        files.limit("key-connector", "failed_unwraps", "off");
        files.caller("somebody-else", &["forbidden"], &all);
        let daemon = Daemon::start(&mut files);
        let connection =
            Connection::open(daemon.address(), files.pki.ca_der(), Some(&caller)).await.unwrap();
        let two = [keys[2].clone(), keys[3].clone()];
        let (user_keys, old) = (keys[0].clone(), keys[1].clone());
        Self { files, daemon, connection, user_keys, old, two }
    }

    /// An unwrap whose answer is seen byte for byte.
    async fn unwrap(&self, request: &UnwrapRequest) -> Answer {
        self.connection.call(UNWRAP, frame(&request.encode_to_vec()), &[]).await.unwrap()
    }
}

fn request(key: &str, wrapped: &[u8]) -> UnwrapRequest {
    UnwrapRequest {
        key: key.to_owned(),
        wrapped: wrapped.to_vec().into(),
        ..UnwrapRequest::default()
    }
}

fn wrap(key: &RsaKey, algorithm: Algorithm, label: &[u8]) -> Vec<u8> {
    let parameters = Parameters { algorithm, label };
    key.public_key().wrap(&KeyMaterial::copied_from(&MATERIAL), &parameters).unwrap()
}

fn flip(wrapped: &[u8], byte: usize, bit: u8) -> Vec<u8> {
    let mut flipped = wrapped.to_vec();
    flipped[byte] ^= 1 << bit;
    flipped
}

/// The modulus plus `add`, in `K` bytes.
fn near_modulus(key: &RsaKey, add: i8) -> Vec<u8> {
    let mut value = key.public_key().modulus().to_vec();
    let last = value.last_mut().unwrap();
    // The modulus is odd: neither step carries.
    *last = last.wrapping_add_signed(add);
    value
}

fn small(value: u8) -> Vec<u8> {
    [vec![0; K - 1], vec![value]].concat()
}

/// Values of the right length that do not unwrap under the default algorithm of an OAEP key.
fn bad_oaep(key: &RsaKey, hash: Hash) -> Vec<(&'static str, Vec<u8>)> {
    let (algorithm, other) = match hash {
        Hash::Sha1 => (Algorithm::RsaOaep, Hash::Sha256),
        Hash::Sha256 => (Algorithm::RsaOaep256, Hash::Sha1),
    };
    let good = wrap(key, algorithm, b"");
    let made = |change: fn(&mut OaepParts)| {
        let mut parts = OaepParts::right(hash, &MATERIAL);
        change(&mut parts);
        raise(key, &parts.encode(K))
    };
    let below_modulus = {
        let mut bytes = random(K);
        bytes[0] = 0;
        bytes
    };
    vec![
        ("a flipped bit in the first byte", flip(&good, 0, 0)),
        ("a flipped bit near the front", flip(&good, 1, 7)),
        ("a flipped bit in the middle", flip(&good, K / 2, 3)),
        ("a flipped bit in the last byte", flip(&good, K - 1, 0)),
        ("random below the modulus", below_modulus),
        ("random", random(K)),
        ("0", small(0)),
        ("1", small(1)),
        ("2", small(2)),
        ("n - 1", near_modulus(key, -1)),
        ("n", near_modulus(key, 0)),
        ("n + 1", near_modulus(key, 1)),
        ("all ff", vec![0xff; K]),
        ("another key's", wrap(&RsaKey::shared(2048), algorithm, b"")),
        ("another label's", wrap(key, algorithm, b"tenant-a")),
        ("SHA-384", wrap(key, Algorithm::RsaOaep384, b"")),
        ("PKCS#1 padding", wrap(key, Algorithm::Rsa15, b"")),
        ("another hash", { raise(key, &OaepParts::right(other, &MATERIAL).encode(K)) }),
        ("another MGF1 hash", {
            let mut parts = OaepParts::right(hash, &MATERIAL);
            parts.mgf1_hash = other;
            raise(key, &parts.encode(K))
        }),
        ("a first byte that is not zero", made(|parts| parts.first = 1)),
        ("a bad hash of the label", made(|parts| parts.label_hash_flip = 1)),
        ("a byte in the padding", made(|parts| parts.padding = 2)),
        (
            "no separator",
            made(|parts| {
                parts.separator = 0;
                parts.message = Vec::new();
            }),
        ),
        ("another separator", made(|parts| parts.separator = 3)),
        ("wrapped without any padding", raise(key, &[vec![0; K - 32], MATERIAL.to_vec()].concat())),
        ("wrapped twice", {
            let mut inner = good.clone();
            inner[0] = 0;
            raise(key, &inner)
        }),
        ("the bytes reversed", good.iter().rev().copied().collect()),
    ]
}

/// The same for a key that lists RSA1_5.
fn bad_pkcs1(key: &RsaKey) -> Vec<(&'static str, Vec<u8>)> {
    let good = wrap(key, Algorithm::Rsa15, b"");
    let padding = nonzero(K - 3 - MATERIAL.len());
    let with = |first, block_type, padding: &[u8], message: &[u8]| {
        raise(key, &pkcs1(K, first, block_type, padding, message))
    };
    vec![
        ("a flipped bit in the middle", flip(&good, K / 2, 3)),
        ("a flipped bit in the last byte", flip(&good, K - 1, 0)),
        ("random", random(K)),
        ("0", small(0)),
        ("1", small(1)),
        ("n - 1", near_modulus(key, -1)),
        ("n", near_modulus(key, 0)),
        ("all ff", vec![0xff; K]),
        ("another key's", wrap(&RsaKey::shared(2048), Algorithm::Rsa15, b"")),
        ("OAEP padding", wrap(key, Algorithm::RsaOaep, b"")),
        ("a first byte that is not zero", with(1, 2, &padding, &MATERIAL)),
        ("block type 0", with(0, 0, &padding, &MATERIAL)),
        ("block type 1", with(0, 1, &padding, &MATERIAL)),
        ("block type 3", with(0, 3, &padding, &MATERIAL)),
        ("padding of 7 bytes", with(0, 2, &nonzero(7), &nonzero(K - 10))),
        ("no padding", with(0, 2, &[], &nonzero(K - 3))),
        ("no end of the padding", raise(key, &[vec![0, 2], nonzero(K - 2)].concat())),
    ]
}

/// All that an answer may hold when an unwrap failed, in the order of the wire.
fn assert_uniform(answer: &Answer, uniform: &mut Option<String>, what: &str) {
    let seen = answer.comparable();
    let expected = uniform.get_or_insert_with(|| seen.clone());
    assert_eq!(seen, *expected, "{what}");
    assert_eq!(answer.http_status, 200, "{what}");
    assert_eq!(answer.code(), Code::InvalidArgument, "{what}");
    assert!(answer.body.is_empty() && answer.trailers.is_empty(), "{what}: {answer:?}");
    let mut names: Vec<&str> = answer.headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    let expected = ["content-type", "grpc-message", "grpc-status", "x-request-id"];
    assert_eq!(names, expected, "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_unwraps_are_alike_on_the_software_provider() {
    failed_unwraps_are_alike(&Backend::software(), OAEP).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_unwraps_are_alike_on_softhsm() {
    failed_unwraps_are_alike(&Backend::softhsm(), &["RSA-OAEP"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_unwraps_are_alike_on_kryoptic() {
    failed_unwraps_are_alike(&Backend::kryoptic(), OAEP).await;
}

async fn failed_unwraps_are_alike(backend: &Backend, algorithms: &[&str]) {
    let setup = Setup::new(backend, algorithms).await;
    let mut requests = Vec::new();
    for (what, wrapped) in bad_oaep(&setup.user_keys, Hash::Sha1) {
        requests.push((format!("user-keys, {what}"), request("user-keys", &wrapped)));
        let named = UnwrapRequest {
            key_version: Some(1),
            algorithm: "RSA-OAEP".into(),
            ..request("user-keys", &wrapped)
        };
        requests.push((format!("user-keys by version and algorithm, {what}"), named));
    }
    if algorithms.contains(&"RSA-OAEP-256") {
        for (what, wrapped) in bad_oaep(&setup.user_keys, Hash::Sha256) {
            let named = UnwrapRequest {
                algorithm: "RSA-OAEP-256".into(),
                ..request("user-keys", &wrapped)
            };
            requests.push((format!("user-keys with SHA-256, {what}"), named));
        }
        for (given, asked) in [("tenant-a", "tenant-b"), ("", "tenant-a")] {
            let wrapped = wrap(&setup.user_keys, Algorithm::RsaOaep, given.as_bytes());
            let labelled = UnwrapRequest {
                label: asked.as_bytes().to_vec().into(),
                ..request("user-keys", &wrapped)
            };
            requests.push((format!("label {given:?} as {asked:?}"), labelled));
        }
    }
    for (what, wrapped) in bad_pkcs1(&setup.old) {
        requests.push((format!("old, {what}"), request("old", &wrapped)));
    }
    // Both candidates have to say no; the greater modulus may have to say it alone.
    for key in &setup.two {
        for (what, wrapped) in bad_oaep(key, Hash::Sha1) {
            requests.push((format!("two candidates, {what}"), request("two", &wrapped)));
        }
    }
    let pinned = wrap(&setup.two[0], Algorithm::RsaOaep, b"");
    let other_version = UnwrapRequest { key_version: Some(1), ..request("two", &pinned) };
    requests.push(("version 2's value as version 1's".into(), other_version));

    let mut uniform = None;
    for (what, request) in &requests {
        let answer = setup.unwrap(request).await;
        assert_uniform(&answer, &mut uniform, &format!("{} on {}", what, backend.name));
    }
    let mut item = None;
    for chunk in requests.chunks(64) {
        let items = chunk.iter().map(|(_, request)| request.clone()).collect();
        let batch = setup.connection.unwrap_batch(&UnwrapBatchRequest { items }).await.unwrap();
        assert_eq!(batch.results.len(), chunk.len());
        for (result, (what, _)) in batch.results.iter().zip(chunk) {
            let Some(ItemResult::Error(error)) = &result.result else { panic!("{what}") };
            assert_eq!(item.get_or_insert_with(|| error.clone()), error, "{what}");
        }
    }
    let item: ItemError = item.unwrap();
    let message =
        uniform.as_ref().unwrap().lines().find_map(|line| line.strip_prefix("grpc-message: "));
    let decoded = percent_decoded(message.unwrap().trim_matches('"'));
    assert_eq!(
        (item.code, item.message, item.field.as_str(), item.retry_after_ms),
        (3, decoded, "", 0)
    );
    println!(
        "{}: {} failed unwraps, as calls and as items, 1 answer",
        backend.name,
        requests.len()
    );

    // What is right still unwraps, and the key serves.
    let good = request("two", &wrap(&setup.two[1], Algorithm::RsaOaep, b""));
    let unwrapped = setup.connection.unwrap(&good).await.unwrap();
    assert_eq!((&*unwrapped.key_material, unwrapped.key_version), (&MATERIAL[..], 1));
    let good = request("old", &wrap(&setup.old, Algorithm::Rsa15, b""));
    assert_eq!(setup.connection.unwrap(&good).await.unwrap().key_material, &MATERIAL[..]);

    // Each failure was counted and has its record; none of them shook a replica.
    let twice = 2 * requests.len();
    let counted = setup.daemon.metric("claviger_failed_unwraps_total", &[]);
    assert_eq!(counted.to_string(), twice.to_string());
    let records = setup.files.audit_records();
    let failed = records.iter().filter(|record| record["reason"] == "unwrap_failed").count();
    assert_eq!(failed, twice);
    assert!(!setup.daemon.log().contains("replica fails"), "{}", setup.daemon.log());

    names_that_are_not_yours_are_alike(&setup, backend).await;
    if backend.name == "software" {
        a_wrong_field_is_named(&setup).await;
    } else if !algorithms.contains(&"RSA-OAEP-256") {
        labels_are_refused_where_the_token_takes_none(&setup).await;
    }
}

/// Unknown, forbidden and disabled names and versions, for every operation.
async fn names_that_are_not_yours_are_alike(setup: &Setup, backend: &Backend) {
    let wrapped = random(K);
    let mut answers = Vec::new();
    for (key, version) in [
        ("no-such-key", None),
        ("", None),
        ("forbidden", None),
        ("disabled", None),
        ("disabled", Some(1)),
        ("partly", Some(2)),
        ("partly", Some(9)),
        ("user-keys", Some(0)),
        (&"x".repeat(5000), None),
    ] {
        let what = format!("{key:.20} {version:?} on {}", backend.name);
        let call = |method: &'static str, message: Vec<u8>| {
            let connection = setup.connection.clone();
            async move {
                let path = format!("/claviger.v1.KeyService/{method}");
                connection.call(&path, frame(&message), &[]).await.unwrap()
            }
        };
        let unwrap = UnwrapRequest { key_version: version, ..request(key, &wrapped) };
        answers.push((format!("unwrap {what}"), setup.unwrap(&unwrap).await));
        let batch = UnwrapBatchRequest { items: vec![unwrap] };
        let batch = setup.connection.unwrap_batch(&batch).await.unwrap();
        let Some(ItemResult::Error(error)) = &batch.results[0].result else { panic!("{what}") };
        assert_eq!((error.code, error.field.as_str(), error.retry_after_ms), (7, "", 0), "{what}");
        if version.is_some() {
            continue;
        }
        let key = key.to_owned();
        let wrap = WrapRequest { key: key.clone(), ..WrapRequest::default() };
        answers.push((format!("wrap {what}"), call("Wrap", wrap.encode_to_vec()).await));
        let get = GetKeyRequest { key: key.clone() };
        answers.push((format!("get {what}"), call("GetKey", get.encode_to_vec()).await));
        let sign = SignRequest {
            key: key.clone(),
            algorithm: "PS256".into(),
            digest: vec![0; 32].into(),
            key_version: None,
        };
        answers.push((format!("sign {what}"), call("Sign", sign.encode_to_vec()).await));
        let verify = VerifyRequest { key, algorithm: "PS256".into(), ..VerifyRequest::default() };
        answers.push((format!("verify {what}"), call("Verify", verify.encode_to_vec()).await));
    }
    let first = answers[0].1.comparable();
    for (what, answer) in &answers {
        assert_eq!(answer.code(), Code::PermissionDenied, "{what}");
        assert_eq!(answer.comparable(), first, "{what}");
    }
    let mut health = Vec::new();
    for key in ["no-such-key", "", "forbidden", "disabled", "user-keys/", "user-keys/1"] {
        let message = HealthCheckRequest { service: format!("claviger.v1.KeyService/{key}") };
        let path = "/grpc.health.v1.Health/Check";
        let answer = setup.connection.call(path, frame(&message.encode_to_vec()), &[]).await;
        health.push((key, answer.unwrap()));
    }
    for (key, answer) in &health {
        assert_eq!(answer.code(), Code::NotFound, "{key}");
        assert_eq!(answer.comparable(), health[0].1.comparable(), "{key}");
    }
}

/// One wrong field at a time, by every method: INVALID_ARGUMENT that names it.
async fn a_wrong_field_is_named(setup: &Setup) {
    let good = wrap(&setup.user_keys, Algorithm::RsaOaep, b"");
    let of = |key: &str, wrapped: &[u8]| request(key, wrapped);
    let unwraps = [
        ("wrapped", of("user-keys", b"")),
        ("wrapped", of("user-keys", &good[1..])),
        ("wrapped", of("user-keys", &[&good[..], b"0"].concat())),
        ("wrapped", UnwrapRequest { key_version: Some(1), ..of("two", &good[..255]) }),
        ("algorithm", UnwrapRequest { algorithm: "RSA_OAEP".into(), ..of("user-keys", &good) }),
        ("algorithm", UnwrapRequest { algorithm: "RSA1_5".into(), ..of("user-keys", &good) }),
        ("algorithm", UnwrapRequest { algorithm: "RSA-OAEP".into(), ..of("old", &good) }),
        ("algorithm", UnwrapRequest { algorithm: "PS256".into(), ..of("user-keys", &good) }),
        ("label", UnwrapRequest { label: vec![0; 1025].into(), ..of("user-keys", &good) }),
        ("label", UnwrapRequest { label: b"x".to_vec().into(), ..of("old", &good) }),
        (
            "label",
            UnwrapRequest {
                label: b"x".to_vec().into(),
                algorithm: "RSA1_5".into(),
                ..of("old", &good)
            },
        ),
        ("key_version", of("old-two", &good)),
    ];
    for (field, request) in &unwraps {
        let answer = setup.unwrap(request).await;
        assert_field(&answer, field);
        let batch = UnwrapBatchRequest { items: vec![request.clone()] };
        let batch = setup.connection.unwrap_batch(&batch).await.unwrap();
        let Some(ItemResult::Error(error)) = &batch.results[0].result else { panic!("{field}") };
        assert_eq!((error.code, error.field.as_str()), (3, *field));
    }
    // Every candidate has the same size, so the length is said once.
    let answer = setup.unwrap(&of("two", b"short")).await;
    let said = percent_decoded(answer.status_message());
    assert_eq!(said, "wrapped: must be exactly 256 bytes, not 5");
    for items in [0, 65] {
        let batch = UnwrapBatchRequest { items: vec![of("user-keys", b""); items] };
        assert_field(&setup.connection.unwrap_batch(&batch).await.unwrap_err(), "items");
    }
    let wrap = |key: &str, len: usize, algorithm: &str, label: usize| WrapRequest {
        key: key.into(),
        key_material: vec![7; len].into(),
        algorithm: algorithm.into(),
        label: vec![7; label].into(),
    };
    for (field, request) in [
        ("key_material", wrap("user-keys", 215, "", 0)),
        ("key_material", wrap("user-keys", 191, "RSA-OAEP-256", 0)),
        ("key_material", wrap("old", 246, "", 0)),
        ("algorithm", wrap("user-keys", 32, "rsa-oaep", 0)),
        ("algorithm", wrap("old", 32, "RSA-OAEP", 0)),
        ("label", wrap("user-keys", 32, "", 1025)),
        ("label", wrap("old", 32, "", 1)),
    ] {
        assert_field(&setup.connection.wrap(&request).await.unwrap_err(), field);
    }
    for (len, algorithm, label) in [(214, "", 0), (190, "RSA-OAEP-256", 1024), (0, "", 1)] {
        setup.connection.wrap(&wrap("user-keys", len, algorithm, label)).await.unwrap();
    }
    assert_field(
        &setup
            .connection
            .list_keys(&ListKeysRequest { page_size: 33, page_token: String::new() })
            .await
            .unwrap_err(),
        "page_size",
    );
    for timeout in ["", "5", "S", "-1S", "123456789S", "1x"] {
        let body = frame(&of("user-keys", &good).encode_to_vec());
        let answer = setup.connection.call(UNWRAP, body, &[("grpc-timeout", timeout)]).await;
        assert_field(&answer.unwrap(), "grpc-timeout");
    }
}

async fn labels_are_refused_where_the_token_takes_none(setup: &Setup) {
    let label = Bytes::from_static(b"tenant-a");
    let wrap = WrapRequest {
        key: "user-keys".into(),
        key_material: MATERIAL.to_vec().into(),
        label: label.clone(),
        ..WrapRequest::default()
    };
    assert_field(&setup.connection.wrap(&wrap).await.unwrap_err(), "label");
    let unwrap = UnwrapRequest { label, ..request("user-keys", &random(K)) };
    assert_field(&setup.unwrap(&unwrap).await, "label");
}

fn assert_field(answer: &Answer, field: &str) {
    assert_eq!(answer.code(), Code::InvalidArgument, "{field}: {answer}");
    let details = answer.status().get_error_details();
    let violations = details.bad_request().map(|bad| &bad.field_violations);
    let violations = violations.unwrap_or_else(|| panic!("{field}: no details in {answer}"));
    assert_eq!(violations.len(), 1, "{field}");
    assert_eq!(violations[0].field, field, "{answer}");
    assert!(!violations[0].description.is_empty(), "{field}");
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'%' {
            bytes.extend(hex::decode(&tail[..2]).unwrap());
            rest = &tail[2..];
        } else {
            bytes.push(byte);
            rest = tail;
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// A daemon with one software key and a caller that may do everything with it.
async fn plain() -> (DaemonFiles, Daemon, Connection, RsaKey) {
    let mut files = DaemonFiles::new();
    let backend = Backend::software();
    backend.configure(&mut files);
    let key = RsaKey::shared(2048);
    let version = backend.version(&files, 1, &key, 1);
    files.key("user-keys", OAEP, vec![version]);
    let caller = files.caller("key-connector", &["user-keys"], &["wrap", "unwrap", "read"]);
    let daemon = Daemon::start(&mut files);
    let connection = Connection::open(daemon.address(), files.pki.ca_der(), Some(&caller)).await;
    (files, daemon, connection.unwrap(), key)
}

/// What is wrong, the path, the body, further headers, the code to be expected.
type Case = (&'static str, String, Bytes, Vec<(&'static str, &'static str)>, Code);

#[tokio::test(flavor = "multi_thread")]
async fn what_no_client_should_send_gets_only_the_contracts_codes() {
    let (files, daemon, connection, key) = plain().await;
    let good = frame(&request("user-keys", &wrap(&key, Algorithm::RsaOaep, b"")).encode_to_vec());
    let mut large = UnwrapRequest { label: vec![0; 70_000].into(), ..request("user-keys", b"") };
    let oversized = frame(&large.encode_to_vec());
    large.label = vec![0; 65_000].into();
    let just_fits = frame(&large.encode_to_vec());
    let mut claims_gigabytes = BytesMut::from(&[0u8, 0xff, 0xff, 0xff, 0xff][..]);
    claims_gigabytes.put_slice(&[0; 100]);
    let mut compressed_flag = BytesMut::from(&good[..]);
    compressed_flag[0] = 1;
    let mut bad_flag = BytesMut::from(&good[..]);
    bad_flag[0] = 7;
    let bad_utf8 = frame(&[0x0a, 2, 0xff, 0xfe]);
    let key_service = |method: &str| format!("/claviger.v1.KeyService/{method}");
    let cases: Vec<Case> = vec![
        ("an oversized message", UNWRAP.into(), oversized, vec![], Code::InvalidArgument),
        ("a label that is too long", UNWRAP.into(), just_fits, vec![], Code::InvalidArgument),
        (
            "a frame of 4 GiB",
            UNWRAP.into(),
            claims_gigabytes.freeze(),
            vec![],
            Code::InvalidArgument,
        ),
        ("bad protobuf", UNWRAP.into(), frame(&[0xff; 40]), vec![], Code::InvalidArgument),
        ("bad UTF-8", UNWRAP.into(), bad_utf8, vec![], Code::InvalidArgument),
        ("no message", UNWRAP.into(), Bytes::new(), vec![], Code::Unimplemented),
        (
            "two messages",
            UNWRAP.into(),
            [&good[..], &good[..]].concat().into(),
            vec![],
            Code::Unimplemented,
        ),
        ("half a frame", UNWRAP.into(), good.slice(..20), vec![], Code::InvalidArgument),
        ("a header of a frame", UNWRAP.into(), good.slice(..3), vec![], Code::InvalidArgument),
        (
            "a flag without an encoding",
            UNWRAP.into(),
            compressed_flag.freeze(),
            vec![],
            Code::InvalidArgument,
        ),
        ("an unknown flag", UNWRAP.into(), bad_flag.freeze(), vec![], Code::InvalidArgument),
        ("gzip", UNWRAP.into(), good.clone(), vec![("grpc-encoding", "gzip")], Code::Unimplemented),
        ("an unknown method", key_service("Nothing"), good.clone(), vec![], Code::Unimplemented),
        (
            "an unknown service",
            "/claviger.v2.KeyService/Unwrap".into(),
            good.clone(),
            vec![],
            Code::Unimplemented,
        ),
        ("no method", "/".into(), good.clone(), vec![], Code::Unimplemented),
        (
            "a path with a query",
            format!("{UNWRAP}s?x=1"),
            good.clone(),
            vec![],
            Code::Unimplemented,
        ),
    ];
    for (what, path, body, headers, expected) in cases {
        let answer = connection.call(&path, body, &headers).await;
        let answer = answer.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(answer.http_status, 200, "{what}: {answer:?}");
        assert_eq!(answer.code(), expected, "{what}: {answer}");
        assert!(answer.request_id().is_some_and(|id| !id.is_empty()), "{what}: {answer:?}");
        assert!(!answer.headers.contains_key("date"), "{what}: {answer:?}");
    }
    // gRPC over HTTP/2 wants 415 for a content type that is not gRPC's.
    for content_type in ["application/json", "text/plain", "application/grpc-web", ""] {
        let headers = [("content-type", content_type)];
        let answer = connection.call(UNWRAP, good.clone(), &headers).await.unwrap();
        assert_eq!(answer.http_status, 415, "{content_type}: {answer:?}");
        assert_field(&answer, "content-type");
        assert!(
            answer.request_id().is_some() && !answer.headers.contains_key("date"),
            "{answer:?}"
        );
    }
    only_post_is_a_call(&connection, &good).await;
    let long = "m".repeat(9000);
    let answer = connection.call(UNWRAP, good.clone(), &[("x-long", &long)]).await.unwrap();
    assert_eq!(answer.http_status, 200, "no HTTP 431: {answer:?}");
    assert_field(&answer, "metadata");
    both_reflections_answer(&connection).await;
    // The connection serves on, and what was refused was counted.
    let answer = connection.call(UNWRAP, good, &[]).await.unwrap();
    assert_eq!(answer.code(), Code::Ok);
    assert!(answer.request_id().is_some() && !answer.headers.contains_key("date"), "{answer:?}");
    assert!(daemon.metric("claviger_refusals_total", &["reason=\"unimplemented\""]) >= 4.0);
    assert!(daemon.metric("claviger_refusals_total", &["reason=\"unreadable_message\""]) >= 7.0);
    let exit = daemon.terminate();
    assert_eq!(exit.code, Some(0), "{}", exit.log);
    let records = files.audit_records();
    let counted: u64 = records.iter().filter_map(|record| record["refusals"].as_u64()).sum();
    let own = records.iter().filter(|record| record["event"] == "refusal").count() as u64;
    assert_eq!(own + counted, 25, "each refusal is in the audit log, alone or counted");
}

/// 405 for what is no POST.
async fn only_post_is_a_call(connection: &Connection, good: &Bytes) {
    for method in ["GET", "PUT", "OPTIONS", "HEAD"] {
        let answer = connection.call(UNWRAP, good.clone(), &[(":method", method)]).await.unwrap();
        assert_eq!(
            (answer.http_status.as_u16(), &answer.headers["allow"]),
            (405, &"POST".parse().unwrap())
        );
        assert_field(&answer, ":method");
    }
}

/// Reflection v1 and, for older tools, v1alpha.
async fn both_reflections_answer(connection: &Connection) {
    for reflection in ["v1", "v1alpha"] {
        let path = format!("/grpc.reflection.{reflection}.ServerReflection/ServerReflectionInfo");
        // ServerReflectionRequest { list_services: "" }: any number of messages may come.
        let list = frame(&[0x3a, 0]);
        let body = [&list[..], &list[..]].concat().into();
        let answer = connection.call(&path, body, &[]).await.unwrap();
        assert_eq!(answer.code(), Code::Ok, "{reflection}: {answer}");
        let body = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!(body.matches("claviger.v1.KeyService").count(), 2, "{reflection}: {body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_passes_says_so_and_is_recorded() {
    let (files, daemon, connection, key) = plain().await;
    let wrapped = wrap(&key, Algorithm::RsaOaep, b"");
    let items = vec![request("user-keys", &wrapped); 64];
    let batch = frame(&UnwrapBatchRequest { items }.encode_to_vec());
    let single = frame(&request("user-keys", &wrapped).encode_to_vec());
    for (body, timeout) in [(&batch, "1m"), (&batch, "1000u")] {
        let path = "/claviger.v1.KeyService/UnwrapBatch";
        let answer = connection.call(path, body.clone(), &[("grpc-timeout", timeout)]).await;
        let answer = answer.unwrap();
        assert!(answer.request_id().is_some() && !answer.headers.contains_key("date"));
        if answer.code() == Code::DeadlineExceeded {
            continue;
        }
        // There was time to say which items were late: not all 64 can have been in time.
        let results = answer.message::<UnwrapBatchResponse>().results;
        assert_eq!((answer.code(), results.len()), (Code::Ok, 64), "{timeout}: {answer}");
        let late = results.iter().filter(|result| match &result.result {
            Some(ItemResult::Error(error)) => {
                assert_eq!(error.code, Code::DeadlineExceeded as i32, "{timeout}: {error:?}");
                true
            }
            _ => false,
        });
        assert!(late.count() > 0, "{timeout}");
    }
    for timeout in ["1n", "0S"] {
        let headers = [("grpc-timeout", timeout)];
        let answer = connection.call(UNWRAP, single.clone(), &headers).await.unwrap();
        assert_eq!(answer.code(), Code::DeadlineExceeded, "{timeout}: {answer}");
        assert!(answer.request_id().is_some() && !answer.headers.contains_key("date"));
        assert!(answer.status_details().is_none());
    }
    let answer = connection.call(UNWRAP, single, &[("grpc-timeout", "20S")]).await.unwrap();
    assert_eq!(answer.code(), Code::Ok);
    assert_eq!(daemon.terminate().code, Some(0));
    let records = files.audit_records();
    let late = records.iter().filter(|record| record["outcome"] == "DEADLINE_EXCEEDED");
    assert!(late.count() > 0, "{records:?}");
}

/// Else a caller that chooses his deadline well learns what failed, and pays nothing for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_while_the_fault_is_looked_for_has_spent_a_failed_unwrap() {
    let mut files = DaemonFiles::new();
    let (backend, faults) = Backend::softhsm_with_faults();
    backend.configure(&mut files);
    let key = RsaKey::shared(2048);
    let version = backend.version(&files, 1, &key, 1);
    files.key("old", &["RSA1_5"], vec![version]);
    let caller = files.caller("key-connector", &["old"], &["unwrap"]);
    files.limit("key-connector", "failed_unwraps", "3/h");
    let daemon = Daemon::start(&mut files);
    let connection =
        Connection::open(daemon.address(), files.pki.ca_der(), Some(&caller)).await.unwrap();
    let good = frame(&request("old", &wrap(&key, Algorithm::Rsa15, b"")).encode_to_vec());
    let bad = || frame(&request("old", &raise(&key, &random(K)[1..])).encode_to_vec());
    // A success takes one decryption, a failure a second one of the canary.
    faults.on_every("C_Decrypt", "sleep=400");
    let timeout = [("grpc-timeout", "650m")];
    for _ in 0..3 {
        assert_eq!(connection.call(UNWRAP, good.clone(), &timeout).await.unwrap().code(), Code::Ok);
        let answer = connection.call(UNWRAP, bad(), &timeout).await.unwrap();
        assert_eq!(answer.code(), Code::DeadlineExceeded, "{answer}");
        // The canary of this call ends before the next one, so that each waits for its own.
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    faults.clear();
    let answer = connection.call(UNWRAP, bad(), &[]).await.unwrap();
    assert_eq!(answer.code(), Code::ResourceExhausted, "{answer}");
    drop(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_own_request_id_is_recorded_beside_ours() {
    let (files, daemon, connection, key) = plain().await;
    let body = frame(&request("user-keys", &wrap(&key, Algorithm::RsaOaep, b"")).encode_to_vec());
    let longest = "i".repeat(64);
    let too_long = "i".repeat(65);
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut seen = Vec::new();
    for (id, recorded) in [
        ("kc-7f3a/\"1\"", true),
        (longest.as_str(), true),
        (too_long.as_str(), false),
        ("tab\tin it", false),
    ] {
        let headers = [("x-request-id", id), ("traceparent", traceparent)];
        let answer = connection.call(UNWRAP, body.clone(), &headers).await.unwrap();
        let ours = answer.request_id().unwrap().to_owned();
        assert_ne!(ours, id);
        seen.push((ours, recorded.then(|| id.to_owned())));
    }
    let bad = frame(&request("user-keys", &random(K)).encode_to_vec());
    let failed = connection.call(UNWRAP, bad, &[("x-request-id", "mine")]).await.unwrap();
    seen.push((failed.request_id().unwrap().to_owned(), Some("mine".to_owned())));
    drop(daemon);
    let records = files.audit_records();
    for (ours, theirs) in seen {
        let of_call: Vec<_> = records.iter().filter(|r| r["request_id"] == *ours).collect();
        assert_eq!(of_call.len(), 1, "{ours}");
        assert_eq!(of_call[0]["caller_request_id"].as_str(), theirs.as_deref(), "{of_call:?}");
    }
    let traced = records.iter().filter(|record| record["traceparent"] == traceparent);
    assert_eq!(traced.count(), 4);
}

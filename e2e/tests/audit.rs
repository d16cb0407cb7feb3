//! The audit log tells every operation with the right fields, and nothing that is written anywhere
//! holds key material or a PIN.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use azure_key_vault_fake::Fault;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use claviger_proto::v1::rewrap_target::Recipient;
use claviger_proto::v1::{
    GetKeyRequest, ListKeysRequest, RewrapRequest, RewrapSource, RewrapTarget, SignRequest,
    UnwrapBatchRequest, UnwrapRequest, VerifyRequest, WrapRequest,
};
use claviger_provider_api::public_key::sha256;
use e2e::connection::frame;
use e2e::daemon::claviger;
use e2e::encoding::random;
use e2e::token::PIN;
use e2e::{
    Answer, Backend, Connection, Daemon, DaemonFiles, Identity, RsaKey, ServiceKind, TestService,
    Token, Version,
};
use prost::Message;
use serde_json::{Value, json};
use tonic::Code;

/// 32 bytes that nothing else contains.
const MATERIAL: [u8; 32] = *b"MARKER:the-material-of-this-test";
const MARKER_PIN: &str = "marker-pin-4711";

struct Setup {
    /// Its folder is gone once this is dropped.
    token: Token,
    files: DaemonFiles,
    daemon: Daemon,
    caller: Identity,
    connection: Connection,
}

/// SoftHSM with a PIN of the test's own, one key that wraps, one that signs too, everything logged.
async fn setup() -> Setup {
    let mut files = DaemonFiles::new();
    let token = Token::softhsm();
    token.change_pin(PIN, MARKER_PIN);
    token.write_pin(MARKER_PIN);
    let (user_keys, signing) = (RsaKey::generate(2048), RsaKey::generate(2048));
    // Fixtures log in with the first PIN; so the keys go in through the second one.
    for (key, label, id) in [(&user_keys, "object-a", "0a"), (&signing, "object-b", "0b")] {
        token.import_as(MARKER_PIN, key, label, id);
    }
    files.token("hsm-a", &token);
    let version = Version::active(3, &user_keys, "hsm-a", "pkcs11:object=object-a");
    files.key("user-keys", &["RSA-OAEP"], vec![version]);
    let version = Version::active(1, &signing, "hsm-a", "pkcs11:object=object-b")
        .with("sign_algorithms", vec![toml::Value::from("RS256")]);
    files.key("signing", &["RSA-OAEP"], vec![version]);
    let caller = files.caller_with(
        "key-connector",
        r#"[{ keys = ["user-keys", "signing"], operations = ["wrap", "unwrap", "rewrap", "sign", "verify", "read"], to = ["signing"], to_public_keys = "any" }]"#,
    );
    files.set("log.filter", "trace");
    let daemon = Daemon::start(&mut files);
    let connection = Connection::open(daemon.address(), files.pki.ca_der(), Some(&caller)).await;
    Setup { token, files, daemon, caller, connection: connection.unwrap() }
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "each line stands beside the call that wrote it")]
async fn each_operation_has_its_line_with_the_right_fields() {
    let Setup { token: _token, files, daemon, caller, connection } = setup().await;
    let call = async |method: &str, message: Vec<u8>| -> Answer {
        let path = format!("/claviger.v1.KeyService/{method}");
        connection
            .call(&path, frame(&message), &[("x-request-id", "from-the-caller")])
            .await
            .unwrap()
    };
    let mut expected: Vec<(Answer, Vec<Value>)> = Vec::new();
    let about = |operation: &str, key: &str| json!({"event": "operation", "operation": operation, "key": key, "outcome": "ok"});
    let with = |mut line: Value, more: Value| {
        line.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        line
    };

    let wrap = WrapRequest {
        key: "user-keys".into(),
        key_material: MATERIAL.to_vec().into(),
        ..WrapRequest::default()
    };
    let answer = call("Wrap", wrap.encode_to_vec()).await;
    let wrapped = answer.message::<claviger_proto::v1::WrapResponse>().wrapped;
    let of = |bytes: &[u8]| json!({"version": 3, "algorithm": "RSA-OAEP", "wrapped_sha256": hex::encode(sha256(bytes))});
    expected.push((answer, vec![with(about("wrap", "user-keys"), of(&wrapped))]));

    let request = |key: &str, wrapped: &[u8]| UnwrapRequest {
        key: key.into(),
        wrapped: wrapped.to_vec().into(),
        ..UnwrapRequest::default()
    };
    let good = request("user-keys", &wrapped);
    let unwrapped =
        with(with(about("unwrap", "user-keys"), of(&wrapped)), json!({"provider": "hsm-a"}));
    expected.push((call("Unwrap", good.encode_to_vec()).await, vec![unwrapped.clone()]));

    let bad = random(256).into_iter().enumerate().map(|(n, byte)| if n == 0 { 0 } else { byte });
    let bad: Vec<u8> = bad.collect();
    let failed = |line: Value, code: &str, reason: &str| {
        with(line, json!({"outcome": code, "reason": reason}))
    };
    let bad_line = failed(
        with(with(about("unwrap", "user-keys"), of(&bad)), json!({"provider": "hsm-a"})),
        "INVALID_ARGUMENT",
        "unwrap_failed",
    );
    let answer = call("Unwrap", request("user-keys", &bad).encode_to_vec()).await;
    assert_eq!(answer.code(), Code::InvalidArgument);
    expected.push((answer, vec![bad_line.clone()]));

    let denied = |operation: &str| {
        let line =
            failed(about(operation, "no-such-key"), "PERMISSION_DENIED", "permission_denied");
        with(line, json!({"event": "refusal"}))
    };
    // One that has not failed before: that would be answered from memory.
    let bad: Vec<u8> =
        bad.iter().enumerate().map(|(n, b)| if n == 9 { b ^ 1 } else { *b }).collect();
    let bad_line = with(bad_line, of(&bad));
    let items = vec![good, request("user-keys", &bad), request("no-such-key", &bad)];
    let answer = call("UnwrapBatch", UnwrapBatchRequest { items }.encode_to_vec()).await;
    let item = |line: Value, item: u32| with(line, json!({"batch_item": item}));
    expected.push((answer, vec![item(unwrapped, 0), item(bad_line, 1), item(denied("unwrap"), 2)]));

    let digest = sha256(b"a document");
    let sign = SignRequest {
        key: "signing".into(),
        digest: digest.to_vec().into(),
        algorithm: "RS256".into(),
        key_version: None,
    };
    let answer = call("Sign", sign.encode_to_vec()).await;
    let signature = answer.message::<claviger_proto::v1::SignResponse>().signature;
    let signed = json!({"version": 1, "algorithm": "RS256"});
    let line = with(about("sign", "signing"), signed.clone());
    expected.push((answer, vec![with(line, json!({"provider": "hsm-a"}))]));
    let verify = VerifyRequest {
        key: "signing".into(),
        digest: digest.to_vec().into(),
        algorithm: "RS256".into(),
        key_version: Some(1),
        signature,
    };
    let answer = call("Verify", verify.encode_to_vec()).await;
    expected.push((answer, vec![with(about("verify", "signing"), signed)]));

    let get = GetKeyRequest { key: "signing".into() };
    expected.push((call("GetKey", get.encode_to_vec()).await, vec![about("read", "signing")]));
    let list = json!({"event": "operation", "operation": "read", "outcome": "ok", "key": null});
    let answer = call("ListKeys", ListKeysRequest::default().encode_to_vec()).await;
    expected.push((answer, vec![list]));
    let get = GetKeyRequest { key: "no-such-key".into() };
    expected.push((call("GetKey", get.encode_to_vec()).await, vec![denied("read")]));
    let unknown = UnwrapRequest { algorithm: "RSA".into(), ..request("user-keys", &bad) };
    let line = failed(about("unwrap", "user-keys"), "INVALID_ARGUMENT", "field");
    let answer = call("Unwrap", unknown.encode_to_vec()).await;
    expected.push((answer, vec![with(line, json!({"event": "refusal"}))]));

    assert_eq!(daemon.terminate().code, Some(0));
    let records = files.audit_records();
    let certificate = hex::encode(sha256(&caller.certificate()));
    for (answer, lines) in &expected {
        let id = answer.request_id().unwrap();
        let of_call: Vec<&Value> = records.iter().filter(|r| r["request_id"] == id).collect();
        assert_eq!(of_call.len(), lines.len(), "{lines:?}: {of_call:?}");
        for line in lines {
            let item = |record: &&&Value| record["batch_item"] == line["batch_item"];
            let record =
                of_call.iter().find(item).unwrap_or_else(|| panic!("{line} in {of_call:?}"));
            for (field, value) in line.as_object().unwrap() {
                assert_eq!(record[field], *value, "{field} of {record}, for {line}");
            }
            assert_eq!(record["caller"], "key-connector");
            assert_eq!(record["identity"], "spiffe://example.org/key-connector");
            assert_eq!(record["certificate_sha256"], certificate);
            assert_eq!(record["anchor"], "clients");
            assert_eq!(record["caller_request_id"], "from-the-caller");
            assert!(record["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{record}");
            assert!(record["duration_us"].as_u64().is_some(), "{record}");
            assert!(record["time"].as_str().unwrap().ends_with('Z'), "{record}");
            let backend_failed = record["reason"] == "unwrap_failed";
            assert_eq!(record["backend_error"].is_string(), backend_failed, "{record}");
        }
    }
    let events: Vec<&str> = records.iter().filter_map(|record| record["event"].as_str()).collect();
    assert_eq!(events.first(), Some(&"start"));
    assert_eq!(events.last(), Some(&"stop"));
    let sequence: Vec<u64> = records.iter().map(|record| record["seq"].as_u64().unwrap()).collect();
    assert!(sequence.windows(2).all(|pair| pair[1] == pair[0] + 1), "{sequence:?}");
}

/// What reached the newer version's key is no refusal, whatever the older one's backend says.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_a_key_was_used_for_has_its_line_though_the_next_backend_has_no_room() {
    let service = TestService::start(ServiceKind::Azure).await;
    let mut files = DaemonFiles::new();
    let backend = Backend::software();
    backend.configure(&mut files);
    service.configure(&mut files, "azure", None).await;
    let [newer, older] = [2048, 2048].map(RsaKey::generate);
    let stored = service.import(&older, "user-keys", None).await.swap_remove(0);
    let versions = vec![backend.version(&files, 2, &newer, 1), stored.version(&older, "azure")];
    files.key("user-keys", &["RSA-OAEP"], versions);
    let caller = files.caller("key-connector", &["user-keys"], &["unwrap"]);
    let daemon = Daemon::start(&mut files);
    let connection =
        Connection::open(daemon.address(), files.pki.ca_der(), Some(&caller)).await.unwrap();

    let (status, headers, body) = (429, Vec::new(), "{}".to_owned());
    service.azure().fault(Fault::Answer { status, headers, body });
    let mut wrapped = random(256);
    wrapped[0] = 0;
    let request = UnwrapRequest {
        key: "user-keys".into(),
        wrapped: wrapped.clone().into(),
        ..UnwrapRequest::default()
    };
    let answer = connection.unwrap(&request).await.unwrap_err();
    assert_eq!(answer.code(), Code::ResourceExhausted, "{}", daemon.log());
    let records = files.audit_records();
    let record =
        records.iter().find(|record| record["wrapped_sha256"] == hex::encode(sha256(&wrapped)));
    let record = record.unwrap_or_else(|| panic!("no line: {records:#?}"));
    assert_eq!(
        (&record["event"], &record["reason"]),
        (&json!("operation"), &json!("backend_throttled"))
    );
}

/// Cheap to cause, and no key was used: of all but a few a minute there is no line of their own.
#[tokio::test(flavor = "multi_thread")]
async fn an_unwrap_that_reaches_no_key_is_a_refusal_and_a_value_that_fails_is_none() {
    let mut files = DaemonFiles::new();
    let backend = Backend::software();
    backend.configure(&mut files);
    let [away, here] = [2048, 2048].map(RsaKey::generate);
    let versions = vec![Version::active(1, &away, "backend", "nothing.pem")];
    files.key("away", &["RSA-OAEP"], versions);
    let versions = vec![backend.version(&files, 1, &here, 1)];
    files.key("here", &["RSA-OAEP"], versions);
    let caller = files.caller("key-connector", &["away", "here"], &["unwrap"]);
    let daemon = Daemon::start(&mut files);
    let connection =
        Connection::open(daemon.address(), files.pki.ca_der(), Some(&caller)).await.unwrap();
    // Above every modulus of its length: the failed unwrap is spent, though no key was asked.
    let wrapped = vec![0xff; 256];
    for (key, code, event) in [
        ("away", Code::FailedPrecondition, "refusal"),
        ("here", Code::InvalidArgument, "operation"),
    ] {
        let request = UnwrapRequest {
            key: key.into(),
            wrapped: wrapped.clone().into(),
            ..UnwrapRequest::default()
        };
        let answer = connection.unwrap(&request).await.unwrap_err();
        assert_eq!(answer.code(), code, "{answer}\n{}", daemon.log());
        let asked = |record: &Value| record["key"] == key && record["operation"] == "unwrap";
        let begun = std::time::Instant::now();
        let record = loop {
            if let Some(record) = files.audit_records().into_iter().find(asked) {
                break record;
            }
            assert!(begun.elapsed().as_secs() < 30, "no line for {key}");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        };
        assert_eq!((&record["event"], &record["version"]), (&json!(event), &json!(1)), "{record}");
        assert_eq!(record["wrapped_sha256"], hex::encode(sha256(&wrapped)));
    }
    let records = files.audit_records();
    let of_away = records.iter().find(|record| record["key"] == "away").unwrap();
    assert!(of_away["backend_error"].as_str().unwrap().contains("nothing.pem"), "{of_away}");
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_key_material_nor_pin_is_in_anything_that_is_written() {
    let Setup { token: _token, mut files, daemon, connection, caller } = setup().await;
    let wrap = WrapRequest {
        key: "user-keys".into(),
        key_material: MATERIAL.to_vec().into(),
        ..WrapRequest::default()
    };
    let good = UnwrapRequest {
        key: "user-keys".into(),
        wrapped: connection.wrap(&wrap).await.unwrap().wrapped,
        ..UnwrapRequest::default()
    };
    for _ in 0..5 {
        assert_eq!(connection.unwrap(&good).await.unwrap().key_material, &MATERIAL[..]);
    }
    let bad = UnwrapRequest { wrapped: vec![7; 256].into(), ..good.clone() };
    connection.unwrap(&bad).await.unwrap_err();
    let items = vec![good.clone(), bad, good.clone()];
    connection.unwrap_batch(&UnwrapBatchRequest { items }).await.unwrap();
    for recipient in [
        Recipient::Key("signing".into()),
        Recipient::PublicKey(RsaKey::shared(2048).public_key().spki().to_vec().into()),
    ] {
        let algorithm = "RSA-OAEP".to_owned();
        let target = RewrapTarget { recipient: Some(recipient), algorithm, ..Default::default() };
        let source = RewrapSource { key: "user-keys".into(), ..Default::default() };
        let rewrap = RewrapRequest {
            source: Some(source),
            wrapped: good.wrapped.clone(),
            target: Some(target),
            max_key_material_len: None,
            approval: None,
        };
        connection.rewrap(&rewrap).await.unwrap();
        let too_long = RewrapRequest { max_key_material_len: Some(31), ..rewrap };
        connection.rewrap(&too_long).await.unwrap_err();
    }
    // Material where it does not belong, and messages that break while they are read.
    let too_long = WrapRequest { key_material: MATERIAL.repeat(10).into(), ..wrap.clone() };
    connection.wrap(&too_long).await.unwrap_err();
    let labelled = WrapRequest { label: MATERIAL.to_vec().into(), ..wrap.clone() };
    connection.wrap(&labelled).await.unwrap_err();
    let broken = [&wrap.encode_to_vec()[..], &[0xff; 9]].concat();
    let path = "/claviger.v1.KeyService/Wrap";
    let answer = connection.call(path, frame(&broken), &[]).await.unwrap();
    assert_eq!(answer.code(), Code::InvalidArgument, "{answer}");
    let (_, metrics) = daemon.operations_get("/metrics").unwrap();
    fs::write(files.path("metrics.txt"), &metrics).unwrap();
    daemon.reload();
    daemon.wait_for_log("configuration reloaded");
    assert_eq!(daemon.terminate().code, Some(0));
    // A second life, ended in the middle of its work.
    let daemon = Daemon::start(&mut files);
    let connection =
        Connection::open(daemon.address(), files.pki.ca_der(), Some(&caller)).await.unwrap();
    connection.unwrap(&good).await.unwrap();
    daemon.kill();

    // The search finds what is there.
    let control = files.path("control.txt");
    fs::write(&control, format!("x{}y", hex::encode(MATERIAL))).unwrap();
    assert_eq!(found(&files.path("."), &MATERIAL), vec![control.clone()]);
    fs::remove_file(control).unwrap();

    let searched = files_below(&files.path("."));
    let total: u64 = searched.iter().map(|file| fs::metadata(file).unwrap().len()).sum();
    println!("searched {} files, {total} bytes", searched.len());
    for name in ["audit.jsonl", "stderr.log", "metrics.txt"] {
        assert!(fs::metadata(files.path(name)).unwrap().len() > 500, "{name}");
    }
    let log = fs::read_to_string(files.path("stderr.log")).unwrap();
    assert!(log.contains("TRACE") || log.contains("DEBUG"), "the log told everything it can");
    for (what, marker) in [("key material", &MATERIAL[..]), ("PIN", MARKER_PIN.as_bytes())] {
        assert_eq!(found(&files.path("."), marker), [] as [PathBuf; 0], "{what}");
    }
}

/// The files below a folder that hold the marker raw, in hexadecimal, in base64 at any offset, or
/// as a list of numbers.
fn found(folder: &Path, marker: &[u8]) -> Vec<PathBuf> {
    let mut forms = vec![
        marker.to_vec(),
        hex::encode(marker).into_bytes(),
        hex::encode_upper(marker).into_bytes(),
    ];
    for skipped in 0..3 {
        for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            // Whole groups of three bytes, so that what follows in the file does not matter.
            let whole = &marker[skipped..][..(marker.len() - skipped) / 3 * 3];
            forms.push(engine.encode(whole).into_bytes());
        }
    }
    let list = |separator: &str| {
        let numbers: Vec<String> = marker.iter().map(u8::to_string).collect();
        numbers.join(separator).into_bytes()
    };
    forms.extend([list(", "), list(",")]);
    let holds = |file: &PathBuf| {
        let bytes = fs::read(file).unwrap();
        forms.iter().any(|form| bytes.windows(form.len()).any(|at| at == form))
    };
    // A socket holds nothing.
    let is_file = |path: &PathBuf| fs::metadata(path).unwrap().is_file();
    files_below(folder).into_iter().filter(is_file).filter(holds).collect()
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// A caller without any grant may list its keys, of which there are none.
#[tokio::test(flavor = "multi_thread")]
async fn lists_without_end_take_little_of_the_disk() {
    let mut files = DaemonFiles::new();
    let flood = files.caller_with("flood", "[]");
    let daemon = Daemon::start(&mut files);
    let connection =
        Connection::open(daemon.address(), files.pki.ca_der(), Some(&flood)).await.unwrap();
    for _ in 0..500 {
        connection.list_keys(&ListKeysRequest::default()).await.unwrap();
    }
    assert_eq!(daemon.count("claviger_audit_successes_counted_total", &[]), 440);
    assert!(daemon.metric("claviger_audit_free_bytes", &[]) > 0.0);
    assert_eq!(daemon.count("claviger_audit_in_reserve", &[]), 0);
    assert_eq!(daemon.terminate().code, Some(0));
    let records = files.audit_records();
    let own = records.iter().filter(|record| record["operation"] == "read").count();
    let counted = records.iter().find(|record| record["event"] == "operations").unwrap();
    assert_eq!((own, &counted["by_operation"]["read"]), (60, &json!(440)));
    let bytes = fs::metadata(files.audit_file()).unwrap().len();
    assert!(bytes < 64 << 10, "{bytes}");
}

/// Nothing is answered that cannot be recorded, and a balancer is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_written_refuses_reads_too_and_the_daemon_is_not_ready() {
    let mut files = DaemonFiles::new();
    let backend = Backend::software();
    backend.configure(&mut files);
    let key = RsaKey::shared(2048);
    let version = backend.version(&files, 1, &key, 1);
    files.key("user-keys", &["RSA-OAEP"], vec![version]);
    let caller = files.caller("key-connector", &["user-keys"], &["wrap", "read"]);
    let daemon = Daemon::start(&mut files);
    let connection =
        Connection::open(daemon.address(), files.pki.ca_der(), Some(&caller)).await.unwrap();
    let ready = |path: &str| daemon.operations_get(path).unwrap().0;
    assert_eq!((ready("/readyz"), ready("/readyz/all")), (200, 200));
    // A folder in the place of the file, which is gone.
    fs::remove_file(files.audit_file()).unwrap();
    fs::create_dir(files.audit_file()).unwrap();
    let wrap = WrapRequest {
        key: "user-keys".into(),
        key_material: MATERIAL.to_vec().into(),
        ..WrapRequest::default()
    };
    assert_eq!(connection.wrap(&wrap).await.unwrap_err().code(), Code::Unavailable);
    let get = GetKeyRequest { key: "user-keys".into() };
    assert_eq!(connection.get_key(&get).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!((ready("/readyz"), ready("/livez")), (503, 200));
    fs::remove_dir(files.audit_file()).unwrap();
    let begun = std::time::Instant::now();
    while ready("/readyz") != 200 {
        assert!(begun.elapsed().as_secs() < 30, "{}", daemon.log());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    connection.get_key(&get).await.unwrap();
    connection.wrap(&wrap).await.unwrap();
}

/// The output of a command below `claviger audit` with `--json`, and whether its exit code was 0.
fn audit_command(arguments: &[&str]) -> (bool, Value) {
    let output = Command::new(claviger()).args(["audit", "--json"]).args(arguments).output();
    let output = output.unwrap();
    let said = serde_json::from_slice(&output.stdout);
    let said = said.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.success(), said)
}

fn public_key_pem(key: &RsaKey) -> String {
    let base64 = base64::engine::general_purpose::STANDARD.encode(key.public_key().spki());
    let lines: Vec<&str> =
        base64.as_bytes().chunks(64).map(|l| str::from_utf8(l).unwrap()).collect();
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"))
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_are_signed_in_the_hsm_over_rotations_until_the_last_line() {
    let mut files = DaemonFiles::new();
    let token = Token::softhsm();
    let (user_keys, evidence) = (RsaKey::shared(2048), RsaKey::generate(2048));
    token.import(&user_keys, "object-a", "0a");
    token.import(&evidence, "object-b", "0b");
    files.token("hsm-a", &token);
    let version = Version::active(1, &user_keys, "hsm-a", "pkcs11:object=object-a");
    files.key("user-keys", &["RSA-OAEP"], vec![version]);
    let version = Version::active(1, &evidence, "hsm-a", "pkcs11:object=object-b")
        .with("sign_algorithms", vec![toml::Value::from("RS256")]);
    files.key("evidence", &[], vec![version]);
    let second = files.path("checkpoints");
    files.set("audit.checkpoints.origin", "claviger.example.org/audit");
    files.set("audit.checkpoints.signed_by", "evidence");
    files.set("audit.checkpoints.file", second.to_str().unwrap());
    files.set("audit.checkpoints.every", "100ms");
    let caller = files.caller("key-connector", &["user-keys"], &["unwrap", "wrap"]);
    let daemon = Daemon::start(&mut files);
    let connection =
        Connection::open(daemon.address(), files.pki.ca_der(), Some(&caller)).await.unwrap();
    let wrap = WrapRequest {
        key: "user-keys".into(),
        key_material: MATERIAL.to_vec().into(),
        ..WrapRequest::default()
    };
    let wrapped = connection.wrap(&wrap).await.unwrap().wrapped;
    let unwrap = UnwrapRequest { key: "user-keys".into(), wrapped, ..UnwrapRequest::default() };
    let checkpoints = || {
        let records = files.audit_records();
        records.iter().filter(|record| record["event"] == "checkpoint").count()
    };
    let begun = std::time::Instant::now();
    while checkpoints() < 3 {
        assert!(begun.elapsed().as_secs() < 60, "{}", daemon.log());
        connection.unwrap(&unwrap).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    fs::rename(files.audit_file(), files.path("audit.jsonl.1")).unwrap();
    connection.unwrap(&unwrap).await.unwrap();
    assert_eq!(daemon.terminate().code, Some(0));
    let records = files.audit_records();
    let ends: Vec<&Value> = records.iter().rev().take(2).map(|record| &record["event"]).collect();
    assert_eq!(ends, [&json!("checkpoint"), &json!("stop")], "{records:#?}");

    let pem = public_key_pem(&evidence);
    let spki = files.file("evidence.pem", &pem, 0o644);
    let (_, key) = audit_command(&[
        "public-key",
        "--origin",
        "claviger.example.org/audit",
        "--algorithm",
        "RS256",
        &spki,
    ]);
    let key = files.file("audit.pub", key["public_key"].as_str().unwrap(), 0o644);
    let log = files.audit_file();
    let log = log.to_str().unwrap();
    let verify = ["verify", "--rotated", "--public-key", &key, "--checkpoints"];
    let verify = [&verify[..], &[second.to_str().unwrap(), log]].concat();
    let (is_good, said) = audit_command(&verify);
    assert!(is_good, "{said}");
    let last = records.last().unwrap();
    assert_eq!((&said["signed_until"], &said["files"]), (&last["n"], &json!(2)));

    // Another key of the same token has not signed it.
    let pem = public_key_pem(&user_keys);
    let spki = files.file("other.pem", &pem, 0o644);
    let origin = ["public-key", "--origin", "claviger.example.org/audit", "--algorithm", "RS256"];
    let (_, other) = audit_command(&[&origin[..], &[&spki]].concat());
    files.file("audit.pub", other["public_key"].as_str().unwrap(), 0o644);
    let (is_good, said) = audit_command(&verify);
    assert!(!is_good && said["findings"][0]["what"] == "bad-signature", "{said}");
}

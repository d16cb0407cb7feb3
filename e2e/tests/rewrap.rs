//! Rewrap: the material reaches the target that the grant names and no other, spends what an
//! unwrap spends, fails as an unwrap fails, and is written down with both ends.

use bytes::Bytes;
use claviger_proto::v1::rewrap_batch_result::Result as ItemResult;
use claviger_proto::v1::rewrap_target::Recipient;
use claviger_proto::v1::{
    RewrapBatchRequest, RewrapRequest, RewrapResponse, RewrapSource, RewrapTarget, UnwrapRequest,
};
use claviger_provider_api::public_key::sha256;
use claviger_provider_api::{Algorithm, KeyMaterial, Parameters};
use e2e::connection::frame;
use e2e::encoding::random;
use e2e::{Answer, Backend, Connection, Daemon, DaemonFiles, Identity, RsaKey};
use prost::Message;
use tonic::Code;
use tonic_types::StatusExt;

const MATERIAL: [u8; 32] = *b"thirty-two bytes of key material";
const OAEP: &[&str] = &["RSA-OAEP", "RSA-OAEP-256", "RSA-OAEP-384", "RSA-OAEP-512"];

/// `old` may be moved to `new`, `small`, `disabled` and one device; `forbidden` belongs to another.
struct Setup {
    files: DaemonFiles,
    daemon: Daemon,
    /// May rewrap.
    mover: Identity,
    /// The same caller as in every test, connected.
    connection: Connection,
    /// May unwrap with `old`.
    reader: Connection,
    old: RsaKey,
    new: RsaKey,
    device: RsaKey,
}

impl Setup {
    async fn new(backend: &Backend, algorithms: &[&str]) -> Self {
        let mut files = DaemonFiles::new();
        backend.configure(&mut files);
        let [old, new, small, disabled, forbidden] =
            [2048, 3072, 2048, 2048, 2048].map(RsaKey::generate);
        let device = RsaKey::shared(2048);
        let mut id = 0;
        for (name, key, state) in [
            ("old", &old, "active"),
            ("new", &new, "active"),
            ("small", &small, "active"),
            ("disabled", &disabled, "disabled"),
            ("forbidden", &forbidden, "active"),
            ("retired", &RsaKey::generate(2048), "unwrap-only"),
        ] {
            id += 1;
            let version = backend.version(&files, 7, key, id).with("state", state);
            files.key(name, algorithms, vec![version]);
        }
        let grants = format!(
            r#"[
                {{ keys = ["old"], operations = ["rewrap"], to = ["new", "small", "disabled", "retired"] }},
                {{ keys = ["old"], operations = ["rewrap"], to_public_keys = ["{}"] }},
                {{ keys = ["new", "small"], operations = ["read"] }},
            ]"#,
            device.public_key_sha256()
        );
        let mover = files.caller_with("mover", &grants);
        files.limit("mover", "failed_unwraps", "off");
        let reader = files.caller("reader", &["old"], &["unwrap"]);
        files.limit("reader", "failed_unwraps", "off");
        files.caller("somebody-else", &["forbidden"], &["wrap", "unwrap", "read"]);
        let daemon = Daemon::start(&mut files);
        let connect = async |identity: &Identity| {
            let ca = files.pki.ca_der();
            Connection::open(daemon.address(), ca, Some(identity)).await.unwrap()
        };
        let (connection, reader) = (connect(&mover).await, connect(&reader).await);
        Self { files, daemon, mover, connection, reader, old, new, device }
    }

    /// A rewrap whose answer is seen byte for byte.
    async fn rewrap(&self, request: &RewrapRequest) -> Answer {
        let path = "/claviger.v1.KeyService/Rewrap";
        self.connection.call(path, frame(&request.encode_to_vec()), &[]).await.unwrap()
    }

    /// How many operations reached a key, by the audit log.
    fn operations(&self) -> usize {
        let records = self.files.audit_records();
        records.iter().filter(|record| record["event"] == "operation").count()
    }
}

fn wrap(key: &RsaKey, algorithm: Algorithm, label: &[u8]) -> Bytes {
    let parameters = Parameters { algorithm, label };
    key.public_key().wrap(&KeyMaterial::copied_from(&MATERIAL), &parameters).unwrap().into()
}

fn to(recipient: Recipient, algorithm: &str) -> RewrapTarget {
    let algorithm = algorithm.to_owned();
    RewrapTarget { recipient: Some(recipient), algorithm, label: Bytes::new() }
}

fn to_key(name: &str) -> RewrapTarget {
    to(Recipient::Key(name.to_owned()), "")
}

fn to_device(key: &RsaKey) -> RewrapTarget {
    to(Recipient::PublicKey(key.public_key().spki().to_vec().into()), "RSA-OAEP-256")
}

fn request(source: &str, wrapped: impl Into<Bytes>, target: RewrapTarget) -> RewrapRequest {
    RewrapRequest {
        source: Some(RewrapSource { key: source.to_owned(), ..RewrapSource::default() }),
        wrapped: wrapped.into(),
        target: Some(target),
        max_key_material_len: Some(32),
        approval: None,
    }
}

/// Below every modulus of its length, and under no padding.
fn garbage() -> Vec<u8> {
    let mut bytes = random(256);
    bytes[0] = 0;
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn material_moves_to_a_key_and_to_a_device_on_the_software_provider() {
    material_moves(&Backend::software(), OAEP).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn material_moves_to_a_key_and_to_a_device_on_softhsm() {
    material_moves(&Backend::softhsm(), &["RSA-OAEP"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn material_moves_to_a_key_and_to_a_device_on_kryoptic() {
    material_moves(&Backend::kryoptic(), OAEP).await;
}

async fn material_moves(backend: &Backend, algorithms: &[&str]) {
    let setup = Setup::new(backend, algorithms).await;
    let mut moved = 0;
    for from in algorithms {
        for target in algorithms {
            for label in [&b""[..], b"tenant-a"] {
                // SoftHSM's own OAEP has no labels.
                if backend.name == "SoftHSM" && !label.is_empty() {
                    continue;
                }
                let source = RewrapSource {
                    key: "old".into(),
                    key_version: Some(7),
                    algorithm: (*from).to_owned(),
                    label: label.to_vec().into(),
                };
                let to = RewrapTarget { label: b"new".to_vec().into(), ..to_key("new") };
                let label_to = if backend.name == "SoftHSM" { &b""[..] } else { b"new" };
                let request = RewrapRequest {
                    source: Some(source),
                    wrapped: wrap(&setup.old, from.parse().unwrap(), label),
                    target: Some(RewrapTarget {
                        algorithm: (*target).to_owned(),
                        label: label_to.to_vec().into(),
                        ..to
                    }),
                    max_key_material_len: None,
                    approval: None,
                };
                let answer = setup.connection.rewrap(&request).await.unwrap();
                let algorithm: Algorithm = target.parse().unwrap();
                let material = setup.new.unwrap_oaep(&answer.wrapped, algorithm, label_to);
                assert_eq!(material.as_deref(), Some(&MATERIAL[..]), "{from} to {target}");
                assert_eq!((answer.source_key_version, answer.target_key_version), (7, 7));
                assert_eq!(answer.target_algorithm, *target);
                assert_eq!(answer.target_public_key_sha256, setup.new.public_key().sha256()[..]);
                moved += 1;
            }
        }
    }
    println!("{}: {moved} moves from one key to another", backend.name);

    // A device's key is no key of the daemon's: any OAEP algorithm and label, whatever the token can.
    for target in OAEP {
        let target_with_label = RewrapTarget {
            algorithm: (*target).to_owned(),
            label: b"d".to_vec().into(),
            ..to_device(&setup.device)
        };
        let wrapped = wrap(&setup.old, Algorithm::RsaOaep, b"");
        let answer = setup.connection.rewrap(&request("old", wrapped, target_with_label)).await;
        let answer = answer.unwrap();
        let material = setup.device.unwrap_oaep(&answer.wrapped, target.parse().unwrap(), b"d");
        assert_eq!(material.as_deref(), Some(&MATERIAL[..]), "{target}");
        assert_eq!(answer.target_key_version, 0);
        assert_eq!(answer.target_public_key_sha256, setup.device.public_key().sha256()[..]);
    }

    // A batch moves each item for itself.
    let wrapped = wrap(&setup.old, Algorithm::RsaOaep, b"");
    let mut items = vec![request("old", wrapped.clone(), to_key("new")); 60];
    items[10] = request("old", garbage(), to_key("new"));
    items[20] = request("old", wrapped.clone(), to_key("forbidden"));
    items[30] = request("old", wrapped, to_device(&setup.device));
    let results =
        setup.connection.rewrap_batch(&RewrapBatchRequest { items }).await.unwrap().results;
    assert_eq!(results.len(), 60);
    for (number, result) in results.into_iter().enumerate() {
        let code = match result.result.unwrap() {
            ItemResult::Rewrapped(RewrapResponse { wrapped, .. }) => {
                let (key, algorithm) = match number {
                    30 => (&setup.device, Algorithm::RsaOaep256),
                    _ => (&setup.new, algorithms[0].parse().unwrap()),
                };
                assert_eq!(key.unwrap_oaep(&wrapped, algorithm, b"").unwrap(), MATERIAL);
                Code::Ok
            }
            ItemResult::Error(error) => Code::from(error.code),
        };
        let expected = match number {
            10 => Code::InvalidArgument,
            20 => Code::PermissionDenied,
            _ => Code::Ok,
        };
        assert_eq!(code, expected, "item {number}");
    }
    let none = setup.connection.rewrap_batch(&RewrapBatchRequest::default()).await.unwrap_err();
    let details = none.status().get_error_details();
    assert_eq!(details.bad_request().unwrap().field_violations[0].field, "items");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_after_the_source_is_touched_fails_as_an_unwrap_on_the_software_provider() {
    failures_are_alike(&Backend::software(), OAEP).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_after_the_source_is_touched_fails_as_an_unwrap_on_softhsm() {
    failures_are_alike(&Backend::softhsm(), &["RSA-OAEP"]).await;
}

async fn failures_are_alike(backend: &Backend, algorithms: &[&str]) {
    let setup = Setup::new(backend, algorithms).await;
    let unwrap =
        UnwrapRequest { key: "old".into(), wrapped: garbage().into(), ..Default::default() };
    let uniform = setup.reader.unwrap(&unwrap).await.unwrap_err();

    let good = wrap(&setup.old, Algorithm::RsaOaep, b"");
    let mut flipped = good.to_vec();
    flipped[255] ^= 1;
    let long = KeyMaterial::copied_from(&[7; 33]);
    let long = setup.old.public_key().wrap(&long, &Parameters::of(Algorithm::RsaOaep)).unwrap();
    let mut requests = Vec::new();
    for (what, wrapped) in [
        ("random", garbage()),
        ("all ff", vec![0xff; 256]),
        ("a flipped bit", flipped),
        ("another key's", wrap(&RsaKey::shared(2048), Algorithm::RsaOaep, b"").to_vec()),
        ("another hash", wrap(&setup.old, Algorithm::RsaOaep256, b"").to_vec()),
        ("longer material than expected", long),
    ] {
        requests
            .push((format!("{what}, to a key"), request("old", wrapped.clone(), to_key("new"))));
        requests.push((
            format!("{what}, to a device"),
            request("old", wrapped, to_device(&setup.device)),
        ));
    }
    for (what, request) in &requests {
        let answer = setup.rewrap(request).await;
        assert_eq!(answer.comparable(), uniform.comparable(), "{what} on {}", backend.name);
    }
    let items: Vec<_> = requests.iter().map(|(_, request)| request.clone()).collect();
    let results =
        setup.connection.rewrap_batch(&RewrapBatchRequest { items }).await.unwrap().results;
    let errors: Vec<_> = results
        .into_iter()
        .map(|result| match result.result.unwrap() {
            ItemResult::Error(error) => error,
            ItemResult::Rewrapped(_) => panic!("a bad value was rewrapped"),
        })
        .collect();
    assert!(errors.iter().all(|error| *error == errors[0] && error.code == 3), "{errors:?}");
    assert_eq!(errors[0].message, uniform.status().message());

    // Each is counted and has its own record; the operator sees what no caller does.
    let records = setup.files.audit_records();
    let failed: Vec<_> = records
        .iter()
        .filter(|record| record["operation"] == "rewrap" && record["reason"] == "unwrap_failed")
        .collect();
    assert_eq!(failed.len(), 2 * requests.len());
    let long = failed.iter().filter(|record| record["cause"] == "material_too_long").count();
    assert_eq!(long, 4, "to a key and to a device, alone and in a batch");
    assert!(failed.iter().all(|record| record["target_wrapped_sha256"].is_null()));
    let counted = setup.daemon.metric("claviger_failed_unwraps_total", &["key=\"old\""]);
    assert_eq!(counted.to_string(), (failed.len() + 1).to_string());
    assert!(!setup.daemon.log().contains("replica fails"), "{}", setup.daemon.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_not_granted_looks_like_one_that_does_not_exist() {
    let setup = Setup::new(&Backend::software(), OAEP).await;
    let good = wrap(&setup.old, Algorithm::RsaOaep, b"");
    let stranger = RsaKey::generate(2048);
    let cases = [
        ("a source that does not exist", request("no-such-key", good.clone(), to_key("new"))),
        ("a source that is not granted", request("forbidden", good.clone(), to_key("new"))),
        ("a source for reading only", request("new", good.clone(), to_key("new"))),
        ("a target that does not exist", request("old", good.clone(), to_key("no-such-key"))),
        ("a target without a name", request("old", good.clone(), to_key(""))),
        ("a target of somebody else", request("old", good.clone(), to_key("forbidden"))),
        ("the source itself", request("old", good.clone(), to_key("old"))),
        ("a target that is disabled", request("old", good.clone(), to_key("disabled"))),
        ("a device that is not listed", request("old", good.clone(), to_device(&stranger))),
        ("a key of the daemon's as a device", request("old", good.clone(), to_device(&setup.new))),
        (
            "a version that is absent",
            RewrapRequest {
                source: Some(RewrapSource {
                    key: "old".into(),
                    key_version: Some(9),
                    ..Default::default()
                }),
                ..request("old", good, to_key("new"))
            },
        ),
    ];
    let first = setup.rewrap(&cases[0].1).await;
    assert_eq!(first.code(), Code::PermissionDenied);
    for (what, request) in &cases {
        assert_eq!(setup.rewrap(request).await.comparable(), first.comparable(), "{what}");
    }
    // And as any other operation answers.
    let unwrap = UnwrapRequest { key: "old".into(), ..UnwrapRequest::default() };
    let denied = setup.connection.unwrap(&unwrap).await.unwrap_err();
    assert_eq!(denied.comparable(), first.comparable(), "rewrap is no unwrap");
    let mut request = cases[0].1.clone();
    request.source.as_mut().unwrap().key = "old".into();
    let denied = setup.reader.rewrap(&request).await.unwrap_err();
    assert_eq!(denied.comparable(), first.comparable(), "unwrap is no rewrap");
    assert_eq!(setup.operations(), 0);
    drop(setup.mover);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_field_is_named_before_the_source_is_touched() {
    let setup = Setup::new(&Backend::software(), OAEP).await;
    let good = wrap(&setup.old, Algorithm::RsaOaep, b"");
    let plain = || request("old", good.clone(), to_key("new"));
    let with_source = |change: fn(&mut RewrapSource)| {
        let mut request = plain();
        change(request.source.as_mut().unwrap());
        request
    };
    let with_target = |target: RewrapTarget, change: fn(&mut RewrapTarget)| {
        let mut request = plain();
        let target = request.target.insert(target);
        change(target);
        request
    };
    let new = || to_key("new");
    let device = || to_device(&setup.device);
    let room = |target: RewrapTarget, max| RewrapRequest {
        target: Some(target),
        max_key_material_len: max,
        approval: None,
        ..plain()
    };
    let cases = [
        ("source", RewrapRequest { source: None, ..plain() }),
        ("target", RewrapRequest { target: None, ..plain() }),
        ("target", with_target(new(), |target| target.recipient = None)),
        ("wrapped", RewrapRequest { wrapped: good.slice(1..), ..plain() }),
        ("wrapped", RewrapRequest { wrapped: Bytes::new(), ..plain() }),
        ("source.algorithm", with_source(|source| source.algorithm = "RSA_OAEP".into())),
        ("source.algorithm", with_source(|source| source.algorithm = "RSA1_5".into())),
        ("source.label", with_source(|source| source.label = vec![0; 1025].into())),
        ("target.algorithm", with_target(new(), |target| target.algorithm = "PS256".into())),
        ("target.algorithm", with_target(new(), |target| target.algorithm = "RSA1_5".into())),
        ("target.algorithm", with_target(device(), |target| target.algorithm = "RSA1_5".into())),
        ("target.algorithm", with_target(device(), |target| target.algorithm = String::new())),
        ("target.label", with_target(new(), |target| target.label = vec![0; 1025].into())),
        ("target.label", with_target(device(), |target| target.label = vec![0; 1025].into())),
        ("target.key", with_target(to_key("retired"), |_| {})),
        (
            "target.public_key",
            with_target(to(Recipient::PublicKey(vec![0x30; 2049].into()), ""), |_| {}),
        ),
        // 2048 bits under SHA-1 hold 214 bytes; under SHA-512 they take 126.
        ("target", room(to(Recipient::Key("small".into()), "RSA-OAEP-512"), None)),
        ("target", room(to(Recipient::Key("small".into()), "RSA-OAEP-512"), Some(127))),
    ];
    for (field, request) in &cases {
        let answer = setup.rewrap(request).await;
        assert_eq!(answer.code(), Code::InvalidArgument, "{field}: {answer}");
        let details = answer.status().get_error_details();
        let violations =
            &details.bad_request().unwrap_or_else(|| panic!("{field}: {answer}")).field_violations;
        assert_eq!(violations[0].field, *field, "{answer}");
    }
    assert_eq!(setup.operations(), 0);
    let said = setup.rewrap(&cases[16].1).await;
    let said = said.status().message().to_owned();
    assert!(said.contains("126 bytes") && said.contains("214"), "{said}");
    assert!(said.contains("max_key_material_len"), "{said}");

    // Who says how long the material is at most gets it through.
    let fits = room(to(Recipient::Key("small".into()), "RSA-OAEP-512"), Some(126));
    assert_eq!(setup.rewrap(&fits).await.code(), Code::Ok);
    assert_eq!(setup.operations(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_in_the_place_of_a_public_key_are_not_even_parsed_without_a_grant_for_them() {
    let setup = Setup::new(&Backend::software(), OAEP).await;
    let good = wrap(&setup.old, Algorithm::RsaOaep, b"");
    let spki = setup.device.public_key().spki();
    let mut outcomes = [0; 2];
    for round in 0..2000usize {
        let mut bytes = spki.to_vec();
        let dice = random(4);
        // Each byte of the header in its turn; then anywhere.
        let at = if round < 4 * 40 { round / 4 } else { usize::from(dice[0]) % bytes.len() };
        match round % 4 {
            0 => bytes[at] ^= 1 << (dice[1] % 8),
            1 => bytes[at] = dice[1],
            2 => bytes.truncate(at),
            _ => bytes.insert(at, dice[1]),
        }
        let target = to(Recipient::PublicKey(bytes.clone().into()), "RSA-OAEP");
        let answer = setup.rewrap(&request("old", good.clone(), target)).await;
        match answer.code() {
            // Not a bit was changed.
            Code::Ok => {
                assert_eq!(bytes, spki, "a changed key is another key");
                outcomes[0] += 1;
            }
            Code::PermissionDenied => outcomes[1] += 1,
            other => panic!("{other:?}: {answer} for {}", hex::encode(bytes)),
        }
    }
    println!("{} whole, {} not granted", outcomes[0], outcomes[1]);
    assert!(outcomes[1] > 1500, "{outcomes:?}");
    assert_eq!(setup.operations(), outcomes[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewrap_spends_the_budgets_of_its_source() {
    let mut files = DaemonFiles::new();
    let backend = Backend::software();
    backend.configure(&mut files);
    let (old, new) = (RsaKey::shared(2048), RsaKey::generate(2048));
    for (id, (name, key)) in (1..).zip([("old", &old), ("new", &new)]) {
        let version = backend.version(&files, 1, key, id);
        files.key(name, &["RSA-OAEP"], vec![version]);
    }
    let both =
        r#"[{ keys = ["old", "new"], operations = ["unwrap", "rewrap"], to = ["new", "old"] }]"#;
    let fails = files.caller_with("fails", both);
    files.limit("fails", "failed_unwraps", "10/h");
    let hurries = files.caller_with("hurries", both);
    files.limit("hurries", "rate", "5/h");
    let daemon = Daemon::start(&mut files);
    let connect = async |identity: &Identity| {
        let ca = files.pki.ca_der();
        Connection::open(daemon.address(), ca, Some(identity)).await.unwrap()
    };
    let fails = connect(&fails).await;
    let bad = || request("old", garbage(), to_key("new"));
    let bad_unwrap =
        || UnwrapRequest { key: "old".into(), wrapped: garbage().into(), ..Default::default() };
    // Rewraps, items of a batch and unwraps draw on one budget.
    for _ in 0..4 {
        assert_eq!(fails.rewrap(&bad()).await.unwrap_err().code(), Code::InvalidArgument);
    }
    fails.rewrap_batch(&RewrapBatchRequest { items: vec![bad(), bad(), bad()] }).await.unwrap();
    for _ in 0..3 {
        assert_eq!(fails.unwrap(&bad_unwrap()).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let good = request("old", wrap(&old, Algorithm::RsaOaep, b""), to_key("new"));
    for request in [&bad(), &good] {
        let answer = fails.rewrap(request).await.unwrap_err();
        assert_eq!(answer.code(), Code::ResourceExhausted, "{answer}");
        let details = answer.status().get_error_details();
        assert!(details.retry_info().unwrap().retry_delay.unwrap().as_secs() > 3000, "{answer}");
    }
    assert_eq!(fails.unwrap(&bad_unwrap()).await.unwrap_err().code(), Code::ResourceExhausted);
    // The target's own budget is whole.
    let other_way = request("new", wrap(&new, Algorithm::RsaOaep, b""), to_key("old"));
    let moved = fails.rewrap(&other_way).await.unwrap();
    assert_eq!(old.unwrap_oaep(&moved.wrapped, Algorithm::RsaOaep, b"").unwrap(), MATERIAL);

    let hurries = connect(&hurries).await;
    for _ in 0..5 {
        hurries.rewrap(&good).await.unwrap();
    }
    let answer = hurries.rewrap(&good).await.unwrap_err();
    assert_eq!(answer.code(), Code::ResourceExhausted, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_record_tells_both_ends_of_a_rewrap() {
    let setup = Setup::new(&Backend::software(), OAEP).await;
    let wrapped = wrap(&setup.old, Algorithm::RsaOaep, b"");
    let moved = setup.connection.rewrap(&request("old", wrapped.clone(), to_key("new"))).await;
    let moved = moved.unwrap();
    let to_device_of = request("old", wrapped.clone(), to_device(&setup.device));
    let given = setup.connection.rewrap(&to_device_of).await.unwrap();
    let denied = request("old", wrapped.clone(), to_key("forbidden"));
    assert_eq!(setup.rewrap(&denied).await.code(), Code::PermissionDenied);

    // The record of a refusal is not waited for.
    let begun = std::time::Instant::now();
    let records = loop {
        let mut records = setup.files.audit_records();
        records.retain(|record| record["operation"] == "rewrap");
        if records.len() == 3 || begun.elapsed().as_secs() > 30 {
            break records;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    let [to_key, to_device, refused] = records.as_slice() else { panic!("{records:#?}") };
    let source = serde_json::json!({
        "event": "operation", "outcome": "ok", "caller": "mover", "key": "old", "version": 7,
        "provider": "backend", "algorithm": "RSA-OAEP", "wrapped_sha256": hex::encode(sha256(&wrapped)),
    });
    for record in [to_key, to_device] {
        for (name, value) in source.as_object().unwrap() {
            assert_eq!(record[name], *value, "{name} of {record}");
        }
    }
    let hash = |bytes: &[u8]| serde_json::json!(hex::encode(sha256(bytes)));
    assert_eq!((&to_key["target_key"], &to_key["target_version"]), (&"new".into(), &7.into()));
    assert_eq!(to_key["target_public_key_sha256"], setup.new.public_key_sha256());
    assert_eq!(to_key["target_algorithm"], "RSA-OAEP");
    assert_eq!(to_key["target_wrapped_sha256"], hash(&moved.wrapped));
    assert!(to_device["target_key"].is_null() && to_device["target_version"].is_null());
    assert_eq!(to_device["target_public_key_sha256"], setup.device.public_key_sha256());
    assert_eq!(to_device["target_algorithm"], "RSA-OAEP-256");
    assert_eq!(to_device["target_wrapped_sha256"], hash(&given.wrapped));
    assert_eq!(
        (&refused["event"], &refused["target_key"]),
        (&"refusal".into(), &"forbidden".into())
    );
    let text = std::fs::read_to_string(setup.files.audit_file()).unwrap();
    assert!(!text.contains(&hex::encode(MATERIAL)) && !text.contains("thirty-two"));
}

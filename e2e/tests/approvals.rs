//! Rewraps to a public key that a person approved: the daemon looks at the approver's ID token itself.

use bytes::Bytes;
use claviger_proto::v1::rewrap_target::Recipient;
use claviger_proto::v1::{Approval, RewrapRequest, RewrapSource, RewrapTarget};
use claviger_provider_api::Algorithm;
use claviger_tokens::approval_nonce;
use e2e::daemon::claviger;
use e2e::issuer::seconds;
use e2e::process::{command, run};
use e2e::setup::{KEY, MATERIAL, client_file};
use e2e::{Answer, Connection, Daemon, Identity, Issuer, RsaKey, Setup};
use serde_json::{Value, json};
use tonic::Code;

/// A daemon whose caller `connector` may rewrap to what an approver approved, and to nothing else.
struct Stage {
    setup: Setup,
    issuer: Issuer,
    connector: Identity,
    /// The device that asks for the key.
    device: RsaKey,
}

impl Stage {
    fn new() -> Self {
        let (mut setup, issuer) = (Setup::software(), Issuer::start());
        setup.files.set("issuers.corp.issuer", issuer.name());
        setup.files.set("issuers.corp.audiences", vec![toml::Value::from("claviger")]);
        let grant = format!(
            r#"[{{ keys = ["{KEY}"], operations = ["rewrap"], to_approved = {{ issuer = "corp", audiences = ["approvals"], claims = {{ groups = "device-approvers" }}, max_age = "15m" }} }}]"#
        );
        let connector = setup.files.caller_with("connector", &grant);
        setup.files.limit("connector", "failed_unwraps", "off");
        Self { setup, issuer, connector, device: RsaKey::generate(2048) }
    }

    async fn connect(&self, daemon: &Daemon) -> Connection {
        self.setup.connect_as(daemon, &self.connector).await
    }

    /// An ID token of an approver, for this value, this key and this time.
    fn approval_of(&self, wrapped: &[u8], key: &RsaKey, expires: u64, claims: &Value) -> Approval {
        let nonce = approval_nonce(wrapped, &key.public_key().sha256(), expires);
        let mut all = json!({
            "aud": "approvals", "groups": ["staff", "device-approvers"], "nonce": nonce,
        });
        e2e::issuer::change(&mut all, claims);
        Approval { id_token: self.issuer.token("alice", &all), expires }
    }

    fn approval(&self) -> Approval {
        self.approval_of(&self.setup.wrapped, &self.device, soon(), &json!({}))
    }

    fn request(&self, approval: Option<Approval>) -> RewrapRequest {
        request(&self.setup.wrapped, &self.device, approval)
    }
}

fn soon() -> u64 {
    u64::try_from(seconds()).unwrap() + 600
}

fn request(wrapped: &[u8], key: &RsaKey, approval: Option<Approval>) -> RewrapRequest {
    RewrapRequest {
        source: Some(RewrapSource { key: KEY.into(), ..RewrapSource::default() }),
        wrapped: Bytes::copy_from_slice(wrapped),
        target: Some(RewrapTarget {
            recipient: Some(Recipient::PublicKey(Bytes::copy_from_slice(key.public_key().spki()))),
            algorithm: "RSA-OAEP".into(),
            label: Bytes::new(),
        }),
        max_key_material_len: Some(64),
        approval,
    }
}

async fn rewrap(connection: &Connection, request: &RewrapRequest) -> Result<Vec<u8>, Answer> {
    connection.rewrap(request).await.map(|answer| answer.wrapped.to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approved_device_gets_the_key_and_the_record_names_who_approved() {
    let mut stage = Stage::new();
    let daemon = stage.setup.start();
    let connection = stage.connect(&daemon).await;
    let approval = stage.approval();
    let wrapped = rewrap(&connection, &stage.request(Some(approval.clone()))).await.unwrap();
    let opened = stage.device.unwrap_oaep(&wrapped, Algorithm::RsaOaep, b"");
    assert_eq!(opened.as_deref(), Some(&MATERIAL[..]));
    // Sent again before it expires it goes to the same device, and to no other.
    rewrap(&connection, &stage.request(Some(approval.clone()))).await.unwrap();
    let other = RsaKey::generate(2048);
    let swapped = request(&stage.setup.wrapped, &other, Some(approval.clone()));
    assert_eq!(rewrap(&connection, &swapped).await.unwrap_err().code(), Code::PermissionDenied);

    let of_caller = stage.setup.files.audit_records_of("connector", 3);
    assert_eq!(of_caller.len(), 3);
    for record in &of_caller[..2] {
        assert_eq!(record["outcome"], "ok", "{record}");
        assert_eq!(
            (&record["approver_issuer"], &record["approver"]),
            (&json!("corp"), &json!("alice"))
        );
        assert_eq!(record["approval_sha256"].as_str().unwrap().len(), 64);
        assert_eq!(record["target_public_key_sha256"], stage.device.public_key_sha256());
    }
    assert_eq!(of_caller[2]["cause"], "approval_nonce");
    let written = std::fs::read_to_string(stage.setup.files.audit_file()).unwrap() + &daemon.log();
    assert!(!written.contains(approval.id_token.rsplit('.').next().unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_sends_an_approval_from_a_file() {
    let mut stage = Stage::new();
    let daemon = stage.setup.start();
    let client = client_file(&stage.setup.files, &daemon, &stage.connector);
    let approval = stage.approval();
    let token = stage.setup.files.file("id-token", &format!("{}\n", approval.id_token), 0o600);
    let spki = stage.device.public_key().spki();
    let pem = claviger_files::pem::encode("PUBLIC KEY", spki);
    let public_key = stage.setup.files.file("device.pem", &pem, 0o644);
    let expires = approval.expires.to_string();
    let wrapped = stage.setup.files.path("wrapped.bin");
    std::fs::write(&wrapped, &stage.setup.wrapped).unwrap();
    let output = run(command(claviger())
        .args(["rewrap", KEY, "--to-public-key", &public_key, "--to-algorithm", "RSA-OAEP"])
        .args(["--max-key-material-len", "64", "--approval", &token])
        .args(["--approval-expires", &expires, "--client"])
        .arg(client)
        .stdin(std::fs::File::open(wrapped).unwrap()));
    let opened = stage.device.unwrap_oaep(&output.stdout, Algorithm::RsaOaep, b"");
    assert_eq!(opened.as_deref(), Some(&MATERIAL[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_approved_is_refused_alike_before_a_key_is_asked() {
    let mut stage = Stage::new();
    let daemon = stage.setup.start();
    let connection = stage.connect(&daemon).await;
    let (wrapped, device, now) = (&stage.setup.wrapped, &stage.device, soon() - 600);
    let with = |claims: Value| stage.approval_of(wrapped, device, soon(), &claims);
    let forged = {
        let good = stage.approval();
        let (signed, _) = good.id_token.rsplit_once('.').unwrap();
        Approval { id_token: format!("{signed}.{}", e2e::issuer::part([7; 256])), ..good }
    };
    let another_value = stage.setup.wrap_again();
    let cases: Vec<(&str, Option<&str>, Option<Approval>)> = vec![
        ("no approval", None, None),
        (
            "no token",
            Some("approval_token"),
            Some(Approval { expires: soon(), ..Approval::default() }),
        ),
        (
            "another key",
            Some("approval_nonce"),
            Some(stage.approval_of(wrapped, &RsaKey::generate(2048), soon(), &json!({}))),
        ),
        (
            "another value",
            Some("approval_nonce"),
            Some(stage.approval_of(&another_value, device, soon(), &json!({}))),
        ),
        (
            "another expiry",
            Some("approval_nonce"),
            Some(Approval { expires: soon() + 1, ..stage.approval() }),
        ),
        (
            "expired",
            Some("approval_expired"),
            Some(stage.approval_of(wrapped, device, now - 1, &json!({}))),
        ),
        (
            "for a day",
            Some("approval_too_long"),
            Some(stage.approval_of(wrapped, device, now + 86_400, &json!({}))),
        ),
        (
            "for ever",
            Some("approval_too_long"),
            Some(stage.approval_of(wrapped, device, u64::MAX, &json!({}))),
        ),
        ("no nonce", Some("approval_nonce"), Some(with(json!({ "nonce": null })))),
        ("another nonce", Some("approval_nonce"), Some(with(json!({ "nonce": "n-0S6_WzA2Mj" })))),
        (
            "another group",
            Some("approval_by_no_approver"),
            Some(with(json!({ "groups": ["staff"] }))),
        ),
        ("no group", Some("approval_by_no_approver"), Some(with(json!({ "groups": null })))),
        (
            "for the daemon, not for approvals",
            Some("approval_token"),
            Some(with(json!({ "aud": "claviger" }))),
        ),
        (
            "another issuer",
            Some("approval_token"),
            Some(with(json!({ "iss": "https://elsewhere" }))),
        ),
        ("signed in an hour ago", Some("approval_token"), Some(with(json!({ "iat": now - 3600 })))),
        ("token expired", Some("approval_token"), Some(with(json!({ "exp": now - 60 })))),
        ("wrong signature", Some("approval_token"), Some(forged)),
    ];
    let mut first: Option<String> = None;
    for (what, _, approval) in &cases {
        let answer = rewrap(&connection, &stage.request(approval.clone())).await.unwrap_err();
        assert_eq!(answer.code(), Code::PermissionDenied, "{what}: {answer}");
        let comparable = answer.comparable();
        assert_eq!(first.get_or_insert(comparable.clone()), &comparable, "{what}");
    }
    // Five refusals have a line of their own; what is asked anew has one again only later.
    let records = stage.setup.files.audit_records_of("connector", 5);
    for (record, (what, cause, _)) in records.iter().zip(&cases).take(5) {
        assert_eq!(record["cause"].as_str(), *cause, "{what}: {record}");
    }
    // A key of the daemon's own is no target of an approval.
    let mut to_key = stage.request(Some(stage.approval()));
    to_key.target.as_mut().unwrap().recipient = Some(Recipient::Key(KEY.into()));
    assert_eq!(rewrap(&connection, &to_key).await.unwrap_err().code(), Code::PermissionDenied);
    // Nothing has reached the key but its canaries.
    let (_, metrics) = daemon.operations_get("/metrics").unwrap();
    let done = metrics.lines().any(|line| {
        line.starts_with("claviger_calls_total{")
            && line.contains("rewrap")
            && line.contains("\"ok\"")
    });
    assert!(!done, "{metrics}");
    rewrap(&connection, &stage.request(Some(stage.approval()))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_of_an_issuer_that_is_away_is_unavailable_and_safe_to_repeat() {
    let mut stage = Stage::new();
    stage.issuer.set_up(false);
    let daemon = stage.setup.start();
    let connection = stage.connect(&daemon).await;
    let request = stage.request(Some(stage.approval()));
    assert_eq!(rewrap(&connection, &request).await.unwrap_err().code(), Code::Unavailable);
    stage.issuer.set_up(true);
    let begun = std::time::Instant::now();
    while rewrap(&connection, &request).await.is_err() {
        assert!(begun.elapsed().as_secs() < 60, "{}", daemon.log());
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

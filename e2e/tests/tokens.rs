//! Callers by token: which tokens are good, what is written down of them, and what becomes of them when
//! their issuer changes its keys or is away.

#[path = "tokens/bad.rs"]
mod bad;
#[path = "tokens/issuers.rs"]
mod issuers;
#[path = "tokens/keycloak.rs"]
mod keycloak;
#[path = "tokens/login.rs"]
mod login;

use std::time::{Duration, Instant};

use claviger_proto::v1::UnwrapResponse;
use e2e::connection::frame;
use e2e::issuer::part;
use e2e::setup::{KEY, MATERIAL};
use e2e::{Answer, Connection, Daemon, Identity, Issuer, Setup};
use prost::Message;
use serde_json::{Value, json};
use tonic::Code;

/// A daemon that trusts an issuer, and a client of the CA that is no caller by its certificate.
struct Stage {
    setup: Setup,
    issuer: Issuer,
    gateway: Identity,
}

impl Stage {
    /// The caller `approver` is who has `hsm-approvers` among the groups, `robot` the subject `robot-1`.
    fn new() -> Self {
        let (mut setup, issuer) = (Setup::software(), Issuer::start());
        setup.files.set("issuers.corp.issuer", issuer.name());
        setup.files.set("issuers.corp.audiences", vec![toml::Value::from("claviger")]);
        let groups = r#"issuer = "corp", claims = { groups = "hsm-approvers" }"#;
        setup.files.token_caller("approver", groups, &[KEY], &["unwrap", "read"]);
        let robot = r#"issuer = "corp", subject = "robot-1""#;
        setup.files.token_caller("robot", robot, &[KEY], &["unwrap", "read"]);
        let gateway = setup.files.pki.client("spiffe://example.org/gateway");
        Self { setup, issuer, gateway }
    }

    async fn connect(&self, daemon: &Daemon) -> Connection {
        self.setup.connect_as(daemon, &self.gateway).await
    }

    async fn call(&self, connection: &Connection, token: &str) -> Answer {
        self.call_with(connection, &[("authorization", &format!("Bearer {token}"))]).await
    }

    async fn call_with(&self, connection: &Connection, headers: &[(&str, &str)]) -> Answer {
        let body = frame(&self.setup.request().encode_to_vec());
        connection.call("/claviger.v1.KeyService/Unwrap", body, headers).await.unwrap()
    }

    /// A good token of the caller `robot`.
    fn robot(&self) -> String {
        self.issuer.token("robot-1", &json!({}))
    }
}

fn check_material(answer: &Answer) {
    assert_eq!(answer.code(), Code::Ok, "{answer}");
    assert_eq!(&*answer.message::<UnwrapResponse>().key_material, MATERIAL);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_says_who_calls_and_the_record_names_it_and_never_holds_it() {
    let mut stage = Stage::new();
    let daemon = stage.setup.start();
    let connection = stage.connect(&daemon).await;
    // Its certificate alone makes it no caller.
    assert_eq!(stage.call_with(&connection, &[]).await.code(), Code::Unauthenticated);
    let approver = stage.issuer.token("alice", &json!({ "groups": ["staff", "hsm-approvers"] }));
    let robot = stage.robot();
    for token in [&approver, &robot, &approver, &robot] {
        check_material(&stage.call(&connection, token).await);
    }
    // A caller by certificate stays what it is, and a token of its own makes it the token's caller.
    assert_eq!(stage.setup.ask(&daemon).await, Code::Ok);
    let own = stage.setup.connect(&daemon).await;
    check_material(&stage.call(&own, &robot).await);
    let refused = stage.call(&own, &stage.issuer.token("unknown", &json!({}))).await;
    assert_eq!(refused.code(), Code::Unauthenticated);

    let records = stage.setup.files.audit_records();
    let unwraps = |caller: &str| -> Vec<&Value> {
        let of = |record: &&Value| record["caller"] == caller && record["operation"] == "unwrap";
        records.iter().filter(of).collect()
    };
    assert_eq!((unwraps("approver").len(), unwraps("robot").len()), (2, 3));
    assert_eq!(unwraps("key-connector").len(), 1);
    assert_eq!(unwraps("key-connector")[0]["issuer"], Value::Null);
    let (record, sha256) = (unwraps("approver")[0], sha256(&approver));
    assert_eq!(record["issuer"], "corp");
    assert_eq!(record["subject"], "alice");
    assert_eq!(record["token_sha256"], sha256.as_str());
    assert_eq!(record["identity"], "spiffe://example.org/gateway");
    let unknown = records.iter().find(|record| record["subject"] == "unknown").unwrap();
    assert_eq!(unknown["reason"], "no_caller_matches");
    let written = std::fs::read_to_string(stage.setup.files.audit_file()).unwrap() + &daemon.log();
    for token in [&approver, &robot] {
        let signature = token.rsplit('.').next().unwrap();
        assert!(!written.contains(signature), "a token was written down");
    }
}

fn sha256(text: &str) -> String {
    hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_needed_beside_the_token_but_where_the_listener_says_optional() {
    let mut stage = Stage::new();
    let daemon = stage.setup.start();
    let ca = stage.setup.files.pki.ca_der();
    // TLS 1.3: the refusal comes with the first call.
    let without = Connection::open(daemon.address(), ca.clone(), None).await;
    if let Ok(without) = without {
        let body = frame(&stage.setup.request().encode_to_vec());
        let bearer = format!("Bearer {}", stage.robot());
        let headers = [("authorization", bearer.as_str())];
        assert!(without.call("/claviger.v1.KeyService/Unwrap", body, &headers).await.is_err());
    }
    drop(daemon);

    let address = stage.setup.files.address().to_string();
    let listen = toml::toml! { client_certificate = "optional" };
    let mut listen = toml::Value::from(listen);
    listen.as_table_mut().unwrap().insert("address".into(), address.into());
    stage.setup.files.set("server.listen", vec![listen]);
    let mut daemon = Daemon::spawn(&stage.setup.files);
    daemon.wait_until_ready().unwrap();
    assert!(daemon.log().contains("a token alone says who it is"), "{}", daemon.log());
    let without = Connection::open(daemon.address(), ca, None).await.unwrap();
    assert_eq!(stage.call_with(&without, &[]).await.code(), Code::Unauthenticated);
    check_material(&stage.call(&without, &stage.robot()).await);
    assert_eq!(stage.setup.ask(&daemon).await, Code::Ok, "a certificate that is shown counts");
    let records = stage.setup.files.audit_records();
    let robot = records.iter().find(|record| record["caller"] == "robot").unwrap();
    assert_eq!((&robot["identity"], &robot["subject"]), (&Value::Null, &json!("robot-1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_match_may_ask_for_a_certificate_beside_the_token_and_a_subject_can_be_denied() {
    let mut stage = Stage::new();
    let found = r#"issuer = "corp", subject = "carol", spiffe = "spiffe://example.org/gateway""#;
    stage.setup.files.token_caller("carol", found, &[KEY], &["unwrap"]);
    let denied = stage.setup.files.file("denied", "# none\n", 0o600);
    stage.setup.files.set("server.denied_callers", denied);
    let daemon = stage.setup.start();
    let token = stage.issuer.token("carol", &json!({}));
    let (gateway, other) = (stage.connect(&daemon).await, stage.setup.connect(&daemon).await);
    check_material(&stage.call(&gateway, &token).await);
    assert_eq!(stage.call(&other, &token).await.code(), Code::Unauthenticated);

    let bound = |certificate: &Identity| {
        let sha256 = aws_lc_rs::digest::digest(
            &aws_lc_rs::digest::SHA256,
            certificate.certificate().as_ref(),
        );
        json!({ "cnf": { "x5t#S256": part(sha256) } })
    };
    let token = stage.issuer.token("robot-1", &bound(&stage.gateway));
    check_material(&stage.call(&gateway, &token).await);
    assert_eq!(stage.call(&other, &token).await.code(), Code::Unauthenticated);

    check_material(&stage.call(&gateway, &stage.robot()).await);
    stage.setup.files.file("denied", "token:corp:robot-1\n", 0o600);
    let begun = Instant::now();
    while stage.call(&gateway, &stage.robot()).await.code() != Code::Unauthenticated {
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_change_twice_in_a_row_fail_no_call() {
    let mut stage = Stage::new();
    let daemon = stage.setup.start();
    let connection = stage.connect(&daemon).await;
    check_material(&stage.call(&connection, &stage.robot()).await);
    for kid in ["k2", "k3"] {
        let old = stage.robot();
        stage.issuer.change_key(kid);
        let token = stage.robot();
        let calls = (0..20).map(|_| stage.call(&connection, &token));
        for answer in futures::future::join_all(calls).await {
            check_material(&answer);
        }
        // The old key is gone, and what it signed with it.
        assert_eq!(stage.call(&connection, &old).await.code(), Code::Unauthenticated);
    }
    // Once at the start, once for each change; the old tokens had the third ask at most.
    let asked = stage.issuer.asked();
    assert!((3..=5).contains(&asked), "asked {asked} times");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_is_away_is_lived_without_until_its_keys_are_too_old() {
    let mut stage = Stage::new();
    stage.setup.files.set("issuers.corp.keys_max_age", "4s");
    stage.setup.files.set("issuers.corp.cache_time", "1s");
    stage.issuer.set_up(false);
    let daemon = stage.setup.start();
    let connection = stage.connect(&daemon).await;
    let before = stage.call(&connection, &stage.robot()).await;
    assert_eq!(before.code(), Code::Unavailable, "{before}");
    assert!(before.status_message().contains("issuer"), "{before}");
    stage.issuer.set_up(true);
    wait_for(&stage, &daemon, &connection, Code::Ok).await;
    stage.issuer.set_up(false);
    check_material(&stage.call(&connection, &stage.robot()).await);
    wait_for(&stage, &daemon, &connection, Code::Unavailable).await;
    assert!(daemon.log().contains("the issuer's keys cannot be had"), "{}", daemon.log());
    let (_, metrics) = daemon.operations_get("/metrics").unwrap();
    assert!(metrics.contains("claviger_issuer_ready{issuer=\"corp\"} 0"), "{metrics}");
    // Who comes with a certificate does not notice.
    assert_eq!(stage.setup.ask(&daemon).await, Code::Ok);
    stage.issuer.set_up(true);
    wait_for(&stage, &daemon, &connection, Code::Ok).await;
    let records = stage.setup.files.audit_records();
    let trusted = records.iter().find(|record| record["what"] == "issuer_keys").unwrap();
    assert_eq!(trusted["name"], "corp");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: ten minutes and a half"]
async fn an_issuer_may_be_away_for_ten_minutes_and_then_a_clear_error_is_the_answer() {
    const AWAY: Duration = Duration::from_secs(590);
    let mut stage = Stage::new();
    stage.setup.files.set("issuers.corp.keys_max_age", "10m");
    stage.setup.files.set("issuers.corp.cache_time", "1m");
    let daemon = stage.setup.start();
    let connection = stage.connect(&daemon).await;
    wait_for(&stage, &daemon, &connection, Code::Ok).await;
    let known = Instant::now();
    stage.issuer.set_up(false);
    let mut calls = 0;
    while known.elapsed() < AWAY {
        check_material(&stage.call(&connection, &stage.robot()).await);
        calls += 1;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    wait_for(&stage, &daemon, &connection, Code::Unavailable).await;
    let away = known.elapsed();
    println!(
        "{calls} calls without a failure; the keys were trusted for {:.0} s",
        away.as_secs_f64()
    );
    assert!(away >= AWAY, "the keys are trusted for ten minutes, less what the start took");
    let refused = stage.call(&connection, &stage.robot()).await;
    assert!(refused.status_message().contains("issuer"), "{refused}");
    stage.issuer.set_up(true);
    wait_for(&stage, &daemon, &connection, Code::Ok).await;
}

async fn wait_for(stage: &Stage, daemon: &Daemon, connection: &Connection, code: Code) {
    let begun = Instant::now();
    loop {
        let answer = stage.call(connection, &stage.robot()).await;
        if answer.code() == code {
            return;
        }
        assert!(begun.elapsed() < Duration::from_mins(1), "{answer}\n{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_wrong_signatures_without_end_is_stopped_and_others_are_not() {
    let mut stage = Stage::new();
    let daemon = stage.setup.start();
    let (connection, other) = (stage.connect(&daemon).await, stage.setup.connect(&daemon).await);
    check_material(&stage.call(&connection, &stage.robot()).await);
    let good = stage.robot();
    let (signed, _) = good.rsplit_once('.').unwrap();
    let begun = Instant::now();
    let mut sent = 0_u64;
    loop {
        let forged = format!("{signed}.{}", part(sent.to_be_bytes().repeat(32)));
        let code = stage.call(&connection, &forged).await.code();
        sent += 1;
        if code == Code::ResourceExhausted {
            break;
        }
        assert_eq!(code, Code::Unauthenticated);
        assert!(begun.elapsed() < Duration::from_mins(1), "{sent} were looked at");
    }
    assert!(sent > 20, "{sent}");
    check_material(&stage.call(&other, &stage.robot()).await);
    // What is known to be good needs no signature.
    check_material(&stage.call(&other, &good).await);
}

//! `claviger doctor` on network services: a small server says what AWS KMS and Vault were seen to
//! say, and each has its diagnosis.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use e2e::daemon::claviger;
use e2e::pki::replace;
use e2e::process::command;
use e2e::setup::KEY;
use e2e::test_service::StoredKey;
use e2e::{Daemon, DaemonFiles, Pki, RsaKey, ServiceKind, Setup, TestService, Version};
use serde_json::{Value, json};
use toml::Table;
use tonic::Code;

/// Status and body for a path.
type Answer = dyn Fn(&str) -> (u16, String) + Send + Sync;

/// A server on loopback that answers each request on a connection of its own.
fn server(answer: impl Fn(&str) -> (u16, String) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port on loopback");
    let address = listener.local_addr().expect("it is bound");
    let answer: Arc<Answer> = Arc::new(answer);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let answer = Arc::clone(&answer);
            // A client that goes away in the middle is its own matter.
            thread::spawn(move || drop(answer_one(stream, &*answer)));
        }
    });
    address
}

fn answer_one(mut stream: TcpStream, answer: &Answer) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut length = 0;
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    reader.take(length).read_to_end(&mut Vec::new())?;
    let (status, body) = answer(&path);
    write!(
        stream,
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// The only trouble of the only replica, and the exit code.
fn trouble(files: &DaemonFiles) -> (String, Option<i32>, Value) {
    files.write();
    let output = command(claviger())
        .args(["doctor", "--json", "--config"])
        .arg(files.configuration_file())
        .output()
        .expect("the binary starts");
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    assert!(!report.to_string().contains("hvs.secret") && !report.to_string().contains("wJalrX"));
    let replica = report["keys"][0]["versions"][0]["replicas"][0].clone();
    let troubles = replica["troubles"].as_array().expect("a list");
    assert_eq!(troubles.len(), 1, "{report:#}");
    let word = troubles[0]["diagnosis"].as_str().expect("a word").to_owned();
    (word, output.status.code(), replica)
}

fn options(text: &str) -> Table {
    text.parse().expect("options in TOML")
}

/// A configuration with a key in Transit at `address`.
fn vault(address: &str) -> DaemonFiles {
    let mut files = DaemonFiles::new();
    replace(&files.path("token"), "hvs.secret\n", 0o600);
    let token = files.path("token").display().to_string();
    files.provider(
        "vault",
        options(&format!(
            "type = \"vault-transit\"\naddress = {address:?}\nauth = {{ token = {{ file = {token:?} }} }}"
        )),
    );
    let version = Version::active(1, &RsaKey::shared(2048), "vault", "transit/user-keys:1");
    files.key(KEY, &["RSA-OAEP-256"], vec![version]);
    files
}

/// A configuration with a key in KMS at `endpoint`.
fn aws(endpoint: &str) -> DaemonFiles {
    let mut files = DaemonFiles::new();
    replace(&files.path("id"), "AKIAIOSFODNN7EXAMPLE\n", 0o600);
    replace(&files.path("secret"), "wJalrXUtnFEMIexample\n", 0o600);
    let [id, secret] = ["id", "secret"].map(|name| files.path(name).display().to_string());
    files.provider(
        "aws",
        options(&format!(
            "type = \"aws-kms\"\nregion = \"eu-central-1\"\nendpoint = {endpoint:?}\ncredentials = {{ access_key_id = {{ file = {id:?} }}, secret_access_key = {{ file = {secret:?} }} }}"
        )),
    );
    let locator = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    let version = Version::active(1, &RsaKey::shared(2048), "aws", locator);
    files.key(KEY, &["RSA-OAEP-256"], vec![version]);
    files
}

#[test]
fn what_vault_says_has_its_diagnosis() {
    let good_token = (200, r#"{"data":{"ttl":3600,"renewable":true}}"#);
    let denied = r#"{"errors":["1 error occurred:\n\t* permission denied\n\n"]}"#;
    let sealed = r#"{"errors":["Vault is sealed"]}"#;
    // To the look-up of the token, and to everything else.
    for (look_up, other, word, exit, steps) in [
        ((503, sealed), (503, sealed), "sealed", 69, [json!(true), json!(false)]),
        // Revoked or expired.
        ((403, denied), (403, denied), "credentials-refused", 78, [json!(true), json!(false)]),
        (good_token, (403, denied), "not-permitted", 78, [json!(true), json!(true)]),
        (good_token, (404, r#"{"errors":[]}"#), "key-absent", 78, [json!(true), json!(true)]),
        (good_token, (429, r#"{"errors":["quota"]}"#), "throttled", 75, [json!(true), Value::Null]),
        (
            good_token,
            (500, r#"{"errors":["x"]}"#),
            "backend-failing",
            69,
            [json!(true), Value::Null],
        ),
    ] {
        let address = server(move |path| {
            let (status, body) = if path.ends_with("lookup-self") { look_up } else { other };
            (status, body.to_owned())
        });
        let (found, code, replica) = trouble(&vault(&format!("http://{address}")));
        assert_eq!((found.as_str(), code), (word, Some(exit)), "{replica:#}");
        assert_eq!([&replica["reachable"], &replica["authenticated"]], steps.each_ref());
    }
}

#[test]
fn a_vault_that_would_hand_the_key_out_is_found_out() {
    let key = RsaKey::shared(2048);
    let body = json!({ "data": {
        "type": "rsa-2048", "latest_version": 1, "min_decryption_version": 1, "exportable": true,
        "keys": { "1": { "public_key": pem(key.public_key().spki()) } },
    }});
    let address = server(move |path| match path {
        _ if path.ends_with("lookup-self") => (200, r#"{"data":{"ttl":0}}"#.to_owned()),
        "/v1/transit/keys/user-keys" => (200, body.to_string()),
        _ => (500, r#"{"errors":["failed to RSA decrypt the ciphertext"]}"#.to_owned()),
    });
    // It cannot unwrap, but the key was seen.
    let (word, code, replica) = trouble(&vault(&format!("http://{address}")));
    assert_eq!((word.as_str(), code), ("algorithm-not-offered", Some(78)), "{replica:#}");
    assert_eq!((&replica["extractable"], &replica["modulus_bits"]), (&json!(true), &json!(2048)));
    assert_eq!(replica["algorithms"][0]["proven"], false);
}

#[test]
fn what_aws_says_has_its_diagnosis() {
    for (code, status, word, exit) in [
        ("ExpiredTokenException", 400, "credentials-refused", 78),
        ("UnrecognizedClientException", 400, "credentials-refused", 78),
        ("AccessDeniedException", 400, "not-permitted", 78),
        ("NotFoundException", 400, "key-absent", 78),
        ("DisabledException", 400, "key-disabled", 78),
        ("KMSInvalidStateException", 400, "key-disabled", 78),
        ("ThrottlingException", 400, "throttled", 75),
        ("KMSInternalException", 500, "backend-failing", 69),
    ] {
        let address =
            server(move |_| (status, format!(r#"{{"__type":"{code}","message":"as KMS says"}}"#)));
        let (found, exit_code, replica) = trouble(&aws(&format!("http://{address}")));
        assert_eq!((found.as_str(), exit_code), (word, Some(exit)), "{replica:#}");
        assert!(replica["troubles"][0]["said"].as_str().unwrap().contains(code), "{replica:#}");
    }
}

#[test]
fn a_server_that_is_not_there_or_not_who_it_should_be_is_told_apart() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // Any TLS server whose certificate another CA issued.
    let mut setup = Setup::software();
    let daemon = Daemon::start(&mut setup.files);
    let port = daemon.address().port();
    for make in [vault, aws] {
        let (word, code, replica) = trouble(&make(&format!("http://{closed}")));
        assert_eq!((word.as_str(), code), ("unreachable", Some(69)), "{replica:#}");
        assert_eq!(replica["reachable"], false);

        let mut files = make(&format!("https://localhost:{port}"));
        let provider =
            files.configuration["providers"].as_table().unwrap().keys().next().unwrap().clone();
        let ca = files.path("other-ca.pem");
        replace(&ca, &Pki::new().ca_pem(), 0o644);
        files.set(&format!("providers.{provider}.ca"), ca.display().to_string());
        let (word, code, replica) = trouble(&files);
        assert_eq!((word.as_str(), code), ("wrong-ca", Some(78)), "{replica:#}");
    }
}

#[tokio::test]
async fn an_alias_that_was_pointed_elsewhere_is_told_with_the_key_it_points_to() {
    let service = TestService::start(ServiceKind::Aws).await;
    let (mut files, key, other) =
        (DaemonFiles::new(), RsaKey::shared(2048), RsaKey::generate(2048));
    service.configure(&mut files, "aws", None).await;
    let StoredKey { locator: own, algorithms } =
        service.import(&key, KEY, None).await.swap_remove(0);
    let elsewhere = service.import(&other, "other", None).await.swap_remove(0).locator;
    let (kms, alias) = (service.aws().administrator(), "alias/user-keys");
    kms.create_alias().alias_name(alias).target_key_id(&own).send().await.unwrap();
    let advice = "write the ARN as the locator: an alias";
    let mut setup = Setup::at(files, key, "aws", alias, algorithms[0]);
    let daemon = setup.start();
    setup.wait_for(&daemon, Code::Ok).await;
    let advised = daemon.log().matches(advice).count();
    assert!(advised > 0 && daemon.log().contains(&own), "{}", daemon.log());
    assert_eq!(daemon.terminate().code, Some(0));

    kms.update_alias().alias_name(alias).target_key_id(&elsewhere).send().await.unwrap();
    let daemon = setup.start();
    setup.wait_for(&daemon, Code::FailedPrecondition).await;
    let said = format!("another key lies here: {alias} points to {elsewhere} now");
    daemon.wait_for_log(&said);
    assert_eq!(daemon.log().matches(advice).count(), advised, "{}", daemon.log());

    let (word, code, replica) = trouble(&setup.files);
    assert_eq!((word.as_str(), code), ("another-key", Some(78)), "{replica:#}");
    let told = replica["troubles"][0]["said"].as_str().unwrap();
    for words in [&said, &other.public_key_sha256(), &setup.key.public_key_sha256()] {
        assert!(told.contains(words), "{words}: {replica:#}");
    }
    assert_eq!((&replica["key_found"], &replica["proven"]), (&json!(true), &Value::Null));
    assert_eq!(replica["pin_matches"], false);
    // Nor is it taken for a backend that does not answer.
    let pin = command(claviger())
        .args(["config", "pin", "--config"])
        .arg(setup.files.configuration_file())
        .output()
        .expect("the binary starts");
    let printed = String::from_utf8_lossy(&pin.stderr).into_owned();
    assert!(!pin.status.success() && printed.contains(&said), "{printed}");

    // The pinned key is where it was.
    let replicas = &mut setup.files.configuration["keys"][KEY]["versions"][0]["replicas"];
    replicas[0]["locator"] = own.into();
    setup.files.write();
    daemon.reload();
    setup.wait_for(&daemon, Code::Ok).await;
}

fn pem(spki: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(spki);
    format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n")
}

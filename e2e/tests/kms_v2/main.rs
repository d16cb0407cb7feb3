//! `claviger kms-v2`: a Kubernetes API server's secrets under a key of the daemon.

mod api_server;
mod plugin;

use claviger_proto::kms_v2::{DecryptRequest, EncryptRequest, StatusRequest};
use e2e::setup::{KEY, MATERIAL};
use e2e::{RsaKey, Setup, Token, Version};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};
use tonic::Code;

use api_server::ApiServer;
use plugin::Plugin;

/// An id as an API server makes it.
const UID: &str = "5e0f3f0e-54c7-4f0c-9be2-8d9c6f0a4a11";

fn encrypt() -> EncryptRequest {
    EncryptRequest { plaintext: MATERIAL.to_vec().into(), uid: UID.into() }
}

/// A second version of the key in `provider`, which wraps from now on; the first one unwraps only.
fn rotated(setup: &mut Setup, second: &RsaKey, provider: &str, first: &str, locator: &str) {
    let old = Version::active(1, &setup.key, provider, first).with("state", "unwrap-only");
    let new = Version::active(2, second, provider, locator);
    setup.files.key(KEY, &["RSA-OAEP"], vec![old, new]);
    setup.files.write();
}

#[tokio::test]
async fn what_is_encrypted_is_decrypted_and_names_its_version_by_the_public_key() {
    let mut setup = Setup::software();
    let daemon = setup.start();
    let plugin = Plugin::start(&setup, &daemon);
    let mut api = plugin.connect().await;
    let status = api.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.version.as_str(), status.healthz.as_str()), ("v2", "ok"));
    assert_eq!(status.key_id, setup.key.public_key_sha256());
    let encrypted = api.encrypt(encrypt()).await.unwrap().into_inner();
    assert_eq!(encrypted.key_id, status.key_id);
    assert!((1..=1023).contains(&encrypted.ciphertext.len()));
    let request = DecryptRequest {
        ciphertext: encrypted.ciphertext,
        uid: UID.into(),
        key_id: encrypted.key_id,
        ..Default::default()
    };
    let decrypted = api.decrypt(request.clone()).await.unwrap().into_inner();
    assert_eq!(&*decrypted.plaintext, MATERIAL);

    // The API server's id of a call is in the audit log.
    let records = setup.files.audit_records();
    let operations: Vec<_> = records
        .iter()
        .filter(|record| record["caller_request_id"] == UID)
        .map(|record| record["operation"].as_str().unwrap())
        .collect();
    assert_eq!(operations, ["wrap", "unwrap"], "{records:?}");

    let foreign = DecryptRequest { key_id: "00".repeat(32), ..request.clone() };
    let refused = api.decrypt(foreign).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("no version with the public key 0000"), "{refused}");
    let broken = DecryptRequest { ciphertext: vec![7; 256].into(), ..request };
    assert_eq!(api.decrypt(broken).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(plugin.terminate(), Some(0));
}

#[tokio::test]
async fn only_the_user_who_runs_it_may_connect_and_the_socket_goes_with_it() {
    let mut setup = Setup::software();
    let daemon = setup.start();
    let plugin = Plugin::start(&setup, &daemon);
    let socket = plugin.socket.clone();
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let second = Plugin::run(&setup, &daemon, &socket).wait_with_output().unwrap();
    assert_eq!(second.status.code(), Some(78));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("another process answers there"), "{said}");
    assert_eq!(plugin.terminate(), Some(0));
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_rotation_changes_the_key_id_and_old_values_are_still_decrypted() {
    let mut setup = Setup::software();
    let daemon = setup.start();
    let plugin = Plugin::start(&setup, &daemon);
    let mut api = plugin.connect().await;
    let old = api.encrypt(encrypt()).await.unwrap().into_inner();
    let second = RsaKey::generate(2048);
    second.write_pem(&setup.files.path("keys/second.pem"));
    rotated(&mut setup, &second, "files", "user-keys.pem", "second.pem");
    daemon.reload();
    let until = Instant::now() + Duration::from_secs(30);
    let status = loop {
        let status = api.status(StatusRequest {}).await.unwrap().into_inner();
        if status.key_id != old.key_id || Instant::now() > until {
            break status;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(status.key_id, second.public_key_sha256());
    assert_eq!(api.encrypt(encrypt()).await.unwrap().into_inner().key_id, status.key_id);
    let request = DecryptRequest {
        ciphertext: old.ciphertext,
        uid: UID.into(),
        key_id: old.key_id,
        ..Default::default()
    };
    assert_eq!(&*api.decrypt(request).await.unwrap().into_inner().plaintext, MATERIAL);
}

#[tokio::test]
async fn a_daemon_that_is_away_is_told_and_waited_for() {
    let mut setup = Setup::software();
    let daemon = setup.start();
    let plugin = Plugin::start(&setup, &daemon);
    let mut api = plugin.connect().await;
    api.status(StatusRequest {}).await.unwrap();
    daemon.terminate();
    let away = api.status(StatusRequest {}).await.unwrap_err();
    assert_eq!(away.code(), Code::Unavailable, "{away}");
    let _daemon = setup.start();
    let again = api.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(again.healthz, "ok");
}

#[tokio::test]
#[ignore = "long: builds a Kubernetes API server and waits for its polls"]
async fn a_real_api_server_keeps_its_secrets_under_the_key_through_restarts_and_a_rotation() {
    let token = Token::softhsm();
    let mut setup = Setup::on(&token);
    let second = RsaKey::generate(2048);
    token.import(&second, "second", "02");
    let daemon = setup.start();
    let plugin = Plugin::start(&setup, &daemon);
    let mut cluster = ApiServer::start(&plugin.socket);
    cluster.write_secret("before", "marker-of-the-first-secret");
    let stored = cluster.stored("before");
    assert!(stored.contains("k8s:enc:kms:v2:claviger:"), "{stored}");
    assert!(stored.contains(&setup.key.public_key_sha256()), "{stored}");
    assert!(!stored.contains("marker"), "{stored}");

    cluster.restart();
    assert_eq!(cluster.read_secret("before"), "marker-of-the-first-secret");

    rotated(&mut setup, &second, "hsm-a", "pkcs11:object=user-keys", "pkcs11:object=second");
    daemon.reload();
    // The API server asks for the key id about once a minute.
    let until = Instant::now() + Duration::from_mins(5);
    while {
        cluster.write_secret("after", "marker-of-the-second-secret");
        !cluster.stored("after").contains(&second.public_key_sha256())
    } {
        assert!(Instant::now() < until, "{}\n{}", cluster.log(), daemon.log());
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    assert!(cluster.stored("before").contains(&setup.key.public_key_sha256()));
    cluster.restart();
    assert_eq!(cluster.read_secret("before"), "marker-of-the-first-secret");
    assert_eq!(cluster.read_secret("after"), "marker-of-the-second-secret");

    // The migration: each secret is written again as it is.
    cluster.write_again("before");
    assert!(cluster.stored("before").contains(&second.public_key_sha256()));
    assert_eq!(cluster.read_secret("before"), "marker-of-the-first-secret");
}

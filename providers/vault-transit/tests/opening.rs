//! What is refused when a key is opened, in words that say what to do; and what the log is told.

mod backend;

use std::time::Duration;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};
use claviger_provider_api::{Algorithm, ErrorKind, SignAlgorithm};
use rcgen::{CertificateParams, KeyPair};
use serde_json::json;

use backend::{Backend, ROOT, Server, open, open_with, round_trip};

async fn another_hash_is_refused_in_words(backend: Backend) {
    let server = Server::start(backend).await;
    server.make_key("k", 2048).await;
    let config = server.config_with_token(ROOT);
    for algorithm in [Algorithm::RsaOaep, Algorithm::RsaOaep384, Algorithm::RsaOaep512] {
        let algorithms = [Algorithm::RsaOaep256, algorithm];
        let error = open_with(&config, "transit/k:1", &algorithms, &[]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded);
        let said = error.to_string();
        assert!(said.contains("SHA-256 only") && said.contains(algorithm.name()), "{said}");
    }
}

async fn pkcs1_padding_is_proven_and_not_believed(backend: Backend) {
    let server = Server::start(backend).await;
    server.make_key("k", 2048).await;
    let config = server.config_with_token(ROOT);
    let outcome = open_with(&config, "transit/k:1", &[Algorithm::Rsa15], &[]).await;
    match backend {
        Backend::Vault => drop(outcome.unwrap()),
        Backend::OpenBao => {
            let error = outcome.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::OperatorNeeded);
            assert!(error.to_string().contains("ignore `padding_scheme`"), "{error}");
        }
    }
}

async fn what_is_not_there_or_no_rsa_key_needs_an_operator(backend: Backend) {
    let server = Server::start(backend).await;
    server.make_key("k", 2048).await;
    server.set("transit/keys/aes", json!({"type": "aes256-gcm96"})).await;
    server.set("transit/keys/ec", json!({"type": "ecdsa-p256"})).await;
    let config = server.config_with_token(ROOT);
    for (locator, said) in [
        ("transit/missing:1", "404"),
        ("nowhere/k:1", "404"),
        ("transit/k:2", "the latest is 1"),
        ("transit/aes:1", "aes256-gcm96"),
        ("transit/ec:1", "ecdsa-p256"),
        ("transit/k", "write mount/key:version"),
    ] {
        let error = open(&config, locator).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{locator}: {error}");
        assert!(error.to_string().contains(said), "{locator}: {error}");
    }
}

async fn each_version_is_its_own_key_until_it_is_too_old(backend: Backend) {
    let server = Server::start(backend).await;
    server.make_key("k", 2048).await;
    server.set("transit/keys/k/rotate", json!({})).await;
    let config = server.config_with_token(ROOT);
    let first =
        open_with(&config, "transit/k:1", &[Algorithm::RsaOaep256], &[SignAlgorithm::Ps256]);
    let first = first.await.unwrap();
    let second = open(&config, "transit/k:2").await.unwrap();
    assert_ne!(first.public_key().sha256(), second.public_key().sha256());
    round_trip(&*first).await.unwrap();

    server.set("transit/keys/k/config", json!({"min_decryption_version": 2})).await;
    let error = round_trip(&*first).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    assert_eq!(first.check().await.unwrap_err().kind(), ErrorKind::OperatorNeeded);
    let error = open(&config, "transit/k:1").await.unwrap_err();
    assert!(error.to_string().contains("min_decryption_version"), "{error}");
    round_trip(&*second).await.unwrap();
}

async fn an_imported_key_serves_as_itself(backend: Backend) {
    let server = Server::start(backend).await;
    let private = PrivateDecryptingKey::generate(KeySize::Rsa3072).unwrap();
    let pkcs8: Pkcs8V1Der<'_> = private.as_der().unwrap();
    server.import("imported", pkcs8.as_ref()).await;

    let key = open(&server.config_with_token(ROOT), "transit/imported:1").await.unwrap();
    assert_eq!(key.public_key().spki(), private.public_key().as_der().unwrap().as_ref());
    round_trip(&*key).await.unwrap();
}

async fn a_bad_token_needs_an_operator_and_is_not_shown(backend: Backend) {
    let server = Server::start(backend).await;
    server.make_key("k", 2048).await;
    for token in ["s.marker0123456789", "two words", ""] {
        let config = server.config_with_token(token);
        let error = open(&config, "transit/k:1").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("marker") && !shown.contains("two words"), "{shown}");
    }
}

async fn a_policy_that_allows_too_little_is_told_from_a_bad_token(backend: Backend) {
    let server = Server::start(backend).await;
    server.make_key("k", 2048).await;
    let token = server.set("auth/token/create", json!({"policies": ["default"]})).await;
    let config = server.config_with_token(token["auth"]["client_token"].as_str().unwrap());
    let error = open(&config, "transit/k:1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded);
    assert!(error.to_string().contains("no policy of it allows this"), "{error}");
}

async fn the_documented_policy_is_enough(backend: Backend) {
    let server = Server::start(backend).await;
    server.make_key("user-keys", 2048).await;
    let config = server.config_with_approle("1h", "24h").await;
    let sign = [SignAlgorithm::Rs256];
    let key = open_with(&config, "transit/user-keys:1", &[Algorithm::RsaOaep256], &sign).await;
    let id = round_trip(&*key.unwrap()).await.unwrap();
    assert!(id.is_some_and(|id| id.len() == 36), "the id of the server's own audit log");
}

async fn another_ca_is_refused(backend: Backend) {
    let server = Server::start_tls(backend).await;
    server.make_key("k", 2048).await;
    let mut config = server.config_with_token(ROOT);
    open(&config, "transit/k:1").await.unwrap();

    let ca = CertificateParams::new(vec!["vault".to_owned()]).unwrap();
    let ca = ca.self_signed(&KeyPair::generate().unwrap()).unwrap();
    let path = server.folder().join("other.pem");
    std::fs::write(&path, ca.pem()).unwrap();
    for ca in [Some(path), None] {
        config.ca = ca;
        let error = open(&config, "transit/k:1").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
        assert!(error.to_string().contains("certificate"), "{error}");
    }
    config.ca = Some(server.folder().join("missing.pem"));
    let error = open(&config, "transit/k:1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded);
    assert!(error.to_string().contains("missing.pem"), "{error}");
}

async fn a_namespace_that_is_not_there_is_an_operators_business(backend: Backend) {
    let server = Server::start(backend).await;
    server.make_key("k", 2048).await;
    let mut config = server.config_with_token(ROOT);
    config.namespace = Some("nobody/here".into());
    let outcome = open(&config, "transit/k:1").await;
    match backend {
        // Without Enterprise there are no namespaces, and the header is ignored.
        Backend::Vault => drop(outcome.unwrap()),
        Backend::OpenBao => {
            let kind = outcome.unwrap_err().kind();
            assert_eq!(kind, ErrorKind::OperatorNeeded);
            server.set("sys/namespaces/team", json!({})).await;
            let mounted = json!({"type": "transit"});
            server.set("team/sys/mounts/transit", mounted).await;
            server.set("team/transit/keys/k", json!({"type": "rsa-2048"})).await;
            config.namespace = Some("team".into());
            round_trip(&*open(&config, "transit/k:1").await.unwrap()).await.unwrap();
        }
    }
}

async fn a_server_that_is_not_there_is_unavailable(backend: Backend) {
    let config = {
        let server = Server::start(backend).await;
        let mut config = server.config_with_token(ROOT);
        let folder = tempfile::tempdir().unwrap().keep();
        let token = folder.join("token");
        std::fs::copy(server.folder().join("token"), &token).unwrap();
        config.auth =
            claviger_vault_transit::Auth::Token(claviger_provider_api::SecretSource::File(token));
        config.connect_timeout = claviger_provider_api::Timeout(Duration::from_millis(500));
        config
    };
    let error = open(&config, "transit/k:1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

on_both!(
    another_hash_is_refused_in_words,
    pkcs1_padding_is_proven_and_not_believed,
    what_is_not_there_or_no_rsa_key_needs_an_operator,
    each_version_is_its_own_key_until_it_is_too_old,
    an_imported_key_serves_as_itself,
    a_bad_token_needs_an_operator_and_is_not_shown,
    a_policy_that_allows_too_little_is_told_from_a_bad_token,
    the_documented_policy_is_enough,
    another_ca_is_refused,
    a_namespace_that_is_not_there_is_an_operators_business,
    a_server_that_is_not_there_is_unavailable,
);

//! Secrets of other providers, from the KV engine of a real server: read anew each time, and never shown.

mod backend;

use std::sync::Arc;

use claviger_provider_api::{ErrorKind, Provider as _, SecretSource, SecretStore, VaultField};
use claviger_vault_transit::{Config, Provider};
use serde_json::{Value, json};

use backend::{Backend, ROOT, Server};

fn store(config: &Config) -> Arc<dyn SecretStore> {
    Provider::new("vault-a", config).unwrap().secret_store().unwrap()
}

async fn put(server: &Server, fields: Value) {
    server.set("secret/data/claviger", json!({"data": fields})).await;
}

async fn a_field_is_read_anew_each_time_under_the_documented_policy(backend: Backend) {
    let server = Server::start_tls(backend).await;
    let store = store(&server.config_with_approle("1h", "24h").await);
    let pem = "-----BEGIN PRIVATE KEY-----\nAAEC\n-----END PRIVATE KEY-----\n";
    put(&server, json!({"pin": "1234", "key": pem, "word": "pä\"\\ss"})).await;
    for (field, value) in [("pin", "1234"), ("key", pem), ("word", "pä\"\\ss")] {
        let secret = store.read("secret/data/claviger", field).await.unwrap();
        assert_eq!(secret.expose(), value.as_bytes());
    }
    put(&server, json!({"pin": "5678"})).await;
    assert_eq!(store.read("secret/data/claviger", "pin").await.unwrap().expose(), b"5678");

    // A thread that waits, as those of PKCS#11 do.
    let mut field = VaultField::new("vault-a", "secret/data/claviger", "pin");
    field.bind(store.clone());
    let source = SecretSource::Vault(field);
    let read = tokio::task::spawn_blocking(move || source.read_blocking());
    assert_eq!(read.await.unwrap().unwrap().expose(), b"5678");

    // A token that was revoked is replaced without a failed read.
    server.set("sys/leases/revoke-prefix/auth/approle/login", json!({"sync": true})).await;
    assert_eq!(store.read("secret/data/claviger", "pin").await.unwrap().expose(), b"5678");
    // Nothing but what the policy names.
    server.set("secret/data/other", json!({"data": {"pin": "marker"}})).await;
    let error = store.read("secret/data/other", "pin").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded);
    assert!(error.to_string().contains("no policy of it allows this"), "{error}");
}

async fn what_is_not_there_needs_an_operator_and_no_value_is_shown(backend: Backend) {
    let server = Server::start(backend).await;
    let store = store(&server.config_with_token(ROOT));
    put(&server, json!({"pin": 1234, "deep": {"pin": "marker"}, "other": "marker"})).await;
    let expect = async |path: &str, field: &str, said: &str| {
        let error = store.read(path, field).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{path} {field}: {error}");
        let error = error.to_string();
        assert!(error.contains(said), "{path} {field}: {error}");
        assert!(!error.contains("marker") && !error.contains("1234"), "{error}");
    };
    expect("secret/data/claviger", "pni", "no such field").await;
    expect("secret/data/claviger", "pin", "no text").await;
    expect("secret/data/claviger", "deep", "no text").await;
    expect("secret/data/nothing", "pin", "404").await;
    expect("nowhere/data/claviger", "pin", "404").await;
    let (status, _) = server.ask(reqwest::Method::DELETE, "secret/data/claviger", None).await;
    assert_eq!(status, 204);
    expect("secret/data/claviger", "other", "404").await;
}

async fn a_sealed_server_is_unavailable(backend: Backend) {
    let server = Server::start(backend).await;
    let store = store(&server.config_with_token(ROOT));
    put(&server, json!({"pin": "1234"})).await;
    store.read("secret/data/claviger", "pin").await.unwrap();
    server.set("sys/seal", json!({})).await;
    let error = store.read("secret/data/claviger", "pin").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let mut field = VaultField::new("vault-a", "secret/data/claviger", "pin");
    field.bind(store);
    let error = SecretSource::Vault(field).read().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let said = "the field \"pin\" of secret/data/claviger through provider vault-a: ";
    assert!(error.to_string().contains(said), "{error}");
}

on_both!(
    a_field_is_read_anew_each_time_under_the_documented_policy,
    what_is_not_there_needs_an_operator_and_no_value_is_shown,
    a_sealed_server_is_unavailable,
);

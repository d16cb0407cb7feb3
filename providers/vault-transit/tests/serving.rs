//! A key in service: garbage, a sealed server, one that hangs, deadlines, another key in its place.

mod backend;

use std::time::{Duration, Instant};

use claviger_provider_api::{Algorithm, ErrorKind, KeyMaterial, Parameters};
use serde_json::json;

use backend::{Backend, ROOT, Server, call, open, round_trip};

async fn a_thousand_bad_values_do_not_disturb_a_check(backend: Backend) {
    let server = Server::start_tls(backend).await;
    server.make_key("k", 2048).await;
    let key = open(&server.config_with_token(ROOT), "transit/k:1").await.unwrap();
    let parameters = Parameters::of(Algorithm::RsaOaep256);
    for n in 0..1000_u32 {
        let mut garbage = vec![0x55; 256];
        garbage[0] = 0;
        garbage[252..].copy_from_slice(&n.to_be_bytes());
        let outcome = key.unwrap_key(&garbage, &parameters, call(Duration::from_secs(10))).await;
        let error = outcome.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnwrapFailed, "{error}");
        if n.is_multiple_of(100) {
            key.check().await.unwrap();
            round_trip(&*key).await.unwrap();
        }
    }
    key.check().await.unwrap();
    assert_eq!(key.repairs(), 0);
    assert!(key.failure_needs_check());
}

async fn a_sealed_server_is_unavailable_and_comes_back(backend: Backend) {
    let server = Server::start(backend).await;
    let share = server.unseal_share().await;
    server.make_key("k", 2048).await;
    let key = open(&server.config_with_token(ROOT), "transit/k:1").await.unwrap();
    round_trip(&*key).await.unwrap();

    server.set("sys/seal", json!({})).await;
    for outcome in [round_trip(&*key).await.map(|_| ()), key.check().await] {
        let error = outcome.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains("sealed"), "{error}");
    }
    let error = open(&server.config_with_token(ROOT), "transit/k:1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");

    server.set("sys/unseal", json!({"key": share})).await;
    let until = Instant::now() + Duration::from_secs(20);
    while let Err(error) = key.check().await {
        assert!(Instant::now() < until, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    round_trip(&*key).await.unwrap();
}

async fn a_server_that_hangs_holds_nobody_beyond_the_deadline(backend: Backend) {
    let server = Server::start_tls(backend).await;
    server.make_key("k", 2048).await;
    let key = open(&server.config_with_token(ROOT), "transit/k:1").await.unwrap();
    let parameters = Parameters::of(Algorithm::RsaOaep256);
    let material = KeyMaterial::copied_from(&[7; 32]);
    let wrapped = key.public_key().wrap(&material, &parameters).unwrap();

    server.freeze();
    let begun = Instant::now();
    let limit = Duration::from_millis(300);
    let outcome = key.unwrap_key(&wrapped, &parameters, call(limit)).await;
    let took = begun.elapsed();
    server.thaw();
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    assert!(took >= limit && took < limit + Duration::from_millis(250), "{took:?}");
    round_trip(&*key).await.unwrap();
}

async fn another_key_in_its_place_is_named(backend: Backend) {
    let server = Server::start(backend).await;
    server.make_key("k", 2048).await;
    let key = open(&server.config_with_token(ROOT), "transit/k:1").await.unwrap();
    server.set("transit/keys/k/config", json!({"deletion_allowed": true})).await;
    let (status, said) = server.ask(reqwest::Method::DELETE, "transit/keys/k", None).await;
    assert_eq!(status, 204, "{said}");
    let error = key.check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");

    server.make_key("k", 2048).await;
    let error = key.check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    assert!(error.to_string().contains("another key"), "{error}");
}

on_both!(
    a_thousand_bad_values_do_not_disturb_a_check,
    a_sealed_server_is_unavailable_and_comes_back,
    a_server_that_hangs_holds_nobody_beyond_the_deadline,
    another_key_in_its_place_is_named,
);

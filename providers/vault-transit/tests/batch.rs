//! Several values in one request to a real server: results, bad ones among them, and what befalls the request.

mod backend;

use std::time::Duration;

use claviger_provider_api::{
    Algorithm, BatchItem, ErrorKind, KeyMaterial, Parameters, WrappingKey,
};
use serde_json::json;

use backend::{Backend, ROOT, Server, call, open};

const PARAMETERS: Parameters<'static> = Parameters { algorithm: Algorithm::RsaOaep256, label: &[] };

/// `count` values, each of its own number.
fn wrapped(key: &dyn WrappingKey, count: u8) -> Vec<Vec<u8>> {
    let wrap = |n: u8| key.public_key().wrap(&KeyMaterial::copied_from(&[n; 32]), &PARAMETERS);
    (0..count).map(|n| wrap(n).unwrap()).collect()
}

fn items(wrapped: &[Vec<u8>]) -> Vec<BatchItem<'_>> {
    wrapped.iter().map(|wrapped| BatchItem { wrapped, parameters: PARAMETERS }).collect()
}

async fn a_batch_is_one_request_and_a_bad_value_fails_alone(backend: Backend) {
    let server = Server::start_tls(backend).await;
    server.make_key("k", 2048).await;
    let key = open(&server.config_with_token(ROOT), "transit/k:1").await.unwrap();
    assert_eq!(key.batch_limit(), 64);
    let mut wrapped = wrapped(&*key, 64);
    wrapped[3][17] ^= 1;
    wrapped[40].truncate(200);
    wrapped[41] = vec![0xff; 256];
    let results = key.unwrap_batch(&items(&wrapped), call(Duration::from_secs(30))).await;
    assert_eq!(results.len(), 64);
    let mut ids = Vec::new();
    for (n, result) in (0_u8..).zip(results) {
        match result {
            Ok(unwrapped) => {
                assert_eq!(unwrapped.material.expose(), [n; 32]);
                ids.push(unwrapped.backend_request_id.unwrap());
            }
            Err(error) => {
                assert!(matches!(n, 3 | 40 | 41), "{n}: {error}");
                assert_eq!(error.kind(), ErrorKind::UnwrapFailed, "{n}: {error}");
            }
        }
    }
    assert_eq!(ids.len(), 61);
    ids.dedup();
    assert_eq!(ids.len(), 1, "one request, which the server's own log has under one id");
    key.check().await.unwrap();
    assert_eq!(key.repairs(), 0);

    // Bad ones only.
    let bad = vec![vec![0x55; 256]; 2];
    for result in key.unwrap_batch(&items(&bad), call(Duration::from_secs(30))).await {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::UnwrapFailed);
    }
}

async fn what_befalls_the_request_befalls_each_value(backend: Backend) {
    let server = Server::start(backend).await;
    server.make_key("user-keys", 2048).await;
    let config = server.config_with_approle("1h", "24h").await;
    let key = open(&config, "transit/user-keys:1").await.unwrap();
    let wrapped = wrapped(&*key, 5);
    let kinds = || async {
        let results = key.unwrap_batch(&items(&wrapped), call(Duration::from_secs(10))).await;
        results.into_iter().map(|result| result.err().map(|e| e.kind())).collect::<Vec<_>>()
    };
    server.set("sys/leases/revoke-prefix/auth/approle/login", json!({"sync": true})).await;
    assert_eq!(kinds().await, [Some(ErrorKind::Unavailable); 5], "the token was replaced");
    assert_eq!(key.repairs(), 1);
    assert_eq!(kinds().await, [None; 5]);
    server.set("transit/keys/user-keys/rotate", json!({})).await;
    let newer = json!({"min_decryption_version": 2});
    server.set("transit/keys/user-keys/config", newer).await;
    assert_eq!(kinds().await, [Some(ErrorKind::OperatorNeeded); 5], "the version is too old");
    server.freeze();
    let late = key.unwrap_batch(&items(&wrapped), call(Duration::from_millis(300))).await;
    server.thaw();
    for result in late {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    }
}

on_both!(
    a_batch_is_one_request_and_a_bad_value_fails_alone,
    what_befalls_the_request_befalls_each_value,
);

//! Several values in one request to a real server: results, bad ones among them, and what it saves.

mod backend;

use std::sync::Arc;
use std::time::{Duration, Instant};

use claviger_provider_api::{
    Algorithm, BatchItem, ErrorKind, KeyMaterial, Parameters, WrappingKey,
};
use serde_json::json;

use backend::{Backend, ROOT, Server, call, open};
use test_backends::cpu_time;

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

/// Prints what `docs/backends/vault-transit.md` says: run it alone, with `--nocapture`.
async fn the_cost_of_64_values_alone_and_together_is_printed(backend: Backend) {
    let server = Server::start_tls(backend).await;
    for bits in [2048, 4096] {
        let name = format!("k{bits}");
        server.make_key(&name, bits).await;
        let key = open(&server.config_with_token(ROOT), &format!("transit/{name}:1")).await;
        let key = &key.unwrap();
        let wrapped = &Arc::new(wrapped(&**key, 64));
        let figures = |how| format!("{} RSA-{bits}, 64 values {how}", backend.name());
        let in_turn = async || {
            for wrapped in wrapped.iter() {
                let limit = call(Duration::from_mins(1));
                key.unwrap_key(wrapped, &PARAMETERS, limit).await.unwrap();
            }
        };
        measured(&server, &figures("in turn"), in_turn).await;
        let at_once = async || {
            let tasks: Vec<_> = (0..64)
                .map(|n| {
                    let (key, wrapped) = (key.clone(), wrapped.clone());
                    tokio::spawn(async move {
                        let limit = call(Duration::from_mins(1));
                        key.unwrap_key(&wrapped[n], &PARAMETERS, limit).await.unwrap();
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
        };
        measured(&server, &figures("at once"), at_once).await;
        let together = async || {
            let results = key.unwrap_batch(&items(wrapped), call(Duration::from_mins(1))).await;
            assert!(results.iter().all(Result::is_ok));
        };
        measured(&server, &figures("in one request"), together).await;
    }
}

/// Prints the median time of `work`, and the CPU time that it costs the server and this process.
async fn measured(server: &Server, what: &str, work: impl AsyncFn()) {
    const ROUNDS: u32 = 15;
    work().await;
    let (server_before, own_before) = (cpu_time(&server.id().to_string()), cpu_time("self"));
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        work().await;
        times.push(begun.elapsed());
    }
    let server = cpu_time(&server.id().to_string()).saturating_sub(server_before) / ROUNDS;
    let own = cpu_time("self").saturating_sub(own_before) / ROUNDS;
    times.sort_unstable();
    let median = times[times.len() / 2];
    println!(
        "{what}: median {median:.1?}, CPU of the server {server:.1?}, of the client {own:.1?}"
    );
}

on_both!(
    a_batch_is_one_request_and_a_bad_value_fails_alone,
    what_befalls_the_request_befalls_each_value,
);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: scripts/test --all"]
async fn openbao_in_figures() {
    the_cost_of_64_values_alone_and_together_is_printed(Backend::OpenBao).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: scripts/test --all"]
async fn vault_in_figures() {
    the_cost_of_64_values_alone_and_together_is_printed(Backend::Vault).await;
}

//! What 64 unwraps cost alone, at once and in one request, with OpenBao and with Vault: median time,
//! and CPU time of the server and of this process. Prints a line for each.
//!
//! `cargo bench -p claviger-vault-transit`

#[path = "../tests/backend/mod.rs"]
mod backend;

use std::sync::Arc;
use std::time::{Duration, Instant};

use claviger_provider_api::{Algorithm, BatchItem, KeyMaterial, Parameters, WrappingKey};

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

#[tokio::main]
async fn main() {
    for backend in [Backend::OpenBao, Backend::Vault] {
        print_the_cost_of_64_values(backend).await;
    }
}

/// Prints what `docs/backends/vault-transit.md` says: run it alone, with `--nocapture`.
async fn print_the_cost_of_64_values(backend: Backend) {
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

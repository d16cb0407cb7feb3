//! Calls over real mutual TLS to a small daemon in this process.

mod blocking;
#[expect(dead_code, reason = "the tests with a stopped clock use the rest of it")]
mod daemon;
mod endpoints;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use claviger_client::{
    Client, Code, Config, Health, Recipient, RewrapItem, RewrapSource, RewrapTarget, SignOptions,
    UnwrapItem, UnwrapOptions, WrapOptions,
};
use daemon::{Daemon, Pki, config};

async fn connected() -> (Pki, Daemon, Client) {
    let pki = Pki::new();
    let daemon = Daemon::start(&pki).await;
    let client = Client::connect(&daemon.config(pki.client(pki.ca_file()))).await.unwrap();
    (pki, daemon, client)
}

#[tokio::test]
async fn what_is_wrapped_unwraps_over_tls_13_with_the_hybrid_key_exchange() {
    let (_pki, daemon, client) = connected().await;
    let wrapped = client.wrap("user-keys", b"material", &WrapOptions::default()).await.unwrap();
    assert_eq!((wrapped.wrapped.as_slice(), wrapped.key_version), (&b"lairetam"[..], 2));
    assert_eq!(wrapped.request_id.as_deref(), Some("daemon-id"));
    let options = UnwrapOptions { key_version: Some(7), ..Default::default() };
    let again = client.unwrap_key("user-keys", &wrapped.wrapped, &options).await.unwrap();
    assert_eq!((again.key_material.as_slice(), again.key_version), (&b"material"[..], 7));
    let printed = format!("{again:?}");
    assert!(printed.contains("[redacted]") && !printed.contains("109"), "{printed}");
    assert_eq!(
        daemon.seen().tls,
        Some((rustls::ProtocolVersion::TLSv1_3, rustls::NamedGroup::X25519MLKEM768))
    );
}

#[tokio::test]
async fn the_deadline_and_a_request_id_travel_with_each_call() {
    let (_pki, daemon, client) = connected().await;
    client.key("a").await.unwrap();
    let first = daemon.seen();
    assert_eq!(first.request_id.len(), 36);
    let micros: u64 = first.timeout.strip_suffix('u').unwrap().parse().unwrap();
    assert!((4_000_000..=5_000_000).contains(&micros), "{}", first.timeout);
    client.key("a").await.unwrap();
    assert_ne!(daemon.seen().request_id, first.request_id);
    client.with_request_id("order 66").unwrap().key("a").await.unwrap();
    assert_eq!(daemon.seen().request_id, "order 66");
    for bad in ["", "line\nend", "ü", &"x".repeat(65)] {
        let error = client.with_request_id(bad).unwrap_err();
        assert_eq!(error.field.as_deref(), Some("request_id"));
    }
}

#[tokio::test]
async fn the_daemons_errors_keep_code_field_wait_and_id() {
    let (_pki, _daemon, client) = connected().await;
    let options = WrapOptions::default();
    let error = client.wrap("field", b"m", &options).await.unwrap_err();
    assert_eq!((error.code, error.field.as_deref()), (Code::InvalidArgument, Some("algorithm")));
    assert_eq!(error.to_string(), "algorithm: use RSA-OAEP");
    let error = client.wrap("busy", b"m", &options).await.unwrap_err();
    assert_eq!(error.code, Code::ResourceExhausted);
    assert_eq!(error.retry_after, Some(Duration::from_secs(2)));
    let error = client.wrap("nobody", b"m", &options).await.unwrap_err();
    assert_eq!(error.code, Code::PermissionDenied);
    assert_eq!(error.request_id.as_deref(), Some("daemon-id"));
}

#[tokio::test]
async fn a_call_ends_at_its_deadline_and_names_the_id_that_was_sent() {
    let (_pki, daemon, client) = connected().await;
    let client = client.with_timeout(Duration::from_millis(200));
    let error = client.key("slow").await.unwrap_err();
    assert_eq!(error.code, Code::DeadlineExceeded, "{error}");
    assert_eq!(error.request_id, Some(daemon.seen().request_id));
    client.key("quick").await.unwrap();
}

#[tokio::test]
async fn a_batch_answers_item_by_item_in_order() {
    let (_pki, _daemon, client) = connected().await;
    let item = |key: &str, wrapped: &[u8]| UnwrapItem {
        key: key.into(),
        wrapped: wrapped.into(),
        options: UnwrapOptions::default(),
    };
    let items = [item("a", b"12"), item("nobody", b"34"), item("a", b"56")];
    let results = client.unwrap_batch(&items).await.unwrap();
    assert_eq!(results.len(), 3);
    assert_eq!(*results[0].as_ref().unwrap().key_material, b"21");
    let error = results[1].as_ref().unwrap_err();
    assert_eq!(
        (error.code, error.request_id.as_deref()),
        (Code::PermissionDenied, Some("daemon-id"))
    );
    assert_eq!(*results[2].as_ref().unwrap().key_material, b"65");
}

#[tokio::test]
async fn a_rewrap_names_both_versions_and_the_target_and_a_batch_answers_in_order() {
    let (_pki, _daemon, client) = connected().await;
    let item = |wrapped: &[u8], recipient| RewrapItem {
        source: RewrapSource { key: "old".into(), ..Default::default() },
        wrapped: wrapped.into(),
        target: RewrapTarget { recipient, algorithm: "RSA-OAEP".into(), label: Vec::new() },
        max_key_material_len: Some(32),
        approval: None,
    };
    let to_key = item(b"12", Recipient::Key("new".into()));
    let rewrapped = client.rewrap(&to_key).await.unwrap();
    assert_eq!(rewrapped.wrapped, b"21");
    assert_eq!((rewrapped.source_key_version, rewrapped.target_key_version), (2, Some(4)));
    assert_eq!(rewrapped.target_algorithm, "RSA-OAEP");
    assert_eq!(rewrapped.target_public_key_sha256, [0xef; 32]);
    let to_public_key = item(b"34", Recipient::PublicKey(vec![1; 294]));
    assert_eq!(client.rewrap(&to_public_key).await.unwrap().target_key_version, None);

    let bad = item(b"bad", Recipient::Key("new".into()));
    let results = client.rewrap_batch(&[to_key, bad, to_public_key]).await.unwrap();
    assert_eq!(results.len(), 3);
    assert_eq!(results[0].as_ref().unwrap().wrapped, b"21");
    let error = results[1].as_ref().unwrap_err();
    assert_eq!(
        (error.code, error.message.as_str()),
        (Code::InvalidArgument, "this item is refused")
    );
    assert_eq!(results[2].as_ref().unwrap().wrapped, b"43");
}

#[tokio::test]
async fn a_request_beyond_64_kib_is_refused_before_it_is_sent() {
    let (_pki, daemon, client) = connected().await;
    let before = daemon.seen().request_id;
    let error = client.wrap("a", &vec![0; 65 * 1024], &WrapOptions::default()).await.unwrap_err();
    assert_eq!((error.code, error.request_id), (Code::InvalidArgument, None));
    assert_eq!(daemon.seen().request_id, before);
}

#[tokio::test]
async fn signatures_are_made_and_checked() {
    let (_pki, _daemon, client) = connected().await;
    let options = SignOptions::default();
    let signed = client.sign("a", &[1; 32], "PS256", options).await.unwrap();
    assert_eq!((signed.key_version, signed.algorithm.as_str()), (3, "PS256"));
    let good = client.verify("a", &[1; 32], "PS256", &signed.signature, options).await.unwrap();
    assert_eq!(good.key_version, Some(3));
    let bad = client.verify("a", &[1; 32], "PS256", &[2; 32], options).await.unwrap();
    assert_eq!(bad.key_version, None);
}

#[tokio::test]
async fn keys_come_page_by_page_or_all_at_once() {
    let (_pki, _daemon, client) = connected().await;
    let page = client.list_keys(2, None).await.unwrap();
    assert_eq!((page.keys.len(), page.next.as_deref()), (2, Some("2")));
    let names: Vec<_> = client.keys().await.unwrap().into_iter().map(|key| key.name).collect();
    assert_eq!(names, ["key-0", "key-1", "key-2", "key-3", "key-4"]);
}

#[tokio::test]
async fn health_tells_the_daemon_from_a_key() {
    let (_pki, _daemon, client) = connected().await;
    assert_eq!(client.health(None).await.unwrap(), Health::Serving);
    assert_eq!(client.health(Some("down")).await.unwrap(), Health::NotServing);
    assert_eq!(client.health(Some("not-mine")).await.unwrap_err().code, Code::NotFound);
}

#[tokio::test]
async fn a_lost_connection_is_unavailable_and_comes_back_by_itself() {
    let (pki, daemon, client) = connected().await;
    let port = daemon.stop().await;
    let error = client.key("a").await.unwrap_err();
    assert_eq!(error.code, Code::Unavailable, "{error}");
    let _daemon = Daemon::start_on(&pki, port, None).await;
    client.key("a").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_the_daemon_ends_one_after_another_fail_no_call() {
    let pki = Pki::new();
    let daemon = Daemon::start_on(&pki, 0, Some(Duration::from_millis(20))).await;
    let client = Client::connect(&daemon.config(pki.client(pki.ca_file()))).await.unwrap();
    let (calls, enough) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
    let callers: Vec<_> = (0..16)
        .map(|_| {
            let (client, calls, enough) = (client.clone(), calls.clone(), enough.clone());
            tokio::spawn(async move {
                while !enough.load(Ordering::Relaxed) {
                    client.key("a").await.unwrap();
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let begun = std::time::Instant::now();
    while calls.load(Ordering::Relaxed) <= 200 || daemon.seen().handshakes <= 10 {
        assert!(begun.elapsed() < Duration::from_mins(1), "{calls:?} calls");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    enough.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
}

#[tokio::test]
async fn a_daemon_under_another_ca_is_not_the_daemon() {
    let pki = Pki::new();
    let daemon = Daemon::start(&pki).await;
    let other = Pki::new();
    let config = daemon.config(pki.client(other.ca_file()));
    let error = Client::connect(&config).await.unwrap_err();
    assert_eq!(error.code, Code::FailedPrecondition, "{error}");
    assert!(error.to_string().contains("but another key"), "{error}");
    assert_eq!(error.request_id, None);
}

#[tokio::test]
async fn a_client_of_another_ca_is_told_that_its_certificate_was_refused() {
    let pki = Pki::new();
    let daemon = Daemon::start(&pki).await;
    let stranger = Pki::new();
    let config = daemon.config(stranger.client(pki.ca_file()));
    let error = Client::connect(&config).await.unwrap_err();
    assert_eq!(error.code, Code::Unauthenticated, "{error}");
    assert!(error.to_string().contains("refused this program's certificate"), "{error}");
}

#[tokio::test]
async fn a_port_without_a_listener_is_unavailable_and_names_the_endpoint() {
    let pki = Pki::new();
    let port = Daemon::start(&pki).await.stop().await;
    let error = Client::connect(&config(port, pki.client(pki.ca_file()))).await.unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
    let expected = format!("cannot reach the daemon at https://localhost:{port}: ");
    assert!(error.to_string().starts_with(&expected), "{error}");
    assert_eq!(error.request_id, None);
}

#[tokio::test]
async fn a_listener_that_never_answers_costs_no_more_than_the_deadline() {
    let pki = Pki::new();
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let files = pki.client(pki.ca_file());
    let config = Config { timeout: Duration::from_millis(200), ..config(port, files) };
    let started = std::time::Instant::now();
    let error = Client::connect(&config).await.unwrap_err();
    assert_eq!(error.code, Code::DeadlineExceeded, "{error}");
    assert!(started.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn a_unix_socket_needs_no_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("daemon.sock");
    let _daemon = Daemon::start_on_socket(&path);
    let config = Config::new(&[format!("unix:{}", path.display())], None, None, None).unwrap();
    let client = Client::connect(&config).await.unwrap();
    assert_eq!(client.key("a").await.unwrap().name, "a");
}

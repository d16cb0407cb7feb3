//! A daemon beside a real Vault or OpenBao: batches in one request, and secrets of other providers.

#[path = "../../providers/vault-transit/tests/backend/mod.rs"]
mod backend;

use std::collections::BTreeSet;
use std::fs;

use claviger_proto::v1::unwrap_batch_result::Result as ItemResult;
use claviger_proto::v1::{UnwrapBatchRequest, UnwrapRequest};
use claviger_provider_api::{Algorithm, KeyMaterial, Parameters, PublicKey};
use e2e::daemon::claviger;
use e2e::pki::replace;
use e2e::process::{command, run};
use e2e::setup::{KEY, MATERIAL, wrap};
use e2e::{Connection, Daemon, DaemonFiles, RsaKey, Setup, Token, Version};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject;
use serde_json::json;
use toml::{Table, Value};
use tonic::Code;

use backend::{Backend, ROOT, Server};

fn table<const N: usize>(entries: [(&str, Value); N]) -> Value {
    Table::from_iter(entries.map(|(name, value)| (name.to_owned(), value))).into()
}

/// Adds the server as the provider `vault-a`.
fn add_vault(files: &mut DaemonFiles, server: &Server) {
    let token = files.path("vault-token");
    replace(&token, ROOT, 0o600);
    let token = table([("file", token.to_str().unwrap().into())]);
    let options = table([
        ("type", "vault-transit".into()),
        ("address", server.address.as_str().into()),
        ("auth", table([("token", token)])),
    ]);
    let Value::Table(options) = options else { unreachable!("it was made as one") };
    files.provider("vault-a", options);
}

fn in_vault(field: &str) -> Value {
    let names = [("provider", "vault-a"), ("path", "secret/data/claviger"), ("field", field)];
    table([("vault", table(names.map(|(name, value)| (name, value.into()))))])
}

async fn public_key(server: &Server, key: &str) -> PublicKey {
    let description = server.get(&format!("transit/keys/{key}")).await;
    let pem = description["data"]["keys"]["1"]["public_key"].as_str().unwrap().to_owned();
    let spki = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes()).unwrap();
    PublicKey::from_spki(&spki).unwrap()
}

/// A batch of 64 values, each of its own number; those at `bad` have a bit flipped.
fn batch(public_key: &PublicKey, bad: &[u8]) -> UnwrapBatchRequest {
    let item = |n: u8| {
        let material = KeyMaterial::copied_from(&[n; 32]);
        let parameters = Parameters::of(Algorithm::RsaOaep256);
        let mut wrapped = public_key.wrap(&material, &parameters).unwrap();
        wrapped[100] ^= u8::from(bad.contains(&n));
        UnwrapRequest { key: KEY.into(), wrapped: wrapped.into(), ..UnwrapRequest::default() }
    };
    UnwrapBatchRequest { items: (0..64).map(item).collect() }
}

/// The codes of a batch's items, each of whose material was right.
async fn codes(connection: &Connection, batch: &UnwrapBatchRequest) -> Vec<Code> {
    let answer = connection.unwrap_batch(batch).await.unwrap();
    assert_eq!(answer.results.len(), batch.items.len());
    let code = |(n, result): (u8, claviger_proto::v1::UnwrapBatchResult)| match result.result {
        Some(ItemResult::Unwrapped(unwrapped)) => {
            assert_eq!(&*unwrapped.key_material, [n; 32], "item {n}");
            Code::Ok
        }
        Some(ItemResult::Error(error)) => Code::from(error.code),
        None => panic!("item {n} has no result"),
    };
    (0..).zip(answer.results).map(code).collect()
}

async fn a_batch_is_one_request_and_each_item_is_a_call_of_its_own(backend: Backend) {
    let server = Server::start(backend).await;
    server.make_key(KEY, 2048).await;
    let public_key = public_key(&server, KEY).await;
    let mut files = DaemonFiles::new();
    add_vault(&mut files, &server);
    let pin = claviger_provider_api::public_key::sha256(public_key.spki());
    let version = Version::active(1, &RsaKey::shared(2048), "vault-a", "transit/user-keys:1")
        .with("public_key_sha256", hex::encode(pin));
    files.key(KEY, &["RSA-OAEP-256"], vec![version]);
    let free = files.caller("free", &[KEY], &["unwrap"]);
    files.limit("free", "failed_unwraps", "off");
    let limited = files.caller("limited", &[KEY], &["unwrap"]);
    files.limit("limited", "failed_unwraps", "3/h");
    let daemon = Daemon::start(&mut files);
    let ca = files.pki.ca_der();
    let connection = Connection::open(daemon.address(), ca.clone(), Some(&free)).await.unwrap();

    let outcomes = codes(&connection, &batch(&public_key, &[7, 50])).await;
    for (n, code) in (0_u8..).zip(&outcomes) {
        let expected = if matches!(n, 7 | 50) { Code::InvalidArgument } else { Code::Ok };
        assert_eq!(*code, expected, "item {n}");
    }
    let records = files.audit_records();
    let of_batch: Vec<_> = records.iter().filter(|r| r["batch_item"].is_number()).collect();
    let items: BTreeSet<u64> = of_batch.iter().filter_map(|r| r["batch_item"].as_u64()).collect();
    assert_eq!((of_batch.len(), items.len()), (64, 64), "one record for each item");
    let ids: BTreeSet<&str> =
        of_batch.iter().filter_map(|record| record["backend_request_id"].as_str()).collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    let failed = of_batch.iter().filter(|record| record["reason"] == "unwrap_failed");
    assert_eq!(failed.count(), 2);
    assert_eq!(daemon.count("claviger_retries_total", &[]), 0);

    // No more are sent at a time than may fail; and what is left after the limit is not sent at all.
    let connection = Connection::open(daemon.address(), ca, Some(&limited)).await.unwrap();
    let outcomes = codes(&connection, &batch(&public_key, &[7, 50])).await;
    assert_eq!(outcomes.iter().filter(|code| **code == Code::Ok).count(), 62);
    let outcomes = codes(&connection, &batch(&public_key, &[0])).await;
    assert_eq!(outcomes[0], Code::InvalidArgument);
    let refused = outcomes.iter().filter(|code| **code == Code::ResourceExhausted).count();
    assert_eq!(refused, 63, "{outcomes:?}");
    let serving = daemon.metric("claviger_key_up", &[]);
    assert!((serving - 1.0).abs() < f64::EPSILON, "bad values say nothing of the key's health");
}

async fn a_pin_in_vault_opens_a_token_as_soon_as_vault_does(backend: Backend) {
    let server = Server::start(backend).await;
    let share = server.unseal_share().await;
    let (token, faults) = Token::softhsm().through_fault_module();
    let pin = fs::read_to_string(token.pin_file()).unwrap();
    server.set("secret/data/claviger", json!({"data": {"pin": pin}})).await;
    let mut setup = Setup::on(&token);
    add_vault(&mut setup.files, &server);
    setup.files.set("providers.hsm-a.pin", in_vault("pin"));

    server.set("sys/seal", json!({})).await;
    let daemon = setup.start();
    assert_eq!(setup.ask(&daemon).await, Code::Unavailable);
    daemon.wait_for_log("the field \"pin\" of secret/data/claviger through provider vault-a");
    assert_eq!(faults.count("C_Login"), 0);
    server.set("sys/unseal", json!({"key": share})).await;
    setup.wait_for(&daemon, Code::Ok).await;
    assert_eq!(faults.count("C_Login"), 1);
    assert!(!daemon.log().contains(pin.trim()), "the PIN is in the log");

    // A reload that makes the Vault provider anew makes the token's provider anew, with a process and a
    // login of its own.
    setup.files.set("providers.vault-a.timeout", "9s");
    setup.files.write();
    daemon.reload();
    daemon.wait_for_log("configuration reloaded");
    setup.wait_for(&daemon, Code::Ok).await;
    assert_eq!(faults.count("C_Login"), 2);
}

async fn a_pfx_in_vault_is_checked_pinned_and_served(backend: Backend) {
    let server = Server::start(backend).await;
    let key = RsaKey::shared(2048);
    let mut files = DaemonFiles::new();
    add_vault(&mut files, &server);
    let path = |name: &str| files.path(name).to_str().unwrap().to_owned();
    key.write_pem(&files.path("key.pem"));
    let (pem, crt, pfx) = (path("key.pem"), path("key.crt"), path("key.pfx"));
    let openssl = |arguments: &str| {
        run(command("openssl").args(arguments.split(' ')));
    };
    openssl(&format!("req -x509 -new -key {pem} -subj /CN=kc -days 2 -out {crt}"));
    openssl(&format!("pkcs12 -export -inkey {pem} -in {crt} -passout pass:marker -out {pfx}"));
    openssl(&format!("base64 -A -in {pfx} -out {pfx}.b64"));
    let base64 = fs::read_to_string(files.path("key.pfx.b64")).unwrap();
    let secret = json!({"data": {"pfx": base64, "passphrase": "marker"}});
    server.set("secret/data/claviger", secret).await;
    for name in ["key.pem", "key.pfx", "key.pfx.b64"] {
        fs::remove_file(files.path(name)).unwrap();
    }
    let mut provider = Table::new();
    provider.insert("type".into(), "software".into());
    provider.insert("files".into(), table([("kc.pfx", in_vault("pfx"))]));
    provider.insert("passphrase".into(), in_vault("passphrase"));
    files.provider("files", provider);
    files.key(KEY, &["RSA-OAEP"], vec![Version::active(1, &key, "files", "kc.pfx")]);
    let caller = files.caller("key-connector", &[KEY], &["unwrap"]);

    // Without its pin, for `config pin` to find.
    let text = files.configuration.to_string();
    let pinless = text.lines().filter(|line| !line.starts_with("public_key_sha256"));
    let pinless = pinless.collect::<Vec<_>>().join("\n");
    replace(&files.configuration_file(), &pinless, 0o644);
    let config = |what: &str| {
        let mut command = command(claviger());
        command.args(["config", what, "--config"]).arg(files.configuration_file());
        run(&mut command)
    };
    let said = String::from_utf8(config("pin").stdout).unwrap();
    assert!(said.contains(&key.public_key_sha256()), "{said}");
    let said = String::from_utf8(config("check").stdout).unwrap();
    let note = "providers.files.files.\"kc.pfx\": the field \"pfx\" of secret/data/claviger in provider vault-a was not read";
    assert!(said.contains(note), "{said}");

    let daemon = Daemon::start(&mut files);
    let connection = Connection::open(daemon.address(), files.pki.ca_der(), Some(&caller)).await;
    let wrapped = wrap(&key).into();
    let request = UnwrapRequest { key: KEY.into(), wrapped, ..UnwrapRequest::default() };
    let answer = connection.unwrap().unwrap(&request).await.unwrap();
    assert_eq!(&*answer.key_material, MATERIAL);
    let log = daemon.log();
    assert!(!log.contains("marker") && !log.contains(&base64[..40]), "a secret is in {log}");
}

on_both!(
    a_batch_is_one_request_and_each_item_is_a_call_of_its_own,
    a_pin_in_vault_opens_a_token_as_soon_as_vault_does,
    a_pfx_in_vault_is_checked_pinned_and_served,
);

//! The independent Python client, made from the .proto alone, against the daemon on each backend.

use e2e::{Backend, Daemon, DaemonFiles, RsaKey, python};

const OAEP: [&str; 4] = ["RSA-OAEP", "RSA-OAEP-256", "RSA-OAEP-384", "RSA-OAEP-512"];

#[test]
fn python_reads_wraps_unwraps_and_rewraps_on_the_software_provider() {
    tell(&Backend::software(), &[&OAEP[..], &["RSA1_5"]].concat());
}

#[test]
fn python_reads_wraps_unwraps_and_rewraps_on_softhsm() {
    tell(&Backend::softhsm(), &["RSA-OAEP", "RSA1_5"]);
}

#[test]
fn python_reads_wraps_unwraps_and_rewraps_on_softhsm_with_software_oaep() {
    tell(&Backend::softhsm_with_software_oaep(), &OAEP);
}

#[test]
fn python_reads_wraps_unwraps_and_rewraps_on_kryoptic() {
    tell(&Backend::kryoptic(), &[&OAEP[..], &["RSA1_5"]].concat());
}

fn tell(backend: &Backend, algorithms: &[&str]) {
    let mut files = DaemonFiles::new();
    backend.configure(&mut files);
    let version = backend.version(&files, 3, &RsaKey::generate(3072), 1);
    files.key("user-keys", algorithms, vec![version]);
    let caller = files.caller_with(
        "key-connector",
        r#"[{ keys = ["user-keys"], operations = ["wrap", "unwrap", "rewrap", "read"], to = ["user-keys"], to_public_keys = "any" }]"#,
    );
    let daemon = Daemon::start(&mut files);

    let seen = python::story(&files, &daemon, &caller, "user-keys");
    assert_eq!(seen["listed"], serde_json::json!(["user-keys"]));
    assert_eq!(seen["operations"], serde_json::json!(["wrap", "unwrap", "rewrap", "read"]));
    assert_eq!(seen["algorithms"], serde_json::json!(algorithms));
    assert_eq!(seen["unwrapped_what_python_wrapped"], serde_json::json!(algorithms));
    assert_eq!(seen["rewrapped_to"], serde_json::json!(["key", "public key"]));
    assert_eq!(seen["modulus_bits"], 3072);
    assert_eq!(seen["health"], "SERVING");

    // The request id that Python saw is the one under which its unwrap is recorded.
    let record = files
        .audit_records()
        .into_iter()
        .find(|record| record["request_id"] == seen["request_id"])
        .expect("an audit record under the request id");
    assert_eq!(record["operation"], "unwrap");
    assert_eq!(record["caller"], "key-connector");
    assert_eq!(record["outcome"], "ok");
    let exit = daemon.terminate();
    assert_eq!(exit.code, Some(0), "{}", exit.log);
}

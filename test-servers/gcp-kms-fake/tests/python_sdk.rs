//! Google's own Python client (REST transport, its own credentials) must work against the fake.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use gcp_kms_fake::Fake;

/// Lines that the client prints, one for each thing it showed.
const SHOWN: usize = 15;

#[test]
fn googles_python_client_finds_the_service_it_knows() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/vendor-sdks");
    let made = Command::new(script).stdin(Stdio::null()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let python = String::from_utf8(made.stdout).unwrap();

    let fake = Fake::start();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let subject = path("subject-token");
    fs::write(&subject, fake.subject_token()).unwrap();
    fs::write(path("account"), fake.service_account()).unwrap();
    fs::write(path("federated"), fake.external_account(&subject, false)).unwrap();
    fs::write(path("impersonated"), fake.external_account(&subject, true)).unwrap();

    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python");
    let output = Command::new(python.trim())
        .env_clear()
        .env("HOME", folder.path())
        .env("PATH", "/usr/bin:/bin")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(tests.join("sdk.py"))
        .arg(fake.endpoint())
        .args(["account", "federated", "impersonated"].map(path))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{wrong}");
    assert_eq!(said.lines().count(), SHOWN, "{said}{wrong}");
    let asked = fake.asked();
    for operation in ["token", "sts", "generateAccessToken"] {
        assert!(asked.iter().any(|asked| asked == operation), "{operation} was not asked for");
    }
    println!("google-cloud-kms against the fake:\n{said}");
}

#[test]
fn the_program_prints_its_endpoint_and_ends_with_its_stdin() {
    let folder = tempfile::tempdir().unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_gcp-kms-fake"))
        .arg(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut endpoint = String::new();
    BufReader::new(program.stdout.take().unwrap()).read_line(&mut endpoint).unwrap();
    assert!(endpoint.starts_with("http://127.0.0.1:"), "{endpoint}");
    let account = fs::read_to_string(folder.path().join("service-account.json")).unwrap();
    assert!(account.contains(&format!("{}/token", endpoint.trim())), "{endpoint}");
    drop(program.stdin.take());
    assert!(program.wait().unwrap().success());
}

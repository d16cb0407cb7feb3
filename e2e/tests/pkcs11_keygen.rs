//! The key that the guide makes in a token unwraps and can do nothing else; of others it is said.

use std::io::Write;
use std::process::{Command, Stdio};

use e2e::daemon::claviger;
use e2e::process::{command, repository};
use e2e::setup::KEY;
use e2e::token::PIN;
use e2e::{DaemonFiles, RsaKey, Token, Version, python};
use serde_json::{Value, json};

/// Makes a key as docs/backends/pkcs11.md says.
fn keygen(token: &Token, label: &str, id: &str) {
    let mut child = command(python::interpreter())
        .arg(repository().join("deploy/pkcs11/keygen.py"))
        .arg(token.module())
        .args([token.label(), label, id, "2048"])
        .envs(token.environment().iter().cloned())
        .stdin(Stdio::piped())
        .spawn()
        .expect("Python starts");
    writeln!(child.stdin.take().unwrap(), "{PIN}").unwrap();
    assert!(child.wait().unwrap().success());
}

fn files(token: &Token, id: &str) -> DaemonFiles {
    let mut files = DaemonFiles::new();
    files.token("hsm-a", token);
    let locator = format!("pkcs11:object={KEY};id=%{id}");
    // No pin fits a key that was made in the token; that is no matter here.
    let version = Version::active(1, &RsaKey::shared(2048), "hsm-a", &locator);
    files.key(KEY, &["RSA-OAEP"], vec![version]);
    files.write();
    files
}

fn run(files: &DaemonFiles, arguments: &[&str]) -> (Value, String) {
    let mut program: Command = command(claviger());
    program.args(arguments).arg("--config").arg(files.configuration_file());
    let output = program.envs(files.environment().iter().cloned()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (serde_json::from_slice(&output.stdout).unwrap_or_default(), text)
}

#[test]
fn the_guides_command_makes_a_key_that_unwraps_and_does_nothing_else() {
    let token = Token::softhsm();
    keygen(&token, KEY, "07");
    let (report, _) = run(&files(&token, "07"), &["doctor", "--json"]);
    let replica = &report["keys"][0]["versions"][0]["replicas"][0];
    assert_eq!(replica["algorithms"][0]["proven"], true, "{report:#}");
    assert_eq!(replica["extractable"], false, "{report:#}");
    assert_eq!(replica["unneeded_rights"], json!([]), "{report:#}");
}

#[test]
fn rights_that_a_key_does_not_need_are_named_by_doctor_and_config_pin() {
    let token = Token::softhsm();
    let key = RsaKey::shared(2048);
    token.import(&key, KEY, "07");
    let files = files(&token, "07");
    let (report, _) = run(&files, &["doctor", "--json"]);
    let rights = &report["keys"][0]["versions"][0]["replicas"][0]["unneeded_rights"];
    assert!(rights.as_array().unwrap().contains(&json!("CKA_UNWRAP")), "{report:#}");
    let (_, said) = run(&files, &["config", "pin"]);
    assert!(said.contains("also allows ") && said.contains("CKA_UNWRAP"), "{said}");
}

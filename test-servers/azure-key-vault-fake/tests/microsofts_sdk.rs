//! The fake under Microsoft's own Python SDK, so that it is not judged by our own provider alone.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

#[test]
fn microsofts_python_sdk_works_against_the_fake() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let made =
        Command::new(here.join("../../scripts/vendor-sdks")).stdin(Stdio::null()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let python = String::from_utf8(made.stdout).unwrap();

    let (mut fake, line) = start();
    let folder = tempfile::tempdir().unwrap();
    let mut story = Command::new(python.trim())
        .arg(here.join("tests/python/story.py"))
        // Variables such as REQUESTS_CA_BUNDLE would come before the fake's own CA.
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .envs([("HOME", folder.path()), ("TMPDIR", folder.path())])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    story.stdin.take().unwrap().write_all(line.as_bytes()).unwrap();
    let output = story.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let seen: Value = serde_json::from_slice(&output.stdout).unwrap();

    assert_eq!(seen["unwrapped"], json!(["RSA-OAEP", "RSA-OAEP-256", "RSA1_5"]));
    assert_eq!(seen["signed"], json!(["PS256", "PS384", "PS512", "RS256", "RS384", "RS512"]));
    assert_eq!(seen["imported_bits"], 3072);
    assert_eq!(seen["pages"], json!([10, 10, 10, 2]));
    assert_eq!(seen["names"], json!(["imported", "made-2048", "made-3072", "made-4096"]));
    let oaep = json!([400, "BadParameter", null, "Error occurred while decoding OAEP padding."]);
    for bad in ["wrong_version", "flipped", "short"] {
        assert_eq!(seen[bad], oaep, "{bad}");
    }
    let forbidden = |inner: &str, message: &str| json!([403, "Forbidden", inner, message]);
    let table = [
        (
            "not_in_key_ops",
            forbidden("KeyOperationForbidden", "Operation sign is not permitted on this key."),
        ),
        (
            "disabled_unwrap",
            forbidden("KeyDisabled", "Operation unwrapKey is not allowed on a disabled key."),
        ),
        (
            "disabled_sign",
            forbidden("KeyDisabled", "Operation sign is not allowed on a disabled key."),
        ),
        (
            "expired_sign",
            forbidden("KeyExpired", "Operation sign is not allowed on an expired key."),
        ),
        ("missing", json!([404, "KeyNotFound"])),
        ("missing_version", json!([404, "KeyNotFound"])),
        ("wrong_secret", json!(true)),
    ];
    for (name, expected) in table {
        assert_eq!(seen[name], expected, "{name}");
    }

    // It ends when its stdin closes.
    drop(fake.stdin.take());
    assert!(fake.wait().unwrap().success());
}

/// The fake as a program, and the line that says where it is.
fn start() -> (Child, String) {
    let mut fake = Command::new(env!("CARGO_BIN_EXE_azure-key-vault-fake"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(fake.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (fake, line)
}

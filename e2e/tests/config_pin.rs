//! `claviger config pin`: from a configuration without pins to a daemon that serves.

use std::fs;
use std::process::Output;

use e2e::daemon::claviger;
use e2e::pki::replace;
use e2e::process::command;
use e2e::setup::KEY;
use e2e::{Daemon, RsaKey, Setup, Token, Version};
use tonic::Code;

fn config(setup: &Setup, what: &str) -> Output {
    command(claviger())
        .args(["config", what, "--config"])
        .arg(setup.files.configuration_file())
        .envs(setup.files.environment().iter().cloned())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The daemon's configuration without pins and with comments; what the file holds.
fn without_pins(setup: &Setup) -> String {
    let mut bare = String::from("# Ours, and to stay.\n");
    for line in setup.files.configuration.to_string().lines() {
        if !line.starts_with("public_key_sha256") {
            bare += line;
            bare +=
                if line.starts_with("version") { " # as agreed with the auditors\n" } else { "\n" };
        }
    }
    replace(&setup.files.configuration_file(), &bare, 0o644);
    bare
}

async fn from_no_pin_to_service(mut setup: Setup) {
    let bare = without_pins(&setup);
    assert_eq!(config(&setup, "check").status.code(), Some(78));

    let pinned = config(&setup, "pin");
    assert!(pinned.status.success(), "{}", text(&pinned.stderr));
    let hash = setup.key.public_key_sha256();
    assert!(text(&pinned.stdout).contains(&hash), "{}", text(&pinned.stdout));
    let after = fs::read_to_string(setup.files.configuration_file()).unwrap();
    let added: Vec<&str> = after.lines().filter(|line| !bare.lines().any(|l| l == *line)).collect();
    assert_eq!(added, [format!("public_key_sha256 = \"{hash}\"")]);
    assert!(bare.lines().all(|line| after.lines().any(|l| l == line)), "{after}");

    let checked = config(&setup, "check");
    assert!(checked.status.success(), "{}", text(&checked.stderr));
    // A second time changes nothing.
    let again = config(&setup, "pin");
    assert!(again.status.success() && text(&again.stdout).contains("unchanged"), "{again:?}");
    assert_eq!(fs::read_to_string(setup.files.configuration_file()).unwrap(), after);
    // The daemon reads the very file.
    setup.files.configuration = after.parse().unwrap();
    let daemon = setup.start();
    assert_eq!(setup.ask(&daemon).await, Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_in_a_token_is_pinned_checked_and_served() {
    from_no_pin_to_service(Setup::on(&Token::softhsm())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_in_a_file_is_pinned_checked_and_served() {
    from_no_pin_to_service(Setup::software()).await;
}

#[test]
fn serve_refuses_what_has_no_pin() {
    let mut setup = Setup::software();
    let version = &mut setup.files.configuration["keys"][KEY]["versions"][0];
    version.as_table_mut().unwrap().remove("public_key_sha256");
    let exit = Daemon::spawn(&setup.files).wait();
    assert_eq!(exit.code, Some(78));
    assert!(exit.log.contains("claviger config pin"), "{}", exit.log);
}

#[test]
fn replicas_that_disagree_or_are_silent_are_not_pinned() {
    let token = Token::softhsm();
    let mut setup = Setup::on(&token);
    let other = RsaKey::generate(2048);
    token.import(&other, "other", "02");
    let version = Version::active(1, &setup.key, "hsm-a", "pkcs11:object=user-keys");
    let version = version.replica("hsm-a", "pkcs11:object=other");
    setup.files.key(KEY, &["RSA-OAEP"], vec![version]);
    let bare = without_pins(&setup);
    let output = config(&setup, "pin");
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains(&setup.key.public_key_sha256()), "{said}");
    assert!(said.contains(&other.public_key_sha256()), "{said}");
    assert_eq!(fs::read_to_string(setup.files.configuration_file()).unwrap(), bare);

    token.delete("other");
    let output = config(&setup, "pin");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("object=other"), "{}", text(&output.stderr));
    assert_eq!(fs::read_to_string(setup.files.configuration_file()).unwrap(), bare);
}

#[test]
fn a_pin_that_is_there_is_never_changed() {
    let mut setup = Setup::software();
    let other = RsaKey::generate(2048);
    let version = Version::active(1, &other, "files", "user-keys.pem");
    setup.files.key(KEY, &["RSA-OAEP"], vec![version]);
    setup.files.write();
    let before = fs::read_to_string(setup.files.configuration_file()).unwrap();
    let output = config(&setup, "pin");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains(&setup.key.public_key_sha256()), "{output:?}");
    assert_eq!(fs::read_to_string(setup.files.configuration_file()).unwrap(), before);
}

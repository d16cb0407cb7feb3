//! `claviger init`: from a token and four answers to a daemon that unwraps, by flags and on a terminal.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

use e2e::daemon::claviger;
use e2e::process::{command, repository, run};
use e2e::token::{Attributes, PIN};
use e2e::{DaemonFiles, RsaKey, Token};
use serde_json::{Value, json};

/// How long a daemon may take until it answers.
const PATIENCE: Duration = Duration::from_mins(2);

/// A folder for a set-up, and the token behind it.
struct Place {
    token: Token,
    /// For two ports that are free.
    files: DaemonFiles,
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let token = Token::softhsm();
        token.import(&RsaKey::shared(2048), "user-keys", "01");
        Self { token, files: DaemonFiles::new(), folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("kms").join(name)
    }

    /// The command with the flags that are no question.
    fn init(&self, command: &mut Command, more: &[&str]) -> Output {
        command
            .args(["init", "--server-name", "localhost", "--config"])
            .arg(self.path("claviger.toml"))
            .arg("--listen")
            .arg(self.files.address().to_string())
            .arg("--operations-listen")
            .arg(self.files.operations_address().to_string())
            .args(more)
            .envs(self.token.environment().iter().cloned())
            .output()
            .unwrap()
    }

    fn module(&self) -> &str {
        self.token.module().to_str().unwrap()
    }

    /// Serves what was written, and wraps and unwraps with the client file that was written.
    fn serves(&self, caller: &str) {
        self.serves_key("user-keys", caller);
    }

    fn serves_key(&self, key: &str, caller: &str) {
        let daemon = command(claviger())
            .args(["serve", "--config"])
            .arg(self.path("claviger.toml"))
            .stderr(fs::File::create(self.path("daemon.log")).unwrap())
            .spawn()
            .unwrap();
        let _daemon = Ended(daemon);
        let client = self.path(&format!("pki/{caller}.toml"));
        let call = |operation: &str, file: &Path| {
            let mut call = command(claviger());
            call.args([operation, key, "--client"]).arg(&client).arg(file);
            call.output().unwrap()
        };
        let (material, wrapped) = (self.path("key"), self.path("wrapped"));
        fs::write(&material, [7; 32]).unwrap();
        let begun = Instant::now();
        let said = loop {
            let said = call("wrap", &material);
            if said.status.success() {
                break said;
            }
            let log = fs::read_to_string(self.path("daemon.log")).unwrap();
            assert!(begun.elapsed() < PATIENCE, "{said:?}\n{log}");
            sleep(Duration::from_millis(50));
        };
        fs::write(&wrapped, said.stdout).unwrap();
        let said = call("unwrap", &wrapped);
        assert_eq!(said.stdout, [7; 32], "{}", text(&said.stderr));
    }
}

/// A process that ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Both fail only where it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn flags_lead_from_a_token_to_a_daemon_that_unwraps_and_nothing_is_written_over() {
    let place = Place::new();
    let pin_file = place.token.pin_file().to_str().unwrap();
    let flags =
        ["--yes", "--json", "--module", place.module(), "--pin-file", pin_file, "--caller", "kc"];
    let said = place.init(&mut command(claviger()), &flags);
    assert!(said.status.success(), "{}", text(&said.stderr));
    let said: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!((&said["ok"], &said["checked"]), (&json!(true), &json!(true)), "{said}");
    // The only key of the only token, and pinned.
    let hash = RsaKey::shared(2048).public_key_sha256();
    assert_eq!(said["pinned"]["pinned"][0]["public_key_sha256"], hash, "{said}");
    let written = fs::read_to_string(place.path("claviger.toml")).unwrap();
    assert!(written.contains("pkcs11:object=user-keys;id=%01"), "{written}");
    assert!(written.contains("SOFTHSM2_CONF"), "{written}");
    assert!(!written.contains(PIN), "{written}");
    for (file, expected) in [
        ("claviger.toml", 0o644),
        ("state", 0o700),
        ("tls/server.key", 0o600),
        ("pki/ca.key", 0o600),
        ("pki/kc.key", 0o600),
    ] {
        assert_eq!(mode(&place.path(file)), expected, "{file}");
    }
    place.serves("kc");

    let again = place.init(&mut command(claviger()), &flags);
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    assert!(text(&again.stderr).contains("is there already"), "{again:?}");
    let certificate = fs::read(place.path("tls/server.crt")).unwrap();
    let forced = [&flags[..], &["--force", "--caller", "backup"]].concat();
    let said = place.init(&mut command(claviger()), &forced);
    assert!(said.status.success(), "{}", text(&said.stderr));
    assert_eq!(fs::read(place.path("tls/server.crt")).unwrap(), certificate);
    let old = fs::read_to_string(place.path("claviger.toml.old")).unwrap();
    assert!(old.contains(&hash) && !old.contains("backup"), "{old}");
    place.serves("backup");
}

#[test]
fn a_terminal_is_asked_four_questions_and_a_pin_that_it_does_not_show() {
    let place = Place::new();
    let steps = json!([
        ["1. The PKCS#11 library", place.module()],
        ["2. The token?", "1"],
        ["The PIN of claviger-testhidden", PIN],
        ["3. The key?", ""],
        ["4. The programs that may call?", "kc"],
    ]);
    let mut terminal = command(repository().join("e2e/tests/init/terminal.py"));
    terminal.arg(steps.to_string()).arg(claviger());
    let said = place.init(&mut terminal, &[]);
    let shown = text(&said.stdout);
    assert!(said.status.success(), "{shown}\n{}", text(&said.stderr));
    assert!(shown.contains("pkcs11:object=user-keys;id=%01  RSA-2048"), "{shown}");
    assert!(shown.contains("pinned: user-keys version 1") && shown.contains("Next:"), "{shown}");
    assert!(!shown.contains(PIN), "{shown}");
    assert_eq!(fs::read_to_string(place.path("pin")).unwrap(), PIN);
    assert_eq!(mode(&place.path("pin")), 0o600);
    place.serves("kc");
}

#[test]
fn a_pin_that_the_token_refuses_is_asked_for_again_and_one_in_a_file_is_named() {
    let place = Place::new();
    let steps = json!([["2. The token?", ""], ["The PIN of claviger-testhidden", "00000000"],]);
    let mut terminal = command(repository().join("e2e/tests/init/terminal.py"));
    terminal.arg(steps.to_string()).arg(claviger());
    let said = place.init(&mut terminal, &["--module", place.module()]);
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    assert!(text(&said.stdout).contains("refused the login"), "{said:?}");
    assert!(!place.path("pin").exists() && !place.path("claviger.toml").exists());

    // By flags: the file is the user's own, and stays.
    place.token.write_pin("11111111");
    let pin_file = place.token.pin_file().to_str().unwrap();
    let flags = ["--yes", "--module", place.module(), "--pin-file", pin_file];
    let said = place.init(&mut command(claviger()), &flags);
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    assert!(text(&said.stderr).contains("refused the login"), "{said:?}");
    assert!(place.token.pin_file().exists());
    let loose = Attributes { extractable: true, sensitive: false, ..Attributes::default() };
    place.token.import_with(&RsaKey::generate(2048), "loose", "02", loose);
    run(command(claviger())
        .args(["pin", "clear", "--all", "--state-dir"])
        .arg(place.path("state")));
    place.token.write_pin(PIN);
    let said = place.init(&mut command(claviger()), &flags);
    let notes = text(&said.stderr);
    assert!(said.status.success(), "{notes}");
    // The other key on the token is no choice, and the reason is told.
    assert!(notes.contains("not offered: pkcs11:object=loose;id=%02"), "{notes}");
    assert!(fs::read_to_string(place.path("claviger.toml")).unwrap().contains("object=user-keys"));
}

#[test]
fn a_new_key_is_made_in_the_token_and_serves_and_one_of_a_taken_name_is_not() {
    let place = Place::new();
    let pin_file = place.token.pin_file().to_str().unwrap();
    let init = |name: &str, more: &[&str]| {
        let flags = ["--yes", "--json", "--module", place.module(), "--pin-file", pin_file];
        let key = ["--key", "new", "--caller", "kc", "--key-name", name];
        place.init(&mut command(claviger()), &[&flags, &key, more].concat())
    };
    // The token has it.
    let said = init("user-keys", &[]);
    let told = text(&said.stderr);
    assert_eq!(said.status.code(), Some(78), "{told}");
    assert!(told.contains("user-keys already") && told.contains("config pin"), "{told}");

    let said = init("next", &["--force"]);
    assert!(said.status.success(), "{}", text(&said.stderr));
    let said: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!((&said["checked"], &said["made"]["bits"]), (&json!(true), &json!(3072)), "{said}");
    let hash = said["made"]["public_key_sha256"].as_str().unwrap();
    assert_eq!(said["pinned"]["pinned"][0]["public_key_sha256"], hash, "{said}");
    let written = fs::read_to_string(place.path("claviger.toml")).unwrap();
    assert!(written.contains(hash) && written.contains("pkcs11:object=next\""), "{written}");
    place.serves_key("next", "kc");
}

#[test]
fn a_library_that_cannot_be_loaded_and_a_token_that_is_not_there_are_unreachable() {
    let place = Place::new();
    let said = place.init(&mut command(claviger()), &["--yes", "--module", "/nonexistent.so"]);
    assert_eq!(said.status.code(), Some(69), "{said:?}");
    assert!(text(&said.stderr).contains("/nonexistent.so"), "{said:?}");
    let flags = ["--yes", "--module", place.module(), "--token", "other"];
    let said = place.init(&mut command(claviger()), &flags);
    assert_eq!(said.status.code(), Some(69), "{said:?}");
    assert!(text(&said.stderr).contains("claviger-test"), "{said:?}");
    assert!(!place.path("").exists());
}

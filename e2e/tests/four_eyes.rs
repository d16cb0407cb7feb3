//! Four eyes: keys and callers are accepted only with signatures of real `ssh-keygen` and `minisign`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use e2e::daemon::claviger;
use e2e::{Daemon, DaemonFiles};
use serde_json::{Value, json};

/// A daemon with the signers alice and carol (SSH) and bob (minisign), of whom two must sign.
struct Setup {
    files: DaemonFiles,
    folder: PathBuf,
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().expect("the program is installed");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn ssh_key(folder: &Path, name: &str) -> String {
    let key = folder.join(name);
    run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key));
    fs::read_to_string(key.with_extension("pub")).unwrap().trim().to_owned()
}

impl Setup {
    fn new() -> Self {
        let mut files = DaemonFiles::new();
        let folder = files.path("signers");
        fs::create_dir(&folder).unwrap();
        let (alice, carol) = (ssh_key(&folder, "alice"), ssh_key(&folder, "carol"));
        ssh_key(&folder, "mallory");
        run(Command::new("minisign")
            .args(["-G", "-W", "-p"])
            .arg(folder.join("bob.pub"))
            .arg("-s")
            .arg(folder.join("bob")));
        let bob = fs::read_to_string(folder.join("bob.pub")).unwrap();
        let bob = bob.lines().nth(1).unwrap();
        let signers: toml::Table = format!(
            "signers = [{{ name = \"alice\", ssh = \"{alice}\" }}, {{ name = \"bob\", minisign = \"{bob}\" }}, {{ name = \"carol\", ssh = \"{carol}\" }}]"
        )
        .parse()
        .unwrap();
        files.set("policy.signers", signers["signers"].clone());
        files.set("policy.threshold", 2);
        files.set("policy.serial", 1);
        fs::create_dir(files.path("claviger.toml.signatures")).unwrap();
        let setup = Self { files, folder };
        setup.files.write();
        setup
    }

    /// Counts the configuration up and writes it, so that the signatures of before do not count.
    fn next(&mut self, serial: i64) {
        self.files.set("policy.serial", serial);
        self.files.write();
    }

    fn canonical(&self) -> PathBuf {
        let output = Command::new(claviger())
            .args(["config", "canonical", "--config"])
            .arg(self.files.configuration_file())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let path = self.folder.join("canonical");
        fs::write(&path, output.stdout).unwrap();
        path
    }

    fn signature(&self, name: &str) -> PathBuf {
        self.files.path("claviger.toml.signatures").join(name)
    }

    fn sign_by_ssh(&self, key: &str, namespace: &str) {
        let text = self.canonical();
        let _ = fs::remove_file(self.folder.join("canonical.sig"));
        let mut sign = Command::new("ssh-keygen");
        sign.args(["-q", "-Y", "sign", "-n", namespace, "-f"])
            .arg(self.folder.join(key))
            .arg(&text);
        run(&mut sign);
        fs::copy(self.folder.join("canonical.sig"), self.signature(&format!("{key}.sig"))).unwrap();
    }

    fn sign_by_minisign(&self) {
        let text = self.canonical();
        let signature = self.signature("bob.minisig");
        let mut sign = Command::new("minisign");
        sign.arg("-S").arg("-s").arg(self.folder.join("bob")).arg("-x").arg(signature).arg("-m");
        run(sign.arg(text));
    }

    fn take_signatures_away(&self) {
        for entry in fs::read_dir(self.files.path("claviger.toml.signatures")).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
    }

    /// Starts the daemon with the file as it is.
    fn start(&self) -> Daemon {
        let mut daemon = Daemon::spawn(&self.files);
        daemon.wait_until_ready().unwrap_or_else(|exit| panic!("{}", exit.log));
        daemon
    }

    /// What a start with the file as it is says, which is refused.
    fn refusal(&self) -> String {
        let mut serve = Command::new(claviger());
        serve.args(["serve", "--config"]).arg(self.files.configuration_file());
        let output = serve.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{said}");
        said
    }

    fn last(&self, event: &str) -> Value {
        let records = self.files.audit_records();
        records.into_iter().rfind(|record| record["event"] == event).unwrap()
    }
}

#[test]
fn too_few_good_signatures_are_refused_with_who_signed_and_who_is_missing() {
    let setup = Setup::new();
    let said = setup.refusal();
    assert!(
        said.contains(
            "0 of the 2 signatures that are needed: signed by none; missing: alice, bob, carol"
        ),
        "{said}"
    );
    setup.sign_by_ssh("alice", "claviger-config");
    let said = setup.refusal();
    assert!(
        said.contains(
            "1 of the 2 signatures that are needed: signed by alice; missing: bob, carol"
        ),
        "{said}"
    );
    setup.sign_by_ssh("carol", "file");
    let said = setup.refusal();
    assert!(
        said.contains("missing: bob, carol; carol.sig of carol is for the namespace \"file\""),
        "{said}"
    );
    setup.sign_by_ssh("mallory", "claviger-config");
    let said = setup.refusal();
    assert!(said.contains("mallory.sig is by no signer's key"), "{said}");
    // The same signer twice is one signer.
    fs::copy(setup.signature("alice.sig"), setup.signature("again.sig")).unwrap();
    let said = setup.refusal();
    assert!(said.contains("1 of the 2 signatures"), "{said}");
}

#[test]
fn two_of_three_are_accepted_and_recorded_and_an_older_signature_is_not() {
    let mut setup = Setup::new();
    setup.sign_by_ssh("alice", "claviger-config");
    setup.sign_by_minisign();
    let daemon = setup.start();
    assert_eq!(setup.last("start")["signers"], json!(["alice", "bob"]));

    // What the file does not mean needs no signature, and what is left out of the form.
    setup.files.set("log.filter", "info");
    setup.files.write();
    daemon.reload();
    daemon.wait_for_log("configuration reloaded");

    setup.files.caller_with("new", "[]");
    setup.next(2);
    daemon.reload();
    daemon.wait_for_log("reload refused");
    let said = setup.last("reload-refused")["error"].as_str().unwrap().to_owned();
    for part in [
        "signed by none",
        "alice.sig of alice is over another configuration",
        "bob.minisig of bob is over another configuration",
    ] {
        assert!(said.contains(part), "{said}");
    }
    setup.sign_by_ssh("carol", "claviger-config");
    setup.sign_by_minisign();
    daemon.reload();
    let begun = std::time::Instant::now();
    while setup.last("reload")["signers"] != json!(["bob", "carol"]) {
        assert!(begun.elapsed().as_secs() < 60, "{}", daemon.log());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    daemon.terminate();
}

#[test]
fn one_who_can_edit_the_file_alone_can_neither_change_the_policy_nor_put_an_older_file_back() {
    let mut setup = Setup::new();
    setup.sign_by_ssh("alice", "claviger-config");
    setup.sign_by_minisign();
    setup.start().terminate();
    let first = fs::read_to_string(setup.files.configuration_file()).unwrap();
    let kept = setup.files.path("state").join("policy.json");
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);

    // Alice alone makes herself enough, which the policy before does not accept.
    setup.files.set("policy.threshold", 1);
    setup.next(2);
    setup.take_signatures_away();
    setup.sign_by_ssh("alice", "claviger-config");
    let said = setup.refusal();
    assert!(said.contains("1 of the 2 signatures of the policy in force"), "{said}");
    // And no policy at all is a change of it.
    let mut without: toml::Table = first.parse().unwrap();
    without.remove("policy").unwrap();
    fs::write(setup.files.configuration_file(), without.to_string()).unwrap();
    let said = setup.refusal();
    assert!(said.contains("of the policy in force, which the file cannot change alone"), "{said}");

    // Two take Alice out.
    setup.files.set("policy.threshold", 2);
    let signers = first.parse::<toml::Table>().unwrap()["policy"]["signers"].as_array().unwrap()
        [1..]
        .to_vec();
    setup.files.set("policy.signers", signers);
    setup.next(2);
    setup.sign_by_minisign();
    setup.sign_by_ssh("carol", "claviger-config");
    setup.start().terminate();
    assert_eq!(setup.last("start")["signers"], json!(["bob", "carol"]));
    setup.next(3);
    setup.take_signatures_away();
    setup.sign_by_ssh("alice", "claviger-config");
    setup.sign_by_minisign();
    let said = setup.refusal();
    assert!(
        said.contains("alice.sig is by no signer's key") && said.contains("missing: carol"),
        "{said}"
    );

    // The first file, which two have signed, with its signatures.
    fs::write(setup.files.configuration_file(), &first).unwrap();
    let said = setup.refusal();
    assert!(said.contains("an older one cannot be put back"), "{said}");
}

//! The commands of the pages, run as they stand there on a host of their own (mounts, processes and
//! network; systemd's part is played by `systemctl` beside this file): docs/installation.md from an
//! empty system to the first call, then what the other pages tell to do with it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Output;

use e2e::daemon::claviger;
use e2e::process::{command, repository};

/// Pages whose every command is run here or says why not.
const PAGES: [&str; 11] = [
    "README.md",
    "docs/installation.md",
    "docs/operations.md",
    "docs/rotate.md",
    "docs/tasks/first-hsm.md",
    "docs/tasks/hsm-lost.md",
    "docs/tasks/pin-changed.md",
    "docs/tasks/certificate-expired.md",
    "docs/tasks/upgrade.md",
    "docs/backends/pkcs11.md",
    "docs/pkcs11-module.md",
];
/// Stands before commands that are run.
const RUN: &str = "<!-- run -->";
/// Stands before commands that are not, with the reason.
const NOT_RUN: &str = "<!-- not run: ";
/// The last part of the installation page takes everything away again.
const REMOVE: &str = "## Remove it";

fn page(name: &str) -> String {
    let path = repository().join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Each block of commands with the line before it.
fn blocks(text: &str) -> Vec<(&str, String)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut blocks = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        if *line.trim_start() == *"```sh" {
            let inside = lines[at + 1..].iter().take_while(|line| line.trim() != "```");
            let inside: Vec<&str> = inside.map(|line| line.get(indent..).unwrap_or("")).collect();
            let before = at.checked_sub(1).map_or("", |before| lines[before].trim());
            blocks.push((before, inside.join("\n")));
        }
    }
    blocks
}

/// The commands of a part of a page that are to be run, in one script.
fn script(text: &str) -> String {
    let run = blocks(text).into_iter().filter(|(before, _)| *before == RUN);
    run.map(|(_, commands)| commands + "\n").collect()
}

/// A host on which nothing is installed, in which `script` was run by `sh -e`.
fn on_a_new_host(script: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["host", "bin", "repository/target/release"] {
        fs::create_dir_all(at(name)).unwrap();
    }
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/installation");
    for name in ["systemctl", "sudo"] {
        symlink(beside.join(name), at("bin").join(name)).unwrap();
    }
    symlink(claviger(), at("repository/target/release/claviger")).unwrap();
    for name in ["deploy", "docs", "proto"] {
        symlink(repository().join(name), at("repository").join(name)).unwrap();
    }
    let file = at("script");
    let head = format!(
        "PATH={}:/usr/local/bin:$PATH\ncd {}\nset -ux\n",
        at("bin").display(),
        at("repository").display()
    );
    fs::write(&file, head + script).unwrap();
    let host: PathBuf = at("host");
    command(beside.join("namespace")).arg(host).arg(file).output().unwrap()
}

fn must_succeed(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}\n{stdout}\n{stderr}", output.status);
    stdout
}

#[test]
fn every_command_of_the_pages_is_run_or_says_why_not() {
    for name in PAGES {
        let text = page(name);
        for (before, commands) in blocks(&text) {
            let known = before == RUN || before.starts_with(NOT_RUN);
            assert!(known, "{name}: neither {RUN} nor {NOT_RUN} stands before\n{commands}");
        }
    }
}

/// Waits for a key's health, takes the HSM away from the running daemon, and gives it back: a new login.
const HSM_AWAY_AND_BACK: &str = r#"
cd /root/first-caller
health() {
    for try in $(seq 240); do
        if claviger keys show user-keys --client client.toml | grep -q "^health *$1"; then return 0; fi
        sleep 0.25
    done
    return 1
}
logins() { grep -c 'logged in' /run/systemd-of-tests/claviger.service.log; }
before=$(logins)
mv /var/lib/claviger-softhsm /var/lib/claviger-softhsm.away
claviger unwrap user-keys --client client.toml wrapped > /dev/null || true
health 'not serving'
mv /var/lib/claviger-softhsm.away /var/lib/claviger-softhsm
health serving
claviger unwrap user-keys --client client.toml wrapped | cmp - key
test $(logins) -gt $before
test "$(grep -c refused /run/systemd-of-tests/claviger.service.log)" = 0
"#;

/// What was wrapped by the installation, before the page about rotating is followed. A PIN that only root
/// may read makes a key that the daemon's user can open.
const BEFORE_ROTATION: &str = r#"
cd /root/others
claviger unwrap user-keys --client client.toml wrapped | cmp - key
install -m 0600 /etc/claviger/pin operators.pin
echo 'pin = { file = "operators.pin" }' > admin.toml
cp /etc/claviger/claviger.toml before.toml
claviger keys create second --provider hsm --admin admin.toml --write
claviger doctor second
cp before.toml /etc/claviger/claviger.toml
"#;

/// Then: the new value unwraps, the old one does not, and the daemon's user owns all that was made.
const AFTER_ROTATION: &str = r#"
claviger unwrap user-keys --client client.toml values/key-connector | cmp - key
if claviger unwrap user-keys --client client.toml wrapped > /dev/null; then exit 1; fi
claviger doctor user-keys --json | jq --exit-status '[.keys[0].versions[].replicas[].unneeded_rights[]] == []'
test -z "$(find /var/lib/claviger /var/lib/claviger-softhsm ! -user claviger)"
"#;

/// The renewed certificates are in force on both sides.
const RENEWED: &str = "
cd /root/first-caller
mv renewed.crt first-caller.crt
mv renewed.key first-caller.key
claviger wrap user-keys --client client.toml key | claviger unwrap user-keys --client client.toml | cmp - key
";

#[test]
fn the_installation_leads_from_an_empty_system_to_the_first_call_and_back() {
    let text = page("docs/installation.md");
    let (install, remove) = text.split_once(REMOVE).unwrap();
    let checks = "\
        test -z \"$(find /var/lib/claviger /var/log/claviger -user root)\"
        systemctl is-active claviger
        mkdir /root/others
        cd /root/others
        cp /root/first-caller/* .
        ";
    // The page changes the PIN of the running daemon, and the next login must send the new one.
    let others = [
        script(&page("docs/operations.md")),
        HSM_AWAY_AND_BACK.to_owned(),
        "cd /root/others\n".to_owned(),
        script(&page("README.md")),
    ]
    .concat();
    let by_the_daemons_user = "\
        sudo -u claviger claviger config check
        sudo -u claviger claviger config pin
        sed -i /public_key_sha256/d /etc/claviger/claviger.toml
        sudo -u claviger claviger config pin --json > found
        jq --exit-status '.found[0].line | startswith(\"public_key_sha256 = \")' found
        test $(grep -c public_key_sha256 /etc/claviger/claviger.toml) = 0
        sudo -u claviger claviger config pin
        claviger config pin && claviger config check && systemctl reload claviger
        sed -i 's/^.server.tls./drain_timeout = \"20s\"\\n[server.tls]/' /etc/claviger/claviger.toml
        systemctl reload claviger
        sed -i 's/^drain_timeout.*/drain_timeout = \"never\"/' /etc/claviger/claviger.toml
        if systemctl reload claviger 2> refused; then exit 1; fi
        grep 'server.drain_timeout.*never' refused
        grep 'the old configuration stays in force' refused
        sed -i '/^drain_timeout/d' /etc/claviger/claviger.toml
        ";
    let rotation = [BEFORE_ROTATION, &script(&page("docs/rotate.md")), AFTER_ROTATION].concat();
    let at_night = ["hsm-lost", "pin-changed", "certificate-expired"]
        .map(|name| script(&page(&format!("docs/tasks/{name}.md"))))
        .concat()
        + RENEWED;
    let after = "\
        test ! -e /etc/claviger
        test -z \"$(id claviger 2> /dev/null)\"
        test -e /var/log/claviger/audit.jsonl
        ";
    let all = [
        &script(install),
        checks,
        &others,
        by_the_daemons_user,
        &rotation,
        &at_night,
        &script(remove),
        after,
    ];
    let said = must_succeed(&on_a_new_host(&all.concat()));
    assert!(said.contains("pinned: user-keys version 1, RSA-3072"), "{said}");
    assert!(said.contains("1 replica asked: 1 sound, 0 failing"), "{said}");
    assert!(said.contains("\"operation\":\"unwrap\""), "{said}");
    assert!(said.contains("reloaded:\n  [server] changed"), "{said}");
    let by_hand = "/etc/claviger/claviger.toml, in the table at line ";
    assert!(said.contains("found: user-keys version 1") && said.contains(by_hand), "{said}");
}

#[test]
fn a_pin_that_is_a_copy_is_changed_while_the_unit_is_stopped() {
    let text = page("docs/installation.md");
    let (install, _) = text.split_once(REMOVE).unwrap();
    let change = "\
        cd /root/first-caller
        printf '[Service]\\nLoadCredential=pin:/etc/claviger/pin\\n' > /etc/systemd/system/claviger.service.d/pin.conf
        sed -i 's|pin  *= .*|pin = { credential = \"pin\" }|' /etc/claviger/claviger.toml
        systemctl restart claviger
        systemctl stop claviger
        pkcs11-tool --module /usr/lib/softhsm/libsofthsm2.so --token-label production --login --pin 1234 --change-pin --new-pin 123456
        chown -R claviger:claviger /var/lib/claviger-softhsm
        printf 123456 > /etc/claviger/pin
        systemctl start claviger
        ";
    must_succeed(&on_a_new_host(&[&script(install), change, HSM_AWAY_AND_BACK].concat()));
    // What the drop-in says is what was done.
    let unit = page("deploy/systemd/pin-credential.conf");
    assert!(
        unit.contains("stop the unit, change the PIN in the token, replace the credential, start")
    );
}

#[test]
fn the_units_are_hardened_and_do_not_repeat_what_cannot_succeed() {
    let unit = page("deploy/systemd/claviger.service");
    assert!(!unit.contains("\nLoadCredential"), "a copy of a PIN would outlive its change");
    assert!(unit.contains("\nRestartPreventExitStatus=2 78\n"));
    for name in [
        "deploy/systemd/claviger.service",
        "deploy/key-connector/claviger-rehearsal.service",
        "deploy/connector/claviger-connector.service",
    ] {
        // In tenths: 10.0 is no protection at all.
        let judged = command("systemd-analyze")
            .args(["security", "--offline=true", "--threshold=20"])
            .arg(repository().join(name))
            .output()
            .expect("systemd-analyze is there: scripts/setup installs it");
        let said = String::from_utf8_lossy(&judged.stdout).into_owned();
        assert!(judged.status.success(), "{name}: {said}");
    }
}

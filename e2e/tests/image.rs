//! The image that `scripts/image` makes: as a container it serves with a read-only root, as a user
//! without rights, on a volume as Kubernetes gives it; and the same inputs make the same bytes.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use e2e::daemon::claviger;
use e2e::process::{command, repository, run};
use e2e::setup::MATERIAL;
use e2e::{Daemon, Setup};
use tonic::Code;

/// Makes an image of the program under test, and its root file system beside it.
fn make(binary: &Path, name: &Path) -> Vec<u8> {
    run(command(repository().join("scripts/image"))
        .args(["--revision", "tested"])
        .arg("--binary")
        .arg(binary)
        .arg("--output")
        .arg(name.with_extension("tar"))
        .arg("--rootfs")
        .arg(name));
    fs::read(name.with_extension("tar")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_serves_with_a_read_only_root_as_a_user_without_rights() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    run(command("strip").arg("-o").arg(at("claviger")).arg(claviger()));
    let image = make(&at("claviger"), &at("one"));
    assert!(image == make(&at("claviger"), &at("two")), "two images of one program differ");

    let mut setup = Setup::software();
    setup.files.set("server.state_dir", "/var/lib/claviger/state");
    setup.files.set("audit.file", "/var/lib/claviger/audit.jsonl");
    let container = repository().join("e2e/tests/image/container");
    let script = format!(
        r#"exec '{}' '{}' '{}' /usr/bin/claviger "$@""#,
        container.display(),
        at("one").display(),
        setup.files.path("").display()
    );
    let mut daemon = Daemon::spawn_by(&setup.files, &script, Stdio::null());
    daemon.wait_until_ready().unwrap_or_else(|exit| panic!("{exit:?}"));
    assert_eq!(setup.ask(&daemon).await, Code::Ok);
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(field("Uid:"), "65532 65532 65532 65532");
    assert_eq!(field("CapEff:"), "0000000000000000");
    assert!(!daemon.log().contains(std::str::from_utf8(&MATERIAL).unwrap()));
    assert_eq!(daemon.terminate().code, Some(0));
}

/// Everything else that is wrong with a file would be said in the same run.
#[test]
fn the_configuration_of_the_chart_lacks_only_what_the_cluster_brings() {
    let check = command(claviger())
        .args(["config", "check", "--config"])
        .arg(repository().join("deploy/helm/claviger/ci/claviger.toml"))
        .output()
        .unwrap();
    assert_eq!(check.status.code(), Some(78));
    let said = String::from_utf8(check.stderr).unwrap();
    let errors: Vec<&str> = said.lines().filter(|line| line.contains("claviger.toml:")).collect();
    assert!(errors.len() >= 5, "{said}");
    let absent = |line: &&str| line.contains("No such file or directory");
    assert!(errors.iter().all(absent), "{said}");
}

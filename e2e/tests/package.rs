//! The packages that `scripts/package` makes: the same inputs make the same bytes, and on a host of its own
//! they are installed, set up, upgraded, removed and purged.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use e2e::daemon::claviger;
use e2e::process::{command, repository, run, target_folder};
use serde_json::{Value, json};

fn package(binaries: &Path, output: &Path, more: &[&str]) {
    run(command(repository().join("scripts/package"))
        .arg("--binaries")
        .arg(binaries)
        .arg("--output")
        .arg(output)
        .args(more));
}

/// A folder with the programs under test.
fn binaries(folder: &Path) -> PathBuf {
    let binaries = folder.join("binaries");
    fs::create_dir(&binaries).unwrap();
    run(command("strip").arg("-o").arg(binaries.join("claviger")).arg(claviger()));
    let faults = "libclaviger_faults.so";
    symlink(target_folder().join("deps").join(faults), binaries.join(faults)).unwrap();
    binaries
}

#[test]
#[ignore = "long: packs an unoptimised program twice, and installs it"]
fn packages_are_installed_set_up_upgraded_removed_and_purged() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let binaries = binaries(folder.path());
    for (output, version) in [("one", "0.1.0"), ("two", "0.1.1")] {
        let of = ["--package", "claviger", "--only", "deb", "--version", version];
        package(&binaries, &at(output), &of);
    }
    fs::create_dir(at("host")).unwrap();
    let script = at("script");
    let host = repository().join("e2e/tests/package");
    let (packages, host) = (folder.path().display(), host.display());
    let text = format!("set -eux\nset -- '{packages}' '{host}'\n. '{host}/host.sh'\n");
    fs::write(&script, text).unwrap();
    let namespace = repository().join("e2e/tests/installation/namespace");
    let output = run(command(namespace).arg(at("host")).arg(script));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{}", said.lines().find(|line| line.contains("beside four upgrades")).unwrap());
}

#[test]
fn what_a_program_is_made_of_is_each_of_its_crates_once_with_licence_and_hash() {
    let list = || run(command(repository().join("scripts/sbom")).arg("claviger")).stdout;
    let text = list();
    assert!(text == list(), "two lists of one commit differ");
    let bom: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!((&bom["bomFormat"], &bom["specVersion"]), (&json!("CycloneDX"), &json!("1.6")));
    assert_eq!(bom["metadata"]["component"]["name"], "claviger");
    let components = bom["components"].as_array().unwrap();
    let mut names: Vec<_> = components.iter().map(|c| c["purl"].as_str().unwrap()).collect();
    let all = names.len();
    names.dedup();
    assert_eq!(names.len(), all, "they are sorted, and each is there once");
    let has = |name: &str| components.iter().any(|component| component["name"] == name);
    assert!(all > 100 && has("aws-lc-rs") && has("rustls") && has("claviger-pkcs11"), "{names:?}");
    // What only tests and builds need is not in the program.
    assert!(!has("e2e") && !has("proptest") && !has("prost-build"), "{names:?}");
    for component in components {
        assert!(component["licenses"][0]["expression"].is_string(), "{component}");
        let is_ours = component["name"].as_str().unwrap().starts_with("claviger-");
        assert_eq!(component["hashes"][0]["content"].is_string(), !is_ours, "{component}");
    }
    let dependencies = bom["dependencies"].as_array().unwrap();
    assert_eq!(dependencies.len(), all + 1, "each of them, and the program");
}

#[test]
#[ignore = "long: needs rpmbuild: apt-get install rpm"]
fn the_same_inputs_make_the_same_packages_with_what_they_promise() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let binaries = binaries(folder.path());
    for output in ["one", "two"] {
        package(&binaries, &at(output), &["--package", "claviger-faults"]);
    }
    let packages: Vec<_> = fs::read_dir(at("one")).unwrap().map(|file| file.unwrap()).collect();
    assert_eq!(packages.len(), 4, "a .deb, an .rpm, what they are made of, and sums: {packages:?}");
    for file in &packages {
        let [one, two] = ["one", "two"].map(|of| fs::read(at(of).join(file.file_name())).unwrap());
        assert!(one == two, "{:?} differs from itself", file.file_name());
    }
    run(command("sha256sum").args(["--check", "SHA256SUMS"]).current_dir(at("one")));
    let rpm =
        packages.iter().find(|file| file.path().extension().is_some_and(|kind| kind == "rpm"));
    let listed = run(command("rpm").arg("-qpl").arg(rpm.unwrap().path()));
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains("/usr/lib64/claviger/libclaviger_faults.so"), "{listed}");
    assert!(listed.contains("/usr/share/doc/claviger-faults/sbom.cdx.json"), "{listed}");
}

//! docs/testing-with-faults.md: every command of it runs as it is written.

use std::fs;

use e2e::process::{command, repository, run, target_folder};

/// What stands before the blocks that are run.
const RUN: &str = "<!-- run -->\n```sh\n";

#[test]
fn every_command_of_the_page_runs_and_the_calls_are_counted() {
    let page = fs::read_to_string(repository().join("docs/testing-with-faults.md")).unwrap();
    let blocks: Vec<_> = page
        .split(RUN)
        .skip(1)
        .map(|rest| rest.split("```").next().expect("a block has an end"))
        .collect();
    assert_eq!(blocks.len(), 2);
    let folder = tempfile::tempdir().unwrap();
    let faults = target_folder().join("deps/libclaviger_faults.so");
    let mut shell = command("sh");
    shell.arg("-ec").arg(blocks.join("\n")).env("FAULTS", faults).current_dir(folder.path());
    let printed = String::from_utf8(run(&mut shell).stdout).unwrap();
    assert!(
        printed.contains("error: PKCS11 function C_Login failed: rv = CKR_DEVICE_REMOVED (0x32)"),
        "{printed}"
    );
    let logins = printed.lines().find(|line| line.ends_with(" C_Login")).expect("it is counted");
    assert_eq!(logins.trim(), "3 C_Login", "{printed}");
}

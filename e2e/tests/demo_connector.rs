//! `claviger demo --connector`: a Key Connector, a local issuer, one user, one approval; and its page in a real
//! browser.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use e2e::daemon::claviger;
use e2e::process::{command, path_from_script, repository, run, target_folder};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// The demo in a folder of its own, on four ports that are free.
fn demo(folder: &std::path::Path, more: &[&str]) -> Command {
    let mut demo = command(claviger());
    demo.args(["demo", "--connector", "--port", &four_free_ports().to_string()])
        .args(more)
        .arg("--dir")
        .arg(folder.join("demo"))
        .arg("--connector-program")
        .arg(connector());
    demo
}

fn connector() -> PathBuf {
    target_folder().join("claviger-connector")
}

/// The first of them.
fn four_free_ports() -> u16 {
    let listen = |port| TcpListener::bind(("127.0.0.1", port)).ok();
    let free = || {
        let first = listen(0)?;
        let port = first.local_addr().ok()?.port();
        let others: Option<Vec<_>> = (1..4).map(|more| listen(port.checked_add(more)?)).collect();
        others.map(|_| port)
    };
    (0..200).find_map(|_| free()).expect("four ports in a row are free")
}

#[test]
fn the_demo_explains_each_step_and_the_record_names_who_approved() {
    let folder = tempfile::tempdir().unwrap();
    // Another program may take a port meanwhile; and a second run finds what the first one left.
    let mut runs = 0;
    for _ in 0..8 {
        let output = demo(folder.path(), &["--once"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        if error.contains("is taken") {
            continue;
        }
        assert!(output.status.success(), "{error}\n{said}");
        for step in 1..=7 {
            assert!(said.contains(&format!("\n{step}. ")), "step {step}:\n{said}");
        }
        assert!(said.contains("the same 64 bytes came back"), "{said}");
        runs += 1;
        if runs == 2 {
            break;
        }
    }
    assert_eq!(runs, 2, "no ports stay free");
    let audit = std::fs::read_to_string(folder.path().join("demo/audit.jsonl")).unwrap();
    let rewraps: Vec<Value> = audit
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|record| record["operation"] == "rewrap")
        .collect();
    assert_eq!(rewraps.len(), 2, "{audit}");
    for record in rewraps {
        assert_eq!((&record["approver"], &record["outcome"]), (&json!("grace"), &json!("ok")));
    }
}

#[test]
fn a_connector_that_is_missing_is_said_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let output = command(claviger())
        .args(["demo", "--connector", "--once", "--connector-program", "/no/claviger-connector"])
        .arg("--dir")
        .arg(folder.path().join("demo"))
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("there is no file /no/claviger-connector"), "{error}");
    assert!(error.contains("cargo build --package claviger-connector"), "{error}");
}

/// The demo while it waits for a person.
struct Waiting {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Waiting {
    /// What it says until a line has that.
    fn until(&mut self, wanted: &str) -> String {
        let mut said = String::new();
        while !said.contains(wanted) {
            let read = self.lines.read_line(&mut said).unwrap();
            assert!(read > 0, "it ended without {wanted:?}:\n{said}");
        }
        said
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "needs Chromium, node and npm"]
fn a_person_approves_in_the_page_and_neither_axe_nor_the_policy_finds_anything() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = demo(folder.path(), &[]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap());
    let mut waiting = Waiting { child, lines };
    let said = waiting.until("/approvals/");
    let phrase =
        said.lines().find(|line| line.matches('-').count() == 5 && line.starts_with("     "));
    let phrase = phrase.unwrap_or_else(|| panic!("no six words:\n{said}")).trim().to_owned();
    let url = said.lines().last().unwrap().trim().to_owned();

    let pictures = target_folder().join("page");
    std::fs::create_dir_all(&pictures).unwrap();
    let modules = path_from_script("page-tools", &[]);
    let script = repository().join("e2e/page/approve.mjs");
    let output = run(command("node").arg(script).arg(modules).arg(&url).arg(&pictures));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    for nothing in ["violations", "policy", "errors", "wide"] {
        assert_eq!(found[nothing], json!([]), "{nothing}");
    }
    assert_eq!((&found["phrase"], &found["address"]), (&json!(phrase), &json!(url)));
    assert_eq!(found["focused"], "Approve the device of ada@example.org");
    let tree = found["tree"].as_str().unwrap();
    assert!(tree.contains("by grace@example.org (grace)"), "{tree}");

    waiting.until("the same 64 bytes came back");
    waiting.until("Serving until Ctrl-C.");
    let pid = Pid::from_raw(i32::try_from(waiting.child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    assert!(waiting.child.wait().unwrap().success());
    let mut rest = String::new();
    waiting.lines.read_to_string(&mut rest).unwrap();
}

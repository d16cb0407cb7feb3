//! `claviger demo --chaos`: two HSMs fail by a schedule, and no call of the client does.

use std::net::TcpListener;

use e2e::daemon::claviger;
use e2e::process::{command, target_folder};

/// Runs the demo in a folder of its own; gives what it wrote.
fn chaos(more: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let faults = target_folder().join("deps/libclaviger_faults.so");
    // Another program may take a port meanwhile.
    for _ in 0..5 {
        let output = command(claviger())
            .args(["demo", "--chaos", "--plain", "--port", &two_free_ports().to_string()])
            .args(more)
            .arg("--dir")
            .arg(folder.path().join("demo"))
            .arg("--faults")
            .arg(&faults)
            .output()
            .unwrap();
        let (said, error) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if error.contains("is taken") {
            continue;
        }
        assert!(output.status.success(), "{error}\n{said}");
        return said.into_owned();
    }
    panic!("no port stays free");
}

fn two_free_ports() -> u16 {
    let listen = |port| TcpListener::bind(("127.0.0.1", port));
    let free = || {
        let port = listen(0).ok()?.local_addr().ok()?.port();
        listen(port.checked_add(1)?).ok().map(|_| port)
    };
    (0..100).find_map(|_| free()).expect("two ports in a row are free")
}

#[test]
fn two_hsms_fail_and_the_summary_says_that_no_call_did() {
    let said = chaos(&["--seconds", "10"]);
    assert!(said.contains("FAULT    hsm-a: its library crashes"), "{said}");
    assert!(said.contains("replica  hsm-b serves"), "{said}");
    assert!(said.contains("daemon   hsm-a: the module's process"), "{said}");
    assert!(said.contains(", failed: 0."), "{said}");
}

#[test]
#[ignore = "long: each of ten faults, about a minute"]
fn each_fault_of_the_schedule_fails_no_call() {
    let said = chaos(&["--once"]);
    println!("{said}");
    assert_eq!(said.matches(" s  FAULT ").count(), 10, "{said}");
    assert!(said.contains(", failed: 0."), "{said}");
}

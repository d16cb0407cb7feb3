//! The examples of `docs/clients`, each against the small daemon: over mutual TLS and over a Unix
//! socket, with a daemon that is away for a moment, and with errors that have details. Long, as each
//! language downloads and compiles its dependencies the first time.

#[expect(dead_code, reason = "the other tests use the rest of it")]
#[path = "calls/daemon.rs"]
mod daemon;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use daemon::{Daemon, Pki};
use tonic::Status;

/// An example that is ready to run.
struct Example {
    program: PathBuf,
    first: Vec<OsString>,
    folder: PathBuf,
}

impl Example {
    fn new(language: &str) -> Self {
        let folder = prepared(language);
        let (program, first) = match language {
            "python" => (folder.join("venv/bin/python"), vec![folder.join("client.py").into()]),
            "go" => (folder.join("client"), Vec::new()),
            "node" => ("node".into(), vec![folder.join("client.js").into()]),
            "java" => {
                let classpath = std::fs::read_to_string(folder.join("classpath")).unwrap();
                let classes = folder.join("target/classes");
                let all = format!("{}:{}", classes.display(), classpath.trim());
                ("java".into(), vec!["-cp".into(), all.into(), "Client".into()])
            }
            other => panic!("no such example: {other}"),
        };
        Self { program, first, folder }
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.program);
        command.args(&self.first).args(arguments).stdin(Stdio::null());
        command.env("CLAVIGER_PROTO", repository().join("proto/claviger/v1/claviger.proto"));
        command.env("CLAVIGER_SERVICE_CONFIG", self.folder.join("../service-config.json"));
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }
}

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn prepared(language: &str) -> PathBuf {
    let script = repository().join("scripts/client-examples");
    let output = Command::new(script).arg(language).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().into()
}

fn assert_unwrapped(output: &Output) {
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{errors}");
    assert_eq!(said.trim(), "unwrapped 32 bytes, request id daemon-id", "{errors}");
}

async fn tell(language: &str) {
    let example = Example::new(language);
    let pki = Pki::new();
    let files = pki.client(pki.ca_file());
    let daemon = Daemon::start(&pki).await;
    let target = format!("localhost:{}", daemon.port);
    let own = files.identity.as_ref().unwrap();
    let paths = [&files.ca, &own.certificate, &own.private_key].map(|path| path.to_str().unwrap());
    let with = |key| [&[&*target, key], &paths[..]].concat();

    assert_unwrapped(&example.run(&with("user-keys")).await);
    let seen = daemon.seen();
    assert_eq!((seen.calls, seen.request_id.as_str()), (2, "order-66"));
    assert!(!seen.timeout.is_empty(), "the deadline travels");

    // A daemon that is away for a moment: the service config has it asked again.
    daemon.set_answer(Some(Status::unavailable("the key cannot be reached")));
    let arguments = with("user-keys");
    let (output, ()) = tokio::join!(example.run(&arguments), async {
        while daemon.seen().calls < 4 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        daemon.set_answer(None);
    });
    assert_unwrapped(&output);
    assert!(daemon.seen().calls >= 6, "{}", daemon.seen().calls);

    for (key, expected) in
        [("field", "field algorithm: use RSA-OAEP"), ("busy", "try again in 2000 ms")]
    {
        let output = example.run(&with(key)).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(expected), "{key}: {said}");
    }

    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("daemon.sock");
    let daemon = Daemon::start_on_socket(&socket);
    let target = format!("unix:{}", socket.display());
    assert_unwrapped(&example.run(&[&*target, "user-keys"]).await);
    assert_eq!(daemon.seen().calls, 2);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: scripts/test --all"]
async fn the_example_in_python_runs() {
    tell("python").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: scripts/test --all"]
async fn the_example_in_go_runs() {
    tell("go").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: scripts/test --all"]
async fn the_example_in_node_runs() {
    tell("node").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: scripts/test --all"]
async fn the_example_in_java_runs() {
    tell("java").await;
}

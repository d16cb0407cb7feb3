//! `claviger login`: a person gets a token for the commands that call the daemon, and they send it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use e2e::daemon::claviger;
use e2e::process::command;
use e2e::setup::{KEY, client_file};
use serde_json::json;

use crate::Stage;

/// A command with a home directory and a client file of its own.
struct Person {
    home: tempfile::TempDir,
    client: std::path::PathBuf,
}

impl Person {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(claviger());
        command.args(arguments).arg("--client").arg(&self.client);
        command.env("HOME", self.home.path()).env_remove("XDG_STATE_HOME");
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Whether the key material comes out.
    fn may_unwrap(&self, wrapped: &Path) -> bool {
        let output = self.run(&["unwrap", KEY, "--discard", wrapped.to_str().unwrap()]);
        output.status.success()
    }

    fn login(&self, stage: &Stage, more: &[&str]) -> Child {
        let name = stage.issuer.name();
        let arguments = ["login", "--issuer", &name, "--client-id", "cli"];
        let mut command = self.command(&[&arguments[..], more].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

fn said(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    let [out, errors] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.status.success(), "{out}{errors}");
    out
}

/// The value of a query parameter, decoded as far as these tests need it.
fn parameter(address: &str, name: &str) -> String {
    let query = address.split_once('?').unwrap().1;
    let found = query.split('&').find_map(|pair| pair.strip_prefix(&format!("{name}=")));
    found.unwrap().replace("%3A", ":").replace("%2F", "/")
}

fn get(address: &str) -> String {
    let rest = address.strip_prefix("http://").unwrap();
    let (host, path) = rest.split_once('/').unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    write!(stream, "GET /{path} HTTP/1.1\r\nhost: {host}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_signs_in_by_browser_or_on_another_device_and_the_commands_send_the_token() {
    let mut stage = Stage::new();
    let daemon = stage.setup.start();
    let client = client_file(&stage.setup.files, &daemon, &stage.gateway);
    let person = Person { home: tempfile::tempdir().unwrap(), client };
    let wrapped = stage.setup.files.path("wrapped");
    std::fs::write(&wrapped, &stage.setup.wrapped).unwrap();
    assert!(!person.may_unwrap(&wrapped), "the certificate alone is no caller");

    let alice = stage.issuer.token("alice", &json!({ "groups": ["hsm-approvers"] }));
    stage.issuer.grants(&alice, 300, Some("refresh-1"));
    let mut child = person.login(&stage, &["--no-browser"]);
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let address = lines.by_ref().map(Result::unwrap).find(|line| line.starts_with("http"));
    let address = address.unwrap();
    assert_eq!(parameter(&address, "code_challenge_method"), "S256");
    stage.issuer.expect_challenge(&parameter(&address, "code_challenge"));
    let (redirect, sent) = (parameter(&address, "redirect_uri"), parameter(&address, "state"));
    assert!(redirect.starts_with("http://127.0.0.1:"), "{redirect}");
    assert!(get(&format!("{redirect}?code=stolen&state=another")).contains("404"));
    assert!(get(&format!("{redirect}?code=good&state={sent}")).contains("You are logged in"));
    assert!(said(child).contains("logged in: it is good for 5 min"));
    assert!(person.may_unwrap(&wrapped), "{}", daemon.log());
    let logins = person.home.path().join(".local/state/claviger/logins");
    for entry in std::fs::read_dir(&logins).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
    }
    assert!(
        said(person.command(&["logout"]).stdout(Stdio::piped()).spawn().unwrap())
            .contains("logged out")
    );
    assert_eq!(std::fs::read_dir(&logins).unwrap().count(), 0);
    assert!(!person.may_unwrap(&wrapped));

    // On another device; the token that comes is nearly over, and is renewed.
    stage.issuer.grants(&stage.issuer.token("late", &json!({})), 1, Some("refresh-2"));
    let said = said(person.login(&stage, &["--device-code"]));
    assert!(said.contains("is renewed after that"), "{said}");
    stage.issuer.grants(&alice, 300, None);
    assert!(person.may_unwrap(&wrapped), "{}", daemon.log());
    assert_eq!(stage.issuer.refreshed(), ["refresh-2"]);

    let refused = person.run(&["login", "--issuer", "http://127.0.0.1:1", "--client-id", "cli"]);
    assert_eq!(refused.status.code(), Some(1));
}

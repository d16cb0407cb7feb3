//! Callers on a Unix socket are known by their uid.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Output, Stdio};

use e2e::daemon::claviger;
use e2e::process::command;
use e2e::setup::{KEY, MATERIAL};
use e2e::{Daemon, Setup};

/// A uid that no user has, for a client that is not the daemon's own user.
const STRANGER: u32 = 54_321;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// `claviger unwrap` over the socket. Where the tests run as root, as `uid` in the group of the
/// socket's owner; else as the user who runs the tests.
fn unwrap_as(uid: u32, socket: &Path, wrapped: &[u8]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let endpoint = format!("unix:{}", socket.display());
    // A copy, because the folder of the build may be closed to others. By a process of its own: what
    // this one has open for writing, a child of another test inherits, and then it is no program.
    let binary = folder.path().join("claviger");
    assert!(command("cp").arg(claviger()).arg(&binary).status().unwrap().success());
    let mut client = command(&binary);
    client.args(["unwrap", KEY, "--endpoint", &endpoint]).current_dir("/");
    client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if is_root() {
        client.uid(uid).gid(0);
    }
    let mut child = client.spawn().unwrap();
    child.stdin.take().unwrap().write_all(wrapped).unwrap();
    child.wait_with_output().unwrap()
}

/// The daemon's folder let through, a socket in it, and a caller of this uid.
fn setup_for(uid: u32) -> (Setup, std::path::PathBuf) {
    let mut setup = Setup::software();
    fs::set_permissions(setup.files.path("."), Permissions::from_mode(0o755)).unwrap();
    let socket = setup.files.path("claviger.sock");
    let listen = setup.files.configuration["server"]["listen"].as_array_mut().unwrap();
    listen.push(format!("unix:{}", socket.display()).into());
    let caller = setup.files.configuration["callers"][0].as_table_mut().unwrap();
    caller.insert(
        "match".into(),
        toml::Table::from_iter([("uid".to_owned(), toml::Value::from(i64::from(uid)))]).into(),
    );
    (setup, socket)
}

fn uid_of_the_client() -> u32 {
    if is_root() { STRANGER } else { rustix::process::geteuid().as_raw() }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_caller_is_known_by_its_uid_and_on_record_with_it() {
    let uid = uid_of_the_client();
    let (mut setup, socket) = setup_for(uid);
    let daemon = setup.start();
    let output = unwrap_as(uid, &socket, &setup.wrapped);
    assert!(output.status.success(), "{}\n{}", stderr(&output), daemon.log());
    assert_eq!(output.stdout, MATERIAL);
    let records = setup.files.audit_records();
    let record = records.iter().find(|record| record["operation"] == "unwrap").unwrap();
    assert_eq!(record["identity"], format!("uid:{uid}"));
    assert_eq!(record["caller"], "key-connector");
    assert_eq!(daemon.terminate().code, Some(0));
    assert!(!socket.exists(), "the socket goes with its daemon");
}

#[test]
fn another_uid_is_nobody() {
    let uid = uid_of_the_client();
    let (mut setup, socket) = setup_for(uid + 1);
    let daemon = setup.start();
    let output = unwrap_as(uid, &socket, &setup.wrapped);
    assert_eq!(output.status.code(), Some(77), "{}\n{}", stderr(&output), daemon.log());
    assert!(output.stdout.is_empty());
}

#[test]
fn a_uid_that_is_denied_is_refused() {
    let uid = uid_of_the_client();
    let (mut setup, socket) = setup_for(uid);
    let denied = setup.files.path("denied");
    e2e::pki::replace(&denied, &format!("uid:{uid}\n"), 0o600);
    setup.files.set("server.denied_callers", denied.to_str().unwrap());
    let daemon = setup.start();
    let output = unwrap_as(uid, &socket, &setup.wrapped);
    assert_eq!(output.status.code(), Some(77), "{}\n{}", stderr(&output), daemon.log());
    assert!(output.stdout.is_empty());
}

#[test]
fn root_and_nobody_are_never_callers() {
    for uid in [0, 65_534] {
        let (setup, _) = setup_for(uid);
        let exit = Daemon::spawn(&setup.files).wait();
        assert_eq!(exit.code, Some(78), "{}", exit.log);
        assert!(exit.log.contains("uid"), "{}", exit.log);
    }
}

#[test]
fn a_socket_that_a_killed_daemon_left_behind_is_taken_over() {
    let uid = uid_of_the_client();
    let (mut setup, socket) = setup_for(uid);
    assert_eq!(setup.start().kill().signal, Some(9));
    assert!(socket.exists());
    let daemon = setup.start();
    let output = unwrap_as(uid, &socket, &setup.wrapped);
    assert!(output.status.success(), "{}\n{}", stderr(&output), daemon.log());
}

/// gRPC's C core sends the socket's path as authority, percent-encoded.
#[test]
fn grpcs_c_core_is_served_over_the_socket() {
    let uid = uid_of_the_client();
    let (mut setup, socket) = setup_for(uid);
    let daemon = setup.start();
    let script = "import grpc, sys\n\
        from grpc_health.v1 import health_pb2, health_pb2_grpc\n\
        channel = grpc.insecure_channel('unix:' + sys.argv[1])\n\
        try:\n    \
            print(health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20))\n\
        except grpc.RpcError as error:\n    \
            print(error.code().name, error.details())\n";
    let mut python = command(e2e::python::interpreter());
    let output = python.args(["-c", script]).arg(&socket).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    // Root is never a caller, and is told so: its call was read.
    let expected = if is_root() { "UNAUTHENTICATED no configured caller" } else { "SERVING" };
    assert!(said.contains(expected), "{said}{}\n{}", stderr(&output), daemon.log());
}

//! A disk that is slow, hangs, is full or read-only under the audit log: no key material without a record, a
//! refusal in time, and service again by itself.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use claviger_proto::v1::UnwrapRequest;
use e2e::process::command;
use e2e::setup::KEY;
use e2e::{Answer, Connection, Daemon, Setup};
use tonic::Code;

/// A library that lets `fdatasync` wait as long as a file says, in milliseconds.
const SLOW_SYNC: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
static int delay(void) {
    int ms = 0;
    FILE *file = fopen(getenv("SYNC_DELAY"), "r");
    if (file) { if (fscanf(file, "%d", &ms) != 1) ms = 0; fclose(file); }
    return ms;
}
int fdatasync(int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    for (int waited = 0; waited < delay(); waited += 20) usleep(20000);
    return real(fd);
}
"#;

/// A daemon whose syncs wait as long as the file says that is given back.
fn with_slow_sync(setup: &mut Setup) -> PathBuf {
    let source = setup.files.file("slow_sync.c", SLOW_SYNC, 0o600);
    let library = setup.files.path("slow_sync.so");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).arg("-ldl");
    let output = cc.output().expect("a C compiler is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let delay = setup.files.path("delay");
    fs::write(&delay, "0").unwrap();
    setup.files.variable("LD_PRELOAD", library);
    setup.files.variable("SYNC_DELAY", &delay);
    delay
}

fn set_delay(delay: &Path, milliseconds: u32) {
    let next = delay.with_extension("next");
    fs::write(&next, milliseconds.to_string()).unwrap();
    fs::rename(next, delay).unwrap();
}

async fn unwrap(connection: &Connection, setup: &Setup) -> Result<String, Answer> {
    let request = UnwrapRequest {
        key: KEY.into(),
        wrapped: setup.wrapped.clone().into(),
        ..UnwrapRequest::default()
    };
    let path = "/claviger.v1.KeyService/Unwrap";
    let frame = e2e::connection::frame(&prost::Message::encode_to_vec(&request));
    let answer = connection.call(path, frame, &[]).await.unwrap();
    let request_id = answer.request_id().unwrap_or_default().to_owned();
    if answer.code() == Code::Ok { Ok(request_id) } else { Err(answer) }
}

/// Unwraps until it is answered again.
async fn unwrap_again(connection: &Connection, setup: &Setup, daemon: &Daemon) -> String {
    let begun = Instant::now();
    loop {
        match unwrap(connection, setup).await {
            Ok(request_id) => return request_id,
            Err(answer) => assert_eq!(answer.code(), Code::Unavailable, "{answer}"),
        }
        assert!(begun.elapsed() < Duration::from_mins(1), "{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_syncs_slowly_is_waited_for_and_one_that_hangs_refuses() {
    let mut setup = Setup::software();
    let delay = with_slow_sync(&mut setup);
    setup.files.set("audit.hang_limit", "1500ms");
    let daemon = setup.start();
    let connection = setup.connect(&daemon).await;
    set_delay(&delay, 500);
    let mut answered = vec![unwrap_again(&connection, &setup, &daemon).await];
    set_delay(&delay, 60_000);
    let begun = Instant::now();
    let refused = unwrap(&connection, &setup).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    // The limit is 1.5 s; the rest is for a machine that does something else.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let said = "the record is not durable after 1500 ms";
    daemon.wait_for_log(said);
    assert_eq!(daemon.operations_get("/readyz").unwrap().0, 503);
    set_delay(&delay, 0);
    answered.push(unwrap_again(&connection, &setup, &daemon).await);
    assert_eq!(daemon.terminate().code, Some(0));
    let records = setup.files.audit_records();
    let recorded: HashSet<&str> = records.iter().filter_map(|r| r["request_id"].as_str()).collect();
    assert!(answered.iter().all(|id| recorded.contains(id.as_str())), "{records:#?}");
    assert!(!records.iter().any(|record| record["event"] == "gap"), "a slow disk loses nothing");
}

/// A process that stays in the namespace of the daemon, through which the test looks into it: the daemon lets
/// no process look into itself.
struct Window(u32);

impl Drop for Window {
    fn drop(&mut self) {
        let _ = command("kill").arg(self.0.to_string()).status();
    }
}

impl Window {
    /// The folder as the daemon sees it.
    fn folder(&self, folder: &Path) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.0)).join(folder.strip_prefix("/").unwrap())
    }
}

/// A daemon whose log is on a file system of its own, in a mount namespace of its own.
fn spawn_on_tmpfs(setup: &mut Setup, options: &str) -> (Daemon, Window) {
    let folder = setup.files.path("log");
    fs::create_dir(&folder).unwrap();
    let log = folder.join("audit.jsonl");
    setup.files.set("audit.file", log.to_str().unwrap());
    let window = setup.files.path("window");
    let inside = format!(
        "mount -t tmpfs -o {options} tmpfs {} && {{ sleep 600 & echo $! > {}; exec \"$0\" \"$@\"; }}",
        folder.display(),
        window.display()
    );
    let script = format!("exec unshare --map-root-user --mount sh -c '{inside}' \"$0\" \"$@\"");
    let daemon = Daemon::spawn_by(&setup.files, &script, Stdio::null());
    let begun = Instant::now();
    loop {
        let text = fs::read_to_string(&window).unwrap_or_default();
        if let Some(pid) = text.strip_suffix('\n') {
            return (daemon, Window(pid.parse().unwrap()));
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_disk_that_is_full_refuses_until_there_is_room_and_every_answer_has_its_record() {
    let mut setup = Setup::software();
    let (mut daemon, window) = spawn_on_tmpfs(&mut setup, "size=1m,mode=700");
    daemon.wait_until_ready().unwrap_or_else(|exit| panic!("{exit:?}"));
    let connection = setup.connect(&daemon).await;
    let folder = window.folder(&setup.files.path("log"));
    let mut answered = vec![unwrap_again(&connection, &setup, &daemon).await];
    fs::write(folder.join("filler"), vec![0; 800 << 10]).unwrap();
    let begun = Instant::now();
    let refused = loop {
        match unwrap(&connection, &setup).await {
            Ok(request_id) => answered.push(request_id),
            Err(answer) => break answer,
        }
        assert!(begun.elapsed() < Duration::from_mins(2), "never full");
    };
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert_eq!(daemon.operations_get("/readyz").unwrap().0, 503);
    fs::remove_file(folder.join("filler")).unwrap();
    answered.push(unwrap_again(&connection, &setup, &daemon).await);
    let text = fs::read_to_string(folder.join("audit.jsonl")).unwrap();
    let recorded: HashSet<String> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter_map(|record| record["request_id"].as_str().map(str::to_owned))
        .collect();
    let lost: Vec<_> = answered.iter().filter(|id| !recorded.contains(*id)).collect();
    assert!(lost.is_empty(), "{} of {}: {lost:?}", lost.len(), answered.len());
    assert!(text.contains("\"event\":\"gap\""), "it says what is missing");
    daemon.terminate();
}

#[test]
fn a_log_on_a_read_only_file_system_keeps_the_daemon_from_starting_in_words() {
    let mut setup = Setup::software();
    let (daemon, _window) = spawn_on_tmpfs(&mut setup, "size=1m,mode=700,ro");
    let exit = daemon.wait();
    assert_eq!(exit.code, Some(78), "{exit:?}");
    assert!(
        exit.log.contains("audit.file") && exit.log.contains("Read-only file system"),
        "{exit:?}"
    );
}

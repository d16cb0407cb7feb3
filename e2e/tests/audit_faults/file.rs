//! The file, its disk and its name: slow, hanging, failing, full, read-only, deleted, rotated, a FIFO.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use e2e::daemon_files::request_ids;
use e2e::process::{command, run};
use e2e::{Daemon, Orders, Setup};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tonic::Code;

use crate::case::{goes_on, nothing_is_lost, refuses, setup, unwrap, unwrap_again};

/// Errors of the system, as its headers number them on Linux.
const EIO: u8 = 5;
const EROFS: u8 = 30;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_syncs_in_half_a_second_is_waited_for() {
    let mut setup = setup();
    let orders = Orders::to(&mut setup.files);
    let daemon = setup.start();
    let connection = setup.connect(&daemon).await;
    orders.give("sync audit.jsonl delay 500");
    let mut answered = HashSet::new();
    for _ in 0..4 {
        // A sync that takes three times as long on a busy machine is one that hangs.
        answered.insert(unwrap_again(&connection, &setup, &daemon).await);
    }
    assert_eq!(daemon.terminate().code, Some(0));
    assert!(!setup.files.audit_records().iter().any(|record| record["event"] == "gap"));
    nothing_is_lost(&setup, &answered, &setup.files.recorded());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_disk_hangs_or_fails_no_call_is_answered_and_none_is_lost() {
    let mut setup = setup();
    let orders = Orders::to(&mut setup.files);
    let daemon = setup.start();
    let mut answered = HashSet::new();
    for (what, order) in [
        ("a sync that hangs", "sync audit.jsonl delay 60000".to_owned()),
        ("a write that hangs", "write audit.jsonl delay 60000".to_owned()),
        ("an I/O error of a write", format!("write audit.jsonl fail {EIO}")),
        ("an I/O error of a sync", format!("sync audit.jsonl fail {EIO}")),
        ("a file system that became read-only", format!("write audit.jsonl fail {EROFS}")),
    ] {
        let (begin, end) = (|| orders.give(&order), || orders.take_back());
        answered.extend(refuses(&setup, &daemon, what, begin, end).await);
    }
    let log = daemon.log();
    assert!(log.contains("Input/output error") && log.contains("Read-only file system"), "{log}");
    assert_eq!(daemon.terminate().code, Some(0));
    nothing_is_lost(&setup, &answered, &setup.files.recorded());
}

/// All that was written to a file, whatever has become of its name.
fn whole(mut file: File) -> HashSet<String> {
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    request_ids(&text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_rotated_or_deleted_under_load_is_followed_by_the_next_and_no_call_fails() {
    let mut setup = Setup::software();
    let daemon = setup.start();
    let log = setup.files.audit_file();
    let rotated = |number: u32| log.with_extension(format!("jsonl.{number}"));
    let answered = goes_on(
        &setup,
        &daemon,
        "rotated",
        &[&|| fs::rename(&log, rotated(1)).unwrap(), &|| fs::rename(&log, rotated(2)).unwrap()],
    )
    .await;
    nothing_is_lost(&setup, &answered, &setup.files.recorded());

    let deleted = File::open(&log).unwrap();
    let mut answered = answered;
    answered
        .extend(goes_on(&setup, &daemon, "deleted", &[&|| fs::remove_file(&log).unwrap()]).await);
    daemon.wait_for_log("the audit log was deleted");
    assert_eq!(daemon.terminate().code, Some(0));
    let recorded = setup.files.recorded().union(&whole(deleted)).cloned().collect();
    let lost: Vec<_> = answered.difference(&recorded).collect();
    assert!(lost.is_empty(), "{lost:?}");
    // The chain shows that lines are missing.
    let missing = command(e2e::daemon::claviger())
        .args(["audit", "verify", "--rotated"])
        .arg(&log)
        .output()
        .unwrap();
    assert_eq!(missing.status.code(), Some(65), "{missing:?}");
}

/// A FIFO beside the log, which is no rotated file of it.
fn fifo_beside(log: &Path) -> PathBuf {
    let fifo = log.with_extension("jsonl-fifo");
    run(command("mkfifo").args(["-m", "600"]).arg(&fifo));
    fifo
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fifo_in_the_place_of_the_file_is_never_written_and_refuses_once_there_is_no_file() {
    let mut setup = setup();
    let daemon = setup.start();
    let log = setup.files.audit_file();
    let rotated = log.with_extension("jsonl.1");
    let mut answered = refuses_nothing_with_a_fifo(&setup, &daemon, &log, &rotated).await;

    let deleted = File::open(&log).unwrap();
    let fifo = fifo_beside(&log);
    let begin = || fs::rename(&fifo, &log).unwrap();
    let what = "a FIFO instead of the file";
    answered.extend(refuses(&setup, &daemon, what, begin, || fs::remove_file(&log).unwrap()).await);
    assert_eq!(daemon.terminate().code, Some(0));
    let recorded: HashSet<String> =
        setup.files.recorded().union(&whole(deleted)).cloned().collect();
    let lost: Vec<_> = answered.difference(&recorded).collect();
    assert!(lost.is_empty(), "{lost:?}");
}

/// The file was renamed and a FIFO has its name: records go on to the renamed file.
async fn refuses_nothing_with_a_fifo(
    setup: &Setup,
    daemon: &Daemon,
    log: &Path,
    rotated: &Path,
) -> HashSet<String> {
    let fifo = fifo_beside(log);
    let put = || {
        // At once: the daemon must not make a new file between the two.
        renameat_with(CWD, log, CWD, &fifo, RenameFlags::EXCHANGE).unwrap();
        fs::rename(&fifo, rotated).unwrap();
    };
    let take = || fs::remove_file(log).unwrap();
    let answered = goes_on(setup, daemon, "a FIFO beside the renamed file", &[&put, &take]).await;
    nothing_is_lost(setup, &answered, &setup.files.recorded());
    answered
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
    let (refused, after) = loop {
        let asked = Instant::now();
        match unwrap(&connection, &setup).await {
            Ok(request_id) => answered.push(request_id),
            Err(answer) => break (answer, asked.elapsed()),
        }
        assert!(begun.elapsed() < Duration::from_mins(2), "never full");
    };
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert_eq!(daemon.operations_get("/readyz").unwrap().0, 503);
    fs::remove_file(folder.join("filler")).unwrap();
    let begun = Instant::now();
    answered.push(unwrap_again(&connection, &setup, &daemon).await);
    println!("full disk: refused after {after:?}, back after {:?}", begun.elapsed());
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

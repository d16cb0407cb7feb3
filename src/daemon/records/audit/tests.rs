//! The audit log under concurrency, hostile strings, full disks, rotation, refusals and kills.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tempfile::TempDir;
use tonic::Code;

use super::file::LogFile;
use super::*;
use crate::daemon::config::Operation;

struct Fixture {
    directory: TempDir,
    metrics: Arc<AuditMetrics>,
}

impl Fixture {
    fn new() -> Self {
        Self { directory: TempDir::new().unwrap(), metrics: Arc::default() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("audit.jsonl")
    }

    fn open(&self) -> Audit {
        self.try_open().unwrap()
    }

    fn try_open(&self) -> Result<Audit, AuditError> {
        Audit::open(
            &config::Audit::File(Box::new(config::AuditFile::at(self.path()))),
            Arc::clone(&self.metrics),
        )
    }

    fn open_over(&self, instead: &str) -> Audit {
        let instead = OpenOptions::new().write(true).open(instead).unwrap();
        let file = LogFile::with_open_file(&self.path(), instead).unwrap();
        Audit::over(file, None, Sinks::none(), Duration::from_mins(1), Arc::clone(&self.metrics))
            .unwrap()
    }

    fn lines(&self) -> Vec<Value> {
        lines(&self.path())
    }
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "the last line is torn");
    text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
}

fn unwrap_of(request_id: &str) -> Record<'_> {
    Record {
        request_id,
        caller: Some("key-connector"),
        operation: Some(Operation::Unwrap),
        key: Some("user-keys"),
        ..Record::new(Code::Ok)
    }
}

fn refused(caller: Option<&str>) -> Record<'_> {
    Record { caller, reason: Some("rate"), ..Record::new(Code::ResourceExhausted) }
}

fn request_ids(lines: &[Value]) -> Vec<&str> {
    lines.iter().filter_map(|line| line["request_id"].as_str()).collect()
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one record with everything, and what it says")]
async fn a_record_says_everything_and_nothing_that_it_was_not_given() {
    let fixture = Fixture::new();
    let audit = fixture.open();
    audit
        .event(&Event::Start {
            boot_id: Some("b-1"),
            config_sha256: &[0xab; 32],
            signers: &["alice".to_owned(), "b\"b".to_owned()],
        })
        .await
        .unwrap();
    let record = Record {
        request_id: "0197-a",
        caller_request_id: Some("theirs"),
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        caller: Some("key-connector"),
        identity: Some("spiffe://example.org/key-connector"),
        certificate_sha256: Some(&[1; 32]),
        certificate_not_after: Some(SystemTime::UNIX_EPOCH + Duration::from_hours(24)),
        anchor: Some("clients"),
        issuer: Some("corp"),
        subject: Some("alice"),
        token_sha256: Some(&[5; 32]),
        peer: Some("127.0.0.1:4711"),
        operation: Some(Operation::Rewrap),
        key: Some("user-keys"),
        version: Some(2),
        provider: Some("hsm-a"),
        algorithm: Some("RSA-OAEP"),
        wrapped_sha256: Some(&[2; 32]),
        target: RewrapTarget {
            key: Some("new-keys"),
            version: Some(3),
            public_key_sha256: Some([3; 32]),
            algorithm: Some("RSA-OAEP-256"),
            wrapped_sha256: Some([4; 32]),
            approver_issuer: Some("corp"),
            approver: Some("bob"),
            approval_sha256: Some([6; 32]),
        },
        batch_item: Some(63),
        outcome: Code::InvalidArgument,
        reason: Some("unwrap_failed"),
        ended: Some("ok"),
        cause: Some("value_not_granted"),
        backend_error: Some("CKR_GENERAL_ERROR"),
        backend_request_id: Some("b-1"),
        duration: Duration::from_micros(1234),
    };
    audit.record(&record).await.unwrap();
    audit.record(&Record { request_id: "0197-b", ..Record::new(Code::Ok) }).await.unwrap();

    let mut lines = fixture.lines();
    let instance = audit.instance().unwrap().to_string();
    let mut last_monotonic = 1;
    for (seq, line) in lines.iter_mut().enumerate() {
        let line = line.as_object_mut().unwrap();
        assert_eq!(line.remove("seq").unwrap(), seq);
        assert_eq!(line.remove("instance").unwrap(), instance.as_str());
        assert_eq!(line.remove("n").unwrap(), seq);
        assert_eq!(line.remove("prev").unwrap().as_str().unwrap().len(), 64);
        assert_eq!(line.remove("schema").unwrap(), 2);
        let monotonic = line.remove("monotonic_us").unwrap().as_u64().unwrap();
        assert!(monotonic >= last_monotonic, "{monotonic} is not before {last_monotonic}");
        last_monotonic = monotonic;
        let time = line.remove("time").unwrap();
        let time = time.as_str().unwrap();
        assert_eq!(time.len(), "2026-11-21T07:22:00.123456Z".len());
        let format = time::macros::format_description!(
            "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z"
        );
        let now = time::OffsetDateTime::now_utc().format(&format).unwrap();
        assert!(time <= now.as_str() && time[..2] == now[..2], "{time} is about {now}");
    }
    assert_eq!(
        lines[0],
        serde_json::json!({
            "event": "start", "program_version": env!("CARGO_PKG_VERSION"), "boot_id": "b-1",
            "config_sha256": "ab".repeat(32), "signers": ["alice", "b\"b"],
        })
    );
    assert_eq!(
        lines[1],
        serde_json::json!({
            "event": "operation", "request_id": "0197-a", "caller_request_id": "theirs",
            "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "caller": "key-connector", "identity": "spiffe://example.org/key-connector",
            "certificate_sha256": "01".repeat(32),
            "certificate_not_after": "1970-01-02T00:00:00.000000Z", "anchor": "clients",
            "issuer": "corp", "subject": "alice", "token_sha256": "05".repeat(32),
            "peer": "127.0.0.1:4711",
            "operation": "rewrap", "key": "user-keys", "version": 2, "provider": "hsm-a",
            "algorithm": "RSA-OAEP", "wrapped_sha256": "02".repeat(32),
            "target_key": "new-keys", "target_version": 3,
            "target_public_key_sha256": "03".repeat(32), "target_algorithm": "RSA-OAEP-256",
            "target_wrapped_sha256": "04".repeat(32), "approver_issuer": "corp",
            "approver": "bob", "approval_sha256": "06".repeat(32), "batch_item": 63,
            "outcome": "INVALID_ARGUMENT", "reason": "unwrap_failed", "ended": "ok",
            "cause": "value_not_granted",
            "backend_error": "CKR_GENERAL_ERROR", "backend_request_id": "b-1",
            "duration_us": 1234,
        })
    );
    assert_eq!(
        lines[2],
        serde_json::json!({
            "event": "operation", "request_id": "0197-b", "outcome": "ok", "duration_us": 0,
        })
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_record_of_many_writers_is_in_the_file_once_and_in_order() {
    let fixture = Fixture::new();
    let audit = Arc::new(fixture.open());
    let writers = (0..64).map(|writer| {
        let audit = Arc::clone(&audit);
        tokio::spawn(async move {
            for call in 0..20 {
                audit.record(&unwrap_of(&format!("{writer}-{call}"))).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let lines = fixture.lines();
    let ids: HashSet<&str> = request_ids(&lines).into_iter().collect();
    assert_eq!((lines.len(), ids.len()), (64 * 20, 64 * 20));
    assert!(lines.iter().enumerate().all(|(seq, line)| line["seq"] == seq));
    let syncs = fixture.metrics.syncs();
    assert!(syncs < 64 * 20 / 4, "{syncs} syncs: records that gather share one");
}

#[tokio::test]
async fn a_record_that_nobody_waits_for_is_written() {
    let fixture = Fixture::new();
    let audit = fixture.open();
    drop(audit.record(&unwrap_of("the caller is gone")));
    drop(audit);
    assert_eq!(request_ids(&fixture.lines()), ["the caller is gone"]);
}

#[tokio::test]
async fn two_hundred_nasty_strings_come_back_as_they_were_and_never_break_a_line() {
    let pieces = [
        "\n",
        "\r\n",
        "\"",
        "\\",
        "\\n",
        "\",\"outcome\":\"ok",
        "}\n{\"seq\":0}",
        "\0",
        "\u{1b}[2J",
        "\u{7f}",
        "\u{9b}31m",
        "\u{85}",
        "\u{2028}",
        "\u{202e}gnp",
        "\u{feff}",
        "é𝄞中",
        "\t",
        "%00",
        "\u{e0001}",
        "${jndi:ldap://x}",
    ];
    let fixture = Fixture::new();
    let audit = fixture.open();
    let nasty: Vec<String> = (0..200)
        .map(|n| format!("{}{n}{}", pieces[n % pieces.len()], pieces[(n / pieces.len()) * 2 % 19]))
        .collect();
    for value in &nasty {
        let record = Record {
            request_id: value,
            caller_request_id: Some(value),
            identity: Some(value),
            key: Some(value),
            backend_error: Some(value),
            ..Record::new(Code::Ok)
        };
        audit.record(&record).await.unwrap();
    }
    let text = fs::read_to_string(fixture.path()).unwrap();
    let deceptive = |c: &char| *c != '\n' && crate::daemon::records::log::is_deceptive(*c);
    assert_eq!(text.chars().find(deceptive), None);
    let lines = fixture.lines();
    assert_eq!(lines.len(), nasty.len());
    for (line, value) in lines.iter().zip(&nasty) {
        assert_eq!(line.as_object().unwrap().len(), 15);
        for field in ["request_id", "caller_request_id", "identity", "key", "backend_error"] {
            assert_eq!(line[field], value.as_str());
        }
    }
}

#[tokio::test]
async fn strings_are_cut_at_their_cap_and_not_inside_a_character() {
    let fixture = Fixture::new();
    let audit = fixture.open();
    let long = "é\n".repeat(100_000);
    let record = Record {
        key: Some(&long),
        identity: Some(&long),
        backend_error: Some(&long),
        ..Record::new(Code::Ok)
    };
    audit.record(&record).await.unwrap();
    let lines = fixture.lines();
    for (field, cap) in [("key", 64), ("identity", 256), ("backend_error", 512)] {
        assert_eq!(lines[0][field], format!("{}…", "é\n".repeat(cap / 2)));
    }
}

#[tokio::test]
async fn a_full_disk_fails_every_waiting_record_and_the_log_goes_on_when_there_is_room() {
    let fixture = Fixture::new();
    let audit = fixture.open_over("/dev/full");
    let waiting: Vec<_> = (0..3).map(|_| audit.record(&unwrap_of("no room"))).collect();
    let error = waiting.into_iter().next().unwrap().await.unwrap_err();
    assert!(matches!(&error, AuditError::Write(cause)
        if cause.kind() == io::ErrorKind::StorageFull));
    assert!(fixture.metrics.failures() >= 1);

    // /dev/full stands for the file only until the failure: then the real one is opened again.
    audit.drain().await.unwrap();
    assert!(!audit.is_failing());
    audit.record(&unwrap_of("room")).await.unwrap();
    let lines = fixture.lines();
    assert_eq!(lines[0]["event"], "gap");
    assert_eq!(lines[0]["first_seq"], 0);
    assert!(lines[0]["error"].as_str().unwrap().contains("No space left"));
    let lost = lines[0]["records"].as_u64().unwrap();
    assert_eq!(lost, fixture.metrics.failures());
    assert_eq!(lines[0]["last_seq"], lost - 1);
    assert_eq!(*request_ids(&lines).last().unwrap(), "room");
}

#[tokio::test]
async fn a_write_that_cannot_be_synced_is_a_failure() {
    let fixture = Fixture::new();
    // A device takes every write and refuses fdatasync.
    let audit = fixture.open_over("/dev/null");
    let result = audit.record(&unwrap_of("not durable")).await;
    assert!(matches!(result, Err(AuditError::Write(_))));
    audit.record(&unwrap_of("durable")).await.unwrap();
    assert_eq!(request_ids(&fixture.lines()), ["durable"]);
}

#[tokio::test]
async fn a_log_that_failed_recovers_without_being_asked() {
    let fixture = Fixture::new();
    let audit = fixture.open_over("/dev/full");
    audit.record(&unwrap_of("no room")).await.unwrap_err();
    for _ in 0..100 {
        if !audit.is_failing() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!audit.is_failing());
    assert_eq!(fixture.lines()[0]["event"], "gap");
}

#[tokio::test]
async fn half_a_line_at_the_end_is_cut_off_and_kept_aside() {
    let fixture = Fixture::new();
    fixture.open().record(&unwrap_of("whole")).await.unwrap();
    let mut file = OpenOptions::new().append(true).open(fixture.path()).unwrap();
    file.write_all(b"{\"seq\":1,\"time\":\"20").unwrap();

    fixture.open().record(&unwrap_of("after")).await.unwrap();
    assert_eq!(request_ids(&fixture.lines()), ["whole", "after"]);
    let aside = fixture.directory.path().join("audit.jsonl.torn");
    assert_eq!(fs::read(&aside).unwrap(), b"{\"seq\":1,\"time\":\"20\n");
    assert_eq!(fs::metadata(&aside).unwrap().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_second_daemon_on_the_same_file_is_refused() {
    let fixture = Fixture::new();
    let first = fixture.open();
    assert!(matches!(fixture.try_open(), Err(AuditError::InUse { .. })));
    drop(first);
    fixture.open();
}

#[test]
fn a_file_that_is_no_audit_log_or_that_others_could_read_is_refused_in_words() {
    let refusal = |prepare: &dyn Fn(&Path)| {
        let fixture = Fixture::new();
        prepare(&fixture.path());
        fixture.try_open().unwrap_err().to_string()
    };
    let with_mode = |mode: u32| {
        move |path: &Path| {
            File::create(path).unwrap().set_permissions(fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    for mode in [0o644, 0o660, 0o602, 0o666, 0o700] {
        assert!(refusal(&with_mode(mode)).contains("chmod 0600"), "{mode:o}");
    }
    let link = |path: &Path| std::os::unix::fs::symlink("elsewhere", path).unwrap();
    assert!(refusal(&link).contains("symbolic link"));
    assert!(refusal(&|path| fs::create_dir(path).unwrap()).contains("directory"));
    let private = |path: &Path, text: &[u8]| {
        let mut options = OpenOptions::new();
        options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .unwrap()
            .write_all(text)
            .unwrap();
    };
    assert!(refusal(&|path| private(path, b"root:x:0:0")).contains("not an audit log"));
    let no_line_end = [&b"{"[..], &vec![b'x'; 1 << 20][..]].concat();
    assert!(refusal(&|path| private(path, &no_line_end)).contains("not an audit log"));
    let fifo = |path: &Path| {
        assert!(Command::new("mkfifo").args(["-m", "600"]).arg(path).status().unwrap().success());
    };
    assert!(refusal(&fifo).contains("regular file"));
}

#[test]
fn a_new_file_is_private_and_one_that_its_group_may_read_is_accepted() {
    let fixture = Fixture::new();
    drop(fixture.open());
    assert_eq!(fs::metadata(fixture.path()).unwrap().mode() & 0o777, 0o600);
    fs::set_permissions(fixture.path(), fs::Permissions::from_mode(0o640)).unwrap();
    drop(fixture.open());
    assert_eq!(fs::metadata(fixture.path()).unwrap().mode() & 0o777, 0o640);
}

#[tokio::test]
async fn rotation_by_renaming_loses_nothing() {
    let fixture = Fixture::new();
    let audit = fixture.open();
    let rotated = |n: u32| fixture.directory.path().join(format!("audit.jsonl.{n}"));
    for n in 0..5 {
        audit.record(&unwrap_of(&n.to_string())).await.unwrap();
        fs::rename(fixture.path(), rotated(n)).unwrap();
    }
    audit.reopen().await.unwrap();
    assert!(fixture.path().exists());
    for n in 0..5 {
        assert_eq!(request_ids(&lines(&rotated(n))), [n.to_string()]);
    }
    assert!(fixture.lines().is_empty());
    assert!(matches!(fixture.try_open(), Err(AuditError::InUse { .. })), "the new file is locked");
}

#[tokio::test]
async fn records_go_to_the_renamed_file_while_there_can_be_no_new_one() {
    let fixture = Fixture::new();
    let audit = fixture.open();
    audit.record(&unwrap_of("before")).await.unwrap();
    let renamed = fixture.directory.path().join("renamed");
    fs::rename(fixture.path(), &renamed).unwrap();
    fs::create_dir(fixture.path()).unwrap();
    audit.record(&unwrap_of("meanwhile")).await.unwrap();
    fs::remove_dir(fixture.path()).unwrap();
    audit.record(&unwrap_of("after")).await.unwrap();
    assert_eq!(request_ids(&lines(&renamed)), ["before", "meanwhile"]);
    assert_eq!(request_ids(&fixture.lines()), ["after"]);
}

#[tokio::test]
async fn a_file_that_was_removed_is_made_anew_and_one_that_was_emptied_has_no_hole() {
    let fixture = Fixture::new();
    let audit = fixture.open();
    audit.record(&unwrap_of("removed")).await.unwrap();
    fs::remove_file(fixture.path()).unwrap();
    audit.record(&unwrap_of("emptied")).await.unwrap();
    assert_eq!(request_ids(&fixture.lines()), ["emptied"]);
    OpenOptions::new().write(true).open(fixture.path()).unwrap().set_len(0).unwrap();
    audit.record(&unwrap_of("stays")).await.unwrap();
    audit.drain().await.unwrap();
    assert_eq!(request_ids(&fixture.lines()), ["stays"]);
    assert_eq!(fixture.lines()[1]["alarm"], "audit_cut", "as copytruncate does, and it is said");
    let mut other = OpenOptions::new().append(true).open(fixture.path()).unwrap();
    other.write_all(b"{}\n").unwrap();
    audit.record(&unwrap_of("behind")).await.unwrap();
    audit.drain().await.unwrap();
    let lines = fixture.lines();
    assert_eq!(lines.last().unwrap()["alarm"], "audit_written_by_others", "{lines:?}");
}

#[tokio::test]
async fn the_daemon_rotates_by_size_and_the_chain_goes_on_over_files_and_restarts() {
    let fixture = Fixture::new();
    let rotation = config::Rotation { max_size: Some(800), max_age: None, keep: None };
    let config = config::AuditFile { rotation, ..config::AuditFile::at(fixture.path()) };
    let config = config::Audit::File(Box::new(config));
    for run in 0..2 {
        let audit = Audit::open(&config, Arc::clone(&fixture.metrics)).unwrap();
        for at in 0..10 {
            audit.record(&unwrap_of(&format!("{run}-{at}"))).await.unwrap();
        }
        assert!(matches!(fixture.try_open(), Err(AuditError::InUse { .. })), "the file is locked");
    }
    let folder = fs::read_dir(fixture.directory.path()).unwrap();
    let mut files: Vec<PathBuf> = folder.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| *file != fixture.path());
    // The number of lines in a name is their order where several are of one second.
    let records = |file: &PathBuf| -> u64 {
        file.to_str().unwrap().rsplit_once('-').unwrap().1.parse().unwrap()
    };
    files.sort_by_key(records);
    assert!(files.len() > 3, "{files:?}");
    files.push(fixture.path());
    assert_eq!(follows(&files, Head::START).records, 20);
    assert!(files.iter().all(|file| file.metadata().unwrap().len() < 2000));
}

#[tokio::test]
async fn a_file_that_was_left_by_the_daemon_ends_with_its_last_line_and_frees_its_reserve() {
    let fixture = Fixture::new();
    let rotation = config::Rotation { max_size: Some(100), max_age: None, keep: Some(2) };
    let config = config::AuditFile { rotation, ..config::AuditFile::at(fixture.path()) };
    let audit =
        Audit::open(&config::Audit::File(Box::new(config)), Arc::clone(&fixture.metrics)).unwrap();
    for at in 0..6 {
        audit.record(&unwrap_of(&at.to_string())).await.unwrap();
    }
    let folder = fs::read_dir(fixture.directory.path()).unwrap();
    let files: Vec<PathBuf> = folder.map(|entry| entry.unwrap().path()).collect();
    let left: Vec<_> = files.iter().filter(|file| **file != fixture.path()).collect();
    assert_eq!(left.len(), 2, "{files:?}");
    for file in left {
        assert_eq!(lines(file).len(), 1, "each file was full with its first line");
        assert!(file.metadata().unwrap().blocks() * 512 <= 64 << 10, "{file:?}");
    }
}

#[tokio::test]
async fn ten_thousand_refusals_of_one_caller_make_six_lines_and_others_keep_theirs() {
    let fixture = Fixture::new();
    let audit = fixture.open();
    for _ in 0..10_000 {
        audit.refusal(&refused(Some("noisy")));
        audit.refusal(&refused(None));
    }
    audit.refusal(&refused(Some("quiet")));
    audit.drain().await.unwrap();

    let lines = fixture.lines();
    let of = |caller: Option<&str>, event: &str| -> Vec<&Value> {
        let matches = |line: &&Value| line["event"] == event && line["caller"].as_str() == caller;
        lines.iter().filter(matches).collect()
    };
    assert_eq!(lines.len(), 6 + 6 + 1);
    for caller in [Some("noisy"), None] {
        assert_eq!(of(caller, "refusal").len(), 5);
        let summaries = of(caller, "refusals");
        assert_eq!(summaries.len(), 1);
        assert_eq!(summaries[0]["refusals"], 9_995);
        assert_eq!(summaries[0]["reasons"], serde_json::json!({ "rate": 9_995 }));
        assert!(summaries[0]["first"].as_str() <= summaries[0]["last"].as_str());
    }
    assert_eq!(of(Some("quiet"), "refusal").len(), 1);

    audit.refusal(&refused(Some("noisy")));
    audit.drain().await.unwrap();
    assert_eq!(fixture.lines().len(), 14, "after a summary a caller has lines of its own again");
}

#[tokio::test]
async fn refusals_that_were_counted_are_written_even_without_a_drain() {
    let fixture = Fixture::new();
    let audit = fixture.open();
    (0..7).for_each(|_| audit.refusal(&refused(Some("noisy"))));
    drop(audit);
    assert_eq!(fixture.lines().last().unwrap()["refusals"], 2);
}

#[tokio::test]
async fn with_the_audit_off_everything_succeeds_and_nothing_is_written() {
    let audit = Audit::open(&config::Audit::Off, Arc::default()).unwrap();
    audit.record(&unwrap_of("x")).await.unwrap();
    audit.refusal(&refused(None));
    audit.drain().await.unwrap();
    assert!(!audit.is_on() && !audit.is_failing());
}

/// What the two tests below run as a process of its own: it records until it is killed, says what
/// was acknowledged, and goes on after an error when a line comes on stdin.
#[tokio::test]
#[ignore = "needs a parent that kills it; alone it ends after 2,000 records"]
async fn child_that_records() {
    let given = std::env::var_os("AUDIT_FILE").map(PathBuf::from);
    let most = if given.is_some() { u64::MAX } else { 2_000 };
    let alone = given.is_none().then(Fixture::new);
    let path = given.unwrap_or_else(|| alone.as_ref().expect("made above").path());
    let audit = Audit::open(
        &config::Audit::File(Box::new(config::AuditFile::at(path.clone()))),
        Arc::default(),
    )
    .unwrap();
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..most {
        let id = n.to_string();
        let record = audit.record(&unwrap_of(&id));
        calls.spawn(async move { record.await.map(|()| id) });
        if calls.len() < 16 {
            continue;
        }
        match calls.join_next().await.unwrap().unwrap() {
            Ok(id) => println!("ack {id}"),
            Err(error) => {
                println!("fail {error}");
                let mut line = String::new();
                io::stdin().read_line(&mut line).unwrap();
                let limit = rustix::process::Rlimit { current: None, maximum: None };
                rustix::process::setrlimit(rustix::process::Resource::Fsize, limit).unwrap();
            }
        }
    }
    audit.drain().await.unwrap();
    assert_eq!(lines(&path).len(), 2_000);
}

fn child(path: &Path, before: &str) -> std::process::Child {
    let name = "daemon::records::audit::tests::child_that_records";
    Command::new("sh")
        .args(["-c", &format!("{before} exec \"$0\" --ignored --exact --nocapture {name}")])
        .arg(std::env::current_exe().unwrap())
        .env("AUDIT_FILE", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn every_record_that_a_killed_process_acknowledged_is_in_the_file() {
    let fixture = Fixture::new();
    for round in 0..5 {
        let mut child = child(&fixture.path(), "");
        let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acknowledged = HashSet::new();
        let mut note = |line: io::Result<String>| {
            if let Some(id) = line.unwrap().strip_prefix("ack ") {
                acknowledged.insert(id.to_owned());
            }
            acknowledged.len()
        };
        while note(out.next().unwrap()) < 200 + 37 * round {}
        child.kill().unwrap();
        out.for_each(|line| {
            note(line);
        });
        child.wait().unwrap();

        drop(fixture.open());
        let lines = fixture.lines();
        let written: HashSet<_> = request_ids(&lines).into_iter().map(str::to_owned).collect();
        assert!(acknowledged.len() >= 200 && acknowledged.is_subset(&written));
        fs::remove_file(fixture.path()).unwrap();
    }
}

#[test]
fn a_write_that_broke_off_in_the_middle_leaves_no_trace_and_is_no_success() {
    let fixture = Fixture::new();
    // 8 blocks of 512 bytes: the write that passes 4096 bytes is cut short by the kernel.
    let mut child = child(&fixture.path(), "trap '' XFSZ; ulimit -S -f 8;");
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut acknowledged = Vec::new();
    let mut after_failure = 0;
    let mut stdin = child.stdin.take().unwrap();
    let mut failed = false;
    while after_failure < 50 {
        let line = out.next().unwrap().unwrap();
        if let Some(id) = line.strip_prefix("ack ") {
            acknowledged.push(id.to_owned());
            after_failure += usize::from(failed);
        } else if let Some(error) = line.strip_prefix("fail ") {
            assert!(error.contains("File too large"), "{error}");
            failed = true;
            stdin.write_all(b"go on\n").unwrap();
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    drop(fixture.open());
    let lines = fixture.lines();
    let written: HashSet<_> = request_ids(&lines).into_iter().collect();
    assert!(acknowledged.iter().all(|id| written.contains(id.as_str())));
    assert!(lines.iter().any(|line| line["event"] == "gap"));
}

fn read_of(caller: &str, key: &str) -> impl Fn(&Audit) -> bool {
    let (caller, key) = (caller.to_owned(), key.to_owned());
    move |audit| {
        let record = Record {
            caller: Some(&caller),
            operation: Some(Operation::Read),
            key: Some(&key),
            ..Record::new(Code::Ok)
        };
        audit.cheap_success(&record).unwrap().is_some()
    }
}

#[tokio::test]
async fn cheap_successes_beyond_sixty_a_minute_are_counted_by_operation_and_key() {
    let fixture = Fixture::new();
    let audit = fixture.open();
    let (flood, quiet) = (read_of("flood", "user-keys"), read_of("quiet", "user-keys"));
    let own = (0..1000).filter(|_| flood(&audit)).count();
    assert_eq!(own, 60);
    assert!(quiet(&audit), "another caller has lines of its own");
    audit.drain().await.unwrap();
    let lines = fixture.lines();
    assert_eq!(lines.len(), 62);
    let counted = lines.last().unwrap();
    assert_eq!((&counted["event"], &counted["caller"]), (&"operations".into(), &"flood".into()));
    assert_eq!(counted["operations"], 940);
    assert_eq!(counted["by_operation"], serde_json::json!({ "read": 940 }));
    assert_eq!(counted["keys"], serde_json::json!({ "user-keys": 940 }));
}

#[tokio::test]
async fn long_names_use_the_room_of_their_own_caller_up() {
    let fixture = Fixture::new();
    let audit = fixture.open();
    let long = "é\u{1}".repeat(10_000);
    let record = Record {
        caller: Some("flood"),
        identity: Some(&long),
        operation: Some(Operation::Read),
        key: Some(&long),
        backend_error: Some(&long),
        ..Record::new(Code::Ok)
    };
    for _ in 0..100 {
        drop(audit.cheap_success(&record).unwrap());
    }
    audit.drain().await.unwrap();
    let bytes = fs::metadata(fixture.path()).unwrap().len();
    assert!((64 << 10..80 << 10).contains(&bytes), "{bytes}");
}

#[tokio::test]
async fn the_count_of_refusals_keeps_the_names_that_were_probed_for() {
    let fixture = Fixture::new();
    let audit = fixture.open();
    let probe = |key: &str| {
        let refused = Record { key: Some(key), ..refused(Some("prober")) };
        audit.refusal(&Record { identity: Some("spiffe://example.org/prober"), ..refused });
    };
    // Five that are junk, as one who wants to hide would begin.
    (0..5).for_each(|_| probe("junk"));
    (0..20).for_each(|n| probe(&format!("key-{n}")));
    audit.drain().await.unwrap();
    let lines = fixture.lines();
    let counted = lines.last().unwrap();
    assert_eq!(counted["refusals"], 20);
    let keys = counted["keys"].as_object().unwrap();
    assert_eq!(keys.len(), 16);
    assert!(keys.contains_key("key-0") && !keys.contains_key("junk"), "{counted}");
    assert_eq!(counted["other_keys"], 4);
    assert_eq!(counted["identities"]["spiffe://example.org/prober"], 20);
}

#[tokio::test]
async fn with_only_the_reserve_left_unwraps_are_recorded_and_cheap_calls_are_counted() {
    static FULL: AtomicBool = AtomicBool::new(true);
    let allocate = |file: &File, from: u64, bytes: u64| {
        if FULL.load(Ordering::Relaxed) {
            return Err(rustix::io::Errno::NOSPC.into());
        }
        room::allocate(file, from, bytes)
    };
    let fixture = Fixture::new();
    let file = LogFile::open(&config::AuditFile::at(fixture.path()), allocate).unwrap();
    let audit = Audit::over(
        file,
        None,
        Sinks::none(),
        Duration::from_mins(1),
        Arc::clone(&fixture.metrics),
    )
    .unwrap();
    audit.record(&unwrap_of("unwrapped")).await.unwrap();
    assert!(audit.is_in_reserve());
    (0..10).for_each(|_| audit.refusal(&refused(Some("prober"))));
    audit.drain().await.unwrap();
    let lines = fixture.lines();
    assert!(lines.iter().any(|line| line["alarm"] == "audit_reserve"), "{lines:?}");
    assert_eq!(request_ids(&lines), ["unwrapped"]);
    assert_eq!(lines.len(), 2, "refusals wait for room");

    FULL.store(false, Ordering::Relaxed);
    for _ in 0..200 {
        if !audit.is_in_reserve() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!audit.is_in_reserve(), "it looks by itself");
    audit.drain().await.unwrap();
    assert_eq!(fixture.lines().last().unwrap()["refusals"], 10);
}

#[test]
fn a_line_that_is_not_taken_has_a_number() {
    let queue = Queue::new(Uuid::now_v7(), Sinks::none(), Duration::from_mins(1), Arc::default());
    let megabyte = vec![b'x'; 1 << 20];
    let taken = (0..100).take_while(|_| queue.push(&megabyte).is_ok()).count() as u64;
    assert!(queue.push(&megabyte).is_err());
    let mut batch = queue::Batch::default();
    queue.take(&mut batch, None);
    let dropped = batch.dropped.unwrap();
    assert_eq!((batch.records, batch.last_seq), (taken, taken - 1));
    assert_eq!((dropped.records, dropped.first_seq, dropped.last_seq), (2, taken, taken + 1));
    drop(queue.push(b"x").unwrap());
    let mut batch = queue::Batch::default();
    queue.take(&mut batch, None);
    assert_eq!(batch.first_seq, taken + 2);
}

#[tokio::test]
async fn files_that_are_made_are_the_groups_to_read_where_that_is_wanted_after_rotations_too() {
    let fixture = Fixture::new();
    let config = config::AuditFile { group_reads: true, ..config::AuditFile::at(fixture.path()) };
    let audit = Audit::open(&config::Audit::File(Box::new(config)), Arc::default()).unwrap();
    let mode = || fs::metadata(fixture.path()).unwrap().mode() & 0o777;
    assert_eq!(mode(), 0o640);
    fs::rename(fixture.path(), fixture.directory.path().join("audit.jsonl.1")).unwrap();
    audit.record(&unwrap_of("after")).await.unwrap();
    assert_eq!(mode(), 0o640);
}

/// Sees that the lines of these files follow each other, from `head` on; gives the head behind them.
fn follows(files: &[PathBuf], mut head: Head) -> Head {
    for file in files {
        for line in fs::read(file).unwrap().split_inclusive(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\n").expect("whole lines");
            let expected = Link { n: head.records, prev: head.sha256 };
            assert_eq!(Link::of(line), Some(expected), "{}", String::from_utf8_lossy(line));
            head = head.after(line);
        }
    }
    head
}

#[tokio::test]
async fn the_chain_goes_on_over_rotations_failures_and_restarts() {
    let fixture = Fixture::new();
    let rotated = |n: u32| fixture.directory.path().join(format!("audit.jsonl.{n}"));
    for n in 0..3 {
        let audit = fixture.open();
        for at in 0..3 {
            audit.record(&unwrap_of(&format!("{n}-{at}"))).await.unwrap();
        }
        fs::rename(fixture.path(), rotated(2 * n)).unwrap();
        audit.record(&unwrap_of(&format!("{n}-3"))).await.unwrap();
        drop(audit);
        // As logrotate may do while no daemon runs.
        fs::rename(fixture.path(), rotated(2 * n + 1)).unwrap();
    }
    let audit = fixture.open();
    audit.record(&unwrap_of("last")).await.unwrap();
    let files: Vec<PathBuf> = (0..6).map(rotated).chain([fixture.path()]).collect();
    assert_eq!(follows(&files, Head::START).records, 13);
}

#[tokio::test]
async fn a_chain_begins_behind_the_lines_of_a_version_that_had_none() {
    let fixture = Fixture::new();
    fs::write(fixture.path(), "{\"seq\":0}\n").unwrap();
    fs::set_permissions(fixture.path(), fs::Permissions::from_mode(0o600)).unwrap();
    let audit = fixture.open();
    audit.record(&unwrap_of("a")).await.unwrap();
    assert_eq!(fixture.lines()[1]["n"], 0);
    assert_eq!(fixture.lines()[1]["prev"], "0".repeat(64));
}

fn with_checkpoints(fixture: &Fixture, every: Duration) -> config::Audit {
    let key = fixture.directory.path().join("audit.key");
    if !key.exists() {
        let pkcs8 = aws_lc_rs::signature::Ed25519KeyPair::generate().unwrap().to_pkcs8().unwrap();
        fs::write(&key, claviger_files::pem::encode("PRIVATE KEY", pkcs8.as_ref())).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let checkpoints = config::Checkpoints {
        origin: "claviger.example.org/audit".to_owned(),
        signed_by: config::SignedBy::File(key),
        file: fixture.directory.path().join("checkpoints"),
        every,
    };
    let file = config::AuditFile::at(fixture.path());
    config::Audit::File(Box::new(config::AuditFile { checkpoints: Some(checkpoints), ..file }))
}

#[tokio::test]
async fn checkpoints_are_in_the_log_and_in_a_second_file_in_time_and_at_the_end() {
    let fixture = Fixture::new();
    let config = with_checkpoints(&fixture, Duration::from_millis(1));
    let config::Audit::File(file) = &config else { unreachable!() };
    let checkpoints = file.checkpoints.as_ref().unwrap();
    let config::SignedBy::File(key) = &checkpoints.signed_by else { unreachable!() };
    let signer = Signer::from_pem_file(&checkpoints.origin, key).unwrap();
    let audit = Audit::open(&config, Arc::clone(&fixture.metrics)).unwrap();
    audit.record(&unwrap_of("a")).await.unwrap();
    let begun = Instant::now();
    while fixture.lines().len() < 2 && begun.elapsed() < Duration::from_secs(20) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    audit.record(&unwrap_of("b")).await.unwrap();
    drop(audit);
    follows(&[fixture.path()], Head::START);
    let lines = fixture.lines();
    let events: Vec<&str> = lines.iter().filter_map(|line| line["event"].as_str()).collect();
    assert_eq!(events, ["operation", "checkpoint", "operation", "checkpoint"]);
    let kept = fs::read_to_string(&checkpoints.file).unwrap();
    for line in [&lines[1], &lines[3]] {
        let note = line["note"].as_str().unwrap();
        let head = signer.verifier().verify(note).unwrap();
        assert_eq!(line["n"], head.records);
        assert_eq!(line["prev"], hex::encode(head.sha256));
        assert!(kept.contains(note), "{kept}");
    }
    // The next process goes on, and an idle one writes nothing.
    let config = with_checkpoints(&fixture, Duration::from_hours(1));
    drop(Audit::open(&config, Arc::clone(&fixture.metrics)).unwrap());
    assert_eq!(fixture.lines().len(), 4);
}

#[test]
fn a_checkpoint_key_that_cannot_sign_is_named_before_the_log_is_opened() {
    let fixture = Fixture::new();
    let config = with_checkpoints(&fixture, Duration::from_secs(1));
    let key = fixture.directory.path().join("audit.key");
    fs::write(&key, "no key").unwrap();
    let error = Audit::check(&config).unwrap_err().to_string();
    assert!(error.starts_with("audit.checkpoints: ") && error.contains("audit.key"), "{error}");
    assert!(error.contains("openssl genpkey -algorithm ed25519"), "{error}");
    assert!(Audit::open(&config, Arc::clone(&fixture.metrics)).is_err());
    assert!(!fixture.path().exists());
}

//! A daemon that is killed at any moment, and at each point of its way to the disk, under load: what a client
//! saw succeed has its record, the chain and its checkpoints verify over rotations, and the next start is quick.
//!
//! A hundred kills at random by default, `CLAVIGER_KILLS=500` for more; each point ten times.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use claviger_proto::v1::UnwrapRequest;
use e2e::daemon::claviger;
use e2e::setup::KEY;
use e2e::{Connection, Daemon, Load, Orders, Setup};
use serde_json::Value;

/// Callers at work when the daemon is killed.
const CALLERS: usize = 64;

/// The points at which the daemon is killed: what it is about to do or has just done, the order for that, and
/// the latest call of that function at which it happens.
const POINTS: [(&str, &str, u32); 17] = [
    ("a record is about to be written", "write audit.jsonl kill-before", 50),
    ("a record is half written", "write audit.jsonl kill-half", 50),
    ("a record is written and not synced", "write audit.jsonl kill-after", 50),
    ("a record is synced and not answered", "sync audit.jsonl kill-after", 50),
    ("an answer is about to be sent", "send socket kill-before", 400),
    ("an answer was sent", "send socket kill-after", 400),
    ("a checkpoint is in the log alone", "write checkpoints kill-before", 4),
    ("a checkpoint is half kept", "write checkpoints kill-half", 4),
    ("a checkpoint is kept and not synced", "write checkpoints kill-after", 4),
    ("a checkpoint is kept", "sync checkpoints kill-after", 4),
    ("the log is about to be rotated", "rename audit.jsonl kill-before", 1),
    ("the log is rotated and there is no new file", "rename audit.jsonl kill-after", 1),
    ("the rotated file is about to be cut to its length", "cut audit.jsonl kill-before", 1),
    ("the rotated file was cut to its length", "cut audit.jsonl kill-after", 1),
    ("a failed unwrap is half noted", "write failed-unwraps kill-half", 4),
    ("a failed unwrap is noted and not synced", "write failed-unwraps kill-after", 4),
    ("a failed unwrap is noted", "sync failed-unwraps kill-after", 4),
];

/// A log that is rotated often and has checkpoints often, so that kills meet both.
fn setup() -> Setup {
    let mut setup = Setup::software();
    let pkcs8 = Ed25519KeyPair::generate().unwrap().to_pkcs8().unwrap();
    let pem = format!(
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
        STANDARD.encode(pkcs8.as_ref())
    );
    let key = setup.files.file("audit.key", &pem, 0o600);
    let second = setup.files.path("checkpoints").to_str().unwrap().to_owned();
    let files = &mut setup.files;
    files.set("audit.max_size", "1MiB");
    files.set("audit.checkpoints.origin", "claviger.example.org/audit");
    files.set("audit.checkpoints.key", key);
    files.set("audit.checkpoints.file", second);
    files.set("audit.checkpoints.every", "50ms");
    setup
}

/// Kills the daemon so many times; gives the longest start.
async fn kill(kills: u32) -> Duration {
    let mut setup = setup();
    let mut daemon = setup.start();
    let (mut answered, mut longest) = (Vec::new(), Duration::ZERO);
    for _ in 0..kills {
        let load = Load::start(&setup.client_config(&daemon), &setup.wrapped, CALLERS, 0);
        load.more(CALLERS as u64).await;
        tokio::time::sleep(random_up_to(Duration::from_millis(300))).await;
        daemon.kill();
        answered.extend(load.stop().await.right);
        let begun = Instant::now();
        daemon = Daemon::spawn(&setup.files);
        daemon.wait_until_ready().unwrap_or_else(|exit| panic!("{exit:?}"));
        longest = longest.max(begun.elapsed());
    }
    assert_eq!(daemon.terminate().code, Some(0));
    check(&setup, &answered);
    println!("{kills} kills, {} answers, each recorded; longest start {longest:?}", answered.len());
    longest
}

/// Kills the daemon at each point so many times; gives the longest start.
async fn kill_at_points(rounds: u32) -> Duration {
    let mut setup = setup();
    let orders = Orders::to(&mut setup.files);
    let clumsy = setup.files.caller("clumsy", &[KEY], &["unwrap"]);
    setup.files.limit("clumsy", "failed_unwraps", "100000/h");
    let mut daemon = setup.start();
    let (mut answered, mut longest) = (Vec::new(), Duration::ZERO);
    let all = std::iter::repeat_n(&POINTS, rounds as usize).flatten();
    for (what, order, latest) in all {
        let load = Load::start(&setup.client_config(&daemon), &setup.wrapped, CALLERS, 0);
        load.more(CALLERS as u64).await;
        let mistakes = tokio::spawn(mistakes(setup.connect_as(&daemon, &clumsy).await));
        orders.give(&format!("{order} {}", 1 + random() % latest));
        let exit = daemon.wait();
        assert_eq!(exit.signal, Some(9), "{what}: {exit:?}");
        orders.take_back();
        mistakes.await.unwrap();
        answered.extend(load.stop().await.right);
        let begun = Instant::now();
        daemon = Daemon::spawn(&setup.files);
        daemon.wait_until_ready().unwrap_or_else(|exit| panic!("{what}: {exit:?}"));
        longest = longest.max(begun.elapsed());
    }
    assert_eq!(daemon.terminate().code, Some(0));
    check(&setup, &answered);
    println!(
        "{} points, {rounds} kills each, {} answers, each recorded; longest start {longest:?}",
        POINTS.len(),
        answered.len()
    );
    longest
}

/// A caller whose values never unwrap, another one each time, until its connection ends.
async fn mistakes(connection: Connection) {
    for number in 1_u64.. {
        let mut wrapped = vec![0x55; 256];
        wrapped[1..9].copy_from_slice(&number.to_be_bytes());
        SystemRandom::new().fill(&mut wrapped[9..17]).unwrap();
        let wrapped = wrapped.into();
        let request = UnwrapRequest { key: KEY.into(), wrapped, ..UnwrapRequest::default() };
        let body = e2e::connection::frame(&prost::Message::encode_to_vec(&request));
        if connection.call("/claviger.v1.KeyService/Unwrap", body, &[]).await.is_err() {
            return;
        }
    }
}

fn random_up_to(most: Duration) -> Duration {
    most.mul_f64(f64::from(random()) / f64::from(u32::MAX))
}

fn random() -> u32 {
    let mut bytes = [0; 4];
    SystemRandom::new().fill(&mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

/// Each answer has its record, and the log verifies.
fn check(setup: &Setup, answered: &[String]) {
    let recorded = setup.files.recorded();
    let lost: Vec<_> = answered.iter().filter(|id| !recorded.contains(*id)).collect();
    assert!(lost.is_empty(), "{} of {} have no record: {lost:?}", lost.len(), answered.len());
    verify(setup);
}

fn verify(setup: &Setup) {
    let path = |name: &str| setup.files.path(name).to_str().unwrap().to_owned();
    let audit = |arguments: &[&str]| {
        Command::new(claviger()).arg("audit").args(arguments).output().unwrap()
    };
    let key = audit(&["public-key", "--origin", "claviger.example.org/audit", &path("audit.key")]);
    fs::write(path("audit.pub"), key.stdout).unwrap();
    let (key, second, log) = (path("audit.pub"), path("checkpoints"), path("audit.jsonl"));
    let said = audit(&[
        "verify",
        "--json",
        "--rotated",
        "--public-key",
        &key,
        "--checkpoints",
        &second,
        &log,
    ]);
    let text = String::from_utf8_lossy(&said.stdout);
    assert!(said.status.success(), "{text}{}", String::from_utf8_lossy(&said.stderr));
    let said: Value = serde_json::from_str(&text).unwrap();
    assert!(said["checkpoints"].as_u64().unwrap() > 0, "{said}");
    assert_eq!(said["first_n"], 0, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_answer_has_its_record_though_the_daemon_was_killed() {
    kill(3).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: a minute or more"]
async fn each_answer_has_its_record_over_a_hundred_kills() {
    let kills = std::env::var("CLAVIGER_KILLS").map_or(100, |text| text.parse().unwrap());
    let longest = kill(kills).await;
    assert!(longest < Duration::from_secs(10), "{longest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_answer_has_its_record_wherever_on_its_way_to_the_disk_the_daemon_was_killed() {
    kill_at_points(1).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: minutes"]
async fn each_answer_has_its_record_over_ten_kills_at_each_point_on_the_way_to_the_disk() {
    let longest = kill_at_points(10).await;
    assert!(longest < Duration::from_secs(10), "{longest:?}");
}

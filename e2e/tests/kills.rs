//! A daemon that is killed at any moment under load: what a client saw succeed has its record, the chain and
//! its checkpoints verify over rotations, and the next start is quick.
//!
//! A hundred kills by default; `CLAVIGER_KILLS=500` for more.

use std::collections::HashSet;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use e2e::daemon::claviger;
use e2e::{Daemon, Load, Setup};
use serde_json::Value;

/// Callers at work when the daemon is killed.
const CALLERS: usize = 64;

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
    let recorded = recorded(&setup);
    let lost: Vec<_> = answered.iter().filter(|id| !recorded.contains(*id)).collect();
    assert!(
        lost.is_empty(),
        "{} of {} answers have no record: {lost:?}",
        lost.len(),
        answered.len()
    );
    verify(&setup);
    println!("{kills} kills, {} answers, each recorded; longest start {longest:?}", answered.len());
    longest
}

fn random_up_to(most: Duration) -> Duration {
    let mut bytes = [0; 4];
    SystemRandom::new().fill(&mut bytes).unwrap();
    most.mul_f64(f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX))
}

/// The request ids in all files of the log.
fn recorded(setup: &Setup) -> HashSet<String> {
    let mut ids = HashSet::new();
    for entry in fs::read_dir(setup.files.path(".")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if !name.starts_with("audit.jsonl") || name.contains(".torn") {
            continue;
        }
        for line in fs::read_to_string(&path).unwrap().lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            ids.extend(line["request_id"].as_str().map(str::to_owned));
        }
    }
    ids
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

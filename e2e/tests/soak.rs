//! Two HSMs under load with a fault every three seconds: no call fails, and nothing grows.
//!
//! Ten minutes by default; `CLAVIGER_SOAK_MINUTES=70` for longer. One HSM fails at a time: on a machine that
//! is busy with other things, where a process takes seconds to start, the next fault waits for the last one's
//! end.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use claviger_client::{Client, UnwrapOptions};
use claviger_provider_api::{Algorithm, KeyMaterial, Parameters};
use e2e::setup::KEY;
use e2e::{Daemon, Faults, Setup, Token};
use rustix::process::{Pid, Signal, kill_process};

/// Calls at a time.
const CALLERS: usize = 16;
/// From one fault to the next.
const PAUSE: Duration = Duration::from_secs(3);
/// How long each caller rests between two calls: the point is time, not speed.
const REST: Duration = Duration::from_millis(50);
/// How long an HSM may take to serve again.
const PATIENCE: Duration = Duration::from_mins(1);
/// When memory has found its level.
const SETTLED: Duration = Duration::from_mins(3);

/// What an HSM does; one after the other, on the first and the second in turn.
const FAULTS: [(&str, &str); 12] = [
    ("C_Decrypt", "crash"),
    ("C_DecryptInit", "rv=CKR_DEVICE_ERROR"),
    ("C_Decrypt", "abort"),
    ("C_DecryptInit", "close-all"),
    ("C_Decrypt", "rv=CKR_DEVICE_REMOVED"),
    ("C_DecryptInit", "logout"),
    ("C_Decrypt", "hang"),
    ("C_DecryptInit", "exit=1"),
    ("C_DecryptInit", "finalize"),
    ("C_Decrypt", "sleep=1500"),
    ("C_DecryptInit", "rv=CKR_SESSION_HANDLE_INVALID"),
    ("C_DecryptInit", "leak=64"),
];

/// What the daemon and its children take.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Duration,
    /// Proportional memory of the daemon in KiB.
    memory: u64,
    descriptors: usize,
    threads: usize,
    children: usize,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: ten minutes"]
async fn ten_minutes_with_a_fault_every_three_seconds_fail_no_call_and_leave_nothing_behind() {
    let minutes = std::env::var("CLAVIGER_SOAK_MINUTES").map_or(10, |text| text.parse().unwrap());
    let (a, faults_of_a) = Token::softhsm().through_fault_module();
    let (b, faults_of_b) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on_replicas(&[&a, &b]);
    // Both have calls all the time, so that both are seen to fail and to be back.
    setup.files.set(&format!("keys.{KEY}.balance"), "least-busy");
    let daemon = setup.start();
    let stop = Arc::<AtomicBool>::default();
    let right = Arc::<AtomicU64>::default();
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (client, key) = (setup.client(&daemon), setup.key.clone());
            let (stop, right) = (Arc::clone(&stop), Arc::clone(&right));
            tokio::spawn(async move {
                call(caller as u64, &client, key.public_key(), &stop, &right).await
            })
        })
        .collect();

    let begun = Instant::now();
    let (mut samples, mut waits) = (Vec::new(), Vec::new());
    for round in 0.. {
        if begun.elapsed() >= Duration::from_mins(minutes) {
            break;
        }
        let faults = if round % 2 == 0 { &faults_of_a } else { &faults_of_b };
        one_fault(faults, &daemon, round / 2).await;
        waits.extend(both_serve(&daemon).await);
        samples.push(sample(&daemon, begun));
        if round % 20 == 19 {
            let last = samples.last().expect("there is one");
            println!("{} calls, {} faults: {last:?}", right.load(Ordering::Relaxed), round + 1);
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut failed = Vec::new();
    for caller in callers {
        failed.extend(caller.await.expect("no answer was wrong"));
    }
    let calls = right.load(Ordering::Relaxed);
    println!(
        "soak: {minutes} min, {} faults, {calls} calls with unique material, {} failed",
        samples.len(),
        failed.len()
    );
    println!(
        "soak: after {} faults the next one had to wait, for {:.1} s at most",
        waits.len(),
        waits.iter().max().unwrap_or(&Duration::ZERO).as_secs_f64()
    );
    let log = daemon.log();
    let tail = || log.lines().rev().take(60).collect::<Vec<_>>().join("\n");
    judge(&samples);
    assert!(failed.is_empty(), "{failed:?}\n{}", tail());
    assert!(!log.contains("panicked"), "{}", tail());
}

/// Unwraps other material in each call; gives what failed. A wrong answer is a panic.
async fn call(
    caller: u64,
    client: &Client,
    key: &claviger_provider_api::PublicKey,
    stop: &AtomicBool,
    right: &AtomicU64,
) -> Vec<String> {
    let parameters = Parameters::of(Algorithm::RsaOaep);
    let mut failed = Vec::new();
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let mut material = [0; 32];
        material[..8].copy_from_slice(&caller.to_be_bytes());
        material[8..16].copy_from_slice(&number.to_be_bytes());
        let wrapped = key.wrap(&KeyMaterial::copied_from(&material), &parameters).unwrap();
        match client.unwrap_key(KEY, &wrapped, &UnwrapOptions::default()).await {
            Ok(answer) => {
                assert_eq!(*answer.key_material, material, "never a wrong answer");
                right.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => failed.push(error.to_string()),
        }
        tokio::time::sleep(REST).await;
    }
    failed
}

/// Injects one fault, or sends a signal to a module's process, and waits for the next one's time.
async fn one_fault(faults: &Faults, daemon: &Daemon, round: usize) {
    match round % (FAULTS.len() + 2) {
        place if place < FAULTS.len() => {
            let (function, action) = FAULTS[place];
            faults.on_next(3, function, action);
            tokio::time::sleep(PAUSE).await;
            faults.clear();
        }
        place if place == FAULTS.len() => {
            signal(daemon.children().first().copied(), Signal::KILL);
            tokio::time::sleep(PAUSE).await;
        }
        _ => {
            let stopped = daemon.children().first().copied();
            signal(stopped, Signal::STOP);
            tokio::time::sleep(PAUSE).await;
            signal(stopped, Signal::CONT);
        }
    }
}

/// Waits until each HSM has answered since the last fault was over; how long, if it was not at once.
async fn both_serve(daemon: &Daemon) -> Option<Duration> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs_f64();
    let has_answered = |provider: &str| {
        let label = format!("provider=\"{provider}\"");
        let of = |name| daemon.metric(name, &[&label]);
        of("claviger_key_up") > 0.0 && of("claviger_key_check_timestamp_seconds") > now
    };
    let begun = Instant::now();
    // Calls come all the time: one that serves has answered by then.
    tokio::time::sleep(REST * 4).await;
    let mut waited = None;
    while !["hsm-a", "hsm-b"].into_iter().all(has_answered) {
        assert!(begun.elapsed() < PATIENCE, "not back:\n{}", daemon.log());
        tokio::time::sleep(REST).await;
        waited = Some(begun.elapsed());
    }
    waited
}

/// A process that has ended meanwhile needs none.
fn signal(pid: Option<u32>, signal: Signal) {
    if let Some(pid) = pid.and_then(|pid| Pid::from_raw(pid.cast_signed())) {
        let _ = kill_process(pid, signal);
    }
}

fn sample(daemon: &Daemon, begun: Instant) -> Sample {
    let of = |name: &str| format!("/proc/{}/{name}", daemon.pid());
    let count = |folder: &Path| fs::read_dir(folder).expect("it runs").count();
    let rollup = fs::read_to_string(of("smaps_rollup")).expect("it runs");
    let memory =
        rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next());
    Sample {
        at: begun.elapsed(),
        memory: memory.and_then(|kib| kib.parse().ok()).expect("a number of KiB"),
        descriptors: count(Path::new(&of("fd"))),
        threads: count(Path::new(&of("task"))),
        children: daemon.children().len(),
    }
}

/// After the first minutes, memory rises by 1 MiB an hour at most, and all else stays as it is.
fn judge(samples: &[Sample]) {
    let settled: Vec<_> = samples.iter().filter(|sample| sample.at > SETTLED).collect();
    let half = settled.len() / 2;
    let median = |samples: &[&Sample], of: fn(&Sample) -> u64| {
        let mut values: Vec<_> = samples.iter().map(|sample| of(sample)).collect();
        values.sort_unstable();
        values[values.len() / 2]
    };
    let (first, second) = settled.split_at(half);
    let middle = |samples: &[&Sample]| samples[samples.len() / 2].at.as_secs_f64() / 3600.0;
    let hours = middle(second) - middle(first);
    let memory = [median(first, |s| s.memory), median(second, |s| s.memory)];
    let growth =
        f64::from(u32::try_from(memory[1].saturating_sub(memory[0])).expect("KiB")) / 1024.0;
    println!(
        "soak: memory {} -> {} KiB in {hours:.2} h: {:.1} MiB/h",
        memory[0],
        memory[1],
        growth / hours
    );
    // A few pages more or less are no slope in a short run.
    assert!(growth <= hours + 0.5, "{memory:?} KiB in {hours:.2} h");
    for (what, of) in [
        ("descriptors", (|s| s.descriptors as u64) as fn(&Sample) -> u64),
        ("threads", |s| s.threads as u64),
        ("children", |s| s.children as u64),
    ] {
        let [before, after] = [median(first, of), median(second, of)];
        println!("soak: {what} {before} -> {after}");
        assert!(after <= before + 2, "{what}: {before} -> {after}");
    }
}

//! How the daemon ends: asked to, it answers what is in flight; killed, it has recorded every
//! unwrap that a caller saw succeed.

use std::collections::HashSet;
use std::fs;
use std::time::{Duration, Instant};

use e2e::connection::{Connection, channel, frame};
use e2e::setup::MATERIAL;
use e2e::{Daemon, Load, RsaKey, Setup, Token, Version};
use tokio::task::JoinSet;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

const IN_FLIGHT: u64 = 64;

/// A watch on the daemon as a whole that has had its first answer: it hangs until something changes.
async fn hanging_watch(
    setup: &Setup,
    daemon: &Daemon,
) -> tonic::Streaming<tonic_health::pb::HealthCheckResponse> {
    let channel = channel(daemon.address(), setup.files.pki.ca_der(), Some(&setup.caller));
    let mut health = HealthClient::new(channel.await.unwrap());
    let request = HealthCheckRequest { service: String::new() };
    let mut watch = health.watch(request).await.unwrap().into_inner();
    let first = watch.message().await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::Serving);
    watch
}

/// How many calls the daemon works on.
fn calls_in_flight(daemon: &Daemon) -> usize {
    daemon.count("claviger_calls_in_flight", &[])
}

async fn wait_until(what: &str, mut is_true: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_true() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_answers_sixty_four_calls_in_flight_twenty_times() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    for round in 1..=20 {
        let daemon = setup.start();
        let mut watch = hanging_watch(&setup, &daemon).await;
        let before = faults.count("C_Decrypt");
        let idle = calls_in_flight(&daemon);
        faults.on_every("C_Decrypt", "hang");
        let mut calls = JoinSet::new();
        for _ in 0..4 {
            let connection = setup.connect(&daemon).await;
            for _ in 0..IN_FLIGHT / 4 {
                let (connection, request) = (connection.clone(), setup.request());
                calls.spawn(async move { connection.unwrap(&request).await });
            }
        }
        // The token works on two of them and the other 62 wait for it; when it goes on, the stop has
        // begun.
        wait_until("the module was called", || faults.count("C_Decrypt") >= before + 2).await;
        let all = idle + usize::try_from(IN_FLIGHT).unwrap();
        wait_until("the daemon has the calls", || calls_in_flight(&daemon) == all).await;
        let begun = Instant::now();
        daemon.ask_to_stop();
        daemon.wait_for_log("draining");
        tokio::time::sleep(Duration::from_millis(100)).await;
        faults.clear();
        while let Some(answer) = calls.join_next().await {
            let answer = answer.unwrap().unwrap_or_else(|answer| panic!("{round}: {answer}"));
            assert_eq!(&*answer.key_material, MATERIAL);
        }
        let last = watch.message().await.unwrap().unwrap();
        assert_eq!(last.status(), ServingStatus::NotServing, "the watch is told");
        let exit = daemon.wait();
        assert_eq!((exit.code, exit.signal), (Some(0), None), "{}", exit.log);
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(10), "{took:?}\n{}", exit.log);
        fs::remove_file(setup.files.path("stderr.log")).unwrap();
    }
    let records = setup.files.audit_records();
    let after_the_stop = |records: &[serde_json::Value]| {
        records.iter().filter(|record| record["operation"] == "unwrap").count() as u64
    };
    for life in records.split(|record| record["event"] == "drain").skip(1) {
        assert_eq!(after_the_stop(life), IN_FLIGHT, "all were in flight at the stop: {life:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_under_load_breaks_no_call_that_had_begun() {
    let mut setup = Setup::software();
    for _ in 0..8 {
        let daemon = setup.start();
        let config = setup.client_config(&daemon);
        let own = Load::start(&config, &setup.wrapped, 8, 0);
        let shared = Load::sharing(&config, &setup.wrapped, 8);
        own.more(30).await;
        shared.more(30).await;
        let exit = daemon.terminate();
        assert_eq!((exit.code, exit.signal), (Some(0), None), "{}", exit.log);
        for load in [own, shared] {
            for error in load.stop().await.failed {
                assert!(error.message.contains("cannot reach the daemon"), "{error:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_does_not_wait_for_a_module_that_hangs() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    setup.files.set("server.drain_timeout", "2s");
    let daemon = setup.start();
    faults.on_every("C_Decrypt", "hang");
    let connection = setup.connect(&daemon).await;
    let call = frame(&prost::Message::encode_to_vec(&setup.request()));
    let hanging = tokio::spawn(async move {
        let headers = [("grpc-timeout", "60S")];
        connection.call("/claviger.v1.KeyService/Unwrap", call, &headers).await
    });
    wait_until("the daemon has the call", || calls_in_flight(&daemon) == 1).await;
    let begun = Instant::now();
    daemon.ask_to_stop();
    let exit = daemon.wait();
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(2), "the call in flight has its time: {took:?}");
    assert!(took < Duration::from_secs(12), "{took:?}");
    assert_eq!((exit.code, exit.signal), (Some(0), None), "{}", exit.log);
    // It was cut, or told that time ran out: never answered right.
    if let Ok(answer) = hanging.await.unwrap() {
        assert_ne!(answer.code(), Code::Ok);
    }
}

#[test]
fn a_stop_while_keys_are_still_opening_is_heard() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let setup = Setup::on(&token);
    faults.on_every("C_Login", "hang");
    let daemon = Daemon::spawn(&setup.files);
    let begun = Instant::now();
    while faults.count("C_Login") == 0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "no login");
        std::thread::sleep(Duration::from_millis(5));
    }
    let begun = Instant::now();
    let exit = daemon.terminate();
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!((exit.code, exit.signal), (Some(0), None), "{}", exit.log);
}

#[test]
fn a_stop_while_a_reload_waits_for_a_key_is_heard() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    let daemon = setup.start();
    let version = Version::active(1, &RsaKey::generate(2048), "hsm-a", "pkcs11:object=second");
    setup.files.key("second", &["RSA-OAEP"], vec![version]);
    setup.files.write();
    let before = faults.count("C_FindObjectsInit");
    faults.on_every("C_FindObjectsInit", "hang");
    daemon.reload();
    let begun = Instant::now();
    while faults.count("C_FindObjectsInit") == before {
        assert!(begun.elapsed() < Duration::from_secs(30), "the new key is not looked for");
        std::thread::sleep(Duration::from_millis(5));
    }
    let begun = Instant::now();
    let exit = daemon.terminate();
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!((exit.code, exit.signal), (Some(0), None), "{}", exit.log);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_it_drains_nobody_new_is_let_in_and_readyz_says_down() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    let daemon = setup.start();
    assert_eq!(daemon.operations_get("/readyz").unwrap().0, 200);
    faults.on_every("C_Decrypt", "sleep=1500");
    let connection = setup.connect(&daemon).await;
    let request = setup.request();
    let call = tokio::spawn(async move { connection.unwrap(&request).await });
    wait_until("the daemon has the call", || calls_in_flight(&daemon) == 1).await;
    daemon.ask_to_stop();
    daemon.wait_for_log("draining");
    let late = Connection::open(daemon.address(), setup.files.pki.ca_der(), Some(&setup.caller));
    assert!(late.await.is_err(), "the port is closed");
    assert!(daemon.operations_get("/readyz").is_ok_and(|(code, _)| code == 503));
    assert!(daemon.operations_get("/livez").is_ok_and(|(code, _)| code == 200));
    assert_eq!(&*call.await.unwrap().unwrap().key_material, MATERIAL);
    assert_eq!(daemon.wait().code, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_caller_saw_succeed_before_a_kill_is_on_record() {
    kill_under_load(5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: scripts/test --all"]
async fn whatever_a_caller_saw_succeed_before_fifty_kills_is_on_record() {
    kill_under_load(50).await;
}

async fn kill_under_load(kills: usize) {
    let mut setup = Setup::software();
    let mut seen = HashSet::new();
    for kill in 1..=kills {
        let daemon = setup.start();
        let load = Load::start(&setup.client_config(&daemon), &setup.wrapped, 12, 4);
        load.more(20 + kill as u64 * 7 % 100).await;
        assert_eq!(daemon.kill().signal, Some(9));
        let tally = load.stop().await;
        seen.extend(tally.right);
    }
    // The next start finds the last line torn or whole, and goes on after it.
    let daemon = setup.start();
    assert_eq!(setup.ask(&daemon).await, Code::Ok);
    assert_eq!(daemon.terminate().code, Some(0));
    let recorded: HashSet<String> = setup
        .files
        .audit_records()
        .into_iter()
        .filter(|record| record["operation"] == "unwrap" && record["outcome"] == "ok")
        .map(|record| record["request_id"].as_str().unwrap().to_owned())
        .collect();
    let missing: Vec<_> = seen.difference(&recorded).collect();
    assert!(seen.len() >= kills * 20, "only {} calls were made", seen.len());
    assert!(missing.is_empty(), "{} of {} have no record: {missing:?}", missing.len(), seen.len());
    println!("{} unwraps seen, {} recorded, over {kills} kills", seen.len(), recorded.len());
}

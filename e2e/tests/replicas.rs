//! A key in two or three places: one of them is killed, stopped, replaced, drained or moved under load,
//! and no caller notices.

use std::fs;
use std::process::Output;
use std::time::{Duration, Instant};

use claviger_proto::v1::{UnwrapRequest, WrapRequest};
use e2e::daemon::claviger;
use e2e::process::command;
use e2e::setup::{KEY, MATERIAL};
use e2e::{Connection, Daemon, DaemonFiles, Faults, Load, RsaKey, Setup, Token, Version};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tonic::Code;

const LOCATOR: &str = "pkcs11:object=user-keys";
/// Calls at a time.
const CALLERS: usize = 32;

/// A token as a provider with a process of its own, and in that process only its environment.
fn add(files: &mut DaemonFiles, name: &str, token: &Token) {
    let mut provider = token.provider();
    let text = |value: &std::ffi::OsString| value.to_str().expect("UTF-8").to_owned();
    let environment = token.environment().iter().map(|(n, v)| (text(n), text(v).into()));
    provider.insert("environment".into(), environment.collect::<toml::Table>().into());
    provider.insert("hang_limit".into(), "3s".into());
    files.provider(name, provider);
}

/// The key in `tokens`, which are `hsm-a`, `hsm-b` and so on, in their order.
fn setup(tokens: &[&Token]) -> Setup {
    let mut files = DaemonFiles::new();
    let key = RsaKey::shared(2048);
    for (token, name) in tokens.iter().zip(["hsm-a", "hsm-b", "hsm-c"]) {
        token.import(&key, KEY, "01");
        add(&mut files, name, token);
    }
    let mut setup =
        Setup::at(files, key, "hsm-a", LOCATOR, claviger_provider_api::Algorithm::RsaOaep);
    let names = ["hsm-a", "hsm-b", "hsm-c"];
    replicas(&mut setup, &names[..tokens.len()]);
    setup
}

/// The key's one version has these replicas.
fn replicas(setup: &mut Setup, providers: &[&str]) {
    let first = Version::active(1, &setup.key, providers[0], LOCATOR);
    let version = providers[1..].iter().fold(first, |version, name| version.replica(name, LOCATOR));
    setup.files.key(KEY, &["RSA-OAEP"], vec![version]);
}

fn load(setup: &Setup, daemon: &Daemon) -> Load {
    Load::start(&setup.client_config(daemon), &setup.wrapped, CALLERS, 0)
}

/// Ends the load: not one call failed.
async fn end(load: Load, daemon: &Daemon) -> Duration {
    let tally = load.stop().await;
    assert!(tally.failed.is_empty(), "{:?}\n{}", tally.failed, daemon.log());
    let longest = tally.took.iter().max().copied().unwrap_or_default();
    println!("{} right, 0 failed, p99 {:?}, longest {longest:?}", tally.right.len(), tally.p99());
    longest
}

/// The process of a provider, as the log told it last.
fn process_of(daemon: &Daemon, provider: &str) -> u32 {
    let log = daemon.log();
    let told = log
        .lines()
        .rfind(|line| line.contains("the module's process is ready") && line.contains(provider));
    let pid = told.and_then(|line| line.split_once("pid=")).map(|(_, rest)| rest);
    let digits = pid.map(|rest| rest.chars().take_while(char::is_ascii_digit).collect::<String>());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("{provider}: {log}"))
}

fn is_gone(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .map_or(true, |stat| stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z')))
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("a process id");
    kill_process(pid, signal).expect("the process is there");
}

async fn wait_until(what: &str, daemon: &Daemon, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < Duration::from_secs(30), "not {what}: {}", daemon.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn serves(daemon: &Daemon, provider: &str) -> bool {
    daemon.metric("claviger_key_up", &[&format!("provider=\"{provider}\"")]) > 0.5
}

/// Calls that a provider answered.
fn answered_by(daemon: &Daemon, provider: &str) -> usize {
    let label = format!("provider=\"{provider}\"");
    daemon.count("claviger_backend_duration_seconds_count", &[&label])
}

/// A command to the daemon.
fn order(setup: &Setup, arguments: &[&str]) -> Output {
    let mut program = command(claviger());
    program.args(arguments).arg("--state-dir").arg(setup.files.path("state"));
    program.output().expect("the program starts")
}

fn done(setup: &Setup, arguments: &[&str]) -> String {
    let output = order(setup, arguments);
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{arguments:?}: {}", said(&output.stderr));
    said(&output.stdout)
}

fn refused(setup: &Setup, arguments: &[&str], code: i32) -> String {
    let output = order(setup, arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_process_of_one_of_two_hsms_is_killed_again_and_again_and_no_call_fails() {
    let (a, b) = (Token::softhsm(), Token::softhsm());
    let mut setup = setup(&[&a, &b]);
    let daemon = setup.start();
    let load = load(&setup, &daemon);
    load.more(100).await;
    for provider in ["hsm-a", "hsm-b", "hsm-a"] {
        let process = process_of(&daemon, provider);
        signal(process, Signal::KILL);
        load.more(100).await;
        wait_until("replaced", &daemon, || process_of(&daemon, provider) != process).await;
        wait_until("serving", &daemon, || serves(&daemon, provider)).await;
    }
    end(load, &daemon).await;
    assert!(daemon.count("claviger_failovers_total", &[]) > 0, "{}", daemon.log());
    assert!(answered_by(&daemon, "hsm-b") > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_process_of_one_of_two_hsms_is_stopped_and_calls_wait_a_second_and_do_not_fail() {
    let (a, b) = (Token::softhsm(), Token::softhsm());
    let mut setup = setup(&[&a, &b]);
    let daemon = setup.start();
    let load = load(&setup, &daemon);
    load.more(100).await;
    let process = process_of(&daemon, "hsm-a");
    signal(process, Signal::STOP);
    load.more(400).await;
    // It is noticed, ended and started anew meanwhile.
    wait_until("replaced", &daemon, || process_of(&daemon, "hsm-a") != process).await;
    wait_until("serving", &daemon, || serves(&daemon, "hsm-a")).await;
    load.more(50).await;
    let longest = end(load, &daemon).await;
    assert!(longest < Duration::from_secs(8), "{longest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_of_three_kinds_are_one_key_and_each_answers_alone() {
    let (a, b) = (Token::softhsm(), Token::kryoptic());
    let mut setup = setup(&[&a, &b]);
    setup.files.key_folder("files", "keys");
    setup.key.write_pem(&setup.files.path("keys/user-keys.pem"));
    let version = Version::active(1, &setup.key, "hsm-a", LOCATOR)
        .replica("hsm-b", LOCATOR)
        .replica("files", "user-keys.pem");
    setup.files.key(KEY, &["RSA-OAEP"], vec![version]);
    let daemon = setup.start();
    let load = load(&setup, &daemon);
    load.more(50).await;
    signal(process_of(&daemon, "hsm-a"), Signal::KILL);
    load.more(50).await;
    for (out, answers) in [("hsm-a", "hsm-b"), ("hsm-b", "files")] {
        wait_until("serving", &daemon, || serves(&daemon, out)).await;
        done(&setup, &["drain", out]);
        let before = (answered_by(&daemon, answers), answered_by(&daemon, out));
        // A caller may count an answer after the daemon has: of these a hundred at least fifty are new.
        load.more(100).await;
        assert!(answered_by(&daemon, answers) >= before.0 + 50, "{answers}");
    }
    end(load, &daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_with_another_key_under_the_same_label_serves_no_call_until_the_right_one_is_there()
 {
    let (a, b) = (Token::softhsm(), Token::softhsm());
    let mut setup = setup(&[&a]);
    let other = RsaKey::generate(2048);
    b.import(&other, KEY, "01");
    add(&mut setup.files, "hsm-b", &b);
    // It comes first, so that each call would go to it.
    replicas(&mut setup, &["hsm-b", "hsm-a"]);
    let daemon = setup.start();
    let load = load(&setup, &daemon);
    load.more(200).await;
    assert_eq!(answered_by(&daemon, "hsm-b"), 0);
    assert_eq!(daemon.count("claviger_key_diverges", &["provider=\"hsm-b\""]), 1);
    assert!(daemon.log().contains("replica diverges"), "{}", daemon.log());
    let diverges = |record: &Value| record["event"] == "replica" && record["state"] == "diverges";
    let records = setup.files.audit_records();
    assert!(records.iter().any(diverges), "{records:?}");
    let of_b = |record: &&Value| record["provider"] == "hsm-b" && record["operation"] == "unwrap";
    assert_eq!(records.iter().filter(of_b).count(), 0);

    b.delete(KEY);
    b.import(&setup.key, KEY, "02");
    wait_until("serving", &daemon, || serves(&daemon, "hsm-b")).await;
    assert_eq!(daemon.count("claviger_key_diverges", &[]), 0);
    load.more(100).await;
    assert!(answered_by(&daemon, "hsm-b") > 0);
    end(load, &daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_gives_wrong_bytes_is_found_when_it_comes_back_and_serves_no_call() {
    let (a, (b, faults)) = (Token::softhsm(), Token::softhsm().through_fault_module());
    let mut setup = setup(&[&a, &b]);
    faults.on_every("C_Decrypt", "garbage");
    let daemon = setup.start();
    for _ in 0..20 {
        assert_eq!(setup.ask(&daemon).await, Code::Ok);
    }
    assert!(!serves(&daemon, "hsm-b"));
    assert_eq!(answered_by(&daemon, "hsm-b"), 0);
    faults.clear();
    wait_until("serving", &daemon, || serves(&daemon, "hsm-b")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_hsm_is_drained_and_undrained_under_load_and_no_call_fails() {
    let (a, (b, faults)) = (Token::softhsm(), Token::softhsm().through_fault_module());
    let mut setup = setup(&[&b, &a]);
    let daemon = setup.start();
    let load = load(&setup, &daemon);
    load.more(100).await;
    let process = process_of(&daemon, "hsm-a");

    let said = done(&setup, &["drain", "hsm-a"]);
    assert_eq!(said, "hsm-a is drained (1 replica): nothing is in flight to it\n");
    wait_until("ended", &daemon, || is_gone(process)).await;
    let (decrypted, logins) = (faults.count("C_Decrypt"), faults.count("C_Login"));
    load.more(200).await;
    assert_eq!(faults.count("C_Decrypt"), decrypted, "no call and no canary reaches it");
    let drained = |provider: &str| {
        daemon.count("claviger_provider_drained", &[&format!("provider=\"{provider}\"")])
    };
    assert_eq!((drained("hsm-a"), drained("hsm-b")), (1, 0));
    let shown: Value = serde_json::from_str(&done(&setup, &["status", "--json"])).unwrap();
    let listed = &shown["keys"][0]["versions"][0]["replicas"];
    assert_eq!((&listed[0]["state"], &listed[0]["reason"]), (&"drained".into(), &"drained".into()));
    assert_eq!((&listed[1]["state"], &listed[1]["reason"]), (&"serves".into(), &"ok".into()));
    let said = done(&setup, &["drain", "hsm-a"]);
    assert!(said.contains("already drained"), "{said}");
    // The last one that serves is not taken away by accident.
    let said = refused(&setup, &["drain", "hsm-b"], 1);
    assert!(said.contains("no other replica serves user-keys version 1"), "{said}");
    let said = refused(&setup, &["drain", "hsm-z"], 1);
    assert!(said.contains("there are hsm-a, hsm-b"), "{said}");

    // Its new firmware has no OAEP: an operator learns of it, and no caller.
    faults.on_every("C_DecryptInit", "rv=0x70");
    let said = refused(&setup, &["undrain", "hsm-a"], 1);
    assert!(said.contains("hsm-a stays drained") && said.contains("RSA-OAEP"), "{said}");
    assert_eq!(drained("hsm-a"), 1);
    faults.clear();
    let said = done(&setup, &["undrain", "hsm-a"]);
    assert_eq!(said, "hsm-a is in service\nuser-keys version 1  serves\n");
    assert_eq!(drained("hsm-a"), 0);
    assert!(faults.count("C_Login") > logins);
    let decrypted = faults.count("C_Decrypt");
    load.more(100).await;
    assert!(faults.count("C_Decrypt") > decrypted + 50, "it comes first again");
    end(load, &daemon).await;
    let drains = setup.files.audit_records();
    let drains = drains.iter().filter(|record| record["event"] == "provider-drain");
    let states: Vec<_> = drains.map(|record| record["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["drained", "in_service"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_hsm_stays_so_over_a_reload_and_a_restart() {
    let (a, (b, faults)) = (Token::softhsm(), Token::softhsm().through_fault_module());
    let mut setup = setup(&[&b, &a]);
    let daemon = setup.start();
    assert_eq!(setup.ask(&daemon).await, Code::Ok);
    done(&setup, &["drain", "hsm-a"]);
    setup.files.limit("key-connector", "rate", "1000/s");
    setup.files.write();
    done(&setup, &["reload"]);
    assert_eq!(daemon.count("claviger_provider_drained", &[]), 1);
    assert_eq!(daemon.terminate().code, Some(0));
    let (logins, decrypted) = (faults.count("C_Login"), faults.count("C_Decrypt"));
    let daemon = setup.start();
    assert!(daemon.log().contains("drained before this start, and still"), "{}", daemon.log());
    for _ in 0..10 {
        assert_eq!(setup.ask(&daemon).await, Code::Ok);
    }
    assert_eq!((faults.count("C_Login"), faults.count("C_Decrypt")), (logins, decrypted));
    // With force the other one too; then nothing answers, and that is said.
    let said = done(&setup, &["drain", "hsm-b", "--force"]);
    assert!(said.contains("no replica serves: user-keys version 1"), "{said}");
    assert_eq!(setup.ask(&daemon).await, Code::Unavailable);
    done(&setup, &["undrain", "hsm-b"]);
    done(&setup, &["undrain", "hsm-a"]);
    assert_eq!(setup.ask(&daemon).await, Code::Ok);
    assert!(faults.count("C_Login") > logins);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrapping_goes_on_while_one_replica_is_there_and_the_other_unwraps_it_when_it_is_back() {
    let (a, b) = (Token::softhsm(), Token::softhsm());
    let mut setup = setup(&[&a, &b]);
    b.take_away();
    let daemon = setup.start();
    let connection = setup.connect(&daemon).await;
    let request = WrapRequest {
        key: KEY.into(),
        key_material: MATERIAL.to_vec().into(),
        ..WrapRequest::default()
    };
    let wrapped = connection.wrap(&request).await.expect("one replica is proven").wrapped;
    // With a label nothing is known of the one that was never open.
    let labelled = WrapRequest { label: b"a".to_vec().into(), ..request };
    assert!(connection.wrap(&labelled).await.is_err());
    b.bring_back();
    wait_until("serving", &daemon, || serves(&daemon, "hsm-b")).await;
    done(&setup, &["drain", "hsm-a"]);
    let request = UnwrapRequest { wrapped, ..setup.request() };
    let unwrapped = connection.unwrap(&request).await.expect("the other one unwraps it");
    assert_eq!(&*unwrapped.key_material, MATERIAL);
}

/// What a bad value is answered with, and how often each token decrypted for it.
async fn a_bad_value(connection: &Connection, tokens: &[&Faults]) -> (String, Vec<u64>) {
    let count = || tokens.iter().map(|faults| faults.count("C_Decrypt")).collect::<Vec<_>>();
    let before = count();
    let request = UnwrapRequest {
        key: KEY.into(),
        wrapped: vec![0x55; 256].into(),
        ..UnwrapRequest::default()
    };
    let answer = connection.unwrap(&request).await.expect_err("it does not unwrap");
    assert_eq!(answer.code(), Code::InvalidArgument);
    let decrypted = count().iter().zip(before).map(|(now, before)| now - before).collect();
    (answer.comparable(), decrypted)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_value_is_asked_of_one_replica_and_answered_alike_over_one_and_over_two() {
    let (a, of_a) = Token::softhsm().through_fault_module();
    let (b, of_b) = Token::softhsm().through_fault_module();
    let mut setup = setup(&[&a, &b]);
    let daemon = setup.start();
    let connection = setup.connect(&daemon).await;
    let (over_two, decrypted) = a_bad_value(&connection, &[&of_a, &of_b]).await;
    // The value, and the canary that tells whose fault it is; a periodic canary may fall in between.
    assert!((2..=3).contains(&decrypted[0]) && decrypted[1] <= 1, "{decrypted:?}");
    assert_eq!(answered_by(&daemon, "hsm-b"), 0);
    daemon.terminate();
    replicas(&mut setup, &["hsm-a"]);
    let daemon = setup.start();
    let connection = setup.connect(&daemon).await;
    let (over_one, _) = a_bad_value(&connection, &[&of_a, &of_b]).await;
    assert_eq!(over_two, over_one);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_moves_from_one_hsm_to_another_with_one_reload_and_no_call_fails() {
    let (a, b) = (Token::softhsm(), Token::softhsm());
    let mut setup = setup(&[&a, &b]);
    replicas(&mut setup, &["hsm-a"]);
    let daemon = setup.start();
    let load = load(&setup, &daemon);
    load.more(100).await;
    let process = process_of(&daemon, "hsm-a");
    replicas(&mut setup, &["hsm-b"]);
    setup.files.write();
    done(&setup, &["reload"]);
    load.more(200).await;
    assert!(answered_by(&daemon, "hsm-b") >= 100);
    end(load, &daemon).await;
    assert!(!is_gone(process), "its provider is still configured");
}

/// Calls a second that come back right, over a few seconds.
async fn rate(setup: &Setup, daemon: &Daemon) -> f64 {
    let load = load(setup, daemon);
    load.more(200).await;
    let begun = Instant::now();
    load.more(1500).await;
    let rate = 1500.0 / begun.elapsed().as_secs_f64();
    end(load, daemon).await;
    rate
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: measures, and needs a quiet machine"]
async fn two_modules_of_5_ms_each_give_nearly_twice_of_one_when_the_least_busy_is_asked() {
    let (a, of_a) = Token::softhsm().through_fault_module();
    let (b, of_b) = Token::softhsm().through_fault_module();
    let mut setup = setup(&[&a, &b]);
    for (provider, faults) in [("hsm-a", &of_a), ("hsm-b", &of_b)] {
        faults.on_every("C_Decrypt", "sleep=5");
        // One thing at a time, as the smallest HSMs do it.
        setup.files.set(&format!("providers.{provider}.sessions"), 1);
    }
    let mut rates = Vec::new();
    for balance in ["priority", "least-busy"] {
        setup.files.set(&format!("keys.{KEY}.balance"), balance);
        let daemon = setup.start();
        let rate = rate(&setup, &daemon).await;
        let of = ["hsm-a", "hsm-b"].map(|provider| answered_by(&daemon, provider));
        println!("{balance}: {rate:.0} unwraps/s, answered by each {of:?}");
        rates.push(rate);
        daemon.terminate();
    }
    let gain = rates[1] / rates[0];
    println!("two modules give {gain:.2}x of one");
    assert!(gain >= 1.9, "{gain}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_least_busy_of_two_hsms_is_asked_so_that_both_work() {
    let (a, b) = (Token::softhsm(), Token::softhsm());
    let mut setup = setup(&[&a, &b]);
    setup.files.set(&format!("keys.{KEY}.balance"), "least-busy");
    let daemon = setup.start();
    let load = load(&setup, &daemon);
    load.more(400).await;
    end(load, &daemon).await;
    let of = ["hsm-a", "hsm-b"].map(|provider| answered_by(&daemon, provider));
    assert!(of.iter().all(|answered| *answered > 100), "{of:?}");
}

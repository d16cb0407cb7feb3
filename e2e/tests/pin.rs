//! A PIN that a token refused is never sent again: counted at `C_Login`, over restarts, reloads,
//! crashes and commands.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Output;
use std::thread::sleep;
use std::time::{Duration, Instant};

use e2e::daemon::claviger;
use e2e::process::command;
use e2e::token::PIN;
use e2e::{Daemon, Faults, Setup, Token};
use tonic::Code;

const WRONG: &str = "00000000";

/// A token whose PIN file is wrong, and a configuration with a key on it.
fn wrong_pin() -> (Token, Faults, Setup) {
    let (token, faults) = Token::softhsm().through_fault_module();
    let setup = Setup::on(&token);
    token.write_pin(WRONG);
    (token, faults, setup)
}

/// `claviger` with these arguments, in the environment of the daemon.
fn run(setup: &Setup, arguments: &[&str]) -> Output {
    command(claviger())
        .args(arguments)
        .envs(setup.files.environment().iter().cloned())
        .output()
        .expect("the binary starts")
}

fn clear(setup: &Setup, token: &Token) -> Output {
    let state_dir = setup.files.path("state");
    let state_dir = state_dir.to_str().unwrap();
    run(setup, &["pin", "clear", "--state-dir", state_dir, "--serial", token.serial()])
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Reloads and waits for the outcome.
fn reload(daemon: &Daemon) {
    let done = |daemon: &Daemon| daemon.log().matches("configuration reloaded").count();
    let before = done(daemon);
    daemon.reload();
    let begun = Instant::now();
    while done(daemon) == before {
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", daemon.log());
        sleep(Duration::from_millis(10));
    }
}

fn wait_for_logins(faults: &Faults, logins: u64) {
    let begun = Instant::now();
    while faults.count("C_Login") < logins {
        assert!(begun.elapsed() < Duration::from_secs(30), "no C_Login");
        sleep(Duration::from_millis(10));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_pin_is_sent_once_over_twenty_restarts_and_ten_reloads() {
    let (token, faults, mut setup) = wrong_pin();
    let mut daemon = setup.start();
    assert_eq!(faults.count("C_Login"), 1);
    let log = daemon.log();
    assert!(log.contains("CKR_PIN_INCORRECT"), "{log}");
    assert!(log.contains("put the right one into its file"), "{log}");
    assert!(log.contains("claviger pin clear --serial"), "{log}");
    for restart in 1..=20 {
        if restart % 2 == 0 {
            reload(&daemon);
        }
        assert_eq!(setup.ask(&daemon).await, Code::FailedPrecondition);
        assert_eq!(daemon.terminate().code, Some(0));
        daemon = setup.start();
        assert_eq!(faults.count("C_Login"), 1, "after restart {restart}:\n{}", daemon.log());
    }

    let cleared = clear(&setup, &token);
    assert!(cleared.status.success(), "{}", stderr(&cleared));
    token.write_pin(PIN);
    setup.wait_for(&daemon, Code::Ok).await;
    assert_eq!(faults.count("C_Login"), 2);
    let again = clear(&setup, &token);
    assert!(!again.status.success() && stderr(&again).contains("no failed logins"), "{again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_login_to_a_token_is_an_audit_record_whether_it_succeeds_or_not() {
    for isolation in ["process", "none"] {
        let (token, faults, mut setup) = wrong_pin();
        setup.files.set("providers.hsm-a.isolation", isolation);
        let daemon = setup.start();
        let of_event = |event: &str| {
            let mut records = setup.files.audit_records();
            records.retain(|record| record["event"] == event);
            records
        };
        let begun = Instant::now();
        while of_event("pin-latch").is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(30), "{isolation}: {}", daemon.log());
            sleep(Duration::from_millis(50));
        }
        token.write_pin(PIN);
        setup.wait_for(&daemon, Code::Ok).await;
        assert_eq!(daemon.terminate().code, Some(0));
        assert_eq!(faults.count("C_Login"), 2);
        let logins = of_event("login");
        let outcomes: Vec<_> = logins.iter().map(|login| login["outcome"].clone()).collect();
        assert_eq!(outcomes, ["failed", "ok"], "{isolation}: {logins:#?}");
        let latched = &of_event("pin-latch")[0];
        assert_eq!(latched["state"], "shut");
        for login in &logins {
            assert_eq!(login["provider"], "hsm-a");
            assert_eq!((&login["token"], &login["label"]), (&latched["token"], &latched["label"]));
            assert!(!login["token"].as_str().unwrap().is_empty(), "{login}");
        }
        let states: Vec<_> = of_event("replica").iter().map(|r| r["state"].clone()).collect();
        // It may fail for one reason after the other.
        let (first, last) = (states.first().unwrap(), states.last().unwrap());
        assert_eq!((first, last), (&"fails".into(), &"serves".into()), "{isolation}: {states:?}");
        let error = logins[0]["error"].as_str().unwrap();
        assert!(error.contains("CKR_PIN_INCORRECT"), "{error}");
        assert!(logins[1]["error"].is_null());
    }
}

#[test]
fn that_an_operator_had_failed_logins_forgotten_is_an_audit_record() {
    let (token, _faults, mut setup) = wrong_pin();
    let daemon = setup.start();
    let cleared = clear(&setup, &token);
    assert!(cleared.status.success(), "{}", stderr(&cleared));
    assert_eq!(daemon.terminate().code, Some(0));
    let mut records = setup.files.audit_records();
    records.retain(|record| record["event"] == "pin-cleared");
    let [cleared] = &records[..] else { panic!("{records:#?}") };
    assert_eq!(cleared["token"], token.serial());
    assert_eq!(cleared["uid"], rustix::process::geteuid().as_raw());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_pin_is_tried_after_one_that_was_refused_and_none_after_two() {
    let (token, faults, mut setup) = wrong_pin();
    let daemon = setup.start();
    assert_eq!(faults.count("C_Login"), 1);
    token.write_pin("00000001");
    wait_for_logins(&faults, 2);
    token.write_pin(PIN);
    daemon.wait_for_log("two logins to token");
    assert_eq!(setup.ask(&daemon).await, Code::FailedPrecondition);
    assert_eq!(faults.count("C_Login"), 2);
    assert!(clear(&setup, &token).status.success());
    setup.wait_for(&daemon, Code::Ok).await;
    assert_eq!(faults.count("C_Login"), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_right_pin_in_its_file_is_all_it_takes_after_one_refusal() {
    let (token, faults, mut setup) = wrong_pin();
    let daemon = setup.start();
    token.write_pin(PIN);
    setup.wait_for(&daemon, Code::Ok).await;
    assert_eq!(faults.count("C_Login"), 2);
    reload(&daemon);
    assert_eq!(setup.ask(&daemon).await, Code::Ok);
    assert_eq!(faults.count("C_Login"), 2, "a reload keeps the login");
}

#[test]
fn a_process_killed_inside_its_first_login_allows_one_more_and_never_a_third() {
    for (second, said) in [("rv=0xa0", "refused"), ("hang", "two logins")] {
        let (_token, faults, mut setup) = wrong_pin();
        faults.on_call(1, "C_Login", "hang");
        let daemon = Daemon::spawn(&setup.files);
        wait_for_logins(&faults, 1);
        assert_eq!(daemon.kill().signal, Some(9));

        faults.on_call(1, "C_Login", second);
        let daemon = Daemon::spawn(&setup.files);
        wait_for_logins(&faults, 2);
        if second == "rv=0xa0" {
            daemon.wait_for_log("login refused");
        }
        daemon.kill();
        faults.clear();
        for _ in 0..3 {
            let daemon = setup.start();
            assert_eq!(faults.count("C_Login"), 2);
            assert!(daemon.log().contains(said), "{}", daemon.log());
        }
    }
}

/// The module's process aborts in `C_Login`, and nothing else does: each crash is one attempt, over all
/// processes and restarts.
#[test]
fn a_module_that_aborts_in_its_login_counts_as_a_crash() {
    let (_token, faults, mut setup) = wrong_pin();
    faults.on_every("C_Login", "abort");
    for _ in 0..2 {
        let daemon = setup.start();
        daemon.wait_for_log("was killed by signal 6 (SIGABRT)");
        daemon.wait_for_log("claviger pin clear");
        // Long enough for several more checks of the key.
        sleep(Duration::from_secs(4));
        assert_eq!(faults.count("C_Login"), 2, "{}", daemon.log());
        assert_eq!(daemon.terminate().code, Some(0));
    }
}

#[test]
fn commands_that_log_in_share_the_latch_with_the_daemon() {
    let (token, faults, mut setup) = wrong_pin();
    let pinned = setup.files.configuration.clone();
    let version = &mut setup.files.configuration["keys"]["user-keys"]["versions"][0];
    version.as_table_mut().unwrap().remove("public_key_sha256");
    setup.files.write();
    let file = setup.files.configuration_file();
    let pin = ["config", "pin", "--config", file.to_str().unwrap()];
    for attempt in 1..=3 {
        let output = run(&setup, &pin);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(stderr(&output).contains("claviger pin clear"), "{output:?}");
        assert_eq!(faults.count("C_Login"), 1, "attempt {attempt}");
    }
    setup.files.configuration = pinned;
    let daemon = setup.start();
    assert_eq!(faults.count("C_Login"), 1, "{}", daemon.log());
    assert!(clear(&setup, &token).status.success());
}

#[test]
fn without_a_state_directory_no_pin_is_used() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    setup.files.configuration["server"].as_table_mut().unwrap().remove("state_dir");
    let exit = Daemon::spawn(&setup.files).wait();
    assert_eq!(exit.code, Some(78), "{}", exit.log);
    assert!(exit.log.contains("state_dir"), "{}", exit.log);
    let file = setup.files.configuration_file();
    let output = run(&setup, &["config", "pin", "--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    assert_eq!(faults.count("C_Login"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_about_to_lock_gets_no_pin_until_it_says_otherwise() {
    for (flag, said) in [("final-try", "one more wrong PIN locks it"), ("locked", "is locked")] {
        let (token, faults) = Token::softhsm().through_fault_module();
        let mut setup = Setup::on(&token);
        faults.on_every("C_GetTokenInfo", &format!("flags={flag}"));
        let daemon = setup.start();
        assert_eq!(setup.ask(&daemon).await, Code::FailedPrecondition);
        assert!(daemon.log().contains(said), "{}", daemon.log());
        assert_eq!(faults.count("C_Login"), 0);
        faults.clear();
        setup.wait_for(&daemon, Code::Ok).await;
        assert_eq!(faults.count("C_Login"), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_file_that_others_can_read_is_refused_unread() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    fs::set_permissions(token.pin_file(), Permissions::from_mode(0o644)).unwrap();
    setup.files.write();
    let file = setup.files.configuration_file();
    let output = run(&setup, &["config", "check", "--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    let daemon = setup.start();
    assert_eq!(setup.ask(&daemon).await, Code::FailedPrecondition);
    for said in [stderr(&output), daemon.log()] {
        assert!(said.contains(token.pin_file().to_str().unwrap()), "{said}");
        assert!(said.contains("600"), "{said}");
    }
    assert_eq!(faults.count("C_Login"), 0);
    fs::set_permissions(token.pin_file(), Permissions::from_mode(0o600)).unwrap();
    setup.wait_for(&daemon, Code::Ok).await;
    assert_eq!(faults.count("C_Login"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_that_was_changed_is_used_at_the_next_login_and_not_before() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    let daemon = setup.start();
    token.change_pin(PIN, "11223344");
    token.write_pin("11223344");
    reload(&daemon);
    assert_eq!(setup.ask(&daemon).await, Code::Ok);
    assert_eq!(faults.count("C_Login"), 1);
    daemon.terminate();
    let daemon = setup.start();
    assert_eq!(setup.ask(&daemon).await, Code::Ok);
    assert_eq!(faults.count("C_Login"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_that_names_another_pin_file_logs_in_with_it_or_is_refused() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    let daemon = setup.start();
    let file = setup.files.path("another.pin");
    e2e::pki::replace(&file, WRONG, 0o600);
    setup.files.set("providers.hsm-a.pin.file", file.to_str().unwrap());
    setup.files.write();
    daemon.reload();
    daemon.wait_for_log("refused the login");
    assert_eq!(setup.ask(&daemon).await, Code::Ok, "what serves goes on");
    assert_eq!(faults.count("C_Login"), 2);
    e2e::pki::replace(&file, PIN, 0o600);
    reload(&daemon);
    assert_eq!(setup.ask(&daemon).await, Code::Ok);
    assert_eq!(faults.count("C_Login"), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_an_attempt_cannot_be_recorded_no_pin_is_sent() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    let place = setup.files.path("state/pin");
    fs::write(&place, "in the way").unwrap();
    let daemon = setup.start();
    assert_eq!(setup.ask(&daemon).await, Code::FailedPrecondition);
    assert!(daemon.log().contains(place.to_str().unwrap()), "{}", daemon.log());
    assert_eq!(faults.count("C_Login"), 0);
    fs::remove_file(&place).unwrap();
    setup.wait_for(&daemon, Code::Ok).await;
    assert_eq!(faults.count("C_Login"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_without_an_outcome_is_made_once_more_and_then_waits_for_the_operator() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    faults.on_call(1, "C_Login", "rv=0x32");
    let daemon = setup.start();
    assert_eq!(setup.ask(&daemon).await, Code::Unavailable);
    setup.wait_for(&daemon, Code::Ok).await;
    assert_eq!(faults.count("C_Login"), 2);
    daemon.terminate();
    faults.on_next(9, "C_Login", "rv=0x32");
    let daemon = setup.start();
    setup.wait_for(&daemon, Code::FailedPrecondition).await;
    assert_eq!(faults.count("C_Login"), 4);
    faults.clear();
    assert!(clear(&setup, &token).status.success());
    setup.wait_for(&daemon, Code::Ok).await;
    assert_eq!(faults.count("C_Login"), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_failed_for_no_plain_reason_counts_as_refused() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    faults.on_call(1, "C_Login", "late-rv=0x5");
    let daemon = setup.start();
    assert_eq!(setup.ask(&daemon).await, Code::FailedPrecondition);
    daemon.terminate();
    let daemon = setup.start();
    assert_eq!(setup.ask(&daemon).await, Code::FailedPrecondition);
    assert_eq!(faults.count("C_Login"), 1);
    assert!(clear(&setup, &token).status.success());
    setup.wait_for(&daemon, Code::Ok).await;
    assert_eq!(faults.count("C_Login"), 2);
}

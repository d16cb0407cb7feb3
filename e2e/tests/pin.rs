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
use e2e::{Daemon, Faults, Scene, Token};
use tonic::Code;

const WRONG: &str = "00000000";

/// A token whose PIN file is wrong, and a site with a key on it.
fn wrong_pin() -> (Token, Faults, Scene) {
    let (token, faults) = Token::softhsm().through_fault_module();
    let scene = Scene::on(&token);
    token.write_pin(WRONG);
    (token, faults, scene)
}

/// `claviger` with these arguments, in the environment of the site's daemon.
fn run(scene: &Scene, arguments: &[&str]) -> Output {
    command(claviger())
        .args(arguments)
        .envs(scene.site.environment().iter().cloned())
        .output()
        .expect("the binary starts")
}

fn clear(scene: &Scene, token: &Token) -> Output {
    let state_dir = scene.site.path("state");
    let state_dir = state_dir.to_str().unwrap();
    run(scene, &["pin", "clear", "--state-dir", state_dir, "--serial", token.serial()])
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
    let (token, faults, mut scene) = wrong_pin();
    let mut daemon = scene.start();
    assert_eq!(faults.count("C_Login"), 1);
    let log = daemon.log();
    assert!(log.contains("CKR_PIN_INCORRECT"), "{log}");
    assert!(log.contains("put the right one into its file"), "{log}");
    assert!(log.contains("claviger pin clear --serial"), "{log}");
    for restart in 1..=20 {
        if restart % 2 == 0 {
            reload(&daemon);
        }
        assert_eq!(scene.ask(&daemon).await, Code::FailedPrecondition);
        assert_eq!(daemon.terminate().code, Some(0));
        daemon = scene.start();
        assert_eq!(faults.count("C_Login"), 1, "after restart {restart}:\n{}", daemon.log());
    }

    let cleared = clear(&scene, &token);
    assert!(cleared.status.success(), "{}", stderr(&cleared));
    token.write_pin(PIN);
    scene.wait_for(&daemon, Code::Ok).await;
    assert_eq!(faults.count("C_Login"), 2);
    let again = clear(&scene, &token);
    assert!(!again.status.success() && stderr(&again).contains("no failed logins"), "{again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_pin_is_tried_after_one_that_was_refused_and_none_after_two() {
    let (token, faults, mut scene) = wrong_pin();
    let daemon = scene.start();
    assert_eq!(faults.count("C_Login"), 1);
    token.write_pin("00000001");
    wait_for_logins(&faults, 2);
    token.write_pin(PIN);
    daemon.wait_for_log("two logins to token");
    assert_eq!(scene.ask(&daemon).await, Code::FailedPrecondition);
    assert_eq!(faults.count("C_Login"), 2);
    assert!(clear(&scene, &token).status.success());
    scene.wait_for(&daemon, Code::Ok).await;
    assert_eq!(faults.count("C_Login"), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_right_pin_in_its_file_is_all_it_takes_after_one_refusal() {
    let (token, faults, mut scene) = wrong_pin();
    let daemon = scene.start();
    token.write_pin(PIN);
    scene.wait_for(&daemon, Code::Ok).await;
    assert_eq!(faults.count("C_Login"), 2);
    reload(&daemon);
    assert_eq!(scene.ask(&daemon).await, Code::Ok);
    assert_eq!(faults.count("C_Login"), 2, "a reload keeps the login");
}

#[test]
fn a_process_killed_inside_its_first_login_allows_one_more_and_never_a_third() {
    for (second, said) in [("rv=0xa0", "refused"), ("hang", "two logins")] {
        let (_token, faults, mut scene) = wrong_pin();
        faults.on_call(1, "C_Login", "hang");
        let daemon = Daemon::spawn(&scene.site);
        wait_for_logins(&faults, 1);
        assert_eq!(daemon.kill().signal, Some(9));

        faults.on_call(1, "C_Login", second);
        let daemon = Daemon::spawn(&scene.site);
        wait_for_logins(&faults, 2);
        if second == "rv=0xa0" {
            daemon.wait_for_log("login refused");
        }
        daemon.kill();
        faults.clear();
        for _ in 0..3 {
            let daemon = scene.start();
            assert_eq!(faults.count("C_Login"), 2);
            assert!(daemon.log().contains(said), "{}", daemon.log());
        }
    }
}

/// The module's process aborts in `C_Login`, and nothing else does: each crash is one attempt, over all
/// processes and restarts.
#[test]
fn a_module_that_aborts_in_its_login_counts_as_a_crash() {
    let (_token, faults, mut scene) = wrong_pin();
    faults.on_every("C_Login", "abort");
    for _ in 0..2 {
        let daemon = scene.start();
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
    let (token, faults, mut scene) = wrong_pin();
    let pinned = scene.site.configuration.clone();
    let version = &mut scene.site.configuration["keys"]["user-keys"]["versions"][0];
    version.as_table_mut().unwrap().remove("public_key_sha256");
    scene.site.write();
    let file = scene.site.configuration_file();
    let pin = ["config", "pin", "--config", file.to_str().unwrap()];
    for attempt in 1..=3 {
        let output = run(&scene, &pin);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(stderr(&output).contains("claviger pin clear"), "{output:?}");
        assert_eq!(faults.count("C_Login"), 1, "attempt {attempt}");
    }
    scene.site.configuration = pinned;
    let daemon = scene.start();
    assert_eq!(faults.count("C_Login"), 1, "{}", daemon.log());
    assert!(clear(&scene, &token).status.success());
}

#[test]
fn without_a_state_directory_no_pin_is_used() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut scene = Scene::on(&token);
    scene.site.configuration["server"].as_table_mut().unwrap().remove("state_dir");
    let exit = Daemon::spawn(&scene.site).wait();
    assert_eq!(exit.code, Some(78), "{}", exit.log);
    assert!(exit.log.contains("state_dir"), "{}", exit.log);
    let file = scene.site.configuration_file();
    let output = run(&scene, &["config", "pin", "--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    assert_eq!(faults.count("C_Login"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_about_to_lock_gets_no_pin_until_it_says_otherwise() {
    for (flag, said) in [("final-try", "one more wrong PIN locks it"), ("locked", "is locked")] {
        let (token, faults) = Token::softhsm().through_fault_module();
        let mut scene = Scene::on(&token);
        faults.on_every("C_GetTokenInfo", &format!("flags={flag}"));
        let daemon = scene.start();
        assert_eq!(scene.ask(&daemon).await, Code::FailedPrecondition);
        assert!(daemon.log().contains(said), "{}", daemon.log());
        assert_eq!(faults.count("C_Login"), 0);
        faults.clear();
        scene.wait_for(&daemon, Code::Ok).await;
        assert_eq!(faults.count("C_Login"), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_file_that_others_can_read_is_refused_unread() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut scene = Scene::on(&token);
    fs::set_permissions(token.pin_file(), Permissions::from_mode(0o644)).unwrap();
    scene.site.write();
    let file = scene.site.configuration_file();
    let output = run(&scene, &["config", "check", "--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    let daemon = scene.start();
    assert_eq!(scene.ask(&daemon).await, Code::FailedPrecondition);
    for said in [stderr(&output), daemon.log()] {
        assert!(said.contains(token.pin_file().to_str().unwrap()), "{said}");
        assert!(said.contains("600"), "{said}");
    }
    assert_eq!(faults.count("C_Login"), 0);
    fs::set_permissions(token.pin_file(), Permissions::from_mode(0o600)).unwrap();
    scene.wait_for(&daemon, Code::Ok).await;
    assert_eq!(faults.count("C_Login"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_that_was_changed_is_used_at_the_next_login_and_not_before() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut scene = Scene::on(&token);
    let daemon = scene.start();
    token.change_pin(PIN, "11223344");
    token.write_pin("11223344");
    reload(&daemon);
    assert_eq!(scene.ask(&daemon).await, Code::Ok);
    assert_eq!(faults.count("C_Login"), 1);
    daemon.terminate();
    let daemon = scene.start();
    assert_eq!(scene.ask(&daemon).await, Code::Ok);
    assert_eq!(faults.count("C_Login"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_that_names_another_pin_file_logs_in_with_it_or_is_refused() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut scene = Scene::on(&token);
    let daemon = scene.start();
    let file = scene.site.path("another.pin");
    e2e::pki::replace(&file, WRONG, 0o600);
    scene.site.set("providers.hsm-a.pin.file", file.to_str().unwrap());
    scene.site.write();
    daemon.reload();
    daemon.wait_for_log("refused the login");
    assert_eq!(scene.ask(&daemon).await, Code::Ok, "what serves goes on");
    assert_eq!(faults.count("C_Login"), 2);
    e2e::pki::replace(&file, PIN, 0o600);
    reload(&daemon);
    assert_eq!(scene.ask(&daemon).await, Code::Ok);
    assert_eq!(faults.count("C_Login"), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_an_attempt_cannot_be_recorded_no_pin_is_sent() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut scene = Scene::on(&token);
    let place = scene.site.path("state/pin");
    fs::write(&place, "in the way").unwrap();
    let daemon = scene.start();
    assert_eq!(scene.ask(&daemon).await, Code::FailedPrecondition);
    assert!(daemon.log().contains(place.to_str().unwrap()), "{}", daemon.log());
    assert_eq!(faults.count("C_Login"), 0);
    fs::remove_file(&place).unwrap();
    scene.wait_for(&daemon, Code::Ok).await;
    assert_eq!(faults.count("C_Login"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_without_an_outcome_is_made_once_more_and_then_waits_for_the_operator() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut scene = Scene::on(&token);
    faults.on_call(1, "C_Login", "rv=0x32");
    let daemon = scene.start();
    assert_eq!(scene.ask(&daemon).await, Code::Unavailable);
    scene.wait_for(&daemon, Code::Ok).await;
    assert_eq!(faults.count("C_Login"), 2);
    daemon.terminate();
    faults.on_next(9, "C_Login", "rv=0x32");
    let daemon = scene.start();
    scene.wait_for(&daemon, Code::FailedPrecondition).await;
    assert_eq!(faults.count("C_Login"), 4);
    faults.clear();
    assert!(clear(&scene, &token).status.success());
    scene.wait_for(&daemon, Code::Ok).await;
    assert_eq!(faults.count("C_Login"), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_failed_for_no_plain_reason_counts_as_refused() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut scene = Scene::on(&token);
    faults.on_call(1, "C_Login", "late-rv=0x5");
    let daemon = scene.start();
    assert_eq!(scene.ask(&daemon).await, Code::FailedPrecondition);
    daemon.terminate();
    let daemon = scene.start();
    assert_eq!(scene.ask(&daemon).await, Code::FailedPrecondition);
    assert_eq!(faults.count("C_Login"), 1);
    assert!(clear(&scene, &token).status.success());
    scene.wait_for(&daemon, Code::Ok).await;
    assert_eq!(faults.count("C_Login"), 2);
}

//! What is wrong with a key is named in one word by `claviger status`, `/readyz?verbose` and the metrics,
//! and no longer named once it is over; and what else `claviger status` shows.

use std::path::PathBuf;
use std::process::Output;
use std::time::{Duration, Instant};

use claviger_client::Health;
use e2e::daemon::claviger;
use e2e::process::command;
use e2e::setup::KEY;
use e2e::{Daemon, DaemonFiles, FaultSetup, RsaKey, ServiceKind, Setup, Token};
use fault_proxy::{Fault, Shown, Times};
use serde_json::Value;
use tonic::Code;

/// Longer than the interval of canaries, on a machine that is busy with other tests.
const SOON: Duration = Duration::from_secs(40);

fn run(arguments: &[&str]) -> Output {
    command(claviger()).args(arguments).output().expect("the program starts")
}

fn done(arguments: &[&str]) -> String {
    let output = run(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn state_dir(files: &DaemonFiles) -> String {
    files.path("state").display().to_string()
}

/// The object of `claviger status --json`.
fn status(files: &DaemonFiles) -> Value {
    let text = done(&["status", "--json", "--state-dir", &state_dir(files)]);
    serde_json::from_str(&text).unwrap()
}

/// The reason of the only replica by `claviger status`.
fn by_status(files: &DaemonFiles) -> String {
    let status = status(files);
    let version = &status["keys"][0]["versions"][0];
    let replica = version["replicas"][0]["reason"].as_str().unwrap();
    // They are read one after the other.
    let is_all = version["reason"] == replica && status["keys"][0]["reason"] == replica;
    if is_all { replica.to_owned() } else { format!("{version}") }
}

/// The reason that a line of `/readyz?verbose` ends in.
fn by_readyz(daemon: &Daemon) -> String {
    let (_, text) = daemon.operations_get("/readyz?verbose").unwrap();
    let line = text.lines().find(|line| line.contains(KEY)).unwrap_or_else(|| panic!("{text}"));
    let (_, reason) = line.rsplit_once(' ').expect("a reason");
    assert_eq!(line.starts_with("[+]"), reason == "ok", "{line}");
    reason.to_owned()
}

/// Waits until status, readiness, metrics and the key's health have one of `reasons` for the only replica, and
/// says how long that took.
async fn is_named(setup: &Setup, daemon: &Daemon, reasons: &[&str]) {
    let begun = Instant::now();
    loop {
        let named = (by_status(&setup.files), by_readyz(daemon));
        let label = format!("reason=\"{}\"", named.0);
        let is_one = reasons.contains(&&*named.0) && named.0 == named.1;
        // A key that is throttled serves.
        let serves = matches!(&*named.0, "ok" | "throttled");
        let health = if serves { Health::Serving } else { Health::NotServing };
        let waited = begun.elapsed();
        if is_one
            && daemon.count("claviger_key_state", &[&label]) == 1
            && setup.key_health(daemon).await == health
        {
            assert_eq!(daemon.count("claviger_key_state", &[]), 1, "one series for one replica");
            println!("{} is named after {} ms", named.0, waited.as_millis());
            return;
        }
        assert!(waited < SOON, "{named:?}, not {reasons:?} after {waited:?}:\n{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until one of several replicas has this state and reason in status, readiness and metrics.
async fn is_shown(setup: &Setup, daemon: &Daemon, provider: &str, state: &str, reason: &str) {
    let begun = Instant::now();
    let provider_label = format!("provider=\"{provider}\"");
    let reason_label = format!("reason=\"{reason}\"");
    loop {
        let shown = status(&setup.files);
        let replicas = shown["keys"][0]["versions"][0]["replicas"].as_array().unwrap().clone();
        let replica = replicas.iter().find(|replica| replica["provider"] == provider).unwrap();
        let readyz = daemon.operations_get("/readyz?verbose").unwrap().1;
        let line = format!("key {KEY} version 1 {provider} {reason}");
        let diverges = usize::from(state == "diverges");
        let waited = begun.elapsed();
        if replica["state"] == state
            && replica["reason"] == reason
            && readyz.contains(&line)
            && daemon.count("claviger_key_state", &[&provider_label, &reason_label]) == 1
            && daemon.count("claviger_key_diverges", &[&provider_label]) == diverges
        {
            println!("{provider} {state} {reason} is shown after {} ms", waited.as_millis());
            return;
        }
        assert!(waited < SOON, "{replica}, not {state} {reason}:\n{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_removed_and_a_key_that_is_deleted_or_swapped_are_named_until_they_are_back()
 {
    let token = Token::softhsm();
    let mut setup = Setup::on(&token);
    let daemon = setup.start();
    let named = async |reasons: &[&str]| is_named(&setup, &daemon, reasons).await;
    named(&["ok"]).await;
    token.take_away_alone();
    named(&["token-absent"]).await;
    assert_eq!(daemon.operations_get("/readyz").unwrap().0, 200, "it does not look at keys");
    token.bring_back_alone();
    named(&["ok"]).await;
    token.delete(KEY);
    named(&["key-absent"]).await;
    let other = RsaKey::generate(2048);
    token.import(&other, KEY, "01");
    named(&["another-key"]).await;
    token.delete(KEY);
    token.import(&setup.key, KEY, "01");
    named(&["ok"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_diverges_is_named_beside_one_that_serves_until_it_is_the_key_again() {
    let (a, b) = (Token::softhsm(), Token::softhsm());
    let mut setup = Setup::on_replicas(&[&a, &b]);
    let daemon = setup.start();
    is_shown(&setup, &daemon, "hsm-b", "serves", "ok").await;
    b.delete(KEY);
    b.import(&RsaKey::generate(2048), KEY, "01");
    is_shown(&setup, &daemon, "hsm-b", "diverges", "another-key").await;
    is_shown(&setup, &daemon, "hsm-a", "serves", "ok").await;
    assert_eq!(setup.key_health(&daemon).await, Health::Serving, "the other replica answers");
    let shown = status(&setup.files);
    assert_eq!(shown["keys"][0]["reason"], "ok");
    assert_eq!(setup.ask(&daemon).await, Code::Ok);
    b.delete(KEY);
    b.import(&setup.key, KEY, "01");
    is_shown(&setup, &daemon, "hsm-b", "serves", "ok").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_that_was_changed_in_the_token_under_a_running_daemon_is_named_until_the_file_has_it()
{
    let token = Token::softhsm();
    let mut setup = Setup::on(&token);
    let daemon = setup.start();
    is_named(&setup, &daemon, &["ok"]).await;
    token.change_pin(e2e::token::PIN, "9999");
    // What is logged in stays so; the next process has to log in.
    let pid = daemon.children()[0];
    e2e::process::run(command("kill").args(["-9", &pid.to_string()]));
    is_named(&setup, &daemon, &["wrong-pin", "latched-pin"]).await;
    token.write_pin("9999");
    is_named(&setup, &daemon, &["ok"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_that_was_changed_is_named_until_the_file_has_it() {
    let token = Token::softhsm();
    let mut setup = Setup::on(&token);
    token.write_pin("9999");
    let daemon = setup.start();
    // At first the refusal itself, then that no login is tried for it.
    is_named(&setup, &daemon, &["wrong-pin", "latched-pin"]).await;
    let pins = &status(&setup.files)["pins"];
    assert_eq!((&pins[0]["serial"], &pins[0]["latched"]), (&token.serial().into(), &true.into()));
    token.write_pin(e2e::token::PIN);
    is_named(&setup, &daemon, &["ok"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_throttles_or_shows_a_certificate_of_another_ca_is_named_until_it_does_not()
{
    let setup = FaultSetup::set(ServiceKind::Azure).await;
    let (files, daemon) = (&setup.base.files, &setup.daemon);
    let connection = setup.connect().await;
    let throttled = Fault::Answer(setup.service.kind.api().throttled(Some(Duration::from_secs(1))));
    setup.fault(setup.unwraps_of_value(), Times::Next(1), throttled);
    let answer = setup.ask(&connection).await.1.unwrap_err();
    assert_eq!(answer.code(), Code::ResourceExhausted);
    is_named(&setup.base, daemon, &["throttled"]).await;
    assert_eq!(status(files)["keys"][0]["versions"][0]["replicas"][0]["state"], "serves");
    setup.base.wait_for(daemon, Code::Ok).await;
    is_named(&setup.base, daemon, &["ok"]).await;

    setup.proxy.show(Shown::OfAnotherCa).await;
    setup.ask(&connection).await.1.unwrap_err();
    setup.base.wait_for_key_health(daemon, Health::NotServing).await;
    is_named(&setup.base, daemon, &["wrong-ca"]).await;
    setup.heal().await;
    is_named(&setup.base, daemon, &["ok"]).await;
}

/// The operations listener speaks TLS, and the caller of the setup is a reader.
fn over_tls(files: &mut DaemonFiles) -> [String; 2] {
    let port = files.operations_address().port();
    files.set("operations.listen", format!("0.0.0.0:{port}"));
    files.set("operations.readers", vec!["key-connector".into()] as Vec<toml::Value>);
    let ca = files.path("operations-ca.pem");
    e2e::pki::replace(&ca, &files.pki.ca_pem(), 0o644);
    let text = |path: PathBuf| path.display().to_string();
    [format!("https://localhost:{port}"), text(ca)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_screen_tells_configuration_keys_callers_certificates_and_the_end_of_the_audit_log() {
    let token = Token::softhsm();
    let mut setup = Setup::on(&token);
    setup.files.limit("key-connector", "failed_unwraps", "10/h");
    setup.files.caller("silent", &[KEY], &["read"]);
    let daemon = setup.start();
    let connection = setup.connect(&daemon).await;
    assert_eq!(setup.ask_over(&connection).await, Code::Ok);
    let bad =
        claviger_proto::v1::UnwrapRequest { wrapped: vec![0x55; 256].into(), ..setup.request() };
    connection.unwrap(&bad).await.unwrap_err();
    let left = daemon.count(
        "claviger_caller_failed_unwraps_left",
        &["caller=\"key-connector\"", "key=\"user-keys\""],
    );
    assert_eq!(left, 9, "of ten");
    let status = status(&setup.files);
    assert_eq!((&status["phase"], &status["ready"]), (&"ready".into(), &true.into()));
    let records = setup.files.audit_records();
    let start = records.iter().find(|record| record["event"] == "start").unwrap();
    assert_eq!(status["config_sha256"], start["config_sha256"]);
    let audit = &status["audit"];
    assert_eq!(audit["failing"], false);
    // A line that was written since changes nothing before it.
    let written = std::fs::read(setup.files.audit_file()).unwrap();
    let last = audit["records"].as_u64().unwrap() as usize - 1;
    let line = written.split(|byte| *byte == b'\n').nth(last).unwrap();
    assert_eq!(audit["head"], hex::encode(claviger_provider_api::public_key::sha256(line)));
    let callers = status["callers"].as_array().unwrap();
    assert_eq!(
        (&callers[0]["caller"], &callers[1]["caller"]),
        (&"key-connector".into(), &"silent".into())
    );
    assert_eq!(callers[0]["identity"], "spiffe://example.org/key-connector");
    assert!(
        callers[0]["certificate_not_after"].as_u64().unwrap()
            > callers[0]["seen_at"].as_u64().unwrap()
    );
    assert_eq!(
        (&callers[0]["budgets"][0]["failed"], &callers[0]["budgets"][0]["limit"]),
        (&1.into(), &10.into())
    );
    assert!(callers[1]["seen_at"].is_null());
    let replica = &status["keys"][0]["versions"][0]["replicas"][0];
    assert_eq!((&replica["provider"], &replica["state"]), (&"hsm-a".into(), &"serves".into()));
    let measures = status["providers"][0]["measures"].as_array().unwrap();
    assert!(!measures.is_empty(), "the module's process is confined: {status}");

    let screen = done(&["status", "--state-dir", &state_dir(&setup.files)]);
    for line in [
        "user-keys version 1  active  ok",
        "hsm-a  serves",
        "key-connector  seen ",
        "1 of 10 failed unwraps on user-keys",
        "1 not seen since the start",
    ] {
        assert!(screen.contains(line), "{line:?} in:\n{screen}");
    }
    assert_eq!(daemon.terminate().code, Some(0));
    let gone = run(&["status", "--state-dir", &state_dir(&setup.files)]);
    assert_eq!(gone.status.code(), Some(69));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_daemons_are_shown_side_by_side_over_mutual_tls_and_what_differs_is_marked() {
    let mut setup = Setup::software();
    let [one, ca] = over_tls(&mut setup.files);
    let (certificate, private_key) = setup.caller.write(&setup.files.path("."), "reader");
    let first = Daemon::spawn(&setup.files);
    first.wait_for_log("ready");
    setup.files.next_daemon_is_another();
    // Another configuration, without the key's file.
    setup.files.set("providers.files.directory", setup.files.path("state").display().to_string());
    let [two, _] = over_tls(&mut setup.files);
    let second = Daemon::spawn(&setup.files);
    let tls = |endpoints: &[&str]| {
        let mut arguments: Vec<String> = vec!["status".into(), "--json".into()];
        for endpoint in endpoints {
            arguments.extend(["--endpoint".to_owned(), (*endpoint).to_owned()]);
        }
        let files = [certificate.display().to_string(), private_key.display().to_string()];
        for (option, file) in
            ["--ca", "--certificate", "--private-key"].iter().zip([&ca, &files[0], &files[1]])
        {
            arguments.extend([(*option).to_owned(), file.clone()]);
        }
        run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let begun = Instant::now();
    let both = loop {
        let output = tls(&[&one, &two]);
        if output.status.success() {
            break serde_json::from_slice::<Value>(&output.stdout).unwrap();
        }
        assert!(begun.elapsed() < SOON, "{output:?}\n{}", second.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let differences = both["differences"].to_string();
    assert!(differences.contains("\"configuration\""), "{differences}");
    assert!(!differences.contains("\"version\""), "{differences}");
    assert_eq!(both["endpoints"][0]["status"]["keys"][0]["reason"], "ok", "{both}");
    let single: Value = serde_json::from_slice(&tls(&[&one]).stdout).unwrap();
    assert_eq!(single["phase"], "ready");
    drop(second);
    let output = tls(&[&one, &two]);
    assert_eq!(output.status.code(), Some(69));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(told["endpoints"][1]["error"].is_string() && told["endpoints"][0]["error"].is_null());

    let stranger = setup.files.pki.client("spiffe://example.org/nobody");
    let (certificate, private_key) = stranger.write(&setup.files.path("."), "stranger");
    let [certificate, private_key] =
        [certificate, private_key].map(|path| path.display().to_string());
    let refused = run(&[
        "status",
        "--endpoint",
        &one,
        "--ca",
        &ca,
        "--certificate",
        &certificate,
        "--private-key",
        &private_key,
    ]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(69), "{said}");
    assert!(said.contains("operations.readers"), "{said}");
    assert!(first.log().contains("ready"));
}

//! What a scrape of a running daemon says: every name that the operations page and alerts rely on.

use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use claviger_proto::v1::UnwrapRequest;
use claviger_provider_api::{Algorithm, KeyMaterial, Parameters};
use e2e::process::{command, repository};
use e2e::{Connection, Daemon, DaemonFiles, Orders, Pki, RsaKey, Setup, Token, Version};
use toml::{Table, Value};
use tonic::Code;

const MATERIAL: [u8; 32] = [7; 32];

/// A configuration with the key `user-keys` in a token.
fn files_with(token: &Token, key: &RsaKey) -> DaemonFiles {
    let mut files = DaemonFiles::new();
    files.token("hsm", token);
    token.import(key, "user-keys", "01");
    let version = Version::active(1, key, "hsm", "pkcs11:object=user-keys");
    files.key("user-keys", &["RSA-OAEP"], vec![version]);
    files
}

fn wrapped(key: &RsaKey) -> UnwrapRequest {
    let parameters = Parameters::of(Algorithm::RsaOaep);
    let wrapped = key.public_key().wrap(&KeyMaterial::copied_from(&MATERIAL), &parameters);
    UnwrapRequest {
        key: "user-keys".into(),
        wrapped: wrapped.unwrap().into(),
        ..Default::default()
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// `promtool check metrics` has no word about names, units and help texts.
fn promtool_finds_nothing(daemon: &Daemon) {
    let (_, scrape) = daemon.operations_get_as("/metrics", "text/plain").unwrap();
    let mut promtool = command(repository().join("scripts/promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("scripts/promtool starts");
    promtool.stdin.take().unwrap().write_all(scrape.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}\n{scrape}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scrape_tells_how_the_daemon_its_keys_and_its_connections_are() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let (key, in_file) = (RsaKey::shared(2048), RsaKey::generate(2048));
    let mut files = files_with(&token, &key);
    let folder = files.path("keys");
    std::fs::create_dir(&folder).unwrap();
    in_file.write_pem(&folder.join("other.pem"));
    let options = [("type", "software"), ("directory", folder.to_str().unwrap())];
    let options = options.map(|(option, value)| (option.to_owned(), Value::from(value)));
    files.provider("files", Table::from_iter(options));
    let version = Version::active(3, &in_file, "files", "other.pem");
    files.key("other", &["RSA-OAEP-256"], vec![version]);
    let identity = files.caller("key-connector", &["user-keys"], &["unwrap"]);
    let daemon = Daemon::start(&mut files);
    daemon.wait_for_log("not in hardware");

    let (address, ca) = (daemon.address(), files.pki.ca_der());
    let connection = Connection::open(address, ca.clone(), Some(&identity)).await.unwrap();
    let unwrapped = connection.unwrap(&wrapped(&key)).await.unwrap();
    assert_eq!(unwrapped.key_material[..], MATERIAL);
    let nobody = files.pki.client("spiffe://example.org/nobody");
    let unknown = Connection::open(address, ca.clone(), Some(&nobody)).await.unwrap();
    unknown.unwrap(&wrapped(&key)).await.unwrap_err();
    let stranger = Pki::new().client("spiffe://example.org/key-connector");
    // A client of TLS 1.3 learns of its refusal only after its handshake.
    drop(Connection::open(address, ca, Some(&stranger)).await);
    eventually("the stranger is counted", || {
        daemon.metric("claviger_handshakes_failed_total", &[r#"reason="unknown_issuer""#]) > 0.0
    });

    let hsm = [r#"key="user-keys""#, r#"version="1""#, r#"provider="hsm""#, r#"replica="0""#];
    let of_files = [r#"key="other""#, r#"version="3""#, r#"provider="files""#, r#"replica="0""#];
    let expected: &[(&str, &[&str], f64)] = &[
        ("claviger_calls_total", &[r#"operation="unwrap""#, r#"outcome="ok""#], 1.0),
        ("claviger_call_duration_seconds_count", &[r#"key="user-keys""#], 1.0),
        ("claviger_key_up", &hsm, 1.0),
        ("claviger_key_up", &of_files, 1.0),
        ("claviger_repairs_total", &hsm, 0.0),
        ("claviger_provider_info", &[r#"type="pkcs11""#, r#"hardware="true""#], 1.0),
        ("claviger_provider_info", &[r#"type="software""#, r#"hardware="false""#], 1.0),
        ("claviger_pin_latched", &[], 0.0),
        ("claviger_ready", &[], 1.0),
        ("claviger_draining", &[], 0.0),
        ("claviger_calls_in_flight", &[], 0.0),
        ("claviger_connections", &[], 2.0),
        ("claviger_connections_accepted_total", &[], 3.0),
        ("claviger_handshakes_total", &[], 2.0),
        ("claviger_handshakes_failed_total", &[], 1.0),
        ("claviger_refusals_total", &[r#"reason="no_caller_matches""#], 1.0),
        ("claviger_config_reloads_total", &[r#"outcome="ok""#], 1.0),
        ("claviger_config_last_reload_successful", &[], 1.0),
        ("claviger_backend_duration_seconds_count", &hsm, 1.0),
        ("claviger_backend_operations", &hsm, 0.0),
        ("claviger_tls_stale", &[], 0.0),
        ("claviger_denied_callers_stale", &[], 0.0),
        ("claviger_provider_process_up", &[r#"provider="hsm""#], 1.0),
        ("claviger_provider_process_starts_total", &[r#"provider="hsm""#], 1.0),
        ("claviger_clock_steps_total", &[], 0.0),
        ("claviger_audit_unsigned_records", &[], 0.0),
        ("claviger_audit_waiting_bytes", &[], 0.0),
        ("claviger_audit_enabled", &[], 1.0),
        ("claviger_audit_failing", &[], 0.0),
    ];
    for (name, labels, value) in expected {
        let said = daemon.metric(name, labels);
        assert!((said - value).abs() < f64::EPSILON, "{name}{labels:?}: {said}, not {value}");
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    let checked = now - daemon.metric("claviger_key_check_timestamp_seconds", &hsm);
    assert!((-1.0..60.0).contains(&checked), "{checked}");
    let started = now - daemon.metric("process_start_time_seconds", &[]);
    assert!((0.0..600.0).contains(&started), "{started}");
    for name in ["process_resident_memory_bytes", "process_open_fds", "process_max_fds"] {
        assert!(daemon.metric(name, &[]) > 1.0, "{name}");
    }
    assert!(daemon.metric("claviger_certificate_not_after_timestamp_seconds", &[]) > now);
    let caller = [r#"caller="key-connector""#];
    assert!(
        daemon.metric("claviger_caller_certificate_not_after_timestamp_seconds", &caller) > now
    );
    assert!(daemon.metric("claviger_audit_chain_records", &[]) >= 2.0, "the start, and a call");
    assert_eq!(daemon.count("claviger_config_info", &["sha256="]), 1);
    assert!(daemon.metric("claviger_config_last_reload_timestamp_seconds", &[]) > now - 600.0);

    promtool_finds_nothing(&daemon);

    // No repair mends this.
    faults.on_every("C_DecryptInit", "rv=0x30");
    eventually("the replica is down", || daemon.metric("claviger_key_up", &hsm) == 0.0);
    assert!(daemon.metric("claviger_key_up", &of_files) > 0.0, "the other provider is sound");
    faults.clear();
    eventually("the replica is up", || daemon.metric("claviger_key_up", &hsm) > 0.0);
    assert!(daemon.metric("claviger_repairs_total", &hsm) > 0.0);

    daemon.reload();
    eventually("the reload is counted", || {
        daemon.metric("claviger_config_reloads_total", &[r#"outcome="ok""#]) > 1.0
    });
}

#[test]
fn a_scrape_tells_which_token_refused_its_pin() {
    let token = Token::softhsm();
    let mut files = files_with(&token, &RsaKey::shared(2048));
    token.write_pin("9999");
    let daemon = Daemon::start(&mut files);
    let serial = format!("serial=\"{}\"", token.serial());
    eventually("the latch shows", || daemon.metric("claviger_pin_latched", &[&serial]) > 0.0);
    assert!(daemon.metric("claviger_key_up", &[]) < 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_by_more_than_five_minutes_is_a_record_an_alarm_and_a_metric() {
    let mut setup = Setup::software();
    let orders = Orders::to(&mut setup.files);
    let daemon = setup.start();
    assert_eq!(daemon.count("claviger_clock_steps_total", &[]), 0);
    orders.give("time - clock 200");
    // It is looked at each second.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(daemon.count("claviger_clock_steps_total", &[]), 0, "time services do that");
    orders.give("time - clock 800");
    eventually("the step forward", || daemon.count("claviger_clock_steps_total", &[]) == 1);
    assert_eq!(setup.ask(&daemon).await, Code::Ok);
    orders.take_back();
    eventually("the step back", || daemon.count("claviger_clock_steps_total", &[]) == 2);
    assert_eq!(daemon.terminate().code, Some(0));
    let records = setup.files.audit_records();
    let steps = records.iter().filter(|record| record["event"] == "clock-step");
    let steps: Vec<_> = steps.map(|record| (&record["direction"], &record["seconds"])).collect();
    let is_about = |seconds: &serde_json::Value, expected: u64| {
        seconds.as_u64().is_some_and(|found| found.abs_diff(expected) < 60)
    };
    assert_eq!(steps.len(), 2, "{steps:?}");
    assert!(steps[0].0 == "forward" && is_about(steps[0].1, 600), "{steps:?}");
    assert!(steps[1].0 == "back" && is_about(steps[1].1, 800), "{steps:?}");
    let is_alarm = |record: &&serde_json::Value| record["alarm"] == "clock_step";
    assert_eq!(records.iter().filter(is_alarm).count(), 2, "{records:#?}");
}

//! Certificates, client CAs, revocation and the configuration itself change under a running daemon.

use std::time::{Duration, Instant};

use e2e::daemon::claviger;
use e2e::pki::{Pki, replace};
use e2e::process::command;
use e2e::setup::{KEY, client_file, wrap};
use e2e::{Connection, Daemon, DaemonFiles, Load, RsaKey, Setup, Token, Version};
use tonic::Code;

const HOUR: time::Duration = time::Duration::HOUR;
const IN_FORCE: &str = "TLS certificates in force";

fn with_crl(setup: &mut Setup) {
    let path = setup.files.path("clients.crl");
    replace(&path, &setup.files.pki.crl_pem(HOUR), 0o644);
    setup.files.set("server.tls.crl", vec![toml::Value::from(path.to_str().unwrap())]);
}

fn write_crl(files: &DaemonFiles, next_update: time::Duration) {
    replace(&files.path("clients.crl"), &files.pki.crl_pem(next_update), 0o644);
}

fn with_denied(setup: &mut Setup) {
    let path = setup.files.path("denied");
    replace(&path, "# nobody\n", 0o600);
    setup.files.set("server.denied_callers", path.to_str().unwrap());
}

async fn wait_for_count(daemon: &Daemon, text: &str, count: usize) {
    let begun = Instant::now();
    while daemon.log().matches(text).count() < count {
        let waited = begun.elapsed();
        assert!(waited < Duration::from_secs(10), "{text:?} {count} times:\n{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How long it takes until the daemon has closed the connection; more than five seconds is a panic.
async fn cut(connection: &Connection, daemon: &Daemon) -> Duration {
    let begun = Instant::now();
    while !connection.is_closed() {
        assert!(begun.elapsed() < Duration::from_secs(5), "not cut:\n{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    begun.elapsed()
}

/// Whether a new connection of `identity` gets what it asks for. Who is denied is told so; who is
/// not trusted gets no answer.
async fn is_let_in(setup: &Setup, daemon: &Daemon, identity: &e2e::Identity) -> bool {
    let ca = setup.files.pki.ca_der();
    let Ok(connection) = Connection::open(daemon.address(), ca, Some(identity)).await else {
        return false;
    };
    let call = e2e::connection::frame(&prost::Message::encode_to_vec(&setup.request()));
    match connection.call("/claviger.v1.KeyService/Unwrap", call, &[]).await {
        Ok(answer) if answer.code() == Code::Unauthenticated => false,
        Ok(answer) => {
            assert_eq!(answer.code(), Code::Ok);
            true
        }
        Err(_) => false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificate_client_ca_and_crl_are_replaced_twenty_times_under_load_and_no_call_fails() {
    let mut setup = Setup::software();
    with_crl(&mut setup);
    let daemon = setup.start();
    let folder = setup.files.path(".");
    let before = daemon.log().matches(IN_FORCE).count();
    let load = Load::start(&setup.client_config(&daemon), &setup.wrapped, 6, 2);
    let kept = setup.connect(&daemon).await;
    let others: Vec<Pki> = (0..20).map(|_| Pki::new()).collect();
    for (number, other) in others.iter().enumerate() {
        match number % 3 {
            0 => drop(setup.files.pki.server().write(&folder, "server")),
            1 => {
                // Another CA joins the one whose certificates are in use; with its own CRL, which
                // has to be there first.
                let crls = setup.files.pki.crl_pem(HOUR) + &other.crl_pem(HOUR);
                replace(&setup.files.path("clients.crl"), &crls, 0o644);
                let cas = setup.files.pki.ca_pem() + &other.ca_pem();
                replace(&setup.files.path("clients.pem"), &cas, 0o644);
            }
            _ => {
                let of_before = &others[number - 1];
                let crls = setup.files.pki.crl_pem(HOUR) + &of_before.crl_pem(HOUR);
                replace(&setup.files.path("clients.crl"), &crls, 0o644);
            }
        }
        load.more(20).await;
        wait_for_count(&daemon, IN_FORCE, before + number + 1).await;
        load.more(20).await;
    }
    assert_eq!(setup.ask_over(&kept).await, Code::Ok, "the first connection still serves");
    let tally = load.stop().await;
    assert!(tally.failed.is_empty(), "{} failed: {:?}", tally.failed.len(), tally.failed);
    assert!(tally.right.len() >= 800);
    // The CA that joined last is in force: 19 % 3 == 1.
    let newcomer = others[19].client("spiffe://example.org/key-connector");
    assert!(is_let_in(&setup, &daemon, &newcomer).await, "{}", daemon.log());
    println!("{} calls, 0 failed", tally.right.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_asked_to_go_loses_no_call() {
    let mut setup = Setup::software();
    setup.files.set("server.max_connection_age", "1s");
    let daemon = setup.start();
    let idle = setup.connect(&daemon).await;
    let load = Load::start(&setup.client_config(&daemon), &setup.wrapped, 16, 0);
    let shared = Load::sharing(&setup.client_config(&daemon), &setup.wrapped, 16);
    assert!(cut(&idle, &daemon).await > Duration::from_millis(800));
    tokio::time::sleep(Duration::from_secs(7)).await;
    for load in [load, shared] {
        let tally = load.stop().await;
        assert!(tally.failed.is_empty(), "{} failed: {:?}", tally.failed.len(), tally.failed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_revoked_or_denied_is_cut_within_five_seconds_and_nobody_else() {
    let mut setup = Setup::software();
    with_crl(&mut setup);
    with_denied(&mut setup);
    let names = ["revoked", "denied-by-san", "denied-by-hash", "stays"];
    let callers = names.map(|name| setup.files.caller(name, &[KEY], &["unwrap"]));
    let daemon = setup.start();
    let connections = [
        setup.connect_as(&daemon, &callers[0]).await,
        setup.connect_as(&daemon, &callers[1]).await,
        setup.connect_as(&daemon, &callers[2]).await,
        setup.connect_as(&daemon, &callers[3]).await,
    ];
    for connection in &connections {
        assert_eq!(setup.ask_over(connection).await, Code::Ok);
    }
    let [revoked, by_san, by_hash, stays] = &connections;

    setup.files.pki.revoke(&callers[0]);
    write_crl(&setup.files, HOUR);
    let took = cut(revoked, &daemon).await;
    assert!(!by_san.is_closed() && !by_hash.is_closed() && !stays.is_closed());
    println!("revoked: cut after {took:?}");

    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &callers[2].certificate());
    let list = format!("spiffe://example.org/denied-by-san\n{}\n", hex::encode(hash));
    replace(&setup.files.path("denied"), &list, 0o600);
    let took = cut(by_san, &daemon).await.max(cut(by_hash, &daemon).await);
    println!("denied: cut after {took:?}");

    for gone in &callers[..3] {
        assert!(!is_let_in(&setup, &daemon, gone).await, "{}", daemon.log());
    }
    assert_eq!(setup.ask_over(stays).await, Code::Ok);
    assert!(is_let_in(&setup, &daemon, &callers[3]).await);

    // A list that cannot be used leaves the last one in force; a new one lets in again.
    replace(&setup.files.path("denied"), "", 0o600);
    daemon.wait_for_log("the last list stays in force");
    assert!(!is_let_in(&setup, &daemon, &callers[1]).await);
    replace(&setup.files.path("denied"), "# nobody\n", 0o600);
    let begun = Instant::now();
    while !is_let_in(&setup, &daemon, &callers[1]).await {
        assert!(begun.elapsed() < Duration::from_secs(5), "{}", daemon.log());
    }
    assert!(!is_let_in(&setup, &daemon, &callers[0]).await, "revoked is revoked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_can_be_denied_while_a_reload_is_refused() {
    let mut setup = Setup::software();
    with_denied(&mut setup);
    let daemon = setup.start();
    let connection = setup.connect(&daemon).await;
    replace(&setup.files.configuration_file(), "nonsense", 0o644);
    daemon.reload();
    daemon.wait_for_log("reload refused");
    assert_eq!(setup.ask_over(&connection).await, Code::Ok);
    replace(&setup.files.path("denied"), "spiffe://example.org/key-connector\n", 0o600);
    cut(&connection, &daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denied_caller_is_told_that_it_is_refused_and_not_to_try_again() {
    let mut setup = Setup::software();
    with_denied(&mut setup);
    let daemon = setup.start();
    let kept = setup.connect(&daemon).await;
    replace(&setup.files.path("denied"), "spiffe://example.org/key-connector\n", 0o600);
    cut(&kept, &daemon).await;
    let client = setup.connect(&daemon).await;
    assert_eq!(setup.ask_over(&client).await, Code::Unauthenticated);

    let output = command(claviger())
        .args(["keys", "list", "--client"])
        .arg(client_file(&setup.files, &daemon, &setup.caller))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(77), "{said}");
    assert!(said.contains("no configured caller matches this peer"), "{said}");
    assert!(!said.contains("try again") && !said.contains("https://"), "{said}");
    // Refusals are not waited for: the end of the daemon is.
    assert_eq!(daemon.terminate().code, Some(0));
    let audit = std::fs::read_to_string(setup.files.audit_file()).unwrap();
    assert_eq!(
        audit.matches("\"reason\":\"denied_caller\"").count(),
        2,
        "one refusal for each call, and no more:\n{audit}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_crl_alarms_at_once_and_closes_the_door_after_its_grace() {
    let mut setup = Setup::software();
    with_crl(&mut setup);
    setup.files.set("server.tls.crl_grace", "72h");
    write_crl(&setup.files, -HOUR);
    let daemon = setup.start();
    assert!(daemon.log().contains("past its nextUpdate"), "{}", daemon.log());
    assert!(is_let_in(&setup, &daemon, &setup.caller).await, "within the grace");
    let kept = setup.connect(&daemon).await;
    assert_eq!(setup.ask_over(&kept).await, Code::Ok);

    setup.files.set("server.tls.crl_grace", "30m");
    setup.files.write();
    daemon.reload();
    daemon.wait_for_log("configuration reloaded");
    assert!(!is_let_in(&setup, &daemon, &setup.caller).await, "{}", daemon.log());
    cut(&kept, &daemon).await;

    write_crl(&setup.files, HOUR);
    let begun = Instant::now();
    while !is_let_in(&setup, &daemon, &setup.caller).await {
        assert!(begun.elapsed() < Duration::from_secs(5), "{}", daemon.log());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_make_no_sense_leave_the_old_certificates_in_force() {
    let mut setup = Setup::software();
    with_crl(&mut setup);
    let daemon = setup.start();
    let good = std::fs::read_to_string(setup.files.path("server.crt")).unwrap();
    for (count, (file, text)) in [
        ("server.crt", "nonsense"),
        ("clients.pem", ""),
        ("clients.crl", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"),
    ]
    .into_iter()
    .enumerate()
    {
        let before = std::fs::read_to_string(setup.files.path(file)).unwrap();
        replace(&setup.files.path(file), text, 0o644);
        wait_for_count(&daemon, "the old certificates stay in force", count + 1).await;
        assert!(is_let_in(&setup, &daemon, &setup.caller).await, "{file}");
        replace(&setup.files.path(file), &before, 0o644);
        wait_for_count(&daemon, IN_FORCE, count + 1).await;
    }
    // A key that is not the certificate's, too.
    replace(&setup.files.path("server.crt"), &good, 0o644);
    let other = setup.files.pki.server();
    let elsewhere = tempfile::tempdir().unwrap();
    let (_, key) = other.write(elsewhere.path(), "other");
    let key = std::fs::read_to_string(key).unwrap();
    replace(&setup.files.path("server.key"), &key, 0o600);
    wait_for_count(&daemon, "the old certificates stay in force", 4).await;
    assert!(is_let_in(&setup, &daemon, &setup.caller).await);
}

/// Reloads and gives the outcome: true if it took effect.
async fn reload(daemon: &Daemon) -> bool {
    let count = |text: &str| daemon.log().matches(text).count();
    let before = (count("configuration reloaded"), count("reload refused"));
    daemon.reload();
    let begun = Instant::now();
    loop {
        if count("configuration reloaded") > before.0 {
            return true;
        }
        if count("reload refused") > before.1 {
            return false;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_is_refused_as_a_whole_and_takes_effect_as_a_whole() {
    let mut setup = Setup::software();
    let daemon = setup.start();
    let old = setup.files.configuration.clone();
    let newcomer = setup.files.caller("newcomer", &[KEY], &["unwrap"]);
    let second = RsaKey::generate(2048);
    second.write_pem(&setup.files.path("keys").join("second.pem"));
    let version = Version::active(1, &second, "files", "second.pem");
    setup.files.key("second", &["RSA-OAEP"], vec![version]);
    let mut request = setup.request();
    request.key = "second".into();
    request.wrapped = wrap(&second).into();
    let grants = |files: &mut DaemonFiles, keys: &[&str]| {
        let keys = keys.iter().map(|key| toml::Value::from(*key)).collect::<Vec<_>>();
        let caller = &mut files.configuration["callers"][0]["grants"][0];
        caller.as_table_mut().unwrap().insert("keys".into(), keys.into());
    };
    grants(&mut setup.files, &[KEY, "second"]);
    let new = setup.files.configuration.clone();

    // One mistake, and nothing of it counts.
    setup.files.set("server.drain_timeout", "soon");
    setup.files.write();
    assert!(!reload(&daemon).await);
    assert!(daemon.log().contains("server.drain_timeout"), "{}", daemon.log());
    let refused = daemon.metric("claviger_config_reloads_total", &["outcome=\"refused\""]);
    assert!((refused - 1.0).abs() < 0.1, "{refused}");
    let kept = setup.connect(&daemon).await;
    assert_eq!(setup.ask_over(&kept).await, Code::Ok);
    assert_eq!(kept.unwrap(&request).await.unwrap_err().code(), Code::PermissionDenied);
    let stranger = setup.connect_as(&daemon, &newcomer).await;
    assert_eq!(setup.ask_over(&stranger).await, Code::Unauthenticated);

    // Without the mistake all of it does, on open connections too.
    setup.files.configuration = new;
    setup.files.write();
    assert!(reload(&daemon).await);
    kept.unwrap(&request).await.unwrap();
    assert_eq!(setup.ask_over(&stranger).await, Code::Ok);

    // And back: what is gone is refused.
    setup.files.configuration = old;
    setup.files.write();
    assert!(reload(&daemon).await);
    assert_eq!(kept.unwrap(&request).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(setup.ask_over(&stranger).await, Code::Unauthenticated);
    assert_eq!(setup.ask_over(&kept).await, Code::Ok);
    let events: Vec<_> = setup
        .files
        .audit_records()
        .iter()
        .filter_map(|record| record["event"].as_str().map(str::to_owned))
        .filter(|event| event.starts_with("reload"))
        .collect();
    assert_eq!(events.len(), 3, "{events:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_needs_a_restart_is_refused_in_words() {
    let mut setup = Setup::software();
    let daemon = setup.start();
    let old = setup.files.configuration.clone();
    let elsewhere = setup.files.path("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let elsewhere = elsewhere.to_str().unwrap().to_owned();
    for (option, value) in [
        ("server.listen", toml::Value::from(vec!["127.0.0.1:1"])),
        ("server.state_dir", elsewhere.clone().into()),
        ("audit.file", format!("{elsewhere}/audit.jsonl").into()),
        ("operations.listen", "127.0.0.1:1".into()),
        ("log.format", "json".into()),
    ] {
        setup.files.configuration = old.clone();
        setup.files.set(option, value);
        setup.files.write();
        assert!(!reload(&daemon).await, "{option}");
        let table = option.split('.').next().unwrap();
        let log = daemon.log();
        let line = log.lines().rev().find(|line| line.contains("reload refused")).unwrap();
        assert!(line.contains("needs a restart") && line.contains(table), "{option}: {line}");
        assert_eq!(setup.ask(&daemon).await, Code::Ok);
    }
    setup.files.configuration = old;
    setup.files.write();
    assert!(reload(&daemon).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_a_reload_removes_drain_and_those_that_stay_keep_their_login() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    let second = RsaKey::generate(2048);
    token.import(&second, "second", "02");
    let version = Version::active(1, &second, "hsm-a", "pkcs11:object=second");
    let with_first = setup.files.configuration.clone();
    setup.files.key("second", &["RSA-OAEP"], vec![version]);
    let caller = setup.files.caller("of-second", &["second"], &["unwrap"]);
    let daemon = setup.start();
    let of_second = setup.connect_as(&daemon, &caller).await;
    let mut request = setup.request();
    request.key = "second".into();
    request.wrapped = wrap(&second).into();
    of_second.unwrap(&request).await.unwrap();

    let before = faults.count("C_Decrypt");
    faults.on_next(1, "C_Decrypt", "sleep=1500");
    let in_flight = tokio::spawn({
        let (connection, request) = (of_second.clone(), request.clone());
        async move { connection.unwrap(&request).await }
    });
    while faults.count("C_Decrypt") == before {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    setup.files.configuration = with_first;
    setup.files.write();
    let begun = Instant::now();
    assert!(reload(&daemon).await);
    assert!(begun.elapsed() < Duration::from_millis(1300), "a reload waits for no call");
    assert_eq!(of_second.unwrap(&request).await.unwrap_err().code(), Code::Unauthenticated);
    in_flight.await.unwrap().unwrap();
    assert_eq!(setup.ask(&daemon).await, Code::Ok);
    assert_eq!((faults.count("C_Login"), faults.count("C_Finalize")), (1, 0));
    assert_eq!(daemon.terminate().code, Some(0));
    assert_eq!(faults.count("C_Finalize"), 1, "a stop leaves the module");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_whose_last_key_a_reload_removes_is_left() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    let daemon = setup.start();
    assert_eq!(setup.ask(&daemon).await, Code::Ok);
    // The same key name, now from a file.
    let folder = setup.files.path("keys");
    std::fs::create_dir(&folder).unwrap();
    setup.key.write_pem(&folder.join("user-keys.pem"));
    let mut files = toml::Table::new();
    files.insert("type".into(), "software".into());
    files.insert("directory".into(), folder.to_str().unwrap().into());
    setup.files.provider("files", files);
    let version = Version::active(1, &setup.key, "files", "user-keys.pem");
    setup.files.key(KEY, &["RSA-OAEP"], vec![version]);
    setup.files.configuration["providers"].as_table_mut().unwrap().remove("hsm-a");
    setup.files.write();
    let load = Load::start(&setup.client_config(&daemon), &setup.wrapped, 4, 0);
    load.more(20).await;
    assert!(reload(&daemon).await, "{}", daemon.log());
    load.more(20).await;
    let tally = load.stop().await;
    assert!(tally.failed.is_empty(), "{:?}", tally.failed);
    let begun = Instant::now();
    while faults.count("C_Finalize") == 0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "the module was never left");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(setup.ask(&daemon).await, Code::Ok);
}

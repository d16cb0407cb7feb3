//! Certificates, client CAs, revocation and the configuration itself change under a running daemon.

use std::time::{Duration, Instant};

use e2e::daemon::claviger;
use e2e::pki::{Pki, replace};
use e2e::process::command;
use e2e::scene::{KEY, client_file, wrap};
use e2e::{Connection, Daemon, Load, RsaKey, Scene, Site, Token, Version};
use tonic::Code;

const HOUR: time::Duration = time::Duration::HOUR;
const IN_FORCE: &str = "TLS certificates in force";

fn with_crl(scene: &mut Scene) {
    let path = scene.site.path("clients.crl");
    replace(&path, &scene.site.pki.crl_pem(HOUR), 0o644);
    scene.site.set("server.tls.crl", vec![toml::Value::from(path.to_str().unwrap())]);
}

fn write_crl(site: &Site, next_update: time::Duration) {
    replace(&site.path("clients.crl"), &site.pki.crl_pem(next_update), 0o644);
}

fn with_denied(scene: &mut Scene) {
    let path = scene.site.path("denied");
    replace(&path, "# nobody\n", 0o600);
    scene.site.set("server.denied_callers", path.to_str().unwrap());
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
async fn is_let_in(scene: &Scene, daemon: &Daemon, identity: &e2e::Identity) -> bool {
    let ca = scene.site.pki.ca_der();
    let Ok(connection) = Connection::open(daemon.address(), ca, Some(identity)).await else {
        return false;
    };
    let call = e2e::connection::frame(&prost::Message::encode_to_vec(&scene.request()));
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
    let mut scene = Scene::software();
    with_crl(&mut scene);
    let daemon = scene.start();
    let folder = scene.site.path(".");
    let before = daemon.log().matches(IN_FORCE).count();
    let load = Load::start(&scene.client_config(&daemon), &scene.wrapped, 6, 2);
    let kept = scene.connect(&daemon).await;
    let others: Vec<Pki> = (0..20).map(|_| Pki::new()).collect();
    for (number, other) in others.iter().enumerate() {
        match number % 3 {
            0 => drop(scene.site.pki.server().write(&folder, "server")),
            1 => {
                // Another CA joins the one whose certificates are in use; with its own CRL, which
                // has to be there first.
                let crls = scene.site.pki.crl_pem(HOUR) + &other.crl_pem(HOUR);
                replace(&scene.site.path("clients.crl"), &crls, 0o644);
                let cas = scene.site.pki.ca_pem() + &other.ca_pem();
                replace(&scene.site.path("clients.pem"), &cas, 0o644);
            }
            _ => {
                let of_before = &others[number - 1];
                let crls = scene.site.pki.crl_pem(HOUR) + &of_before.crl_pem(HOUR);
                replace(&scene.site.path("clients.crl"), &crls, 0o644);
            }
        }
        load.more(20).await;
        wait_for_count(&daemon, IN_FORCE, before + number + 1).await;
        load.more(20).await;
    }
    assert_eq!(scene.ask_over(&kept).await, Code::Ok, "the first connection still serves");
    let tally = load.stop().await;
    assert!(tally.failed.is_empty(), "{} failed: {:?}", tally.failed.len(), tally.failed);
    assert!(tally.right.len() >= 800);
    // The CA that joined last is in force: 19 % 3 == 1.
    let newcomer = others[19].client("spiffe://example.org/key-connector");
    assert!(is_let_in(&scene, &daemon, &newcomer).await, "{}", daemon.log());
    println!("{} calls, 0 failed", tally.right.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_asked_to_go_loses_no_call() {
    let mut scene = Scene::software();
    scene.site.set("server.max_connection_age", "1s");
    let daemon = scene.start();
    let idle = scene.connect(&daemon).await;
    let load = Load::start(&scene.client_config(&daemon), &scene.wrapped, 16, 0);
    let shared = Load::sharing(&scene.client_config(&daemon), &scene.wrapped, 16);
    assert!(cut(&idle, &daemon).await > Duration::from_millis(800));
    tokio::time::sleep(Duration::from_secs(7)).await;
    for load in [load, shared] {
        let tally = load.stop().await;
        assert!(tally.failed.is_empty(), "{} failed: {:?}", tally.failed.len(), tally.failed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_revoked_or_denied_is_cut_within_five_seconds_and_nobody_else() {
    let mut scene = Scene::software();
    with_crl(&mut scene);
    with_denied(&mut scene);
    let names = ["revoked", "denied-by-san", "denied-by-hash", "stays"];
    let callers = names.map(|name| scene.site.caller(name, &[KEY], &["unwrap"]));
    let daemon = scene.start();
    let connections = [
        scene.connect_as(&daemon, &callers[0]).await,
        scene.connect_as(&daemon, &callers[1]).await,
        scene.connect_as(&daemon, &callers[2]).await,
        scene.connect_as(&daemon, &callers[3]).await,
    ];
    for connection in &connections {
        assert_eq!(scene.ask_over(connection).await, Code::Ok);
    }
    let [revoked, by_san, by_hash, stays] = &connections;

    scene.site.pki.revoke(&callers[0]);
    write_crl(&scene.site, HOUR);
    let took = cut(revoked, &daemon).await;
    assert!(!by_san.is_closed() && !by_hash.is_closed() && !stays.is_closed());
    println!("revoked: cut after {took:?}");

    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &callers[2].certificate());
    let list = format!("spiffe://example.org/denied-by-san\n{}\n", hex::encode(hash));
    replace(&scene.site.path("denied"), &list, 0o600);
    let took = cut(by_san, &daemon).await.max(cut(by_hash, &daemon).await);
    println!("denied: cut after {took:?}");

    for gone in &callers[..3] {
        assert!(!is_let_in(&scene, &daemon, gone).await, "{}", daemon.log());
    }
    assert_eq!(scene.ask_over(stays).await, Code::Ok);
    assert!(is_let_in(&scene, &daemon, &callers[3]).await);

    // A list that cannot be used leaves the last one in force; a new one lets in again.
    replace(&scene.site.path("denied"), "", 0o600);
    daemon.wait_for_log("the last list stays in force");
    assert!(!is_let_in(&scene, &daemon, &callers[1]).await);
    replace(&scene.site.path("denied"), "# nobody\n", 0o600);
    let begun = Instant::now();
    while !is_let_in(&scene, &daemon, &callers[1]).await {
        assert!(begun.elapsed() < Duration::from_secs(5), "{}", daemon.log());
    }
    assert!(!is_let_in(&scene, &daemon, &callers[0]).await, "revoked is revoked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_can_be_denied_while_a_reload_is_refused() {
    let mut scene = Scene::software();
    with_denied(&mut scene);
    let daemon = scene.start();
    let connection = scene.connect(&daemon).await;
    replace(&scene.site.configuration_file(), "nonsense", 0o644);
    daemon.reload();
    daemon.wait_for_log("reload refused");
    assert_eq!(scene.ask_over(&connection).await, Code::Ok);
    replace(&scene.site.path("denied"), "spiffe://example.org/key-connector\n", 0o600);
    cut(&connection, &daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denied_caller_is_told_that_it_is_refused_and_not_to_try_again() {
    let mut scene = Scene::software();
    with_denied(&mut scene);
    let daemon = scene.start();
    let kept = scene.connect(&daemon).await;
    replace(&scene.site.path("denied"), "spiffe://example.org/key-connector\n", 0o600);
    cut(&kept, &daemon).await;
    let client = scene.connect(&daemon).await;
    assert_eq!(scene.ask_over(&client).await, Code::Unauthenticated);

    let output = command(claviger())
        .args(["keys", "list", "--client"])
        .arg(client_file(&scene.site, &daemon, &scene.caller))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(77), "{said}");
    assert!(said.contains("no configured caller matches this peer"), "{said}");
    assert!(!said.contains("try again") && !said.contains("https://"), "{said}");
    // Refusals are not waited for: the end of the daemon is.
    assert_eq!(daemon.terminate().code, Some(0));
    let audit = std::fs::read_to_string(scene.site.audit_file()).unwrap();
    assert_eq!(
        audit.matches("\"reason\":\"denied_caller\"").count(),
        2,
        "one refusal for each call, and no more:\n{audit}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_crl_alarms_at_once_and_closes_the_door_after_its_grace() {
    let mut scene = Scene::software();
    with_crl(&mut scene);
    scene.site.set("server.tls.crl_grace", "72h");
    write_crl(&scene.site, -HOUR);
    let daemon = scene.start();
    assert!(daemon.log().contains("past its nextUpdate"), "{}", daemon.log());
    assert!(is_let_in(&scene, &daemon, &scene.caller).await, "within the grace");
    let kept = scene.connect(&daemon).await;
    assert_eq!(scene.ask_over(&kept).await, Code::Ok);

    scene.site.set("server.tls.crl_grace", "30m");
    scene.site.write();
    daemon.reload();
    daemon.wait_for_log("configuration reloaded");
    assert!(!is_let_in(&scene, &daemon, &scene.caller).await, "{}", daemon.log());
    cut(&kept, &daemon).await;

    write_crl(&scene.site, HOUR);
    let begun = Instant::now();
    while !is_let_in(&scene, &daemon, &scene.caller).await {
        assert!(begun.elapsed() < Duration::from_secs(5), "{}", daemon.log());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_make_no_sense_leave_the_old_certificates_in_force() {
    let mut scene = Scene::software();
    with_crl(&mut scene);
    let daemon = scene.start();
    let good = std::fs::read_to_string(scene.site.path("server.crt")).unwrap();
    for (count, (file, text)) in [
        ("server.crt", "nonsense"),
        ("clients.pem", ""),
        ("clients.crl", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"),
    ]
    .into_iter()
    .enumerate()
    {
        let before = std::fs::read_to_string(scene.site.path(file)).unwrap();
        replace(&scene.site.path(file), text, 0o644);
        wait_for_count(&daemon, "the old certificates stay in force", count + 1).await;
        assert!(is_let_in(&scene, &daemon, &scene.caller).await, "{file}");
        replace(&scene.site.path(file), &before, 0o644);
        wait_for_count(&daemon, IN_FORCE, count + 1).await;
    }
    // A key that is not the certificate's, too.
    replace(&scene.site.path("server.crt"), &good, 0o644);
    let other = scene.site.pki.server();
    let elsewhere = tempfile::tempdir().unwrap();
    let (_, key) = other.write(elsewhere.path(), "other");
    let key = std::fs::read_to_string(key).unwrap();
    replace(&scene.site.path("server.key"), &key, 0o600);
    wait_for_count(&daemon, "the old certificates stay in force", 4).await;
    assert!(is_let_in(&scene, &daemon, &scene.caller).await);
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
    let mut scene = Scene::software();
    let daemon = scene.start();
    let old = scene.site.configuration.clone();
    let newcomer = scene.site.caller("newcomer", &[KEY], &["unwrap"]);
    let second = RsaKey::generate(2048);
    second.write_pem(&scene.site.path("keys").join("second.pem"));
    let version = Version::active(1, &second, "files", "second.pem");
    scene.site.key("second", &["RSA-OAEP"], vec![version]);
    let mut request = scene.request();
    request.key = "second".into();
    request.wrapped = wrap(&second).into();
    let grants = |site: &mut Site, keys: &[&str]| {
        let keys = keys.iter().map(|key| toml::Value::from(*key)).collect::<Vec<_>>();
        let caller = &mut site.configuration["callers"][0]["grants"][0];
        caller.as_table_mut().unwrap().insert("keys".into(), keys.into());
    };
    grants(&mut scene.site, &[KEY, "second"]);
    let new = scene.site.configuration.clone();

    // One mistake, and nothing of it counts.
    scene.site.set("server.drain_timeout", "soon");
    scene.site.write();
    assert!(!reload(&daemon).await);
    assert!(daemon.log().contains("server.drain_timeout"), "{}", daemon.log());
    let refused = daemon.metric("claviger_config_reloads_total", &["outcome=\"refused\""]);
    assert!((refused - 1.0).abs() < 0.1, "{refused}");
    let kept = scene.connect(&daemon).await;
    assert_eq!(scene.ask_over(&kept).await, Code::Ok);
    assert_eq!(kept.unwrap(&request).await.unwrap_err().code(), Code::PermissionDenied);
    let stranger = scene.connect_as(&daemon, &newcomer).await;
    assert_eq!(scene.ask_over(&stranger).await, Code::Unauthenticated);

    // Without the mistake all of it does, on open connections too.
    scene.site.configuration = new;
    scene.site.write();
    assert!(reload(&daemon).await);
    kept.unwrap(&request).await.unwrap();
    assert_eq!(scene.ask_over(&stranger).await, Code::Ok);

    // And back: what is gone is refused.
    scene.site.configuration = old;
    scene.site.write();
    assert!(reload(&daemon).await);
    assert_eq!(kept.unwrap(&request).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(scene.ask_over(&stranger).await, Code::Unauthenticated);
    assert_eq!(scene.ask_over(&kept).await, Code::Ok);
    let events: Vec<_> = scene
        .site
        .audit_records()
        .iter()
        .filter_map(|record| record["event"].as_str().map(str::to_owned))
        .filter(|event| event.starts_with("reload"))
        .collect();
    assert_eq!(events.len(), 3, "{events:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_needs_a_restart_is_refused_in_words() {
    let mut scene = Scene::software();
    let daemon = scene.start();
    let old = scene.site.configuration.clone();
    let elsewhere = scene.site.path("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let elsewhere = elsewhere.to_str().unwrap().to_owned();
    for (option, value) in [
        ("server.listen", toml::Value::from(vec!["127.0.0.1:1"])),
        ("server.state_dir", elsewhere.clone().into()),
        ("audit.file", format!("{elsewhere}/audit.jsonl").into()),
        ("operations.listen", "127.0.0.1:1".into()),
        ("log.format", "json".into()),
    ] {
        scene.site.configuration = old.clone();
        scene.site.set(option, value);
        scene.site.write();
        assert!(!reload(&daemon).await, "{option}");
        let table = option.split('.').next().unwrap();
        let log = daemon.log();
        let line = log.lines().rev().find(|line| line.contains("reload refused")).unwrap();
        assert!(line.contains("needs a restart") && line.contains(table), "{option}: {line}");
        assert_eq!(scene.ask(&daemon).await, Code::Ok);
    }
    scene.site.configuration = old;
    scene.site.write();
    assert!(reload(&daemon).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_a_reload_removes_drain_and_those_that_stay_keep_their_login() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut scene = Scene::on(&token);
    let second = RsaKey::generate(2048);
    token.import(&second, "second", "02");
    let version = Version::active(1, &second, "hsm-a", "pkcs11:object=second");
    let with_first = scene.site.configuration.clone();
    scene.site.key("second", &["RSA-OAEP"], vec![version]);
    let caller = scene.site.caller("of-second", &["second"], &["unwrap"]);
    let daemon = scene.start();
    let of_second = scene.connect_as(&daemon, &caller).await;
    let mut request = scene.request();
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
    scene.site.configuration = with_first;
    scene.site.write();
    let begun = Instant::now();
    assert!(reload(&daemon).await);
    assert!(begun.elapsed() < Duration::from_millis(1300), "a reload waits for no call");
    assert_eq!(of_second.unwrap(&request).await.unwrap_err().code(), Code::Unauthenticated);
    in_flight.await.unwrap().unwrap();
    assert_eq!(scene.ask(&daemon).await, Code::Ok);
    assert_eq!((faults.count("C_Login"), faults.count("C_Finalize")), (1, 0));
    assert_eq!(daemon.terminate().code, Some(0));
    assert_eq!(faults.count("C_Finalize"), 1, "a stop leaves the module");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_whose_last_key_a_reload_removes_is_left() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut scene = Scene::on(&token);
    let daemon = scene.start();
    assert_eq!(scene.ask(&daemon).await, Code::Ok);
    // The same key name, now from a file.
    let folder = scene.site.path("keys");
    std::fs::create_dir(&folder).unwrap();
    scene.key.write_pem(&folder.join("user-keys.pem"));
    let mut files = toml::Table::new();
    files.insert("type".into(), "software".into());
    files.insert("directory".into(), folder.to_str().unwrap().into());
    scene.site.provider("files", files);
    let version = Version::active(1, &scene.key, "files", "user-keys.pem");
    scene.site.key(KEY, &["RSA-OAEP"], vec![version]);
    scene.site.configuration["providers"].as_table_mut().unwrap().remove("hsm-a");
    scene.site.write();
    let load = Load::start(&scene.client_config(&daemon), &scene.wrapped, 4, 0);
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
    assert_eq!(scene.ask(&daemon).await, Code::Ok);
}

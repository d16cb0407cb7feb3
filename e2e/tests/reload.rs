//! What a reload refuses because it would take down a key that serves, and what it does not.

use std::time::{Duration, Instant};

use e2e::daemon::claviger;
use e2e::process::command;
use e2e::setup::{KEY, Setup, wrap};
use e2e::{Connection, Daemon, DaemonFiles, RsaKey, Token, Version};
use tonic::Code;

/// SIGHUP with the configuration as it is now; the daemon's words where it was refused.
async fn reload(files: &DaemonFiles, daemon: &Daemon) -> Result<(), String> {
    let refusals = |log: &str| log.matches("reload refused").count();
    let reloads = |log: &str| log.matches("configuration reloaded").count();
    let before = daemon.log();
    files.write();
    daemon.reload();
    let begun = Instant::now();
    loop {
        let log = daemon.log();
        if reloads(&log) > reloads(&before) {
            return Ok(());
        }
        if refusals(&log) > refusals(&before) {
            return Err(log.lines().rfind(|line| line.contains("reload refused")).unwrap().into());
        }
        assert!(begun.elapsed() < Duration::from_mins(1), "{log}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The setup's key in a file, and one more file with another key.
async fn setup() -> (Setup, Daemon, Connection) {
    let mut setup = Setup::software();
    RsaKey::generate(2048).write_pem(&setup.files.path("keys/another.pem"));
    let daemon = setup.start();
    let connection = setup.connect(&daemon).await;
    assert_eq!(setup.ask_over(&connection).await, Code::Ok);
    (setup, daemon, connection)
}

fn in_files(setup: &Setup, locator: &str) -> Version {
    Version::active(1, &setup.key, "files", locator)
}

fn configure(setup: &mut Setup, versions: Vec<Version>) {
    setup.files.key(KEY, &["RSA-OAEP"], versions);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locator_that_leads_elsewhere_refuses_the_reload_and_the_key_serves_on() {
    let (mut setup, daemon, connection) = setup().await;
    let good = setup.files.configuration.clone();
    for (locator, reason) in [("another.pem", "another key lies here"), ("nothing.pem", "")] {
        let version = in_files(&setup, locator);
        configure(&mut setup, vec![version]);
        let refused = reload(&setup.files, &daemon).await.unwrap_err();
        for said in ["keys.user-keys", "version 1", "files", locator, reason] {
            assert!(refused.contains(said), "{said}: {refused}");
        }
        assert_eq!(setup.ask_over(&connection).await, Code::Ok, "{locator}");
        assert!(daemon.metric("claviger_config_last_reload_successful", &[]) < 1.0);
    }
    setup.files.configuration = good;
    reload(&setup.files, &daemon).await.unwrap();
    assert_eq!(setup.ask_over(&connection).await, Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_pin_of_the_key_in_the_same_place_refuses_the_reload() {
    let (mut setup, daemon, connection) = setup().await;
    let another = RsaKey::generate(2048);
    configure(&mut setup, vec![Version::active(1, &another, "files", "user-keys.pem")]);
    let refused = reload(&setup.files, &daemon).await.unwrap_err();
    assert!(refused.contains("another key lies here"), "{refused}");
    // Under another name and number it is the same mistake: the place served.
    setup.files.configuration["keys"].as_table_mut().unwrap().remove(KEY);
    let version = Version::active(7, &another, "files", "user-keys.pem");
    setup.files.key("renamed", &["RSA-OAEP"], vec![version]);
    setup.files.configuration["callers"][0]["grants"][0]["keys"] = vec!["renamed"].into();
    let refused = reload(&setup.files, &daemon).await.unwrap_err();
    assert!(refused.contains("keys.renamed: version 7"), "{refused}");
    assert_eq!(setup.ask_over(&connection).await, Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_option_of_a_provider_refuses_the_reload() {
    let (mut setup, daemon, connection) = setup().await;
    let empty = setup.files.path("empty");
    std::fs::create_dir(&empty).unwrap();
    setup.files.set("providers.files.directory", empty.to_str().unwrap());
    let refused = reload(&setup.files, &daemon).await.unwrap_err();
    assert!(refused.contains("user-keys.pem"), "{refused}");
    assert_eq!(setup.ask_over(&connection).await, Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_replica_beside_one_that_serves_refuses_nothing() {
    let (mut setup, daemon, connection) = setup().await;
    let version = in_files(&setup, "nothing.pem").replica("files", "user-keys.pem");
    configure(&mut setup, vec![version]);
    reload(&setup.files, &daemon).await.unwrap();
    assert_eq!(setup.ask_over(&connection).await, Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_new_disabled_or_removed_on_purpose_refuses_nothing() {
    let (mut setup, daemon, connection) = setup().await;
    let next = RsaKey::generate(2048);
    next.write_pem(&setup.files.path("keys/next.pem"));
    let second = || Version::active(2, &next, "files", "next.pem");
    // A version that never served may be wrong.
    let (third, first) = (RsaKey::generate(2048), in_files(&setup, "user-keys.pem"));
    let third = Version::active(3, &third, "files", "nothing.pem").with("state", "unwrap-only");
    configure(&mut setup, vec![third, second(), first]);
    reload(&setup.files, &daemon).await.unwrap();
    // The locator of a disabled version is not looked up.
    let disabled = in_files(&setup, "gone.pem").with("state", "disabled");
    configure(&mut setup, vec![second(), disabled]);
    reload(&setup.files, &daemon).await.unwrap();
    configure(&mut setup, vec![second()]);
    reload(&setup.files, &daemon).await.unwrap();
    let request = claviger_proto::v1::UnwrapRequest {
        key: KEY.into(),
        wrapped: wrap(&next).into(),
        ..Default::default()
    };
    assert_eq!(connection.unwrap(&request).await.unwrap().key_version, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_cannot_be_reached_refuses_nothing() {
    let token = Token::softhsm();
    let mut setup = Setup::software();
    token.import(&setup.key, KEY, "01");
    setup.files.token("hsm-a", &token);
    token.take_away();
    let daemon = setup.start();
    let connection = setup.connect(&daemon).await;
    assert_eq!(setup.ask_over(&connection).await, Code::Ok);
    let version = Version::active(1, &setup.key, "hsm-a", "pkcs11:object=user-keys");
    configure(&mut setup, vec![version]);
    reload(&setup.files, &daemon).await.unwrap();
    assert_eq!(setup.ask_over(&connection).await, Code::Unavailable);
    token.bring_back();
    setup.wait_for(&daemon, Code::Ok).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_filter_of_the_log_follows_a_reload_in_the_daemon_and_in_the_process_of_a_module() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    let daemon = setup.start();
    let connection = setup.connect(&daemon).await;
    let request = setup.request();
    // What each of them says at `debug`: of a connection that leaves, and of a canary that failed.
    let said_when_provoked = || async {
        let said = || {
            let log = daemon.log();
            let debug = log.lines().filter(|line| line.contains(" DEBUG "));
            let debug: Vec<_> = debug.collect();
            let of = |text| debug.iter().filter(|line| line.contains(text)).count();
            [of("no handshake"), of("the canary failed")]
        };
        let before = said();
        for _ in 0..5 {
            drop(std::net::TcpStream::connect(daemon.address()).unwrap());
            faults.on_next(2, "C_Decrypt", "rv=0x30");
            let _ = connection.unwrap(&request).await;
            faults.clear();
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        let after = said();
        [after[0] > before[0], after[1] > before[1]]
    };
    for (filter, is_said) in [("info", false), ("debug", true), ("info", false)] {
        setup.files.set("log.filter", filter);
        reload(&setup.files, &daemon).await.unwrap();
        let begun = Instant::now();
        // The process is told a moment later.
        while said_when_provoked().await != [is_said; 2] {
            assert!(begun.elapsed() < Duration::from_secs(30), "{filter}: {}", daemon.log());
        }
    }
}

/// `claviger config diff` against the running daemon: its exit code and what it printed.
fn diff(files: &DaemonFiles) -> (i32, String) {
    let mut diff = command(claviger());
    diff.args(["config", "diff", "--config"]).arg(files.configuration_file());
    let said = diff.output().unwrap();
    let text = [said.stdout, said.stderr].concat();
    (said.status.code().unwrap(), String::from_utf8(text).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn config_diff_says_what_a_reload_would_change_until_it_has() {
    let (mut setup, daemon, _) = setup().await;
    assert_eq!(diff(&setup.files), (0, "nothing would change\n".to_owned()));
    let version = in_files(&setup, "another.pem");
    configure(&mut setup, vec![version]);
    setup.files.set("server.drain_timeout", "7s");
    setup.files.write();
    let (exit, said) = diff(&setup.files);
    assert_eq!(exit, 1, "{said}");
    for line in [
        "  [server] changed",
        "  key user-keys changed",
        "  + server.drain_timeout = \"7s\"",
        "  ~ keys.user-keys.versions[1].replicas[#1].locator = \"user-keys.pem\" -> \"another.pem\"",
    ] {
        assert!(said.lines().any(|told| told == line), "{line:?} in:\n{said}");
    }
    // A reload looks further: another key lies there.
    reload(&setup.files, &daemon).await.unwrap_err();
    assert_eq!(diff(&setup.files).0, 1, "what was refused is not in force");
    let version = in_files(&setup, "user-keys.pem");
    configure(&mut setup, vec![version]);
    reload(&setup.files, &daemon).await.unwrap();
    assert_eq!(diff(&setup.files).0, 0);

    setup.files.set("server.max_connections", 100);
    setup.files.write();
    let (exit, said) = diff(&setup.files);
    assert_eq!(exit, 78, "{said}");
    assert!(said.contains("these need a restart: server.max_connections"), "{said}");
    std::fs::write(setup.files.configuration_file(), "[server]\n").unwrap();
    let mut diff_by_folder = command(claviger());
    diff_by_folder.args(["config", "diff", "--config"]).arg(setup.files.configuration_file());
    let said = diff_by_folder.arg("--state-dir").arg(setup.files.path("state")).output().unwrap();
    assert_eq!(said.status.code(), Some(78), "a file that is wrong: {said:?}");
}

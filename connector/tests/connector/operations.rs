//! What an operator sees: health, metrics, starts without a daemon, rows that are wrong, stops.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use e2e::Daemon;

use crate::databases::sqlite3;
use crate::request::send;
use crate::services::{Services, Stored, new_key, new_user};

pub(crate) fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[test]
fn health_says_what_users_get_and_the_daemon_that_is_away() {
    let mut services = Services::software();
    let stored = Stored::shared(services.sqlite("health.db"));
    let connector = services.start(&stored);
    let (user, key) = (new_user(), new_key());
    assert_eq!(services.write(&connector, "POST", &user, &key).status, 200);
    drop(services.daemon.take());
    let begun = Instant::now();
    loop {
        let reply = send(connector.operations, "GET", "/health", &[], None);
        if (reply.status, reply.body.as_str()) == (200, "Degraded") {
            break;
        }
        assert!(begun.elapsed() < Duration::from_mins(1), "{reply:?}");
        thread::sleep(Duration::from_millis(100));
    }
    // The symmetric key is open: users do not notice.
    assert_eq!(services.get(&connector, &user).key(), key);
    let metrics = send(connector.operations, "GET", "/metrics", &[], None).body;
    for expected in [
        "claviger_connector_symmetric_key_open 1",
        "claviger_connector_requests_total{route=\"user-keys\",method=\"POST\",status=\"200\"} 1",
    ] {
        assert!(metrics.contains(expected), "{expected}\n{metrics}");
    }
    assert_eq!(send(connector.address, "GET", "/metrics", &[], None).status, 404, "operators only");
    assert_eq!(connector.stop(), Some(0));

    // Another start without the daemon: no user gets a key, /health says so, and it heals by itself.
    let connector = services.spawn(&stored);
    connector.wait_for(503);
    services.daemon = Some(Daemon::start(&mut services.setup.files));
    connector.wait_until_healthy();
    assert_eq!(services.get(&connector, &user).key(), key);
}

#[test]
fn a_daemon_that_is_killed_and_started_again_fails_no_read_in_per_user_mode() {
    let mut services = Services::softhsm();
    let connector = services.start(&Stored::per_user(services.sqlite("restarts.db")));
    let users: Vec<_> = (0..4).map(|_| (new_user(), new_key())).collect();
    for (user, key) in &users {
        assert_eq!(services.write(&connector, "POST", user, key).status, 200);
    }
    let mut daemon = services.daemon.take();
    let (done, services) = (AtomicBool::new(false), &services);
    let read = |(user, key): &(String, String)| {
        let mut reads = 0;
        while !done.load(Relaxed) {
            let reply = services.get(&connector, user);
            assert_eq!(reply.status, 200, "{}", connector.log());
            assert_eq!(reply.key(), *key);
            reads += 1;
        }
        reads
    };
    let reads: usize = thread::scope(|scope| {
        let readers: Vec<_> = users.iter().map(|user| scope.spawn(|| read(user))).collect();
        for _ in 0..2 {
            thread::sleep(Duration::from_millis(300));
            drop(daemon.take());
            let mut again = Daemon::spawn(&services.setup.files);
            assert!(again.wait_until_ready().is_ok(), "{}", again.log());
            daemon = Some(again);
        }
        thread::sleep(Duration::from_millis(300));
        done.store(true, Relaxed);
        readers.into_iter().map(|reader| reader.join().unwrap()).sum()
    });
    assert!(reads >= 8, "each user reads before and after: {reads}");
}

#[test]
fn a_symmetric_key_that_is_put_right_is_taken_without_a_restart() {
    let services = Services::software();
    let stored = Stored::shared(services.sqlite("wrong.db"));
    let connector = services.start(&stored);
    let (user, key) = (new_user(), new_key());
    assert_eq!(services.write(&connector, "POST", &user, &key).status, 200);
    assert_eq!(connector.stop(), Some(0));
    let database = services.path("wrong.db");
    let right = sqlite3(&database, "SELECT SymmetricKey FROM ApplicationDatas");
    let store = |value: &str| {
        sqlite3(&database, &format!("UPDATE ApplicationDatas SET SymmetricKey = '{value}'"))
    };
    store(&base64(&[7; 256]));
    let connector = services.spawn(&stored);
    connector.wait_for(503);
    store(&right);
    connector.wait_until_healthy();
    assert_eq!(services.get(&connector, &user).key(), key);
    assert!(connector.log().contains("the symmetric key does not open"), "{}", connector.log());
}

#[test]
fn a_user_whose_row_was_changed_gets_an_error_and_others_their_keys() {
    let services = Services::software();
    let stored = Stored::shared(services.sqlite("rows.db"));
    let connector = services.start(&stored);
    let users = [(new_user(), new_key()), (new_user(), new_key())];
    for (user, key) in &users {
        assert_eq!(services.write(&connector, "POST", user, key).status, 200);
    }
    let spoil =
        format!("UPDATE UserKeys SET Key = 'AAAA' WHERE Id = '{}'", users[0].0.to_uppercase());
    sqlite3(&services.path("rows.db"), &spoil);
    assert_eq!(services.get(&connector, &users[0].0).status, 500);
    assert_eq!(services.get(&connector, &users[1].0).key(), users[1].1);
    assert!(connector.log().contains("a user's stored key does not open"));
}

#[test]
fn an_operator_lists_shows_and_removes_users() {
    let services = Services::software();
    let stored = Stored::shared(services.sqlite("users.db"));
    let connector = services.start(&stored);
    let (user, key) = (new_user(), new_key());
    assert_eq!(services.write(&connector, "POST", &user, &key).status, 200);
    assert_eq!(services.write(&connector, "POST", &user, &key).status, 400, "stuck half-way");
    let said = |arguments: &[&str]| {
        let output = services.command(&stored, arguments);
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    for arguments in [vec!["users", "list"], vec!["users", "show", &user]] {
        let (code, text) = said(&arguments);
        assert_eq!(code, Some(0), "{text}");
        assert!(text.starts_with(&format!("{user}\tshared-key\t20")), "{text}");
    }
    let (code, text) = said(&["users", "remove", &user]);
    assert!(code == Some(2) && text.contains("--yes"), "{text}");
    assert_eq!(said(&["users", "remove", &user, "--yes"]).0, Some(0));
    assert_eq!(said(&["users", "show", &user]).0, Some(1));
    assert_eq!(services.get(&connector, &user).status, 404);
    assert_eq!(services.write(&connector, "POST", &user, &key).status, 200, "enrolled anew");
}

#[test]
fn a_stop_answers_what_is_in_flight_and_stores_the_times_of_access() {
    let services = Services::software();
    let stored = Stored::shared(services.sqlite("stop.db"));
    let connector = services.start(&stored);
    let (user, key) = (new_user(), new_key());
    assert_eq!(services.write(&connector, "POST", &user, &key).status, 200);
    // A connection that is open and says nothing does not keep it.
    let _idle = std::net::TcpStream::connect(connector.address).unwrap();
    assert_eq!(services.get(&connector, &user).key(), key);
    let begun = Instant::now();
    assert_eq!(connector.stop(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    let accessed = sqlite3(&services.path("stop.db"), "SELECT LastAccessDate FROM UserKeys");
    assert!(accessed.starts_with("20"), "{accessed:?}");
}

#[test]
fn https_serves_a_browser_and_plain_http_only_named_proxies() {
    let services = Services::software();
    let stored = Stored::shared(services.sqlite("https.db"));
    let (configuration, ..) = services.configuration(&stored);
    let text = std::fs::read_to_string(&configuration).unwrap();
    // A proxy elsewhere: what comes from here is closed without an answer.
    let other = text.replace("proxies = ['127.0.0.1']", "proxies = ['192.0.2.0/24']");
    let plain = services.spawn_file(&stored, &other);
    plain.wait_until_healthy();
    let mut stream = std::net::TcpStream::connect(plain.address).unwrap();
    let _ = stream.write_all(b"GET /alive HTTP/1.1\r\nhost: x\r\n\r\n");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty(), "{answer:?}");
    drop(plain);

    let identity = services.setup.files.pki.server();
    let (certificate, key) = identity.write(&services.path("."), "https");
    let tls = format!(
        "tls = {{ certificate = '{}', private_key = '{}' }}",
        certificate.display(),
        key.display()
    );
    let connector = services.spawn_file(&stored, &text.replace("proxies = ['127.0.0.1']", &tls));
    connector.wait_until_healthy();
    let ca = reqwest::Certificate::from_der(&services.setup.files.pki.ca_der()).unwrap();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let reply = runtime.block_on(async {
        let client = reqwest::Client::builder().tls_certs_only([ca]).build().unwrap();
        let url = format!("https://localhost:{}/alive", connector.address.port());
        client.get(url).send().await.unwrap()
    });
    assert_eq!((reply.status().as_u16(), reply.version()), (200, http::Version::HTTP_2));
}

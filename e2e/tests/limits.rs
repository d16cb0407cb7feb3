//! What one caller can take of the daemon: descriptors, connections, room for calls; and restarts that
//! no caller notices.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use claviger_client::Config;
use e2e::connection::{Connection, frame};
use e2e::module::BY_LABEL;
use e2e::setup::KEY;
use e2e::{Daemon, Load, Module, Setup, Token};
use tokio::net::TcpStream;
use tonic::Code;

/// Few descriptors, as a careless unit or container would have it.
const FEW: &str = r#"ulimit -n 256; exec "$0" "$@""#;
/// As systemd passes a socket: descriptor 3, which is what stdin is.
const PASSED: &str = r#"LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@" 3<&0 </dev/null"#;

fn start_by(setup: &Setup, script: &str, stdin: impl Into<Stdio>) -> Daemon {
    let mut daemon = Daemon::spawn_by(&setup.files, script, stdin.into());
    daemon.wait_until_ready().unwrap_or_else(|exit| panic!("{exit:?}"));
    daemon
}

fn copy(socket: &TcpListener) -> OwnedFd {
    socket.try_clone().unwrap().into()
}

async fn soon(what: &str, mut is_true: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_true() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_of_one_identity_lock_nobody_out_of_256_descriptors() {
    let mut setup = Setup::software();
    let denied = setup.files.file("denied", "# none\n", 0o600);
    setup.files.set("server.denied_callers", denied);
    let hog = setup.files.caller("hog", &[KEY], &["read"]);
    let daemon = start_by(&setup, FEW, Stdio::null());
    assert_eq!(daemon.count("process_max_fds", &[]), 256);
    assert!(daemon.log().contains("server.max_connections = 16384"), "{}", daemon.log());
    // Each of them stays as long as the daemon lets it.
    let mut held = Vec::new();
    for _ in 0..300 {
        held.extend(Connection::open(daemon.address(), setup.files.pki.ca_der(), Some(&hog)).await);
    }
    for _ in 0..10 {
        assert_eq!(setup.ask(&daemon).await, Code::Ok);
    }
    let open = daemon.count("process_open_fds", &[]);
    assert!((20..240).contains(&open), "{open}");
    assert_eq!(daemon.operations_get("/readyz").unwrap().0, 200);
    // The list that is meant for this very moment can be read.
    setup.files.file("denied", "spiffe://example.org/hog\n", 0o600);
    soon("denied", || daemon.count("claviger_connections_cut_total", &["reason=\"denied\""]) > 20)
        .await;
    assert_eq!(daemon.terminate().code, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bare_connections_lock_nobody_out_of_256_descriptors() {
    let setup = Setup::software();
    let daemon = start_by(&setup, FEW, Stdio::null());
    let address = daemon.address();
    let flood = tokio::spawn(async move {
        let mut held = VecDeque::new();
        loop {
            held.push_back(TcpStream::connect(address).await);
            if held.len() > 1000 {
                held.pop_front();
            }
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
    });
    soon("a flood", || daemon.count("claviger_connections_accepted_total", &[]) > 500).await;
    for _ in 0..20 {
        assert_eq!(setup.ask(&daemon).await, Code::Ok);
    }
    flood.abort();
    assert_eq!(daemon.count("claviger_accept_errors_total", &[]), 0);
    assert_eq!(daemon.terminate().code, Some(0));
}

#[test]
fn with_too_few_descriptors_for_any_connection_the_daemon_says_what_it_needs() {
    let setup = Setup::software();
    let exit =
        Daemon::spawn_by(&setup.files, r#"ulimit -n 64; exec "$0" "$@""#, Stdio::null()).wait();
    assert_ne!(exit.code, Some(0));
    assert!(
        exit.log.contains("64 file descriptors") && exit.log.contains("LimitNOFILE"),
        "{}",
        exit.log
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_fail_write_sixty_lines_a_minute_and_one_that_says_so() {
    let mut setup = Setup::software();
    std::fs::remove_file(setup.files.path("keys/user-keys.pem")).unwrap();
    let daemon = setup.start();
    let connection = setup.connect(&daemon).await;
    for _ in 0..200 {
        assert_eq!(setup.ask_over(&connection).await, Code::FailedPrecondition);
    }
    let log = daemon.log();
    let count = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    // A minute may end in between.
    assert!((60..=120).contains(&count("backend: ")), "{log}");
    assert!((1..=2).contains(&count("are left out for up to a minute")), "{log}");
    assert_eq!(daemon.terminate().code, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_takes_a_second_at_most_whatever_idle_clients_do() {
    let mut setup = Setup::software();
    let daemon = setup.start();
    let mut idle = Vec::new();
    for _ in 0..50 {
        let connection = setup.connect(&daemon).await;
        assert_eq!(setup.ask_over(&connection).await, Code::Ok);
        idle.push(connection);
    }
    // As a PKCS#11 module between two calls: connected, and it does not read.
    let deaf = setup.deaf(&daemon, 51).await;
    let begun = Instant::now();
    let exit = daemon.terminate();
    let took = begun.elapsed();
    assert_eq!(exit.code, Some(0), "{}", exit.log);
    assert!(took < Duration::from_secs(1), "{took:?}\n{}", exit.log);
    drop((idle, deaf));
}

/// Hosts of the PKCS#11 module that end when their stdin does.
fn hosts(module: &Module, action: &str, hosts: usize) -> Vec<Child> {
    let begin = |_| {
        let mut host = module.host(BY_LABEL, &[action]);
        host.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        host.spawn().expect("the host starts")
    };
    (0..hosts).map(begin).collect()
}

fn end(hosts: Vec<Child>, module: &Module) {
    for mut host in hosts {
        drop(host.stdin.take());
        let output = host.wait_with_output().expect("the host ends");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}\n{}", module.log());
    }
}

fn unwraps(daemon: &Daemon) -> usize {
    daemon.count("claviger_calls_total", &["operation=\"unwrap\""])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_takes_a_second_at_most_with_fifty_modules_and_fifty_clients_and_one_that_is_deaf() {
    let mut setup = Setup::software();
    let daemon = setup.start();
    let module = Module::new(&setup, &[&daemon]);
    let modules = hosts(&module, "idle", 50);
    let mut clients = Vec::new();
    for _ in 0..50 {
        let connection = setup.connect(&daemon).await;
        assert_eq!(setup.ask_over(&connection).await, Code::Ok);
        clients.push(connection);
    }
    let deaf = setup.deaf(&daemon, 1).await;
    soon("each module has read once", || unwraps(&daemon) == 100).await;
    let begun = Instant::now();
    let exit = daemon.terminate();
    let took = begun.elapsed();
    println!("a stop with 50 idle modules, 50 idle clients and one that reads nothing: {took:.1?}");
    assert_eq!(exit.code, Some(0), "{}", exit.log);
    assert!(took < Duration::from_secs(1), "{took:?}\n{}", exit.log);
    drop((clients, deaf));
    // Each module finds the next process of the daemon.
    let daemon = start_by(&setup, r#"exec "$0" "$@""#, Stdio::null());
    end(modules, &module);
    assert_eq!(unwraps(&daemon), 50);
}

#[test]
fn a_stop_with_calls_of_modules_in_flight_ends_each_right() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    let daemon = setup.start();
    let module = Module::new(&setup, &[&daemon]);
    faults.on_every("C_Decrypt", "sleep=200");
    let mut host = module.host(BY_LABEL, &["threads", "20", "1"]);
    let host = host.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while daemon.count("claviger_calls_in_flight", &[]) < 10 {
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(5));
    }
    let exit = daemon.terminate();
    assert_eq!(exit.code, Some(0), "{}", exit.log);
    faults.clear();
    // For those that had not come so far.
    let _daemon = start_by(&setup, r#"exec "$0" "$@""#, Stdio::null());
    module.said(&host.wait_with_output().unwrap());
    let records = setup.files.audit_records();
    let unwraps = records.iter().filter(|record| record["operation"] == "unwrap");
    let wrong: Vec<_> = unwraps.clone().filter(|record| record["outcome"] != "ok").collect();
    assert!(wrong.is_empty() && unwraps.count() == 20, "{wrong:#?}");
}

#[test]
fn restarts_of_the_only_daemon_under_twenty_key_connectors_fail_no_read() {
    let mut setup = Setup::software();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap().to_string();
    setup.files.set("server.listen", vec![address]);
    let mut daemon = start_by(&setup, PASSED, copy(&socket));
    let module = Module::new(&setup, &[&daemon]);
    let hosts = hosts(&module, "loop", 20);
    let mut reads = 0;
    for _ in 0..5 {
        let begun = Instant::now();
        while unwraps(&daemon) < 40 {
            assert!(begun.elapsed() < Duration::from_secs(30), "{}", module.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        reads += unwraps(&daemon);
        assert_eq!(daemon.terminate().code, Some(0));
        daemon = start_by(&setup, PASSED, copy(&socket));
    }
    end(hosts, &module);
    println!("5 restarts under 20 Key Connectors: more than {reads} reads, 0 failed");
    assert_eq!(daemon.terminate().code, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_over_sockets_that_are_passed_fail_no_call() {
    restarts(5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: 50 restarts under load"]
async fn fifty_restarts_over_sockets_that_are_passed_refuse_no_connection_and_fail_no_call() {
    restarts(50).await;
}

/// So many restarts of a daemon under load, whose socket the test holds as systemd would: no call fails,
/// and no connection is refused at any time.
async fn restarts(count: usize) {
    let mut setup = Setup::software();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    setup.files.set("server.listen", vec![address.to_string()]);
    let mut daemon = start_by(&setup, PASSED, copy(&socket));
    let config =
        Config { timeout: Duration::from_secs(30), wait: true, ..setup.client_config(&daemon) };
    let load = Load::start(&config, &setup.wrapped, 16, 4);
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let connecting = tokio::spawn(connect_until(address, stopped));
    for _ in 0..count {
        load.more(50).await;
        assert_eq!(daemon.terminate().code, Some(0));
        // Between two processes a client can connect: it waits.
        let waiting = TcpStream::connect(address).await.unwrap();
        daemon = start_by(&setup, PASSED, copy(&socket));
        drop(waiting);
    }
    load.more(50).await;
    let tally = load.stop().await;
    assert!(tally.failed.is_empty(), "{} failed: {:?}", tally.failed.len(), tally.failed[0]);
    let _ = stop.send(());
    let (connected, refused) = connecting.await.unwrap();
    assert!(refused.is_empty(), "{} of {connected} refused: {:?}", refused.len(), refused[0]);
    println!(
        "{count} restarts: {} calls and {connected} bare connections, 0 failed",
        tally.right.len()
    );
    assert_eq!(daemon.terminate().code, Some(0));
}

/// Connects a hundred times a second until it is told to stop; how often, and which failed.
async fn connect_until(
    address: SocketAddr,
    mut stopped: tokio::sync::oneshot::Receiver<()>,
) -> (usize, Vec<std::io::Error>) {
    let (mut connected, mut refused) = (0, Vec::new());
    while stopped.try_recv().is_err() {
        connected += 1;
        refused.extend(TcpStream::connect(address).await.err());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    (connected, refused)
}

#[test]
fn a_passed_socket_that_is_not_configured_is_an_error_that_names_it() {
    let setup = Setup::software();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let exit = Daemon::spawn_by(&setup.files, PASSED, copy(&socket).into()).wait();
    assert_ne!(exit.code, Some(0));
    let address = socket.local_addr().unwrap().to_string();
    assert!(exit.log.contains(&address) && exit.log.contains(".socket"), "{}", exit.log);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_stop_is_delayed_calls_are_taken_and_readyz_is_down() {
    let mut setup = Setup::software();
    setup.files.set("server.drain_delay", "2s");
    let daemon = setup.start();
    daemon.ask_to_stop();
    soon("not ready", || daemon.operations_get("/readyz").is_ok_and(|(code, _)| code == 503)).await;
    assert_eq!(setup.ask(&daemon).await, Code::Ok, "a new connection and a call");
    let begun = Instant::now();
    assert_eq!(daemon.wait().code, Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_ids_are_unique_and_do_not_count_the_calls() {
    let mut setup = Setup::software();
    let daemon = setup.start();
    let connection = setup.connect(&daemon).await;
    let body = frame(&prost::Message::encode_to_vec(&setup.request()));
    let mut seen = std::collections::HashSet::new();
    for _ in 0..100 {
        let path = "/claviger.v1.KeyService/Unwrap";
        let answer = connection.call(path, body.clone(), &[]).await.unwrap();
        let id = answer.request_id().unwrap().to_owned();
        assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        // Nothing of it is the same as in the one before: half of 32 digits would be 16.
        seen.insert(id);
    }
    assert_eq!(seen.len(), 100);
    let starts: std::collections::HashSet<_> = seen.iter().map(|id| &id[..8]).collect();
    let ends: std::collections::HashSet<_> = seen.iter().map(|id| &id[24..]).collect();
    assert!(starts.len() > 95 && ends.len() > 95, "both ends are random");
}

//! Two daemons behind HAProxy, which passes TLS through and asks their operations listeners: one is
//! killed, one stands still, one is cut off from the network, and callers notice nothing.

mod namespace;

use std::fmt::Write;
use std::fs::{self, File};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use claviger_client::{Config, Endpoint};
use e2e::pki::replace;
use e2e::process::command;
use e2e::{Daemon, Load, Setup};
use rustix::process::{Pid, Signal, kill_process};
use test_backends::free_port;

use self::namespace::Namespace;

/// Calls at a time.
const CALLERS: usize = 16;
/// How long a daemon may take until it is ready.
const PATIENCE: Duration = Duration::from_secs(30);
/// How a daemon is asked whether it is ready: at its operations listener, beside the server's address.
const ASK_OPERATIONS: &str = "  option httpchk GET /readyz\n";

/// Two daemons with the same key, which know the same callers.
fn two() -> [(Setup, Daemon); 2] {
    two_setups().map(|mut setup| {
        let daemon = setup.start();
        (setup, daemon)
    })
}

fn two_setups() -> [Setup; 2] {
    let setups = [Setup::software(), Setup::software()];
    let ca = setups[0].files.pki.ca_pem();
    replace(&setups[1].files.path("clients.pem"), &ca, 0o644);
    setups[0].files.pki.server().write(&setups[1].files.path("."), "server");
    setups
}

/// The daemon of this setup inside a network namespace, ready.
fn start_in(namespace: &Namespace, setup: &Setup) -> Daemon {
    let mut daemon = Daemon::spawn_by(&setup.files, &namespace.script(), Stdio::null());
    let begun = Instant::now();
    while TcpStream::connect_timeout(&daemon.address(), Duration::from_secs(1)).is_err() {
        assert!(daemon.is_running() && begun.elapsed() < PATIENCE, "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    daemon
}

/// A running HAProxy; killed when dropped.
struct Balancer {
    child: Child,
    port: u16,
}

impl Balancer {
    /// docs/operations.md shows this configuration.
    fn start(behind: &[(Setup, Daemon)]) -> Self {
        Self::start_with(behind, ASK_OPERATIONS, |setup| {
            let checked = setup.files.operations_address().port();
            format!("addr 127.0.0.1 port {checked}")
        })
    }

    /// One that connects to the daemons to see whether they are there: their operations listeners are on a
    /// loopback that is not ours.
    fn start_connecting(behind: &[(Setup, Daemon)]) -> Self {
        Self::start_with(behind, "", |_| String::new())
    }

    fn start_with(
        behind: &[(Setup, Daemon)],
        check: &str,
        of_server: impl Fn(&Setup) -> String,
    ) -> Self {
        let port = free_port();
        let mut configuration = format!(
            "defaults\n  mode tcp\n  timeout connect 1s\n  timeout client 10m\n  timeout server 10m\n  \
             timeout check 500ms\n  option redispatch\n\n\
             listen keys\n  bind 127.0.0.1:{port}\n{check}"
        );
        for (number, (setup, daemon)) in behind.iter().enumerate() {
            writeln!(
                configuration,
                "  server daemon-{number} {} check {} inter 200ms fall 2 rise 1 \
                 on-marked-down shutdown-sessions",
                daemon.address(),
                of_server(setup),
            )
            .expect("a String takes everything");
        }
        let files = &behind[0].0.files;
        let path = files.path("haproxy.cfg");
        fs::write(&path, configuration).unwrap();
        let log = File::create(files.path("haproxy.log")).unwrap();
        let mut program = command("/usr/sbin/haproxy");
        program.arg("-db").arg("-f").arg(path).stdout(log.try_clone().unwrap()).stderr(log);
        let child = program.stdin(Stdio::null()).spawn();
        let child = child.expect("`scripts/setup haproxy` installs it");
        Self { child, port }
    }

    /// A client of the first setup's caller that knows the balancer alone.
    fn client_config(&self, (setup, daemon): &(Setup, Daemon)) -> Config {
        let mut config = setup.client_config(daemon);
        for endpoint in &mut config.endpoints {
            if let Endpoint::Tls { port, .. } = endpoint {
                *port = self.port;
            }
        }
        Config { patience: Duration::from_secs(5), ..config }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn signal(daemon: &Daemon, signal: Signal) {
    let pid = Pid::from_raw(daemon.pid().cast_signed()).expect("not 0");
    kill_process(pid, signal).expect("the daemon runs");
}

async fn wait_until_ready(daemon: &Daemon) {
    let begun = Instant::now();
    while !daemon.operations_get("/readyz").is_ok_and(|(code, _)| code == 200) {
        assert!(begun.elapsed() < PATIENCE, "{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: needs HAProxy"]
async fn of_two_daemons_behind_haproxy_one_is_killed_or_stands_still_and_no_caller_notices() {
    let both = two();
    let balancer = Balancer::start(&both);
    let load = Load::start(&balancer.client_config(&both[0]), &both[0].0.wrapped, CALLERS, 2);
    load.more(500).await;

    signal(&both[0].1, Signal::STOP);
    load.more(500).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    load.more(500).await;
    signal(&both[0].1, Signal::CONT);
    tokio::time::sleep(Duration::from_secs(2)).await;
    load.more(500).await;

    let [(_setup, first), (second_setup, second)] = both;
    second.kill();
    load.more(1000).await;
    let second = Daemon::spawn(&second_setup.files);
    wait_until_ready(&second).await;
    // HAProxy has seen it, too.
    tokio::time::sleep(Duration::from_secs(2)).await;
    first.kill();
    load.more(1000).await;
    let tally = load.stop().await;
    println!("{} right, {} failed, p99 {:?}", tally.right.len(), tally.failed.len(), tally.p99());
    assert!(tally.failed.is_empty(), "{:?}\n{}", tally.failed, second.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: needs HAProxy, and root for network namespaces"]
async fn of_two_daemons_in_networks_of_their_own_one_is_cut_off_or_killed_and_no_caller_notices() {
    let namespaces = [Namespace::new(0), Namespace::new(1)];
    let mut setups = two_setups();
    for (setup, namespace) in setups.iter_mut().zip(&namespaces) {
        let address = format!("{}:{}", namespace.address, setup.files.address().port());
        setup.files.set("server.listen", vec![address]);
    }
    let [first, second] = setups;
    let first = (start_in(&namespaces[0], &first), first);
    let second = (start_in(&namespaces[1], &second), second);
    let both = [first, second].map(|(daemon, setup)| (setup, daemon));
    let balancer = Balancer::start_connecting(&both);
    let load = Load::start(&balancer.client_config(&both[0]), &both[0].0.wrapped, CALLERS, 2);
    load.more(500).await;

    namespaces[0].cut_off();
    load.more(500).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    load.more(500).await;
    namespaces[0].connect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    load.more(500).await;

    let [(_first_setup, first), (second_setup, second)] = both;
    second.kill();
    load.more(1000).await;
    let second = start_in(&namespaces[1], &second_setup);
    tokio::time::sleep(Duration::from_secs(2)).await;
    // Now all calls are at the one that was killed before.
    namespaces[0].cut_off();
    load.more(1000).await;
    let tally = load.stop().await;
    println!("{} right, {} failed, p99 {:?}", tally.right.len(), tally.failed.len(), tally.p99());
    assert!(tally.failed.is_empty(), "{:?}\n{}\n{}", tally.failed, first.log(), second.log());
}

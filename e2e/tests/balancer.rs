//! Two daemons behind HAProxy, which passes TLS through and asks their operations listeners: one is
//! killed, one stands still, and callers notice nothing.

use std::fmt::Write;
use std::fs::{self, File};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use claviger_client::{Config, Endpoint};
use e2e::pki::replace;
use e2e::process::command;
use e2e::{Daemon, Load, Setup};
use rustix::process::{Pid, Signal, kill_process};
use test_backends::free_port;

/// Calls at a time.
const CALLERS: usize = 16;

/// Two daemons with the same key, which know the same callers.
fn two() -> [(Setup, Daemon); 2] {
    let setups = [Setup::software(), Setup::software()];
    let ca = setups[0].files.pki.ca_pem();
    replace(&setups[1].files.path("clients.pem"), &ca, 0o644);
    setups[0].files.pki.server().write(&setups[1].files.path("."), "server");
    setups.map(|mut setup| {
        let daemon = setup.start();
        (setup, daemon)
    })
}

/// A running HAProxy; killed when dropped.
struct Balancer {
    child: Child,
    port: u16,
}

impl Balancer {
    /// docs/operations.md shows this configuration.
    fn start(behind: &[(Setup, Daemon)]) -> Self {
        let port = free_port();
        let mut configuration = format!(
            "defaults\n  mode tcp\n  timeout connect 1s\n  timeout client 10m\n  timeout server 10m\n  \
             timeout check 500ms\n  option redispatch\n\n\
             listen keys\n  bind 127.0.0.1:{port}\n  option httpchk GET /readyz\n"
        );
        for (number, (setup, daemon)) in behind.iter().enumerate() {
            let checked = setup.files.operations_address().port();
            writeln!(
                configuration,
                "  server daemon-{number} {} check addr 127.0.0.1 port {checked} inter 200ms fall 2 rise 1 \
                 on-marked-down shutdown-sessions",
                daemon.address(),
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
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", daemon.log());
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

//! Hosts of the PKCS#11 module that start while one of two daemons cannot serve them: for each
//! reason that is that daemon's own, for one that stands still, and over a whole rotation of CAs.

mod reasons;
mod rotation;

use std::process::{Child, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use claviger_client::Config;
use e2e::module::{BY_LABEL, p99, times};
use e2e::pki::replace;
use e2e::{Daemon, Faults, Load, Module, Setup, Token};
use rustix::process::{Pid, Signal, kill_process};

/// Hosts that start at the same time.
const AT_ONCE: &str = "8";

/// Two daemons with the same key, the first one on a token of its own. Both trust the first one's CA
/// and are trusted by it.
struct Two {
    /// None where it was killed.
    first: Option<Daemon>,
    second: Daemon,
    setups: [Setup; 2],
    token: Token,
    faults: Faults,
    module: Module,
}

impl Two {
    fn new() -> Self {
        Self::with(|_| ())
    }

    /// The first one with other options.
    fn with(change: impl FnOnce(&mut Setup)) -> Self {
        let (token, faults) = Token::softhsm().through_fault_module();
        let mut setups = [Setup::on(&token), Setup::software()];
        let ca = setups[0].files.pki.ca_pem();
        replace(&setups[1].files.path("clients.pem"), &ca, 0o644);
        setups[0].files.pki.server().write(&setups[1].files.path("."), "server");
        change(&mut setups[0]);
        let [first, second] = setups.each_mut().map(Setup::start);
        let module = Module::new(&setups[0], &[&first, &second]);
        Self { first: Some(first), second, setups, token, faults, module }
    }

    fn first(&self) -> &Daemon {
        self.first.as_ref().expect("it runs")
    }

    /// So many hosts that start one after the other, some at a time, and read once.
    fn begin(&self, reads: usize) -> Child {
        let mut host = self.module.host(BY_LABEL, &["first", AT_ONCE, &reads.to_string()]);
        host.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the host starts")
    }

    /// How long each took, the shortest first; one that failed is a panic with the logs.
    fn end(&self, hosts: Child) -> Vec<Duration> {
        let output = hosts.wait_with_output().expect("the host ends");
        self.all_right(&output);
        times(&output)
    }

    fn read(&self, reads: usize) -> Vec<Duration> {
        let took = self.end(self.begin(reads));
        assert_eq!(took.len(), reads);
        took
    }

    fn all_right(&self, output: &Output) {
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            let log = self.first.as_ref().map(Daemon::log).unwrap_or_default();
            panic!("{errors}\nthe module:\n{}\nthe first daemon:\n{log}", self.module.log());
        }
    }

    /// Kills the first daemon and starts it again, without waiting for more than its port.
    fn restart_first(&mut self) {
        if let Some(first) = self.first.take() {
            first.kill();
        }
        let first = Daemon::spawn(&self.setups[0].files);
        let begun = Instant::now();
        // One that does not start in this state has no port, and that is a state, too.
        while std::net::TcpStream::connect(first.address()).is_err()
            && begun.elapsed() < Duration::from_secs(3)
        {
            sleep(Duration::from_millis(10));
        }
        self.first = Some(first);
    }
}

fn signal(daemon: &Daemon, signal: Signal) {
    let pid = Pid::from_raw(daemon.pid().try_into().expect("a pid")).expect("not 0");
    kill_process(pid, signal).expect("the daemon runs");
}

/// The daemon reads its files again.
fn reload(daemon: &Daemon) {
    let done = || daemon.log().matches("configuration reloaded").count();
    let before = done();
    daemon.reload();
    let begun = Instant::now();
    while done() == before {
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", daemon.log());
        sleep(Duration::from_millis(10));
    }
}

fn say(what: &str, took: &[Duration]) {
    let (median, slowest) = (took[took.len() / 2], took[took.len() - 1]);
    let p99 = p99(took);
    println!(
        "{what}: {} first reads, 0 failed; {median:.1?}, p99 {p99:.1?}, {slowest:.1?}",
        took.len()
    );
}

#[test]
#[ignore = "long: scripts/test --all"]
fn of_a_thousand_first_reads_beside_a_daemon_that_stands_still_99_in_100_take_a_second_and_a_half()
{
    let two = Two::new();
    signal(two.first(), Signal::STOP);
    let took = two.read(1000);
    signal(two.first(), Signal::CONT);
    say("one of two daemons stopped", &took);
    assert!(p99(&took) <= Duration::from_millis(1500), "{:?}", p99(&took));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: scripts/test --all"]
async fn on_a_quiet_system_at_most_one_call_in_a_hundred_is_asked_twice() {
    let two = tokio::task::spawn_blocking(Two::new).await.unwrap();
    let config = two.setups[0].client_config(two.first());
    let second = two.setups[0].client_config(&two.second).endpoints;
    let endpoints = [config.endpoints.clone(), second].concat();
    let load = Load::sharing(&Config { endpoints, ..config }, &two.setups[0].wrapped, 16);
    for _ in 0..20 {
        load.more(500).await;
    }
    let tally = load.stop().await;
    assert!(tally.failed.is_empty(), "{:?}", tally.failed);
    let unwraps = |daemon: &Daemon| daemon.count("claviger_calls_total", &["operation=\"unwrap\""]);
    let (calls, asked) = (tally.right.len(), unwraps(two.first()) + unwraps(&two.second));
    println!("16 in flight: {calls} calls, {} asked twice, p99 {:.1?}", asked - calls, tally.p99());
    assert!((asked - calls) * 100 <= calls, "{asked} requests of {calls} calls");
    tokio::task::spawn_blocking(move || drop(two)).await.unwrap();
}

#[test]
fn where_both_fail_the_log_names_each_with_its_reason_the_most_telling_first() {
    let mut two = Two::new();
    two.module.token().insert("timeout".into(), "2s".into());
    two.module.write();
    two.token.delete(e2e::setup::KEY);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let setup = &two.setups[0];
    runtime.block_on(setup.wait_for(two.first(), tonic::Code::FailedPrecondition));
    let second = two.second.address();
    two.second.kill();
    let output = two.module.host(BY_LABEL, &["sequential", "1"]).output().unwrap();
    assert!(!output.status.success());
    let log = two.module.log();
    let line = log.lines().find(|line| line.contains("unwrap with key")).unwrap_or(&log);
    let first = format!("https://{}: an operator must act", two.first.as_ref().unwrap().address());
    let other = format!("cannot reach the daemon at https://{second}: ");
    let places = [line.find(&first), line.find(&other)];
    assert!(places[0].is_some() && places[0] < places[1], "{log}");
}

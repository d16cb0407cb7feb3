//! Hosts of the PKCS#11 module while an HSM is away, a daemon stands still, or one of two daemons
//! cannot serve them: what another daemon or a moment mends is no error for the host.

use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use e2e::connection::frame;
use e2e::module::BY_LABEL;
use e2e::pki::replace;
use e2e::{Daemon, Faults, Module, Setup, Token};
use rustix::process::{Pid, Signal, kill_process};
use tonic::Code;
use tonic_types::StatusExt;

fn begin(host: &mut Command) -> std::process::Child {
    host.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the host starts")
}

/// Hosts start while the HSM is away for so long; each thread does whole cycles of a Key Connector.
fn away(on: &Counted, away: Duration, threads: &str, cycles: &str) {
    let module = Module::new(&on.setup, &[&on.daemon]);
    on.token.take_away();
    let host = begin(&mut module.host(BY_LABEL, &["threads", threads, cycles]));
    sleep(away);
    on.token.bring_back();
    let output = host.wait_with_output().expect("the host ends");
    assert!(output.status.success(), "{away:?}: {}\n{}", module.log(), on.daemon.log());
}

/// A daemon that has opened its key on a token of which every call is counted.
struct Counted {
    daemon: Daemon,
    setup: Setup,
    token: Token,
    faults: Faults,
}

impl Counted {
    fn new() -> Self {
        let (token, faults) = Token::softhsm().through_fault_module();
        let mut setup = Setup::on(&token);
        let daemon = setup.start();
        Self { daemon, setup, token, faults }
    }
}

#[test]
fn an_hsm_that_is_away_for_less_than_the_timeout_is_no_error_for_its_hosts() {
    let on = Counted::new();
    for seconds in [1.5, 5.0] {
        away(&on, Duration::from_secs_f64(seconds), "20", "2");
    }
}

/// Twenty outages of each length, of which fifty threads see each one: a thousand cycles over an
/// outage, and as many after it. Four daemons have their outages at the same time.
#[test]
#[ignore = "long: scripts/test --all"]
fn a_thousand_cycles_of_fifty_threads_over_outages_of_each_length_see_no_error() {
    for seconds in [1.5, 5.0, 9.0] {
        let outages = || {
            let on = Counted::new();
            for _ in 0..5 {
                away(&on, Duration::from_secs_f64(seconds), "50", "2");
            }
        };
        std::thread::scope(|scope| {
            for daemon in [(); 4].map(|()| scope.spawn(outages)) {
                daemon.join().expect("no host saw an error");
            }
        });
        println!("away for {seconds} s: 20 outages, 1,000 cycles over them, 0 failed");
    }
}

/// The next look at the token is known while its breaker is open, and where its key was never open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_an_hsm_is_away_an_answer_says_when_the_daemon_looks_again() {
    let Counted { daemon, mut setup, token, faults: _faults } = Counted::new();
    token.take_away();
    setup.wait_for(&daemon, Code::Unavailable).await;
    says_when_it_looks_again(&setup, &daemon).await;
    daemon.terminate();
    let daemon = setup.start();
    says_when_it_looks_again(&setup, &daemon).await;
    token.bring_back();
    setup.wait_for(&daemon, Code::Ok).await;
}

async fn says_when_it_looks_again(setup: &Setup, daemon: &Daemon) {
    let connection = setup.connect(daemon).await;
    let begun = Instant::now();
    // A call that comes when it is time waits for the look itself.
    loop {
        let answer = connection.unwrap(&setup.request()).await.expect_err("the HSM is away");
        assert_eq!(answer.code(), Code::Unavailable, "{answer}");
        let details = answer.status().get_error_details();
        if let Some(delay) = details.retry_info().and_then(|info| info.retry_delay) {
            assert!(delay > Duration::ZERO && delay <= Duration::from_secs(3), "{delay:?}");
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", daemon.log());
    }
}

/// Its process is started anew after pauses that grow to three seconds: a call with less time than that
/// is answered at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_module_crashes_at_each_start_an_answer_says_when_the_next_one_is_made() {
    let Counted { daemon, setup, token: _token, faults } = Counted::new();
    let connection = setup.connect(&daemon).await;
    faults.on_every("C_Initialize", "abort");
    faults.on_call(1, "C_Decrypt", "abort");
    setup.wait_for(&daemon, Code::Unavailable).await;
    daemon.wait_for_log("pause=1.6s");
    let body = frame(&prost::Message::encode_to_vec(&setup.request()));
    let mut told = 0;
    for _ in 0..40 {
        let headers = [("grpc-timeout", "1S")];
        let path = "/claviger.v1.KeyService/Unwrap";
        let answer = connection.call(path, body.clone(), &headers).await.unwrap();
        assert_eq!(answer.code(), Code::Unavailable, "{answer}\n{}", daemon.log());
        let details = answer.status().get_error_details();
        let delay = details.retry_info().and_then(|info| info.retry_delay);
        told += usize::from(delay.is_some_and(|delay| delay <= Duration::from_secs(3)));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(told >= 20, "{told} of 40");
    faults.clear();
    setup.wait_for(&daemon, Code::Ok).await;
}

/// Every host waits its whole timeout and fails then; the token was asked a few times only.
#[test]
fn an_hsm_that_stays_away_is_an_error_after_the_timeout_and_costs_it_few_attempts() {
    let on = Counted::new();
    let module = Module::new(&on.setup, &[&on.daemon]);
    module.act(BY_LABEL, &["sequential", "1"]);
    on.token.take_away();
    let before = on.faults.count("C_Initialize");
    let begun = Instant::now();
    let hosts: Vec<_> =
        (0..50).map(|_| begin(&mut module.host(BY_LABEL, &["sequential", "1"]))).collect();
    for host in hosts {
        let output = host.wait_with_output().expect("the host ends");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains("0x30"), "{errors}");
        assert!(begun.elapsed() >= Duration::from_secs(10), "{:?}", begun.elapsed());
    }
    sleep(Duration::from_secs(15).saturating_sub(begun.elapsed()));
    let attempts = on.faults.count("C_Initialize") - before;
    println!("away for 15 s beside 50 hosts: {attempts} attempts of the daemon");
    assert!((2..=20).contains(&attempts), "{attempts} attempts of the daemon in 15 s");
}

/// Two daemons; the second one trusts the same CA as the first one and is trusted as it is.
struct Two {
    daemons: [Daemon; 2],
    setups: [Setup; 2],
    module: Module,
}

impl Two {
    fn new() -> Self {
        let mut setups = [Setup::software(), Setup::software()];
        let ca = setups[0].files.pki.ca_pem();
        replace(&setups[1].files.path("clients.pem"), &ca, 0o644);
        setups[0].files.pki.server().write(&setups[1].files.path("."), "server");
        let daemons = setups.each_mut().map(Setup::start);
        let module = Module::new(&setups[0], &[&daemons[0], &daemons[1]]);
        Self { daemons, setups, module }
    }

    fn host(&self, actions: &[&str]) -> Output {
        self.module.host(BY_LABEL, actions).output().expect("the host starts")
    }
}

fn signal(daemon: &Daemon, signal: Signal) {
    let pid = Pid::from_raw(daemon.pid().try_into().expect("a pid")).expect("not 0");
    kill_process(pid, signal).expect("the daemon runs");
}

#[test]
fn a_daemon_that_stands_still_costs_the_first_read_of_a_host_little_more_than_a_second() {
    let two = Two::new();
    two.module.act(BY_LABEL, &["sequential", "1"]);
    signal(&two.daemons[0], Signal::STOP);
    let hosts = 5;
    for _ in 0..hosts {
        let said = two.module.said(&two.host(&["timed", "1", "sequential", "20"]));
        // The description and the unwrap go to the other daemon once the first was found silent.
        assert!(said[0].microseconds < 3_000_000.0, "{said:?}");
        assert!(said[1].microseconds < 3_000_000.0, "{said:?}");
    }
    signal(&two.daemons[0], Signal::CONT);
    two.module.act(BY_LABEL, &["sequential", "1"]);
}

#[test]
fn a_daemon_that_does_not_trust_the_new_ca_or_has_another_key_is_passed_by() {
    let two = Two::new();
    // The first daemon trusts another CA for its callers: it was forgotten in a rotation.
    let other = Setup::software();
    replace(&two.setups[0].files.path("clients.pem"), &other.files.pki.ca_pem(), 0o644);
    two.daemons[0].reload();
    two.daemons[0].wait_for_log("reload");
    for _ in 0..20 {
        two.module.act(BY_LABEL, &["sequential", "1"]);
    }
    assert!(
        !two.module.log().contains("refused this program's certificate"),
        "no error is no line"
    );
}

#[test]
fn a_search_that_finds_nothing_says_what_was_asked_for_and_what_is_there() {
    let mut setup = Setup::software();
    let daemon = setup.start();
    let module = Module::new(&setup, &[&daemon]);
    let output = module.host("label:user-key", &["sequential", "1"]).output().unwrap();
    assert!(!output.status.success());
    let log = module.log();
    let expected = "token `claviger`: no private key with label \"user-key\"; it shows label \
                    \"user-keys\" id 0102";
    assert!(log.contains(expected), "{log}");
}

#[test]
fn a_configuration_file_that_was_named_and_cannot_be_read_is_told_on_stderr_once() {
    let mut setup = Setup::software();
    let daemon = setup.start();
    let module = Module::new(&setup, &[&daemon]);
    std::fs::remove_file(module.file()).unwrap();
    let output = module.host(BY_LABEL, &["sequential", "1"]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let expected =
        format!("CLAVIGER_PKCS11_CONF: cannot read {}: No such file", module.file().display());
    assert_eq!(errors.matches(&expected).count(), 1, "{errors}");
    assert!(errors.ends_with("C_Initialize: 0x6\n"), "{errors}");
    // Without the variable a host hears nothing but return values.
    let mut host = module.host(BY_LABEL, &["sequential", "1"]);
    let output = host.env_remove("CLAVIGER_PKCS11_CONF").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "C_Initialize: 0x6\n");
}

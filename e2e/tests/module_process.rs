//! The process of a module: what the module does to it, and what the daemon and its other callers
//! notice of it.

use std::fs;
use std::time::{Duration, Instant};

use claviger_client::{Code as ClientCode, Config, Error};
use e2e::setup::{KEY, wrap};
use e2e::token::PIN;
use e2e::{Daemon, Faults, Load, RsaKey, Setup, Token, Version};
use rustix::process::{Pid, Signal, kill_process};
use tonic::Code;

/// A daemon with a key in a token, and another one in a file, both under load.
struct ProcessSetup {
    faults: Faults,
    daemon: Daemon,
    of_token: Load,
    of_file: Load,
    base: Setup,
    _token: Token,
}

impl ProcessSetup {
    async fn with(options: &[(&str, toml::Value)]) -> Self {
        Self::with_callers(options, false).await
    }

    /// The same; the callers of the token may `wait`: repeat a call that an answer tells them to repeat.
    async fn with_callers(options: &[(&str, toml::Value)], wait: bool) -> Self {
        let (token, faults) = Token::softhsm().through_fault_module();
        let mut base = Setup::on(&token);
        for (option, value) in options {
            base.files.set(&format!("providers.hsm-a.{option}"), value.clone());
        }
        let other = RsaKey::generate(2048);
        base.files.key_folder("files", "keys");
        other.write_pem(&base.files.path("keys/other.pem"));
        let version = Version::active(1, &other, "files", "other.pem");
        base.files.key("other", &["RSA-OAEP"], vec![version]);
        let keys = vec![toml::Value::from(KEY), "other".into()];
        let grant = &mut base.files.configuration["callers"][0]["grants"][0];
        grant.as_table_mut().unwrap().insert("keys".into(), keys.into());
        let daemon = base.start();
        let config = base.client_config(&daemon);
        let of_token = Load::start(&Config { wait, ..config.clone() }, &base.wrapped, 4, 0);
        let of_file = Load::on_key(&config, "other", &wrap(&other), 1);
        of_token.more(20).await;
        of_file.more(20).await;
        Self { faults, daemon, of_token, of_file, base, _token: token }
    }

    /// Waits for so many more right answers from the token.
    async fn goes_on(&self, calls: u64) {
        let limit = Duration::from_secs(25);
        let went_on = tokio::time::timeout(limit, self.of_token.more(calls)).await;
        assert!(went_on.is_ok(), "the load stands still:\n{}", self.daemon.log());
    }

    /// Does this to the next decryption, and waits until the load goes on in a new process: how long
    /// that took.
    async fn replaced_after(&self, action: &str) -> Duration {
        let before = child_of(&self.daemon);
        self.faults.on_call(2, "C_Decrypt", action);
        let mut begun = None;
        let waited = Instant::now();
        loop {
            let now = try_child_of(&self.daemon);
            if now != Some(before) {
                begun.get_or_insert_with(Instant::now);
            }
            if now.is_some_and(|now| now != before) {
                break;
            }
            assert!(waited.elapsed() < Duration::from_secs(30), "{action}: {}", self.daemon.log());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.faults.clear();
        self.goes_on(8).await;
        begun.expect("it was replaced").elapsed()
    }

    /// Ends the loads: not one call of the file's key failed, and how many of the token's did, but for
    /// those that found no memory: they are told so, and that they may repeat it.
    async fn end(self) -> usize {
        let of_file = self.of_file.stop().await;
        assert!(of_file.failed.is_empty(), "{:?}\n{}", of_file.failed, self.daemon.log());
        let of_token = self.of_token.stop().await;
        println!(
            "{} right, {} failed {:?}; beside it {} right\n{}",
            of_token.right.len(),
            of_token.failed.len(),
            of_token.failed,
            of_file.right.len(),
            self.daemon.log()
        );
        assert_eq!(self.base.ask(&self.daemon).await, Code::Ok);
        assert_eq!(self.daemon.terminate().code, Some(0));
        let no_room = |error: &&Error| error.code == ClientCode::ResourceExhausted;
        of_token.failed.len() - of_token.failed.iter().filter(no_room).count()
    }
}

/// The process of the one provider of type pkcs11.
fn child_of(daemon: &Daemon) -> u32 {
    try_child_of(daemon).unwrap_or_else(|| panic!("no child in:\n{}", daemon.log()))
}

fn try_child_of(daemon: &Daemon) -> Option<u32> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).ok()?;
    tasks.flatten().find_map(|task| {
        let children = fs::read_to_string(task.path().join("children")).ok()?;
        let mut children = children.split_ascii_whitespace();
        children.find_map(|child| child.parse().ok().filter(|child| !is_dead(*child)))
    })
}

fn is_dead(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .map_or(true, |stat| stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z')))
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("a process id");
    kill_process(pid, signal).expect("the process is there");
}

const ENDS: [&str; 5] = ["crash", "abort", "exit=0", "exit=3", "leak=1024"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_module_that_crashes_exits_or_leaks_costs_no_caller_a_call() {
    let setup = ProcessSetup::with(&[]).await;
    for action in ENDS {
        setup.replaced_after(action).await;
    }
    let log = setup.daemon.log();
    // A module's own exit handlers may crash under threads that are still inside it.
    for said in ["signal 11 (SIGSEGV)", "signal 6 (SIGABRT)"] {
        assert!(log.contains(said), "{said}: {log}");
    }
    assert!(log.contains("MiB of its memory_limit"), "{log}");
    assert_eq!(setup.end().await, 0, "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: a hundred crashes"]
async fn a_hundred_crashes_under_load_are_each_over_in_two_seconds() {
    // Beyond thirty at once and one a second a new process waits, and calls are told for how long.
    let setup = ProcessSetup::with_callers(&[], true).await;
    let mut took = Vec::new();
    // One after the other, without a pause.
    for number in 0..100 {
        took.push(setup.replaced_after(ENDS[number % ENDS.len()]).await);
    }
    took.sort_unstable();
    println!("recovery: median {:?}, p99 {:?}, longest {:?}", took[50], took[98], took[99]);
    assert!(took[98] <= Duration::from_secs(2), "{took:?}");
    assert_eq!(setup.end().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_module_that_hangs_is_noticed_and_replaced_though_nobody_clears_the_hang() {
    let setup = ProcessSetup::with(&[("hang_limit", "1s".into())]).await;
    let before = child_of(&setup.daemon);
    setup.faults.on_every("C_Decrypt", "hang");
    setup.daemon.wait_for_log("hangs: ");
    setup.faults.clear();
    setup.base.wait_for(&setup.daemon, Code::Ok).await;
    assert_ne!(child_of(&setup.daemon), before);
    setup.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_stopped_or_killed_from_outside_is_replaced() {
    let setup = ProcessSetup::with(&[("hang_limit", "1s".into())]).await;
    let first = child_of(&setup.daemon);
    signal(first, Signal::KILL);
    setup.goes_on(20).await;
    let second = child_of(&setup.daemon);
    assert_ne!(first, second);
    signal(second, Signal::STOP);
    setup.daemon.wait_for_log("the module's process is stopped");
    setup.goes_on(20).await;
    assert_ne!(child_of(&setup.daemon), second);
    setup.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_module_prints_is_logged_in_bounded_lines_without_control_characters() {
    let setup = ProcessSetup::with(&[]).await;
    // Not the next one alone: the callers may have made it before the module knows.
    setup.faults.on_next(10, "C_Decrypt", "print=10000");
    setup.daemon.wait_for_log("the module prints: ");
    setup.goes_on(50).await;
    let log = setup.daemon.log();
    let printed: Vec<_> = log.lines().filter(|line| line.contains("the module prints")).collect();
    assert!((1..100).contains(&printed.len()), "{} lines", printed.len());
    assert!(printed.iter().all(|line| line.len() < 1000), "{printed:?}");
    assert!(!log.contains('\u{1b}'), "{log}");
    assert_eq!(setup.end().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_process_is_confined_as_the_log_says() {
    let token = Token::softhsm();
    let mut setup = Setup::on(&token);
    let daemon = setup.start();
    assert_eq!(setup.ask(&daemon).await, Code::Ok);
    let proc =
        |file: &str| fs::read_to_string(format!("/proc/{}/{file}", child_of(&daemon))).unwrap();
    let status = proc("status");
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("{name}: {status}")).trim().to_owned()
    };
    assert_eq!((value("NoNewPrivs"), value("Seccomp")), ("1".to_owned(), "2".to_owned()));
    let limits = proc("limits");
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_ascii_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(limit("Max core file size"), "0");
    assert_eq!(limit("Max data size"), (512 << 20).to_string());
    // Its socket, its pipe, nothing of the daemon's: no listener, no audit log, no key.
    let open = fs::read_dir(format!("/proc/{}/fd", child_of(&daemon))).unwrap();
    let open: Vec<_> = open.flatten().filter_map(|file| fs::read_link(file.path()).ok()).collect();
    let sockets = open.iter().filter(|file| file.to_string_lossy().starts_with("socket:"));
    let sockets: std::collections::BTreeSet<_> = sockets.collect();
    assert!(sockets.len() <= 4, "its own, a pair for signals, and syslog: {open:?}");
    assert!(open.iter().all(|file| !file.starts_with(setup.files.path("audit.jsonl"))), "{open:?}");
    let log = daemon.log();
    for said in
        ["core dumps: off", "at most 512MiB", "no new ones", "landlock: ", "seccomp: no programs"]
    {
        assert!(log.contains(said), "{said}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_process_of_the_module_has_the_pin_and_the_module() {
    const OWN_PIN: &str = "pin-7f3a-of-this-test";
    let token = Token::softhsm();
    let mut setup = Setup::on(&token);
    token.change_pin(PIN, OWN_PIN);
    token.write_pin(OWN_PIN);
    let daemon = setup.start();
    assert_eq!(setup.ask(&daemon).await, Code::Ok);
    let maps = |pid| fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    assert!(maps(child_of(&daemon)).contains("libsofthsm2.so"));
    assert!(!maps(daemon.pid()).contains("libsofthsm2.so"));
    assert!(
        !memory_of(daemon.pid()).windows(OWN_PIN.len()).any(|bytes| bytes == OWN_PIN.as_bytes())
    );
}

/// All that a process has in memory and may write to.
fn memory_of(pid: u32) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut all = Vec::new();
    for map in maps.lines().filter(|map| map.contains(" rw")) {
        let (from, to) = map.split_once(' ').unwrap().0.split_once('-').unwrap();
        let [from, to] = [from, to].map(|number| u64::from_str_radix(number, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
        if memory.read_exact_at(&mut bytes, from).is_ok() {
            all.extend(bytes);
        }
    }
    assert!(all.len() > 1 << 20);
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_process_ends_with_the_daemon_however_that_ends() {
    let token = Token::softhsm();
    let mut setup = Setup::on(&token);
    for kill in [false, true] {
        let daemon = setup.start();
        let child = child_of(&daemon);
        // As a terminal and a service manager do with all processes, before the daemon has drained.
        for to_all in [Signal::TERM, Signal::INT, Signal::HUP] {
            signal(child, to_all);
        }
        assert_eq!(setup.ask(&daemon).await, Code::Ok);
        assert_eq!(child_of(&daemon), child);
        if kill {
            daemon.kill()
        } else {
            daemon.terminate()
        };
        let begun = Instant::now();
        while !is_dead(child) {
            assert!(begun.elapsed() < Duration::from_secs(10), "killed: {kill}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_module_may_run_in_the_daemon_where_the_configuration_says_so() {
    let token = Token::softhsm();
    let mut setup = Setup::on(&token);
    setup.files.set("providers.hsm-a.isolation", "none");
    let daemon = setup.start();
    assert_eq!(setup.ask(&daemon).await, Code::Ok);
    assert_eq!(try_child_of(&daemon), None);
    assert_eq!(daemon.terminate().code, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_may_be_restricted_to_the_tokens_folder() {
    let token = Token::softhsm();
    let mut setup = Setup::on(&token);
    let mut write = |folder: &str| {
        setup.files.set("providers.hsm-a.sandbox.write", vec![toml::Value::from(folder)]);
        setup.start()
    };
    let daemon = write(token.folder().to_str().unwrap());
    daemon.wait_for_log("writes only below sandbox.write");
    daemon.wait_for_log("replica serves");
    daemon.terminate();
    // What cannot be had is not left out in silence.
    let daemon = write("/nonexistent");
    daemon.wait_for_log("sandbox.write cannot be enforced");
    assert_eq!(setup.ask(&daemon).await, Code::Unavailable);
}

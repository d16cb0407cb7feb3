//! An unmodified Key Connector over the PKCS#11 module, on each kind of backend: once after the
//! other, all at once, through restarts, and without leaving anything behind.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use claviger_provider_api::Algorithm;
use e2e::daemon::claviger;
use e2e::module::{BY_ID, BY_LABEL, SERIAL, host, library};
use e2e::pki::replace;
use e2e::process::{command, run};
use e2e::setup::KEY;
use e2e::{Daemon, DaemonFiles, Module, RsaKey, ServiceKind, Setup, TestService, Token};

/// A daemon, and the module as its client.
struct ModuleSetup {
    daemon: Daemon,
    module: Module,
    base: Setup,
    _service: Option<TestService>,
}

impl ModuleSetup {
    fn of(mut base: Setup) -> Self {
        let daemon = base.start();
        let module = Module::new(&base, &[&daemon]);
        Self { daemon, module, base, _service: None }
    }

    async fn on(kind: ServiceKind) -> Self {
        let service = TestService::start(kind).await;
        let mut files = DaemonFiles::new();
        service.configure(&mut files, "remote", None).await;
        let key = RsaKey::shared(2048);
        let stored = service.import(&key, KEY, None).await;
        let stored = stored
            .iter()
            .find(|stored| stored.algorithms.contains(&Algorithm::RsaOaep))
            .expect("a Key Connector sends OAEP with SHA-1");
        let base = Setup::at(files, key, "remote", &stored.locator, Algorithm::RsaOaep);
        Self { _service: Some(service), ..Self::of(base) }
    }
}

/// A Key Connector's whole life, so many times: nothing fails, nothing is left.
fn lives(setup: &ModuleSetup, sequential: usize, threads: usize, each: usize) {
    let counts = [sequential, threads, each].map(|count| count.to_string());
    let module = &setup.module;
    let said = module.act(
        BY_LABEL,
        &[
            "sequential",
            "5",
            "sequential",
            &counts[0],
            "threads",
            &counts[1],
            &counts[2],
            "sequential",
            "5",
        ],
    );
    let [first, sequential, overlapping, last] = said[..] else { panic!("{said:?}") };
    for later in [sequential, overlapping, last] {
        assert_eq!(later.tasks, 1, "a thread was left behind");
        assert_eq!(later.descriptors, first.descriptors, "descriptors grow: {said:?}");
    }
    assert_eq!(module.log(), "", "nothing went wrong, so nothing was logged");
    let [by_id] = module.act(BY_ID, &["sequential", "2"])[..] else { panic!("one action") };
    assert_eq!(by_id.tasks, 1);
    // One for each of the two processes.
    let accepted = setup.daemon.count("claviger_connections_accepted_total", &[]);
    assert_eq!(accepted, 2, "one connection stays warm over all cycles of a process");
}

#[test]
fn a_key_connector_on_softhsm() {
    let token = Token::softhsm();
    lives(&ModuleSetup::of(Setup::on(&token)), 50, 8, 10);
}

#[test]
#[ignore = "long: scripts/test --all"]
fn a_thousand_and_eight_times_two_hundred_lives_on_softhsm() {
    let token = Token::softhsm();
    lives(&ModuleSetup::of(Setup::on(&token)), 1000, 8, 200);
}

#[test]
#[ignore = "long: scripts/test --all"]
fn a_thousand_and_eight_times_two_hundred_lives_on_kryoptic() {
    let token = Token::kryoptic();
    lives(&ModuleSetup::of(Setup::on(&token)), 1000, 8, 200);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: scripts/test --all"]
async fn a_thousand_and_eight_times_two_hundred_lives_on_aws() {
    let setup = ModuleSetup::on(ServiceKind::Aws).await;
    lives(&setup, 1000, 8, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_connector_on_aws() {
    let setup = ModuleSetup::on(ServiceKind::Aws).await;
    lives(&setup, 20, 8, 5);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: scripts/test --all"]
async fn a_thousand_and_eight_times_two_hundred_lives_on_azure() {
    let setup = ModuleSetup::on(ServiceKind::Azure).await;
    lives(&setup, 1000, 8, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_connector_on_azure() {
    let setup = ModuleSetup::on(ServiceKind::Azure).await;
    lives(&setup, 20, 8, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_connector_on_google() {
    let setup = ModuleSetup::on(ServiceKind::Google).await;
    lives(&setup, 20, 8, 5);
}

#[test]
fn a_child_works_after_its_own_initialize_and_the_parent_is_undisturbed() {
    let setup = ModuleSetup::of(Setup::software());
    let actions = ["fork-loaded", "fork-initialised", "fork-logged-in"];
    // First in a process without a connection, then in one with a warm connection.
    for action in actions {
        setup.module.act(BY_LABEL, &[action]);
        setup.module.act(BY_LABEL, &["sequential", "1", action, "sequential", "1"]);
    }
    let all: Vec<&str> = actions.into_iter().cycle().take(12).collect();
    let said = setup.module.act(BY_LABEL, &all);
    assert_eq!(said[2].descriptors, said[11].descriptors, "{said:?}");
}

#[test]
fn a_host_that_forbids_threads_is_served() {
    let setup = ModuleSetup::of(Setup::software());
    let said = setup.module.act(BY_LABEL, &["no-threads", "3"]);
    assert_eq!(said[0].tasks, 1);
}

#[test]
fn loading_and_unloading_for_ever_leaves_nothing() {
    let setup = ModuleSetup::of(Setup::software());
    let said = setup.module.act(BY_LABEL, &["loads", "10", "sequential", "1", "loads", "10000"]);
    assert_eq!((said[1].tasks, said[1].descriptors), (said[2].tasks, said[2].descriptors));
    assert!(said[2].resident_kb <= said[1].resident_kb + 256, "{said:?}");
}

#[test]
fn memory_stays_where_it_was_over_a_thousand_lives() {
    let setup = ModuleSetup::of(Setup::software());
    let said = setup.module.act(BY_LABEL, &["sequential", "200", "sequential", "1000"]);
    assert!(said[1].resident_kb <= said[0].resident_kb + 1024, "{said:?}");
}

/// The host in a loop of whole lives, until it is told to stop.
struct Looping {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Looping {
    fn start(module: &Module) -> Self {
        let mut child = module
            .host(BY_LABEL, &["loop"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the host starts");
        let stdout = child.stdout.take().expect("a pipe was asked for");
        Self { child, lines: BufReader::new(stdout).lines() }
    }

    /// Waits for so many more lives; the host's error is the panic if it ends before that.
    fn more(&mut self, lives: usize, module: &Module) {
        for _ in 0..lives {
            if !matches!(self.lines.next(), Some(Ok(line)) if line.starts_with("cycle ")) {
                let mut errors = String::new();
                let stderr = self.child.stderr.as_mut().expect("a pipe was asked for");
                stderr.read_to_string(&mut errors).expect("UTF-8");
                panic!("the host saw an error: {errors}\nthe module's log:\n{}", module.log());
            }
        }
    }

    fn stop(mut self) {
        drop(self.child.stdin.take());
        let rest: Vec<String> = self.lines.map(|line| line.expect("UTF-8")).collect();
        let output = self.child.wait_with_output().expect("the host ends");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let last = rest.last().expect("the host says how it is");
        assert!(last.starts_with("loop: tasks 1,"), "{last}");
    }
}

#[test]
fn a_daemon_that_is_restarted_is_no_error_for_its_host() {
    let mut setup = ModuleSetup::of(Setup::software());
    let mut host = Looping::start(&setup.module);
    host.more(20, &setup.module);
    for _ in 0..3 {
        let ended = setup.daemon.terminate();
        assert_eq!(ended.code, Some(0), "{}", ended.log);
        setup.daemon = Daemon::spawn(&setup.base.files);
        host.more(20, &setup.module);
    }
    // Without a word of farewell: what was written to its connection raises SIGPIPE.
    for _ in 0..3 {
        setup.daemon.kill();
        setup.daemon = Daemon::spawn(&setup.base.files);
        host.more(20, &setup.module);
    }
    host.stop();
}

#[test]
fn certificates_that_change_on_both_sides_are_no_error_for_the_host() {
    let setup = ModuleSetup::of(Setup::software());
    let mut host = Looping::start(&setup.module);
    host.more(20, &setup.module);
    let folder = setup.base.files.path(".");
    for _ in 0..3 {
        setup.base.files.pki.server().write(&folder, "server");
        setup.base.files.pki.client("spiffe://example.org/key-connector").write(&folder, "caller");
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) {
            host.more(5, &setup.module);
        }
    }
    host.stop();
}

/// The second daemon trusts, and is trusted by, the first one's CA.
fn trust(first: &Setup, second: &Setup) {
    let ca = &first.files.pki;
    replace(&second.files.path("clients.pem"), &ca.ca_pem(), 0o644);
    ca.server().write(&second.files.path("."), "server");
}

#[test]
fn one_of_two_daemons_that_is_killed_is_no_error_for_the_host() {
    let mut first = Setup::software();
    let mut second = Setup::software();
    trust(&first, &second);
    let mut daemons = [Some(first.start()), Some(second.start())];
    let module = Module::new(&first, &[daemons[0].as_ref().unwrap(), daemons[1].as_ref().unwrap()]);
    let mut host = Looping::start(&module);
    host.more(20, &module);
    for round in 0..4 {
        let index = round % 2;
        daemons[index].take().expect("it was started").kill();
        host.more(20, &module);
        let files = if index == 0 { &first.files } else { &second.files };
        let mut again = Daemon::spawn(files);
        again.wait_until_ready().expect("it was there before");
        daemons[index] = Some(again);
        host.more(20, &module);
    }
    host.stop();
}

#[test]
fn two_daemons_that_are_killed_together_and_come_back_together_are_no_error_for_the_host() {
    let tokens = [Token::softhsm(), Token::softhsm()];
    let [mut first, mut second] = tokens.each_ref().map(Setup::on);
    trust(&first, &second);
    let (mut one, mut other) = (first.start(), second.start());
    let mut module = Module::new(&first, &[&one, &other]);
    module.token().insert("timeout".into(), "60s".into());
    module.write();
    for _ in 0..3 {
        let mut host = Looping::start(&module);
        host.more(10, &module);
        // A call loses the connection to one, goes to the other, and loses that one too.
        one.kill();
        other.kill();
        one = Daemon::spawn(&first.files);
        other = Daemon::spawn(&second.files);
        host.more(10, &module);
        host.stop();
        // The next host finds both ready, and uses the first one.
        one.wait_until_ready().expect("it was there before");
        other.wait_until_ready().expect("it was there before");
    }
}

#[test]
fn a_key_that_the_first_of_two_daemons_never_opened_is_no_error_for_who_starts() {
    let token = Token::softhsm();
    let mut first = Setup::on(&token);
    let mut second = Setup::software();
    trust(&first, &second);
    token.take_away();
    let daemons = [first.start(), second.start()];
    let mut module = Module::new(&first, &[&daemons[0], &daemons[1]]);
    module.act(BY_LABEL, &["sequential", "2", "threads", "4", "2"]);
    module.act(BY_ID, &["sequential", "1"]);
    // The same where the keys are not named but listed.
    module.token().remove("keys");
    module.write();
    module.act(BY_LABEL, &["sequential", "2"]);
    assert_eq!(module.log(), "", "nothing that a user could notice");

    let mut show = command(claviger());
    show.args(["keys", "show", KEY]);
    let mut certificate = command(claviger());
    certificate.args(["keys", "certificate", KEY]);
    for command in [&mut show, &mut certificate] {
        for daemon in &daemons {
            command.arg("--endpoint");
            command.arg(format!("https://localhost:{}", daemon.address().port()));
        }
        let [ca, own, private_key] =
            ["caller-ca.pem", "caller.crt", "caller.key"].map(|name| first.files.path(name));
        command
            .arg("--ca")
            .arg(ca)
            .arg("--certificate")
            .arg(own)
            .arg("--private-key")
            .arg(private_key);
    }
    assert!(text(&mut show).contains("2048"));
    assert!(text(&mut certificate).starts_with("-----BEGIN CERTIFICATE-----"));
}

#[test]
fn the_mechanisms_of_a_key_that_is_not_open_yet_are_waited_for() {
    let token = Token::softhsm();
    let mut base = Setup::on(&token);
    token.take_away();
    let daemon = base.start();
    let mut module = Module::new(&base, &[&daemon]);
    let tool = |module: &Module| {
        let mut tool = module.program("pkcs11-tool");
        tool.arg("--module").arg(library()).arg("--list-mechanisms");
        tool
    };
    module.token().insert("timeout".into(), "500ms".into());
    module.write();
    let output = tool(&module).output().expect("scripts/setup installs OpenSC");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("CKR_DEVICE_ERROR"), "{output:?}");

    module.token().insert("timeout".into(), "60s".into());
    module.write();
    let before = module.log().len();
    let waiting = tool(&module).stdout(Stdio::piped()).spawn().expect("it started before");
    let begun = Instant::now();
    while !module.log()[before..].contains("the daemon has not opened it yet") {
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(10));
    }
    token.bring_back();
    let output = waiting.wait_with_output().expect("it ends");
    let listed = String::from_utf8_lossy(&output.stdout);
    assert!(listed.contains("RSA-PKCS-OAEP") && listed.contains("decrypt"), "{listed}");
}

/// Whom the setuid file belongs to.
const NOBODY: u32 = 65_534;

/// A host that runs as another user than the one that started it must not be told by its environment whom
/// to trust.
#[test]
fn a_host_with_more_rights_than_its_user_ignores_the_variable() {
    assert!(rustix::process::geteuid().is_root(), "run this test as root: it makes a setuid file");
    let setup = ModuleSetup::of(Setup::software());
    let folder = tempfile::Builder::new().prefix("claviger-setuid-").tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let copy = |from: &Path, name: &str| {
        let to = folder.path().join(name);
        run(command("cp").arg(from).arg(&to));
        to
    };
    let program = copy(host(), "host");
    let module = copy(&library(), "libclaviger_pkcs11.so");
    let values = ["wrapped", "material"].map(|name| copy(&setup.base.files.path(name), name));
    std::os::unix::fs::chown(&program, Some(NOBODY), None).unwrap();
    let life = |mode: u32| {
        fs::set_permissions(&program, Permissions::from_mode(mode)).unwrap();
        let mut host = setup.module.program(&program);
        host.arg(&module).args([SERIAL, BY_LABEL]).args(&values).args(["sequential", "1"]);
        host.output().unwrap()
    };
    let ordinary = life(0o755);
    assert_eq!(setup.module.said(&ordinary).len(), 1);
    let privileged = life(0o4755);
    let errors = String::from_utf8_lossy(&privileged.stderr);
    assert_eq!(
        errors,
        "C_Initialize: 0x6\n",
        "is {} mounted with nosuid?",
        folder.path().display()
    );
    assert_eq!(setup.module.said(&life(0o755)).len(), 1);
}

#[test]
fn a_key_that_is_not_open_yet_is_waited_for() {
    let token = Token::softhsm();
    let mut base = Setup::on(&token);
    token.take_away();
    let daemon = base.start();
    let mut module = Module::new(&base, &[&daemon]);
    module.token().insert("timeout".into(), "60s".into());
    module.write();
    let host = module
        .host(BY_LABEL, &["sequential", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the host starts");
    let begun = Instant::now();
    while !module.log().contains("the daemon has not opened it yet") {
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(10));
    }
    token.bring_back();
    let output = host.wait_with_output().expect("the host ends");
    assert_eq!(module.said(&output)[0].tasks, 1);
}

#[test]
fn a_daemon_that_is_gone_is_an_error_with_a_reason_in_the_log() {
    let mut setup = ModuleSetup::of(Setup::software());
    setup.module.token().insert("timeout".into(), "300ms".into());
    setup.module.write();
    setup.daemon.kill();
    let output = setup.module.host(BY_LABEL, &["sequential", "1"]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("FindObjectsInit") && errors.contains("0x30"), "{errors}");
    let log = setup.module.log();
    assert!(log.contains("cannot reach the daemon at https://127.0.0.1"), "{log}");
    assert!(log.contains("C_FindObjectsInit: CKR_DEVICE_ERROR (0x30)"), "{log}");
    assert!(!log.contains("never looked at"), "the PIN is nowhere: {log}");
}

#[test]
fn a_wrong_configuration_is_an_error_with_a_reason_in_the_log_and_nowhere_else() {
    let mut setup = ModuleSetup::of(Setup::software());
    setup.module.token().insert("pin".into(), "1234".into());
    setup.module.write();
    let output = setup.module.host(BY_LABEL, &["sequential", "1"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "C_Initialize: 0x6\n");
    assert_eq!(output.stdout, b"");
    let log = setup.module.log();
    assert!(log.contains("pkcs11.toml: ") && log.contains("unknown field `pin`"), "{log}");
}

#[test]
fn without_a_log_a_host_hears_nothing_but_return_values() {
    let mut setup = ModuleSetup::of(Setup::software());
    setup.module.configuration.remove("log");
    setup.module.token().insert("timeout".into(), "300ms".into());
    setup.module.write();
    setup.daemon.kill();
    let output = setup.module.host(BY_LABEL, &["sequential", "1"]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.ends_with(": 0x30\n") && errors.lines().count() == 1, "{errors}");
    assert_eq!(output.stdout, b"");
}

/// valgrind sees each access, and what is still allocated at the end and no longer reachable.
#[test]
#[ignore = "long: scripts/test --all"]
fn valgrind_finds_no_invalid_access_and_no_leak_that_grows() {
    let mut base = Setup::software();
    base.files.set("server.handshake_timeout", "1m");
    let mut setup = ModuleSetup::of(base);
    // Under valgrind everything takes some fifty times as long.
    setup.module.token().insert("timeout".into(), "60s".into());
    setup.module.write();
    let leaks = |actions: &[&str]| {
        let mut valgrind = setup.module.program("valgrind");
        valgrind.args(["--error-exitcode=9", "--leak-check=full", "--show-leak-kinds=definite"]);
        valgrind.args(["--errors-for-leak-kinds=none", "--num-callers=40", "--fair-sched=yes"]);
        valgrind.arg(host());
        setup.module.arguments(&mut valgrind, BY_LABEL, actions);
        let output = valgrind.output().expect("scripts/setup installs valgrind");
        let report = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{report}\n{}", setup.module.log());
        lost_bytes(&report).unwrap_or_else(|| panic!("no summary in {report}"))
    };
    let few = leaks(&["sequential", "2", "threads", "2", "2"]);
    let many = leaks(&["sequential", "20", "threads", "2", "10", "fork-logged-in"]);
    assert_eq!(few, many, "unreachable bytes, after few and after many cycles");
}

/// The bytes that are definitely lost, from valgrind's summary.
fn lost_bytes(report: &str) -> Option<usize> {
    if report.contains("no leaks are possible") {
        return Some(0);
    }
    // The summary of the host itself comes last; children of fork have theirs before it.
    let line = report.lines().rfind(|line| line.contains("definitely lost:"))?;
    let number = line.split("definitely lost:").nth(1)?.split_whitespace().next()?;
    number.replace(',', "").parse().ok()
}

#[test]
fn the_library_exports_three_functions_and_stays_in_memory() {
    let defined = text(command("nm").args(["-D", "--defined-only"]).arg(library()));
    let names: Vec<_> = defined.lines().filter_map(|line| line.split(' ').next_back()).collect();
    assert_eq!(names, ["C_GetFunctionList", "C_GetInterface", "C_GetInterfaceList"]);
    let dynamic = text(command("readelf").arg("-d").arg(library()));
    assert!(dynamic.contains("NODELETE"), "{dynamic}");
}

#[test]
fn the_library_needs_the_c_library_of_debian_12_and_no_other_crypto() {
    let dynamic = text(command("readelf").arg("-d").arg(library()));
    let mut needed: Vec<_> =
        dynamic.lines().filter_map(|line| line.split("Shared library: [").nth(1)).collect();
    needed.retain(|name| {
        !["libc.so.6]", "libm.so.6]", "libgcc_s.so.1]", "libdl.so.2]", "libpthread.so.0]"]
            .contains(name)
            && !name.starts_with("ld-linux")
    });
    assert!(needed.is_empty(), "{needed:?}");
    let symbols = text(command("objdump").arg("-T").arg(library()));
    let versions = symbols.split("GLIBC_2.").skip(1).map(|rest| {
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().expect("glibc's versions are numbers")
    });
    let newest = versions.max().expect("it uses glibc");
    assert!(newest <= 34, "it needs glibc 2.{newest}");
}

fn text(command: &mut Command) -> String {
    String::from_utf8(run(command).stdout).expect("these tools print ASCII")
}

//! From the start of the process to open ports, against a C program that only logs in to SoftHSM;
//! and the memory of a daemon that has SoftHSM loaded and nothing to do, with every backend built in
//! and with those of one machine alone.
#![expect(clippy::cast_precision_loss, reason = "bytes of memory are below 2^52")]

use std::io::Read;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use claviger::cli::bench::cpu;
use claviger::cli::bench::load::median;
use claviger::cli::local_daemon::softhsm::{CONFIGURATION, LABEL, module};
use claviger::cli::local_daemon::{free_ports, is_ready};
use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::Runtime;

use crate::table::{Row, Wanted};
use crate::{CLAVIGER, Effort, Outcome};

/// Built with `--no-default-features --features software,pkcs11`; `scripts/bench` does it.
const LOCAL_ONLY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/local-only/release/claviger");
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/bare_start.c");
const POLL: Duration = Duration::from_micros(100);
const AT_MOST: Duration = Duration::from_secs(20);
/// After this a daemon without calls is idle.
const REST: Duration = Duration::from_secs(3);

pub(crate) fn measure(_: &Runtime, effort: Effort) -> Outcome<Vec<Row>> {
    let folder = tempfile::tempdir()?;
    let dir = folder.path();
    let port = free_ports()?;
    // The demo leaves a token, a key, certificates and a configuration behind.
    run(Command::new(CLAVIGER)
        .args(["demo", "--softhsm", "--once", "--port"])
        .arg(port.to_string())
        .arg("--dir")
        .arg(dir))?;
    let bare = dir.join("bare_start");
    run(Command::new("cc")
        .args(["-std=c11", "-O2", "-Wall", "-o"])
        .arg(&bare)
        .args([SOURCE, "-ldl"]))?;
    let (mut ratios, mut bares, mut opens, mut readies) = (vec![], vec![], vec![], vec![]);
    for round in 1..=effort.rounds * 3 {
        eprintln!("start: round {round} of {}", effort.rounds * 3);
        let c = start_bare(&bare, dir)?;
        let mut daemon = Daemon::start(CLAVIGER, dir)?;
        let open = daemon.until(|| TcpStream::connect(("127.0.0.1", port)).is_ok())?;
        let ready = daemon.until(|| is_ready(port + 1))?;
        daemon.stop()?;
        ratios.push(open / c);
        bares.push(c);
        opens.push(open);
        readies.push(ready);
    }
    let ms = |values: Vec<f64>| median(values).unwrap_or(f64::NAN) * 1e3;
    let (bare, open, ready) = (ms(bares), ms(opens), ms(readies));
    Ok(vec![
        Row {
            what: "process start to open ports, of a bare C program's to its login to SoftHSM"
                .into(),
            wanted: Some(Wanted::AtMost(2.0)),
            measured: median(ratios).unwrap_or(f64::NAN),
            unit: "x",
            figures: format!(
                "{open:.1} ms against {bare:.1} ms; key open, proven and /readyz after {ready:.0} ms"
            ),
        },
        Row {
            what:
                "resident memory, idle, SoftHSM loaded and logged in; software and PKCS#11 built in"
                    .into(),
            wanted: Some(Wanted::AtMost(20.0)),
            measured: resident(LOCAL_ONLY, dir, port)?,
            unit: " MiB",
            figures: String::new(),
        },
        Row {
            what: "the same with every backend built in".into(),
            wanted: None,
            measured: resident(CLAVIGER, dir, port)?,
            unit: " MiB",
            figures: String::new(),
        },
    ])
}

/// MiB of an idle daemon.
fn resident(program: &str, dir: &Path, port: u16) -> Outcome<f64> {
    let mut daemon = Daemon::start(program, dir)?;
    daemon.until(|| is_ready(port + 1))?;
    std::thread::sleep(REST);
    let resident = cpu::resident(daemon.child.id()).ok_or("there is no /proc")?;
    daemon.stop()?;
    Ok(resident as f64 / f64::from(1 << 20))
}

/// Seconds until it has logged in.
fn start_bare(program: &Path, dir: &Path) -> Outcome<f64> {
    let begun = Instant::now();
    let mut child = Command::new(program)
        .arg(module()?)
        .arg(LABEL)
        .arg(dir.join("pin"))
        .env(CONFIGURATION, dir.join("softhsm2.conf"))
        .stdout(Stdio::piped())
        .spawn()?;
    let mut word = [0];
    let read = child.stdout.take().ok_or("no stdout")?.read(&mut word)?;
    let took = begun.elapsed().as_secs_f64();
    let status = child.wait()?;
    if read != 1 || !status.success() {
        return Err(format!("bare_start: {status}").into());
    }
    Ok(took)
}

/// A daemon that was just started; it is asked to end, never killed in the middle of a login, which
/// would count as an attempt with its PIN.
struct Daemon {
    child: Child,
    begun: Instant,
}

impl Daemon {
    fn start(program: &str, dir: &Path) -> Outcome<Self> {
        let begun = Instant::now();
        let child = Command::new(program)
            .args(["serve", "--demo", "--config"])
            .arg(dir.join("claviger.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("{program}: {error}"))?;
        Ok(Self { child, begun })
    }

    /// Seconds from the start until `done`.
    fn until(&mut self, done: impl Fn() -> bool) -> Outcome<f64> {
        while !done() {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("the daemon ended: {status}").into());
            }
            if self.begun.elapsed() > AT_MOST {
                return Err("the daemon takes too long to start".into());
            }
            std::thread::sleep(POLL);
        }
        Ok(self.begun.elapsed().as_secs_f64())
    }

    fn stop(mut self) -> Outcome<()> {
        let pid = i32::try_from(self.child.id())?;
        kill_process(Pid::from_raw(pid).ok_or("no such process")?, Signal::TERM)?;
        self.child.wait()?;
        Ok(())
    }
}

fn run(command: &mut Command) -> Outcome<()> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(format!("{command:?}: {}: {error}", output.status).into())
}

//! A server process: found by its script, started with a clean environment, ended by its own id.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// A running server with a folder of its own, in which it works and which ends with it.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    folder: tempfile::TempDir,
}

impl Process {
    /// Starts what `command` makes of the folder; what it says is in the folder's `log`.
    pub(crate) fn start(command: impl FnOnce(&Path) -> Command) -> Self {
        let folder = tempfile::tempdir().expect("the temporary folder is writable");
        let path = folder.path();
        let log = File::create(path.join("log")).expect("a fresh folder is writable");
        let mut command = command(path);
        let child = command
            .envs([("HOME", path), ("TMPDIR", path)])
            .current_dir(path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file has two handles"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} did not start: {error}"));
        Self { child, folder }
    }

    /// Its folder.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What it has said so far.
    pub(crate) fn log(&self) -> String {
        let log = fs::read(self.folder.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Whether it has not ended.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the child is ours").is_none()
    }

    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to it alone.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.id().cast_signed()).expect("a process id");
        kill_process(pid, signal).expect("the child is ours and was not waited for");
    }

    /// Stops it and waits until each of its threads stands still: another core may still run one for a
    /// while, which could answer.
    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
        while !self.stands_still() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn stands_still(&self) -> bool {
        let tasks =
            fs::read_dir(format!("/proc/{}/task", self.id())).expect("it is not waited for");
        tasks.flatten().all(|task| {
            // `pid (name) state …`; a thread that has ended meanwhile has none.
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['T', 't']))
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both keep everything in memory: there is nothing to save.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU time that a process has used so far, by its name in /proc (Linux).
pub fn cpu_time(process: &str) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).expect("it runs");
    // The name in parentheses may contain blanks; utime and stime are fields 14 and 15.
    let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
    let fields = fields.split_whitespace().skip(11).take(2);
    let ticks: u64 = fields.map(|field| field.parse::<u64>().expect("/proc has numbers")).sum();
    Duration::from_nanos(ticks * 1_000_000_000 / rustix::param::clock_ticks_per_second())
}

/// A command that takes nothing over from the tests' environment: proxies and certificate bundles of
/// the machine would change what is tested.
pub(crate) fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/bin:/bin");
    command
}

/// A free port. Another process may take it first: callers try again.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("it was just bound").port()
}

/// Runs one of the repository's scripts and gives the path that it prints. Scripts download, so they
/// keep the whole environment.
pub(crate) fn program_from_script(name: &str, arguments: &[&str]) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts").join(name);
    let mut command = Command::new(script);
    command.args(arguments).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", output.status);
    PathBuf::from(String::from_utf8(output.stdout).expect("a path in UTF-8").trim())
}

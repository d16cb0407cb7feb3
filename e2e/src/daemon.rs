//! The daemon as a process: `claviger serve`.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::daemon_files::DaemonFiles;
use crate::process::{command, target_folder};

/// How long a daemon may take until it is ready, and until it has ended.
const PATIENCE: Duration = Duration::from_mins(1);

/// A running daemon. When dropped it is killed, by its own process id only.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    address: SocketAddr,
    operations: SocketAddr,
    log: PathBuf,
}

/// How a daemon ended.
#[derive(Clone, Debug)]
pub struct Exit {
    /// The exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// All that it has written to stderr since its files were made.
    pub log: String,
}

impl Daemon {
    /// Starts the daemon of these files and waits until it is ready. A port that was taken in the
    /// meantime is replaced.
    pub fn start(files: &mut DaemonFiles) -> Self {
        let mut attempts = 0;
        loop {
            let mut daemon = Self::spawn(files);
            let Err(exit) = daemon.wait_until_ready() else { return daemon };
            attempts += 1;
            assert!(
                attempts < 10 && exit.log.to_lowercase().contains("in use"),
                "the daemon ended with {:?} instead of getting ready:\n{}",
                exit.code,
                exit.log
            );
            files.choose_ports();
        }
    }

    /// Writes the configuration and starts the daemon, without waiting for anything.
    pub fn spawn(files: &DaemonFiles) -> Self {
        Self::spawn_by(files, r#"exec "$0" "$@""#, Stdio::null())
    }

    /// The same by a shell script, whose arguments are the command: `ulimit -n 256; exec "$0" "$@"`.
    pub fn spawn_by(files: &DaemonFiles, script: &str, stdin: Stdio) -> Self {
        files.write();
        let log = files.path("stderr.log");
        let file = File::options().create(true).append(true).open(&log);
        let child = command("sh")
            .args(["-c", script])
            .arg(claviger())
            .args(["serve", "--config"])
            .arg(files.configuration_file())
            .envs(files.environment().iter().cloned())
            .stdin(stdin)
            .stdout(Stdio::null())
            .stderr(file.expect("the files's folder is writable"))
            .spawn()
            .expect("the binary starts");
        Self { child, address: files.address(), operations: files.operations_address(), log }
    }

    /// Waits until `/readyz` says yes, or gives how the daemon ended before that.
    pub fn wait_until_ready(&mut self) -> Result<(), Exit> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the child is ours") {
                return Err(self.exit(status));
            }
            if self.operations_get("/readyz").is_ok_and(|(code, _)| code == 200) {
                return Ok(());
            }
            let waited = begun.elapsed();
            assert!(waited < PATIENCE, "not ready after {waited:?}:\n{}", self.log());
            sleep(Duration::from_millis(10));
        }
    }

    /// Where callers connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the operations listener is.
    pub fn operations(&self) -> SocketAddr {
        self.operations
    }

    /// An HTTP GET on the operations listener: status code and body.
    pub fn operations_get(&self, path: &str) -> std::io::Result<(u16, String)> {
        self.operations_get_as(path, "*/*")
    }

    /// The same, of what the client accepts.
    pub fn operations_get_as(&self, path: &str, accept: &str) -> std::io::Result<(u16, String)> {
        let mut stream = TcpStream::connect_timeout(&self.operations, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: localhost\r\naccept: {accept}\r\nconnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        let code = code.ok_or_else(|| std::io::Error::other(format!("no HTTP: {answer:?}")))?;
        Ok((code, body.to_owned()))
    }

    /// The sum of all samples of a metric whose labels contain each of `labels` (`name="value"`).
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let (code, body) = self.operations_get("/metrics").expect("/metrics answers");
        assert_eq!(code, 200, "{body}");
        body.lines()
            .filter(|line| {
                line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                    && labels.iter().all(|label| line.contains(label))
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// The sum of all samples of a counter.
    #[expect(clippy::cast_sign_loss, reason = "counters are whole numbers from 0 on")]
    pub fn count(&self, name: &str, labels: &[&str]) -> usize {
        self.metric(name, labels) as usize
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGHUP: reload.
    pub fn reload(&self) {
        self.signal(Signal::HUP);
    }

    /// SIGTERM, without waiting for the end.
    pub fn ask_to_stop(&self) {
        self.signal(Signal::TERM);
    }

    /// SIGTERM; waits for the end.
    pub fn terminate(self) -> Exit {
        self.ask_to_stop();
        self.wait()
    }

    /// SIGKILL; waits for the end.
    pub fn kill(self) -> Exit {
        self.signal(Signal::KILL);
        self.wait()
    }

    /// Waits for the end.
    pub fn wait(mut self) -> Exit {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the child is ours") {
                return self.exit(status);
            }
            let waited = begun.elapsed();
            assert!(waited < PATIENCE, "still running after {waited:?}:\n{}", self.log());
            sleep(Duration::from_millis(5));
        }
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the child is ours").is_none()
    }

    /// All that the daemons of these files have written to stderr.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until the log contains `text`.
    pub fn wait_for_log(&self, text: &str) {
        let begun = Instant::now();
        while !self.log().contains(text) {
            let waited = begun.elapsed();
            assert!(waited < PATIENCE, "no {text:?} after {waited:?} in:\n{}", self.log());
            sleep(Duration::from_millis(10));
        }
    }

    /// Resident memory in bytes (Linux).
    pub fn rss(&self) -> u64 {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kilobytes.expect("/proc has VmRSS in kB") * 1024
    }

    /// CPU time used so far, user and system (Linux).
    pub fn cpu_time(&self) -> Duration {
        let stat = self.proc("stat");
        // The name in parentheses may contain blanks; utime and stime are fields 14 and 15.
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks: u64 = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|field| field.parse::<u64>().expect("/proc has numbers"))
            .sum();
        Duration::from_nanos(ticks * 1_000_000_000 / rustix::param::clock_ticks_per_second())
    }

    /// Its child processes that have not ended, which are those of modules (Linux).
    pub fn children(&self) -> Vec<u32> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).into_iter().flatten();
        let of_task = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).ok();
        let lists: Vec<_> = tasks.flatten().filter_map(of_task).collect();
        let all = lists.iter().flat_map(|list| list.split_ascii_whitespace());
        all.filter_map(|child| child.parse().ok()).filter(|child| is_alive(*child)).collect()
    }

    fn proc(&self, file: &str) -> String {
        let path = format!("/proc/{}/{file}", self.pid());
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).expect("the child is ours and was not waited for");
    }

    fn exit(&self, status: ExitStatus) -> Exit {
        Exit { code: status.code(), signal: status.signal(), log: self.log() }
    }
}

/// Whether the process has not ended.
fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only where it has ended and was waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The binary under test: `CLAVIGER_BIN`, else the one of this build.
pub fn claviger() -> PathBuf {
    if let Some(path) = std::env::var_os("CLAVIGER_BIN") {
        return path.into();
    }
    let path = target_folder().join("claviger");
    assert!(
        path.exists(),
        "{} was not built: run `cargo build`, or name another with CLAVIGER_BIN",
        path.display()
    );
    path
}

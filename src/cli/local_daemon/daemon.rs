//! The process of a local daemon: the same program, as a process of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::{LocalDaemon, failed};
use crate::cli::failure::{Exit, Failure};

/// How long the daemon may take until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// The running daemon.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it and waits until it is ready.
    pub async fn start(local: &LocalDaemon) -> Result<Self, Failure> {
        let program = std::env::current_exe().map_err(|error| failed("this program", &error))?;
        Self::start_program(&program, local).await
    }

    /// Starts `program`, another `claviger`, as [`Self::start`] does.
    pub async fn start_program(program: &Path, local: &LocalDaemon) -> Result<Self, Failure> {
        let log = local.dir.join("daemon.log");
        let file = File::create(&log).map_err(|error| failed("daemon.log", &error))?;
        let child = Command::new(program)
            .args(["serve", "--demo", "--config"])
            .arg(&local.config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed("starting the daemon", &error))?;
        let mut daemon = Self { child, log };
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let ready = is_ready(local.operations_port);
            // Asked after it: what answers is ours only if ours still runs.
            if let Ok(Some(_)) = daemon.child.try_wait() {
                return Err(daemon.ended());
            }
            if ready {
                return Ok(daemon);
            }
            if Instant::now() > deadline {
                return Err(Failure::new(Exit::Unavailable, "the daemon did not become ready")
                    .advise(format!("Its log is {}.", daemon.log.display())));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Its process.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for Ctrl-C or SIGTERM, or for the daemon's own end.
    pub async fn wait(&mut self) -> Result<(), Failure> {
        let mut terminate =
            signal(SignalKind::terminate()).map_err(|error| failed("SIGTERM", &error))?;
        tokio::select! {
            _ = tokio::signal::ctrl_c() => Ok(()),
            _ = terminate.recv() => Ok(()),
            _ = self.child.wait() => Err(self.ended()),
        }
    }

    /// Asks it to drain and waits for its end.
    pub async fn stop(mut self) -> Result<(), Failure> {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok())
            && let Some(pid) = rustix::process::Pid::from_raw(pid)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let ended = self.child.wait().await.map_err(|error| failed("the daemon", &error))?;
        if ended.success() { Ok(()) } else { Err(self.ended()) }
    }

    /// What its log says at the end.
    fn ended(&self) -> Failure {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(3).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        let log = self.log.display();
        let message = match &last[..] {
            [] => format!("the daemon ended, and its log {log} is empty"),
            lines => format!("the daemon ended; the end of {log}:\n  {}", lines.join("\n  ")),
        };
        Failure::new(Exit::Failure, message)
    }
}

/// Whether /readyz of the operations listener at `port` answers 200.
pub fn is_ready(port: u16) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream
            .write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer.starts_with("HTTP/1.1 200"))
    };
    ask().unwrap_or(false)
}

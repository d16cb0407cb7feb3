//! Server processes: started, waited for, ended with the value that holds them.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use claviger::cli::local_daemon::is_ready;

use crate::{CLAVIGER, Outcome};

const READY_WITHIN: Duration = Duration::from_mins(1);

/// A running server.
#[derive(Debug)]
pub(crate) struct Server(Child);

impl Server {
    /// This program as a server, until `ready` says that it is.
    pub(crate) fn start(mode: &str, path: &Path, ready: impl Fn() -> bool) -> Outcome<Self> {
        Self::wait(Command::new(std::env::current_exe()?).arg(mode).arg(path), ready)
    }

    /// The daemon; its operations listener is at `port + 1`.
    pub(crate) fn claviger(config: &Path, port: u16) -> Outcome<Self> {
        let mut command = Command::new(CLAVIGER);
        let command = command.args(["serve", "--demo", "--config"]).arg(config);
        Self::wait(command, || is_ready(port + 1))
    }

    fn wait(command: &mut Command, ready: impl Fn() -> bool) -> Outcome<Self> {
        let mut server = Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
        let deadline = Instant::now() + READY_WITHIN;
        while !ready() {
            if let Some(status) = server.0.try_wait()? {
                return Err(format!("a server ended with {status}; its error is above").into());
            }
            if Instant::now() > deadline {
                return Err("a server did not become ready".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// The whole daemon over keys that do nothing, as `program` has it; its operations listener is at
    /// `port + 1`.
    pub(crate) fn noop(program: &Path, config: &Path, port: u16) -> Outcome<Self> {
        Self::wait(Command::new(program).arg("--serve-noop").arg(config), || is_ready(port + 1))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

//! The child as a process: started from this program's own file, waited for, killed.

use std::collections::BTreeMap;
use std::io::{self, PipeReader};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tokio::sync::watch;

use super::CHILD_ARGUMENT;
use crate::module::InUse;

/// A child. It dies with the thread that started it, so that one waits for its end.
#[derive(Debug)]
pub(super) struct Process {
    pid: Pid,
    /// Whether it was not waited for yet: until then its number is no other process's.
    is_ours: Arc<Mutex<bool>>,
    ended: watch::Receiver<Option<String>>,
}

/// What a process was started with.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) process: Process,
    pub(super) socket: UnixStream,
    /// What it writes to stdout and stderr.
    pub(super) output: PipeReader,
}

/// Starts this program anew as the child of a provider.
pub(super) fn start(environment: &BTreeMap<String, String>) -> io::Result<Started> {
    let (socket, theirs) = UnixStream::pair()?;
    let (output, written) = io::pipe()?;
    let mut command = Command::new(own_file()?);
    command
        .arg0("claviger")
        .arg(CHILD_ARGUMENT)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(written.try_clone()?)
        .stderr(written)
        .envs(environment)
        // It speaks to no service manager.
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_USEC")
        .env_remove("LISTEN_FDS")
        .env_remove("LISTEN_PID");
    let is_ours = Arc::new(Mutex::new(true));
    let (tell, ended) = watch::channel(None);
    let (reply, pid) = mpsc::channel();
    let theirs = Arc::clone(&is_ours);
    let in_use = InUse::announce();
    thread::Builder::new().name("pkcs11-process".to_owned()).spawn(move || {
        let spawned = command.spawn();
        // It holds the other ends of the socket and the pipe.
        drop(command);
        match spawned {
            Ok(child) => {
                drop(reply.send(Ok(pid_of(&child))));
                let how = wait(child, &theirs);
                drop(in_use);
                tell.send_replace(Some(how));
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    })?;
    let pid = pid.recv().map_err(io::Error::other)??;
    Ok(Started { process: Process { pid, is_ours, ended }, socket, output })
}

impl Process {
    /// Its number.
    pub(super) fn id(&self) -> u32 {
        self.pid.as_raw_pid().cast_unsigned()
    }

    /// SIGKILL, unless it has ended.
    pub(super) fn kill(&self) {
        let is_ours = self.is_ours.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_ours {
            // It is ours, so it can be signalled.
            let _ = kill_process(self.pid, Signal::KILL);
        }
    }

    /// Waits for its end: how it ended, as in "was killed by signal 11".
    pub(super) async fn ended(&self) -> String {
        let mut ended = self.ended.clone();
        let how = ended.wait_for(Option::is_some).await;
        how.ok().and_then(|how| how.clone()).unwrap_or_else(|| "is gone".to_owned())
    }

    /// Whether a signal or a debugger has stopped it.
    pub(super) fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id()));
        let state = stat.ok().and_then(|stat| stat.rsplit_once(") ")?.1.chars().next());
        matches!(state, Some('T' | 't'))
    }

    /// Its private memory that can be written to, in bytes: what `RLIMIT_DATA` counts.
    pub(super) fn memory(&self) -> Option<u64> {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.id())).ok()?;
        let pages: u64 = statm.split_ascii_whitespace().nth(5)?.parse().ok()?;
        Some(pages * rustix::param::page_size() as u64)
    }
}

/// The file that this process runs, even if another one has its name by now.
fn own_file() -> io::Result<std::path::PathBuf> {
    if cfg!(target_os = "linux") { Ok("/proc/self/exe".into()) } else { std::env::current_exe() }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed()).expect("a process's number is not 0")
}

fn wait(mut child: Child, is_ours: &Mutex<bool>) -> String {
    let id = WaitId::Pid(pid_of(&child));
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while let Err(rustix::io::Errno::INTR) = waitid(id.clone(), options) {}
    let mut is_ours = is_ours.lock().unwrap_or_else(PoisonError::into_inner);
    *is_ours = false;
    match child.wait() {
        Ok(status) => how(status),
        Err(error) => format!("cannot be waited for: {error}"),
    }
}

fn how(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was killed by signal {signal}{}", name(signal)),
        (None, Some(code)) => format!("ended with exit code {code}"),
        (None, None) => "ended".to_owned(),
    }
}

fn name(signal: i32) -> &'static str {
    let names = [
        (Signal::SEGV, " (SIGSEGV)"),
        (Signal::ABORT, " (SIGABRT)"),
        (Signal::BUS, " (SIGBUS)"),
        (Signal::ILL, " (SIGILL)"),
        (Signal::FPE, " (SIGFPE)"),
        (Signal::SYS, " (SIGSYS)"),
        (Signal::KILL, " (SIGKILL)"),
        (Signal::TERM, " (SIGTERM)"),
    ];
    let found = names.into_iter().find(|(known, _)| known.as_raw() == signal);
    found.map_or("", |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_process_ended_names_the_signal_or_the_code() {
        assert_eq!(how(ExitStatus::from_raw(11)), "was killed by signal 11 (SIGSEGV)");
        assert_eq!(how(ExitStatus::from_raw(6)), "was killed by signal 6 (SIGABRT)");
        assert_eq!(how(ExitStatus::from_raw(7 << 8)), "ended with exit code 7");
    }
}

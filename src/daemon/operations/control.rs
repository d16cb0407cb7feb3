//! The control socket: what an operator asks of the running daemon, on its own host.
//!
//! A Unix socket of mode 0600 in the state directory. One line of JSON asks ([`Command`]), one line
//! answers ([`Answer`]), then the connection ends. Only root and the daemon's own user are heard, by
//! the kernel's word (`SO_PEERCRED`); the uid goes into the audit log.
//!
//! To add a command: a variant of [`Command`], its arm in `serve/commands.rs`, and a command of the
//! program that calls [`ask`].

use std::fmt;
use std::future::Future;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

use crate::daemon::transport::listener::BoundUnix;

/// The socket's name in the state directory.
const FILE: &str = "control.sock";
/// Commands at a time; more wait.
const MOST_COMMANDS: usize = 8;
/// The longest command that is read, in bytes.
const LONGEST_COMMAND: u64 = 64 * 1024;
/// The longest answer that is read, in bytes: a status has about 1 KB for each key and caller.
const LONGEST_ANSWER: u64 = 256 << 20;
/// How long a command may take to be sent.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// What can be asked of a running daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// Reads the configuration again, as SIGHUP does: answered with [`Reloaded`] once it is in force, or
    /// with the reason why the old one stays.
    Reload,
    /// What a caller has spent of `failed_unwraps` on a key: answered with a [`BudgetSpent`].
    BudgetShow {
        /// The caller's name in the configuration.
        caller: String,
        /// The key's name in the configuration.
        key: String,
    },
    /// Gives it back, durably and recorded: answered with the [`BudgetSpent`] of before.
    BudgetReset {
        /// The caller's name in the configuration.
        caller: String,
        /// The key's name in the configuration.
        key: String,
    },
    /// Takes a provider out of service: answered with [`Drained`] once no call is in flight to it, or
    /// `wait_s` seconds have passed.
    Drain {
        /// The provider's name in the configuration.
        provider: String,
        /// How long calls in flight are waited for, in seconds.
        wait_s: u64,
        /// Even where a version is left without a replica that serves.
        force: bool,
    },
    /// Takes it into service again, once its replicas have proven every algorithm: answered with the
    /// [`ReplicaStatus`](super::status::ReplicaStatus) of each of them.
    Undrain {
        /// The provider's name in the configuration.
        provider: String,
    },
    /// Which configuration is in force: answered with an [`InForce`].
    Configuration,
    /// How the daemon is: answered with a [`Status`](super::status::Status).
    Status,
    /// Records that the failed logins of tokens were forgotten: answered with null.
    PinCleared {
        /// Their serial numbers.
        tokens: Vec<String>,
    },
}

/// A reload that took effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// What changed in the configuration, a phrase each, such as `key user-keys changed`.
    pub changed: Vec<String>,
}

/// The configuration in force; it holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    /// The file that it was read from.
    pub file: PathBuf,
    /// What the file held then.
    pub text: String,
}

/// A provider that is out of service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// Whether it was out before.
    pub was_drained: bool,
    /// Its replicas.
    pub replicas: usize,
    /// Operations that have not ended yet; they end with the old sessions.
    pub unanswered: u64,
    /// Versions, such as `user-keys version 1`, that no replica serves now.
    pub unserved: Vec<String>,
}

/// What a caller has spent of `failed_unwraps` on a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetSpent {
    /// The most distinct values that may fail within the window; none: the limit is off.
    pub limit: Option<u32>,
    /// The window, in seconds.
    pub window_s: Option<u64>,
    /// Distinct values that failed within the window.
    pub failed: usize,
    /// Those of them whose backend has not answered: they count until it does.
    pub unanswered: usize,
    /// In how many seconds the oldest leaves the window.
    pub next_in_s: Option<u64>,
}

/// What the daemon answers, as it is on the wire: `{"ok": …}` or `{"error": "…"}`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It was done; what it gives depends on the command.
    Ok(Value),
    /// It was not done, and why.
    Error(String),
}

/// Carries a command out for the user with this uid.
pub type Obey =
    Arc<dyn Fn(Command, u32) -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync>;

impl Answer {
    /// The answer to a command that was carried out.
    pub fn of<T: Serialize>(result: &T) -> Self {
        match serde_json::to_value(result) {
            Ok(value) => Self::Ok(value),
            Err(error) => Self::Error(format!("the answer cannot be written: {error}")),
        }
    }
}

/// The socket of the daemon with this state directory.
pub fn path_in(state_dir: &Path) -> PathBuf {
    state_dir.join(FILE)
}

/// Answers for ever.
pub async fn serve(socket: BoundUnix, obey: Obey) -> io::Result<()> {
    let room = Arc::new(Semaphore::new(MOST_COMMANDS));
    loop {
        let room = Arc::clone(&room).acquire_owned().await.map_err(io::Error::other)?;
        let stream = match socket.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "the control socket cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let obey = Arc::clone(&obey);
        tokio::spawn(async move {
            if let Err(error) = answer(stream, &obey).await {
                tracing::debug!(%error, "the control socket: a connection failed");
            }
            drop(room);
        });
    }
}

async fn answer(mut stream: UnixStream, obey: &Obey) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    let answer = if may_command(uid) {
        match tokio::time::timeout(SEND_TIMEOUT, read_line(&mut stream)).await {
            Ok(line) => match serde_json::from_str(&line?) {
                Ok(command) => obey(command, uid).await,
                Err(error) => Answer::Error(format!("this daemon has no such command: {error}")),
            },
            Err(_) => Answer::Error("the command did not come in time".to_owned()),
        }
    } else {
        tracing::warn!(
            uid,
            "the control socket: refused a user that is neither root nor the daemon's"
        );
        Answer::Error("only root and the daemon's own user may command it".to_owned())
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    stream.shutdown().await
}

fn may_command(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

async fn read_line(stream: &mut UnixStream) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(stream.take(LONGEST_COMMAND)).read_line(&mut line).await?;
    Ok(line)
}

/// Why a running daemon did not carry a command out.
#[derive(Debug)]
pub enum NotDone {
    /// Nothing answers at the socket.
    NotReached {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The daemon's own words.
    Refused(String),
}

/// Asks the daemon with this state directory, and waits at most `patience` for its answer.
pub fn ask<T: DeserializeOwned>(
    state_dir: &Path,
    command: &Command,
    patience: Duration,
) -> Result<T, NotDone> {
    let path = path_in(state_dir);
    let asked = || -> io::Result<Answer> {
        let mut stream = BlockingStream::connect(&path)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(SEND_TIMEOUT))?;
        let mut line = serde_json::to_vec(command)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        let mut answer = Vec::new();
        stream.take(LONGEST_ANSWER).read_to_end(&mut answer)?;
        Ok(serde_json::from_slice(&answer)?)
    };
    match asked() {
        Ok(Answer::Ok(value)) => serde_json::from_value(value)
            .map_err(|error| NotDone::Refused(format!("it answered something else: {error}"))),
        Ok(Answer::Error(reason)) => Err(NotDone::Refused(reason)),
        Err(error) => Err(NotDone::NotReached { path, error }),
    }
}

impl fmt::Display for NotDone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReached { path, error } => {
                write!(f, "no daemon answers at {}: {error}", path.display())
            }
            Self::Refused(reason) => write!(f, "the daemon refused: {reason}"),
        }
    }
}

impl std::error::Error for NotDone {}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::daemon::transport::listener::bind_private;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// A socket whose daemon tells which command it got from whom.
    fn served() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let socket = bind_private(&path_in(folder.path())).unwrap();
        let obey: Obey = Arc::new(|command, uid| {
            Box::pin(async move {
                match command {
                    Command::BudgetShow { caller, key } => Answer::of(&(caller, key, uid)),
                    _ => Answer::Error("not now".to_owned()),
                }
            })
        });
        tokio::spawn(serve(socket, obey));
        folder
    }

    async fn ask_in(folder: &Path, command: Command) -> Result<(String, String, u32), NotDone> {
        let folder = folder.to_owned();
        tokio::task::spawn_blocking(move || ask(&folder, &command, PATIENCE)).await.unwrap()
    }

    #[tokio::test]
    async fn a_command_is_answered_and_the_daemon_knows_whose_it_is() {
        let folder = served();
        let mode = std::fs::metadata(path_in(folder.path())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let (caller, key) = ("key-connector".to_owned(), "user-keys".to_owned());
        let show = Command::BudgetShow { caller: caller.clone(), key: key.clone() };
        let own = rustix::process::geteuid().as_raw();
        assert_eq!(ask_in(folder.path(), show).await.unwrap(), (caller.clone(), key.clone(), own));
        let refused = ask_in(folder.path(), Command::BudgetReset { caller, key }).await;
        assert_eq!(refused.unwrap_err().to_string(), "the daemon refused: not now");
    }

    #[tokio::test]
    async fn what_is_no_command_is_refused_in_words_and_no_daemon_is_said_with_its_path() {
        let folder = served();
        for line in ["", "{}\n", "{\"command\":\"explode\"}\n", "\u{1}\n"] {
            let mut stream = UnixStream::connect(path_in(folder.path())).await.unwrap();
            stream.write_all(line.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.contains("no such command"), "{line:?}: {answer}");
        }
        let empty = tempfile::tempdir().unwrap();
        let show = Command::BudgetShow { caller: "a".into(), key: "b".into() };
        let said = ask_in(empty.path(), show).await.unwrap_err().to_string();
        assert!(said.contains("control.sock"), "{said}");
    }

    #[test]
    fn only_root_and_the_daemons_own_user_may_command_it() {
        let own = rustix::process::geteuid().as_raw();
        assert!(may_command(0) && may_command(own));
        assert!(!may_command(own + 1) && !may_command(65_534));
    }
}

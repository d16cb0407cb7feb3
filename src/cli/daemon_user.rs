//! Commands that ask as the daemon would, run by root: who may read a secret, and where a login is
//! recorded, depends on who asks.

use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use super::failure::{Exit, Failure};

/// The owner of the state directory, where root runs a command and the owner is another user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonUser {
    name: String,
    uid: u32,
    gid: u32,
}

impl DaemonUser {
    /// As [`DaemonUser::of`], for the `server.state_dir` of a configuration, of which nothing else is
    /// read or checked: that is for the user who is found.
    pub fn of_config(config: &Path) -> Result<Option<Self>, Failure> {
        let table = std::fs::read_to_string(config).ok().and_then(|text| text.parse().ok());
        let state_dir = table.as_ref().and_then(|table: &toml::Table| state_dir(config, table));
        Self::of(state_dir.as_deref())
    }

    /// The user of this name; none where it is root.
    #[cfg(target_os = "linux")]
    pub fn named(name: &str) -> Result<Option<Self>, Failure> {
        use nix::unistd::User;

        let Ok(Some(user)) = User::from_name(name) else {
            let message = format!("there is no user {name}");
            return Err(Failure::new(Exit::Configuration, message).advise(format!(
                "Make it (useradd --system --user-group --shell /usr/sbin/nologin {name}), or name \
                 another with --user."
            )));
        };
        let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
        Ok((uid != 0).then_some(Self { name: user.name, uid, gid }))
    }

    /// A user by name: known on Linux only.
    #[cfg(not(target_os = "linux"))]
    pub fn named(_: &str) -> Result<Option<Self>, Failure> {
        Ok(None)
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The user's number.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// The number of the user's own group.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// Whether a file is this user's.
    pub fn owns(&self, file: &Path) -> bool {
        std::fs::metadata(file).is_ok_and(|found| found.uid() == self.uid)
    }

    /// The user to become; none for another user than root, without a state directory, and where it
    /// is root's own.
    #[cfg(target_os = "linux")]
    pub fn of(state_dir: Option<&Path>) -> Result<Option<Self>, Failure> {
        use nix::unistd::{Uid, User};

        let Some(state_dir) = state_dir.filter(|_| Uid::effective().is_root()) else {
            return Ok(None);
        };
        let owner = std::fs::metadata(state_dir).map_or(0, |found| found.uid());
        if owner == 0 {
            return Ok(None);
        }
        if let Ok(Some(user)) = User::from_uid(Uid::from_raw(owner)) {
            return Ok(Some(Self { name: user.name, uid: owner, gid: user.gid.as_raw() }));
        }
        let shown = state_dir.display();
        let message = format!("{shown} belongs to uid {owner}, who is no user of this system");
        Err(Failure::new(Exit::Configuration, message)
            .advise("Make that user, or give the directory to the daemon's user."))
    }

    /// The user to become: known on Linux only.
    #[cfg(not(target_os = "linux"))]
    pub fn of(_: Option<&Path>) -> Result<Option<Self>, Failure> {
        Ok(None)
    }

    /// Becomes this user with all groups, for the rest of the process.
    #[cfg(target_os = "linux")]
    pub fn enter(&self) -> Result<(), Failure> {
        use nix::unistd::{Gid, Uid, initgroups, setgid, setuid};

        let Self { name, uid, gid } = self;
        let gid = Gid::from_raw(*gid);
        let c_name = std::ffi::CString::new(name.as_str()).expect("a user's name has no NUL");
        initgroups(&c_name, gid)
            .and_then(|()| setgid(gid))
            .and_then(|()| setuid(Uid::from_raw(*uid)))
            .map_err(|error| {
                Failure::new(Exit::Failure, format!("cannot become the user {name}: {error}"))
                    .advise(format!("Run it as that user: sudo -u {name} claviger …"))
            })
    }

    /// Becomes this user: never asked for, as there is none.
    #[cfg(not(target_os = "linux"))]
    pub fn enter(&self) -> Result<(), Failure> {
        Ok(())
    }
}

/// Goes on as the owner of the state directory that a configuration names, where root runs the command.
pub fn ask_as_the_daemon(config: &Path) -> Result<(), Failure> {
    DaemonUser::of_config(config)?.map_or(Ok(()), |user| user.enter())
}

/// Runs another command of this program, with `--json` and with the configuration, which becomes the
/// daemon's user itself; what it reads on stdin is `input`. So a vendor's module is never loaded by root,
/// and whatever it does cannot come back to root's rights.
pub fn run_anew(command: &[&str], config: &Path, input: &[u8]) -> io::Result<Output> {
    let mut child = std::process::Command::new(std::env::current_exe()?)
        .arg("--json")
        .args(command)
        .arg("--config")
        .arg(config)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // One that ended before it has read says why on stderr.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input));
    child.wait_with_output()
}

/// `server.state_dir` of a configuration file that holds this.
pub fn state_dir(config: &Path, table: &toml::Table) -> Option<PathBuf> {
    let state_dir = table.get("server")?.get("state_dir")?.as_str()?;
    Some(config.parent().unwrap_or(Path::new("")).join(state_dir))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_to_become_another_without_a_state_directory_of_another() {
        assert_eq!(DaemonUser::of(None).unwrap(), None);
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(DaemonUser::of(Some(folder.path())).unwrap(), None, "our own");
        assert_eq!(DaemonUser::of(Some(&folder.path().join("missing"))).unwrap(), None);
    }
}

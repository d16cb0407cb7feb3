//! Where a new set-up goes, whose files they are, and which modes they get.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use claviger_files::NewMode;

use crate::cli::daemon_user::DaemonUser;
use crate::cli::failure::{Exit, Failure};
use crate::cli::local_daemon::make_key_file;

/// The folder of the configuration that a service has.
const SYSTEM: &str = "/etc/claviger";
/// The user of the packages.
const USER: &str = "claviger";

/// The places, and for whom.
#[derive(Debug)]
pub(super) struct Layout {
    /// The configuration itself.
    pub(super) config: PathBuf,
    /// Its folder.
    pub(super) folder: PathBuf,
    /// The daemon's own folder.
    pub(super) state_dir: PathBuf,
    /// The audit log.
    pub(super) audit: PathBuf,
    /// The small CA.
    pub(super) pki: PathBuf,
    /// Whether it is the service's: in /etc/claviger.
    pub(super) is_system: bool,
    /// The daemon's user, where root sets up for another.
    pub(super) user: Option<DaemonUser>,
}

impl Layout {
    /// The places beside a configuration.
    pub(super) fn of(
        config: &Path,
        pki: Option<PathBuf>,
        user: Option<&str>,
    ) -> Result<Self, Failure> {
        let config = absolute(config)?;
        let folder = config.parent().map(Path::to_owned).unwrap_or_default();
        let is_system = folder == Path::new(SYSTEM);
        let is_root = rustix::process::geteuid().is_root();
        let user = match user {
            Some(name) if is_root => DaemonUser::named(name)?,
            Some(name) => {
                let message = format!("--user {name}: only root can set up for another user");
                return Err(Failure::new(Exit::Usage, message));
            }
            None if is_system && is_root => DaemonUser::named(USER)?,
            None => None,
        };
        let (state_dir, audit, default_pki) = if is_system {
            (
                "/var/lib/claviger".into(),
                "/var/log/claviger/audit.jsonl".into(),
                "/root/claviger-pki".into(),
            )
        } else {
            (folder.join("state"), folder.join("audit.jsonl"), folder.join("pki"))
        };
        let pki = pki.map_or(Ok(default_pki), |given| absolute(&given))?;
        Ok(Self { config, folder, state_dir, audit, pki, is_system, user })
    }

    /// Makes the folders that are missing.
    pub(super) fn prepare(&self) -> Result<(), Failure> {
        self.folder(&self.folder, 0o755, false)?;
        self.folder(&self.folder.join("tls"), 0o755, false)?;
        self.folder(&self.state_dir, 0o700, true)?;
        let of_audit = self.audit.parent().unwrap_or(&self.folder);
        self.folder(of_audit, 0o750, true)?;
        let denied = self.folder.join("denied");
        if denied.exists() {
            return Ok(());
        }
        Self::public(
            &denied,
            b"# Callers that are refused at once: `claviger deny add` writes here.\n",
        )
    }

    /// A folder, made unless it is there; the daemon's user's own with `of_daemon`.
    fn folder(&self, path: &Path, mode: u32, of_daemon: bool) -> Result<(), Failure> {
        if path.is_dir() {
            return Ok(());
        }
        let make = || {
            std::fs::DirBuilder::new().recursive(true).mode(mode).create(path)?;
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode))?;
            match self.user.as_ref().filter(|_| of_daemon) {
                Some(user) => chown(path, Some(user.uid()), Some(user.gid())),
                None => Ok(()),
            }
        };
        make().map_err(|error| failed(path, &error))
    }

    /// Writes a new file that any user may read.
    pub(super) fn public(path: &Path, content: &[u8]) -> Result<(), Failure> {
        claviger_files::create(path, content, 0o644).map_err(|error| failed(path, &error))
    }

    /// Writes a new file for the daemon alone: root's and readable by its group, where root sets up for
    /// another user, so that the daemon cannot change it.
    pub(super) fn secret(&self, path: &Path, content: &[u8]) -> Result<(), Failure> {
        claviger_files::create(path, content, 0o600).map_err(|error| failed(path, &error))?;
        self.share_secret(path)
    }

    /// Lets the daemon's group read a secret file of ours.
    pub(super) fn share_secret(&self, path: &Path) -> Result<(), Failure> {
        let Some(user) = &self.user else { return Ok(()) };
        chown(path, None, Some(user.gid()))
            .and_then(|()| std::fs::set_permissions(path, PermissionsExt::from_mode(0o640)))
            .map_err(|error| failed(path, &error))
    }

    /// A key in a file, for tests; one that is there stays.
    pub(super) fn make_key_file(&self, name: &str) -> Result<(), Failure> {
        let folder = self.folder.join("keys");
        self.folder(&folder, 0o755, false)?;
        let file = folder.join(format!("{name}.pem"));
        if file.exists() {
            return Ok(());
        }
        make_key_file(&file, 3072)?;
        self.share_secret(&file)
    }

    /// Writes the configuration; one that is there is kept as `.old`.
    pub(super) fn write_configuration(&self, text: &str) -> Result<(), Failure> {
        let shown = |error| failed(&self.config, &error);
        if self.config.exists() {
            let mut old = self.config.clone().into_os_string();
            old.push(".old");
            std::fs::copy(&self.config, old).map_err(shown)?;
        }
        claviger_files::replace(&self.config, text.as_bytes(), NewMode::Exactly(0o644))
            .map_err(shown)
    }

    /// A path as the configuration has it: relative to its folder where it is inside of it.
    pub(super) fn as_written<'a>(&self, path: &'a Path) -> &'a Path {
        path.strip_prefix(&self.folder).unwrap_or(path)
    }

    /// The user who is to read what the daemon reads, in words.
    pub(super) fn user_name(&self) -> &str {
        self.user.as_ref().map_or("this user", DaemonUser::name)
    }
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| failed(path, &error))
}

pub(super) fn failed(path: &Path, error: &std::io::Error) -> Failure {
    let failure = Failure::new(Exit::Failure, format!("cannot write {}: {error}", path.display()));
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => failure
            .advise("Run it as root (sudo claviger init), or name another file with --config."),
        _ => failure,
    }
}

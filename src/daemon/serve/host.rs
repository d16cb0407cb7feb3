//! What the daemon asks of the host: memory that no other process reads, a state directory of its own.

use std::io;
use std::path::Path;

use claviger_files::FileError;

use crate::daemon::records::creatable::check_creatable;
use crate::daemon::serve::{ServeError, state_format};

/// No core dumps, and no other process of this user reads our memory.
pub fn protect_memory() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::warn!(%error, "core dumps could not be switched off");
    }
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
            tracing::warn!(%error, "this process could not be made undumpable");
        }
    }
}

/// The id of the machine's start, which its monotonic clock counts from; none where the system tells none.
pub(super) fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

/// The state directory: made if it is missing; it must be ours and not writable by others.
pub fn prepare_state_dir(path: &Path) -> Result<(), ServeError> {
    use std::os::unix::fs::DirBuilderExt;
    let failed = |error| ServeError::StateDir { path: path.to_owned(), error };
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    check_state_dir(path).and_then(|()| state_format::keep(path)).map_err(failed)
}

/// Sees that [`prepare_state_dir`] would accept this directory, or could make it.
pub fn check_state_dir(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    if std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return check_creatable(path);
    }
    let metadata = std::fs::metadata(path)?;
    let own = rustix::process::geteuid().as_raw();
    if !metadata.is_dir() {
        return Err(io::Error::other("is not a directory"));
    }
    if metadata.uid() != own {
        let text = format!("belongs to uid {}; chown it to uid {own}", metadata.uid());
        return Err(io::Error::other(text));
    }
    if metadata.mode() & 0o022 != 0 {
        let text = format!("mode {:o} lets others write; chmod 700 it", metadata.mode() & 0o777);
        return Err(io::Error::other(text));
    }
    claviger_files::check_folders(path).map_err(|error| match error {
        FileError::Io { source, .. } => source,
        // The caller names the path.
        FileError::Refused { reason, .. } => io::Error::other(reason),
    })?;
    state_format::check(path)
}

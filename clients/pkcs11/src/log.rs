//! The log: nothing at all unless the configuration names a file or stderr; never key material,
//! never a PIN.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::origin::Origin;

/// Where the log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Log {
    /// To the host's stderr.
    Stderr,
    /// To the end of this file. It is opened for each line, so that no descriptor stays open and a
    /// rotation needs no signal.
    File(PathBuf),
}

impl Log {
    /// From the option `log`: `stderr` or a path, which starts at `folder` unless it is absolute.
    pub(crate) fn new(option: &str, folder: &Path) -> Self {
        match option {
            "stderr" => Self::Stderr,
            path => Self::File(folder.join(path)),
        }
    }

    /// Writes one line. A log that cannot be written is no reason to fail a call.
    pub(crate) fn write(&self, message: &dyn fmt::Display) {
        let line = format!("claviger-pkcs11[{}]: {message}\n", std::process::id());
        let _ = match self {
            Self::Stderr => std::io::stderr().write_all(line.as_bytes()),
            Self::File(path) => OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(path)
                .and_then(|mut file| file.write_all(line.as_bytes())),
        };
    }
}

/// The log of one process.
struct Sink {
    origin: Origin,
    log: Log,
}

/// Null, or the sink of the process that called [`set`] last. Sinks are never freed, as another
/// thread may be writing to one; there is one for each C_Initialize that changes the log. A pointer
/// and not a lock, so that a child of fork finds it usable, and not its own.
static SINK: AtomicPtr<Sink> = AtomicPtr::new(null_mut());

/// Sets where this process logs to; none: nowhere.
pub(crate) fn set(log: Option<Log>) {
    if log.as_ref() == current() {
        return;
    }
    let sink = log.map(|log| Box::new(Sink { origin: Origin::here(), log }));
    SINK.store(sink.map_or(null_mut(), Box::into_raw), Ordering::Release);
}

/// Writes one line where the configuration of this process wants it.
pub(crate) fn write(message: impl fmt::Display) {
    if let Some(log) = current() {
        log.write(&message);
    }
}

fn current() -> Option<&'static Log> {
    // SAFETY: null, or made by `set` and never freed.
    let sink = unsafe { SINK.load(Ordering::Acquire).as_ref() }?;
    sink.origin.is_here().then_some(&sink.log)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_log_file_is_made_for_its_owner_only_and_grows_line_by_line() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::new("pkcs11.log", folder.path());
        log.write(&"first");
        log.write(&"second");
        let path = folder.path().join("pkcs11.log");
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().map(|line| line.rsplit(' ').next().unwrap()).collect();
        assert_eq!(lines, ["first", "second"]);
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

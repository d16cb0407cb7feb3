//! The log: nothing at all unless the configuration names a file or stderr; never key material,
//! never a PIN.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

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

/// Writes one line where the configuration wants it.
pub(crate) fn write(message: impl fmt::Display) {
    if let Some(log) = crate::process::current().and_then(crate::process::Process::log) {
        log.write(&message);
    }
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

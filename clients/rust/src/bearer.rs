//! A bearer token in a file, which another program replaces before it ends.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use claviger_files::{FileError, Protection};
use tonic::metadata::{Ascii, MetadataValue};
use zeroize::Zeroizing;

use crate::config::ConfigError;

/// How often the file is read again.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 64 << 10;

/// The token that is sent with each call.
pub(crate) struct Bearer {
    path: PathBuf,
    state: Mutex<(MetadataValue<Ascii>, Instant)>,
}

impl Bearer {
    /// Reads the file, which is a secret.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        let state = Mutex::new((header(path)?, Instant::now()));
        Ok(Self { path: path.to_owned(), state })
    }

    /// What `authorization` is now. A file that cannot be read leaves the last token in force.
    pub(crate) fn header(&self) -> MetadataValue<Ascii> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.1.elapsed() >= LOOK_INTERVAL {
            state.1 = Instant::now();
            if let Ok(header) = header(&self.path) {
                state.0 = header;
            }
        }
        state.0.clone()
    }
}

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bearer").field("path", &self.path).finish_non_exhaustive()
    }
}

fn header(path: &Path) -> Result<MetadataValue<Ascii>, ConfigError> {
    let invalid = |reason: String| ConfigError::Invalid { path: path.to_owned(), reason };
    let bytes =
        claviger_files::read(path, Protection::Secret, MAX_FILE).map_err(|error| match error {
            FileError::Io { source, .. } => {
                ConfigError::Unreadable { path: path.to_owned(), reason: source.to_string() }
            }
            FileError::Refused { reason, .. } => invalid(reason),
        })?;
    let text = std::str::from_utf8(&bytes).unwrap_or_default().trim();
    let is_token = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    let header = Zeroizing::new(format!("Bearer {text}")).parse::<MetadataValue<Ascii>>();
    let mut header = header
        .ok()
        .filter(|_| is_token)
        .ok_or_else(|| invalid("holds no token: one line of printable characters".to_owned()))?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_token_is_read_again_when_its_file_changes_and_is_never_printed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let write = |text: &str| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        };
        write("first.token\n");
        let bearer = Bearer::read(&path).unwrap();
        let look = || {
            bearer.state.lock().unwrap().1 -= LOOK_INTERVAL;
            bearer.header()
        };
        assert_eq!(look(), "Bearer first.token");
        write("second.token");
        assert_eq!(look(), "Bearer second.token");
        write("two words");
        assert_eq!(look(), "Bearer second.token");
        assert!(!format!("{bearer:?} {:?}", bearer.header()).contains("second"));
        let error = Bearer::read(&path).unwrap_err().to_string();
        assert!(error.contains("holds no token"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Bearer::read(&path).is_err(), "others may read it");
    }
}

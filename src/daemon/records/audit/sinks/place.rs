//! Where a sink is in the log, over restarts: a small file beside it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use crate::daemon::records::creatable::check_creatable;

/// How often it is written at most: after a crash a sink gets the lines of this time again.
const EVERY: Duration = Duration::from_secs(1);

/// The file `NAME.sink` behind the log's name: the number of lines that the sink has.
#[derive(Debug)]
pub(super) struct Place {
    file: File,
    records: Option<u64>,
    written_at: Option<Instant>,
}

impl Place {
    /// Opens or makes the file of the sink with this name.
    pub(super) fn open(log: &Path, name: &str) -> io::Result<Self> {
        let path = path(log, name);
        let flags = OFlags::NOFOLLOW.bits().cast_signed();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
        let file = options.open(&path).map_err(|error| in_words(&path, &error))?;
        let mut text = [0; 20];
        let records = match file.read_at(&mut text, 0).map_err(|error| in_words(&path, &error))? {
            0 => None,
            _ => str::from_utf8(&text).ok().and_then(|text| text.parse().ok()),
        };
        Ok(Self { file, records, written_at: None })
    }

    /// How many lines the sink has; none where it is new.
    pub(super) fn records(&self) -> Option<u64> {
        self.records
    }

    /// Notes how many it has now; not more often than each second, unless it is the `last` time.
    pub(super) fn note(&mut self, records: u64, is_last: bool) {
        let is_early = self.written_at.is_some_and(|at| at.elapsed() < EVERY) && !is_last;
        if self.records == Some(records) || is_early {
            return;
        }
        // Where it cannot be written, the sink gets lines again after a restart.
        if self.file.write_all_at(format!("{records:020}").as_bytes(), 0).is_ok() {
            self.records = Some(records);
        }
        self.written_at = Some(Instant::now());
    }
}

/// Sees that [`Place::open`] would succeed, without making anything.
pub(super) fn check(log: &Path, name: &str) -> io::Result<()> {
    let path = path(log, name);
    match OpenOptions::new().read(true).write(true).open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => check_creatable(&path),
        opened => opened.map(drop),
    }
    .map_err(|error| in_words(&path, &error))
}

fn path(log: &Path, name: &str) -> PathBuf {
    let mut path = log.as_os_str().to_owned();
    path.push(format!(".{name}.sink"));
    path.into()
}

fn in_words(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_survives_and_a_new_sink_has_none() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("audit.jsonl");
        let mut place = Place::open(&log, "siem").unwrap();
        assert_eq!(place.records(), None);
        place.note(7, false);
        place.note(9, false);
        assert_eq!(Place::open(&log, "siem").unwrap().records(), Some(7));
        place.note(9, true);
        assert_eq!(Place::open(&log, "siem").unwrap().records(), Some(9));
        assert_eq!(Place::open(&log, "other").unwrap().records(), None);
    }
}

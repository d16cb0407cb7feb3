//! Rotation by the daemon itself: when a file is full or old, what it is named then, how many are kept.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;

use super::chain::Link;
use crate::daemon::config;

/// When the log goes on in a new file.
#[derive(Debug)]
pub(super) struct Rotation {
    options: config::Rotation,
    /// When the file was last written.
    written_at: SystemTime,
}

impl Rotation {
    /// Of a file that was last written at this time.
    pub(super) fn new(options: config::Rotation, written_at: SystemTime) -> Self {
        Self { options, written_at }
    }

    /// The file was written now.
    pub(super) fn written(&mut self, now: SystemTime) {
        self.written_at = now;
    }

    /// Whether a file of `length` bytes is to be left: it is as large as it may become, or its last line
    /// is of another period than now. Periods are counted from 1970 on, so days begin at midnight UTC,
    /// whenever the daemon started.
    pub(super) fn is_due(&self, length: u64, now: SystemTime) -> bool {
        let config::Rotation { max_size, max_age, .. } = self.options;
        let is_full = max_size.is_some_and(|size| length >= size);
        let is_old = max_age.is_some_and(|age| period(now, age) > period(self.written_at, age));
        length > 0 && (is_full || is_old)
    }

    /// Gives the file at `path` its name among the rotated ones, and removes the oldest of those that are
    /// too many. `records` is the number of lines until its end: names differ even within a second.
    pub(super) fn rename(&self, path: &Path, records: u64, now: SystemTime) -> io::Result<()> {
        let mut name = path.as_os_str().to_owned();
        name.push(ending(now, records));
        fs::rename(path, &name)?;
        if let Some(keep) = self.options.keep
            && let Err(error) = remove_oldest(path, keep)
        {
            tracing::warn!(path = %path.display(), %error, "old files of the audit log were not removed");
        }
        Ok(())
    }
}

/// The files beside the log at `path` that have the name of a rotated one (its own, and behind it `.1`,
/// `-20261231` and the like), in the order of their lines: by the place in the chain of the first one,
/// and those without one, as of an older version, before them by their age. Packed ones are left out.
pub fn rotated_files(path: &Path) -> Vec<PathBuf> {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return Vec::new() };
    let entries = fs::read_dir(folder_of(path)).into_iter().flatten();
    let rotated = entries.filter_map(Result::ok).filter(|entry| {
        let found = entry.file_name();
        let ending = found.to_str().and_then(|found| found.strip_prefix(name));
        ending.is_some_and(|ending| {
            ending.starts_with(['.', '-'])
                && ending.len() > 1
                && ending[1..].bytes().all(|b| b.is_ascii_digit() || b == b'-')
        })
    });
    let mut rotated: Vec<_> = rotated
        .map(|entry| {
            let written = entry.metadata().and_then(|found| found.modified()).ok();
            (first_place(&entry.path()), written, entry.path())
        })
        .collect();
    rotated.sort_unstable();
    rotated.into_iter().map(|(_, _, path)| path).collect()
}

/// The place in the chain of a file's first line.
fn first_place(path: &Path) -> Option<u64> {
    /// Far longer than a line.
    const MOST: u64 = 1 << 20;
    let mut line = Vec::new();
    BufReader::new(File::open(path).ok()?.take(MOST)).read_until(b'\n', &mut line).ok()?;
    Link::of(&line).map(|link| link.n)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Which period of this length a time is in, from 1970 on.
fn period(at: SystemTime, length: Duration) -> u64 {
    let since_1970 = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since_1970.as_secs() / length.as_secs().max(1)
}

/// `-20261231-235959-1042`: in the order of their names, rotated files are in the order of their lines.
fn ending(now: SystemTime, records: u64) -> OsString {
    let now = OffsetDateTime::from(now);
    let (year, month, day) = now.to_calendar_date();
    let (hour, minute, second) = now.to_hms();
    let month = u8::from(month);
    format!("-{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}-{records}").into()
}

fn remove_oldest(path: &Path, keep: usize) -> io::Result<()> {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return Ok(()) };
    let mut rotated: Vec<(u64, PathBuf)> = fs::read_dir(folder_of(path))?
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let records = records_of(entry.file_name().to_str()?.strip_prefix(name)?)?;
            Some((records, entry.path()))
        })
        .collect();
    rotated.sort_unstable();
    let too_many = rotated.len().saturating_sub(keep);
    for (_, old) in &rotated[..too_many] {
        fs::remove_file(old)?;
        tracing::info!(path = %old.display(), keep, "an old file of the audit log was removed");
    }
    Ok(())
}

/// The number of lines in a name that [`ending`] gave; none of any other name.
fn records_of(ending: &str) -> Option<u64> {
    let mut parts = ending.strip_prefix('-')?.split('-');
    let (date, time, records) = (parts.next()?, parts.next()?, parts.next()?);
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let is_ours = (date.len(), time.len(), parts.next()) == (8, 6, None);
    (is_ours && is_number(date) && is_number(time)).then(|| records.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_file_is_left_when_it_is_full_and_at_the_first_line_of_another_day() {
        let options = config::Rotation { max_size: Some(100), max_age: Some(DAY), keep: None };
        let rotation = Rotation::new(options, at(3 * 86_400 + 5));
        assert!(!rotation.is_due(99, at(4 * 86_400 - 1)));
        assert!(rotation.is_due(100, at(3 * 86_400 + 6)), "full");
        assert!(rotation.is_due(1, at(4 * 86_400)), "another day");
        assert!(!rotation.is_due(0, at(9 * 86_400)), "an empty file has nothing to leave");
        assert!(!rotation.is_due(1, at(86_400)), "a clock that was set back is no new day");
    }

    #[test]
    fn the_newest_of_our_own_names_are_kept_and_others_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let options = config::Rotation { max_size: Some(1), max_age: None, keep: Some(2) };
        let rotation = Rotation::new(options, at(0));
        fs::write(folder.path().join("audit.jsonl-20260101"), "of logrotate").unwrap();
        for records in [2, 9, 10, 100] {
            fs::write(&path, "").unwrap();
            rotation.rename(&path, records, at(0)).unwrap();
        }
        let names = fs::read_dir(folder.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        assert_eq!(
            names,
            [
                "audit.jsonl-19700101-000000-10",
                "audit.jsonl-19700101-000000-100",
                "audit.jsonl-20260101"
            ]
        );
    }
}

//! The lines of audit logs, for every command that reads them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::cli::failure::{Exit, Failure};
use crate::daemon::records::audit::rotated_files;

/// How often a terminal is told how far it is.
const PROGRESS: Duration = Duration::from_millis(500);

/// The files that a command reads.
#[derive(clap::Args, Debug)]
pub(super) struct Files {
    /// Read the rotated files beside FILE first, in the order of their records (not those that are packed)
    #[arg(long)]
    rotated: bool,
    /// The log's files, oldest first
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

impl Files {
    /// All of them, oldest first.
    pub(super) fn oldest_first(&self) -> Vec<PathBuf> {
        let with_rotated = |file: &PathBuf| {
            let mut files = if self.rotated { rotated_files(file) } else { Vec::new() };
            files.push(file.clone());
            files
        };
        self.files.iter().flat_map(with_rotated).collect()
    }
}

/// A line of a file.
pub(super) struct Line<'a> {
    /// The file's name.
    pub(super) file: &'a str,
    /// The line's number in it, from 1.
    pub(super) number: u64,
    /// Its bytes without the line end.
    pub(super) bytes: &'a [u8],
    /// False for what stands behind the last line end: a line that was not written whole.
    pub(super) is_whole: bool,
}

/// A file of the log, read line by line; it may grow meanwhile.
pub(super) struct LogFile {
    path: PathBuf,
    name: String,
    file: BufReader<File>,
    lines: u64,
    bytes_read: u64,
    line: Vec<u8>,
}

impl LogFile {
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let file = File::open(path).map_err(|error| cannot_read(path, &error))?;
        let (path, name) = (path.to_owned(), path.display().to_string());
        let file = BufReader::with_capacity(1 << 20, file);
        Ok(Self { path, name, file, lines: 0, bytes_read: 0, line: Vec::new() })
    }

    /// The next line that has a line end; none where there is no more yet.
    pub(super) fn next_line(&mut self) -> Result<Option<Line<'_>>, Failure> {
        if self.line.ends_with(b"\n") {
            self.line.clear();
        }
        let read = self.file.read_until(b'\n', &mut self.line);
        self.bytes_read += read.map_err(|error| cannot_read(&self.path, &error))? as u64;
        let Some(bytes) = self.line.strip_suffix(b"\n") else { return Ok(None) };
        self.lines += 1;
        Ok(Some(Line { file: &self.name, number: self.lines, bytes, is_whole: true }))
    }

    /// What stands behind the last line end.
    fn rest(&self) -> Option<Line<'_>> {
        let bytes = (!self.line.is_empty() && !self.line.ends_with(b"\n")).then_some(&self.line)?;
        Some(Line { file: &self.name, number: self.lines + 1, bytes, is_whole: false })
    }

    /// How many bytes of it were read.
    pub(super) fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// The file itself.
    pub(super) fn file(&self) -> &File {
        self.file.get_ref()
    }
}

/// Reads files line by line, oldest first. On a terminal stderr tells how many lines were read.
pub(super) fn each_line(
    files: &[PathBuf],
    mut then: impl FnMut(&Line<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut progress = Progress::new();
    for path in files {
        let mut file = LogFile::open(path)?;
        while let Some(line) = file.next_line()? {
            then(&line)?;
            progress.line();
        }
        file.rest().iter().try_for_each(&mut then)?;
    }
    progress.clear();
    Ok(())
}

/// The failure of a file that cannot be read.
pub(super) fn cannot_read(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Exit::Configuration, format!("cannot read {}: {error}", path.display()))
}

/// What a line of the log says, as far as commands look at it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Record {
    pub(super) time: String,
    pub(super) event: String,
    pub(super) request_id: Option<String>,
    pub(super) caller_request_id: Option<String>,
    pub(super) backend_request_id: Option<String>,
    pub(super) caller: Option<String>,
    pub(super) identity: Option<String>,
    pub(super) peer: Option<String>,
    pub(super) certificate_sha256: Option<String>,
    pub(super) certificate_not_after: Option<String>,
    pub(super) operation: Option<String>,
    pub(super) key: Option<String>,
    pub(super) version: Option<u64>,
    pub(super) wrapped_sha256: Option<String>,
    pub(super) target_wrapped_sha256: Option<String>,
    pub(super) outcome: Option<String>,
    pub(super) reason: Option<String>,
    pub(super) cause: Option<String>,
    pub(super) backend_error: Option<String>,
    pub(super) alarm: Option<String>,
    pub(super) error: Option<String>,
    /// Of calls that were counted: when the first and the last one was.
    pub(super) first: Option<String>,
    pub(super) last: Option<String>,
    /// How many of them there were.
    pub(super) operations: u64,
    pub(super) refusals: u64,
    /// How many by what they were, and by their keys.
    pub(super) by_operation: BTreeMap<String, u64>,
    pub(super) reasons: BTreeMap<String, u64>,
    pub(super) keys: BTreeMap<String, u64>,
    pub(super) other_keys: u64,
}

impl Record {
    /// Reads a line; none where it is no JSON object, or has a field of another type.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }
}

/// How far it is, on a terminal.
struct Progress {
    lines: u64,
    next: Instant,
    is_shown: bool,
}

impl Progress {
    fn new() -> Self {
        let is_shown = std::io::stderr().is_terminal();
        Self { lines: 0, next: Instant::now() + PROGRESS, is_shown }
    }

    fn line(&mut self) {
        self.lines += 1;
        if self.is_shown && self.lines.is_multiple_of(4096) && Instant::now() >= self.next {
            self.next = Instant::now() + PROGRESS;
            eprint!("\r{} records", self.lines);
            let _ = std::io::stderr().flush();
        }
    }

    fn clear(&self) {
        if self.is_shown {
            eprint!("\r\x1b[K");
        }
    }
}

//! `claviger audit tail`: the newest records, and those that come.

use std::collections::VecDeque;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::lines::{LogFile, Record, cannot_read};
use super::shown::show;
use crate::cli::failure::{Failure, tell};

/// How often a log that is followed is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// The arguments of `claviger audit tail`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Go on with what the daemon writes, over rotations, until you end it
    #[arg(long, short)]
    follow: bool,
    /// The number of records to begin with
    #[arg(long, short = 'n', value_name = "NUMBER", default_value_t = 10)]
    lines: usize,
    /// Only those of this caller; `-` is a peer that is none
    #[arg(long, value_name = "NAME")]
    caller: Option<String>,
    /// Only those of this key
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
    /// Only those that ended so: `ok`, `failed` (everything else), or a code as the log has it
    #[arg(long, value_name = "OUTCOME")]
    outcome: Option<String>,
    /// The log's newest file
    file: PathBuf,
}

/// Prints the last records that the filters let through; with `--follow` it ends with the program.
pub(super) fn run(args: &Args, json: bool) -> Result<(), Failure> {
    let mut file = LogFile::open(&args.file)?;
    let mut last: VecDeque<Vec<u8>> = VecDeque::new();
    while let Some(line) = file.next_line()? {
        if args.parse(line.bytes).is_some() {
            if last.len() >= args.lines {
                last.pop_front();
            }
            last.push_back(line.bytes.to_owned());
            last.truncate(args.lines);
        }
    }
    for line in last {
        args.show(&line, json)?;
    }
    if args.follow { follow(args, file, json) } else { Ok(()) }
}

/// Prints what comes, until the reader of stdout has gone.
fn follow(args: &Args, mut file: LogFile, json: bool) -> Result<(), Failure> {
    loop {
        // Once there is a new file, the old one is complete.
        let next = successor(&file, &args.file)?;
        while let Some(line) = file.next_line()? {
            args.show(line.bytes, json)?;
        }
        match next {
            Some(next) => file = next,
            None => thread::sleep(LOOK),
        }
    }
}

impl Args {
    fn show(&self, line: &[u8], json: bool) -> Result<(), Failure> {
        self.parse(line).map_or(Ok(()), |record| show(&record, line, json))
    }

    /// The record, if the filters let it through.
    fn parse(&self, line: &[u8]) -> Option<Record> {
        let record = Record::parse(line)?;
        let is = |wanted: &Option<String>, found: &Option<String>| {
            wanted.as_deref().is_none_or(|wanted| found.as_deref().unwrap_or("-") == wanted)
        };
        let outcome = match self.outcome.as_deref() {
            None => true,
            Some("failed") => record.outcome.as_deref().is_some_and(|outcome| outcome != "ok"),
            Some(wanted) => record
                .outcome
                .as_deref()
                .is_some_and(|outcome| outcome.eq_ignore_ascii_case(wanted)),
        };
        // What the daemon records about itself has no caller either, and is no call.
        let is_call = record.outcome.is_some() || record.operations + record.refusals > 0;
        let has_caller = self.caller.is_none() || record.caller.is_some() || is_call;
        let is_it = is(&self.caller, &record.caller) && is(&self.key, &record.key);
        (has_caller && is_it && outcome).then_some(record)
    }
}

/// The file that stands in the place of this one since it was rotated away. A file that became shorter
/// is told, as the daemon never cuts one, and read again from its begin.
fn successor(file: &LogFile, path: &Path) -> Result<Option<LogFile>, Failure> {
    let open = file.file().metadata().map_err(|error| cannot_read(path, &error))?;
    // Between a rotation and the next record there is no file.
    let Ok(now) = path.metadata() else { return Ok(None) };
    let is_other = (open.dev(), open.ino()) != (now.dev(), now.ino());
    let is_cut = !is_other && now.len() < file.bytes_read();
    if is_cut {
        tell(&format!("{} was cut: this was not the daemon", path.display()));
    }
    if is_other || is_cut { LogFile::open(path).map(Some) } else { Ok(None) }
}

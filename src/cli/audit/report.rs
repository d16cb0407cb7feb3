//! `claviger audit report`: who used which key when, what failed, and what should be looked at.

mod gathered;
mod written;

use std::path::PathBuf;

use time::{Duration, OffsetDateTime};

use self::gathered::Gathered;
use super::lines::{Files, Record, each_line};
use crate::cli::failure::{Exit, Failure};
use crate::cli::input_output;
use crate::daemon::config::Config;

/// The arguments of `claviger audit report`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The daemon's configuration: callers in it that never called are named
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Report from this time on, such as 2026-12-01 or 2026-12-01T08:00:00Z (UTC); what is older
    /// still tells which uses are the first
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<String>,
    /// Name certificates that end within so many days from now
    #[arg(long, value_name = "DAYS", default_value_t = 30)]
    expiring: u16,
    #[command(flatten)]
    files: Files,
}

/// Reads whole logs and prints the report.
pub(super) fn run(args: &Args, json: bool) -> Result<(), Failure> {
    let callers = match &args.config {
        Some(path) => {
            let config = Config::load(path)
                .map_err(|errors| Failure::new(Exit::Configuration, errors.to_string()))?;
            Some(config.callers.into_iter().map(|caller| caller.name).collect::<Vec<_>>())
        }
        None => None,
    };
    let mut gathered = Gathered::new(args.since.as_deref());
    each_line(&args.files.oldest_first(), |line| {
        match Record::parse(line.bytes) {
            Some(record) => gathered.record(&record),
            None => gathered.not_records += 1,
        }
        Ok(())
    })?;
    let ends = rfc3339(OffsetDateTime::now_utc() + Duration::days(args.expiring.into()));
    let report = written::Report::new(gathered, callers.as_deref(), (args.expiring, &ends));
    input_output::print(&if json { report.json() } else { report.text() })
}

/// A time in UTC as the log writes it, or its beginning: both sort as text.
fn time(text: &str) -> Result<String, String> {
    let form = "0000-00-00T00:00:00.000000Z";
    let begin = text.strip_suffix('Z').filter(|begin| begin.len() == 19).unwrap_or(text);
    let fits = |(byte, form): (u8, u8)| byte == form || (form == b'0' && byte.is_ascii_digit());
    let is_long = (10..=form.len()).contains(&begin.len());
    if is_long && begin.bytes().zip(form.bytes()).all(fits) {
        return Ok(begin.to_owned());
    }
    Err("write a time in UTC, such as 2026-12-01 or 2026-12-01T08:00:00Z".to_owned())
}

fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests;

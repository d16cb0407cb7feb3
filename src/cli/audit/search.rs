//! `claviger audit search`: the records of one call or one wrapped value.

use std::process::ExitCode;

use super::lines::{Files, Record, each_line};
use super::shown::show;
use crate::cli::failure::{Exit, Failure, tell};

/// The arguments of `claviger audit search`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A request id (the daemon's or the caller's), the SHA-256 of a wrapped value as `claviger
    /// wrapped-sha256` prints it, or the id under which a backend logged its request
    id: String,
    #[command(flatten)]
    files: Files,
}

/// Prints each record that names the id. The exit code is 1 where there is none.
pub(super) fn run(args: &Args, json: bool) -> Result<ExitCode, Failure> {
    let (mut found, mut unreadable) = (0_u64, 0_u64);
    each_line(&args.files.oldest_first(), |line| {
        match Record::parse(line.bytes) {
            Some(record) if names(&record, &args.id) => {
                found += 1;
                return show(&record, line.bytes, json);
            }
            Some(_) => {}
            None => unreadable += 1,
        }
        Ok(())
    })?;
    if unreadable > 0 {
        tell(&format!("{unreadable} lines are no records; `claviger audit verify` names them"));
    }
    if found == 0 {
        tell(&format!("no record names {:?}", args.id));
    }
    Ok(if found > 0 { ExitCode::SUCCESS } else { ExitCode::from(Exit::Failure as u8) })
}

/// Whether one of the record's ids is this one. The log cuts long ones, and ends those with `…`.
fn names(record: &Record, id: &str) -> bool {
    let ids = [
        &record.request_id,
        &record.caller_request_id,
        &record.backend_request_id,
        &record.wrapped_sha256,
        &record.target_wrapped_sha256,
    ];
    ids.into_iter().flatten().any(|known| {
        known.eq_ignore_ascii_case(id)
            || known.strip_suffix('…').is_some_and(|begin| id.starts_with(begin))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_found_by_each_of_its_ids() {
        let long = "c".repeat(64);
        let line = format!(
            "{{\"request_id\":\"0192-a\",\"caller_request_id\":\"{long}…\",\"backend_request_id\":\"b\",\
             \"wrapped_sha256\":\"ab\",\"target_wrapped_sha256\":\"cd\"}}"
        );
        let record = Record::parse(line.as_bytes()).unwrap();
        for id in ["0192-a", "b", "AB", "cd", &format!("{long}and more")] {
            assert!(names(&record, id), "{id}");
        }
        for id in ["", "0192", "a", &long[1..]] {
            assert!(!names(&record, id), "{id}");
        }
    }
}

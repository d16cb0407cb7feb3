//! `claviger deny`: edits and shows the list of callers that the daemon refuses at once.

use std::io;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use claviger_files::NewMode;
use serde_json::json;

use super::failure::{Exit, Failure};
use super::input_output;
use super::server_option;
use crate::daemon::config::path_or_default;
use crate::daemon::transport::denied::{Entry, entries};

/// The commands below `claviger deny`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Refuse callers from now on: the daemon acts within a second, without a reload
    #[command(after_help = "\
Examples:
  claviger deny add spiffe://example.org/key-connector
  claviger deny add --comment 'lost laptop, 4711' kc.example.org uid:1000")]
    Add(AddArgs),
    /// Take entries off the list
    #[command(after_help = "Example:\n  claviger deny remove spiffe://example.org/key-connector")]
    Remove(EntriesArgs),
    /// Show the list
    #[command(after_help = "Example:\n  claviger deny list")]
    List(FileArgs),
}

/// The arguments of `claviger deny add`.
#[derive(clap::Args, Debug)]
pub struct AddArgs {
    #[command(flatten)]
    entries: EntriesArgs,
    /// Written behind each entry
    #[arg(long, value_name = "TEXT", value_parser = comment)]
    comment: Option<String>,
}

/// Entries, and the list that they are in.
#[derive(clap::Args, Debug)]
pub struct EntriesArgs {
    /// A URI SAN, a DNS SAN, a certificate's SHA-256 (64 hexadecimal digits), uid:N
    /// or token:ISSUER:SUBJECT
    #[arg(required = true, value_name = "ENTRY")]
    entries: Vec<Entry>,
    #[command(flatten)]
    file: FileArgs,
}

/// Which list.
#[derive(clap::Args, Debug)]
pub struct FileArgs {
    /// The daemon's configuration, whose `server.denied_callers` names the list [default:
    /// $CLAVIGER_CONFIG, else /etc/claviger/claviger.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The list itself
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    file: Option<PathBuf>,
}

/// Runs one of them.
pub fn run(command: &Command, json: bool) -> Result<(), Failure> {
    match command {
        Command::Add(args) => add(args, json),
        Command::Remove(args) => remove(args, json),
        Command::List(args) => list(&args.path()?, json),
    }
}

fn add(args: &AddArgs, json: bool) -> Result<(), Failure> {
    let path = args.entries.file.path()?;
    let comment = args.comment.as_ref().map_or(String::new(), |text| format!(" # {text}"));
    let mut added = Vec::new();
    edit(&path, |text| {
        added.clear();
        let mut text = text.to_owned();
        for entry in &args.entries.entries {
            if !holds(&text, entry) {
                if !text.is_empty() && !text.ends_with('\n') {
                    text.push('\n');
                }
                text.extend([entry.to_string().as_str(), &comment, "\n"]);
                added.push(entry.to_string());
            }
        }
        text
    })?;
    let shown = path.display();
    if json {
        return input_output::print(
            &json!({ "file": shown.to_string(), "added": added }).to_string(),
        );
    }
    input_output::print(&match &added[..] {
        [] => format!("{shown} holds it already"),
        added => format!("added to {shown}: {}; the daemon acts within a second", added.join(", ")),
    })
}

fn remove(args: &EntriesArgs, json: bool) -> Result<(), Failure> {
    let path = args.file.path()?;
    let mut removed = Vec::new();
    edit(&path, |text| {
        removed.clear();
        let kept = text.split_inclusive('\n').filter(|line| {
            let listed = entries(line).next().and_then(Result::ok);
            let gone = listed.filter(|entry| args.entries.contains(entry));
            removed.extend(gone.as_ref().map(Entry::to_string));
            gone.is_none()
        });
        let kept: String = kept.collect();
        // An empty file is taken for an accident.
        if kept.trim().is_empty() { "# none\n".to_owned() } else { kept }
    })?;
    let shown = path.display();
    if removed.is_empty() {
        let message = format!("{shown} holds none of these");
        return Err(Failure::new(Exit::Failure, message).advise("`claviger deny list` shows it."));
    }
    if json {
        return input_output::print(
            &json!({ "file": shown.to_string(), "removed": removed }).to_string(),
        );
    }
    input_output::print(&format!("removed from {shown}: {}", removed.join(", ")))
}

fn list(path: &Path, json: bool) -> Result<(), Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| failed(path, &error))?;
    let (good, bad): (Vec<_>, Vec<_>) = entries(&text).partition(Result::is_ok);
    let good: Vec<_> = good.into_iter().flatten().map(|entry| entry.to_string()).collect();
    let bad: Vec<_> = bad.into_iter().filter_map(Result::err).collect();
    if json {
        let bad = bad.iter().map(|bad| json!({ "line": bad.line, "reason": bad.reason }));
        let bad: Vec<_> = bad.collect();
        input_output::print(
            &json!({ "file": path.display().to_string(), "denied": good, "bad": bad }).to_string(),
        )?;
    } else if good.is_empty() {
        input_output::print("no caller is denied")?;
    } else {
        input_output::print(&good.join("\n"))?;
    }
    let Some(first) = bad.first() else { return Ok(()) };
    let message = format!("{}, {first}", path.display());
    Err(Failure::new(Exit::Configuration, message)
        .advise("Such a line has no effect; correct it or take it out."))
}

fn holds(text: &str, wanted: &Entry) -> bool {
    entries(text).flatten().any(|entry| entry == *wanted)
}

/// Replaces the list by what `change` makes of it, unless another process has changed it meanwhile:
/// then again, with what is there now. A list that does not exist is made.
fn edit(path: &Path, mut change: impl FnMut(&str) -> String) -> Result<(), Failure> {
    for _ in 0..10 {
        let (text, mode) = match std::fs::read_to_string(path) {
            Ok(text) => (text, NewMode::AsBefore),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (String::new(), NewMode::Exactly(0o644))
            }
            Err(error) => return Err(failed(path, &error)),
        };
        let new = change(&text);
        if new == text {
            return Ok(());
        }
        let written = claviger_files::replace_unless(path, new.as_bytes(), mode, |path| {
            let now = std::fs::read_to_string(path).unwrap_or_default();
            if now == text { Ok(()) } else { Err(io::ErrorKind::ResourceBusy.into()) }
        });
        match written {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            other => return other.map_err(|error| failed(path, &error)),
        }
    }
    Err(Failure::new(Exit::TryAgain, format!("{} is being changed all the time", path.display())))
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    let failure = Failure::new(Exit::Failure, format!("{}: {error}", path.display()));
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            failure.advise("Run it as root, or as the list's owner.")
        }
        _ => failure,
    }
}

fn comment(text: &str) -> Result<String, String> {
    if text.chars().any(char::is_control) {
        return Err("a comment is one line".to_owned());
    }
    Ok(text.to_owned())
}

impl FileArgs {
    fn path(&self) -> Result<PathBuf, Failure> {
        if let Some(file) = &self.file {
            return Ok(file.clone());
        }
        let config = path_or_default(self.config.clone());
        server_option::path_of(&config, "denied_callers").map_err(|reason| {
            Failure::new(Exit::Configuration, reason)
                .advise("Set server.denied_callers and reload once, or name the list with --file.")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn args(path: &Path, entries: &[&str]) -> EntriesArgs {
        let entries = entries.iter().map(|entry| entry.parse().unwrap()).collect();
        EntriesArgs { entries, file: FileArgs { config: None, file: Some(path.to_owned()) } }
    }

    fn adding(path: &Path, entries: &[&str], comment: Option<&str>) {
        let args = AddArgs { entries: args(path, entries), comment: comment.map(str::to_owned) };
        add(&args, true).unwrap();
    }

    #[test]
    fn entries_come_and_go_and_what_people_wrote_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("denied");
        let text = || std::fs::read_to_string(&path).unwrap();
        adding(&path, &["spiffe://a/kc", "KC.example.org"], Some("lost"));
        assert_eq!(text(), "spiffe://a/kc # lost\nkc.example.org # lost\n");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        adding(&path, &["uid:1000", "spiffe://a/kc"], None);
        assert_eq!(text(), "spiffe://a/kc # lost\nkc.example.org # lost\nuid:1000\n");
        std::fs::write(&path, "# ours\nuid:1000 # x\n\nuid:1001").unwrap();
        adding(&path, &["uid:1002"], None);
        remove(&args(&path, &["uid:1000"]), true).unwrap();
        assert_eq!(text(), "# ours\n\nuid:1001\nuid:1002\n");
        let none = remove(&args(&path, &["uid:7"]), true).unwrap_err();
        assert!(none.to_string().contains("holds none of these"), "{none}");
    }

    #[test]
    fn a_list_without_entries_is_a_comment() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("denied");
        adding(&path, &["uid:1000"], None);
        remove(&args(&path, &["uid:1000"]), true).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "# none\n");
        list(&path, true).unwrap();
        std::fs::write(&path, "uid:1\nuid:\n").unwrap();
        let said = list(&path, true).unwrap_err().to_string();
        assert!(said.contains("line 2"), "{said}");
    }

    #[test]
    fn a_change_of_another_process_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("denied");
        std::fs::write(&path, "uid:1\n").unwrap();
        let mut first = true;
        edit(&path, |text| {
            if std::mem::take(&mut first) {
                std::fs::write(&path, "uid:1\nuid:2\n").unwrap();
            }
            format!("{text}uid:3\n")
        })
        .unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "uid:1\nuid:2\nuid:3\n");
    }
}
